"""Exercises of lesson 07: a gate for every channel, windows of a grid, and a bias for every offset."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .exercise import Exercise, Mistake


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# ----------------------------------------------------------------------------------------- squeeze_and_excite


def squeeze_and_excite(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A map (b, d, rows, columns) times a gate for every channel, from its means by (d, m) and (m, d)."""
    summary = features.mean(dim=(2, 3))  # (b, d)
    gate = (F.silu(summary @ first) @ second).sigmoid()  # (b, d)
    return features * gate[:, :, None, None]


def _gate_at_every_place(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    gate = (F.silu(features.movedim(1, -1) @ first) @ second).sigmoid().movedim(-1, 1)
    return features * gate


def _gate_of(summary: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (F.silu(summary @ first) @ second)[:, :, None, None]


def _softmax(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * _gate_of(features.mean(dim=(2, 3)), first, second).softmax(dim=1)


def _relu(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * (F.relu(features.mean(dim=(2, 3)) @ first) @ second).sigmoid()[:, :, None, None]


def _added(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features + _gate_of(features.mean(dim=(2, 3)), first, second).sigmoid()


def _sum(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * _gate_of(features.sum(dim=(2, 3)), first, second).sigmoid()


def _largest(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * _gate_of(features.amax(dim=(2, 3)), first, second).sigmoid()


def _whole_batch(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * _gate_of(features.mean(dim=(0, 2, 3))[None], first, second).sigmoid()


def _no_sigmoid(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return features * _gate_of(features.mean(dim=(2, 3)), first, second)


def _gate_alone(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return _gate_of(features.mean(dim=(2, 3)), first, second).sigmoid()[:, :, 0, 0]


def _features_and_matrices(seed: int, b: int, d: int, m: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """A map whose channels have means of their own, so that the gates differ."""
    features, means, first, second = _draw(seed, (b, d, rows, columns), (b, d, 1, 1), (d, m), (m, d))
    return features + 2 * means, first, second


SQUEEZE_AND_EXCITE = Exercise(
    name="squeeze_and_excite",
    solution=squeeze_and_excite,
    cases=(_features_and_matrices(0, 2, 4, 2, 3, 5), _features_and_matrices(1, 3, 6, 3, 4, 4)),
    praise=(
        "One number for each channel of each picture, made from the whole map: the cheapest way to let far "
        "places have a say."
    ),
    mistakes={
        "a gate at every place": Mistake(
            _gate_at_every_place,
            says=(
                "Every cell got a gate of its own: nothing was squeezed. Take the mean over rows and "
                "columns first, features.mean(dim=(2, 3)), so that the gate knows the whole picture and is "
                "the same at every place."
            ),
        ),
        "softmax": Mistake(
            _softmax,
            says=(
                "Your gates of a picture sum to one: that is a softmax, in which channels compete. Here "
                "each channel is let through or not for itself: sigmoid."
            ),
        ),
        "relu": Mistake(
            _relu,
            says=(
                "Between the two matrices stands a ReLU, as in the paper of 2018. MBConv has the SiLU "
                "there, x · sigmoid(x): F.silu."
            ),
        ),
        "added": Mistake(
            _added, says="The gate was added to the features. A gate multiplies: features * gate."
        ),
        "sum": Mistake(
            _sum,
            says=(
                "You summed over the map where a mean is wanted: the gate would depend on the size of the "
                "picture. features.mean(dim=(2, 3))."
            ),
        ),
        "largest": Mistake(
            _largest,
            says=(
                "You took the largest value of each channel. Squeezing is the mean: features.mean(dim=(2, "
                "3))."
            ),
        ),
        "the whole batch": Mistake(
            _whole_batch,
            says=(
                "The mean runs over the pictures of the batch too, so that they see each other. Keep axis "
                "0: features.mean(dim=(2, 3))."
            ),
        ),
        "no sigmoid": Mistake(
            _no_sigmoid,
            says=(
                "Your gates are any numbers, also negative ones. The sigmoid behind the second matrix puts "
                "them between 0 and 1."
            ),
        ),
        "the gate alone": Mistake(
            _gate_alone,
            says=(
                "You returned the gates themselves. Multiply the features with them: features * gate[:, :, "
                "None, None]."
            ),
        ),
    },
)


# ----------------------------------------------------------------------------------------------- grid_windows


def grid_windows(features: Tensor, window_size: int) -> Tensor:
    """A map (b, d, rows, columns) -> the windows of its grid (b · windows, t, d), all in reading order."""
    return rearrange(features, "b d (r y) (c x) -> (b y x) (r c) d", r=window_size, c=window_size)


def _block(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (y r) (x c) -> (b y x) (r c) d", r=window_size, c=window_size)


def _so_many_windows(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (c x) -> (b y x) (r c) d", y=window_size, x=window_size)


def _columns_first(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (c x) -> (b y x) (c r) d", r=window_size, c=window_size)


def _windows_columns_first(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (c x) -> (b x y) (r c) d", r=window_size, c=window_size)


def _pictures_last(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (c x) -> (y x b) (r c) d", r=window_size, c=window_size)


def _channels_first(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (c x) -> (b y x) d (r c)", r=window_size, c=window_size)


def _row_of_grid(features: Tensor, window_size: int) -> Tensor:
    return rearrange(features, "b d (r y) (x c) -> (b y x) (r c) d", r=window_size, c=window_size)


GRID_WINDOWS = Exercise(
    name="grid_windows",
    solution=grid_windows,
    cases=((*_draw(0, (2, 3, 6, 8)), 2), (*_draw(1, (3, 2, 6, 3)), 3)),
    praise="The cells of a window are spread over the whole map, as far apart as there are windows in a row.",
    mistakes={
        "block": Mistake(
            _block,
            says=(
                "These are blocks: the cells of each of your windows are neighbours. In a grid they lie as "
                "far apart as there are windows: (r y) where a block has (y r), so that r, which counts "
                "inside the window, takes the big steps."
            ),
        ),
        "so many windows": Mistake(
            _so_many_windows,
            says=lambda answer: (
                f"You made windows of {answer.shape[1] if answer.ndim > 1 else '?'} cells: window_size "
                "became the number of windows. It is the number of cells along one: give r and c, let y "
                "and x follow."
            ),
        ),
        "columns first in a window": Mistake(
            _columns_first,
            says=(
                "The right cells, read down the columns. Inside a window they come in reading order, (r "
                "c): the bias table counts on it."
            ),
        ),
        "columns first among windows": Mistake(
            _windows_columns_first,
            says=(
                "Every window is right, their order is not: they come column by column. Reading order is "
                "(b y x)."
            ),
        ),
        "pictures last": Mistake(
            _pictures_last,
            says=(
                "The windows of different pictures alternate. Picture by picture means b on the outside: "
                "(b y x)."
            ),
        ),
        "channels first": Mistake(
            _channels_first,
            says=(
                "The right cells, with the channels before them. Tokens have their width last: (b y x) (r "
                "c) d."
            ),
        ),
        "a grid one way only": Mistake(
            _row_of_grid,
            says="Down it is a grid, across it is a block: both axes need the big steps, (r y) and (c x).",
        ),
    },
)


# ---------------------------------------------------------------------------------------------- relative_bias


def relative_bias(table: Tensor, window_size: int) -> Tensor:
    """A table ((2w - 1)², h) of offsets, query minus key, in reading order -> the bias (h, t, t)."""
    return _look_up(table, window_size, lambda down, across, side, w: (down + w - 1) * side + across + w - 1)


def _look_up(table: Tensor, w: int, row) -> Tensor:
    """The table's entries (h, t, t), with `row` telling the table's row from an offset down and across."""
    cells = torch.cartesian_prod(torch.arange(w), torch.arange(w))
    down, across = (cells[:, None] - cells).unbind(dim=-1)
    return table[row(down, across, 2 * w - 1, w)].movedim(-1, 0)


def _key_minus_query(table: Tensor, window_size: int) -> Tensor:
    return relative_bias(table, window_size).transpose(1, 2)


def _across_first(table: Tensor, window_size: int) -> Tensor:
    return _look_up(table, window_size, lambda down, across, side, w: (across + w - 1) * side + down + w - 1)


def _rows_of_a_window(table: Tensor, window_size: int) -> Tensor:
    return _look_up(table, window_size, lambda down, across, side, w: (down + w - 1) * w + across + w - 1)


def _not_shifted(table: Tensor, window_size: int) -> Tensor:
    return _look_up(table, window_size, lambda down, across, side, w: down * side + across)


def _no_sign(table: Tensor, window_size: int) -> Tensor:
    return _look_up(
        table, window_size, lambda down, across, side, w: (down.abs() + w - 1) * side + across.abs() + w - 1
    )


def _heads_last(table: Tensor, window_size: int) -> Tensor:
    return relative_bias(table, window_size).movedim(0, -1)


RELATIVE_BIAS = Exercise(
    name="relative_bias",
    solution=relative_bias,
    cases=((*_draw(0, (25, 2)), 3), (*_draw(1, (49, 3)), 4)),
    praise="Equal offsets share one number, wherever in the window they occur.",
    mistakes={
        "key minus query": Mistake(
            _key_minus_query,
            says=(
                "Your matrix is transposed: the offset was taken as key minus query. A key one to the left "
                "of its query has offset +1: places[:, None] - places, with the queries along the first "
                "axis."
            ),
        ),
        "across first": Mistake(
            _across_first,
            says=(
                "Down and across changed places: the table is in reading order, so the offset down counts "
                "in steps of 2w - 1, the offset across in steps of 1."
            ),
        ),
        "rows as long as a window": Mistake(
            _rows_of_a_window,
            says=lambda answer: (
                f"Your bias uses {answer[0].unique().numel()} different numbers where there are 25 offsets: "
                "some offsets collide. Offsets across run from 1 - w to w - 1, so a row of the table has "
                "2w - 1 entries, not w."
            ),
        ),
        "not shifted": Mistake(
            _not_shifted,
            says=(
                "The offset (0, 0) took row 0 of the table, and negative ones wrapped around to its end. "
                "Add w - 1 to both offsets, so that they start at 0."
            ),
        ),
        "no sign": Mistake(
            _no_sign,
            says=(
                "You took the size of the offsets: left and right of a query get the same number. Keep the "
                "sign."
            ),
        ),
        "heads last": Mistake(
            _heads_last,
            says=(
                "The right numbers with the heads last. They are added to scores (…, h, t, t): heads "
                "first, .movedim(-1, 0)."
            ),
        ),
    },
)


EXERCISES: list[Exercise] = [SQUEEZE_AND_EXCITE, GRID_WINDOWS, RELATIVE_BIAS]
