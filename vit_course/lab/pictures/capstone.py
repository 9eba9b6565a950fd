"""Figures of lesson 13: a run, neighbours in words, where a network attends, and results beside baselines."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data.image_set import ImageSet
from .shared import COLOURS, DASHES, WIDTH, draw_image

Scores = Mapping[str, Mapping[str, float]]


def run(history: Mapping[str, Sequence[float]], smooth: int) -> Figure:
    """A panel for each number that a training recorded at its steps.

    Args:
        history: of `fit`.
        smooth: each point is the mean of so many values up to it.
    """
    columns = min(len(history), 4 if len(history) == 4 else 3)
    rows = -(-len(history) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(WIDTH, 2.4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(history) :]:
        axis.axis("off")
    for axis, (name, values) in zip(axes.flat, history.items(), strict=False):
        means = [fmean(values[max(0, end - smooth) : end]) for end in range(1, len(values) + 1)]
        axis.plot(means, color=COLOURS[0], marker="o" if len(means) < 5 else None)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
    return figure


def run_in_words(history: Mapping[str, Sequence[float]], smooth: int) -> str:
    """What `run` shows, in words."""
    parts = [
        f"{name} from {values[0]:.2f} to {fmean(values[-smooth:]):.2f}" for name, values in history.items()
    ]
    return f"The training, step by step, each number in a panel of its own: {'; '.join(parts)}."


def neighbours_in_words(queries: ImageSet, known: ImageSet, by_kind: Mapping[str, Tensor]) -> str:
    """What `pictures.evaluation.nearest` shows of such pictures, in words."""
    k = next(iter(by_kind.values())).shape[1]
    kinds = " and by ".join(by_kind)
    text = f"{len(queries)} test pictures, each with its {k} nearest training pictures by {kinds}"
    if not queries.classes:
        return f"{text}."
    right = [
        f"{int((known.labels[places] == queries.labels[:, None]).sum())} by {kind}"
        for kind, places in by_kind.items()
    ]
    return f"{text}. Of {k * len(queries)} neighbours each these are of the right class: {', '.join(right)}."


def attention(
    images: Tensor, by_network: Mapping[str, Tensor], grid: tuple[int, int], masks: Tensor | None = None
) -> Figure:
    """Pictures, and below them as colours where each network attends.

    Args:
        images: (b, c, h, w).
        by_network: rows (b, n) over the patches; each is scaled to its own largest value.
        grid: (rows, columns) of the patches.
        masks: booleans (b, h, w), outlined in white.
    """
    figure, axes = _rows(images, ["picture", *by_network])
    for line, rows in zip(axes[1:], by_network.values(), strict=True):
        for number, (axis, weights) in enumerate(zip(line, rows, strict=True)):
            _overlay(axis, weights.unflatten(0, grid), images.shape[-2:])
            if masks is not None:
                axis.contour(masks[number].float().numpy(), levels=[0.5], colors="white", linewidths=1.2)
    return figure


def components(images: Tensor, by_network: Mapping[str, Tensor]) -> Figure:
    """Pictures, and below them the principal components of each network's patches as colours.

    Args:
        images: (b, c, h, w).
        by_network: (b, 3, rows, columns) in 0..1.
    """
    figure, axes = _rows(images, ["picture", *by_network])
    for line, colours in zip(axes[1:], by_network.values(), strict=True):
        for axis, of_picture in zip(line, colours, strict=True):
            axis.clear()
            draw_image(axis, of_picture)
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[1:, 0], by_network, strict=True):
        axis.set_ylabel(name, fontsize=9)
    return figure


def photograph(image: Tensor, colours: Tensor, weights: Tensor | None = None) -> Figure:
    """One photograph, where a network attends in it, and the principal components of its patches.

    Args:
        image: (c, h, w).
        colours: (3, rows, columns) in 0..1.
        weights: (rows, columns), scaled to the largest; None where no layer sees the whole picture.
    """
    count = 2 if weights is None else 3
    figure, axes = pyplot.subplots(1, count, figsize=(WIDTH * 0.9 * count / 3, 3.0), layout="constrained")
    draw_image(axes[0], image)
    if weights is not None:
        axes[1].imshow((weights / weights.max()).numpy(), cmap="viridis", vmin=0, vmax=1)
    draw_image(axes[-1], colours)
    titles = ["photograph", "attention", "components of the patches"]
    for axis, title in zip(axes, titles if count == 3 else titles[::2], strict=True):
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    return figure


def results(scores: Scores, marked: str, guess: float | None = None) -> Figure:
    """Everything measured as bars: accuracies on the left, overlaps with true masks on the right.

    Args:
        scores: for each name "kNN", "linear" and "IoU" as far as they were measured, in 0..1.
        marked: the name to stress.
        guess: of 100, a dotted line.
    """
    panels = {
        measures: words
        for measures, words in ((("kNN", "linear"), "right answers"), (("IoU",), "overlap (IoU)"))
        if any(measures[0] in of_name for of_name in scores.values())
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(WIDTH, 3.6), squeeze=False, layout="constrained")
    for axis, (measures, words) in zip(axes[0], panels.items(), strict=True):
        _bars(axis, scores, measures, marked)
        if "kNN" in measures and guess is not None:
            axis.axvline(guess / 100, color="black", linestyle=DASHES[3], label="your guess")
        axis.set(xlim=(0, 1), xlabel=f"{words}, as a share of 1")
        axis.grid(axis="x", alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def results_in_words(scores: Scores, guess: float | None = None) -> str:
    """What `results` shows, in words."""
    parts = [
        f"{name}: kNN {of_name['kNN']:.0%}, linear {of_name['linear']:.0%}"
        for name, of_name in scores.items()
        if "kNN" in of_name
    ]
    overlaps = [f"{name}: IoU {of_name['IoU']:.2f}" for name, of_name in scores.items() if "IoU" in of_name]
    line = [] if guess is None or not parts else [f"A dotted line at the guess, {guess:g} %"]
    return f"Bars. {'. '.join(['; '.join(some) for some in (parts, overlaps) if some] + line)}."


def _bars(axis: Axes, scores: Scores, measures: Sequence[str], marked: str) -> None:
    """Horizontal bars of some measures, in the order of the first, told apart by colour and hatching."""
    measured = {name: of_name for name, of_name in scores.items() if measures[0] in of_name}
    names = sorted(measured, key=lambda name: measured[name][measures[0]])
    height = 0.8 / len(measures)
    for number, measure in enumerate(measures):
        axis.barh(
            [place + height * ((len(measures) - 1) / 2 - number) for place in range(len(names))],
            [measured[name][measure] for name in names],
            height,
            label=measure,
            color=COLOURS[4 * number],
            hatch="//" * number,
            edgecolor="white",
        )
    axis.set_yticks(range(len(names)), names, fontsize=9)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == marked else "normal")


def _rows(images: Tensor, names: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """The pictures in every row; each row has a name."""
    side = WIDTH / max(len(images), 4)
    figure, axes = pyplot.subplots(
        len(names),
        len(images),
        figsize=(side * len(images) + 0.3, side * len(names)),
        squeeze=False,
        layout="constrained",
    )
    for line, name in zip(axes, names, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axis, image in zip(line, images, strict=True):
            draw_image(axis, image)
            axis.set(xticks=[], yticks=[])
    return figure, axes


def _overlay(axis: Axes, weights: Tensor, size: Sequence[int]) -> None:
    """Attention (rows, columns) as colours over a picture of so many pixels."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axis.imshow((weights / weights.max()).numpy(), cmap="viridis", alpha=0.75, vmin=0, vmax=1, extent=extent)
