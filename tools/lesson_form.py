"""The form of a lesson: what it makes, what it links to, and how much of it a reader can take in.

A rewritten lesson keeps the budgets of its core path, which is all of it but the section "For the thorough".
Lessons of the first edition stand in one list until they are rewritten.
"""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
from cards import card_of
from export import BUILT_IN, DIRECTIVE, NAMES_MODULE, public_definitions
from layout import lesson_number, lesson_paths, lessons_in, module_of
from nbformat import NotebookNode
from structure import outside_functions

# Lessons that have the form of the first edition. One that is rewritten leaves the list, which only shrinks.
NOT_YET_REWRITTEN: set[str] = set()
# These import the finished package and add nothing to it.
MAKE_NO_MODULE = {"start_here", "capstone", "for_real"}

THOROUGH = "For the thorough"
MOST_WORDS = 2500
MOST_LINES = 350
MOST_CELLS = 45
MOST_LINES_OF_A_CELL = 40
MOST_LINES_OF_A_PLOT = 12
CELLS_OF_FIRST_EDITION = range(20, 61)
WORDS_A_MINUTE = 180
SECONDS_A_LINE = 20
TIME = re.compile(r"(\d+) minutes to read and write, (\d+) s to run")
# Of one thread, for the lessons whose time differs from that of the others.
MOST_SECONDS = 120
MOST_SECONDS_OF = {"00": 60, "01": 60, "02": 60, "10": 180} | {f"a{number}": 60 for number in range(1, 9)}

PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
TRAINING = {"fit", "backward"}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(\s*<?([^)\s>]+)")
HEADING = re.compile(r"^(#{1,6})\s+(.*)$", re.MULTILINE)
CODE_OR_MATHS = re.compile(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)
TAG_OR_TARGET = re.compile(r"<[^>]*>|(?<=\])\([^)]*\)")


def form(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every lesson has a rhythm, neighbours and its module; a rewritten one has budgets and trains early."""
    rules = [rhythm, neighbours, module, origins]
    rules += [first_edition] if path.stem in NOT_YET_REWRITTEN else [budgets, training, card]
    for rule in rules:
        yield from rule(notebook, path)


def needlessly_listed(notebooks: Path) -> list[str]:
    """List, as sentences, the names on the list of lessons not yet rewritten that need not stand there."""
    found = []
    lessons = {path.stem: path for path in lesson_paths(notebooks)}
    for name in sorted(NOT_YET_REWRITTEN):
        if name not in lessons:
            found.append(f"there is no lesson {name}: take it from NOT_YET_REWRITTEN")
        elif keeps_budgets(lessons[name]):
            found.append(f"{name} keeps the budgets of a rewritten lesson: take it from NOT_YET_REWRITTEN")
    return found


def keeps_budgets(path: Path) -> bool:
    """Return whether a lesson has the form of a rewritten one."""
    notebook = nbformat.read(path, as_version=4)
    return not [*budgets(notebook, path), *training(notebook, path)]


def first_edition(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson of the first edition has neither too few nor too many cells."""
    few, many = CELLS_OF_FIRST_EDITION.start, CELLS_OF_FIRST_EDITION.stop - 1
    if not few <= len(notebook.cells) <= many:
        yield f"has {len(notebook.cells)} cells; a lesson has {few} to {many}"


def card(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """The card says how long the lesson takes, and that is what its words and its visible code amount to."""
    try:
        time = card_of(notebook).rows.get("Time", "")
    except ValueError as error:
        yield str(error)
        return
    said = TIME.fullmatch(time)
    if said is None:
        yield f"its card says {time!r} as the time, not 'NN minutes to read and write, NN s to run'"
        return
    minutes, seconds = int(said[1]), int(said[2])
    words, lines = size_of_core(notebook)
    counted = words / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60
    if abs(minutes - counted) > 5:
        yield f"its card says {minutes} minutes; its words and its visible code make {counted:.0f}"
    most = MOST_SECONDS_OF.get(lesson_number(path), MOST_SECONDS)
    if seconds > most:
        yield f"its card says {seconds} s to run; at most {most}"


def size_of_core(notebook: NotebookNode) -> tuple[int, int]:
    """Count the words, and the visible lines of code, of a lesson's core path."""
    core = list(core_path(notebook))
    words = sum(count_words(cell.source) for cell in core if cell.cell_type == "markdown")
    return words, sum(lines_of_code(cell.source) for cell in code_cells(core) if not is_folded(cell))


def budgets(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """The core path can be read, and its visible code taken in, in one sitting."""
    core = list(core_path(notebook))
    visible = [cell for cell in core if not is_folded(cell)]
    lines = {cell.id: lines_of_code(cell.source) for cell in code_cells(visible)}
    words, all_lines = size_of_core(notebook)
    if words > MOST_WORDS:
        yield f"its core path has {words} words; at most {MOST_WORDS}"
    if all_lines > MOST_LINES:
        yield f"its core path has {all_lines} visible lines of code; at most {MOST_LINES}"
    if len(core) > MOST_CELLS:
        yield f"its core path has {len(core)} cells; at most {MOST_CELLS}"
    for cell in code_cells(visible):
        length = lines[cell.id]
        if length > MOST_LINES_OF_A_CELL:
            yield f"a visible cell has {length} lines, at most {MOST_LINES_OF_A_CELL}: {first_line(cell)}"
        if length > MOST_LINES_OF_A_PLOT and shows_picture(cell):
            yield f"a visible plot has {length} lines, at most {MOST_LINES_OF_A_PLOT}: {first_line(cell)}"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(rf"\S\s*^#+ .*{THOROUGH}", cell.source, re.MULTILINE):
            yield f"its section {THOROUGH!r} begins inside a cell: let its heading begin one"


def training(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Training starts before the middle of the core path, by the cells that are not folded."""
    visible = [cell for cell in core_path(notebook) if not is_folded(cell)]
    first = next((number for number, cell in enumerate(visible, start=1) if trains(cell)), None)
    if first is None:
        yield "trains nothing in sight; tag a cell training that trains without calling fit or backward"
    elif first > len(visible) / 2:
        yield f"training starts in cell {first} of {len(visible)} visible ones: it starts before the middle"


def rhythm(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """At most two code cells follow each other without a sentence between them."""
    for kind, cells in groupby(notebook.cells, key=lambda cell: cell.cell_type):
        run = list(cells)
        if kind == "code" and len(run) > 2:
            yield f"{len(run)} code cells in a row, from {first_line(run[0])}: at most two without a sentence"


def neighbours(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson links to the lessons before and after it in its folder, as far as they exist."""
    lessons = [lesson.name for lesson in lessons_in(path.parent)]
    if path.name not in lessons:
        yield "is not named like a lesson, NN_name.ipynb or aN_name.ipynb"
        return
    place = lessons.index(path.name)
    targets = {
        target.split("#")[0]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for target in LINK.findall(cell.source)
    }
    for neighbour in [*lessons[max(place - 1, 0) : place], *lessons[place + 1 : place + 2]]:
        if neighbour not in targets:
            yield f"does not link to its neighbour {neighbour}"


def module(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson makes the module that it is named after; those that only use the package make none."""
    directives = [
        directive for cell in code_cells(notebook.cells) for directive in DIRECTIVE.findall(cell.source)
    ]
    made = [line.removeprefix(NAMES_MODULE) for line in directives if line.startswith(NAMES_MODULE)]
    wanted = [module_of(path)]
    if path.stem.partition("_")[2] in MAKE_NO_MODULE:
        wanted = []
    if made != wanted:
        yield f"makes the modules {made}, not {wanted}"


def origins(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """No lesson types "Built in lesson NN.": the exporter adds it."""
    for number, cell in enumerate(code_cells(notebook.cells), start=1):
        if "export" in DIRECTIVE.findall(cell.source):
            for definition in public_definitions(ast.parse(cell.source)):
                if typed := BUILT_IN.search(ast.get_docstring(definition) or ""):
                    yield f"code cell {number}, {definition.name}: leave {typed[0].strip()!r} to the exporter"


def core_path(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Yield the cells outside "For the thorough", which ends at the next heading of its level or above."""
    thorough_level = 0
    for cell in notebook.cells:
        for hashes, title in HEADING.findall(cell.source) if cell.cell_type == "markdown" else []:
            if THOROUGH in title:
                thorough_level = len(hashes)
            elif len(hashes) <= thorough_level:
                thorough_level = 0
        if not thorough_level:
            yield cell


def count_words(text: str) -> int:
    """Count the words of a piece of markdown: a formula or a piece of code is one, a tag none."""
    text = TAG_OR_TARGET.sub(" ", CODE_OR_MATHS.sub(" formula ", text))
    return sum(any(character.isalnum() for character in word) for word in text.split())


def lines_of_code(source: str) -> int:
    """Count the lines of code of a cell without blank lines, comments, signatures and docstrings."""
    try:
        excused = signatures_and_docstrings(ast.parse(source))
    except SyntaxError:  # a cell with a magic command
        excused = set()
    return sum(
        number not in excused and line.strip() != "" and not line.lstrip().startswith("#")
        for number, line in enumerate(source.splitlines(), start=1)
    )


def signatures_and_docstrings(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that hold the head or the docstring of a function or class."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0]
            lines |= set(range(node.lineno, first.lineno))
            if ast.get_docstring(node) is not None:
                lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def is_folded(cell: NotebookNode) -> bool:
    """Return whether JupyterLab folds the source of a cell."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def shows_picture(cell: NotebookNode) -> bool:
    """Return whether a cell stores a picture among its outputs."""
    shown = [output.get("data", {}) for output in cell.outputs]
    return any("<img" in data.get("text/html", "") or not data.keys().isdisjoint(PICTURES) for data in shown)


def trains(cell: NotebookNode) -> bool:
    """Return whether a cell trains: it calls ``fit`` or ``backward`` outside functions, or is tagged so."""
    if cell.cell_type != "code":
        return False
    if "training" in cell.metadata.get("tags", []):
        return True
    try:
        nodes = list(outside_functions(ast.parse(cell.source)))
    except SyntaxError:  # a cell with a magic command
        return False
    called = {ast.unparse(node.func).split(".")[-1] for node in nodes if isinstance(node, ast.Call)}
    return bool(called & TRAINING)


def code_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """List those cells that are code, in order."""
    return [cell for cell in cells if cell.cell_type == "code"]


def first_line(cell: NotebookNode) -> str:
    """Return the first line of a cell after its directive, quoted, to recognise it by."""
    lines = [line for line in cell.source.splitlines() if line.strip() not in ("", "#| export")]
    return repr((lines or [""])[0][:60])
