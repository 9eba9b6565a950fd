"""Stored measurements: the long accuracy tables that `make results` computes and the lessons plot.

    table = results.load("shapes_default")
    table["machine"], table["date"]
    for row in table["rows"]: row["name"], row["seed"], row["accuracy"], row["core_s"]

A table is a JSON file beside this module, so it is found wherever the package is installed.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the tables that are stored. Used in lesson 04."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict:
    """A stored table: a dictionary with "title", "date", "machine" and "rows", each row a dictionary of plain numbers and words.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if there is no such table; the sentence names those there are.

    Used from lesson 04 on.
    """
    if name not in names():
        raise ValueError(f"there is no table {name!r}; there are {', '.join(map(repr, names())) or 'none'}")
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def describe_machine() -> dict[str, str]:
    """What a measurement should be read with: processor, Python and PyTorch; no names of hosts or users. Used by `benchmarks/`."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():  # Linux, where platform.processor() says little
        cpu = next(
            (
                line.split(":", 1)[1].strip()
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    return {
        "cpu": cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }
