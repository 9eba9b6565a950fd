"""The longer figures of lesson 04: two optimisers on a map, a sweep, two learning curves, a photograph."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .shared import COLOURS, DASHES, WIDTH, draw_image


def two_paths(paths: Mapping[str, Tensor], x: Tensor, wanted: float) -> Figure:
    """The paths of two weights over the map of their loss, (w · x - wanted)² / 2.

    Args:
        paths: name -> weights (steps, 2).
        x: the input (2,).
        wanted: the right answer.
    """
    first, second = torch.meshgrid(
        torch.linspace(0.8, 2.1, 100), torch.linspace(-2.2, -1.1, 100), indexing="xy"
    )
    loss = (first * x[0] + second * x[1] - wanted) ** 2 / 2
    figure, axis = pyplot.subplots(figsize=(6.5, 4.2), layout="compressed")
    filled = axis.contourf(first, second, loss, levels=12, cmap="viridis", alpha=0.5)
    figure.colorbar(filled, ax=axis, label="loss")
    for (name, path), colour, marker in zip(paths.items(), COLOURS, "so", strict=False):
        axis.plot(path[:, 0], path[:, 1], color=colour, marker=marker, markersize=5, label=name)
    edge = torch.tensor([1.4, 2.05])
    axis.plot(edge, (wanted - edge * x[0]) / x[1], color="black", linestyle=":", label="loss 0")
    axis.set(xlabel="first weight", ylabel="second weight", xlim=(0.8, 2.1), ylim=(-2.2, -1.1))
    axis.legend(loc="upper left")
    return figure


def sweep(rates: Sequence[float], accuracies: Sequence[Sequence[float]]) -> Figure:
    """Accuracies on validation pictures against the learning rate: every seed a point, their means a line.

    Args:
        rates: the learning rates tried.
        accuracies: for each of them the accuracies of its seeds, in 0 … 1.
    """
    percent = 100 * np.asarray(accuracies)
    figure, axis = pyplot.subplots(figsize=(6.5, 3.4), layout="compressed")
    axis.plot(rates, percent.mean(axis=1), color=COLOURS[0], label="mean")
    for seed in range(percent.shape[1]):
        label = "one seed" if seed == 0 else None
        axis.plot(rates, percent[:, seed], "o", color=COLOURS[1], markerfacecolor="none", label=label)
    axis.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy in %", ylim=(0, 100))
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower center")
    return figure


def learning_curves(histories: Mapping[str, dict[str, list[float]]], every: int) -> Figure:
    """Training loss and validation loss of several runs, one beside the other.

    Args:
        histories: title -> a history with "loss" for each step and "validation_loss" after every so many.
        every: so many steps; a point of the training loss is the mean of those before it.
    """
    figure, axes = pyplot.subplots(
        1, len(histories), figsize=(WIDTH * 0.85, 3.2), sharey=True, layout="compressed", squeeze=False
    )
    for axis, (title, history) in zip(axes[0], histories.items(), strict=True):
        seen = np.reshape(history["loss"], (-1, every)).mean(axis=1)
        steps = every * np.arange(1, len(seen) + 1)
        lines = {"training": (seen, "o"), "validation": (history["validation_loss"], "s")}
        for index, (name, (values, marker)) in enumerate(lines.items()):
            axis.plot(steps, values, DASHES[index], color=COLOURS[index], marker=marker, label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].set_ylim(bottom=-0.05)  # shared, once all lines are drawn
    return figure


def seen_and_unseen(photograph: Tensor, chances: Tensor, side: int) -> Figure:
    """A photograph, what a model makes of its crops, and which of them it was not trained on.

    Args:
        photograph: (3, h, w) in 0 … 1.
        chances: (rows, columns), the probability that the model gives to the right answer for each crop.
        side: of a crop, in pixels; crops stand edge to edge from the upper left corner.
    """
    _, height, width = photograph.shape
    figure, axis = pyplot.subplots(figsize=(6, 6 * height / width), layout="compressed")
    draw_image(axis, photograph)
    for (row, column), chance in np.ndenumerate(chances.numpy()):
        middle = (column + 0.5) * side, (row + 0.5) * side
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white" if chance > 0.5 else "black", "alpha": 0.8}
        axis.text(
            *middle,
            f"{100 * chance:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="black" if chance > 0.5 else "white",
            bbox=box,
        )
    half, left, right = math.ceil(height / 2), round(0.3 * width), round(0.7 * width)
    outline: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[4], "linewidth": 3, "linestyle": "--"}
    axis.add_patch(Rectangle((right, 0), width - right, half, **outline))
    axis.add_patch(Rectangle((0, height / 2), left, half, **outline))
    return figure
