"""Figures of lesson 03: why ViTs won, a block by hand, where a class token looks, and what depth does."""

from collections.abc import Mapping, Sequence

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .shared import COLOURS, DASHES, WIDTH, draw_image

# Top-1 accuracy on ImageNet in per cent by the set that was pre-trained on: Dosovitskiy et al. 2021, table 5
# (ViT, fine-tuned at 384 pixels), and Kolesnikov et al. 2020, tables 2 and 1 (BiT, a ResNet152x4).
PRETRAINING_SETS = {"ImageNet": 1.3e6, "ImageNet-21k": 14e6, "JFT-300M": 303e6}
PRETRAINED = {
    "ViT-L/16": (76.53, 85.15, 87.12),
    "ViT-B/16": (77.91, 83.97, 84.15),
    "ViT-H/14": (float("nan"), 85.13, 88.04),
    "ResNet (BiT)": (81.30, 85.39, 87.54),
}


def pretraining() -> Figure:
    """Published accuracy on ImageNet of three ViTs and a ResNet by the number of pre-training pictures.

    Returns:
        A figure to give to `show`.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.7, 3.2), dpi=80, layout="constrained")
    pictures = list(PRETRAINING_SETS.values())
    for index, (name, accuracies) in enumerate(PRETRAINED.items()):
        axis.plot(pictures, accuracies, marker="osD^"[index], color=COLOURS[index], linestyle=DASHES[index])
        shift = {"ViT-L/16": -6, "ViT-H/14": 7}.get(name, 0)
        end = (pictures[-1], accuracies[-1])
        axis.annotate(name, end, (8, shift), textcoords="offset points", va="center", fontsize=9)
    axis.set(xscale="log", xlim=(9e5, 2e9), ylim=(75, 90), ylabel="top-1 accuracy on ImageNet, %")
    ticks = [
        f"{name}\n{number}" for name, number in zip(PRETRAINING_SETS, ("1.3 M", "14 M", "303 M"), strict=True)
    ]
    axis.set_xticks(pictures, ticks)
    axis.minorticks_off()
    axis.set_xlabel("pre-training set and its pictures")
    axis.grid(alpha=0.3)
    return figure


def sum_of_tables(tables: Mapping[str, Tensor], rows: Sequence[str]) -> Figure:
    """Small tables of numbers side by side, as a sum: first + second = third + fourth = fifth …

    Args:
        tables: title -> (rows, columns), each with the same rows.
        rows: names of the rows.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, len(tables), figsize=(WIDTH, 2.6), dpi=80, layout="constrained")
    for index, (axis, (title, table)) in enumerate(zip(axes, tables.items(), strict=True)):
        axis.imshow(table.numpy(), cmap="viridis", vmin=-1, vmax=9)
        for row in range(table.shape[0]):
            for column in range(table.shape[1]):
                value = table[row, column].item() + 0.0  # without the sign of -0.0
                colour = "black" if value > 4 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks(range(len(rows)), rows if index == 0 else [""] * len(rows))
        sign = "" if index == 0 else "=" if index % 2 == 0 else "+"
        axis.text(-0.28, 0.5, sign, transform=axis.transAxes, fontsize=16, ha="center", va="center")
    return figure


def photograph(photo: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """A photograph, and the same under one map after another, two in a row as wide as the page.

    Args:
        photo: (c, h, w) in 0..1.
        maps: title -> weights (rows, columns), not negative, each scaled to its own largest value.

    Returns:
        A figure to give to `show`.
    """
    height, width = photo.shape[-2:]
    rows = (2 + len(maps)) // 2
    size = (WIDTH, rows * (WIDTH / 2 * height / width + 0.3))
    figure, axes = pyplot.subplots(rows, 2, figsize=size, dpi=60, squeeze=False, layout="compressed")
    for axis in axes.flat:
        axis.axis("off")
    draw_image(axes.flat[0], photo)
    axes.flat[0].set_title("the photograph", fontsize=14)
    for axis, (title, weights) in zip(axes.flat[1:], maps.items(), strict=False):
        _overlay(axis, photo, weights)
        axis.set_title(title, fontsize=14)
    return figure


def attention_on_scenes(images: Tensor, masks: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Scenes in the first row, and below them one row for each set of maps, with the true outlines.

    Args:
        images: (b, c, h, w) in 0..1.
        masks: (b, h, w) booleans.
        maps: name of the row -> (b, rows, columns), not negative.

    Returns:
        A figure to give to `show`.
    """
    rows, columns = 1 + len(maps), len(images)
    side = WIDTH / (columns + 0.9)
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, side * rows), dpi=60, layout="constrained")
    for row, name in enumerate(["scene", *maps]):
        axes[row, 0].text(
            -0.08, 0.5, name, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=12
        )
        for column, axis in enumerate(axes[row]):
            if row == 0:
                draw_image(axis, images[column])
            else:
                _overlay(axis, images[column], maps[name][column])
            axis.contour(masks[column].float().numpy(), levels=[0.5], colors="white", linewidths=1)
            axis.axis("off")
    return figure


def _overlay(axis: Axes, image: Tensor, weights: Tensor) -> None:
    """An image in grey under its weights, scaled to the largest; it shows through where there are none."""
    height, width = image.shape[-2:]
    grey = image.mean(dim=0, keepdim=True)
    if height > 128:  # a finer one only makes the file large
        grey = avg_pool2d(grey, 4).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    draw_image(axis, 0.25 + 0.6 * (32 * grey).round() / 32)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    strength = (weights / weights.max().clamp(min=1e-12)).detach().cpu().sqrt().numpy()
    alpha = 0.1 + 0.75 * strength
    axis.imshow(strength, cmap="inferno", alpha=alpha, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axis.axis("off")


def through_depth(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """What happens to tokens from block to block in several stacks, on two logarithmic axes.

    Args:
        measured: name of a stack -> {"difference": …, "spread": …}, one value for each block.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH, 3.6), dpi=80, layout="constrained")
    for index, (name, values) in enumerate(measured.items()):
        for axis, key in zip(axes, ("difference", "spread"), strict=True):
            heights = [max(value, 1e-7) for value in values[key]]
            (line,) = axis.plot(range(1, len(heights) + 1), heights, color=COLOURS[index])
            line.set(linestyle=DASHES[index], label=name if axis is axes[0] else None)
    axes[0].set(ylim=(5e-8, 2), ylabel="difference between tokens")
    axes[1].set(ylabel="standard deviation of the tokens")
    for axis in axes:
        axis.set(yscale="log", xlabel="after block")
        axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(measured), frameon=False, fontsize=9)
    return figure
