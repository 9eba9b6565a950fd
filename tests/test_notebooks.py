"""What stored notebooks must be, and proof that the guards which say so bite."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lesson_form
import nbformat
import pytest
from execute import ExecutionError, execute, normalise, write
from layout import ATLAS, ROOT, all_notebooks, find_lesson, lesson_paths, lessons_in, within_notebooks
from lesson_form import needlessly_listed
from nbformat import NotebookNode
from notebook_lint import lint
from page import page

NOTEBOOKS = ROOT / "notebooks"
PICTURE = {
    "output_type": "display_data",
    "data": {"image/png": "AAAA", "text/plain": "a line"},
    "metadata": {"image/png": {"alt": "a line"}},
}
FAILURE = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}


def printed(text: str) -> dict:
    """Make an output of ``print``."""
    return {"output_type": "stream", "name": "stdout", "text": text}


def test_lessons_are_numbered_from_zero_and_those_of_the_atlas_from_one_without_gaps():
    course = [int(path.stem[:2]) for path in lessons_in(NOTEBOOKS)]
    atlas = [int(path.stem[1]) for path in lessons_in(NOTEBOOKS / ATLAS)]
    assert course and course == list(range(len(course)))
    assert atlas == list(range(1, len(atlas) + 1))


@pytest.fixture
def course(write_lesson) -> Path:
    """Return the folder of a course with two lessons, one of the atlas, and solutions of two of them."""
    for name in ("10_last", "01_first", "notes", "01_first.fresh"):
        write_lesson(name, "Text")
    write_lesson("a1_more", "Text", folder="notebooks/atlas")
    write_lesson("01_first", "Text", folder="notebooks/solutions")
    return write_lesson("a1_more", "Text", folder="notebooks/solutions").parent.parent


def test_the_course_comes_before_the_atlas_and_both_before_the_solutions(course):
    assert [within_notebooks(path) for path in lesson_paths(course)] == [
        "01_first.ipynb",
        "10_last.ipynb",
        "atlas/a1_more.ipynb",
    ]
    assert [path.relative_to(course).as_posix() for path in all_notebooks(course)[3:]] == [
        "solutions/01_first.ipynb",
        "solutions/a1_more.ipynb",
    ]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("01", "01_first.ipynb"),
        ("a1", "atlas/a1_more.ipynb"),
        ("a1_more", "atlas/a1_more.ipynb"),
        ("atlas/a1", "atlas/a1_more.ipynb"),
        ("notebooks/atlas/a1_more.ipynb", "atlas/a1_more.ipynb"),
        ("solutions/a1", "solutions/a1_more.ipynb"),
        ("solutions/01", "solutions/01_first.ipynb"),
    ],
)
def test_a_lesson_is_found_by_number_name_or_path(course, wanted, found):
    assert find_lesson(wanted, course) == course / found


@pytest.mark.parametrize("wanted", ["a2", "solutions/10", "notes", ""])
def test_what_is_no_lesson_is_not_found(course, wanted):
    with pytest.raises(ValueError, match="no lesson is called .* the lessons are: 01_first, "):
        find_lesson(wanted, course)


@pytest.mark.parametrize("path", all_notebooks(NOTEBOOKS), ids=lambda path: str(path.relative_to(NOTEBOOKS)))
def test_stored_form(path):
    assert lint(path) == []


def test_no_rewritten_lesson_is_on_the_list_of_those_that_are_not():
    assert needlessly_listed(NOTEBOOKS) == []


@pytest.fixture
def lesson(write_lesson, monkeypatch) -> Path:
    """Return a lesson without fault, of the first edition, between two neighbours."""
    monkeypatch.setattr(lesson_form, "NOT_YET_REWRITTEN", {"01_patching"})
    write_lesson("00_start_here", "# Start")
    write_lesson("02_attention", "# Attention")
    pairs = [cell for number in range(10) for cell in (f"Sentence {number}.", f"%%x = {number}")]
    links = (
        "[back](00_start_here.ipynb), [on](02_attention.ipynb#top), "
        "[paper](https://arxiv.org/abs/2010.11929), $f[i](x)$"
    )
    cells = [
        "# 01 · Patching",
        "%%#| default_exp patching",
        links,
        "%%print(1 + 1)",
        "%%pictures.show(figure, alt='a line')",
        *pairs,
    ]
    path = write_lesson("01_patching", *cells, outputs={2: [printed("2\n")], 3: [PICTURE]})
    assert lint(path) == []
    return path


def change(path: Path, defect: Callable[[NotebookNode], object]) -> None:
    """Damage a stored notebook."""
    notebook = nbformat.read(path, as_version=4)
    defect(notebook)
    nbformat.write(notebook, path)


def html(element: str) -> dict:
    """Make an output that is a picture in HTML."""
    return {
        "output_type": "display_data",
        "data": {"text/html": element, "text/plain": "a line"},
        "metadata": {},
    }


def set_source(position: int, source: str) -> Callable[[NotebookNode], None]:
    """Make a defect: another source in the cell at that position."""
    return lambda notebook: notebook.cells[position].update(source=source)


def add_output(position: int, output: dict) -> Callable[[NotebookNode], None]:
    """Make a defect: one more output of the cell at that position."""
    return lambda notebook: notebook.cells[position].outputs.append(nbformat.from_dict(output))


WIDGET = {
    "output_type": "display_data",
    "data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Slider()"},
    "metadata": {},
}
DEFECTS = {
    "a stripped output": (
        lambda n: n.cells[3].update(outputs=[]),
        "code cell 2 shows something, but no output is stored: 'print(1 + 1)'",
    ),
    "a stripped figure": (
        lambda n: n.cells[4].update(outputs=[]),
        "code cell 3 shows something, but no output is stored",
    ),
    "stripped counts": (
        lambda n: n.cells[3].update(execution_count=None),
        "code cell 2 has execution count None, not 2",
    ),
    "cells run out of order": (
        lambda n: n.cells[3].update(execution_count=7),
        "code cell 2 has execution count 7, not 2",
    ),
    "an error nobody meant": (add_output(3, FAILURE), "code cell 2 ended in ValueError without the tag"),
    "a meant error that is gone": (
        lambda n: n.cells[3].metadata.update(tags=["raises-exception"]),
        "stores no error",
    ),
    "a figure without alt": (
        lambda n: n.cells[4].outputs[0].update(metadata={}),
        "code cell 3 shows a picture without text alternative",
    ),
    "a figure with empty alt": (
        lambda n: n.cells[4].outputs[0].metadata["image/png"].update(alt=" "),
        "code cell 3 shows a picture without text alternative",
    ),
    "a machine path in an output": (
        add_output(3, printed("saved to /home/ada/course/run.pt\n")),
        "holds the machine path '/home/ada'",
    ),
    "a machine path in a source": (
        set_source(3, "print(open('/root/run.pt'))"),
        "holds the machine path '/root/run.pt'",
    ),
    "a Windows path": (set_source(0, "Look in C:\\Users\\ada"), "holds the machine path 'C:\\\\Users'"),
    "a remote image": (
        set_source(0, "![a cat](https://example.org/cat.png)"),
        "a picture from elsewhere: https://example.org/cat.png",
    ),
    "a remote image in HTML": (
        set_source(0, '<img alt="a cat" src="//example.org/cat.png">'),
        "a picture from elsewhere: //example.org",
    ),
    "a figure in HTML without alt": (
        add_output(3, html('<p>Look:</p><img src="data:image/png;base64,AAAA">')),
        "code cell 2 shows a picture without text alternative",
    ),
    "a figure in HTML with empty alt": (
        add_output(3, html('<img alt=" " src="data:image/png;base64,AAAA">')),
        "code cell 2 shows a picture without text alternative",
    ),
    "a markdown image without words": (
        set_source(0, "![](cat.png)"),
        "a picture without text alternative: cat.png",
    ),
    "widget state": (lambda n: n.metadata.update(widgets={"state": {}}), "stores widget state"),
    "a stored widget": (add_output(3, WIDGET), "code cell 2 stores a widget"),
    "a dead link": (
        set_source(0, "[next](99_nowhere.ipynb)"),
        "links to 99_nowhere.ipynb, which does not exist",
    ),
    "no link on": (
        set_source(2, "[back](00_start_here.ipynb)"),
        "does not link to its neighbour 02_attention.ipynb",
    ),
    "another kernel": (
        lambda n: n.metadata.kernelspec.update(name="mine"),
        "its kernel is 'mine', not 'python3'",
    ),
    "editor metadata": (
        lambda n: n.cells[1].metadata.update(collapsed=True),
        "cell cell-1 has metadata 'collapsed'",
    ),
    "other metadata of JupyterLab": (
        lambda n: n.cells[1].metadata.update(jupyter={"outputs_hidden": True}),
        "cell cell-1 has metadata 'outputs_hidden': normalise it",
    ),
    "a cell that is folded in JupyterLab only": (
        lambda n: n.cells[1].metadata.update(jupyter={"source_hidden": True}),
        "cell cell-1 is folded in JupyterLab only: give it the tag hide-input",
    ),
    "a cell that is folded on pages only": (
        lambda n: n.cells[1].metadata.update(tags=["hide-input"]),
        "cell cell-1 is folded on pages only: give it the metadata source_hidden",
    ),
    "an old format": (
        lambda n: (n.update(nbformat_minor=4), [cell.pop("id") for cell in n.cells]),
        "has format 4.4, not 4.5",
    ),
    "too few cells": (lambda n: n.update(cells=n.cells[:7]), "has 7 cells; a lesson has 20 to 60"),
    "three code cells in a row": (
        lambda n: n.cells[2].update(nbformat.v4.new_code_cell("y = 1", id="cell-2")),
        "4 code cells in a row, from '#| default_exp patching'",
    ),
    "no module": (set_source(1, "z = 1"), "makes the modules [], not ['patching']"),
    "another module": (
        set_source(1, "#| default_exp patches"),
        "makes the modules ['patches'], not ['patching']",
    ),
    "a megabyte": (add_output(3, printed("x" * 1_100_000)), "takes 1.1 MB"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_lint_bites(lesson, name):
    defect, message = DEFECTS[name]
    change(lesson, defect)
    assert message in "\n".join(lint(lesson))


def test_a_figure_in_html_with_words_and_any_bytes_is_no_fault(lesson):
    element = """<img alt='He said "up" > down' src="data:image/png;base64,x/home/ada+/tmp/x">"""
    change(lesson, add_output(3, html(element)))
    assert lint(lesson) == []


def test_lint_says_what_is_no_notebook(tmp_path):
    path = tmp_path / "01_broken.ipynb"
    path.write_text("{", encoding="utf-8")
    assert lint(path)[0].startswith("01_broken.ipynb is not a valid notebook")


def test_solutions_are_excused_from_the_shape_of_a_lesson_only(write_lesson):
    path = write_lesson(
        "01_patching", "# Solutions", "%%x = 1", "%%x", "%%print(x)", folder="notebooks/solutions"
    )
    assert lint(path) == [
        "01_patching.ipynb: code cell 3 shows something, but no output is stored: 'print(x)'"
    ]


FIGURE = """%%from matplotlib import pyplot as plt
from vit_course.lab import pictures
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([1, 2])
pictures.show(figure, alt="a line going up")"""


@pytest.fixture
def run_lesson(write_lesson):
    """Return a function that writes a small lesson and stores what it really shows."""

    def run(name: str, *cells: str) -> Path:
        path = write_lesson(name, *cells)
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path)
        normalise(notebook)
        write(notebook, path)
        return path

    return run


def failures(*paths: Path) -> set[str]:
    """Re-run notebooks as `make test` does and return the names of those that fail."""
    options = [
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        paths[0].parent,
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-rA",
    ]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode in (0, 1), result.stdout + result.stderr
    passed = set(re.findall(r"^PASSED \S*?(\w+)\.ipynb::", result.stdout, re.MULTILINE))
    failed = set(re.findall(r"^FAILED \S*?(\w+)\.ipynb::", result.stdout, re.MULTILINE))
    assert passed | failed == {path.stem for path in paths}, result.stdout
    return failed


@pytest.mark.slow
def test_running_again_bites(write_lesson, run_lesson):
    drawn = html('<img alt="a line going up" src="data:image/png;base64,AAAA">')
    drawn["data"]["text/plain"] = "a line going up"
    good = [
        run_lesson("01_good", FIGURE, "%%print(1 + 1)", "%%print(object(), '300x300')"),
        write_lesson("09_drawn_elsewhere", FIGURE, outputs={1: [drawn]}),
    ]
    bad = [
        write_lesson("02_wrong_number", "%%print(1 + 1)", outputs={1: [printed("3\n")]}),
        write_lesson("03_figure_lost", "%%figure = 1", outputs={1: [PICTURE]}),
        write_lesson("04_figure_with_other_words", FIGURE, outputs={1: [PICTURE]}),
        write_lesson("05_size_is_no_address", "%%print('300x300')", outputs={1: [printed("300x400\n")]}),
        write_lesson("06_output_too_many", "%%print(1)", outputs={1: []}),
        write_lesson("07_exception", "%%1 / 0"),
        write_lesson("08_raises_no_more", "%%print(1)", outputs={1: [FAILURE]}),
    ]
    change(bad[-1], lambda notebook: notebook.cells[0].metadata.update(tags=["raises-exception"]))
    assert failures(*good, *bad) == {path.stem for path in bad}


def test_a_figure_is_stored_with_its_words(run_lesson):
    path = run_lesson("01_figure", FIGURE)
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert output.data["text/plain"] == "a line going up"
    assert re.fullmatch(
        r'<img alt="a line going up" src="data:image/png;base64,.{500,}">', output.data["text/html"]
    )


def test_what_is_stored_holds_nothing_of_the_machine(run_lesson):
    path = run_lesson("01_slider", "Text", "%%import ipywidgets\nipywidgets.IntSlider()", "%%1 + 1")
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].outputs[0].data == {"text/plain": "IntSlider(value=0)"}
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and all(
        not cell.metadata for cell in notebook.cells
    )
    assert [cell.id for cell in notebook.cells] == ["cell-0", "cell-1", "cell-2"]


def test_a_meant_error_keeps_its_last_line_only(write_lesson):
    path = write_lesson("01_error", "%%def fail():\n    raise ValueError('no')", "%%fail()")
    change(path, lambda notebook: notebook.cells[1].metadata.update(tags=["raises-exception"]))
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, path)
    normalise(notebook)
    assert notebook.cells[1].outputs == [FAILURE] and notebook.cells[1].metadata == {
        "tags": ["raises-exception"]
    }


@pytest.mark.parametrize(("source", "tags"), [("1 / 0", []), ("1 / 1", ["raises-exception"])])
def test_a_failing_cell_is_named(write_lesson, source, tags):
    path = write_lesson("01_error", "Text", "%%x = 1", f"%%{source}")
    change(path, lambda notebook: notebook.cells[2].metadata.update(tags=tags))
    with pytest.raises(ExecutionError, match=r"01_error.ipynb, code cell 2 \(id cell-2\)"):
        execute(nbformat.read(path, as_version=4), path)


FOLDED = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}


def test_what_folds_a_cell_is_kept_and_the_rest_of_its_metadata_is_not(write_lesson):
    path = write_lesson("01_folded", "Text", "%%x = 1", "%%x")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata = nbformat.from_dict({**FOLDED, "collapsed": True})
    notebook.cells[1].metadata.jupyter.outputs_hidden = True
    notebook.cells[2].metadata = nbformat.from_dict({"jupyter": {"source_hidden": False}})
    normalise(notebook)
    assert [cell.metadata for cell in notebook.cells] == [{}, FOLDED, {}]


def test_a_folded_cell_is_folded_on_a_page_and_opens_with_a_click(write_lesson, tmp_path):
    path = write_lesson("01_folded", "Text", "%%shown = 1", "%%folded = 2", outputs={2: [printed("result")]})
    change(path, lambda notebook: notebook.cells[2].metadata.update(FOLDED))
    text = page(path, tmp_path / "pages").read_text(encoding="utf-8")
    (details,) = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    assert "folded" in details and "shown" not in details and "result" not in details
    assert "shown" in text and "result" in text
