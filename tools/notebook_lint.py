"""Find in stored notebooks what re-running them does not show: stripped outputs, pictures without words, paths, widgets, size.

    python tools/notebook_lint.py           every lesson and its solutions
    python tools/notebook_lint.py FILE …    these

Every rule is a function that takes a notebook and its path and returns sentences, one per fault.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
from lessons import ROOT, all_notebooks, lesson_paths
from nbformat import NotebookNode

MEGABYTE = 1_000_000
CELLS = range(20, 61)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
SHOWING = {"print", "display", "pictures.show", "plt.show"}
MACHINE_PATH = re.compile(
    r"(?<![\w.~/-])/(?:home|work|root|Users|tmp|mnt|opt|usr|var)/[\w.-]+|\b[A-Z]:\\(?:Users|Windows|Program|Temp)\b"
)
MARKDOWN_PICTURE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)")
HTML_PICTURE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(\s*<?([^)\s>]+)")
CODE_OR_MATHS = re.compile(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)
ELSEWHERE = re.compile(r"^(?:https?:)?//|^(?:https?|mailto|data|attachment):", re.IGNORECASE)


def lint(path: Path) -> list[str]:
    """Returns all faults of one notebook as sentences that name it; an empty list is praise.

    Notebooks in a folder called ``solutions`` answer exercises and are excused from the rules on the shape of a lesson.
    """
    try:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        return [f"{path.name} is not a valid notebook: {str(error).splitlines()[0]}"]
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        return [
            f"{path.name} has format {notebook.nbformat}.{notebook.nbformat_minor}, not 4.5: its cells need ids"
        ]
    rules = [metadata, execution, errors, widgets, pictures, machine_paths, markdown_pictures, links, size]
    if path.parent.name != "solutions":
        rules += [shape, rhythm, neighbours, module]
    return [f"{path.name}: {fault}" for rule in rules for fault in rule(notebook, path)]


def metadata(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """The kernel is python3, and nothing else is kept of the notebook and its cells but tags."""
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield f"its kernel is {notebook.metadata.get('kernelspec', {}).get('name')!r}, not 'python3'"
    for key in notebook.metadata.keys() - {"kernelspec", "language_info", "widgets"}:
        yield f"has metadata {key!r}: normalise it"
    for cell in notebook.cells:
        for key in cell.metadata.keys() - {"tags"}:
            yield f"cell {cell.id} has metadata {key!r}: normalise it"


def execution(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every code cell was run, in order, and what it shows is stored: without this, re-running compares with nothing."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != number:
            yield f"code cell {number} has execution count {cell.execution_count}, not {number}: run the notebook again from its start"
        if shows_something(cell.source) and not cell.outputs:
            yield f"code cell {number} shows something, but no output is stored: {first_line(cell)}"


def errors(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """An error is stored only where it is meant, and where it is meant it is stored."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        failed = [output.ename for output in cell.outputs if output.output_type == "error"]
        meant = "raises-exception" in cell.metadata.get("tags", [])
        if failed and not meant:
            yield f"code cell {number} ended in {failed[0]} without the tag raises-exception"
        if meant and not failed:
            yield f"code cell {number} is tagged raises-exception but stores no error"


def widgets(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """No widget is stored: without its kernel it is an empty box."""
    if "widgets" in notebook.metadata:
        yield "stores widget state: normalise it"
    for number, _, output in outputs(notebook):
        if WIDGET_VIEW in output.get("data", {}):
            yield f"code cell {number} stores a widget: normalise it"


def pictures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every stored picture has a text alternative."""
    for number, _, output in outputs(notebook):
        for mime in PICTURES:
            if (
                mime in output.get("data", {})
                and not str(output.metadata.get(mime, {}).get("alt", "")).strip()
            ):
                yield f'code cell {number} shows a picture without text alternative: use pictures.show(figure, alt="…")'


def machine_paths(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """No path of the author's machine stands in a source or an output."""
    for place, text in texts(notebook):
        for found in sorted(set(MACHINE_PATH.findall(text))):
            yield f"{place} holds the machine path {found!r}"


def markdown_pictures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Pictures are drawn in the lesson: none comes from a server, and one beside the notebook is there and has words."""
    for place, text in texts(notebook, sources=("markdown",)):
        text = CODE_OR_MATHS.sub("", text)
        found = MARKDOWN_PICTURE.findall(text)
        for tag in HTML_PICTURE.findall(text):
            attributes = dict(re.findall(r"""(alt|src)\s*=\s*["']([^"']*)["']""", tag, re.IGNORECASE))
            found.append((attributes.get("alt", ""), attributes.get("src", "")))
        for alt, target in found:
            if ELSEWHERE.match(target) and not target.startswith(("attachment:", "data:")):
                yield f"{place} shows a picture from elsewhere: {target}"
            if not alt.strip():
                yield f"{place} shows a picture without text alternative: {target[:80]}"


def links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every relative link leads to a file that is there."""
    for cell in notebook.cells:
        for target in (
            LINK.findall(CODE_OR_MATHS.sub("", cell.source)) if cell.cell_type == "markdown" else []
        ):
            file = target.split("#")[0]
            if file and not ELSEWHERE.match(target) and not (path.parent / file).exists():
                yield f"cell {cell.id} links to {target}, which does not exist"


def size(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """The file takes at most one megabyte."""
    if path.stat().st_size > MEGABYTE:
        yield f"takes {path.stat().st_size / MEGABYTE:.1f} MB; a lesson takes at most 1 MB"


def shape(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson has neither too few nor too many cells."""
    if len(notebook.cells) not in CELLS:
        yield f"has {len(notebook.cells)} cells; a lesson has {CELLS.start} to {CELLS.stop - 1}"


def rhythm(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """At most two code cells follow each other without a sentence between them."""
    for kind, cells in groupby(notebook.cells, key=lambda cell: cell.cell_type):
        run = list(cells)
        if kind == "code" and len(run) > 2:
            yield f"{len(run)} code cells in a row, from {first_line(run[0])}: at most two without a sentence"


def neighbours(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson links to the lessons before and after it, as far as they exist."""
    lessons = [lesson.name for lesson in lesson_paths(path.parent)]
    place = lessons.index(path.name) if path.name in lessons else None
    if place is None:
        yield "is not named like a lesson, NN_name.ipynb"
        return
    linked = {
        target.split("#")[0]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for target in LINK.findall(cell.source)
    }
    for neighbour in [*lessons[max(place - 1, 0) : place], *lessons[place + 1 : place + 2]]:
        if neighbour not in linked:
            yield f"does not link to its neighbour {neighbour}"


def module(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Lessons 01 to 12 make the module they are named after; the first and the last make none."""
    number, _, name = path.stem.partition("_")
    made = re.findall(
        r"^# ?\|\s*default_exp\s+(\S+)", "\n".join(cell.source for cell in code_cells(notebook)), re.MULTILINE
    )
    wanted = [name] if "01" <= number <= "12" else []
    if made != wanted:
        yield f"makes the modules {made}, not {wanted}"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Returns the code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
    """Gives every stored output with the number of its code cell and the cell."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            yield number, cell, output


def texts(
    notebook: NotebookNode, sources: tuple[str, ...] = ("code", "markdown")
) -> Iterator[tuple[str, str]]:
    """Gives every text of a notebook with the place where it stands: sources of these kinds, and outputs that are words or HTML."""
    for cell in notebook.cells:
        if cell.cell_type in sources:
            yield f"cell {cell.id}", cell.source
    for number, _, output in outputs(notebook):
        data = [
            text
            for mime, text in output.get("data", {}).items()
            if mime.startswith("text/") and isinstance(text, str)
        ]
        yield (
            f"an output of code cell {number}",
            "\n".join([output.get("text", ""), *output.get("traceback", []), *data]),
        )


def shows_something(source: str) -> bool:
    """Says whether a cell surely shows something: a call at its top level that prints or draws."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return False
    calls = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]
    return any(ast.unparse(call.func) in SHOWING for call in calls)


def first_line(cell: NotebookNode) -> str:
    """Returns the first line of a cell, quoted, to recognise it by."""
    return repr((cell.source.strip().splitlines() or [""])[0][:60])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="FILE")
    paths = parser.parse_args().notebooks or all_notebooks(ROOT / "notebooks")
    faults = [fault for path in paths for fault in lint(path)]
    print("\n".join(faults) or f"{len(paths)} notebooks, no fault.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
