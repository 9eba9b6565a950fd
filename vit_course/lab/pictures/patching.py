"""The longer figures of lesson 01: filters, positions, pictures side by side, what a token sees."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from einops import rearrange
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from .shared import WIDTH, draw_image, picture_axes


def filters_and_positions(filters: Tensor, positions: Mapping[str, Tensor], grid: tuple[int, int]) -> Figure:
    """What a patch embedding looks for, and how alike positions are: figure 7 of the ViT paper.

    Args:
        filters: kernels of a patch embedding (m, 3, p1, p2), each scaled to its own largest weight.
        positions: name -> positions (n, d). A small map for each place shows the cosine of its position and
            all others.
        grid: (rows, columns).

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(
        1, 1 + len(positions), figsize=(WIDTH, WIDTH / (1 + len(positions)) + 0.2), layout="compressed"
    )
    scaled = 0.5 + 0.5 * filters / filters.abs().amax(dim=(1, 2, 3), keepdim=True)
    columns = round(len(filters) ** 0.5)
    tiles = F.pad(scaled, (0, 1, 0, 1), value=1.0)
    draw_image(axes[0], rearrange(tiles, "(i j) c y x -> c (i y) (j x)", j=columns))
    axes[0].set_title("filters, trained", fontsize=10)
    for axis, (name, table) in zip(axes[1:], positions.items(), strict=True):
        maps = F.pad(similarity(table, grid), (0, 1, 0, 1), value=float("nan"))
        shown = axis.imshow(
            rearrange(maps, "r c y x -> (r y) (c x)").numpy(), cmap="viridis", vmin=-0.5, vmax=1
        )
        axis.set_title(name, fontsize=10)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="cosine")
    for axis in axes:
        axis.axis("off")
    return figure


def similarity(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cosine of the position of each place (r, c) and that of each place (y, x): (r, c, y, x).

    Args:
        positions: (n, d).
        grid: (rows, columns).
    """
    unit = F.normalize(positions, dim=1)
    return rearrange(unit @ unit.T, "(r c) (y x) -> r c y x", r=grid[0], y=grid[0])


def side_by_side(pictures: Sequence[Tensor], titles: Sequence[str], columns: int = 2) -> Figure:
    """Pictures of any shape at a readable size.

    Args:
        pictures: each (c, h, w) in 0..1.
        titles: one for each.
        columns: pictures in a row.

    Returns:
        A figure to give to `show`.
    """
    height, width = pictures[0].shape[-2:]
    figure, axes = picture_axes(len(pictures), columns, height / width)
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        draw_image(axis, picture)
        axis.set_title(title, fontsize=10)
    return figure


def sensitivity(maps: Mapping[str, Tensor], patch_size: int) -> Figure:
    """How much each pixel moves one token, in powers of ten.

    Args:
        maps: name -> (h, w), not negative.
        patch_size: whose borders are drawn, in pixels.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, len(maps), figsize=(WIDTH, 3.2), layout="compressed")
    for axis, (name, seen) in zip(axes, maps.items(), strict=True):
        strength = (seen / seen.max()).clamp(min=1e-4).log10()
        shown = axis.imshow(strength.numpy(), cmap="viridis", vmin=-4, vmax=0)
        height, width = seen.shape
        axis.set_xticks([edge - 0.5 for edge in range(0, width + 1, patch_size)], [])
        axis.set_yticks([edge - 0.5 for edge in range(0, height + 1, patch_size)], [])
        axis.set_title(name, fontsize=10)
        axis.grid(color="white", alpha=0.4, linewidth=0.6)
        axis.tick_params(length=0)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="power of ten of the largest")
    return figure
