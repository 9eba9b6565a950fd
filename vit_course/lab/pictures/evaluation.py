"""Figures of lesson 09: what features are worth, who is near whom, and what attention finds."""

from collections.abc import Mapping, Sequence
from statistics import mean

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..data.image_set import ImageSet
from ..results import half_interval
from .distillation import Rows, by_seed
from .shared import COLOURS, WIDTH, draw_image


def _budgets(rows: Rows) -> list[int]:
    return sorted({row["recipe"]["labels"] for row in rows})


def _protocols(rows: Rows, labels: int) -> dict[str, list[float]]:
    """The accuracies in per cent of all protocols with so many labels, by the name without that number."""
    names = dict.fromkeys(row["name"] for row in rows if row["recipe"]["labels"] == labels)
    return {name.rpartition(",")[0]: list(by_seed(rows, name).values()) for name in names}


def protocols(rows: Rows) -> Figure:
    """Every seed's accuracy by each protocol, with mean and interval; a panel for each number of labels."""
    budgets = _budgets(rows)
    names = list(dict.fromkeys(name for labels in budgets for name in _protocols(rows, labels)))
    figure, axes = pyplot.subplots(
        1, len(budgets), figsize=(WIDTH, 0.4 * len(names) + 0.9), sharex=True, sharey=True, squeeze=False
    )
    figure.set_layout_engine("constrained")
    for axis, labels in zip(axes[0], budgets, strict=True):
        for name, values in _protocols(rows, labels).items():
            place = names.index(name)
            colour = COLOURS[1 if name.startswith(("grey", "untrained", "from scratch")) else 0]
            axis.errorbar(mean(values), place, xerr=half_interval(values), color=colour, capsize=4, lw=2)
            axis.plot(
                values, [place] * len(values), "s" if colour == COLOURS[1] else "o", color=colour, alpha=0.6
            )
        axis.axvline(10, color="grey", lw=1, ls=":")
        axis.set(title=f"{labels:,} labels", xlabel="test accuracy in %")
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def protocols_in_words(rows: Rows) -> str:
    """What `protocols` shows, in words."""
    parts = []
    for labels in _budgets(rows):
        values = [
            f"{name} {mean(of_seeds):.1f} ± {half_interval(of_seeds):.1f}"
            for name, of_seeds in _protocols(rows, labels).items()
        ]
        parts.append(f"With {labels:,} labels: {', '.join(values)}.")
    return f"Test accuracy in per cent, mean of five seeds and 95 % interval. {' '.join(parts)}"


def by_hand(
    directions: Tensor, names: Sequence[str], weights: Tensor, truth: Tensor, shares: Tensor
) -> Figure:
    """The numbers of the pencil examples: directions on a circle, two masks of patches, shares as bars.

    Args:
        directions: (b, 2) of length one; the one in question points straight up.
        names: of their classes.
        weights: (4,), of a class token over four patches; those that hold 60 % are the first two.
        truth: (4,), which of them the object covers.
        shares: (3,), of the singular values.
    """
    figure, (circle, patches, bars) = pyplot.subplots(1, 3, figsize=(WIDTH, 3.0), layout="constrained")
    angles = torch.linspace(0, torch.pi / 2, 50)
    circle.plot(angles.cos(), angles.sin(), color="0.8")
    for (x, y), name in zip(directions.tolist(), names, strict=True):
        colour, marker = (COLOURS[1], "s") if name == names[-1] else (COLOURS[0], "o")
        circle.plot([0, x], [0, y], color=colour)
        circle.plot(x, y, marker, color=colour)
        circle.text(1.07 * x + 0.06, 1.09 * y - 0.02, f"{name} {y:.1f}")  # outside the circle
    circle.plot(0, 1, "o", color="black", ms=14, fillstyle="none")
    circle.set(xlim=(-0.15, 1.3), ylim=(-0.05, 1.25), aspect="equal", title="cosines with the ringed one")
    for place, weight in enumerate(weights.tolist()):
        left, kept = place % 2, place < 2
        top = place // 2
        patches.add_patch(Rectangle((left, top), 1, 1, facecolor=COLOURS[5] if kept else "white", ec="0.5"))
        if truth[place]:
            patches.add_patch(Rectangle((left + 0.08, top + 0.08), 0.84, 0.84, fill=False, ec="black", lw=2))
        patches.text(left + 0.5, top + 0.5, f"{weight:.1f}", ha="center", va="center")
    patches.set(xlim=(-0.05, 2.05), ylim=(2.05, -0.05), aspect="equal", title="kept: filled, object: framed")
    bars.bar(["σ₁", "σ₂", "σ₃"], shares.tolist(), color=COLOURS[0])
    rank = torch.special.entr(shares).sum().exp().item()
    bars.set(title=f"effective rank {rank:.2f} of {len(shares)}", ylabel="share")
    for axis in (circle, patches):
        axis.set(xticks=[], yticks=[])
    return figure


def nearest(
    queries: ImageSet, known: ImageSet, by_kind: Mapping[str, Tensor], line_height: float = 1.27
) -> Figure:
    """Pictures, and beside each the ones that each kind of feature holds for the nearest.

    Args:
        queries: the pictures in question.
        known: the pictures among which neighbours were looked for.
        by_kind: for each kind of features where the neighbours stand in `known`, (queries, k).
        line_height: of a line of pictures, in inches.

    Sets without classes have no names above the pictures.
    """
    k = next(iter(by_kind.values())).shape[1]
    count = len(queries) * len(by_kind)
    figure, axes = pyplot.subplots(
        count,
        k + 1,
        figsize=(WIDTH * 0.12 * (k + 1), line_height * count),
        squeeze=False,
        layout="constrained",
    )
    for query in range(len(queries)):
        for row, (kind, places) in enumerate(by_kind.items()):
            line, label = axes[query * len(by_kind) + row], queries.labels[query]
            draw_image(line[0], queries.images[query])
            line[0].set_title(queries.classes[label] if queries.classes else "this one", fontsize=9)
            line[0].set_ylabel(kind, fontsize=9)
            for axis, place in zip(line[1:], places[query].tolist(), strict=True):
                draw_image(axis, known.images[place])
                if not known.classes:
                    continue
                same = known.labels[place] == label
                axis.set_title(
                    known.classes[known.labels[place]] + (" ✓" if same else ""),
                    fontsize=9,
                    color="black" if same else "0.45",
                )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def nearest_in_words(queries: ImageSet, known: ImageSet, by_kind: Mapping[str, Tensor]) -> str:
    """What `nearest` shows, in words."""
    parts = []
    for query, label in enumerate(queries.labels.tolist()):
        counts = [
            f"{int((known.labels[places[query]] == label).sum())} by {kind}"
            for kind, places in by_kind.items()
        ]
        parts.append(f"of {queries.classes[label]}: {', '.join(counts)}")
    k = next(iter(by_kind.values())).shape[1]
    return (
        "Crops of photographs, and their nearest training crops by each kind of features. Of the "
        f"{k} nearest, from the same photograph: {'; '.join(parts)}."
    )


def masks(images: Tensor, truth: Tensor, by_name: Mapping[str, Tensor]) -> Figure:
    """Scenes, and below them masks that fade the rest, with the outline of the true object.

    Args:
        images: (b, c, h, w).
        truth: booleans (b, h, w).
        by_name: booleans (b, h, w) for each row.
    """
    count = len(images)
    figure, axes = pyplot.subplots(
        len(by_name) + 1,
        count,
        figsize=(WIDTH * 0.7, WIDTH * 0.7 / count * (len(by_name) + 1)),
        squeeze=False,
        layout="constrained",
    )
    everything = {"scene": torch.ones_like(truth)} | dict(by_name)
    for line, (name, of_name) in zip(axes, everything.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axis, image, mask, outline in zip(line, images, of_name, truth, strict=True):
            draw_image(axis, image * (0.25 + 0.75 * mask))
            if name != "scene":
                axis.contour(outline.float(), levels=[0.5], colors="white", linewidths=1.2)
            axis.set(xticks=[], yticks=[])
    return figure


def photograph(image: Tensor, by_network: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """A photograph; for each network the part of it that a mask keeps, and components of its patches.

    Args:
        image: (c, h, w).
        by_network: for each network a mask, booleans (h, w), outside which the photograph is pale and grey,
            and components (3, rows, columns), of any scale, which are drawn as red, green and blue.
    """
    pale = 0.7 + 0.3 * image.mean(dim=0)
    figure, axes = pyplot.subplots(
        len(by_network),
        3,
        figsize=(WIDTH * 0.85, 1.9 * len(by_network) + 0.2),
        layout="constrained",
        squeeze=False,
    )
    for line, (name, (mask, components)) in zip(axes, by_network.items(), strict=True):
        low, high = (components.flatten(1).quantile(share, dim=1)[:, None, None] for share in (0.02, 0.98))
        draw_image(line[1], torch.where(mask, image, pale))
        draw_image(line[2], (components - low) / (high - low))
        line[1].set_ylabel(name)
    draw_image(axes[0, 0], image)
    for axis in axes[1:, 0]:
        axis.set_visible(False)
    for axis, title in zip(
        axes[0], ("photograph", "60 % of the attention", "components of the patches"), strict=True
    ):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure
