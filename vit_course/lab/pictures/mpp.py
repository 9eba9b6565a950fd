"""Figures of lesson 12: what is hidden, what is predicted, what a network paints, and what it is worth."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import torch
from einops import rearrange
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from vit_course.mpp import Corruption
from vit_course.patching import patch_grid

from ..guessers import Rung
from ..results import half_interval, paired
from .shared import COLOURS, DASHES, WIDTH, draw_image

Rows = Sequence[Mapping]
Way = tuple[str, int]  # the name of a row and its number of labels
WAYS = ("from scratch", "after MPP", "nearest pixels")


def paint(labels: Tensor, patch_size: int, grid: tuple[int, int], bits: int = 3) -> Tensor:
    """Labels as a picture: each patch in the colour in the middle of its levels.

    Args:
        labels: whole numbers (n,), as of `mean_colour_labels`.
        patch_size: p, in pixels.
        grid: rows and columns of the patches.
        bits: of one of the three channels.

    Returns:
        (3, rows · p, columns · p).
    """
    levels = torch.stack([(labels >> (bits * channel)) % 2**bits for channel in range(3)], dim=-1)
    small = rearrange((levels + 0.5) / 2**bits, "(rows columns) c -> c rows columns", rows=grid[0])
    return small.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)


def by_hand(patches: Tensor, seen: Tensor, labels: Tensor, done: Mapping[int, str]) -> Figure:
    """Rows of patches: what there is, what the network gets, what it has to predict.

    Args:
        patches, seen: colours (n, 3).
        labels: the right answers (n,).
        done: what was done to the corrupted ones, in a word, by place.
    """
    asked = torch.ones_like(patches)
    for place in done:
        asked[place] = paint(labels[place : place + 1], 1, (1, 1))[:, 0, 0]
    rows = {"there is": patches, "the network gets": seen, "it predicts": asked}
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(WIDTH, 3.4), layout="constrained")
    for axis, (name, colours) in zip(axes, rows.items(), strict=True):
        axis.imshow(colours[None].numpy(), aspect="auto")
        axis.set_xticks(torch.arange(0.5, len(patches) - 1), [])
        axis.set_yticks([])
        axis.grid(color="black", linewidth=1)
        axis.tick_params(length=0)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    for place in range(len(patches)):
        question = f"colour {labels[place]}?" if place in done else "not counted"
        for axis, word in ((axes[0], f"patch {place}"), (axes[1], done.get(place, "")), (axes[2], question)):
            box = {"facecolor": "white", "alpha": 0.85, "lw": 0} if word else None
            axis.text(place, 0, word, ha="center", va="center", fontsize=10, bbox=box)
    return figure


def corrupted(image: Tensor, damaged: Tensor, labels: Tensor, draw: Corruption, patch_size: int) -> Figure:
    """A picture, what the network gets of it, and the labels of its patches as colours.

    Patches from elsewhere are framed in one colour and dashes, those that were left alone in another.

    Args:
        image, damaged: (3, h, w) in 0 … 1.
        labels: (n,).
        draw: of this one picture.
        patch_size: p, in pixels.
    """
    grid = patch_grid(image.shape[-2:], patch_size)
    panels = {
        "the photograph": image,
        "what the network gets": damaged,
        "the labels, painted": paint(labels, patch_size, grid),
    }
    height = WIDTH / 3 * image.shape[1] / image.shape[2] + 0.4
    figure, axes = pyplot.subplots(1, 3, figsize=(WIDTH, height), layout="constrained")
    for axis, (name, picture) in zip(axes, panels.items(), strict=True):
        draw_image(axis, picture)
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    index, source, is_masked = (part[0] for part in draw)
    for chosen, colour, line in (
        (source != index, COLOURS[1], "--"),
        ((source == index) & ~is_masked, COLOURS[5], "-"),
    ):
        for place in index[chosen].tolist():
            row, column = divmod(place, grid[1])
            corner, side = (patch_size * column, patch_size * row), patch_size - 1
            frame = Rectangle(corner, side, side, fill=False, ec=colour, ls=line, lw=1.8)
            frame.set_path_effects([withStroke(linewidth=4, foreground="white")])  # seen on any colour
            axes[1].add_patch(frame)
    return figure


def against_ladder(losses: Sequence[float], rungs: Mapping[str, Rung], smooth: int = 20) -> Figure:
    """The training loss by step, with what the guessers pay as dotted lines.

    Args:
        losses: of each step.
        rungs: of the guessers, by name.
        smooth: each point is the mean of so many steps.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.75, 3.6), layout="constrained")
    means = torch.tensor(losses).unfold(0, smooth, 1).mean(dim=1)
    axis.plot(torch.arange(smooth, len(losses) + 1), means, color=COLOURS[0])
    lowest = min(rung.cost for rung in rungs.values())
    for name, rung in rungs.items():
        axis.axhline(rung.cost, color="black", linewidth=0.8, linestyle=":")
        below = rung.cost == lowest
        axis.text(
            len(losses),
            rung.cost + (-0.06 if below else 0.06),
            name,
            ha="right",
            va="top" if below else "bottom",
            fontsize=9,
        )
    axis.set(xlabel="step", ylabel="cross-entropy, corrupted patches", ylim=(min(2, lowest - 1.5), 6.8))
    axis.grid(alpha=0.3)
    return figure


def whole_photo(
    picture: Tensor,
    tiles: Tensor,
    draw: Corruption,
    labels: Tensor,
    named: Tensor,
    patch_size: int,
    join: Callable[[Tensor], Tensor],
) -> Figure:
    """A photograph in four panels: as it is, with hidden patches grey, completed by a network, and the truth.

    Args:
        picture: (3, h, w) in 0 … 1.
        tiles: the same, cut into images (b, 3, s, s), of which the network saw one at a time.
        draw: the hidden patches of the tiles.
        labels: the true ones (b, n).
        named: those that the network names at the hidden patches (b, m).
        patch_size: p, in pixels.
        join: puts tiles (b, 3, s, s) together again.
    """
    grid = patch_grid(tiles.shape[-2:], patch_size)

    def painted(of_tiles: Tensor) -> Tensor:
        return join(torch.stack([paint(of_tile, patch_size, grid) for of_tile in of_tiles]))

    is_hidden = torch.zeros_like(labels, dtype=torch.bool).scatter(1, draw.index, True)
    panels = {
        "the photograph": picture,
        "what the network gets": torch.where(painted(511 * is_hidden.long()) > 0.5, 0.5, picture),
        "what it paints into the holes": painted(labels.scatter(1, draw.index, named)),
        "the truth, in 512 colours": painted(labels),
    }
    height = WIDTH / 2 * picture.shape[1] / picture.shape[2]
    figure, axes = pyplot.subplots(2, 2, figsize=(WIDTH, 2 * height + 0.6), layout="constrained")
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=True):
        draw_image(axis, panel)
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    return figure


def of_rows(rows: Rows, name: str, labels: int, key: str = "accuracy") -> list[float]:
    """The values in per cent of the rows of one name and number of labels, in the order of the seeds."""
    found = {
        row["seed"]: row[key] for row in rows if (row["name"], row["recipe"]["labels"]) == (name, labels)
    }
    return [100 * found[seed] for seed in sorted(found)]


def label_counts(rows: Rows) -> list[int]:
    """The numbers of labels that a table has rows of, from the fewest up."""
    return sorted({row["recipe"]["labels"] for row in rows})


def by_labels(rows: Rows) -> Figure:
    """Accuracy against the number of labels: every seed, and the means joined by lines.

    Args:
        rows: of the stored table.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.75, 3.8), layout="constrained")
    counts = label_counts(rows)
    for place, name in enumerate(WAYS):
        means = [mean(of_rows(rows, name, labels)) for labels in counts]
        axis.plot(counts, means, color=COLOURS[place], ls=DASHES[place], label=name)
        for labels in counts:
            values = of_rows(rows, name, labels)
            axis.plot([labels] * len(values), values, "oDs"[place], color=COLOURS[place], alpha=0.5, ms=5)
    axis.set(xscale="log", xlabel="labels", ylabel="test accuracy in %", ylim=(20, 100))
    axis.set_xticks(counts, [str(labels) for labels in counts], minor=False)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    return figure


def by_labels_in_words(rows: Rows) -> str:
    """What `by_labels` shows, in words."""
    parts = []
    for labels in label_counts(rows):
        means = ", ".join(f"{name} {mean(of_rows(rows, name, labels)):.1f}" for name in WAYS)
        parts.append(f"{labels} labels: {means}")
    return f"Test accuracy in per cent against the number of labels, means of five seeds. {'; '.join(parts)}."


def gain(rows: Rows, before: Way, after: Way) -> list[float]:
    """The differences in points between two ways, each a name and a number of labels, seed by seed."""
    return paired(of_rows(rows, *before), of_rows(rows, *after))


def gains(rows: Rows, changes: Mapping[str, tuple[Way, Way]]) -> Figure:
    """Paired differences of accuracy, one change a line, with the mean and its interval.

    Args:
        rows: of the stored table.
        changes: what is compared, in words -> the way before and the way after.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 0.42 * len(changes) + 0.9), layout="constrained")
    for place, ways in enumerate(changes.values()):
        points = gain(rows, *ways)
        middle, half = mean(points), half_interval(points)
        axis.errorbar(middle, place, xerr=half, fmt="|", ms=16, mew=3, color=COLOURS[1], capsize=4, lw=2)
        axis.plot(points, [place] * len(points), "o", color=COLOURS[0], alpha=0.6)
    axis.axvline(0, color="grey", lw=1)
    axis.set_yticks(range(len(changes)), list(changes))
    axis.set(xlabel="gain over from scratch in points", ylim=(len(changes) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    return figure


def gains_in_words(rows: Rows, changes: Mapping[str, tuple[Way, Way]]) -> str:
    """What `gains` shows, in words."""
    parts = []
    for what, ways in changes.items():
        points = gain(rows, *ways)
        parts.append(f"{what}: {mean(points):+.1f} ± {half_interval(points):.1f}")
    return (
        "Gain in test accuracy over training from scratch, in points, mean of five seeds and 95 % interval. "
        f"{'; '.join(parts)}."
    )
