"""The budgets of a rewritten lesson, and the list of those that are none yet: guards bite and count right."""

import re
from pathlib import Path

import lesson_form
import nbformat
import pytest
from layout import ROOT, lesson_paths
from lesson_form import budgets, card, count_words, lines_of_code, needlessly_listed, origins, training
from nbformat import NotebookNode
from notebook_lint import lint

HERE = Path("21_mine.ipynb")
PICTURE = {
    "output_type": "display_data",
    "data": {"image/png": "AAAA", "text/plain": "a line"},
    "metadata": {"image/png": {"alt": "a line"}},
}


def lesson(*sources: str) -> NotebookNode:
    """Make a notebook of text, code that begins with "%%", folded code with "%%-" and plots with "%%*"."""
    notebook = nbformat.v4.new_notebook()
    for source in sources:
        if not source.startswith("%%"):
            notebook.cells.append(nbformat.v4.new_markdown_cell(source))
            continue
        cell = nbformat.v4.new_code_cell(source.lstrip("%-*"))
        if source.startswith("%%-"):
            cell.metadata = nbformat.from_dict({"tags": ["hide-input"], "jupyter": {"source_hidden": True}})
        if source.startswith("%%*"):
            cell.outputs = [nbformat.from_dict(PICTURE)]
        notebook.cells.append(cell)
    return notebook


def lines(count: int) -> str:
    """Make code of that many lines."""
    return "\n".join(["x = 1"] * count)


TOO_MUCH = {
    "words": (["word " * 2501], "its core path has 2501 words; at most 2500"),
    "lines": ([f"%%{lines(39)}"] * 9, "its core path has 351 visible lines of code; at most 350"),
    "cells": (["Text"] * 46, "its core path has 46 cells; at most 45"),
    "lines of a cell": ([f"%%{lines(41)}"], "a visible cell has 41 lines, at most 40: 'x = 1'"),
    "lines of a plot": ([f"%%*{lines(13)}"], "a visible plot has 13 lines, at most 12: 'x = 1'"),
}
ENOUGH = {
    "words": ["word " * 2500],
    "lines": [f"%%{lines(35)}"] * 10,
    "cells": ["Text"] * 45,
    "lines of a cell": [f"%%{lines(40)}"],
    "lines of a plot": [f"%%*{lines(12)}"],
}


@pytest.mark.parametrize("budget", TOO_MUCH)
def test_what_is_over_a_budget_is_named(budget):
    cells, fault = TOO_MUCH[budget]
    assert list(budgets(lesson(*cells), HERE)) == [fault]


@pytest.mark.parametrize("budget", ENOUGH)
def test_what_just_keeps_a_budget_is_not(budget):
    assert list(budgets(lesson(*ENOUGH[budget]), HERE)) == []


@pytest.mark.parametrize("budget", TOO_MUCH)
def test_the_section_for_the_thorough_is_outside_the_budgets(budget):
    cells, fault = TOO_MUCH[budget]
    thorough = ["## For the thorough", *cells, "### A part of it", *cells]
    assert list(budgets(lesson("# Title", *thorough, "## Close", "Text"), HERE)) == []
    assert list(budgets(lesson("# Title", *thorough, "## Close", *cells), HERE)) != []
    assert list(budgets(lesson("# Title", *thorough, "# Close", *cells), HERE)) != []


def test_the_section_for_the_thorough_hides_nothing_that_stands_before_it():
    (fault,) = budgets(lesson("# Title", "word " * 2501 + "\n\n## For the thorough\n\nText"), HERE)
    assert fault == "its section 'For the thorough' begins inside a cell: let its heading begin one"


def test_folded_code_is_not_visible():
    assert list(budgets(lesson(*[f"%%-{lines(45)}"] * 20), HERE)) == []


def test_a_line_of_code_is_no_signature_no_docstring_no_comment_and_not_blank():
    source = '''#| export
# why
@decorated
class Block(
    nn.Module,
):
    """Says.

    More.
    """

    size = 1  # the trailing comment is of no weight

    def forward(
        self,
        x,
    ) -> Tensor:
        """Says."""
        return (
            x
        )


def one_line(x): return x
'''
    counted = ["@decorated", "size = 1", "return (", "x", ")", "def one_line(x): return x"]
    assert lines_of_code(source) == len(counted)
    assert lines_of_code("%matplotlib inline\nx = 1\n\n# why") == 2


def test_words_are_what_a_reader_reads():
    assert count_words("Two words, **and** [a link](https://example.org/a/b/c).") == 5
    assert count_words("| a | b |\n|---|---|") == 2
    assert count_words("<details><summary>One</summary> two </details>") == 2
    assert count_words("a formula $a + b + c$ is one word, and `x = y` too") == 9


TRAINING = ["fit(model)", "training.fit(model)", "for _ in range(3):\n    loss(model).backward()"]


@pytest.mark.parametrize("train", TRAINING)
def test_training_starts_before_the_middle(train):
    early = lesson("# Title", f"%%{train}", "Text", "%%x = 1")
    late = lesson("# Title", "%%x = 1", f"%%{train}", "Text")
    assert list(training(early, HERE)) == []
    assert list(training(late, HERE)) == [
        "training starts in cell 3 of 4 visible ones: it starts before the middle"
    ]


def test_the_middle_is_that_of_what_a_reader_sees():
    folded = ["%%-x = 1"] * 9
    assert list(training(lesson("# Title", *folded, "%%fit(model)", "Text", "Text"), HERE)) == []
    thorough = ["## For the thorough", *["Text"] * 9]
    assert list(training(lesson("# Title", "Text", "%%fit(model)", "Text", *thorough), HERE)) != []


@pytest.mark.parametrize(
    "cell", ["x = 1", "def train():\n    loss.backward()", "outfit(model)", "%time x = 1"]
)
def test_a_lesson_trains_in_sight(cell):
    notebook = lesson("# Title", f"%%{cell}", "Text", "Text")
    assert next(training(notebook, HERE)).startswith("trains nothing in sight")
    notebook.cells[1].metadata = nbformat.from_dict({"tags": ["training"]})
    assert list(training(notebook, HERE)) == []


def carded(time: str, *sources: str) -> NotebookNode:
    """Make a lesson whose card says this time."""
    return lesson(f"# 21 · Mine\n\n**Why?**\n\n| | |\n|---|---|\n| Time | {time} |", *sources)


def test_the_card_says_the_time_that_the_lesson_takes():
    size = ["word " * 360, *[f"%%{lines(30)}"] * 3, f"%%-{lines(40)}", "## For the thorough", "word " * 999]
    assert list(card(carded("32 minutes to read and write, 50 s to run", *size), HERE)) == []
    assert list(card(carded("28 minutes to read and write, 120 s to run", *size), HERE)) == []
    assert list(card(carded("20 minutes to read and write, 50 s to run", *size), HERE)) == [
        "its card says 20 minutes; its words and its visible code make 32"
    ]


@pytest.mark.parametrize(
    "name, most", [("01_early", 60), ("21_mine", 120), ("10_dino", 180), ("a1_deep", 60)]
)
def test_the_card_says_a_time_to_run_that_is_short_enough(name, most):
    def faults(seconds: int) -> list[str]:
        return list(card(carded(f"1 minutes to read and write, {seconds} s to run"), Path(f"{name}.ipynb")))

    assert faults(most) == []
    assert faults(most + 1) == [f"its card says {most + 1} s to run; at most {most}"]


def test_a_lesson_without_card_or_time_is_refused():
    assert list(card(lesson("# 21 · Mine\n\nWhy?"), HERE)) == [
        "its first cell has no title, or no question in bold on a line of its own"
    ]
    (fault,) = card(carded("an evening"), HERE)
    assert fault.startswith("its card says 'an evening' as the time, not 'NN minutes")


def test_a_rewritten_lesson_is_held_to_its_form_and_one_that_is_listed_is_not(write_lesson, monkeypatch):
    path = write_lesson("21_mine", "# Title", "%%#| default_exp mine")
    untrained, without_card = lint(path)
    assert untrained.startswith("21_mine.ipynb: trains nothing in sight")
    assert without_card.startswith("21_mine.ipynb: its first cell has no title")
    monkeypatch.setattr(lesson_form, "NOT_YET_REWRITTEN", {"21_mine"})
    assert lint(path) == ["21_mine.ipynb: has 2 cells; a lesson has 20 to 60"]


def test_the_list_of_lessons_that_are_not_rewritten_shrinks(write_lesson, monkeypatch):
    notebooks = write_lesson("21_rewritten", "# Title", "%%fit(model)", "Text", "Text").parent
    write_lesson("22_old", "# Title")
    monkeypatch.setattr(lesson_form, "NOT_YET_REWRITTEN", {"21_rewritten", "22_old", "23_gone"})
    assert needlessly_listed(notebooks) == [
        "21_rewritten keeps the budgets of a rewritten lesson: take it from NOT_YET_REWRITTEN",
        "there is no lesson 23_gone: take it from NOT_YET_REWRITTEN",
    ]


TYPED = {
    'def f(x):\n    """Says. Built in lesson 02."""': "f",
    'class F:\n    """Says.\n\n    Built in lesson\n    02.\n    """': "F",
}


@pytest.mark.parametrize("source", TYPED)
def test_where_a_thing_is_built_is_not_typed(source):
    (fault,) = origins(lesson(f"%%#| export\n{source}"), HERE)
    assert fault.startswith(f"code cell 1, {TYPED[source]}: leave 'Built in lesson")
    assert list(origins(lesson(f"%%{source}"), HERE)) == []
    assert list(origins(lesson('%%#| export\ndef f(x):\n    """Says."""'), HERE)) == []


def test_no_lesson_types_where_a_thing_is_built():
    lessons = {path: nbformat.read(path, as_version=4) for path in lesson_paths(ROOT / "notebooks")}
    faults = [f"{path.name}: {fault}" for path, lesson in lessons.items() for fault in origins(lesson, path)]
    assert faults == []


def test_the_budgets_are_those_that_contributors_read():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = re.search(r"(\d),(\d+) words, (\d+) visible lines of code and (\d+) cells", text)
    assert int(said[1] + said[2]) == lesson_form.MOST_WORDS
    assert (int(said[3]), int(said[4])) == (lesson_form.MOST_LINES, lesson_form.MOST_CELLS)
