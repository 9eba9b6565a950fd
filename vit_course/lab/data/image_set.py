"""The one form in which every image set of the course comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MEAN, STD = (
    0.5,
    0.27,
)  # about those of `shapes` and `photos`: one pair for the whole course keeps models exchangeable


def normalise(images: Tensor) -> Tensor:
    """Centre and scale images for a network: ``(images - 0.5) / 0.27``.

    Args:
        images: float tensor of any shape, values in 0..1.

    Raises:
        TypeError: if ``images`` is not a tensor of floats.

    Used from lesson 03 on.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"normalise takes a float tensor with values in 0..1, not {kind}")
    return (images - MEAN) / STD


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels and, where they are known, the exact masks and boxes of their objects.

    Attributes:
        images: (b, c, h, w) float32, values in 0..1. Floats, not bytes: what a lesson sees is what it computes with, and
            the largest set of the course (20,000 × 3 × 32 × 32) takes 245 MB.
        labels: (b,) int64, positions in ``classes``.
        classes: the names of the classes.
        masks: (b, h, w) bool, true on the object; None where nobody knows.
        boxes: (b, 4) float32, ``x0 y0 x1 y1`` in pixels, ``x1`` and ``y1`` just outside the object; None where nobody knows.

    ``images[10:20]``, ``images[index_tensor]`` and ``images[boolean_tensor]`` are smaller sets; a slice shares its memory.
    A single number gives the pair (image, label), so that a ``torch.utils.data.DataLoader`` takes a set as it is.

    Raises:
        TypeError, ValueError: if the parts do not fit together; the sentence names the shapes.

    Used in every lesson.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        b, h, w = _check_images(self.images)
        object.__setattr__(
            self, "classes", tuple(self.classes)
        )  # the way to set a field of a frozen dataclass
        _check_part("labels", self.labels, torch.int64, (b,))
        _check_part("masks", self.masks, torch.bool, (b, h, w))
        _check_part("boxes", self.boxes, torch.float32, (b, 4))
        if b and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> ImageSet | tuple[Tensor, Tensor]:
        if isinstance(index, int):
            return self.images[index], self.labels[index]
        if not isinstance(index, slice | Tensor):
            raise TypeError(
                f"an ImageSet is indexed by an int, a slice or an index tensor, not by {type(index).__name__}"
            )
        masks = None if self.masks is None else self.masks[index]
        boxes = None if self.boxes is None else self.boxes[index]
        return replace(self, images=self.images[index], labels=self.labels[index], masks=masks, boxes=boxes)

    def __repr__(self) -> str:
        b, c, h, w = self.images.shape
        names = ", ".join(self.classes[:10]) + (", …" if len(self.classes) > 10 else "")
        extras = [name for name in ("masks", "boxes") if getattr(self, name) is not None]
        known = f", with {' and '.join(extras)}" if extras else ""
        return f"ImageSet({b:,} images {c}×{h}×{w}{known}; {len(self.classes)} classes: {names})"

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A random batch, drawn with replacement, for training.

        Args:
            count: number of images b in the batch.
            generator: where the randomness comes from; None takes PyTorch's own, which ``torch.manual_seed`` sets.

        Returns:
            images (b, c, h, w) and labels (b,).

        Raises:
            ValueError: if ``count`` is below 1 or the set is empty.

        Used from lesson 04 on.
        """
        check_int("count", count, 1)
        if not len(self):
            raise ValueError("an empty ImageSet has nothing to sample from")
        index = torch.randint(len(self), (count,), generator=generator)
        return self.images[index], self.labels[index]

    def batches(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in order, for evaluation.

        Args:
            size: images per batch; the last batch holds what is left.

        Yields:
            images (b, c, h, w) and labels (b,).

        Raises:
            ValueError: if ``size`` is below 1.

        Used from lesson 03 on.
        """
        check_int("size", size, 1)
        return zip(self.images.split(size), self.labels.split(size), strict=True)


def check_int(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise a TypeError or ValueError unless ``value`` is a whole number from ``low`` to ``high``, both included."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low:,}" if high is None else f"from {low:,} to {high:,}"
        raise ValueError(f"{name} must be {allowed}, not {value:,}")


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
        raise ValueError(f"{name} have the shape {tuple(part.shape)}; the images ask for {shape}")
