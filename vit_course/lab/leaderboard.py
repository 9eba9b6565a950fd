"""The leaderboard: every model of the lessons on the same tasks, from stored measurements.

    leaderboard.show(highlight="CaiT")   # the whole table as one figure, with CaiT's row marked
    leaderboard.rows("shapes")           # its numbers
    leaderboard.costs()                  # parameters, operations, milliseconds and memory of each network

Four columns. All networks have about 240 thousand parameters and see pictures of 32 × 32 pixels; data, batch
and schedule are the same for all.

| column | what is learned |
|---|---|
| shapes | which of ten shapes stands in a scene of the default level; the same number of steps for all |
| shapes, equal time | the same in the same processor time: cheap models take more steps |
| digits | handwritten digits, enlarged; the same number of steps for all |
| reach | the colour of the cell opposite the marked one (`lab.data.reach`); the same number of steps |

`make results` computes the table; each row is a training from one seed.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure

from . import catalogue, pictures, results

CNN = "CNN"  # the one model on it that the catalogue does not hold
BASELINES = ("neighbours", "logistic regression")
TASKS = ("shapes", "shapes, equal time", "digits", "reach")
LONGER = "reach, long"  # not a column: one seed of a few models, with five times the steps
CHANCE = {"shapes": 0.1, "shapes, equal time": 0.1, "digits": 0.1, "reach": 0.25}


def models() -> tuple[str, ...]:
    """The names of the models on the leaderboard: those of the catalogue, then the CNN."""
    return (*(name for row in catalogue.MODELS.values() for name in row.entrants), CNN)


def rows(task: str) -> list[dict[str, Any]]:
    """What the models and the pixel baselines reached on one task.

    Args:
        task: one of TASKS, or LONGER.

    Returns:
        A dictionary for each of `models()`, then BASELINES, that is measured: its "name"; "accuracy" of each
        seed, in 0..1; their "mean" and "half" the width of its 95 % t interval (None for a single value);
        "steps" and "core_s", the mean process time of a training; for DeiT the mean "teacher_core_s", which
        is not in core_s.

    Raises:
        ValueError: for another task.
    """
    if task not in (*TASKS, LONGER):
        raise ValueError(f"there is no task {task!r}; there are {', '.join(map(repr, TASKS))}")
    stored = [row for row in results.load("leaderboard")["rows"] if row["recipe"]["task"] == task]
    if task == "shapes, equal time":  # the baselines are those of the same scenes
        stored += [
            row
            for row in results.load("leaderboard")["rows"]
            if row["recipe"]["task"] == "shapes" and row["name"] in BASELINES
        ]
    found = []
    for name in (*models(), *BASELINES):
        of_name = sorted((row for row in stored if row["name"] == name), key=lambda row: row["seed"])
        if not of_name:
            continue
        accuracy = [row["accuracy"] for row in of_name]
        numbers = {
            "name": name,
            "accuracy": accuracy,
            "mean": mean(accuracy),
            "half": results.half_interval(accuracy) if len(accuracy) > 1 else None,
            "steps": of_name[0]["recipe"].get("steps"),
            "core_s": mean(row["core_s"] for row in of_name),
        }
        if "teacher_core_s" in of_name[0]:
            numbers["teacher_core_s"] = mean(row["teacher_core_s"] for row in of_name)
        found.append(numbers)
    return found


def costs() -> dict[str, dict[str, float]]:
    """What each network takes, by its name.

    Returns:
        "parameters"; "flops" of one image, a multiplication and an addition being two; "ms", milliseconds of
        one image in a batch, one thread; "megabytes", the peak that training adds.
    """
    wanted = ("parameters", "flops", "ms", "megabytes")
    found = {
        row["name"]: {key: row[key] for key in wanted if key in row}
        for row in results.load("leaderboard")["rows"]
        if row["recipe"]["task"] == "cost"
    }
    return {name: found[name] for name in models() if name in found}


def figure(highlight: str | None = None) -> Figure:
    """The leaderboard as a figure: a column for each task, a row for each model.

    A point is one seed, a bar the interval of the mean, the dotted line what guessing reaches.

    Args:
        highlight: one of `models()` or BASELINES, whose row is marked; None for none.

    Raises:
        ValueError: for another name.
    """
    _check_name(highlight)
    names = (*models(), *BASELINES)
    drawing, axes = pyplot.subplots(
        1, len(TASKS), figsize=(pictures.WIDTH, 3.6), sharey=True, layout="compressed"
    )
    for axis, task in zip(axes, TASKS, strict=True):
        for row in rows(task):
            height = names.index(row["name"])
            is_marked = row["name"] == highlight
            colour = pictures.COLOURS[1] if is_marked else pictures.COLOURS[0]
            if row["half"]:
                ends = [max(0, row["mean"] - row["half"]), min(1, row["mean"] + row["half"])]
                axis.plot([100 * end for end in ends], [height] * 2, color=colour, lw=5, alpha=0.3)
            values = [100 * value for value in row["accuracy"]]
            axis.plot(values, [height] * len(values), "D" if is_marked else "o", ms=5, color=colour)
        axis.axvline(100 * CHANCE[task], color="0.4", linestyle=":", lw=1)
        if highlight:
            axis.axhspan(names.index(highlight) - 0.5, names.index(highlight) + 0.5, color="0.9", zorder=0)
        axis.axhline(len(models()) - 0.5, color="0.6", lw=0.8)
        axis.set(title=task, xlim=(0, 103), xlabel="accuracy in %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for label in axes[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == highlight else "normal")
    return drawing


def alt(highlight: str | None = None) -> str:
    """The leaderboard in words, made from its numbers.

    Args:
        highlight: the row that is said first, one of `models()` or BASELINES.
    """
    _check_name(highlight)
    lines = [
        "Leaderboard: accuracy on the test pictures in per cent, the mean over seeds, in brackets each seed"
        + (f"; the row of {highlight} is marked." if highlight else ".")
    ]
    for task in TASKS:
        entries = sorted(rows(task), key=lambda row: row["name"] != highlight)
        said = "; ".join(
            f"{row['name']} {100 * row['mean']:.1f}" + (f" ({_listed(row)})" if row["half"] else "")
            for row in entries
        )
        lines.append(
            f"{task[:1].upper()}{task[1:]} (chance {100 * CHANCE[task]:.0f}): {said or 'not measured'}."
        )
    return " ".join(lines)


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in row["accuracy"])


def show(highlight: str | None = None) -> None:
    """Show the leaderboard as one figure with a text alternative.

    Args:
        highlight: one of `models()` or BASELINES, whose row is marked; None for none.

    Raises:
        ValueError: for another name.
    """
    pictures.show(figure(highlight), alt(highlight))


def _check_name(highlight: str | None) -> None:
    names = (*models(), *BASELINES)
    if highlight is not None and highlight not in names:
        raise ValueError(f"there is no row {highlight!r}; there are {', '.join(map(repr, names))}")
