"""Tables of measurements that are stored row by row: what all stored tables of the course share.

A row is one training or one measurement with its recipe: all that its numbers depend on but the seed. It is
stored as soon as it is there, and one that is stored is not computed again unless its recipe has changed.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tqdm import tqdm

from vit_course.lab import results
from vit_course.lab.data import LEVELS, ImageSet, digits, photos, reach, shapes

# What recipes are chosen on, and what the tables are measured on: scenes that no choice has seen.
CHOSEN, UNSEEN = 0, 1


class Task(Protocol):
    """One row of a table, before it is computed: a frozen dataclass."""

    @property
    def data(self) -> str: ...

    @property
    def name(self) -> str: ...

    def run(self, seed: int) -> dict[str, float]: ...


@cache
def image_sets(data: str, validation: bool = False) -> tuple[ImageSet, ImageSet]:
    """Images to train on and to test on.

    Args:
        data: 'digits' (enlarged to 32 × 32 pixels and three channels, so that the networks for scenes take
            them), 'photos', 'reach' or a level of `shapes`.
        validation: test on other images, which serve to choose a recipe; of the digits they are a quarter of
            the training images, not trained on then.
    """
    if data == "digits":
        train, test = (_as_scenes(digits(split)) for split in ("train", "test"))
        return (train[360:], train[:360]) if validation else (train, test)
    seed = CHOSEN if validation else UNSEEN
    if data == "photos":
        return photos("train"), photos("test", seed=seed)
    if data == "reach":
        return reach("train"), reach("test", seed=seed)
    return shapes(data, "train"), shapes(data, "test", seed=seed)


def _as_scenes(images: ImageSet) -> ImageSet:
    larger = F.interpolate(images.images, size=32, mode="bilinear", antialias=False)
    return ImageSet(larger.repeat(1, 3, 1, 1), images.labels, images.classes)


@dataclass(frozen=True)
class Table:
    """A stored table: `several` rows are computed for each of the seeds, `single` ones for seed 0 only."""

    title: str
    several: tuple[Task, ...] = ()
    single: tuple[Task, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)

    def jobs(self, seeds: Sequence[int]) -> list[tuple[Task, int]]:
        return [(task, 0) for task in self.single] + [(task, seed) for seed in seeds for task in self.several]


def recipe(task: Task) -> dict:
    """All that a row depends on, in plain numbers and words.

    With scenes go the numbers of their level and the seed of the test scenes.
    """
    scenes: dict[str, Any] = {"test_seed": UNSEEN} if task.data in (*LEVELS, "reach") else {}
    if task.data in LEVELS:
        scenes["level"] = asdict(LEVELS[task.data])
    return json.loads(json.dumps(asdict(task) | scenes))  # as it comes back from a file: lists for tuples


def read_rows(path: Path) -> list[dict]:
    """The rows of a stored table, none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def write(path: Path, title: str, rows: list[dict]) -> None:
    """Write a table to a temporary name, then move it: the lessons see the old table or the new one."""
    table = {
        "title": title,
        "date": date.today().isoformat(),
        "machine": results.describe_machine(),
        "rows": rows,
    }
    temporary = path.with_suffix(".part")
    text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def make(table: Table, path: Path, seeds: Sequence[int] = (0, 1, 2), fresh: bool = False) -> None:
    """Bring a stored table up to date: compute the rows that it lacks, forget those of other recipes.

    Args:
        table: what rows there should be.
        path: of the stored table; every row is stored as soon as it is there.
        seeds: of the rows that have several.
        fresh: whether to forget all rows first.
    """
    jobs = [(task, recipe(task), seed) for task, seed in table.jobs(seeds)]
    recipes = [of_job for _, of_job, _ in jobs]
    rows = [] if fresh else [row for row in read_rows(path) if row["recipe"] in recipes]
    missing = [job for job in jobs if not any((row["recipe"], row["seed"]) == job[1:] for row in rows)]
    for task, of_job, seed in tqdm(missing, desc=path.stem):
        numbers = {key: round(value, 4) for key, value in task.run(seed).items()}
        rows.append({"name": task.name, "seed": seed, **numbers, "recipe": of_job})
        write(path, table.title, rows)


def command(table: Table, name: str, seeds: Sequence[int], description: str) -> None:
    """The command line of a script that makes one table.

    Args:
        table: what rows there should be.
        name: of the stored table.
        seeds: of the rows that have several, unless the command names others.
        description: what --help says.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(table, results.FOLDER / f"{name}.json", options.seeds, options.fresh)
    print(summary(name))


def summary(name: str) -> str:
    """A stored table in lines: the mean of the seeds, each of them, and what one run costs."""
    table = results.load(name)
    groups: dict[str, list[dict]] = {}
    for row in table["rows"]:
        groups.setdefault(json.dumps(row["recipe"]), []).append(row)
    lines = [f"{table['title']} ({table['date']}, {table['machine']['cpu']})"]
    for rows in groups.values():
        of_rows = rows[0]["recipe"]
        details = [
            of_rows.get("task") or of_rows["data"],
            *(
                f"{of_rows[key]:,} {key}"
                for key in ("steps", "images", "labels", "pretraining")
                if of_rows.get(key)
            ),
        ]
        if "accuracy" not in rows[0]:
            continue
        scores = [100 * row["accuracy"] for row in rows]
        seeds = ", ".join(f"{score:.1f}" for score in scores)
        price = mean(row["core_s"] for row in rows)
        what = f"{rows[0]['name']} ({', '.join(details)})"
        lines.append(f"  {mean(scores):5.1f} %  {what}  [{seeds}]  {price:.1f} core-s")
    return "\n".join(lines)
