"""The lessons are the only source of the package: what they make is there once, and imports point one way."""

from pathlib import Path

import pytest
from export import ExportError, differences, export, module_source
from layout import ROOT
from structure import copies, eager_imports, wrong_arrows

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


def test_lessons_import_the_progress_bar_where_it_is_drawn():
    assert eager_imports(ROOT / "notebooks", ROOT / "vit_course") == []


@pytest.fixture
def course(tmp_path, write_lesson):
    """Return the folders of a course with one lesson, exported and in agreement."""
    opening = "# 01 · The block\n\n**What is\na block?**"
    write_lesson("01_block", opening, "%%#| default_exp block", f"%%{BLOCK}")
    notebooks, package = tmp_path / "notebooks", tmp_path / "vit_course"
    (package / "lab").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    assert export(notebooks, package) == ["block.py"]
    assert problems(notebooks, package) == []
    return notebooks, package


def problems(notebooks: Path, package: Path) -> list[str]:
    """List what all guards find."""
    return differences(notebooks, package) + copies(notebooks, package) + wrong_arrows(notebooks, package)


def test_a_module_reads_like_one_written_by_hand(write_lesson):
    path = write_lesson(
        "02_pair",
        "# 02 · Pairs\n\n**Why two?**",
        "%%#| default_exp pair",
        "%%#| export\nimport torch\nfrom torch import nn\nSIZE = 2\ndef pair(x): return torch.stack([x, x])",
        "%%print('not exported')",
        "%%#| export\nimport math\nfrom torch import Tensor, nn\n"
        "def _hidden(x: Tensor): return nn.Linear(math.gcd(4, 2), SIZE)(x)",
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
    text = module.read_text(encoding="utf-8")
    module.write_text(text.replace("eps=1e-6", "eps=1e-5"), encoding="utf-8")
    (diff,) = differences(notebooks, package)
    assert "-        self.norm = nn.LayerNorm(dim, eps=1e-5)" in diff
    assert "+        self.norm = nn.LayerNorm(dim, eps=1e-6)" in diff


def test_a_missing_module_is_found(course):
    notebooks, package = course
    (package / "block.py").unlink()
    assert len(differences(notebooks, package)) == 1


def test_a_lost_last_line_end_is_found(course):
    notebooks, package = course
    module = package / "block.py"
    module.write_text(module.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    assert "line end" in differences(notebooks, package)[0]


@pytest.mark.parametrize("act", [differences, export])
@pytest.mark.parametrize("name", ["old_block.py", "atlas/old_family.py", "atlas/cli.py"])
def test_an_orphan_module_is_found(course, act, name):
    notebooks, package = course
    (package / "atlas").mkdir()
    (package / name).write_text("x = 1\n", encoding="utf-8")
    try:
        message = "\n".join(act(notebooks, package))
    except ExportError as error:
        message = str(error)
    assert f"vit_course/{name} is made by no lesson" in message


@pytest.mark.parametrize("name", ["cli.py", "__main__.py", "lab/data/scenes.py"])
def test_hand_written_code_is_no_orphan(course, name):
    notebooks, package = course
    (package / name).parent.mkdir(parents=True, exist_ok=True)
    (package / name).write_text("x = 1\n", encoding="utf-8")
    assert problems(notebooks, package) == []


def test_a_lesson_of_the_atlas_makes_a_module_in_the_sub_package(course, write_lesson):
    notebooks, package = course
    path = write_lesson(
        "a1_deeper",
        "# a1 · Deeper\n\n**How deep?**",
        "%%#| default_exp atlas.deeper",
        '%%#| export\ndef deeper(x):\n    """Goes deeper."""\n    return x',
        folder="notebooks/atlas",
    )
    assert export(notebooks, package) == ["atlas/__init__.py", "atlas/deeper.py"]
    assert problems(notebooks, package) == []
    text = (package / "atlas" / "deeper.py").read_text(encoding="utf-8")
    assert text.startswith('"""Deeper.\n\nHow deep?\n\nMade from notebooks/atlas/a1_deeper.ipynb by')
    assert '    """Goes deeper.\n\n    Built in lesson a1.\n    """\n' in text

    path.unlink()
    assert [fault.split(" is made")[0] for fault in differences(notebooks, package)] == [
        "vit_course/atlas/__init__.py",
        "vit_course/atlas/deeper.py",
    ]


ORIGINS = {
    "one line": (
        '"""A block."""',
        '"""A block.\n\n    Built in lesson 02.\n    """',
    ),
    "several lines": (
        '"""A block.\n\n    Raises:\n        ValueError: Never.\n    """',
        '"""A block.\n\n    Raises:\n        ValueError: Never.\n\n    Built in lesson 02.\n    """',
    ),
    "a sentence that was typed": (
        '"""A block. Built in lesson 01."""',
        '"""A block.\n\n    Built in lesson 02.\n    """',
    ),
    "a sentence that was typed and filled": (
        '"""A block.\n\n    It is a block. Built in lesson\n    02.\n    """',
        '"""A block.\n\n    It is a block.\n\n    Built in lesson 02.\n    """',
    ),
    "letters beyond ASCII": (
        'r"""Ein Block, \\sqrt{d} · größer."""',
        'r"""Ein Block, \\sqrt{d} · größer.\n\n    Built in lesson 02.\n    """',
    ),
}


@pytest.mark.parametrize("form", ORIGINS)
@pytest.mark.parametrize("head", ["def block(x):", "async def block(x):", "class Block:"])
def test_a_docstring_ends_with_the_lesson_that_builds_it(write_lesson, form, head):
    typed, exported = ORIGINS[form]
    path = write_lesson("02_two", "%%#| default_exp two", f"%%#| export\n{head}\n    {typed}\n    x = 1")
    assert f"{head}\n    {exported}\n" in module_source(path)


def test_what_is_private_or_inside_says_no_lesson(write_lesson):
    cell = """%%#| export
def _hidden(x):
    \"\"\"Helps.\"\"\"


class Block:
    def forward(self, x):
        \"\"\"Does it.\"\"\"
"""
    assert "Built in" not in module_source(write_lesson("02_two", "%%#| default_exp two", cell))


def test_a_docstring_that_cannot_be_ended_is_refused(write_lesson):
    path = write_lesson("02_two", "%%#| default_exp two", "%%#| export\ndef f(x):\n    'Text'")
    with pytest.raises(ExportError, match="02_two.ipynb: the docstring of f is not in triple double quotes"):
        module_source(path)


def test_two_lessons_for_one_module_are_found(course, write_lesson):
    write_lesson("02_again", "%%#| default_exp block", "%%#| export\ndef other(): pass")
    before = (course[1] / "block.py").read_text(encoding="utf-8")
    assert "01_block.ipynb and 02_again.ipynb both name the module 'block'" in differences(*course)[0]
    with pytest.raises(ExportError, match="both name"):
        export(*course)
    assert (course[1] / "block.py").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["%%#| default_exp two", "%%#| exports\ndef f(): pass"], "unknown directive '#| exports'"),
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


def test_a_solution_may_be_the_function_of_the_package(course):
    solution = "from vit_course.block import Block\n\nSOLUTION = Block\n"
    (course[1] / "lab" / "checks.py").write_text(solution, encoding="utf-8")
    assert copies(*course) == []


def test_a_copied_class_is_found_in_the_lab(course):
    (course[1] / "lab" / "checks.py").write_text(BLOCK, encoding="utf-8")
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


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("from vit_course.block import Block", ""),
        ("from vit_course.atlas.tokens import Tokens", "never on another family"),
        ("from vit_course.atlas import tokens", "never on another family"),
        ("from vit_course import atlas", "never on another family"),
        ("from .tokens import Tokens", "it needs nothing but"),
        ("from vit_course.lab import data", "never on another family"),
    ],
)
def test_the_atlas_imports_lessons_and_no_other_family(course, write_lesson, line, fault):
    write_lesson("a1_tokens", "%%#| default_exp atlas.tokens", folder="notebooks/atlas")
    write_lesson(
        "a2_fewer",
        "%%#| default_exp atlas.fewer",
        f"%%#| export\ndef fewer():\n    {line}",
        folder="notebooks/atlas",
    )
    found = wrong_arrows(*course)
    assert len(found) == (1 if fault else 0)
    assert all(fault in sentence for sentence in found)


def test_a_lesson_of_the_course_does_not_import_the_atlas(course, write_lesson):
    write_lesson("02_two", "%%#| default_exp two", "%%#| export\nfrom vit_course.atlas import tokens")
    write_lesson("a1_tokens", "%%#| default_exp atlas.tokens", folder="notebooks/atlas")
    (fault,) = wrong_arrows(*course)
    assert fault == "vit_course.two imports vit_course.atlas: a lesson builds on earlier lessons only"


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("vit", "from huggingface_hub import PyTorchModelHubMixin", True),
        ("max_vit", "from huggingface_hub import PyTorchModelHubMixin", True),
        ("cait", "from huggingface_hub import PyTorchModelHubMixin", False),
        ("training", "def fit():\n    from tqdm import tqdm", True),
        ("training", "class Bar:\n    def show(self):\n        from tqdm import tqdm", True),
        ("cait", "def fit():\n    from tqdm import tqdm", False),
    ],
)
def test_the_hub_and_the_progress_bar_have_their_places(course, write_lesson, module, source, allowed):
    write_lesson(f"02_{module}", f"%%#| default_exp {module}", f"%%#| export\n{source}")
    assert (wrong_arrows(*course) == []) == allowed


@pytest.mark.parametrize(
    ("source", "eager"),
    [
        ("from tqdm import tqdm", True),
        ("if True:\n    import tqdm.auto", True),
        ("class Bar:\n    from tqdm import tqdm", True),
        ("def fit():\n    from tqdm import tqdm", False),
        ("class Bar:\n    def show(self):\n        from tqdm import tqdm", False),
    ],
)
def test_the_progress_bar_is_imported_where_it_is_drawn(course, write_lesson, source, eager):
    write_lesson("02_training", "%%#| default_exp training", f"%%#| export\n{source}")
    assert len(eager_imports(*course)) == (1 if eager else 0)
