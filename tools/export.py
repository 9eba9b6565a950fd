"""Make the package's modules from the lessons, or check that they agree.

    python tools/export.py            write vit_course/*.py and vit_course/atlas/*.py from the lessons
    python tools/export.py --check    change nothing; show the differences and exit 1 where there are any

A lesson names its module with ``#| default_exp patching`` and marks what goes into it with ``#| export``, as
in nbdev. The module is these cells in their order, their imports moved to the top and sorted; the docstring
of every public function and class ends with the lesson that builds it. nbdev's own exporter is not used: it
writes cell ids and paths relative to the place of export into every module, so that a module changes where no
code did, and has no room for a module docstring.
"""

import argparse
import ast
import difflib
import re
import sys
import textwrap
from pathlib import Path
from subprocess import CompletedProcess

import nbformat
from layout import ROOT, lesson_number, lesson_paths, within_notebooks
from shell import print_any_character, run

DIRECTIVE = re.compile(r"^# ?\|\s*(.*?)\s*$", re.MULTILINE)
NAMES_MODULE = "default_exp "
HAND_WRITTEN = {"__init__.py", "__main__.py", "cli.py"}
BUILT_IN = re.compile(r"\s*\bBuilt in lesson\s+\w\w\.")
LINE_WIDTH = 110


class ExportError(ValueError):
    """A lesson that cannot become a module; the message names the lesson and what is wrong."""


def module_name(path: Path) -> str | None:
    """Read which module a lesson makes: "patching", "atlas.deeper", or None where it exports nothing.

    Raises:
        ExportError: there is a directive other than ``default_exp NAME`` and ``export``, a second name, or
            no name for the exported cells.
    """
    directives = [directive for source in code(path) for directive in DIRECTIVE.findall(source)]
    names = [line.removeprefix(NAMES_MODULE) for line in directives if line.startswith(NAMES_MODULE)]
    unknown = [line for line in directives if line != "export" and not line.startswith(NAMES_MODULE)]
    if unknown:
        raise ExportError(
            f"{path.name}: unknown directive '#| {unknown[0]}'; "
            "known are '#| default_exp NAME' and '#| export'"
        )
    if len(names) > 1:
        raise ExportError(f"{path.name} names {len(names)} modules: {', '.join(names)}; a lesson makes one")
    if not names:
        if directives:
            raise ExportError(f"{path.name} has exported cells but no '#| default_exp NAME'")
        return None
    if not all(part.isidentifier() for part in names[0].split(".")):
        raise ExportError(f"{path.name}: {names[0]!r} is not a name for a module")
    return names[0]


def exported_cells(path: Path) -> list[str]:
    """Read the sources of a lesson's exported cells, without the directive."""
    return [
        DIRECTIVE.sub("", source).strip() for source in code(path) if "export" in DIRECTIVE.findall(source)
    ]


def code(path: Path) -> list[str]:
    """Read the sources of a notebook's code cells."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def module_source(path: Path) -> str:
    """Make the text of the module of a lesson.

    Raises:
        ExportError: a cell is not plain Python, or the module has a name that none of its own cells defines.
    """
    imports, definitions, names = [], [], []
    for source in exported_cells(path):
        try:
            source = with_origin(source, path)
        except SyntaxError as error:
            raise ExportError(
                f"{path.name}: an exported cell is not plain Python, {error.msg}: {error.text}"
            ) from error
        lines = source.splitlines()
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                place = slice(statement.lineno - 1, statement.end_lineno)
                imports += lines[place]
                lines[place] = [""] * len(lines[place])
            names += defined_names(statement)
        definitions.append("\n".join(lines).strip())
    public = [name for name in dict.fromkeys(names) if not name.startswith("_")]
    parts = [docstring(path), "\n".join(imports), f"__all__ = {public!r}", *filter(None, definitions)]
    return tidy("\n\n".join(parts) + "\n", path)


def with_origin(source: str, path: Path) -> str:
    """End the docstring of every public function and class of a cell with "Built in lesson NN.".

    Args:
        source: the cell. A sentence of that kind that stands in it already is replaced.
        path: the lesson.

    Raises:
        SyntaxError: the cell is not plain Python.
        ExportError: such a docstring is not in triple double quotes on lines of its own.
    """
    lines = source.splitlines()
    for definition in reversed(public_definitions(ast.parse(source))):
        if ast.get_docstring(definition) is None:
            continue
        literal = definition.body[0]
        place = slice(literal.lineno - 1, literal.end_lineno)
        text = BUILT_IN.sub("", "\n".join(lines[place])).rstrip()
        if not (text.lstrip(" r").startswith('"""') and text.endswith('"""')):
            raise ExportError(
                f"{path.name}: the docstring of {definition.name} is not in triple double quotes "
                "on lines of its own"
            )
        indent = " " * literal.col_offset
        words = text.removesuffix('"""').rstrip()
        lines[place] = [words, "", f"{indent}Built in lesson {lesson_number(path)}.", f'{indent}"""']
    return "\n".join(lines)


def public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """List the top-level functions and classes of a piece of Python without leading underscore."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def defined_names(statement: ast.stmt) -> list[str]:
    """List the names that one top-level statement defines: functions, classes and constants."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        targets = []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def docstring(path: Path) -> str:
    """Make the module docstring: the lesson's title and question, and where to edit."""
    cells = nbformat.read(path, as_version=4).cells
    opening = next((cell.source for cell in cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (?:(?:\d\d|a\d)\s*·\s*)?(.+)$", opening, re.MULTILINE)
    question = re.search(r"^\*\*(.+?)\*\*$", opening, re.MULTILINE | re.DOTALL)
    paragraphs = [f"{title[1].strip() if title else path.stem}."]
    if question:
        paragraphs.append(textwrap.fill(" ".join(question[1].split()), LINE_WIDTH))
    lesson = f"notebooks/{within_notebooks(path)}"
    paragraphs.append(f"Made from {lesson} by `make export`: read and edit the lesson, not this file.")
    return '"""' + "\n\n".join(paragraphs) + '\n"""'


def tidy(source: str, path: Path) -> str:
    """Sort the imports of a module and bring it into standard form.

    Raises:
        ExportError: the module has undefined, unused or doubled names.
    """
    source = ruff("check", "--select", "I", "--fix-only", path=path, source=source).stdout
    source = ruff("format", path=path, source=source).stdout
    faults = ruff(
        "check", "--select", "F821,F401,F811", "--output-format", "concise", path=path, source=source
    )
    if faults.returncode:
        raise ExportError(
            f"{path.name}: the module that its exported cells make is not whole:\n"
            f"{faults.stdout or faults.stderr}"
        )
    return source


def ruff(*arguments: str, path: Path, source: str) -> CompletedProcess[str]:
    """Run ruff on the source of a lesson's module, and return its exit status and what it printed."""
    settings = ("--quiet", "--config", str(ROOT / "pyproject.toml"), "--stdin-filename", f"{path.stem}.py")
    return run(sys.executable, "-m", "ruff", *arguments, *settings, "-", source=source)


def modules(notebooks: Path) -> dict[str, str]:
    """Make every module of a folder of lessons, and the ``__init__.py`` of the folder of the atlas.

    Returns:
        The text of each file by its path in the package, "patching.py" or "atlas/deeper.py".

    Raises:
        ExportError: a lesson cannot be exported, or two lessons name one module.
    """
    made_by: dict[str, Path] = {}
    for path in lesson_paths(notebooks):
        name = module_name(path)
        if name in made_by:
            raise ExportError(
                f"{made_by[name].name} and {path.name} both name the module {name!r}; "
                "one lesson makes one module"
            )
        if name:
            made_by[name] = path
    folders = {name.rpartition(".")[0] for name in made_by} - {""}
    made = {f"{folder}/__init__.py": package_docstring(folder) for folder in sorted(folders)}
    return made | {f"{name.replace('.', '/')}.py": module_source(path) for name, path in made_by.items()}


def package_docstring(folder: str) -> str:
    """Make the ``__init__.py`` of a folder of modules."""
    return f'"""The modules that the lessons in notebooks/{folder} make, one for each lesson."""\n'


def orphans(made: dict[str, str], package: Path) -> list[str]:
    """List, as sentences, the modules outside ``lab`` that neither a lesson nor a hand makes."""
    there = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    strange = [name for name in there if name not in {*made, *HAND_WRITTEN} and not name.startswith("lab/")]
    advice = f"remove it, or move hand-written code to {package.name}/lab"
    return [f"{package.name}/{name} is made by no lesson: {advice}" for name in strange]


def differences(notebooks: Path, package: Path) -> list[str]:
    """List what keeps lessons and package from agreeing to the letter: lesson faults, diffs and orphans."""
    try:
        made = modules(notebooks)
    except ExportError as error:
        return [str(error)]
    found = []
    for name, text in made.items():
        path = package / name
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current != text:
            file = f"{package.name}/{name}"
            made_file = f"{file} as its lesson makes it"
            diff = difflib.unified_diff(current.splitlines(), text.splitlines(), file, made_file, lineterm="")
            found.append("\n".join(diff) or f"{file} differs from what its lesson makes in its last line end")
    return found + orphans(made, package)


def export(notebooks: Path, package: Path) -> list[str]:
    """Write the modules of all lessons; nothing is written where one of them cannot be exported.

    Returns:
        The paths of the modules that changed.

    Raises:
        ExportError: a lesson cannot be exported, or a module is an orphan.
    """
    made = modules(notebooks)
    changed = []
    for name, text in made.items():
        path = package / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(name)
    if strange := orphans(made, package):
        raise ExportError("\n".join(strange))
    return changed


def main() -> int:
    print_any_character()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; show the differences, exit 1 where there are any",
    )
    arguments = parser.parse_args()
    notebooks, package = ROOT / "notebooks", ROOT / "vit_course"
    if arguments.check:
        found = differences(notebooks, package)
        print("\n\n".join(found) + "\n\nRun `make export`." if found else "Lessons and package agree.")
        return bool(found)
    try:
        changed = export(notebooks, package)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Written: {', '.join(changed)}" if changed else "Every module is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
