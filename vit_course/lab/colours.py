"""The baseline that features of photographs have to beat: which colours there are, wherever they are."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_course.patching import require_at_least, require_images

from .data.image_set import MEAN, STD

__all__ = ["colour_histogram"]


def colour_histogram(images: Tensor, levels: int = 4) -> Tensor:
    """How often each colour occurs, as features without any network.

    Args:
        images: (b, 3, h, w), normalised by `normalise`.
        levels: of each channel.

    Returns:
        (b, levels³): the roots of the shares of pixels, so that the dot product of two pictures is their
        Bhattacharyya coefficient, 1 for equal shares.

    Raises:
        TypeError, ValueError: for other images, or fewer levels than 1.
    """
    require_images(images, 3)
    require_at_least(1, levels=levels)
    values = (images * STD + MEAN).clamp(0, 1)
    red, green, blue = (values * levels).long().clamp(max=levels - 1).flatten(2).unbind(dim=1)  # each (b, n)
    colours = (red * levels + green) * levels + blue
    counts = torch.zeros(len(images), levels**3).scatter_add_(1, colours, torch.ones(colours.shape))
    return (counts / colours.shape[1]).sqrt()
