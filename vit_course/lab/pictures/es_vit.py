"""Figures of lesson 11: directions and their nearest, and lines from regions to their matches."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vit_course.lab.correspondence import Copies
from vit_course.lab.data import MEAN, STD

from .shared import COLOURS, WIDTH, draw_image

GAP = 4  # pixels of white between two copies


def arrows(student: Tensor, teacher: Tensor) -> Figure:
    """Features of regions as arrows, as they are and scaled to length one.

    Args:
        student: (s, 2), drawn with solid lines and the names a, b, …
        teacher: (t, 2), drawn with dashes and the names 0, 1, …

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    for axis, title in zip(axes, ("as they are", "scaled to length one"), strict=True):
        is_scaled = title != "as they are"
        ours, theirs = (F.normalize(part, dim=1) if is_scaled else part for part in (student, teacher))
        _draw_arrows(axis, ours, [chr(ord("a") + place) for place in range(len(ours))], "the student's", 0)
        _draw_arrows(axis, theirs, [str(place) for place in range(len(theirs))], "the teacher's", 1)
        axis.set(title=title, xlabel="first number", ylabel="second number")
        axis.margins(0.1)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, loc="upper left")
    return figure


def _draw_arrows(axis: Axes, ends: Tensor, names: Sequence[str], label: str, style: int) -> None:
    """Lines from the origin; the marks of the first style are rings, so that another can lie inside."""
    line, marker, size, fill = (("-", "o", 12, "none"), ("--", "s", 6, "full"))[style]
    for number, ((x, y), name) in enumerate(zip(ends.tolist(), names, strict=True)):
        axis.plot([0, x], [0, y], color=COLOURS[style], linestyle=line)
        axis.plot(
            x,
            y,
            color=COLOURS[style],
            linestyle=line,
            marker=marker,
            ms=size,
            fillstyle=fill,
            label=None if number else label,
        )
        place = (-6, 10) if style == 0 else (8, -13)
        axis.annotate(name, (x, y), place, textcoords="offset points", color=COLOURS[style])


def copies_and_matches(copies: Copies, matches: Mapping[str, Tensor], scenes: Sequence[int]) -> Figure:
    """Upright scenes beside their turned copies, with a line from each region that shows the object to its
    match: solid where that is its own place, dotted where it is not.

    Args:
        copies: of the correspondence test.
        matches: title -> (b, n), one column for each.
        scenes: which ones, one row for each.

    Returns:
        A figure to give to `show`.
    """
    figure, axes = pyplot.subplots(
        len(scenes),
        len(matches),
        figsize=(WIDTH, 1.7 * len(scenes) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for row, scene in enumerate(scenes):
        for axis, (title, match) in zip(axes[row], matches.items(), strict=True):
            _draw_copies(axis, copies, scene)
            for place in copies.on_object[scene].nonzero()[:, 0].tolist():
                goal = int(match[scene, place])
                is_right = goal == int(copies.true_place[place])
                _draw_match(axis, copies, place, goal, is_right)
            if row == 0:
                axis.set_title(title, fontsize=10)
    return figure


def _draw_copies(axis: Axes, copies: Copies, scene: int) -> None:
    pixels = [images[scene] * STD + MEAN for images in (copies.upright, copies.turned)]
    white = torch.ones(3, pixels[0].shape[1], GAP)
    draw_image(axis, torch.cat([pixels[0], white, pixels[1]], dim=2))
    axis.axis("off")


def _draw_match(axis: Axes, copies: Copies, place: int, goal: int, is_right: bool) -> None:
    side = copies.upright.shape[-1]
    cell = side // copies.grid

    def centre(region: int, left: int) -> tuple[float, float]:
        row, column = divmod(region, copies.grid)
        return left + (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5

    (x, y), (x2, y2) = centre(place, 0), centre(goal, side + GAP)
    colour, line = (COLOURS[5], "-") if is_right else (COLOURS[4], ":")
    axis.plot([x, x2], [y, y2], color=colour, linestyle=line, linewidth=1.8, marker="o", ms=4)


def photograph_and_matches(
    image: Tensor, mirrored: Tensor, match: Tensor, places: Sequence[int], true_place: Tensor, columns: int
) -> Figure:
    """A photograph beside its mirror image: lettered regions, their matches, and rings where they belong.

    Args:
        image, mirrored: (c, h, w) in 0..1.
        match: the mirror image's region that each region matches (n,).
        places: the regions to show.
        true_place: where each region stands in the mirror image (n,).
        columns: regions across the image.

    Returns:
        A figure to give to `show`.
    """
    height, width = image.shape[1:]
    figure, axes = pyplot.subplots(
        1, 2, figsize=(WIDTH, WIDTH / 2 * height / width + 0.3), layout="constrained"
    )
    cell = width / columns

    def centre(region: int) -> tuple[float, float]:
        row, column = divmod(region, columns)
        return (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5

    for axis, shown, title in zip(
        axes, (image, mirrored), ("the photograph", "its mirror image"), strict=True
    ):
        draw_image(axis, shown)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    words = dict(ha="center", va="center", color="white", fontsize=11, fontweight="bold")
    box = dict(boxstyle="circle,pad=0.15", facecolor=COLOURS[0], edgecolor="white")
    for letter, place in zip("ABCDEFGH", places, strict=False):
        axes[1].plot(*centre(int(true_place[place])), "o", ms=22, mfc="none", mec="white", mew=2)
        axes[0].text(*centre(place), letter, bbox=box, **words)
        axes[1].text(*centre(int(match[place])), letter, bbox=box, **words)
    return figure
