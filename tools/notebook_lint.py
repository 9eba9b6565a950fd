"""Find in stored notebooks what re-running them does not show, and hold the budgets of a lesson.

    python tools/notebook_lint.py           every lesson and its solutions
    python tools/notebook_lint.py FILE …    these

Every rule is a function that takes a notebook and its path and gives sentences, one per fault.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from layout import ROOT, SOLUTIONS, all_notebooks
from lesson_form import (
    CODE_OR_MATHS,
    LINK,
    PICTURES,
    code_cells,
    first_line,
    form,
    is_folded,
    needlessly_listed,
)
from nbformat import NotebookNode
from shell import print_any_character

MEGABYTE = 1_000_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SHOWING = {"print", "display", "pictures.show", "plt.show"}
MACHINE_PATH = re.compile(
    r"(?<![\w.~/-])/(?:home|work|root|Users|tmp|mnt|opt|usr|var)/[\w.-]+|\b[A-Z]:\\(?:Users|Windows|Program|Temp)\b"
)
MARKDOWN_PICTURE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)")
HTML_PICTURE = re.compile(r"""<img\b(?:"[^"]*"|'[^']*'|[^>"'])*>""", re.IGNORECASE)
HTML_ATTRIBUTE = re.compile(r"""\b(alt|src)\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)
WITHOUT_WORDS = 'a picture without text alternative: use pictures.show(figure, alt="…")'
STORED_BYTES = re.compile(r"base64,[A-Za-z0-9+/=]+")
ELSEWHERE = re.compile(r"^(?:https?:)?//|^(?:https?|mailto|data|attachment):", re.IGNORECASE)


def lint(path: Path) -> list[str]:
    """List all faults of one notebook as sentences that name it; an empty list is praise.

    Solutions are excused from the rules on the form of a lesson.
    """
    try:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        return [f"{path.name} is not a valid notebook: {str(error).splitlines()[0]}"]
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        version = f"{notebook.nbformat}.{notebook.nbformat_minor}"
        return [f"{path.name} has format {version}, not 4.5: its cells need ids"]
    rules = [
        metadata,
        folding,
        execution,
        errors,
        widgets,
        pictures,
        machine_paths,
        markdown_pictures,
        links,
        size,
    ]
    if path.parent.name != SOLUTIONS:
        rules.append(form)
    return [f"{path.name}: {fault}" for rule in rules for fault in rule(notebook, path)]


def metadata(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """The kernel is python3, and nothing else is kept of the notebook and its cells but tags and folding."""
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield f"its kernel is {notebook.metadata.get('kernelspec', {}).get('name')!r}, not 'python3'"
    for key in notebook.metadata.keys() - {"kernelspec", "language_info", "widgets"}:
        yield f"has metadata {key!r}: normalise it"
    for cell in notebook.cells:
        keys = cell.metadata.keys() | cell.metadata.get("jupyter", {}).keys()
        for key in keys - {"tags", "jupyter", "source_hidden"}:
            yield f"cell {cell.id} has metadata {key!r}: normalise it"


def folding(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A cell is folded in JupyterLab, by source_hidden, and on converted pages, by a tag, or in neither."""
    for cell in notebook.cells:
        on_pages = "hide-input" in cell.metadata.get("tags", [])
        if is_folded(cell) and not on_pages:
            yield f"cell {cell.id} is folded in JupyterLab only: give it the tag hide-input"
        if on_pages and not is_folded(cell):
            yield f"cell {cell.id} is folded on pages only: give it the metadata source_hidden"


def execution(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every code cell was run, in order, and what it shows is stored: re-running compares with that."""
    for number, cell in enumerate(code_cells(notebook.cells), start=1):
        if cell.execution_count != number:
            yield (
                f"code cell {number} has execution count {cell.execution_count}, not {number}: "
                "run the notebook again from its start"
            )
        if shows_something(cell.source) and not cell.outputs:
            yield f"code cell {number} shows something, but no output is stored: {first_line(cell)}"


def errors(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """An error is stored only where it is meant, and where it is meant it is stored."""
    for number, cell in enumerate(code_cells(notebook.cells), start=1):
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
            words = str(output.get("metadata", {}).get(mime, {}).get("alt", ""))
            if mime in output.get("data", {}) and not words.strip():
                yield f"code cell {number} shows {WITHOUT_WORDS}"
        for words, _ in html_pictures(output.get("data", {}).get("text/html", "")):
            if not words.strip():
                yield f"code cell {number} shows {WITHOUT_WORDS}"


def machine_paths(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """No path of the author's machine stands in a source or an output."""
    for place, text in texts(notebook):
        for found in sorted(set(MACHINE_PATH.findall(text))):
            yield f"{place} holds the machine path {found!r}"


def markdown_pictures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Pictures are drawn in the lesson: none comes from a server, and one beside the notebook has words."""
    for place, text in texts(notebook, sources=("markdown",)):
        text = CODE_OR_MATHS.sub("", text)
        for alt, target in [*MARKDOWN_PICTURE.findall(text), *html_pictures(text)]:
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


def outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
    """Yield every stored output with the number of its code cell and the cell."""
    for number, cell in enumerate(code_cells(notebook.cells), start=1):
        for output in cell.outputs:
            yield number, cell, output


def texts(
    notebook: NotebookNode, sources: tuple[str, ...] = ("code", "markdown")
) -> Iterator[tuple[str, str]]:
    """Yield every text of a notebook with its place: such sources, and outputs that are words or HTML."""
    for cell in notebook.cells:
        if cell.cell_type in sources:
            yield f"cell {cell.id}", cell.source
    for number, _, output in outputs(notebook):
        data = [
            text
            for mime, text in output.get("data", {}).items()
            if mime.startswith("text/") and isinstance(text, str)
        ]
        text = "\n".join([output.get("text", ""), *output.get("traceback", []), *data])
        yield f"an output of code cell {number}", STORED_BYTES.sub("", text)


def html_pictures(text: str) -> list[tuple[str, str]]:
    """List the text alternative and the address of every picture of a piece of HTML."""
    found = []
    for tag in HTML_PICTURE.findall(text):
        attributes = {name.lower(): double or single for name, double, single in HTML_ATTRIBUTE.findall(tag)}
        found.append((attributes.get("alt", ""), attributes.get("src", "")))
    return found


def shows_something(source: str) -> bool:
    """Return whether a cell surely shows something: a call at its top level that prints or draws."""
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


def main() -> int:
    print_any_character()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="FILE")
    paths = parser.parse_args().notebooks or all_notebooks(ROOT / "notebooks")
    faults = [fault for path in paths for fault in lint(path)] + needlessly_listed(ROOT / "notebooks")
    print("\n".join(faults) or f"{len(paths)} notebooks, no fault.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
