"""The tables of the README that are derived: the lessons and the atlas, from their cards; the models, and
which objective trains which of them, from the catalogue; the published models that come in, from what was
measured of them.

python tools/readme.py    # writes them into README.md; tests/test_readme.py holds README.md to them
"""

from pathlib import Path

from cards import read_card
from layout import ATLAS, ROOT, lesson_number, lessons_in, within_notebooks

from vit_course.lab import catalogue, results
from vit_course.lab.catalogue import Reservation, Row
from vit_course.lab.pretrained.families import LIBRARIES

README = ROOT / "README.md"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    Args:
        header: the titles of the columns.
        rows: as many cells each as there are columns.

    Returns:
        Its lines, each with its end.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def lessons_table() -> str:
    """The lessons of the course with their questions and the time that they take, as Markdown."""
    rows = [lesson_cells(lesson) for lesson in lessons_in(ROOT / "notebooks")]
    return markdown(["lesson", "the question", "time"], rows)


def atlas_table() -> str:
    """The families of the atlas with their questions, models and the time that they take, as Markdown."""
    rows = []
    for lesson in lessons_in(ROOT / "notebooks" / ATLAS):
        link, question, time = lesson_cells(lesson)
        number = lesson_number(lesson)
        models = [name for name, row in catalogue.MODELS.items() if row.lesson == number]
        rows.append([link, question, ", ".join(models), time])
    return markdown(["family", "the question", "models", "time"], rows)


def lesson_cells(lesson: Path) -> list[str]:
    """A link to a lesson, its question, and the time that it takes."""
    card = read_card(lesson)
    link = f"[{card.title.replace(' · ', ' ')}](notebooks/{within_notebooks(lesson)})"
    return [link, card.question, card.rows["Time"]]


def models_table() -> str:
    """The models with their features, twins and published sizes, as Markdown."""
    header = ["model", "lesson", "features", "attention", "equal to", "published sizes, and their parameters"]
    return markdown(header, [model_cells(name, row) for name, row in catalogue.MODELS.items()])


def model_cells(name: str, row: Row) -> list[str]:
    """The line of one model in `models_table`."""
    twins = {
        library for size in row.published.values() for library, twin in size.twins.items() if twin.is_equal
    }
    sizes = [f"{size} {published.parameters:,}" for size, published in row.published.items()]
    return [
        name,
        row.lesson,
        row.features,
        ", ".join(row.attention),
        ", ".join(sorted(twins)),
        "; ".join(sizes),
    ]


def objectives_table() -> str:
    """Which objective trains which backbone, as Markdown; below it what is refused or has a reservation."""
    sentences: list[str] = []

    def cell(reservation: Reservation | None) -> str:
        if reservation is None:
            return "yes"
        if reservation.sentence not in sentences:
            sentences.append(reservation.sentence)
        answer = "no" if reservation.is_refused else "yes"
        return f"{answer} ({1 + sentences.index(reservation.sentence)})"

    rows = [
        [objective]
        + [cell(row.reservations.get(objective)) for row in catalogue.MODELS.values()]
        + [cell(None) for _ in catalogue.FOREIGN]
        for objective in catalogue.OBJECTIVES
    ]
    notes = [f"\n({number}) {sentence}\n" for number, sentence in enumerate(sentences, start=1)]
    return markdown(["", *catalogue.MODELS, *catalogue.FOREIGN], rows) + "".join(notes)


def published_table() -> str:
    """The published models that come in, by library: the function that takes them, and the relative error."""
    measured = results.load("parity")["rows"]
    cells = {(row["name"], row["library"]): f"`{row['way']}` {row['error']:.0e}" for row in measured}
    families = list(dict.fromkeys(row["name"] for row in measured))
    rows = [[name, *(cells.get((name, library), "") for library in LIBRARIES)] for name in families]
    return markdown(["published", *LIBRARIES], rows)


TABLES = {
    "lessons": lessons_table,
    "atlas": atlas_table,
    "models": models_table,
    "published": published_table,
    "objectives": objectives_table,
}


def with_tables(readme: str) -> str:
    """The README's text with every table in its place.

    Args:
        readme: the text; the place of a table lies between two comments, `<!-- models: tools/readme.py -->`
            and `<!-- end of models -->`.

    Raises:
        ValueError: where there is no such place.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: tools/readme.py -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = readme.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"README.md has no lines {begin.strip()} and {end.strip()}")
        readme = f"{before}{begin}\n{table()}\n{end}{after}"
    return readme


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    print("README.md holds the tables of the lessons and of the catalogue.")
