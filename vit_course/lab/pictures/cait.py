"""The longer figures of lesson 05: tables of heads, factors that grow, and where a class token reads."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from .shared import COLOURS, DASHES, WIDTH, draw_image


def head_tables(tables: Mapping[str, Tensor]) -> Figure:
    """Tables of heads and keys side by side, each entry with its number and each row with its sum.

    Args:
        tables: name -> (heads, keys).

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, len(tables), figsize=(WIDTH, 2.4), layout="constrained")
    for axis, (name, table) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        largest = max(1.2, table.abs().max().item())
        axis.imshow(table, cmap="RdBu", vmin=-largest, vmax=largest)
        for (row, column), value in np.ndenumerate(table.numpy()):
            colour = "white" if abs(value) > 0.6 * largest else "black"
            axis.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)
        heads, keys = table.shape
        axis.set_title(name, fontsize=11)
        axis.set_xticks(range(keys), [f"key {key}" for key in range(keys)])
        axis.set_yticks(range(heads), [f"head {head}\nsum {table[head].sum():.2f}" for head in range(heads)])
    return figure


def growth(scales: Sequence[Sequence[Sequence[float]]]) -> Figure:
    """How large the factors of LayerScale are, by layer and by step.

    Args:
        scales: for each step, for each layer, the mean size of the factors on attention and on the
            feed-forward layer.

    Returns:
        A figure to give to `show`.
    """
    values = np.asarray(scales)  # (steps, layers, 2)
    steps, layers, _ = values.shape
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(WIDTH, 3.4), layout="constrained", width_ratios=(1.15, 1)
    )
    image = left.imshow(
        values[:, :, 0].T,
        aspect="auto",
        origin="lower",
        cmap="viridis",
        norm=LogNorm(values.min(), values.max()),
        extent=(-0.5, steps - 0.5, -0.5, layers - 0.5),
        interpolation="nearest",
    )
    figure.colorbar(image, ax=left, label="mean size of γ")
    left.set(xlabel="step", ylabel="layer", title="attention branches, layer by layer")
    for index, name in enumerate(("attention", "feed-forward layer")):
        of_branch = values[:, :, index]
        right.fill_between(
            range(steps), of_branch.min(axis=1), of_branch.max(axis=1), color=COLOURS[index], alpha=0.2, lw=0
        )
        right.plot(of_branch.mean(axis=1), color=COLOURS[index], linestyle=DASHES[index], label=name)
    right.set(xlabel="step", yscale="log", title="mean of the layers; band: least to most")
    right.grid(alpha=0.3)
    right.legend(frameon=False, loc="lower right")
    return figure


def losses(runs: Mapping[str, Sequence[Sequence[float]]], smooth: int = 10) -> Figure:
    """Training losses of several models: the mean of the seeds as a line, their range as a band.

    Args:
        runs: name -> for each seed, the loss at each step.
        smooth: each point is the mean of so many steps up to it.

    Returns:
        A figure to give to `show`.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.75, 3.6), layout="constrained")
    for index, (name, seeds) in enumerate(runs.items()):
        table = np.asarray(seeds)  # (seeds, steps)
        ends = range(smooth, table.shape[1] + 1)
        table = np.stack([table[:, end - smooth : end].mean(axis=1) for end in ends], axis=1)
        colour = COLOURS[index % len(COLOURS)]
        axis.fill_between(ends, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.2, lw=0)
        axis.plot(ends, table.mean(axis=0), color=colour, linestyle=DASHES[index % len(DASHES)], label=name)
    axis.set(xlabel="step", ylabel=f"training loss, mean of {smooth} steps")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def maps_on_scenes(images: Tensor, masks: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Scenes with the outline of their objects, and below each a row of maps for each model.

    Args:
        images: (b, c, h, w) in 0..1.
        masks: (b, h, w), true on the object.
        maps: name -> (b, rows, columns), not negative, each scaled to its own largest value.

    Returns:
        A figure to give to `show`.
    """
    b, _, h, w = images.shape
    side = WIDTH / (b + 0.4)
    figure, axes = pyplot.subplots(
        1 + len(maps), b, figsize=(WIDTH, side * (1 + len(maps))), squeeze=False, layout="constrained", dpi=72
    )
    for column in range(b):
        draw_image(axes[0, column], images[column])
        for row, values in enumerate(maps.values(), start=1):
            shown = (values[column] / values[column].max()).numpy()
            extent = (-0.5, w - 0.5, h - 0.5, -0.5)
            axes[row, column].imshow(shown, cmap="viridis", vmin=0, vmax=1, extent=extent)
    for column in range(b):
        for axis in axes[:, column]:
            axis.contour(masks[column].float(), levels=[0.5], colors="black", linewidths=2.5)
            axis.contour(masks[column].float(), levels=[0.5], colors="white", linewidths=1)
            axis.set(xticks=[], yticks=[])
    for row, name in enumerate(("scene", *maps)):
        axes[row, 0].set_ylabel(name, fontsize=11)
    return figure


def maps_on_photo(image: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """A photograph, and below it the same photograph under each map, at a readable size, two in a row.

    Args:
        image: (c, h, w) in 0..1.
        maps: name -> (rows, columns), not negative, each scaled to its own largest value.

    Returns:
        A figure to give to `show`.
    """
    h, w = image.shape[-2:]
    rows = -(-(1 + len(maps)) // 2)
    side = WIDTH * 1.1 / 2
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(2 * side, rows * (side * h / w + 0.3)), squeeze=False, layout="compressed", dpi=72
    )
    for axis in axes.flat:
        axis.axis("off")
    draw_image(axes.flat[0], image)
    axes.flat[0].set_title("photograph", fontsize=11)
    for axis, (name, values) in zip(axes.flat[1:], maps.items(), strict=False):
        draw_image(axis, image.mean(dim=0, keepdim=True))
        strength = (values / values.max()).numpy()
        axis.imshow(
            strength,
            cmap="viridis",
            alpha=0.35 + 0.5 * strength,
            vmin=0,
            vmax=1,
            extent=(-0.5, w - 0.5, h - 0.5, -0.5),
        )
        axis.set_title(name, fontsize=11)
    return figure
