"""Figures of lesson 07: windows, what they reach, attention inside them, what the parts of MaxViT give."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vit_course.attention import AttentionLayer

from ..results import half_interval, paired
from .shared import COLOURS, WIDTH, draw_image

TINTS = ListedColormap(["#BBD9EC", "#F2CFA8", "#B9E3D2", "#EBCFE0"])  # light, so that numbers can be read


def windows(members: Mapping[str, Tensor], side: int) -> Figure:
    """Draw maps whose cells tell their window, as a letter and a tint, and their place inside it.

    Args:
        members: title -> the cells of each window (windows, t), up to four windows.
        side: rows and columns of the maps.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(
        1, len(members), figsize=(WIDTH, WIDTH / 2), layout="constrained", squeeze=False
    )
    for axis, (title, cells) in zip(axes.flat, members.items(), strict=True):
        number, tokens = cells.shape
        window_of, place_of = (torch.empty(side**2, dtype=torch.long) for _ in range(2))
        window_of[cells] = torch.arange(number)[:, None].expand(number, tokens)
        place_of[cells] = torch.arange(tokens).expand(number, tokens)
        axis.imshow(window_of.view(side, side), cmap=TINTS, vmin=0, vmax=3)
        for cell in range(side**2):
            label = f"{'ABCD'[window_of[cell]]}{place_of[cell]}"
            axis.text(cell % side, cell // side, label, ha="center", va="center", fontsize=10)
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[])
    return figure


def reached(maps: Mapping[str, Tensor], row: int, column: int) -> Figure:
    """Draw which cells of a map a change has reached, with the share of them below.

    Args:
        maps: title -> booleans (rows, columns).
        row, column: of the cell that was changed; it gets a dot.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, len(maps), figsize=(WIDTH, 2.7), layout="constrained", squeeze=False)
    for axis, (title, cells) in zip(axes.flat, maps.items(), strict=True):
        axis.imshow(cells, cmap=ListedColormap(["#EEEEEE", COLOURS[0]]), vmin=0, vmax=1)
        axis.plot(column, row, "o", color=COLOURS[4], markeredgecolor="black", markersize=6)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(f"{cells.float().mean():.0%} reached", fontsize=11)
        axis.set(xticks=[], yticks=[])
    return figure


def window_attention(image: Tensor, layers: Mapping[str, AttentionLayer], row: int, column: int) -> Figure:
    """Lay what one cell attends to in a picture over the picture, window by window; the rest is darkened.

    Args:
        image: (c, h, w) in 0..1.
        layers: title -> a recorded layer of kind 'window' whose first map is of this image.
        row, column: of the querying cell on the layer's map.

    Returns:
        A figure to give to `show`.

    Raises:
        ValueError: for a layer of another kind.
    """
    height, width = image.shape[-2:]
    panel = WIDTH / len(layers)
    figure, axes = pyplot.subplots(
        1,
        len(layers),
        figsize=(WIDTH, panel * height / width + 0.4),
        dpi=80,
        layout="compressed",
        squeeze=False,
    )
    for axis, (title, layer) in zip(axes.flat, layers.items(), strict=True):
        if layer.grid is None or layer.members is None:
            raise ValueError(f"{layer.name} is no window layer of a map: its kind is {layer.kind!r}")
        rows, columns = layer.grid
        tall, wide = height / rows, width / columns
        cell = row * columns + column
        window, token = torch.eq(layer.members, cell).nonzero()[0].tolist()
        weights = layer.weights[window, :, token].mean(dim=0).cpu()  # (t,)
        draw_image(axis, image * 0.35)
        for other, weight in zip(layer.members[window].tolist(), weights / weights.max(), strict=True):
            top, left = divmod(other, columns)
            inside = image[:, round(top * tall) : round((top + 1) * tall)]
            inside = inside[:, :, round(left * wide) : round((left + 1) * wide)]
            place = (left * wide - 0.5, (left + 1) * wide - 0.5, (top + 1) * tall - 0.5, top * tall - 0.5)
            axis.imshow(inside.movedim(0, -1).numpy(), extent=place, interpolation="nearest")
            # Width and colour say the same, so that the figure can be read in grey.
            strength = float(weight)
            corner, sizes = (place[0] + 1, place[3] + 1), (wide - 2, tall - 2)
            axis.add_patch(
                Rectangle(
                    corner,
                    *sizes,
                    fill=False,
                    edgecolor=pyplot.colormaps["plasma"](strength),
                    linewidth=0.5 + 3.5 * strength,
                    zorder=3,
                )
            )
        middle = ((column + 0.5) * wide - 0.5, (row + 0.5) * tall - 0.5)
        axis.plot(*middle, "o", color="white", markeredgecolor="black", markersize=7, zorder=4)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        axis.set_title(title, fontsize=11)
    return figure


def bias_table(table: Tensor, index: Tensor, queries: Mapping[str, int]) -> Figure:
    """Draw one head's table of offsets, and the part of it that each of some queries uses.

    Args:
        table: (2w - 1, 2w - 1), by offset down and across.
        index: the table's row of each pair (t, t).
        queries: title -> number of a cell in the window.

    Returns:
        A figure to give to `show`.
    """
    w = round(len(index) ** 0.5)
    figure, axes = pyplot.subplots(1, 1 + len(queries), figsize=(WIDTH, 2.7), layout="constrained")
    limits = {"cmap": "viridis", "vmin": table.min(), "vmax": table.max()}
    axes[0].imshow(table, **limits)
    axes[0].set_title("the table", fontsize=11)
    for axis, colour, (title, query) in zip(
        axes[1:], (COLOURS[1], "white", COLOURS[3]), queries.items(), strict=False
    ):
        axis.imshow(table.flatten()[index[query]].view(w, w), **limits)
        axis.plot(query % w, query // w, "o", color=colour, markeredgecolor="black")
        axis.set_title(title, fontsize=11)
        corner = (
            query % w - 0.5,
            query // w - 0.5,
        )  # offsets from query - (w - 1) to query, shifted by w - 1
        axes[0].add_patch(Rectangle(corner, w, w, fill=False, edgecolor=colour, linewidth=2))
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return figure


def seeds(rows: Mapping[str, Sequence[float]], xlabel: str, against: str) -> Figure:
    """Draw one line for each variant: its seeds as dots, their mean as a bar, and the numbers beside it.

    Args:
        rows: name -> accuracies in 0..1, one for each seed, in the same order.
        xlabel: what is measured.
        against: name of the row that the others are compared with, seed by seed.

    Returns:
        A figure to give to `show`.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.9, 0.4 * len(rows) + 1.0), layout="constrained")
    for place, (name, values) in enumerate(rows.items()):
        mean = fmean(values)
        axis.plot(values, [place] * len(values), "o", color=COLOURS[0], markersize=6, alpha=0.8)
        axis.plot([mean, mean], [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=3)
        words = f"{mean:.1%}"
        if name != against:
            gains = paired(rows[against], values)
            words += f"  ({100 * fmean(gains):+.1f} ± {100 * half_interval(gains):.1f})"
        axis.annotate(words, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=11)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=11)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.grid(axis="x", alpha=0.3)
    return figure
