"""The plots that lessons share, and the one way to show a figure: with a text alternative."""

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from IPython.display import display
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vit_course.patching import pair, patch_grid, require_at_least

WIDTH = 9.0  # of a notebook page, in inches at 80 dpi
# Told apart by people with any colour vision (Okabe and Ito 2008), and by dashes where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")


def show(figure: Figure, alt: str) -> None:
    """Show a figure as one picture with a text alternative, and close it.

    The picture is an HTML element with the words in its ``alt``, which every page made from the notebook
    keeps: nbconvert's usual template, and Sphinx, drop the words of pictures that are stored in another way.
    The words stand as plain text where no picture can be drawn.

    Args:
        figure: a matplotlib figure; its own dpi sets the size.
        alt: what the picture shows, in words. Write rounded numbers: the tests compare it.

    Raises:
        TypeError: where ``figure`` is not a figure or ``alt`` not a string.
        ValueError: where ``alt`` is empty.
    """
    element = as_html(figure, alt)
    pyplot.close(figure)
    display({"text/html": element, "text/plain": alt}, raw=True)


def as_html(figure: Figure, alt: str) -> str:
    """Draw a figure as an HTML element that holds the picture and its text alternative.

    Args:
        figure: a matplotlib figure; its own dpi sets the size.
        alt: what the picture shows, in words.

    Returns:
        An ``img`` element. The same figure makes the same element.

    Raises:
        TypeError: where ``figure`` is not a figure or ``alt`` not a string.
        ValueError: where ``alt`` is empty.
    """
    if not isinstance(figure, Figure):
        raise TypeError(
            f"show needs a matplotlib figure, got {type(figure).__name__}; an Axes has its figure in .figure"
        )
    if not isinstance(alt, str):
        raise TypeError(f"alt must be a string that says what the picture shows, got {type(alt).__name__}")
    if not alt.strip():
        raise ValueError(f"alt must say in words what the picture shows, got {alt!r}")
    picture = BytesIO()
    # The name of the program would make other bytes of the same figure.
    metadata = {"Software": None}
    figure.savefig(
        picture, format="png", dpi=figure.dpi, facecolor="white", bbox_inches="tight", metadata=metadata
    )
    return image_element(base64.b64encode(picture.getvalue()).decode("ascii"), alt)


def image_element(png: str, alt: str) -> str:
    """An HTML element with a picture and its text alternative.

    Args:
        png: the picture as base64 text, as notebooks store it.
        alt: what it shows, in words.
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{"".join(png.split())}">'


def gallery(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images side by side.

    Args:
        images: (b, c, h, w) in 0..1, with 1 or 3 channels.
        titles: one for each image.
        columns: images in a row.

    Returns:
        A figure to give to `show`.

    Raises:
        ValueError: for other shapes or numbers of titles.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"gallery needs images (b, c, h, w) with 1 or 3 channels, got shape {tuple(images.shape)}"
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images need as many titles, got {len(titles)}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side = WIDTH / max(columns, 4)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(side * columns, (side + 0.25) * rows), squeeze=False, layout="compressed"
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        draw_image(axis, image)
        if titles is not None:
            axis.set_title(titles[index], fontsize=9)
    return figure


def patch_lines(image: Tensor, patch_size: int | tuple[int, int], numbered: bool = False) -> Figure:
    """An image with the edges of its patches.

    Args:
        image: (c, h, w) in 0..1.
        patch_size: in pixels, an int or a (height, width) pair.
        numbered: whether the patches carry their numbers, in reading order.

    Returns:
        A figure to give to `show`.

    Raises:
        ValueError: where patches do not fill the image.
    """
    height, width = image.shape[-2:]
    patch_height, patch_width = pair(patch_size, "patch_size")
    rows, columns = patch_grid((height, width), patch_size)
    figure, axis = pyplot.subplots(figsize=(WIDTH / 2, WIDTH / 2 * height / width), layout="compressed")
    draw_image(axis, image)
    for row in range(1, rows):
        axis.axhline(row * patch_height - 0.5, color="white", linewidth=1)
    for column in range(1, columns):
        axis.axvline(column * patch_width - 0.5, color="white", linewidth=1)
    if numbered:
        for index in range(rows * columns):
            x, y = (index % columns + 0.5) * patch_width - 0.5, (index // columns + 0.5) * patch_height - 0.5
            axis.text(
                x,
                y,
                str(index),
                ha="center",
                va="center",
                fontsize=9,
                color="white",
                bbox={"facecolor": "black", "alpha": 0.5, "lw": 0},
            )
    axis.axis("off")
    return figure


def attention_maps(
    image: Tensor, maps: Tensor, titles: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """An image, and beside it one picture for each map, which fades where the map has no weight.

    Args:
        image: (c, h, w) in 0..1.
        maps: (m, rows, columns), not negative, each scaled to its own largest value.
        titles: one for each map.
        columns: pictures in a row.

    Returns:
        A figure to give to `show`.

    Raises:
        ValueError: for other shapes or numbers of titles, and for weights that are not finite.
    """
    if maps.ndim != 3:
        raise ValueError(f"attention_maps needs maps (m, rows, columns), got shape {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError("attention_maps needs finite weights, got some that are not")
    if titles is not None and len(titles) != len(maps):
        raise ValueError(f"{len(maps)} maps need as many titles, got {len(titles)}")
    panels = 1 + len(maps)
    height, width = image.shape[-2:]
    figure, axes = picture_axes(panels, min(columns, panels), height / width)
    draw_image(axes[0], image)
    axes[0].set_title("image", fontsize=9)
    for index, (axis, weights) in enumerate(zip(axes[1:], maps.detach().cpu(), strict=False)):
        strength = (weights / weights.max().clamp(min=1e-12)).numpy()
        draw_image(axis, image)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(strength, cmap="viridis", alpha=0.25 + 0.6 * strength, vmin=0, vmax=1, extent=extent)
        if titles is not None:
            axis.set_title(titles[index], fontsize=9)
    return figure


def heatmap(
    matrix: Tensor,
    xlabel: str = "",
    ylabel: str = "",
    annotate: bool = False,
    labels: Sequence[str] | None = None,
) -> Figure:
    """A matrix as colours.

    Args:
        matrix: (rows, columns).
        xlabel: what stands below it.
        ylabel: what stands beside it.
        annotate: whether each cell carries its number.
        labels: names of rows and columns of a square matrix.

    Returns:
        A figure to give to `show`.

    Raises:
        ValueError: for a tensor of another shape.
    """
    if matrix.ndim != 2:
        raise ValueError(f"heatmap needs a matrix (rows, columns), got shape {tuple(matrix.shape)}")
    matrix = matrix.detach().cpu()
    figure, axis = pyplot.subplots(
        figsize=(WIDTH / 2, WIDTH / 2 * min(1.2, matrix.shape[0] / matrix.shape[1]) + 0.4),
        layout="compressed",
    )
    shown = axis.imshow(matrix.numpy(), cmap="viridis")
    figure.colorbar(shown, ax=axis, shrink=0.8)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    if labels is not None:
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), labels)
    if annotate:
        middle = (matrix.max() + matrix.min()) / 2
        for (row, column), value in zip(np.ndindex(*matrix.shape), matrix.flatten().tolist(), strict=True):
            axis.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="black" if value > middle else "white",
                fontsize=9,
            )
    return figure


def curves(
    lines: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    x: Sequence[float] | None = None,
    smooth: int = 1,
) -> Figure:
    """Several lines in one plot, told apart by colour, by dashes and by name.

    Args:
        lines: name -> values; a value that is no number leaves a gap.
        xlabel: what stands below it.
        ylabel: what stands beside it.
        x: where the values stand, 0, 1, 2 … by default.
        smooth: each point is the mean of so many values up to it.

    Returns:
        A figure to give to `show`.

    Raises:
        TypeError, ValueError: for a `smooth` that is not an int from 1 on.
    """
    require_at_least(1, smooth=smooth)
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.7, WIDTH * 0.4), layout="compressed")
    for index, (name, values) in enumerate(lines.items()):
        heights = np.asarray(values, dtype=float)
        # Window by window: a running sum would carry one value that is no number to the end of the line.
        heights = np.array([heights[max(0, end - smooth) : end].mean() for end in range(1, len(heights) + 1)])
        places = range(len(heights)) if x is None else x
        marker = "o" if len(heights) < 15 else None
        axis.plot(
            places,
            heights,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            marker=marker,
        )
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(frameon=False)
    return figure


def picture_axes(count: int, columns: int, proportion: float) -> tuple[Figure, list[Axes]]:
    """Empty axes for pictures in rows across the page.

    Args:
        count: of pictures.
        columns: pictures in a row.
        proportion: height of a picture over its width.

    Returns:
        The figure, and its axes in reading order; there may be some more than pictures in the last row.
    """
    rows = -(-count // columns)
    height = (WIDTH / columns * proportion + 0.25) * rows
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, layout="compressed")
    for axis in axes.flat:
        axis.axis("off")
    return figure, list(axes.flat)


def draw_image(axis: Axes, image: Tensor) -> None:
    """Draw one image (c, h, w) in 0..1, grey or colour, without smoothing, on an axis of yours."""
    image = image.detach().cpu().clamp(0, 1)
    axis.imshow(
        (image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)).numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
