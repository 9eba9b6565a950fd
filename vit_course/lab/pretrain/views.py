"""What becomes of a photograph before a backbone sees it, beside the multi-crop of `PhotoCrops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from ..data import PhotoView, normalise


class OneView:
    """One view of a photograph, drawn and normalised: what a data set's `transform` does.

    Args:
        view: how it is drawn.
    """

    def __init__(self, view: PhotoView) -> None:
        self.view = view
        self.least_side = math.ceil(view.size / math.sqrt(view.scale[0]))

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, size, size)."""
        return self.recolour(self.cut(image)[None])[0]

    def cut(self, image: Tensor) -> Tensor:
        """The first half of the work, (3, h, w) uint8 -> (3, size, size) uint8."""
        return self.view.crop(image)

    def recolour(self, images: Tensor) -> Tensor:
        """The second half, on any device, (b, 3, size, size) uint8 -> float."""
        return normalise(self.view.recolour(images))


@dataclass(frozen=True)
class CentreView:
    """The middle of a photograph, as it is when a model is measured.

    Args:
        size: side in pixels.
    """

    size: int

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, size, size), normalised."""
        return normalise(square(image, self.size))


def square(image: Tensor, size: int) -> Tensor:
    """The middle of a picture, scaled to cover a square: (3, h, w) uint8 -> (3, size, size) in 0..1."""
    resized = resize(image, [size], InterpolationMode.BICUBIC, antialias=True)
    return center_crop(resized, [size, size]).float() / 255


class OnDevice(nn.Module):
    """A loss that first does the second half of the augmentation, where model and pictures are.

    Args:
        loss: of a model and a batch of views.
        views: a PhotoCrops or OneView.
        has_labels: whether a batch is a pair of views and labels.
    """

    def __init__(self, loss: Callable, views: Any, has_labels: bool) -> None:
        super().__init__()
        self.loss, self.views, self.has_labels = loss, views, has_labels

    def forward(self, model: nn.Module, batch: Any) -> Any:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            if self.has_labels:
                batch = self.views.recolour(batch[0]), batch[1]
            else:
                batch = self.views.recolour(batch)
        return self.loss(model, batch)
