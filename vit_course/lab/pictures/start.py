"""The longer figures of lesson 00."""

from collections.abc import Mapping

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from .shared import COLOURS, DASHES, WIDTH, draw_image


def by_hand(values: Tensor, weights: Tensor) -> Figure:
    """Four patches with a number on each, and how much of each the class token takes.

    Args:
        values: (rows, columns), what stands on the patches.
        weights: (rows, columns), in 0..1.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(5, 2.3), layout="compressed")
    kinds = (
        (values, "what the patches hold", "Blues", 14),
        (weights, "attention of the class token", "Oranges", 1),
    )
    for axis, (table, title, colours, most) in zip(axes, kinds, strict=True):
        axis.imshow(table, cmap=colours, vmin=0, vmax=most)
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        for row, numbers in enumerate(table.tolist()):
            for column, number in enumerate(numbers):
                axis.text(
                    column,
                    row,
                    f"{number:g}",
                    ha="center",
                    va="center",
                    fontsize=14,
                    color="white" if colours == "Blues" and number > 10 else "black",
                )
    return figure


def whole_picture(image: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """A photograph at full width, and below it one map of attention beside the other.

    Args:
        image: (3, h, w).
        maps: (rows, columns) by title; each is scaled to its own largest value.
    """
    height, width = image.shape[-2:]
    wide = 5.6
    tall = wide * height / width
    figure = pyplot.figure(figsize=(wide, tall * (1 + 1 / len(maps)) + 0.5), layout="compressed")
    grid = figure.add_gridspec(2, len(maps), height_ratios=[len(maps), 1])
    axis = figure.add_subplot(grid[0, :])
    draw_image(axis, image)
    axis.axis("off")
    for number, (title, weights) in enumerate(maps.items()):
        axis = figure.add_subplot(grid[1, number])
        axis.imshow(weights / weights.max(), cmap="viridis", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    return figure


def shares(trained: Tensor, untrained: Tensor, object_size: float) -> Figure:
    """Two bars for each layer: how much of the class token's attention lies on the object.

    Args:
        trained, untrained: (layers,), shares in 0..1.
        object_size: the share of the picture that is object, which blind attention would give.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.75, 3), layout="compressed")
    layers = torch.arange(len(trained))
    for shift, values, name, colour, hatch in (
        (-0.2, trained, "trained", COLOURS[0], ""),
        (0.2, untrained, "untrained", COLOURS[4], "//"),
    ):
        axis.bar(layers + shift, values, width=0.38, color=colour, hatch=hatch, edgecolor="0.25", label=name)
        for layer, value in enumerate(values.tolist()):
            axis.text(layer + shift, max(value, object_size) + 0.015, f"{value:.0%}", ha="center", fontsize=9)
    axis.axhline(object_size, color="black", linestyle=":", label=f"size of the object, {object_size:.0%}")
    axis.set_xticks(layers, [f"layer {layer}" for layer in layers.tolist()])
    axis.set(ylabel="share on the object", ylim=(0, 1))
    axis.legend(frameon=False, ncols=3, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def erasing(steps: Tensor, accuracies: Mapping[str, Tensor]) -> Figure:
    """How often the answer is right when more and more patches are painted over.

    Args:
        steps: (m,), share of the patches that is gone.
        accuracies: (m,) by the order in which patches go.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 3), layout="compressed")
    styles = zip(COLOURS, (*DASHES, "-"), "os^vD", strict=False)
    for (name, values), (colour, dashes, marker) in zip(accuracies.items(), styles, strict=False):
        axis.plot(100 * steps, 100 * values, dashes, color=colour, marker=marker, label=name)
    axis.axhline(10, color="0.5", linewidth=1, label="guessing")
    axis.set(xlabel="patches painted over, %", ylabel="named right, %", ylim=(0, 103))
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def as_map(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """The row of the class token, mean of the heads, as a map: (1, h, n, n) -> (rows, columns)."""
    return torch.unflatten(weights[0].mean(dim=0)[0, 1:], 0, grid)
