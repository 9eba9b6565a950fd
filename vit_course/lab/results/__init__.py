"""Stored measurements: the long accuracy tables that `make results` computes and the lessons plot.

    table = results.load("distillation")
    table["machine"], table["date"]
    for row in table["rows"]: row["name"], row["seed"], row["accuracy"], row["core_s"]

A table is a JSON file beside this module, so it is found wherever the package is installed.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist, stdev

import torch
from scipy.stats import t as student_t

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the tables that are stored."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict:
    """Read a stored table.

    Args:
        name: one of `names()`.

    Returns:
        A dictionary with "title", "date", "machine" and "rows"; each row is a dictionary of plain numbers and
        words.

    Raises:
        ValueError: if there is no such table, naming those there are, or if a number in it is not finite.
    """
    if name not in names():
        raise ValueError(f"there is no table {name!r}; there are {', '.join(map(repr, names())) or 'none'}")

    def refuse(number: str) -> None:
        raise ValueError(f"table {name!r} holds {number}, which is no measurement")

    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"), parse_constant=refuse)


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of a mean over seeds: t s / √n.

    Args:
        values: one for each seed, or one difference for each pair of runs from the same seed; at least two.

    Raises:
        ValueError: for fewer than two values, which say nothing about their spread.

    Source: "Student" 1908, The probable error of a mean.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    return float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: the true shares from which so many hits are not too unlikely.

    For one model on one test set. Unlike p ± 1.96 √(p (1 - p) / n) it never shrinks to nothing, and never
    leaves 0 … 1.

    Args:
        right: hits.
        count: trials, at least one.

    Returns:
        The lowest and the highest share.

    Raises:
        ValueError: for no trials, and for fewer than 0 or more than `count` hits.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if count < 1 or not 0 <= right <= count:
        raise ValueError(f"an interval needs 0 … n hits in n trials, at least one; got {right} in {count}")
    z, share = NormalDist().inv_cdf(0.975), right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """The differences of two rows of numbers, seed by seed.

    Args:
        before, after: one number for each seed, in the same order.

    Raises:
        ValueError: for rows of different lengths.
    """
    if len(before) != len(after):
        raise ValueError(f"pairs need as many numbers in both rows, got {len(before)} and {len(after)}")
    return [second - first for first, second in zip(before, after, strict=True)]


def describe_machine() -> dict[str, str]:
    """Describe what a measurement ran on.

    Returns:
        Processor, system, Python and PyTorch by name; nothing that names a host or a user.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():  # Linux, where platform.processor() says little
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }
