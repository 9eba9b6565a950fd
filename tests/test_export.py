"""The lessons are the only source of the package: what they make is what is there, once, and imports point one way."""

from pathlib import Path

import pytest
from export import ExportError, differences, export, module_source
from lessons import ROOT
from structure import copies, wrong_arrows

BLOCK = '''#| export
import torch
from torch import nn


class Block(nn.Module):
    """A block. Built in lesson 01."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.linear(self.norm(x)) * torch.ones(1)
'''


def test_lessons_and_package_agree():
    assert differences(ROOT / "notebooks", ROOT / "vit_course") == []


def test_later_lessons_import_and_never_copy():
    assert copies(ROOT / "notebooks", ROOT / "vit_course") == []


def test_imports_point_to_earlier_lessons_only():
    assert wrong_arrows(ROOT / "notebooks", ROOT / "vit_course") == []


@pytest.fixture
def course(tmp_path, write_lesson):
    """Gives the folders of a course with one lesson, exported and in agreement."""
    write_lesson(
        "01_block", "# 01 · The block\n\n**What is\na block?**", "%%#| default_exp block", f"%%{BLOCK}"
    )
    notebooks, package = tmp_path / "notebooks", tmp_path / "vit_course"
    (package / "lab").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert export(notebooks, package) == ["block.py"]
    assert problems(notebooks, package) == []
    return notebooks, package


def problems(notebooks: Path, package: Path) -> list[str]:
    return differences(notebooks, package) + copies(notebooks, package) + wrong_arrows(notebooks, package)


def test_a_module_reads_like_one_written_by_hand(write_lesson):
    path = write_lesson(
        "02_pair",
        "# 02 · Pairs\n\n**Why two?**",
        "%%#| default_exp pair",
        "%%#| export\nimport torch\nfrom torch import nn\nSIZE = 2\ndef pair(x): return torch.stack([x, x])",
        "%%print('not exported')",
        "%%#| export\nimport math\nfrom torch import Tensor, nn\ndef _hidden(x: Tensor): return nn.Linear(math.gcd(4, 2), SIZE)(x)",
    )
    assert (
        module_source(path)
        == '''"""Pairs.

Why two?

Made from notebooks/02_pair.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["SIZE", "pair"]

SIZE = 2


def pair(x):
    return torch.stack([x, x])


def _hidden(x: Tensor):
    return nn.Linear(math.gcd(4, 2), SIZE)(x)
'''
    )


def test_exporting_again_changes_nothing(course):
    assert export(*course) == []


def test_an_edited_module_is_found(course):
    notebooks, package = course
    module = package / "block.py"
    module.write_text(module.read_text().replace("eps=1e-6", "eps=1e-5"))
    (diff,) = differences(notebooks, package)
    assert "-        self.norm = nn.LayerNorm(dim, eps=1e-5)" in diff
    assert "+        self.norm = nn.LayerNorm(dim, eps=1e-6)" in diff


def test_a_missing_module_is_found(course):
    notebooks, package = course
    (package / "block.py").unlink()
    assert len(differences(notebooks, package)) == 1


def test_a_lost_last_line_end_is_found(course):
    notebooks, package = course
    (package / "block.py").write_text((package / "block.py").read_text().rstrip("\n"))
    assert "line end" in differences(notebooks, package)[0]


@pytest.mark.parametrize("act", [differences, export])
def test_an_orphan_module_is_found(course, act):
    notebooks, package = course
    (package / "old_block.py").write_text("x = 1\n")
    try:
        message = "\n".join(act(notebooks, package))
    except ExportError as error:
        message = str(error)
    assert "vit_course/old_block.py is made by no lesson" in message


def test_two_lessons_for_one_module_are_found(course, write_lesson):
    write_lesson("02_again", "%%#| default_exp block", "%%#| export\ndef other(): pass")
    before = (course[1] / "block.py").read_text()
    assert "01_block.ipynb and 02_again.ipynb both name the module 'block'" in differences(*course)[0]
    with pytest.raises(ExportError, match="both name"):
        export(*course)
    assert (course[1] / "block.py").read_text() == before


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["%%#| default_exp two", "%%#| exprot\ndef f(): pass"], "unknown directive '#| exprot'"),
        (["%%#| export\ndef f(): pass"], "no '#| default_exp NAME'"),
        (["%%#| default_exp two\n#| default_exp three"], "names 2 modules: two, three"),
        (["%%#| default_exp two words"], "'two words' is not a name"),
        (
            ["%%#| default_exp two", "%%import torch", "%%#| export\ndef f(): return torch.ones(1)"],
            "Undefined name `torch`",
        ),
        (["%%#| default_exp two", "%%#| export\nimport math"], "`math` imported but unused"),
        (["%%#| default_exp two", "%%#| export\n!pip list"], "not plain Python"),
    ],
)
def test_a_lesson_that_makes_no_whole_module_is_found(course, write_lesson, cells, message):
    write_lesson("02_two", *cells)
    assert message in differences(*course)[0]


def test_the_same_name_exported_again_is_found(course, write_lesson):
    write_lesson("02_two", "%%#| default_exp two", "%%#| export\nclass Block:\n    pass")
    assert copies(*course) == ["02_two.ipynb exports Block again: import it from vit_course.block"]


def test_a_copied_class_is_found_in_a_later_lesson_whatever_its_name(course, write_lesson):
    copied = BLOCK.removeprefix("#| export").replace("class Block", "class Mine").replace("A block.", "Mine.")
    write_lesson("02_two", "%%%matplotlib inline", f"%%{copied}")
    assert copies(*course) == ["02_two.ipynb copies Block of 01_block.ipynb: import it from vit_course.block"]


def test_a_copied_class_is_found_in_the_lab(course):
    (course[1] / "lab" / "checks.py").write_text(BLOCK)
    assert copies(*course) == [
        "vit_course/lab/checks.py copies Block of 01_block.ipynb: import it from vit_course.block"
    ]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("from vit_course.block import Block", True),
        ("from vit_course import block", True),
        ("from collections.abc import Callable", True),
        ("from torchvision import ops", True),
        ("from vit_course.three import Three", False),
        ("from vit_course.lab import data", False),
        ("from vit_course.two import two", False),
        ("import numpy as np", False),
        ("from .block import Block", False),
    ],
)
def test_only_imports_of_earlier_lessons_and_torch_are_allowed(course, write_lesson, line, allowed):
    write_lesson("02_two", "%%#| default_exp two", f"%%#| export\ndef two():\n    {line}")
    write_lesson("03_three", "%%#| default_exp three", "%%#| export\nclass Three: pass")
    assert (wrong_arrows(*course) == []) == allowed
