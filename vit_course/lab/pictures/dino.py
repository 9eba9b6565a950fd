"""Figures of lesson 10: logits and targets, views, schedules, how runs die, what the features are worth."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from vit_course.vit import Backbone

from ..data import normalise
from ..results import half_interval
from .shared import COLOURS, DASHES, WIDTH, draw_image

Rows = Sequence[Mapping]
NUMBERS = {"accuracy": "neighbours", "linear": "linear layer"}


def stages(logits: Tensor, center: Tensor, temperature: float, names: Sequence[str]) -> Figure:
    """Logits of a teacher on their way to targets, a row of bars for each view.

    Args:
        logits: (v, k).
        center: (k,).
        temperature: of the last column.
        names: of the rows.
    """
    columns = {
        "logits": logits,
        "minus the centre": logits - center,
        "softmax, temperature 1": (logits - center).softmax(dim=1),
        f"softmax, temperature {temperature}": ((logits - center) / temperature).softmax(dim=1),
    }
    figure, axes = pyplot.subplots(
        len(logits), len(columns), figsize=(WIDTH, 1.05 * len(logits)), sharey="col", layout="constrained"
    )
    for column, (title, table) in enumerate(columns.items()):
        for row, numbers in enumerate(table.tolist()):
            axis = axes[row, column]
            axis.bar(range(len(numbers)), numbers, color=COLOURS[: len(numbers)])
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_ylim((-0.3, 0.9) if column < 2 else (0, 1.05))
            axis.set_xticks([])
        axes[0, column].set_title(title, fontsize=10)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, fontsize=9)
    return figure


def views(images: Tensor, crops: Sequence[Tensor]) -> Figure:
    """Scenes in the first column, and their views.

    Args:
        images: normalised (b, 3, h, w).
        crops: v views (b, 3, h, w), h and w their own, the two global ones first.
    """
    titles = ["scene", *(f"{'global' if index < 2 else 'local'}" for index in range(len(crops)))]
    figure, axes = pyplot.subplots(
        len(images), len(titles), figsize=(WIDTH, 1.55 * len(images)), layout="constrained"
    )
    for row in range(len(images)):
        for axis, title, view in zip(axes[row], titles, [images, *crops], strict=True):
            draw_image(axis, view[row] * 0.27 + 0.5)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"{title}, {view.shape[-1]} px", fontsize=10)
    return figure


def schedules(values: Sequence[Mapping[str, float]], frozen: float) -> Figure:
    """The four curves of a `DINOSchedule` over a run.

    Args:
        values: what `DINOSchedule.values` gives for each step.
        frozen: the share of the run in which the prototypes rest, drawn as a grey band.
    """
    titles = {
        "lr": "learning rate",
        "weight_decay": "weight decay",
        "momentum": "teacher's momentum",
        "teacher_temp": "teacher's temperature",
    }
    figure, axes = pyplot.subplots(1, len(titles), figsize=(WIDTH, 2.4), layout="constrained")
    for axis, (name, title), colour in zip(axes, titles.items(), COLOURS, strict=False):
        axis.plot([of_step[name] for of_step in values], color=colour)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].axvspan(0, frozen * len(values), color="grey", alpha=0.5)
    return figure


# What `entropy_and_kl` shows in the lesson, in words.
DEATHS = (
    "Two plots over 120 steps with four runs. Entropy: without centring it falls to zero; the paper's parts "
    "and the run without sharpening end at log K; with Sinkhorn-Knopp and KoLeo it stays below. KL: it falls "
    "to zero in the first three runs and stays well above zero in the last."
)


def entropy_and_kl(histories: Mapping[str, Mapping[str, Sequence[float]]], prototypes: int) -> Figure:
    """The two numbers by which a run of DINO is watched, for several runs.

    Args:
        histories: by name, what `fit` returned.
        prototypes: K, whose logarithm is the largest entropy.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    for index, (name, history) in enumerate(histories.items()):
        for axis, key in zip(axes, ("entropy", "kl"), strict=True):
            smooth = torch.tensor(history[key]).unfold(0, 5, 1).mean(dim=1)
            axis.plot(
                smooth,
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                label=name,
            )
    axes[0].axhline(math.log(prototypes), color="black", linewidth=0.8)
    axes[0].set(title="entropy of the targets (black: log K)", xlabel="step", ylim=(-0.2, None))
    axes[1].set(title="KL, still to be learned", xlabel="step", ylim=(-0.1, None))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def grey_without_mean(images: Tensor) -> Tensor:
    """The strongest baseline on pixels: (b, 3, h, w) -> grey values without their mean (b, h·w)."""
    grey = images.mean(dim=1).flatten(1)
    return grey - grey.mean(dim=1, keepdim=True)


def pixels_of(rows: Rows) -> dict[str, float]:
    """The accuracies in per cent of grey pixels in a stored table, by key."""
    return {key: points_of(rows, "grey pixels", key)[0] for key in NUMBERS}


def with_untrained(rows: Rows, name: str) -> list[dict]:
    """The rows of one name, called "DINO, no labels", after those of the same networks before training."""
    chosen = [row for row in rows if row["name"] == name]
    before = [{"name": "not trained"} | {key: row[f"random_{key}"] for key in NUMBERS} for row in chosen]
    return [*before, *(dict(row) | {"name": "DINO, no labels"} for row in chosen)]


# What the runs of the two-by-two table are called, by targets and regulariser.
CELLS = {
    ("centring", "no KoLeo"): "centring",
    ("centring", "KoLeo"): "centring, KoLeo",
    ("Sinkhorn-Knopp", "no KoLeo"): "Sinkhorn-Knopp",
    ("Sinkhorn-Knopp", "KoLeo"): "without BatchNorm",
}


def cells_of(rows: Rows) -> dict[tuple[str, str], list[float]]:
    """The neighbours' accuracies of the two-by-two table, for the seeds that all four cells have."""
    of_cells = {
        cell: {row["seed"]: 100 * row["accuracy"] for row in rows if row["name"] == name}
        for cell, name in CELLS.items()
    }
    seeds = sorted(set.intersection(*(set(values) for values in of_cells.values())))
    return {cell: [values[seed] for seed in seeds] for cell, values in of_cells.items()}


def points_of(rows: Rows, name: str, key: str = "accuracy") -> list[float]:
    """The values in per cent of the rows of one name, one for each seed."""
    return [100 * row[key] for row in rows if row["name"] == name]


def worth(rows: Rows, names: Sequence[str], pixels: Mapping[str, float]) -> Figure:
    """Every seed's accuracy by neighbours and by a linear layer, with mean and interval.

    Args:
        rows: of a stored table.
        names: which of them, one a line.
        pixels: the accuracy in per cent of grey pixels, by key.
    """
    figure, axes = pyplot.subplots(
        1, 2, figsize=(WIDTH, 0.42 * len(names) + 1.2), sharey=True, layout="constrained"
    )
    for axis, (key, title) in zip(axes, NUMBERS.items(), strict=True):
        for place, name in enumerate(names):
            values = points_of(rows, name, key)
            if len(values) > 1:
                axis.errorbar(
                    mean(values), place, xerr=half_interval(values), color=COLOURS[0], capsize=4, lw=2
                )
            axis.plot(values, [place] * len(values), "o", color=COLOURS[0], alpha=0.6)
        axis.axvline(pixels[key], color=COLOURS[1], linestyle="--", lw=1.5)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=title, xlabel="test accuracy in %", xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    return figure


def worth_in_words(rows: Rows, names: Sequence[str], pixels: Mapping[str, float]) -> str:
    """What `worth` shows, in words."""
    parts = []
    for name in names:
        of_name = []
        for key, title in NUMBERS.items():
            values = points_of(rows, name, key)
            interval = f" ± {half_interval(values):.0f}" if len(values) > 1 else ""
            of_name.append(f"{title} {mean(values):.0f}{interval}")
        parts.append(f"{name}: {', '.join(of_name)}")
    baselines = ", ".join(f"{title} {pixels[key]:.0f}" for key, title in NUMBERS.items())
    return f"Test accuracy in per cent. {'; '.join(parts)}. Dashed, grey pixels: {baselines}."


def two_by_two(cells: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """Accuracies of two choices, crossed: each seed's in a cell, and their mean.

    Args:
        cells: per cent of each seed, by the names of row and column.
    """
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.62, 2.6), layout="constrained")
    table = [[mean(cells[row, column]) for column in columns] for row in rows]
    axis.imshow(table, cmap="Blues", vmin=0, vmax=130, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            seeds = ", ".join(f"{value:.0f}" for value in cells[row, column])
            axis.text(x, y, f"{table[y][x]:.0f} %\n({seeds})", ha="center", va="center", fontsize=11)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    return figure


def two_by_two_in_words(cells: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """What `two_by_two` shows, in words."""
    parts = [
        f"{row}, {column}: {mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})"
        for (row, column), values in cells.items()
    ]
    return f"Neighbours in per cent, the mean and each seed. {'; '.join(parts)}."


def on_a_circle(before: Tensor, after: Tensor) -> Figure:
    """Points of the unit circle (b, 2), before and after."""
    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH * 0.6, WIDTH * 0.3), layout="constrained")
    for axis, points, title in zip(axes, (before, after), ("before", "after"), strict=True):
        axis.add_patch(pyplot.Circle((0, 0), 1, fill=False, color="grey", lw=0.8))
        axis.plot(*points.T, "o", color=COLOURS[0], ms=4, alpha=0.7)
        axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[], title=title, aspect="equal")
    return figure


def likeness(backbone: Backbone, image: Tensor, place: tuple[int, int]) -> Tensor:
    """How alike the patches of a picture are to one of them: the cosine of their features, without the mean
    of the picture.

    Args:
        backbone: of the course, with a grid of patches.
        image: (3, h, w) in 0..1.
        place: row and column of the patch.

    Returns:
        (rows, columns), in -1 … 1.
    """
    with torch.no_grad():
        tokens = backbone.eval().forward_features(normalise(image[None]))[0, backbone.num_prefix_tokens :]
    rows, columns = (side // patch for side, patch in zip(image.shape[-2:], backbone.patch_size, strict=True))
    features = F.normalize(tokens - tokens.mean(dim=0), dim=1)
    return (features @ features[place[0] * columns + place[1]]).view(rows, columns)


def likenesses(
    backbones: Mapping[str, Backbone],
    image: Tensor,
    size: tuple[int, int],
    places: Sequence[tuple[int, int]],
) -> Figure:
    """A photograph, and how alike its patches are to a marked one, under several networks.

    Args:
        backbones: by name.
        image: (3, h, w) in 0..1, as it is shown.
        size: height and width at which the networks see it, multiples of their patches.
        places: rows and columns of the marked patches, one row of pictures for each.
    """
    seen = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    height, width = image.shape[-2:]
    columns = 1 + len(backbones)
    figure, axes = pyplot.subplots(
        len(places),
        columns,
        figsize=(0.8 * WIDTH, 0.8 * WIDTH / columns * height / width * len(places) + 0.3),
        squeeze=False,
        layout="constrained",
        dpi=80,
    )
    for row, place in enumerate(places):
        draw_image(axes[row, 0], image)
        for axis, (name, backbone) in zip(axes[row, 1:], backbones.items(), strict=True):
            cosines = likeness(backbone, seen, place)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(cosines, cmap="viridis", vmin=-1, vmax=1, extent=extent)
            side = height / len(cosines)
            if row == 0:
                axis.set_title(name, fontsize=10)
        for axis in axes[row]:
            x, y = (place[1] + 0.5) * side, (place[0] + 0.5) * side
            axis.plot(x, y, "x", color="black", ms=13, mew=5)  # below the white one: seen on any ground
            axis.plot(x, y, "x", color="white", ms=11, mew=2.5)
            axis.set(xticks=[], yticks=[])
    return figure
