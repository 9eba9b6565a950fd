"""Collect the terms of the field into one page: each with the sentence that explains it, and its lesson.

    python tools/glossary.py     writes build/glossary.md

In a rewritten lesson bold is for terms: a term is bold once, where the lesson explains it, in a sentence that
can stand alone. A term that several lessons explain has an entry for each.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from cards import QUESTION, read_card
from layout import ROOT, lesson_paths, within_notebooks
from lesson_form import NOT_YET_REWRITTEN
from nbformat import NotebookNode

PAGE = ROOT / "build" / "glossary.md"
TERM = re.compile(r"\*\*([^*]+)\*\*")
CODE, FORMULA = r"```.*?```", r"\$\$.*?\$\$"
HEADING_OR_TABLE, TAG = r"^[#|][^\n]*", r"</?(?:details|summary)[^>]*>"
NO_PROSE = re.compile("|".join([CODE, FORMULA, HEADING_OR_TABLE, TAG]), re.DOTALL | re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z*(“\"$`\[])|\n\s*\n|\n(?=[-*\d] )")


@dataclass(frozen=True)
class Entry:
    """A term of the field.

    Attributes:
        term: as it stands in the lesson.
        sentence: the one that explains it, without bold.
        lesson: the notebook that it stands in.
    """

    term: str
    sentence: str
    lesson: Path


def entries(notebooks: Path) -> list[Entry]:
    """List the terms of all rewritten lessons, in the order of the alphabet, then of the lessons."""
    found = [
        entry
        for lesson in lesson_paths(notebooks)
        if lesson.stem not in NOT_YET_REWRITTEN
        for entry in entries_of(nbformat.read(lesson, as_version=4), lesson)
    ]
    return sorted(found, key=lambda entry: entry.term.casefold())


def entries_of(notebook: NotebookNode, lesson: Path) -> Iterator[Entry]:
    """Yield the terms of one lesson in their order."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for sentence in sentences(QUESTION.sub("", cell.source)):
                for term in TERM.findall(sentence):
                    yield Entry(" ".join(term.split()), TERM.sub(r"\1", sentence), lesson)


def sentences(markdown: str) -> list[str]:
    """Part a cell into its sentences, each on one line; headings, tables and displayed formulas are none."""
    parts = SENTENCE_END.split(NO_PROSE.sub("\n\n", markdown))
    return [" ".join(part.split()).removeprefix("- ") for part in parts if part.strip()]


def page(notebooks: Path) -> str:
    """Write the glossary as Markdown, with links from `build/`."""
    lines = ["# Glossary", "", "The terms of the course, each where a lesson explains it."]
    titles = {lesson: read_card(lesson).title for lesson in lesson_paths(notebooks)}
    for entry in entries(notebooks):
        link = f"[{titles[entry.lesson]}](../notebooks/{within_notebooks(entry.lesson)})"
        lines += ["", f"**{entry.term}**: {entry.sentence} ({link})"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(ROOT / "notebooks"), encoding="utf-8")
    print(f"{len(entries(ROOT / 'notebooks'))} terms in {PAGE.relative_to(ROOT)}")
