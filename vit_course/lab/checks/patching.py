"""Exercises of lesson 01: cutting and pasting, embedding, positions, and other forms of the same."""

from collections.abc import Callable
from math import atan2, pi
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_course.patching import (
    PatchEmbedding,
    patchify,
    resize_positions,
    sincos_positions,
    unpatchify,
)

from .exercise import Exercise, Mistake, forward


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


def _split_the_other_way(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    arrow = "b c (p1 rows) (p2 columns) -> b (rows columns) (p1 p2 c)"
    return rearrange(images, arrow, p1=patch_size[0], p2=patch_size[1])


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
        "sides split the other way round": Mistake(
            _split_the_other_way,
            says=lambda answer: (
                f"Your first patch starts {_start(answer)}: it gathers pixels from all over the image. You "
                "split a side as (p1 rows); the index of the patch comes first: (rows p1), (columns p2)."
            ),
        ),
    },
)


def _pasted_as(order: str, sides: str = "(rows p1) (columns p2)") -> Callable:
    """An unpatchify that reads the patches, or writes the sides, in another order."""

    def answer(patches: Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        (p1, p2), (h, w) = patch_size, image_size
        arrow = f"b {order} -> b c {sides}"
        return rearrange(patches, arrow, rows=h // p1, columns=w // p2, p1=p1, p2=p2)

    return answer


def _only_reshaped_back(patches: Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    return patches.reshape(len(patches), -1, *image_size)


UNPATCHIFY = Exercise(
    name="unpatchify",
    solution=unpatchify,
    cases=(
        (patchify(_numbered_images(2, 3, 6, 6), (2, 3)), (2, 3), (6, 6)),
        (patchify(_noise(1, 2, 6, 12), (3, 2)), (3, 2), (6, 12)),
        (patchify(_noise(2, 3, 8, 8), (4, 4)), (4, 4), (8, 8)),
    ),
    praise="Nothing is lost by cutting: this is the exact way back.",
    mistakes={
        "reshaped only": Mistake(
            _only_reshaped_back,
            says=(
                "A reshape alone moves no number, so the pixels of a patch come to lie in a line. Split the "
                "axes, bring them into the order (b, c, rows, p1, columns, p2), and merge."
            ),
        ),
        "channels read as first": Mistake(
            _pasted_as("(rows columns) (c p1 p2)"),
            says=(
                "You read each patch as (c p1 p2). patchify wrote it as (p1 p2 c), the colours of a pixel "
                "together."
            ),
        ),
        "columns before rows inside the patch": Mistake(
            _pasted_as("(rows columns) (p2 p1 c)"),
            says="Every patch is mirrored along its diagonal: p1 (rows) comes before p2 when you split it.",
        ),
        "patches column by column": Mistake(
            _pasted_as("(columns rows) (p1 p2 c)"),
            says=(
                "You fill the grid column by column. Patches come in reading order: split n into (rows "
                "columns)."
            ),
        ),
        "sides merged the other way round": Mistake(
            _pasted_as("(rows columns) (p1 p2 c)", "(p1 rows) (p2 columns)"),
            says=(
                "Your patches are spread over the whole image. A side is merged with the index of the patch "
                "first: (rows p1), (columns p2)."
            ),
        ),
    },
)


class _NotTransposed(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2)


class _Reshaped(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.proj(images)
        return maps.reshape(maps.shape[0], -1, maps.shape[1])


class _ColumnByColumn(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.proj(images), "b d rows columns -> b (columns rows) d")


class _KernelFlattened(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        return F.linear(patchify(images, self.patch_size), self.proj.weight.flatten(1), self.proj.bias)


class _WithoutBias(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        tokens = F.conv2d(images, self.proj.weight, stride=self.patch_size)
        return rearrange(tokens, "b d rows columns -> b (rows columns) d")


class _StillAGrid(PatchEmbedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


PATCH_EMBEDDING = Exercise(
    name="PatchEmbedding",
    solution=PatchEmbedding,
    cases=(
        ({"patch_size": (4, 2), "dim": 6}, (_noise(2, 3, 8, 12, seed=3),)),
        ({"patch_size": 4, "dim": 16, "channels": 1}, (_noise(1, 1, 16, 16, seed=4),)),
    ),
    praise="One linear layer, the same for every patch, and one token for each in reading order.",
    calls=forward,
    mistakes={
        "still a grid": Mistake(
            _StillAGrid,
            says=lambda answer: (
                f"You return {tuple(answer.shape)}: the right numbers, still on the grid (b, d, rows, "
                "columns). Tokens have the shape (b, n, d)."
            ),
        ),
        "width before tokens": Mistake(
            _NotTransposed,
            says=lambda answer: (
                f"You return {tuple(answer.shape)}, that is (b, d, n). Tokens stand in rows: swap the last "
                "two axes."
            ),
        ),
        "reshaped instead of moved": Mistake(
            _Reshaped,
            says=(
                "The shape is right, but a reshape moves nothing: each of your rows holds one channel of "
                "many places instead of all channels of one place. The axis d must move to the end."
            ),
        ),
        "tokens column by column": Mistake(
            _ColumnByColumn,
            says=(
                "Your tokens come column by column. Reading order means (rows columns) when you merge the "
                "grid."
            ),
        ),
        "weights in another order": Mistake(
            _KernelFlattened,
            says=(
                "You multiply patches in the order (p1 p2 c) by weights in the order (c p1 p2), which is "
                "what flatten(1) gives. Either rearrange the weights or call self.proj on the images."
            ),
        ),
        "bias left out": Mistake(
            _WithoutBias, says="Every token lacks the bias of the layer: self.proj adds it by itself."
        ),
    },
)


def _clocks(
    grid: tuple[int, int], dim: int, divide_by: int = -1, temperature: float = 10000.0
) -> list[Tensor]:
    """sin x, cos x, sin y, cos y, each (n, q), at the frequencies temperature^(-i / (q + divide_by))."""
    quarter = dim // 4
    frequencies = temperature ** (-torch.arange(quarter) / (quarter + divide_by))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    x_angles, y_angles = x.flatten()[:, None] * frequencies, y.flatten()[:, None] * frequencies
    return [x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()]


def _rows_first(grid: tuple[int, int], dim: int) -> Tensor:
    sin_x, cos_x, sin_y, cos_y = _clocks(grid, dim)
    return torch.cat([sin_y, cos_y, sin_x, cos_x], dim=1)


def _sines_first(grid: tuple[int, int], dim: int) -> Tensor:
    sin_x, cos_x, sin_y, cos_y = _clocks(grid, dim)
    return torch.cat([sin_x, sin_y, cos_x, cos_y], dim=1)


def _cosines_first(grid: tuple[int, int], dim: int) -> Tensor:
    sin_x, cos_x, sin_y, cos_y = _clocks(grid, dim)
    return torch.cat([cos_x, sin_x, cos_y, sin_y], dim=1)


def _alternating(grid: tuple[int, int], dim: int) -> Tensor:
    sin_x, cos_x, sin_y, cos_y = _clocks(grid, dim)
    return torch.cat(
        [torch.stack(pair, dim=-1).flatten(1) for pair in ((sin_x, cos_x), (sin_y, cos_y))], dim=1
    )


def _column_by_column(grid: tuple[int, int], dim: int) -> Tensor:
    return rearrange(sincos_positions(grid, dim), "(y x) d -> (x y) d", y=grid[0])


def _inverse_frequencies(grid: tuple[int, int], dim: int) -> Tensor:
    return torch.cat(_clocks(grid, dim, temperature=1 / 10000), dim=1)


SINCOS_POSITIONS = Exercise(
    name="sincos_positions",
    solution=sincos_positions,
    cases=(((2, 3), 16), ((4, 2), 8), ((5, 5), 32)),
    praise="Every place has its row, and the dot product of two rows depends on their distance only.",
    mistakes={
        "divided by q": Mistake(
            lambda grid, dim: torch.cat(_clocks(grid, dim, divide_by=0), dim=1),
            says=(
                "Your slowest clocks run too fast: the exponent is -i / (q - 1), so that the last frequency "
                "is exactly 1 / 10000. (timm divides by q.)"
            ),
        ),
        "y before x": Mistake(
            _rows_first,
            says="The halves are swapped: sin x, cos x come before sin y, cos y, and x counts the columns.",
        ),
        "all sines first": Mistake(
            _sines_first,
            says="You put both sines before both cosines. Here it is sin x, cos x, sin y, cos y.",
        ),
        "cosines before sines": Mistake(
            _cosines_first,
            says="You put each cosine before its sine. Here it is sin x, cos x, sin y, cos y.",
        ),
        "sines and cosines alternate": Mistake(
            _alternating,
            says=(
                "Your sines and cosines alternate, as in the first Transformer. Here each of the four takes "
                "a quarter of the width in one piece."
            ),
        ),
        "places column by column": Mistake(
            _column_by_column,
            says='Your places come column by column: meshgrid(rows, columns, indexing="ij"), y before x.',
        ),
        "frequencies that grow": Mistake(
            _inverse_frequencies,
            says="Your frequencies grow from 1 to 10000. The exponent is negative: they fall to 1 / 10000.",
        ),
    },
)


def _resized_with(prefix_last: bool = False, swapped: bool = False, **how: object) -> Callable:
    """A resize_positions that resizes in another way."""
    options: dict[str, Any] = {"mode": "bicubic", "antialias": True, "align_corners": False} | how

    def answer(
        positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
    ) -> Tensor:
        prefix, patches = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
        rows = old_grid[1] if swapped else old_grid[0]
        picture = rearrange(patches, "(rows columns) d -> 1 d rows columns", rows=rows)
        picture = F.interpolate(picture, size=new_grid, **options)
        parts = [prefix, rearrange(picture, "1 d rows columns -> (rows columns) d")]
        return torch.cat(parts[::-1] if prefix_last else parts)

    return answer


def _reshaped_to_a_table(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    table = resize_positions(positions, old_grid, new_grid, num_prefix_tokens)
    prefix, patches = table[:num_prefix_tokens], table[num_prefix_tokens:]
    return torch.cat([prefix, patches.T.reshape(patches.shape)])


def _reshaped_to_a_picture(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    prefix, patches = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
    picture = F.interpolate(
        patches.reshape(1, -1, *old_grid), size=new_grid, mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([prefix, picture.flatten(2)[0].T])


RESIZE_POSITIONS = Exercise(
    name="resize_positions",
    solution=resize_positions,
    cases=(
        (_noise(1 + 3 * 4, 6, seed=5), (3, 4), (6, 7), 1),
        (_noise(2 + 5 * 2, 4, seed=6), (5, 2), (3, 4), 2),
        (_noise(4 * 6, 8, seed=7), (4, 6), (2, 3), 0),
    ),
    praise="Positions are a picture with d channels, and pictures can be resized.",
    mistakes={
        "without antialias": Mistake(
            _resized_with(antialias=False),
            says=(
                "Close: you left out antialias=True. Without it a smaller grid skips places, and PyTorch's "
                "bicubic weights differ for a larger one too."
            ),
        ),
        "corners aligned": Mistake(
            _resized_with(antialias=False, align_corners=True),
            says=(
                "You put corner on corner (align_corners=True). Patches have an extent: their borders "
                "coincide, not the centres of those in the corners."
            ),
        ),
        "bilinear": Mistake(
            _resized_with(mode="bilinear"), says='You resize with mode="bilinear"; here it is "bicubic".'
        ),
        "bilinear, without antialias": Mistake(
            _resized_with(mode="bilinear", antialias=False),
            says='You resize with mode="bilinear" and no antialias; here it is "bicubic", antialias=True.',
        ),
        "prefix at the end": Mistake(
            _resized_with(prefix_last=True),
            says="The rows of the class tokens come first, before those of the patches.",
        ),
        "rows and columns swapped": Mistake(
            _resized_with(swapped=True),
            says=(
                "You fold the table into (columns, rows). A grid is (rows, columns), and places come in "
                "reading order."
            ),
        ),
        "reshaped into a picture": Mistake(
            _reshaped_to_a_picture,
            says=(
                "You reshaped (n, d) straight to (d, rows, columns), so the numbers of different places are "
                "mixed. The axis d must move to the front first."
            ),
        ),
        "reshaped back into a table": Mistake(
            _reshaped_to_a_table,
            says=(
                "You reshaped the resized picture (d, rows, columns) straight to (n, d), so the numbers of "
                "different places are mixed. The axis d must move back to the end first."
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


def _not_shifted_back(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    y, x = ((torch.arange(new) + 0.5) * old / new for old, new in zip(old_grid, new_grid, strict=True))
    return _positions_at(y, x, dim)


def _table_resized(old_grid: tuple[int, int], new_grid: tuple[int, int], dim: int) -> Tensor:
    return resize_positions(sincos_positions(old_grid, dim), old_grid, new_grid)


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
        "A finer grid over the same picture now names the same places, with numbers between the old ones."
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
        "not shifted back": Mistake(
            _not_shifted_back,
            says=(
                "You forgot to shift back: old patch 0 has its centre at 0, not at 0.5. The whole formula is "
                "(index + 0.5) · old / new - 0.5."
            ),
        ),
        "finished table resized": Mistake(
            _table_resized,
            says=(
                "You resized the finished table, as step 4 does. That blends the sines of neighbouring "
                "places, which is not the sine of the place between them. Move x and y first, then take "
                "sines and cosines."
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


def _tubes(videos: Tensor, tube_size: tuple[int, int, int]) -> Tensor:
    return _cut_tubes("b (frames rows columns) (pf p1 p2 c)")(videos, tube_size)


def _cut_tubes(order: str) -> Callable:
    """Cut videos into tubes with their numbers in some order."""

    def answer(videos: Tensor, tube_size: tuple[int, int, int]) -> Tensor:
        pf, p1, p2 = tube_size
        arrow = f"b c (frames pf) (rows p1) (columns p2) -> {order}"
        return rearrange(videos, arrow, pf=pf, p1=p1, p2=p2)

    return answer


CUT_VIDEO = Exercise(
    name="cut_video",
    solution=_tubes,
    cases=(
        (_noise(2, 3, 4, 4, 6, seed=8), (2, 2, 3)),
        (_noise(1, 1, 6, 6, 4, seed=9), (3, 2, 2)),
    ),
    praise="Tubes, the tokens of a video: the cut of the lesson with one more axis.",
    mistakes={
        "frames after the place": Mistake(
            _cut_tubes("b (rows columns frames) (pf p1 p2 c)"),
            says=(
                "Each tube is right, but the frames run fastest. All tubes of the first frames come first: "
                "(frames rows columns)."
            ),
        ),
        "places column by column": Mistake(
            _cut_tubes("b (frames columns rows) (pf p1 p2 c)"),
            says="Each tube is right, but they come column by column: (frames rows columns).",
        ),
        "columns before rows inside the tube": Mistake(
            _cut_tubes("b (frames rows columns) (pf p2 p1 c)"),
            says="Inside a tube you walk down the columns. Put p1 (rows) before p2: (pf p1 p2 c).",
        ),
        "frames last inside the tube": Mistake(
            _cut_tubes("b (frames rows columns) (p1 p2 pf c)"),
            says="Inside a tube a whole frame comes before the next: (pf p1 p2 c).",
        ),
        "channels first": Mistake(
            _cut_tubes("b (frames rows columns) (c pf p1 p2)"),
            says="The colours of a pixel stay together: c stands last inside the tube.",
        ),
        "frame by frame": Mistake(
            _cut_tubes("b (frames pf rows columns) (p1 p2 c)"),
            says=lambda answer: (
                f"You return {tuple(answer.shape)}: one token for each patch of each frame. A tube spans "
                "several frames, so pf belongs inside the token."
            ),
        ),
    },
)

EXERCISES = [
    PATCHIFY,
    UNPATCHIFY,
    PATCH_EMBEDDING,
    SINCOS_POSITIONS,
    RESIZE_POSITIONS,
    LINEAR_WEIGHT_TO_CONV,
    STRETCHED_POSITIONS,
    CUT_VIDEO,
]
