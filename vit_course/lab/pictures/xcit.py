"""Figures of lesson 06: a table read by rows and by columns, the reach task, and how far a change gets."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor, nn

from .shared import COLOURS, DASHES, WIDTH

READINGS = (
    "Two rows of three matrices. Above: a table of 3 tokens by 2 channels, a 3 by 3 matrix of token weights, "
    "and a 2 by 2 matrix of channel weights, 0.63 and 0.37 in its first row. Below: the table with every "
    "token twice, a 6 by 6 matrix of token weights, and the same 2 by 2 matrix as above."
)
LETTERS = ("red", "green", "blue", "yellow")


def two_readings(tables: list[Tensor]) -> Figure:
    """Tables of tokens, and what attention between tokens and attention between channels make of each.

    Args:
        tables: (n, 2) each, not negative.
    """
    figure, axes = pyplot.subplots(
        len(tables), 3, figsize=(WIDTH * 0.72, 2.3 * len(tables)), layout="constrained", squeeze=False
    )
    for row, table in zip(axes, tables, strict=True):
        n = len(table)
        unit = table / table.norm(dim=0)
        panels = {
            f"{n} tokens × 2 channels": (table / table.max(), table),
            f"tokens to tokens: {n} × {n}": ((table @ table.T / 2**0.5).softmax(dim=-1),) * 2,
            "channels to channels: 2 × 2": ((unit.T @ unit).softmax(dim=-1),) * 2,
        }
        for column, (axis, (title, (shade, numbers))) in enumerate(zip(row, panels.items(), strict=True)):
            axis.imshow(shade, cmap="viridis", vmin=0, vmax=1)
            for i in range(shade.shape[0]):
                for j in range(shade.shape[1]):
                    words = f"{numbers[i, j]:.0f}" if column == 0 else f"{numbers[i, j]:.2f}"
                    colour = "black" if shade[i, j] > 0.6 else "white"
                    axis.text(j, i, words, ha="center", va="center", fontsize=8, color=colour)
            axis.set_title(title, fontsize=9)
            across = range(n) if column == 1 else ["A", "B"]
            axis.set_xticks(range(shade.shape[1]), across, fontsize=8)
            down = ["A", "B"] if column == 2 else range(n)
            axis.set_yticks(range(shade.shape[0]), down, fontsize=8)
    return figure


def reach_maps(maps: Tensor) -> Figure:
    """Maps of `reach_dense`: A at the cell that must answer, the name of the colour at the other.

    Args:
        maps: (b, 5, s, s), four colours and the mark.
    """
    figure, axes = pyplot.subplots(
        1, len(maps), figsize=(WIDTH, WIDTH / len(maps) + 0.2), layout="constrained", squeeze=False
    )
    for axis, one in zip(axes[0], maps, strict=True):
        size = one.shape[-1]
        axis.imshow(torch.zeros(size, size), cmap="Greys", vmin=0, vmax=1)
        axis.set_xticks(torch.arange(size - 1) + 0.5, [])
        axis.set_yticks(torch.arange(size - 1) + 0.5, [])
        axis.grid(color="0.85", lw=0.6)
        axis.tick_params(length=0)
        for channel, row, column in one.nonzero().tolist():
            words = "A" if channel == 4 else LETTERS[channel]
            axis.text(column, row, words, ha="center", va="center", fontsize=10)
    return figure


@torch.no_grad()
def reached(layer: nn.Module, size: int = 11) -> tuple[Figure, list[int]]:
    """How far a change of one number gets through a layer, and through the same layer twice.

    Args:
        layer: tokens (b, n, 8) and a grid -> tokens.
        size: rows and columns of the grid.

    Returns:
        The figure, dark for unchanged and light for changed, and how many patches are changed each time.
    """
    layer, grid = copy.deepcopy(layer).eval(), (size, size)
    zero = torch.zeros(1, size**2, 8)
    poked = zero.clone()
    poked[0, size**2 // 2, 2] = 1.0
    once = layer(poked, grid) - layer(zero, grid)
    twice = layer(layer(poked, grid), grid) - layer(layer(zero, grid), grid)
    changes = {"changed": poked, "after one layer": once, "after two layers": twice}
    masks = {name: (change[0].abs() > 1e-7).any(dim=1).view(grid) for name, change in changes.items()}
    figure, axes = pyplot.subplots(1, len(masks), figsize=(WIDTH, 3.1), layout="constrained")
    for axis, (name, mask) in zip(axes, masks.items(), strict=True):
        axis.imshow(mask, cmap="viridis", vmin=0, vmax=1.2)
        axis.set_title(f"{name}: {int(mask.sum())}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, [int(mask.sum()) for mask in masks.values()]


def waves(coarse: Tensor, fine: Tensor) -> Figure:
    """Three waves of FourierPositions over a side, on a coarse grid (squares) and a fine one (dots).

    Args:
        coarse, fine: (rows, 32) each.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.65, 3), layout="constrained")
    for index, (name, wave) in enumerate({"sine, j = 0": 0, "sine, j = 2": 4, "sine, j = 4": 8}.items()):
        style: dict[str, Any] = dict(color=COLOURS[index], linestyle=DASHES[index])
        places = torch.arange(1, len(fine) + 1) / len(fine)
        axis.plot(places, fine[:, wave], marker="o", ms=4, label=name, **style)
        places = torch.arange(1, len(coarse) + 1) / len(coarse)
        axis.plot(places, coarse[:, wave], "s", ms=9, fillstyle="none", color=COLOURS[index])
    axis.set(xlabel=f"place (dots: {len(fine)} rows, squares: {len(coarse)})", ylabel="wave")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(alpha=0.3)
    return figure


def costs(lengths: tuple[int, ...], times: Mapping[str, list[float]]) -> Figure:
    """Milliseconds over the number of tokens, both axes logarithmic.

    Args:
        lengths: numbers of tokens.
        times: name -> seconds, one for each length.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.6, 3), layout="constrained")
    for index, (name, seconds) in enumerate(times.items()):
        style: dict[str, Any] = dict(color=COLOURS[index], linestyle=DASHES[index], label=name)
        axis.plot(lengths, [1000 * second for second in seconds], "o", **style)
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure
