"""The tools work on machines whose text is not UTF-8, and in folders with spaces and letters beyond ASCII."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layout import ROOT

# Under LC_ALL=C, which Python is told to obey, a file is ASCII unless its reader says otherwise; CP1252, the
# encoding of Windows terminals, has no arrow.
OTHER_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
SOURCE = '%%#| export\ndef größer(x):\n    """x → größer · ≥"""\n    return x'


@pytest.fixture
def course(tmp_path, write_lesson) -> Path:
    """Return a clone with two small lessons, in a folder whose name is no plain word."""
    root = tmp_path / "Übung eins → zwei"
    for name in ("tools", "vit_course/lab"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "vit_course/__init__.py"):
        shutil.copy(ROOT / name, root / name)
    folder = root.relative_to(tmp_path) / "notebooks"
    write_lesson("00_start_here", "# 00 · Start → here", "%%print('→ ≥')", folder=folder)
    write_lesson("01_more", "# 01 · Größer", "%%#| default_exp more", SOURCE, folder=folder)
    return root


def run(root: Path, tool: str, *arguments: str) -> tuple[int, str]:
    """Run a tool of a clone in another locale, and return its exit status and all that it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONPATH")}
    result = subprocess.run(
        [sys.executable, f"tools/{tool}.py", *arguments],
        cwd=root,
        env=environment | OTHER_LOCALE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    text = result.stdout.decode("cp1252")
    assert "Traceback" not in text, text
    return result.returncode, text


def test_lessons_are_exported_and_differences_shown(course):
    assert run(course, "export")[0] == 0
    module = course / "vit_course" / "more.py"
    text = module.read_text(encoding="utf-8")
    assert "x → größer · ≥" in text
    assert run(course, "export", "--check") == (0, "Lessons and package agree.\n")

    module.write_text(text.replace("→", "⇒"), encoding="utf-8")
    status, shown = run(course, "export", "--check")
    assert status == 1 and r"x \u2192 größer" in shown and r"x \u21d2 größer" in shown


def test_a_lesson_that_cannot_be_exported_is_named(course):
    lesson = course / "notebooks" / "01_more.ipynb"
    lesson.write_text(lesson.read_text(encoding="utf-8").replace("#| export", "#| exp→ört"), encoding="utf-8")
    status, shown = run(course, "export")
    assert status == 1 and r"unknown directive '#| exp\u2192ört'" in shown


def test_faults_of_lessons_are_listed(course):
    status, shown = run(course, "notebook_lint")
    assert status == 1 and r"no output is stored: " + '"' + r"print('\u2192 \u2265')" in shown


@pytest.mark.slow
def test_a_lesson_is_edited_and_built(course):
    status, shown = run(course, "author", "edit", "00")
    assert status == 0, shown
    view = course / "notebooks" / "00_start_here.py"
    assert "print('→ ≥')" in view.read_text(encoding="utf-8")
    status, shown = run(course, "author", "build", "00")
    assert status == 0, shown
    assert "→ ≥\\n" in (course / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")


def test_a_skeleton_is_written(course):
    status, shown = run(course, "author", "new", "02_mine")
    assert status == 0, shown
    assert "# # 02 · Mine" in (course / "notebooks" / "02_mine.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_lesson_is_run_and_its_page_written(course):
    status, shown = run(course, "execute", "00")
    assert status == 0, shown
    status, shown = run(course, "page", "00")
    assert status == 0, shown
    assert "Start → here" in (course / "build" / "pages" / "00_start_here.html").read_text(encoding="utf-8")


def test_a_learner_gets_copies(course):
    status, shown = run(course, "workspace")
    assert status == 0, shown
    assert (course / "work" / "01_more.ipynb").exists()
