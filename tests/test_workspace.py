"""The learner's copies: made once, never touched again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from layout import ROOT
from support.links import link
from workspace import answer_news, copy_missing, fresh_copy, outdated


@pytest.fixture
def folders(tmp_path, write_lesson):
    write_lesson("00_start_here", "# Start")
    write_lesson("02_attention", "# Attention")
    write_lesson("02_attention", "# Solved", folder="notebooks/solutions")
    write_lesson("notes", "# no lesson")
    return tmp_path / "notebooks", tmp_path / "work"


def names(work):
    return sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())


def test_lessons_and_solutions_are_copied(folders):
    notebooks, work = folders
    copy_missing(notebooks, work)
    assert names(work) == ["00_start_here.ipynb", "02_attention.ipynb", "solutions/02_attention.ipynb"]
    assert (work / "02_attention.ipynb").read_bytes() == (notebooks / "02_attention.ipynb").read_bytes()


def test_a_copy_that_exists_is_never_touched(folders):
    notebooks, work = folders
    copy_missing(notebooks, work)
    (work / "02_attention.ipynb").write_text("my answer", encoding="utf-8")
    (work / "00_start_here.ipynb").unlink()
    assert copy_missing(notebooks, work) == [work / "00_start_here.ipynb"]
    assert (work / "02_attention.ipynb").read_text(encoding="utf-8") == "my answer"


def test_an_interrupted_copy_is_no_copy(folders):
    notebooks, work = folders
    work.mkdir()
    (work / ".02_attention.ipynb.part").write_text("half", encoding="utf-8")
    copy_missing(notebooks, work)
    assert (work / "02_attention.ipynb").read_bytes() == (notebooks / "02_attention.ipynb").read_bytes()
    assert names(work) == ["00_start_here.ipynb", "02_attention.ipynb", "solutions/02_attention.ipynb"]


def test_fresh_copies_stand_beside_the_old_ones(folders):
    notebooks, work = folders
    copy_missing(notebooks, work)
    (work / "02_attention.ipynb").write_text("my answer", encoding="utf-8")
    fresh = [
        fresh_copy(lesson, notebooks, work).name
        for lesson in ("02", "02_attention", "notebooks/02_attention.ipynb")
    ]
    assert fresh == ["02_attention.fresh.ipynb", "02_attention.fresh2.ipynb", "02_attention.fresh3.ipynb"]
    assert fresh_copy("solutions/02", notebooks, work) == work / "solutions" / "02_attention.fresh.ipynb"
    assert (work / "02_attention.ipynb").read_text(encoding="utf-8") == "my answer"


def test_a_fresh_copy_of_a_lesson_without_one_has_its_plain_name(folders):
    assert fresh_copy("02", *folders).name == "02_attention.ipynb"


@pytest.mark.parametrize("lesson", ["7", "attention", "", "2"])
def test_an_unknown_lesson_is_answered_with_the_lessons_there_are(folders, lesson):
    with pytest.raises(
        ValueError, match=f"no lesson is called '{lesson}'; the lessons are: 00_start_here, 02_attention"
    ):
        fresh_copy(lesson, *folders)
    assert not folders[1].exists()


def test_no_lessons_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no lessons"):
        copy_missing(tmp_path, tmp_path / "work")


@pytest.mark.parametrize("place", ["work", "work/solutions"])
def test_a_file_in_place_of_a_folder_is_named_and_nothing_is_copied(folders, place):
    notebooks, work = folders
    file = work.parent / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine", encoding="utf-8")
    for attempt in (
        lambda: copy_missing(notebooks, work),
        lambda: fresh_copy("solutions/02", notebooks, work),
    ):
        with pytest.raises(NotADirectoryError, match=f"{re.escape(str(file))} is a file: rename it"):
            attempt()
    assert file.read_text(encoding="utf-8") == "mine" and names(work) in ([], ["solutions"])


def test_a_link_to_a_folder_serves_and_one_to_nowhere_is_named(folders, tmp_path):
    notebooks, work = folders
    link(work, tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="work is a link that leads nowhere"):
        copy_missing(notebooks, work)
    (tmp_path / "elsewhere").mkdir()
    assert len(copy_missing(notebooks, work)) == 3
    assert names(tmp_path / "elsewhere") == names(work) and work.is_symlink()


def test_a_copy_that_is_a_link_is_never_touched(folders, tmp_path):
    notebooks, work = folders
    work.mkdir()
    link(work / "02_attention.ipynb", tmp_path / "on a stick that is not here.ipynb")
    assert work / "02_attention.ipynb" not in copy_missing(notebooks, work)
    assert fresh_copy("02", notebooks, work).name == "02_attention.fresh.ipynb"
    assert (work / "02_attention.ipynb").is_symlink()


def test_the_command_line_says_in_a_sentence_that_work_is_a_file(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=lambda *_: ["solutions"])
    (tmp_path / "work").write_text("mine", encoding="utf-8")
    for arguments in ([], ["--fresh", "02"]):
        result = subprocess.run(
            [sys.executable, str(tmp_path / "tools" / "workspace.py"), *arguments],
            capture_output=True,
            encoding="utf-8",
        )
        assert result.returncode == 1 and result.stderr.startswith("the copies go into the folder")
        assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "work").read_text(encoding="utf-8") == "mine"


def test_the_command_line_answers_in_a_sentence():
    result = subprocess.run(
        [sys.executable, "tools/workspace.py", "--fresh", "77"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert (
        result.returncode == 1
        and result.stderr.startswith("no lesson is called '77'")
        and "Traceback" not in result.stderr
    )


def rewrite(path: Path, keep: int) -> None:
    """Give a notebook four cells, of which so many keep their ids."""
    notebook = nbformat.read(path, as_version=4)
    cells = [nbformat.v4.new_markdown_cell("new", id=f"new{number}") for number in range(4 - keep)]
    notebook.cells = notebook.cells[:keep] + cells
    nbformat.write(notebook, path)


@pytest.fixture
def four_cells(folders) -> tuple[Path, Path]:
    """A course whose lesson 02 has four cells, and a learner's copy of it."""
    notebooks, work = folders
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("old") for _ in range(4)])
    nbformat.write(notebook, notebooks / "02_attention.ipynb")
    copy_missing(notebooks, work)
    return notebooks, work


def test_copies_of_an_earlier_edition_are_named(four_cells):
    notebooks, work = four_cells
    assert outdated(notebooks, work) == []
    rewrite(notebooks / "02_attention.ipynb", keep=2)
    assert outdated(notebooks, work) == []
    rewrite(notebooks / "02_attention.ipynb", keep=1)
    assert outdated(notebooks, work) == [work / "02_attention.ipynb"]


def test_an_answered_copy_is_of_this_edition(four_cells):
    notebooks, work = four_cells
    copied = nbformat.read(work / "02_attention.ipynb", as_version=4)
    for cell in copied.cells:
        cell.source = "my answer"
    nbformat.write(copied, work / "02_attention.ipynb")
    assert outdated(notebooks, work) == []


@pytest.mark.parametrize("text", ["my answer", "{}", '{"cells": 3}', '{"nbformat": 4, "cells": [{}]}'])
def test_a_copy_that_is_no_notebook_is_not_judged(folders, text):
    notebooks, work = folders
    copy_missing(notebooks, work)
    (work / "02_attention.ipynb").write_text(text, encoding="utf-8")
    assert outdated(notebooks, work) == []


def test_jupyterlab_does_not_ask_about_news_and_keeps_settings_that_are_there(tmp_path):
    settings = tmp_path / "settings" / "overrides.json"
    answer_news(settings)
    answers = json.loads(settings.read_text(encoding="utf-8"))
    assert answers == {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    settings.write_text("{}", encoding="utf-8")
    answer_news(settings)
    assert settings.read_text(encoding="utf-8") == "{}"
