"""Figures of lesson 14: what a folder of photographs taught a network, its views, its features in colours."""

from collections.abc import Mapping, Sequence
from statistics import mean

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from .distillation import Rows, by_seed
from .shared import COLOURS, DASHES, WIDTH, draw_image


def accuracies(rows: Rows) -> Figure:
    """Every seed's accuracy, with the mean, of each way to know a photograph by its neighbours."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 0.42 * len(names) + 0.7), layout="constrained")
    for place, name in enumerate(names):
        values = list(by_seed(rows, name).values())
        colour, marker = (COLOURS[0], "o") if "steps" in name else (COLOURS[1], "s")
        axis.plot(values, [place] * len(values), marker, color=colour, alpha=0.6)
        axis.plot([mean(values)] * 2, [place - 0.3, place + 0.3], color=colour, lw=2)
    axis.axvline(100 / 9, color="grey", lw=1, ls=":")
    axis.set(xlabel="test photographs that their neighbours name right, in %", xlim=(0, 100))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    return figure


def accuracies_in_words(rows: Rows) -> str:
    """What `accuracies` shows, in words."""
    parts = []
    for name in dict.fromkeys(row["name"] for row in rows):
        values = [f"{value:.0f}" for value in by_seed(rows, name).values()]
        parts.append(f"{name} {', '.join(values)}")
    return f"Right answers in per cent, each seed: {'; '.join(parts)}. The dotted line is guessing, 11."


def half_lives(batches: Sequence[int], momentum: float = 0.996) -> Figure:
    """What is left of the first teacher after so many photographs, for several batches with one momentum.

    Args:
        batches: photographs of a step.
        momentum: of the teacher, at each step.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.6, 2.8), layout="constrained")
    photographs = torch.logspace(3, 6, 200)
    for index, batch in enumerate(batches):
        left = momentum ** (photographs / batch)
        axis.plot(photographs, left, color=COLOURS[index], ls=DASHES[index], label=f"batch {batch:,}")
    axis.axhline(0.5, color="grey", lw=1, ls=":")
    axis.set(xscale="log", xlabel="photographs seen", ylabel="share of the first teacher", ylim=(0, 1.02))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


def views(photograph: Tensor, crops: Sequence[Sequence[Tensor]], names: Sequence[str]) -> Figure:
    """A photograph, and beside it several draws of its views, local crops drawn in their own size.

    Args:
        photograph: (3, h, w) in 0..1.
        crops: for each draw its views (3, size, size) in 0..1, global ones first.
        names: of the views.
    """
    figure = pyplot.figure(figsize=(WIDTH, 1.6 * len(crops) + 0.2), layout="constrained")
    grid = figure.add_gridspec(len(crops), len(names) + 2, width_ratios=[1.6, *[1] * len(names), 0.01])
    whole = figure.add_subplot(grid[:, 0])
    draw_image(whole, photograph)
    whole.axis("off")
    largest = crops[0][0].shape[-1]
    for row, draw in enumerate(crops):
        for column, (view, name) in enumerate(zip(draw, names, strict=True), start=1):
            axis = figure.add_subplot(grid[row, column])
            draw_image(axis, view)
            margin = (largest - view.shape[-1]) / 2
            axis.set(
                xlim=(-margin - 0.5, largest - margin - 0.5), ylim=(largest - margin - 0.5, -margin - 0.5)
            )
            axis.axis("off")
            if row == 0:
                axis.set_title(name, fontsize=9)
    return figure


def knn_curve(steps: Sequence[float], shares: Sequence[float], baselines: Mapping[str, float]) -> Figure:
    """Right answers by neighbours while a model trains, beside what needs no training.

    Args:
        steps: steps done at each measurement.
        shares: right answers, in 0..1.
        baselines: shares under the names of what they are of.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.6, 3.0), layout="constrained")
    axis.plot(steps, [100 * share for share in shares], "o-", color=COLOURS[0], label="trained")
    for index, (name, share) in enumerate(baselines.items(), start=1):
        axis.axhline(100 * share, color=COLOURS[index], ls=DASHES[index], label=name)
    figure.legend(loc="outside upper center", ncols=len(baselines) + 1, frameon=False)
    values = [100 * share for share in (*shares, *baselines.values())]
    axis.set(xlabel="steps", ylabel="right by neighbours, in %", ylim=(min(values) - 3, max(values) + 4))
    axis.grid(alpha=0.3)
    return figure


def principal_colours(tokens: Tensor) -> Tensor:
    """The first three principal components of tokens (n, d) as red, green and blue (n, 3), each in 0..1."""
    centred = (tokens - tokens.mean(dim=0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    components = centred @ directions[:3].T
    # A direction has no sign of its own: the entry that is largest shall be positive.
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    components = components * largest.sign()
    low, high = (torch.quantile(components, share, dim=0) for share in (0.02, 0.98))
    return ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()


def patch_maps(photograph: Tensor, maps: Mapping[str, Tensor], columns: int = 3) -> Figure:
    """A photograph, and right of it maps of its patches: three numbers as a colour, one as light or dark.

    Args:
        photograph: (3, h, w) in 0..1.
        maps: (rows, columns, 3) in 0..1, or (rows, columns), each scaled to its own largest value.
        columns: maps in a row.
    """
    rows = -(-len(maps) // columns)
    height = WIDTH / (columns + 1) * photograph.shape[-2] / photograph.shape[-1] + 0.3
    figure, axes = pyplot.subplots(
        rows, columns + 1, figsize=(WIDTH, height * rows), squeeze=False, layout="compressed"
    )
    for axis in axes.flat:
        axis.axis("off")
    draw_image(axes[0, 0], photograph)
    axes[0, 0].set_title("photograph", fontsize=9)
    for axis, (name, values) in zip(axes[:, 1:].flat, maps.items(), strict=False):
        axis.imshow(values.numpy(), cmap="viridis", vmin=0, interpolation="nearest")
        axis.set_title(name, fontsize=9)
    return figure
