"""A view as a matplotlib figure: what a stored notebook shows where no kernel runs."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..pictures import WIDTH, draw_image
from .payload import COLOURS
from .views import View, keep_mass

NEGATIVE = "#D55E00"
HEADS_IN_A_ROW = 6


def draw(
    image: Tensor,
    views: Sequence[tuple[str, View, Sequence[View]]],
    mass: float,
    truth: Tensor | None,
    title: str,
    words: str,
) -> Figure:
    """A picture, for each model the map on it and one small map for each head, and the words below.

    Args:
        image: (c, h, w) in 0..1.
        views: for each model its name, the view, and the same view for each head.
        mass: the share that the mask keeps, 0 for none.
        truth: the true mask (h, w), booleans, or None.
        title, words: what stands above and below.
    """
    height, width = image.shape[-2:]
    lines = textwrap.wrap(words, 132)
    side = 2.6 * min(1.4, height / width)
    rows = [max(1, -(-len(heads) // HEADS_IN_A_ROW)) for _, _, heads in views]
    text_height = 0.2 * len(lines) + 0.15
    figure = Figure(figsize=(WIDTH, (side + 0.35) * len(views) + 0.35 + text_height), dpi=80)
    total = figure.get_figheight()
    outer = figure.add_gridspec(
        len(views),
        2,
        width_ratios=(2.6, WIDTH - 3.0),
        left=0.01,
        right=0.99,
        top=1 - 0.6 / total,
        bottom=text_height / total,
        wspace=0.04,
        hspace=0.18,
    )
    figure.text(0.01, 1 - 0.08 / total, title, va="top", fontsize=11)
    figure.text(0.01, (text_height - 0.12) / total, "\n".join(lines), va="top", fontsize=9, linespacing=1.35)
    for number, (name, view, heads) in enumerate(views):
        large = figure.add_subplot(outer[number, 0])
        _draw_view(large, image, view, mass, truth)
        large.set_anchor("NW")
        if len(views) > 1:
            large.set_title(name, fontsize=9)
        columns = min(HEADS_IN_A_ROW, len(heads))
        inner = outer[number, 1].subgridspec(rows[number], columns, wspace=0.08, hspace=0.3)
        for head, small in enumerate(heads):
            axis = figure.add_subplot(inner[head // columns, head % columns])
            _draw_view(axis, image, small, 0, None)
            axis.set_anchor("N")
            axis.set_title(f"head {head}", fontsize=8)
    return figure


def _draw_view(axis: Axes, image: Tensor, view: View, mass: float, truth: Tensor | None) -> None:
    axis.axis("off")
    if view.matrix is not None:
        colours = _colours(view.matrix.numpy(), view.matrix.abs().max().item())
        axis.imshow(colours[..., :3], interpolation="nearest")
        return
    height, width = image.shape[-2:]
    draw_image(axis, image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if mass:
        kept = keep_mass(view.values, mass).unflatten(0, view.layer.grid).numpy()
        veil = np.zeros((*view.layer.grid, 4))
        veil[..., 3] = np.where(kept, 0, 0.65)
        axis.imshow(veil, extent=extent, interpolation="nearest")
    else:
        colours = _colours(view.map().numpy(), view.others[view.strongest].item())
        axis.imshow(colours, extent=extent, interpolation="nearest")
        _dash_negative(axis, view, (height, width))
    if truth is not None and truth.any() and not truth.all():
        axis.contour(truth.float().numpy(), levels=[0.5], colors="black", linewidths=2)
        axis.contour(truth.float().numpy(), levels=[0.5], colors="white", linewidths=1, linestyles="dashed")
    if view.layer.kind == "window":
        for cell in (~view.values.isnan()).nonzero()[:, 0].tolist():
            _outline(axis, cell, view.layer.grid, (height, width), ("white",), 0.5)
    token = view.token if view.pointed is None else view.pointed
    if not isinstance(token, str):
        _outline(axis, token, view.layer.grid, (height, width), ("black", "white"), 1.5)


def _dash_negative(axis: Axes, view: View, size: tuple[int, int]) -> None:
    """A dash in every patch with a negative weight."""
    (rows, columns), (height, width) = view.layer.grid, size
    row, column = np.nonzero(view.map().numpy() < 0)
    x, y = (column + 0.5) * width / columns - 0.5, (row + 0.5) * height / rows - 0.5
    axis.plot(x, y, linestyle="none", marker="_", markersize=4, color="white")


def _colours(values: np.ndarray, largest: float) -> np.ndarray:
    """Weights as colours whose opacity follows them; negative ones orange, NaN transparent."""
    strength = np.nan_to_num(np.abs(values) / max(largest, 1e-12)).clip(max=1)
    colours = colormaps[COLOURS](strength)
    colours[values < 0, :3] = to_rgb(NEGATIVE)
    colours[..., 3] = 0.9 * strength
    return colours


def _outline(
    axis: Axes, cell: int, grid: tuple[int, int], size: tuple[int, int], colours: Sequence[str], width: float
) -> None:
    """A frame around one patch, visible on any colour: each colour drawn thinner than the one below."""
    tall, wide = size[0] / grid[0], size[1] / grid[1]
    left, top = cell % grid[1] * wide - 0.5, cell // grid[1] * tall - 0.5
    for order, colour in enumerate(colours):
        axis.plot(
            [left, left + wide, left + wide, left, left],
            [top, top, top + tall, top + tall, top],
            color=colour,
            linewidth=width * (len(colours) - order),
        )
