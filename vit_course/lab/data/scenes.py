"""Generated scenes: one of ten shapes before a textured background, with its label, exact mask and box.

Everything except the outline is drawn independently of the class: place, size, angle, stretch, colours,
textures, noise. Every shape covers the same area, so that counting object pixels tells nothing either.

How hard the three levels are was settled by these pixel baselines, so that an easy set can flatter nothing.
In per cent, from 5,000 training and 2,000 test scenes of 32 × 32 pixels with seed 0 (chance is 10; one point
either way is noise; ``benchmarks/calibrate_shapes.py`` prints this table):

| | easy | default | hard |
|---|---|---|---|
| **grey pixels, image mean removed, kNN**: the baseline to beat | 69.0 | 44.0 | 40.0 |
| grey pixels, kNN | 53.8 | 33.0 | 28.3 |
| colour pixels, kNN | 28.2 | 18.4 | 17.5 |
| grey pixels, linear | 24.1 | 16.7 | 14.7 |
| colour pixels, linear | 22.5 | 15.9 | 14.0 |
| colour histogram, kNN | 9.7 | 10.5 | 10.7 |
| colour histogram, linear | 11.2 | 11.1 | 11.2 |
| object area alone | 11.0 | 10.2 | 10.5 |
| brightness above Otsu's threshold, IoU with the true mask | 0.95 | 0.87 | 0.64 |
| brightness above the image's mean, IoU | 0.80 | 0.54 | 0.47 |
| object area, share of the picture | 0.23 | 0.18 | 0.21 |
| object area, mean of the smallest class by that of the largest | 0.95 | 0.95 | 0.95 |

kNN is the DINO paper's: 20 neighbours by cosine, weighted by exp(similarity / .07), pixels normalised with
`normalise` where no mean is removed; linear is ridge regression on standardised features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_course.patching import require_at_least, require_between

from ..defaults import cpu_float32
from .image_set import ImageSet, check_choice, check_split

# The ten outlines. Each function takes coordinates of one shape (x to the right, y up) and gives the signed
# distance to its outline: negative inside, positive outside, exact along straight edges and near enough
# elsewhere for a soft edge of one pixel.


def disc(x: Tensor, y: Tensor) -> Tensor:
    """|p| − 1"""
    return torch.hypot(x, y) - 1


def ring(x: Tensor, y: Tensor) -> Tensor:
    """| |p| − .75 | − .25"""
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


def square(x: Tensor, y: Tensor) -> Tensor:
    """max(|x|, |y|) − 1"""
    return torch.maximum(x.abs(), y.abs()) - 1


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """max(−y, (√3 |x| + y) / 2) − 1/2: three half-planes at 120°"""
    return torch.maximum(-y, math.sqrt(3) / 2 * x.abs() + y / 2) - 0.5


def star(x: Tensor, y: Tensor) -> Tensor:
    """n · (q − tip), with q the point folded into the tenth of the star between a tip and a dent"""
    fifth, dent = 2 * math.pi / 5, 0.45
    angle = (torch.remainder(torch.atan2(x, y) + fifth / 2, fifth) - fifth / 2).abs()
    edge = torch.tensor(
        [1 - dent * math.cos(fifth / 2), dent * math.sin(fifth / 2)]
    )  # from the dent to the tip
    across, along = edge / edge.norm()
    radius = torch.hypot(x, y)
    return along * (radius * angle.cos() - 1) + across * radius * angle.sin()


def cross(x: Tensor, y: Tensor) -> Tensor:
    """max(min(|x|, |y|) − .3, max(|x|, |y|) − 1): two crossed bars"""
    a, b = x.abs(), y.abs()
    return torch.maximum(torch.minimum(a, b) - 0.3, torch.maximum(a, b) - 1)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """max(|p| − 1, .8 − |p − (.5, 0)|): a disc without a smaller one"""
    return torch.maximum(torch.hypot(x, y) - 1, 0.8 - torch.hypot(x - 0.5, y))


def heart(x: Tensor, y: Tensor) -> Tensor:
    """min((|x| + |y| − 1) / √2, |(|x|, y) − (½, ½)| − 1/√2): a square and a disc on each upper side"""
    a = x.abs()
    return torch.minimum((a + y.abs() - 1) / math.sqrt(2), torch.hypot(a - 0.5, y - 0.5) - math.sqrt(0.5))


def tee(x: Tensor, y: Tensor) -> Tensor:
    """min(box of the bar, box of the stem)"""
    return torch.minimum(_box(x, y - 0.6, 0.85, 0.28), _box(x, y + 0.15, 0.28, 0.75))


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """min(head, box of the shaft), the head a triangle that points up"""
    head = torch.maximum(-y, (x.abs() + 0.85 * (y - 1)) / math.hypot(1, 0.85))
    return torch.minimum(head, _box(x, y + 0.45, 0.26, 0.55))


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """max(|x| − width, |y| − height): half the width, half the height"""
    return torch.maximum(x.abs() - width, y.abs() - height)


# name: (outline, the size at which it covers AREA, measured by counting points of a fine grid)
AREA = 1.3
SHAPES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "disc": (disc, 0.6433),
    "ring": (ring, 0.7428),
    "square": (square, 0.5701),
    "triangle": (triangle, 1.0004),
    "star": (star, 0.9914),
    "cross": (cross, 0.7983),
    "crescent": (crescent, 0.9219),
    "heart": (heart, 0.6034),
    "tee": (tee, 0.8916),
    "arrow": (arrow, 0.9743),
}


@dataclass(frozen=True)
class Level:
    """How hard one level of `shapes` is, with brightness in 0..1 and sizes in halves of the picture's width.

    Attributes:
        scale: smallest and largest size of the object.
        light: share of the scenes whose object is lighter than what is behind it; in the others any
            brightness can come.
        gap: by how much it is lighter at least (at most .25 more).
        texture: strength of gradients, stripes and blotches.
        noise: standard deviation of the noise on each pixel.
        strokes: number of bars lying about behind the object.
    """

    scale: tuple[float, float]
    light: float
    gap: float
    texture: float
    noise: float
    strokes: int


LEVELS = {
    "easy": Level(scale=(0.69, 0.99), light=1.0, gap=0.4, texture=0.35, noise=0.03, strokes=0),
    "default": Level(scale=(0.53, 0.93), light=1.0, gap=0.3, texture=0.5, noise=0.05, strokes=2),
    "hard": Level(scale=(0.6, 0.98), light=0.6, gap=0.3, texture=0.5, noise=0.05, strokes=2),
}
CONTRAST = 0.5  # least distance of the mean colours (red, green, blue) of object and scene

CHUNK = 250  # scenes drawn at a time: fastest about here, and every chunk holds each class equally often
MAX_CHUNKS = 4000
DEFAULT_COUNT = {"train": 20_000, "test": 2_000}


@cpu_float32()
def shapes(
    level: str = "default", split: str = "train", count: int | None = None, size: int = 32, seed: int = 0
) -> ImageSet:
    """Generated scenes of ten classes with label, exact mask and box.

    Args:
        level: ``'easy'``, ``'default'`` or ``'hard'``; see the table at the top of this module.
        split: ``'train'`` or ``'test'``: other scenes of the same kind.
        count: number of scenes b; None means 20,000 for training and 2,000 for testing.
        size: height and width in pixels, at least 16.
        seed: another number gives other scenes.

    Returns:
        An ImageSet of (b, 3, size, size) images with masks and boxes. Same arguments give the same scenes bit
        for bit on one machine, and a smaller ``count`` gives the first scenes of a larger one.

    Raises:
        TypeError, ValueError: for an argument that is not among those named above.
    """
    check_choice("level", level, tuple(LEVELS))
    check_split(split)
    count = DEFAULT_COUNT[split] if count is None else count
    require_at_least(1, count=count)
    require_at_least(16, size=size)
    require_at_least(0, seed=seed)
    require_between(1, CHUNK * MAX_CHUNKS, count=count)
    require_between(16, 512, size=size)
    require_between(0, 500_000, seed=seed)

    images = torch.empty(count, 3, size, size)
    labels = torch.empty(count, dtype=torch.int64)
    masks = torch.empty(count, size, size, dtype=torch.bool)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        # PyTorch's CPU generator looks at 32 bits of its seed: this number fits and belongs to one chunk only
        generator = torch.Generator().manual_seed((seed * MAX_CHUNKS + chunk) * 2 + (split == "test"))
        part = slice(start, min(start + CHUNK, count))
        for whole, piece in zip(
            (images, labels, masks), _draw_chunk(LEVELS[level], size, generator), strict=True
        ):
            whole[part] = piece[: part.stop - part.start]
    return ImageSet(images, labels, tuple(SHAPES), masks, boxes_around(masks))


def boxes_around(masks: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        masks: (b, h, w) bool, at least one true pixel each.

    Returns:
        (b, 4) float32, ``x0 y0 x1 y1`` in pixels, ``x1`` and ``y1`` just outside.

    Raises:
        TypeError, ValueError: if the masks are of another type or shape, or one is empty.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks must be a bool tensor, not {kind}")
    if masks.ndim != 3:
        raise ValueError(f"masks must have the shape (b, h, w), not {tuple(masks.shape)}")
    empty = ~masks.flatten(1).any(1)
    if empty.any():
        raise ValueError(f"mask {int(empty.int().argmax())} is empty: there is nothing to put a box around")

    def first_and_last(hit: Tensor) -> tuple[Tensor, Tensor]:
        hit = hit.int()
        return hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)

    (x0, x1), (y0, y1) = first_and_last(masks.any(1)), first_and_last(masks.any(2))
    return torch.stack([x0, y0, x1, y1], 1).float()


def _draw_chunk(level: Level, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """CHUNK scenes in random order: images (b, 3, s, s), labels (b,), masks (b, s, s)."""
    axis = (torch.arange(size) + 0.5) * 2 / size - 1  # pixel centres, from -1 to 1
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    x, y = column, -row

    labels = torch.arange(len(SHAPES)).repeat_interleave(CHUNK // len(SHAPES))
    distance = _object_distance(level, x, y, generator) * size / 2  # in pixels
    scene, object_ = _texture(level.texture, x, y, generator), _texture(0.8 * level.texture, x, y, generator)
    for _ in range(level.strokes):
        scene = _add_stroke(scene, x, y, generator)
    scene, object_ = _set_apart(scene, object_, level, generator)
    images = torch.lerp(scene, object_, _coverage(distance))
    images += level.noise * torch.randn(images.shape, generator=generator)

    order = torch.randperm(CHUNK, generator=generator)
    return images.clamp_(0, 1)[order], labels[order], (distance < 0)[order, 0]


def _uniform(low: float, high: float, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform random numbers, (CHUNK, 1, 1, 1) unless another shape is given."""
    return torch.rand(shape or (CHUNK, 1, 1, 1), generator=generator).mul_(high - low).add_(low)


def _object_distance(level: Level, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Signed distance to one object per scene, classes in order: (b, 1, s, s), in halves of the width."""
    scale = _uniform(*level.scale, generator)
    # How far the centre may go: compact shapes stay inside, the farthest tips of others may leave.
    room = 1 - 0.75 * scale
    centre_x, centre_y = (room * _uniform(-1, 1, generator) for _ in "xy")
    angle, stretch = _uniform(-math.pi, math.pi, generator), _uniform(0.85, 1.15, generator)

    x, y = (x - centre_x) / scale, (y - centre_y) / scale
    u = (x * angle.cos() + y * angle.sin()) * stretch  # one side grows as the other shrinks: the area stays
    v = (y * angle.cos() - x * angle.sin()) / stretch
    distance = torch.empty_like(u)
    each = CHUNK // len(SHAPES)
    for k, (outline, unit) in enumerate(SHAPES.values()):
        part = slice(k * each, (k + 1) * each)
        distance[part] = outline(u[part] / unit, v[part] / unit) * unit
    return distance * scale


def _texture(strength: float, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """A random colour with a gradient, in most cases stripes, and blotches of two sizes: (b, 3, s, s)."""

    def colour(amount: float) -> Tensor:
        return _uniform(-amount / 2, amount / 2, generator, CHUNK, 3, 1, 1) * strength

    def ramp() -> Tensor:
        angle = _uniform(0, 2 * math.pi, generator)
        return x * angle.cos() + y * angle.sin()

    texture = _uniform(0, 1, generator, CHUNK, 3, 1, 1) + colour(0.6) * ramp()
    phase = _uniform(3, 12, generator) * ramp() + _uniform(0, 2 * math.pi, generator)
    striped = _uniform(0, 1, generator) < 0.6
    texture += colour(0.7) * striped * phase.sin()
    for cells in (4, 9):
        blotches = _uniform(-0.25, 0.25, generator, CHUNK, 3, cells, cells) * strength
        # Bilinear: as F.interpolate on the blotches, several times faster.
        (widen,) = F.interpolate(
            torch.eye(cells)[None], size=len(x), mode="linear", align_corners=True
        )  # (cells, s)
        texture += widen.T @ blotches @ widen
    return texture


def _add_stroke(scene: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The scene with one bar of random place, length, width and colour, about as bright as the scene."""
    x, y = x - _uniform(-1, 1, generator), y - _uniform(-1, 1, generator)
    angle = _uniform(0, 2 * math.pi, generator)
    length, width = 0.06 + 0.5 * _uniform(0, 1, generator) ** 2, _uniform(0.04, 0.14, generator)
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = torch.maximum(u.abs() - length, v.abs() - width) * len(x) / 2
    colour = _brightness(scene) + _uniform(-0.25, 0.25, generator, CHUNK, 3, 1, 1)
    return torch.lerp(scene, colour, _coverage(distance))


def _set_apart(
    scene: Tensor, object_: Tensor, level: Level, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift the colours so that object and scene differ; in the level's share the object is lighter."""
    apart = (object_ - scene).mean((2, 3), keepdim=True)
    length = apart.norm(dim=1, keepdim=True)
    object_ = object_ + apart * (CONTRAST / length - 1).clamp_min(0)

    light = (_uniform(0, 1, generator) < level.light).float()
    scene_level = _uniform(0.15, 0.45, generator)
    object_level = scene_level + level.gap + _uniform(0, 0.25, generator)
    scene = scene + light * (scene_level - _brightness(scene))
    return scene, object_ + light * (object_level - _brightness(object_))


def _brightness(picture: Tensor) -> Tensor:
    """Mean over colours and pixels: (b, 1, 1, 1)."""
    return picture.mean((1, 2, 3), keepdim=True)


def _coverage(distance: Tensor) -> Tensor:
    """How much of each pixel lies inside, for a signed distance in pixels: an edge about one pixel soft."""
    return torch.sigmoid(-2 * distance)
