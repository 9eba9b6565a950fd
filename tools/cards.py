"""The card at the head of a lesson: its title, its question, and a table of what it takes and gives."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
QUESTION = re.compile(r"^\*\*(.+?\?)\*\*$", re.MULTILINE)
ROW = re.compile(r"^\| *([^|]+?) *\| *(.+?) *\|$", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """The first cell of a lesson.

    Attributes:
        title: of the lesson, with its number.
        question: what the lesson answers, in one sentence.
        rows: the table, by the words in its first column.
    """

    title: str
    question: str
    rows: dict[str, str]


def card_of(notebook: NotebookNode) -> Card:
    """Read the card of a lesson.

    Raises:
        ValueError: the first cell lacks the title or the question in bold.
    """
    text = notebook.cells[0].source if notebook.cells else ""
    title, question = TITLE.search(text), QUESTION.search(text)
    if title is None or question is None:
        raise ValueError("its first cell has no title, or no question in bold on a line of its own")
    return Card(title[1], question[1], dict(ROW.findall(text)))


def read_card(lesson: Path) -> Card:
    """Read the card of a stored lesson.

    Raises:
        ValueError: it has none.
    """
    return card_of(nbformat.read(lesson, as_version=4))
