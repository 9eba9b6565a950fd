"""The glossary holds what lessons explain in bold, sentence by sentence, and nothing else."""

import glossary
import nbformat
import pytest
from glossary import entries, entries_of, page, sentences
from layout import ROOT

CARD = "# 21 · Mine\n\n**What is it?**\n\n| Time | a **bold** cell |\n"


def terms(*cells: str) -> list[tuple[str, str]]:
    """The terms of a lesson of these cells, each with its sentence."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(cell) for cell in cells])
    return [(entry.term, entry.sentence) for entry in entries_of(notebook, ROOT / "21_mine.ipynb")]


def test_a_term_comes_with_its_sentence():
    text = (
        "## A part\n\nCut it. A **token** is one row\nof the table. More.\n\n- A **class\n  token** is new."
    )
    assert terms(CARD, text) == [
        ("token", "A token is one row of the table."),
        ("class token", "A class token is new."),
    ]


def test_the_question_tables_headings_and_code_explain_no_term():
    assert terms(CARD, "## The **best** part\n\n```\n**kwargs** and\n```\n\n| a **cell** |") == []


def test_sentences_end_where_a_reader_ends_them():
    text = "It takes e.g. 3.5 s. $x$ is small, i.e. 0.1! `a.b` stays. Does it? (Yes.)\n\n$$y = 1.$$\n\nEnd"
    assert sentences(text) == [
        "It takes e.g. 3.5 s.",
        "$x$ is small, i.e. 0.1!",
        "`a.b` stays.",
        "Does it?",
        "(Yes.)",
        "End",
    ]


def test_only_rewritten_lessons_give_terms(write_lesson, monkeypatch):
    notebooks = write_lesson("21_mine", CARD, "A **token** is a row.").parent
    write_lesson("22_old", CARD, "**Never** do this.")
    monkeypatch.setattr(glossary, "NOT_YET_REWRITTEN", {"22_old"})
    assert [entry.term for entry in entries(notebooks)] == ["token"]
    assert "**token**: A token is a row. ([21 · Mine](../notebooks/21_mine.ipynb))" in page(notebooks)


def test_the_course_explains_its_terms():
    explained = {entry.term.casefold() for entry in entries(ROOT / "notebooks")}
    if not explained:
        pytest.skip("no lesson is rewritten yet")
    assert "backbone" in explained


def test_every_explanation_is_a_sentence():
    faults = [
        f"{entry.lesson.name}: {entry.term}: {entry.sentence}"
        for entry in entries(ROOT / "notebooks")
        if len(entry.sentence.split()) < 5 or entry.sentence[-1] not in ".!?:)"
    ]
    assert faults == []
