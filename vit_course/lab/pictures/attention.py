"""The longer figures of lesson 02: maps on one photograph, and patches with their weights."""

from collections.abc import Sequence

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vit_course.patching import patch_grid

from .shared import WIDTH, draw_image

FRAME = "#FF4040"  # of the patch that a map belongs to


def maps(
    image: Tensor,
    weights: Tensor,
    titles: Sequence[str],
    patch: int | Sequence[int | None],
    columns: int = 2,
) -> Figure:
    """Attention maps over a grey photograph, each scaled to its own largest weight.

    Args:
        image: (c, h, w) in 0..1.
        weights: (m, rows, columns), not negative.
        titles: one for each map.
        patch: the patch that gets a frame, a number in reading order: one for all maps, or one for each
            (None: no frame).
        columns: maps in a row.

    Returns:
        A figure to give to `show`.
    """
    height, width = image.shape[-2:]
    grid = (weights.shape[-2], weights.shape[-1])
    rows = -(-len(weights) // columns)
    side = WIDTH / columns
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(WIDTH, (side * height / width + 0.35) * rows),
        squeeze=False,
        layout="compressed",
        dpi=80,
    )
    framed = [patch] * len(weights) if patch is None or isinstance(patch, int) else patch
    for axis in axes.flat:
        axis.axis("off")
    for axis, map_, title, place in zip(axes.flat, weights, titles, framed, strict=False):
        strength = (map_ / map_.max().clamp(min=1e-12)).numpy()
        draw_image(axis, 0.65 * image.mean(dim=0, keepdim=True))
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(strength, cmap="cividis", alpha=0.1 + 0.85 * strength**0.5, vmin=0, vmax=1, extent=extent)
        if place is not None:
            frame(axis, place, grid, (height // grid[0], width // grid[1]))
        axis.set_title(title, fontsize=11 if columns < 4 else 9)
    return figure


def frame(axis: Axes, patch: int, grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Frame a patch, a number in reading order on the grid, in a picture on `axis`."""
    corner = (patch % grid[1] * size[1] - 0.5, patch // grid[1] * size[0] - 0.5)
    axis.add_patch(pyplot.Rectangle(corner, size[1], size[0], fill=False, edgecolor=FRAME, linewidth=2))


def marked(image: Tensor, patches: dict[str, int], patch_size: int) -> Figure:
    """A photograph with named patches in frames.

    Args:
        image: (c, h, w) in 0..1.
        patches: name -> number in reading order.
        patch_size: side of a patch in pixels.

    Returns:
        A figure to give to `show`.
    """
    grid = patch_grid(image.shape[-2:], patch_size)
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.6, WIDTH * 0.6 * image.shape[1] / image.shape[2]))
    draw_image(axis, image)
    for name, patch in patches.items():
        frame(axis, patch, grid, (patch_size, patch_size))
        row, column = divmod(patch, grid[1])
        axis.text(
            (column + 1.3) * patch_size,
            (row + 0.5) * patch_size,
            name,
            color="white",
            va="center",
            bbox={"facecolor": "black", "alpha": 0.6, "lw": 0, "pad": 2},
        )
    axis.axis("off")
    return figure


def questions(negatives: Tensor, patches: Tensor, weights: Tensor, which: Tensor) -> Figure:
    """Examples of the task of two questions, one in a row, and what two heads take from each patch.

    Args:
        negatives: (m, 2, c, p, p), the patches that are asked for, light and dark exchanged, in 0..1.
        patches: (m, n, c, p, p) in 0..1.
        weights: (m, 2, n), what each head takes from each patch.
        which: (m, 2), the patches that the negatives were made from.

    Returns:
        A figure to give to `show`.
    """
    examples, count = patches.shape[:2]
    figure, axes = pyplot.subplots(
        examples, count + 2, figsize=(WIDTH, 1.45 * examples + 0.2), layout="compressed"
    )
    for example, row in enumerate(axes):
        for place, (axis, patch) in enumerate(
            zip(row, [*negatives[example], *patches[example]], strict=True)
        ):
            draw_image(axis, patch)
            axis.set(xticks=[], yticks=[])
            if place < 2:
                axis.set_title(f"negative {'AB'[place]}", fontsize=9)
                continue
            first, second = weights[example, :, place - 2].tolist()
            axis.set_xlabel(f"{first:.2f}\n{second:.2f}", fontsize=10)
            for number, letter in enumerate("AB"):
                if place - 2 == which[example, number]:
                    axis.set_title(letter, fontsize=11, fontweight="bold")
                    for spine in axis.spines.values():
                        spine.set(color="black", linewidth=3)
        row[1].set_xlabel("head 0\nhead 1", fontsize=10)
    return figure
