"""Figures of lesson 08: what a teacher is worth, at what temperature, and where two tokens look."""

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..results import half_interval, paired
from .shared import COLOURS, WIDTH, draw_image

Rows = Sequence[Mapping]


def by_seed(rows: Rows, name: str, key: str = "accuracy") -> dict[int, float]:
    """The values in per cent of the rows of one name, by seed."""
    return {row["seed"]: 100 * row[key] for row in rows if row["name"] == name}


def values(rows: Rows, names: Sequence[str]) -> Figure:
    """Every seed's accuracy of some students, with mean and interval, beside those of their teachers."""
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 0.55 * len(names) + 0.9), layout="constrained")
    for place, name in enumerate(names):
        students = list(by_seed(rows, name).values())
        axis.errorbar(mean(students), place, xerr=half_interval(students), color=COLOURS[0], capsize=4, lw=2)
        axis.plot(students, [place] * len(students), "o", color=COLOURS[0], alpha=0.6)
        if any(row["name"] == name and "teacher_accuracy" in row for row in rows):
            teachers = list(by_seed(rows, name, "teacher_accuracy").values())
            axis.plot(teachers, [place + 0.25] * len(teachers), "D", color=COLOURS[1], ms=4)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="test accuracy in %", ylim=(len(names) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    return figure


def words(rows: Rows, names: Sequence[str]) -> str:
    """What `values` shows, in words."""
    parts = []
    for name in names:
        students = list(by_seed(rows, name).values())
        parts.append(f"{name}: {mean(students):.1f} ± {half_interval(students):.1f}")
    return f"Test accuracy in per cent, mean of five seeds and 95 % interval. {'; '.join(parts)}."


def differences(rows: Rows, changes: Sequence[tuple[str, str, str]]) -> Figure:
    """Paired differences of accuracy, one change a line.

    Args:
        rows: of the stored table.
        changes: the student before, the student after, and what changed, in words.
    """
    figure, axis = pyplot.subplots(figsize=(WIDTH * 0.8, 0.42 * len(changes) + 0.9), layout="constrained")
    for place, (before, after, _) in enumerate(changes):
        points = change_of(rows, before, after)
        axis.errorbar(mean(points), place, xerr=half_interval(points), color=COLOURS[0], capsize=4, lw=2)
        axis.plot(points, [place] * len(points), "o", color=COLOURS[0], alpha=0.6)
    axis.axvline(0, color="grey", lw=1)
    axis.set_yticks(range(len(changes)), [what for _, _, what in changes])
    axis.set(xlabel="change of test accuracy in points", ylim=(len(changes) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    return figure


def change_of(rows: Rows, before: str, after: str) -> list[float]:
    """The differences of accuracy between two students from the same seeds, in points."""
    first, second = by_seed(rows, before), by_seed(rows, after)
    return paired(list(first.values()), [second[seed] for seed in first])


def differences_in_words(rows: Rows, changes: Sequence[tuple[str, str, str]]) -> str:
    """What `differences` shows, in words."""
    parts = []
    for before, after, what in changes:
        points = change_of(rows, before, after)
        parts.append(f"{what}: {mean(points):+.1f} ± {half_interval(points):.1f}")
    return f"Change of test accuracy in points, mean of five seeds and 95 % interval. {'; '.join(parts)}."


def by_teacher(rows: Rows, teachers: Mapping[str, str]) -> Figure:
    """The accuracy of students against that of their teachers, all seeds.

    Args:
        rows: of the stored table.
        teachers: what each row's teacher is called.
    """
    figure, axis = pyplot.subplots(figsize=(5.6, 4.4), layout="constrained")
    for colour, (name, teacher) in enumerate(teachers.items()):
        students, of_teachers = by_seed(rows, name), by_seed(rows, name, "teacher_accuracy")
        axis.plot(
            [of_teachers[seed] for seed in students],
            list(students.values()),
            "oDs^v"[colour],
            color=COLOURS[colour],
            label=teacher,
        )
    ends = axis.get_xlim()
    axis.plot(ends, ends, color="grey", lw=1, ls=":")
    axis.set(xlabel="accuracy of the teacher in %", ylabel="accuracy of its student in %")
    axis.legend(frameon=False, loc="upper left")
    axis.grid(alpha=0.3)
    return figure


def by_teacher_in_words(rows: Rows, teachers: Mapping[str, str]) -> str:
    """What `by_teacher` shows, in words."""
    parts = []
    for name, teacher in teachers.items():
        students, of_teachers = by_seed(rows, name), by_seed(rows, name, "teacher_accuracy")
        means = mean(of_teachers.values()), mean(students.values())
        parts.append(f"{teacher}: teacher {means[0]:.1f}, student {means[1]:.1f}")
    return f"Accuracy of students against that of their teachers; means of five seeds. {'; '.join(parts)}."


def temperatures(logits: Tensor, names: Sequence[str], label: int) -> Figure:
    """A label, and a teacher's probabilities (classes,) at four temperatures, as bars."""
    shares = {"label": np.eye(len(names))[label]} | {
        f"teacher, T = {temperature}": (logits / temperature).softmax(dim=0).numpy()
        for temperature in (1, 2, 4, 100)
    }
    figure, axes = pyplot.subplots(1, 5, figsize=(WIDTH, 2.2), sharey=True, layout="constrained")
    for axis, (title, bars) in zip(axes, shares.items(), strict=True):
        axis.bar(names, bars, color=COLOURS[1 if title == "label" else 0])
        for place, share in enumerate(bars):
            axis.text(place, share + 0.02, f"{share:.2f}", ha="center", fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.15)
    axes[0].set_ylabel("share")
    return figure


def crops_and_shares(
    image: Tensor, corners: Sequence[tuple[int, int]], side: int, logits: Tensor, names: Sequence[str]
) -> Figure:
    """A photograph with outlined crops, and below what a teacher answers for each of them.

    Args:
        image: (c, h, w).
        corners: row and column of the top left pixel of each crop.
        side: of the crops in pixels.
        logits: (b, classes), one row for each crop.
        names: of the classes.
    """
    figure = pyplot.figure(figsize=(WIDTH * 0.75, 6.6), layout="constrained")
    above, *below = figure.subplot_mosaic(
        [["photo"] * len(corners), [f"crop {number}" for number in range(len(corners))]],
        height_ratios=[2.2, 1],
    ).values()
    draw_image(above, image)
    above.axis("off")
    for number, ((top, left), axis) in enumerate(zip(corners, below, strict=True)):
        box = Rectangle((left, top), side, side, fill=False, ec="white", lw=3)
        above.add_patch(box)
        above.text(
            left + side / 2,
            top + side / 2,
            "ABC"[number],
            color="white",
            fontsize=18,
            ha="center",
            va="center",
        )
        shares = logits[number].softmax(dim=0)
        best = shares.argsort(descending=True)[:3]
        axis.barh([names[index] for index in best], shares[best], color=COLOURS[0])
        axis.set(title=f"crop {'ABC'[number]}", xlim=(0, 1))
        axis.invert_yaxis()
    return figure


def shares_in_words(logits: Tensor, names: Sequence[str]) -> str:
    """What `crops_and_shares` shows, in words."""
    parts = []
    for number, shares in enumerate(logits.softmax(dim=1)):
        best = shares.argsort(descending=True)[:3].tolist()
        answers = ", ".join(f"{names[index]} {shares[index]:.1f}" for index in best)
        parts.append(f"crop {'ABC'[number]}: {answers}")
    return f"A cup of coffee with three outlined crops, and the teacher's answers. {'; '.join(parts)}."


def two_tokens(images: Tensor, weights: Tensor, grid: tuple[int, int]) -> Figure:
    """Images under the attention of the class token, above, and of the distillation token, below.

    Args:
        images: (b, c, h, w).
        weights: (b, 2, n), of the two tokens over the patches.
        grid: rows and columns of the patches.
    """
    b, _, height, width = images.shape
    figure, axes = pyplot.subplots(2, b, figsize=(WIDTH, 3.1), layout="constrained")
    for column in range(b):
        for row, name in enumerate(("class token", "distillation token")):
            axis, shares = axes[row, column], weights[column, row].view(grid)
            draw_image(axis, images[column])
            axis.imshow(
                shares / shares.max(),
                cmap="viridis",
                alpha=0.65,
                vmin=0,
                vmax=1,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
    return figure
