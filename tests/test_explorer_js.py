"""explorer.js under node sees what Python sees, and one table of cases holds both to the right answers."""

import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.browser import node_path
from support.explorer_models import EVERY_KIND, write_case

from vit_course.lab import explorer as package
from vit_course.lab.explorer.views import iou, keep_mass, moved, share_on, spread
from vit_course.lab.explorer.words import percent

HERE = Path(__file__).parent
TABLE = json.loads((HERE / "explorer_cases.json").read_text(encoding="utf-8"))


def numbers(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if value is None else float(value) for value in values])


def booleans(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


# For each section of the table the answer of Python to one of its lines, and the right one.
ANSWERS: dict[str, Callable[[dict], tuple[object, object]]] = {
    "keep_mass": lambda line: (keep_mass(numbers(line["values"]), line["keep"]).int().tolist(), line["kept"]),
    "iou": lambda line: (
        iou(booleans(line["kept"]), booleans(line["truth"]), tuple(line["grid"])),
        pytest.approx(line["iou"]),
    ),
    "share_on": lambda line: (
        share_on(numbers(line["values"]), booleans(line["truth"]), tuple(line["grid"])),
        pytest.approx(line["share"]),
    ),
    "spread": lambda line: (spread(numbers(line["weights"])), pytest.approx(line["bits"])),
    "moved": lambda line: (moved(line["token"], tuple(line["old"]), tuple(line["new"])), line["moved"]),
    "percent": lambda line: (percent(line["share"]), line["text"]),
}
LINES = [
    pytest.param(section, line, id=f"{section}: {line['name']}")
    for section, lines in TABLE.items()
    for line in lines
]


@pytest.mark.parametrize(("section", "line"), LINES)
def test_python_gives_the_tables_answers(section: str, line: dict) -> None:
    answer, wanted = ANSWERS[section](line)
    assert answer == wanted


def test_explorer_js_sees_what_python_sees_and_gives_the_tables_answers(tmp_path: Path) -> None:
    node = node_path()
    for name, make in EVERY_KIND.items():
        write_case(make(), tmp_path, name.replace(" ", "-"))
    environment = os.environ | {
        "EXPLORER_CASES": str(tmp_path),
        "EXPLORER_JS": str(Path(package.__file__).parent / "explorer.js"),
    }
    command = [node, "--test", str(HERE / "explorer.test.mjs")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"^# pass (\d+)", result.stdout, re.MULTILINE)[1]) >= len(EVERY_KIND) + 4 + len(
        LINES
    )
