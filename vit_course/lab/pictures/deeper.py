"""The longer figures of lesson a1: maps before and after mixing, tokens that grow alike, the square law."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from .shared import COLOURS, DASHES, WIDTH

MARKERS = ("o", "s", "^", "D")


def maps_of_heads(rows: Mapping[str, Tensor]) -> Figure:
    """Square attention maps, a row for each stage and a column for each head.

    Args:
        rows: name of a stage -> maps (h, n, n). Colours run from minus to plus the largest size in the row.

    Returns:
        A figure to give to `show`.
    """
    heads = len(next(iter(rows.values())))
    side = WIDTH / heads
    figure, axes = pyplot.subplots(
        len(rows),
        heads,
        figsize=(WIDTH, (side + 0.15) * len(rows)),
        squeeze=False,
        layout="compressed",
        dpi=72,
    )
    for row, (name, maps) in enumerate(rows.items()):
        largest = maps.abs().max().item()
        for head, (axis, values) in enumerate(zip(axes[row], maps, strict=True)):
            axis.imshow(values.numpy(), cmap="RdBu", vmin=-largest, vmax=largest, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title="" if row else f"head {head}")
        axes[row, 0].set_ylabel(name, fontsize=11)
    return figure


def by_depth(lines: Mapping[str, Sequence[float]], ylabel: str) -> Figure:
    """One statistic of untrained networks by depth.

    Args:
        lines: name of a network -> its values, one for each block.
        ylabel: what they are.

    Returns:
        A figure to give to `show`.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.9, 3.4), layout="constrained")
    for index, (name, values) in enumerate(lines.items()):
        axis.plot(
            np.linspace(1 / len(values), 1, len(values)),
            values,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
        )
    axis.set(xlabel="share of the blocks passed", ylabel=ylabel, ylim=(-0.1, 1.05))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def square_law(gammas: Sequence[float], lines: Mapping[str, Sequence[float]]) -> Figure:
    """How far parallel blocks are from the same blocks in sequence, on logarithmic axes.

    Args:
        gammas: what the branches are multiplied by.
        lines: name -> relative differences, one for each gamma.

    Returns:
        A figure to give to `show`; a dotted line has the slope of the square.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.7, 3.4), layout="constrained")
    for index, (name, values) in enumerate(lines.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axis.plot(gammas, values, label=name, color=colour, marker=marker)
    first = next(iter(lines.values()))
    square = [first[-1] * (gamma / gammas[-1]) ** 2 for gamma in gammas]
    axis.plot(gammas, square, color="black", linestyle=":", label="slope 2")
    axis.set(xscale="log", yscale="log", xlabel="γ", ylabel="relative difference")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def accuracies(rows: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Accuracies of several networks: a point for each seed, a bar at the mean.

    Args:
        rows: name -> accuracies in 0 … 1, one for each seed.
        chance: of guessing, drawn as a dotted line.

    Returns:
        A figure to give to `show`.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 0.42 * len(rows) + 0.8), layout="constrained")
    for place, values in enumerate(rows.values()):
        axis.barh(place, 100 * np.mean(values), color=COLOURS[0], alpha=0.35, height=0.6)
        axis.plot(100 * np.asarray(values), [place] * len(values), "o", color=COLOURS[0], markersize=4)
    axis.axvline(100 * chance, color="black", linestyle=":")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="digits named right, %")
    axis.grid(alpha=0.3, axis="x")
    return figure
