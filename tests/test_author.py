"""How a lesson is written: as text, to a notebook and back, and from a skeleton."""

import re

import nbformat
import pytest
from author import build, edit, new
from execute import ExecutionError
from export import module_source
from notebook_lint import lint


def replace(view, old: str, new: str) -> None:
    """Edit a view like an author."""
    view.write_text(view.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


@pytest.fixture
def lesson(write_lesson):
    """Return a lesson with an ignored output and a folded cell."""
    path = write_lesson("01_text", "# Title", "%%x = 1", "Text", "%%print(x)", "%%y = 1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].metadata = IGNORED
    notebook.cells[4].metadata = FOLDED
    nbformat.write(notebook, path)
    return path


IGNORED = nbformat.from_dict({"tags": ["nbval-ignore-output"]})
FOLDED = nbformat.from_dict({"tags": ["hide-input"], "jupyter": {"source_hidden": True}})


@pytest.mark.slow
def test_a_lesson_goes_to_text_and_back(lesson):
    view = edit("01", lesson.parent)
    replace(view, "x = 1", "x = 1+1  # größer")
    assert build("01", lesson.parent) == lesson
    cells = nbformat.read(lesson, as_version=4).cells
    assert [cell.id for cell in cells] == [f"cell-{position}" for position in range(5)]
    assert cells[1].source == "x = 1 + 1  # größer"
    assert [cell.metadata for cell in cells] == [{}, {}, {}, IGNORED, FOLDED]
    assert cells[3].outputs[0].text == "2\n"


def test_a_view_that_is_there_is_never_overwritten(lesson):
    edit("01", lesson.parent)
    with pytest.raises(FileExistsError, match="01_text.py is there already"):
        edit("01", lesson.parent)


@pytest.mark.slow
def test_a_build_that_fails_leaves_the_notebook_as_it_was(lesson):
    stored = lesson.read_bytes()
    replace(edit("01", lesson.parent), "x = 1", "x = 1/0")
    with pytest.raises(ExecutionError, match="ZeroDivisionError"):
        build("01", lesson.parent)
    assert lesson.read_bytes() == stored
    assert sorted(file.name for file in lesson.parent.iterdir()) == ["01_text.ipynb", "01_text.py"]


@pytest.mark.slow
def test_a_skeleton_becomes_a_lesson_without_fault(write_lesson):
    notebooks = write_lesson("00_start_here", "Text").parent
    write_lesson("a1_deeper", "[after](a2_two_tokens.ipynb)", folder="notebooks/atlas")
    view = new("a2_two_tokens", notebooks)
    assert view == notebooks / "atlas" / "a2_two_tokens.py"
    path = build("a2", notebooks)
    assert lint(path) == []
    text = module_source(path)
    assert text.startswith('"""Two tokens.\n\nThe question of this lesson, in one sentence?\n')
    assert "Built in lesson a2." in text
    assert not re.search("<[A-Z]+>", view.read_text(encoding="utf-8"))


def test_a_skeleton_of_the_course_stands_in_the_course(write_lesson):
    notebooks = write_lesson("00_start_here", "Text").parent
    view = new("01_mine", notebooks)
    assert view == notebooks / "01_mine.py"
    text = view.read_text(encoding="utf-8")
    assert "# # 01 · Mine\n" in text and "#| default_exp mine\n" in text
    assert "[before](00_start_here.ipynb)" in text and "[after]" not in text


@pytest.mark.parametrize("name", ["mine", "1_mine", "a10_mine", "01-mine", "01_Mine", "b1_mine", ""])
def test_a_skeleton_needs_the_name_of_a_lesson(tmp_path, name):
    with pytest.raises(ValueError, match="is no name for a lesson; good ones are 15_name"):
        new(name, tmp_path)


def test_a_skeleton_takes_no_place_of_another(write_lesson):
    notebooks = write_lesson("01_there", "Text").parent
    with pytest.raises(ValueError, match="the number of 01_mine is taken by 01_there"):
        new("01_mine", notebooks)
    new("02_mine", notebooks)
    with pytest.raises(FileExistsError, match="02_mine.py is there already"):
        new("02_mine", notebooks)
