"""The one form in which every image set of the course comes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from vit_course.patching import require_at_least

# About those of `shapes` and `photos`: one pair for the whole course keeps models exchangeable.
MEAN, STD = 0.5, 0.27


def normalise(images: Tensor) -> Tensor:
    """Centre and scale images for a network: ``(images - 0.5) / 0.27``.

    Args:
        images: float tensor of any shape, values in 0..1.

    Returns:
        A float tensor of the same shape.

    Raises:
        TypeError: if ``images`` is not a tensor of floats.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"normalise takes a float tensor with values in 0..1, not {kind}")
    return (images - MEAN) / STD


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels and, where they are known, the exact masks and boxes of their objects.

    Attributes:
        images: (b, c, h, w) float32, values in 0..1. Floats, not bytes: what a lesson sees is what it
            computes with, and the largest set of the course (20,000 × 3 × 32 × 32) takes 245 MB.
        labels: (b,) int64, positions in ``classes``; all 0 where there are no classes.
        classes: the names of the classes; () where nobody knows what the pictures show.
        masks: (b, h, w) bool, true on the object; None where nobody knows.
        boxes: (b, 4) float32, ``x0 y0 x1 y1`` in pixels, ``x1`` and ``y1`` just outside the object; None
            where nobody knows.

    A single whole number as an index gives the pair (image, label), so that a ``torch.utils.data.DataLoader``
    takes a set as it is. A slice gives a smaller set that shares its memory; a list, an array or a tensor of
    whole numbers, or of one boolean for each image, gives one with copies.

    Raises:
        TypeError, ValueError: if the parts do not fit together, naming the shapes, or for an index of another
            kind.
        IndexError: for an index beyond the end.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        b, h, w = _check_images(self.images)
        # The way to set a field of a frozen dataclass.
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        _check_part("labels", self.labels, torch.int64, (b,))
        _check_part("masks", self.masks, torch.bool, (b, h, w))
        _check_part("boxes", self.boxes, torch.float32, (b, 4))
        if b and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < max(1, len(self.classes)):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int | np.integer) -> tuple[Tensor, Tensor]: ...

    @overload
    def __getitem__(self, index: slice | list | np.ndarray | Tensor) -> ImageSet: ...

    def __getitem__(
        self, index: int | np.integer | slice | list | np.ndarray | Tensor
    ) -> ImageSet | tuple[Tensor, Tensor]:
        where = _position(index, len(self))
        if isinstance(where, int):
            return self.images[where], self.labels[where]
        masks = None if self.masks is None else self.masks[where]
        boxes = None if self.boxes is None else self.boxes[where]
        return replace(self, images=self.images[where], labels=self.labels[where], masks=masks, boxes=boxes)

    def __repr__(self) -> str:
        b, c, h, w = self.images.shape
        names = ", ".join(self.classes[:10]) + (", …" if len(self.classes) > 10 else "")
        extras = [name for name in ("masks", "boxes") if getattr(self, name) is not None]
        known = f", with {' and '.join(extras)}" if extras else ""
        classes = f"{len(self.classes)} classes: {names}" if self.classes else "no classes"
        return f"ImageSet({b:,} images {c}×{h}×{w}{known}; {classes})"

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A random batch, drawn with replacement, for training.

        Args:
            count: number of images b in the batch.
            generator: where the randomness comes from; None takes PyTorch's own, which ``torch.manual_seed``
                sets.

        Returns:
            images (b, c, h, w) and labels (b,).

        Raises:
            TypeError: if ``count`` is not an int.
            ValueError: if ``count`` is below 1 or the set is empty.
        """
        require_at_least(1, count=count)
        if not len(self):
            raise ValueError("an empty ImageSet has nothing to sample from")
        device = "cpu" if generator is None else generator.device
        index = torch.randint(len(self), (count,), generator=generator, device=device)
        return self.images[index], self.labels[index]

    def batches(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in order, for evaluation.

        Args:
            size: images per batch; the last batch holds what is left.

        Yields:
            images (b, c, h, w) and labels (b,).

        Raises:
            TypeError: if ``size`` is not an int.
            ValueError: if ``size`` is below 1.
        """
        require_at_least(1, size=size)
        return zip(self.images.split(size), self.labels.split(size), strict=True)


def _position(index: object, length: int) -> int | slice | Tensor:
    """An index of any usual kind as one that tensors take: an int, a slice, or a tensor of one axis."""
    if isinstance(index, slice):
        backwards = index.step is not None and index.step < 0  # tensors have no such slices
        return torch.arange(*index.indices(length), device="cpu") if backwards else index
    several = torch.from_numpy(np.array(index)) if isinstance(index, list | np.ndarray) else index
    if isinstance(several, Tensor) and several.ndim:
        return _positions(several)
    if isinstance(index, bool | np.bool_) or isinstance(several, Tensor) and several.dtype == torch.bool:
        raise TypeError(f"an ImageSet is indexed by whole numbers, not by {index}")
    try:
        return operator.index(several)  # type: ignore[arg-type]  # this tests whether it can
    except TypeError:
        kind = type(index).__name__
        raise TypeError(
            f"an ImageSet is indexed by an int, a slice, or by several ints or booleans, not by {kind}"
        ) from None


def _positions(several: Tensor) -> Tensor:
    """Several whole numbers in the type that indexes tensors, or booleans as they are."""
    if several.ndim != 1:
        raise ValueError(f"an index of an ImageSet has one axis, not the shape {tuple(several.shape)}")
    if several.is_complex() or several.is_floating_point() and several.numel():  # an empty list has no type
        raise TypeError(f"an ImageSet is indexed by whole numbers or booleans, not by {several.dtype}")
    return several if several.dtype == torch.bool else several.long()


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a TypeError or ValueError unless ``value`` is one of the ``allowed`` names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; it can be {', '.join(map(repr, allowed))}")


def check_split(split: str) -> None:
    """Raise a TypeError or ValueError unless ``split`` is ``'train'`` or ``'test'``."""
    check_choice("split", split, ("train", "test"))


def _check_images(images: Tensor) -> tuple[int, int, int]:
    """Raise unless images are (b, c, h, w) float32; return b, h, w."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, not {type(images).__name__}")
    if images.dtype != torch.float32:
        raise TypeError(f"images must be float32 with values in 0..1, not {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (b, c, h, w), not {tuple(images.shape)}")
    b, _, h, w = images.shape
    return b, h, w


def _check_part(name: str, part: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise unless ``part`` has this type and shape; masks and boxes may be None."""
    if part is None and name != "labels":
        return
    if not isinstance(part, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(part).__name__}")
    if part.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {part.dtype}")
    if part.shape != shape:
        raise ValueError(f"{name} have the shape {tuple(part.shape)}; the images need {shape}")
