"""Exercises of lesson 01: cutting into patches, two forms of the patch weights, positions on a finer grid."""

from collections.abc import Callable
from math import atan2, pi

import torch
from einops import rearrange
from torch import Tensor

from vit_course.patching import patchify, sincos_positions

from .exercise import Exercise, Mistake


def _numbered_images(b: int, c: int, h: int, w: int) -> Tensor:
    """Images whose pixels say where they stand: 1000·image + 100·channel + 10·row + column."""
    image, channel, row, column = torch.meshgrid(
        *(torch.arange(side) for side in (b, c, h, w)), indexing="ij"
    )
    return (1000 * image + 100 * channel + 10 * row + column).float()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _start(answer: Tensor) -> str:
    """The first numbers of the learner's first patch, whose digits are channel, row and column."""
    numbers = ", ".join(f"{value:03.0f}" for value in answer[0, 0, :4].tolist())
    return f"{numbers} (digits: channel, row, column)"


def _only_reshaped(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return images.reshape(patchify(images, patch_size).shape)


def _cut_as(order: str) -> Callable:
    """A patchify with another order of the axes on the right side."""

    def answer(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
        return rearrange(images, f"b c (rows p1) (columns p2) -> {order}", p1=patch_size[0], p2=patch_size[1])

    return answer


def _only_channels_moved(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(patchify(images, patch_size).shape)


def _swapped_sides(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return patchify(images, (patch_size[1], patch_size[0]))


PATCHIFY = Exercise(
    name="patchify",
    solution=patchify,
    cases=(
        (_numbered_images(2, 3, 6, 6), (2, 3)),
        (_noise(1, 2, 6, 12), (3, 2)),
        (_noise(2, 3, 8, 8), (4, 4)),
    ),
    praise=(
        "Patches in reading order, and inside each patch row, column, colour: the order of every lesson "
        "from here on."
    ),
    mistakes={
        "reshaped only": Mistake(
            _only_reshaped,
            says=lambda answer: (
                f"Your first patch starts {_start(answer)}: it runs along a row of the image past its own "
                "edge. A reshape alone moves no number. Split the two sides first, then permute, then "
                "reshape again."
            ),
        ),
        "channels first": Mistake(
            _cut_as("b (rows columns) (c p1 p2)"),
            says=lambda answer: (
                f"Your first patch starts {_start(answer)}: all of one colour first. That is the order (c "
                "p1 p2) of convolution weights; here the colours of a pixel stay together, so the channel "
                "axis goes last."
            ),
        ),
        "columns before rows inside the patch": Mistake(
            _cut_as("b (rows columns) (p2 p1 c)"),
            says=(
                "Every patch is right but mirrored along its diagonal: inside a patch you walk down the "
                "columns. Put p1 (rows) before p2."
            ),
        ),
        "patches column by column": Mistake(
            _cut_as("b (columns rows) (p1 p2 c)"),
            says=(
                "Each patch is right, but they come column by column. Reading order means that the grid's "
                "rows axis stands before its columns axis when you flatten."
            ),
        ),
        "inside of the patch before the grid": Mistake(
            _only_channels_moved,
            says=(
                "You moved the channels to the end, but left rows, p1, columns, p2 in the order of the "
                "image, so your patches are strips. The grid (rows, columns) comes first, the inside of "
                "the patch (p1, p2, c) after it."
            ),
        ),
        "sides swapped": Mistake(
            _swapped_sides,
            says=(
                "Your patches are as wide as they should be high. patch_size is (height, width): p1 "
                "belongs to the rows, p2 to the columns."
            ),
        ),
    },
)


def _to_conv(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return rearrange(weight, "d (p1 p2 c) -> d c p1 p2", p1=patch_size[0], p2=patch_size[1])


def _viewed(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return weight.reshape(len(weight), -1, *patch_size)


def _columns_first(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return rearrange(weight, "d (p2 p1 c) -> d c p1 p2", p1=patch_size[0], p2=patch_size[1])


def _channels_left_last(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return weight.reshape(len(weight), *patch_size, -1)


def _flipped(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return _to_conv(weight, patch_size).flip(-1, -2)


def _first_axis_inputs(weight: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return rearrange(weight, "d (p1 p2 c) -> c d p1 p2", p1=patch_size[0], p2=patch_size[1])


LINEAR_WEIGHT_TO_CONV = Exercise(
    name="linear_weight_to_conv",
    solution=_to_conv,
    cases=(
        (_noise(5, 2 * 3 * 4), (2, 3)),
        (_noise(4, 4 * 2 * 3, seed=1), (4, 2)),
        (_noise(2, 3 * 3 * 3, seed=2), (3, 3)),
    ),
    praise=(
        "The convolution now gives the linear layer's tokens: a checkpoint of either kind loads into the "
        "other."
    ),
    mistakes={
        "channels taken as first": Mistake(
            _viewed,
            says=(
                "The shape is right, the numbers are in the wrong place: you read the row of weights as (c "
                "p1 p2). It is in the order of patchify, (p1 p2 c). Split it in that order, then move c to "
                "the front."
            ),
        ),
        "columns before rows": Mistake(
            _columns_first,
            says=(
                "You split the row of weights as (p2 p1 c), so each kernel is scrambled. patchify walks "
                "along the rows: (p1 p2 c)."
            ),
        ),
        "channels left at the end": Mistake(
            _channels_left_last,
            says=lambda answer: (
                f"You split the weights well, but your result has shape {tuple(answer.shape)}, that is (d, "
                "p1, p2, c). A convolution keeps c on its second axis: permute(0, 3, 1, 2)."
            ),
        ),
        "kernel flipped": Mistake(
            _flipped,
            says=(
                "You turned the kernels by half a turn, as the mathematician's convolution does. PyTorch's "
                "Conv2d does not flip: its kernel lies on the patch as it is."
            ),
        ),
        "inputs and outputs swapped": Mistake(
            _first_axis_inputs,
            says=lambda answer: (
                f"Your result has shape {tuple(answer.shape)}, with the channels first. "
                "Conv2d stores (outputs, inputs, height, width): d, c, p1, p2."
            ),
        ),
    },
)


def _positions_at(y: Tensor, x: Tensor, dim: int) -> Tensor:
    """Sine-cosine positions of a grid whose rows stand at y and whose columns stand at x."""
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter) / (quarter - 1))
    y, x = torch.meshgrid(y, x, indexing="ij")
    x_angles, y_angles = x.flatten()[:, None] * frequencies, y.flatten()[:, None] * frequencies
    return torch.cat([x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()], dim=1)


def _centres(old: int, new: int) -> Tensor:
    return (torch.arange(new) + 0.5) * old / new - 0.5


def _stretched(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    return _positions_at(_centres(old_grid[0], new_grid[0]), _centres(old_grid[1], new_grid[1]), dim)


def _without_halves(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    y, x = (torch.arange(new) * old / new for old, new in zip(old_grid, new_grid, strict=True))
    return _positions_at(y, x, dim)


def _ends_on_ends(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    y, x = (torch.linspace(0, old - 1, new) for old, new in zip(old_grid, new_grid, strict=True))
    return _positions_at(y, x, dim)


def _ratio_upside_down(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    y, x = ((torch.arange(new) + 0.5) * new / old - 0.5 for old, new in zip(old_grid, new_grid, strict=True))
    return _positions_at(y, x, dim)


def _ratios_swapped(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    (rows, columns), (new_rows, new_columns) = old_grid, new_grid
    y = (torch.arange(new_rows) + 0.5) * columns / new_columns - 0.5
    x = (torch.arange(new_columns) + 0.5) * rows / new_rows - 0.5
    return _positions_at(y, x, dim)


def _y_before_x(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    x_part, y_part = _stretched(old_grid, new_grid, dim).chunk(2, dim=1)
    return torch.cat([y_part, x_part], dim=1)


def _second_column(answer: Tensor) -> float:
    """Where the learner's second column stands: the angle of the sine and cosine of frequency one."""
    return atan2(answer[1, 0].item(), answer[1, answer.shape[1] // 4].item()) % (2 * pi)


STRETCHED_POSITIONS = Exercise(
    name="stretched_positions",
    solution=_stretched,
    cases=(((3, 4), (6, 12), 16), ((4, 6), (6, 4), 8), ((5, 2), (5, 5), 32)),
    praise=(
        "A finer grid over the same picture now speaks of the same places, in numbers between the old ones."
    ),
    mistakes={
        "not stretched": Mistake(
            lambda old_grid, new_grid, dim: sincos_positions(new_grid, dim),
            says=lambda answer: (
                f"Your second column stands at x = {_second_column(answer):.2f}: you numbered the new grid "
                "afresh, so it reaches places that the model has never seen. Place the new patches on the "
                "old grid instead."
            ),
        ),
        "corners instead of centres": Mistake(
            _without_halves,
            says=lambda answer: (
                f"Your second column stands at x = {_second_column(answer):.2f}, your first at 0. You "
                "scaled the corners of the patches; it is their centres, half a patch further on, that "
                "keep their place: (index + 0.5) · old / new - 0.5."
            ),
        ),
        "ends on ends": Mistake(
            _ends_on_ends,
            says=(
                "You put the first new patch on the first old one and the last on the last (what PyTorch "
                "calls align_corners=True). Small patches at the edge have their centres further out than "
                "large ones: (index + 0.5) · old / new - 0.5."
            ),
        ),
        "ratio upside down": Mistake(
            _ratio_upside_down,
            says=lambda answer: (
                f"Your second column stands at x = {_second_column(answer):.2f} (modulo a full turn): the "
                "ratio is upside down. More patches on the same picture stand closer together: multiply by "
                "old / new."
            ),
        ),
        "ratios swapped": Mistake(
            _ratios_swapped,
            says=(
                "You used the ratio of the columns for y and that of the rows for x. A grid is (rows, "
                "columns), and rows count y."
            ),
        ),
        "y before x": Mistake(
            _y_before_x,
            says=(
                "The places are right, but the halves are swapped: sincos_positions puts sin x, cos x "
                "before sin y, cos y."
            ),
        ),
    },
)

EXERCISES = [PATCHIFY, LINEAR_WEIGHT_TO_CONV, STRETCHED_POSITIONS]
