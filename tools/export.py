"""Make the package's modules from the lessons, or check that they agree.

    python tools/export.py            write vit_course/*.py from notebooks/*.ipynb
    python tools/export.py --check    change nothing; show the differences and exit 1 where there are any

A lesson names its module with ``#| default_exp patching`` and marks what goes into it with ``#| export``, as in nbdev. The module is
these cells in their order, their imports moved to the top and sorted. nbdev's own exporter is not used: it writes cell ids and paths
relative to the place of export into every module, so that a module changes where no code did, and has no room for a module docstring.
"""

import argparse
import ast
import difflib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
from lessons import ROOT, lesson_paths

DIRECTIVE = re.compile(r"^# ?\|\s*(.*?)\s*$", re.MULTILINE)
HAND_WRITTEN = {"__init__.py"}


class ExportError(ValueError):
    """A lesson that cannot become a module; the message names the lesson and what is wrong."""


def module_name(path: Path) -> str | None:
    """Returns the module that a lesson makes, or None for a lesson that exports nothing.

    Raises ExportError for a directive other than ``default_exp NAME`` and ``export``, a second name, or exported cells without a name.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    directives = [directive for cell in cells for directive in DIRECTIVE.findall(cell.source)]
    names = [
        directive.removeprefix("default_exp ")
        for directive in directives
        if directive.startswith("default_exp ")
    ]
    unknown = [
        directive
        for directive in directives
        if directive != "export" and not directive.startswith("default_exp ")
    ]
    if unknown:
        raise ExportError(
            f"{path.name}: unknown directive '#| {unknown[0]}'; known are '#| default_exp NAME' and '#| export'"
        )
    if len(names) > 1:
        raise ExportError(f"{path.name} names {len(names)} modules: {', '.join(names)}; a lesson makes one")
    if not names and directives:
        raise ExportError(f"{path.name} has exported cells but no '#| default_exp NAME'")
    if names and not names[0].isidentifier():
        raise ExportError(f"{path.name}: {names[0]!r} is not a name for a module")
    return names[0] if names else None


def exported_cells(path: Path) -> list[str]:
    """Returns the sources of a lesson's exported cells, without the directive."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [DIRECTIVE.sub("", source).strip() for source in sources if "export" in DIRECTIVE.findall(source)]


def module_source(path: Path) -> str:
    """Returns the text of the module that a lesson makes.

    Raises ExportError for a cell that is not plain Python, and for a module with a name that none of its own cells defines.
    """
    imports, definitions, names = [], [], []
    for source in exported_cells(path):
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise ExportError(
                f"{path.name}: an exported cell is not plain Python, {error.msg}: {error.text}"
            ) from error
        lines = source.splitlines()
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports += lines[statement.lineno - 1 : statement.end_lineno]
                lines[statement.lineno - 1 : statement.end_lineno] = [""] * (
                    statement.end_lineno - statement.lineno + 1
                )
            names += defined_names(statement)
        definitions.append("\n".join(lines).strip())
    public = [name for name in dict.fromkeys(names) if not name.startswith("_")]
    parts = [docstring(path), "\n".join(imports), f"__all__ = {public!r}", *filter(None, definitions)]
    return tidy("\n\n".join(parts) + "\n", path)


def defined_names(statement: ast.stmt) -> list[str]:
    """Returns the names that one top-level statement defines: functions, classes and constants."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AnnAssign)
        else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def docstring(path: Path) -> str:
    """Returns the module docstring: the lesson's title and question, and where to edit."""
    opening = next(
        (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"), ""
    )
    title = re.search(r"^# (?:\d\d\s*·\s*)?(.+)$", opening, re.MULTILINE)
    question = re.search(r"^\*\*(.+?)\*\*$", opening, re.MULTILINE | re.DOTALL)
    where = f"Made from notebooks/{path.name} by `make export`: read and edit the lesson, not this file."
    summary = f"{title[1].strip() if title else path.stem}."
    if question:
        summary += "\n\n" + textwrap.fill(" ".join(question[1].split()), 120)
    return f'"""{summary}\n\n{where}\n"""'


def tidy(source: str, path: Path) -> str:
    """Returns the source with sorted imports and standard form; raises ExportError for undefined, unused or doubled names."""
    filename = ["--config", str(ROOT / "pyproject.toml"), "--stdin-filename", f"{path.stem}.py", "-"]
    source = ruff("check", "--select", "I", "--fix-only", "--quiet", *filename, source=source).stdout
    source = ruff("format", "--quiet", *filename, source=source).stdout
    faults = ruff(
        "check",
        "--select",
        "F821,F401,F811",
        "--output-format",
        "concise",
        "--quiet",
        *filename,
        source=source,
    )
    if faults.returncode:
        raise ExportError(
            f"{path.name}: the module that its exported cells make is not whole:\n{faults.stdout or faults.stderr}"
        )
    return source


def ruff(*arguments: str, source: str) -> subprocess.CompletedProcess:
    """Runs ruff with the source as its input and returns what it answered."""
    return subprocess.run(
        [sys.executable, "-m", "ruff", *arguments], input=source, capture_output=True, text=True
    )


def modules(notebooks: Path) -> dict[str, str]:
    """Returns the file name and text of every module that the lessons of a folder make.

    Raises ExportError where a lesson cannot be exported, or two lessons name one module.
    """
    made_by: dict[str, Path] = {}
    for path in lesson_paths(notebooks):
        name = module_name(path)
        if name in made_by:
            raise ExportError(
                f"{made_by[name].name} and {path.name} both name the module {name!r}; one lesson makes one module"
            )
        if name:
            made_by[name] = path
    return {f"{name}.py": module_source(path) for name, path in made_by.items()}


def orphans(made: dict[str, str], package: Path) -> list[str]:
    """Returns a sentence for every module directly in the package that no lesson makes."""
    strange = sorted(
        path.name for path in package.glob("*.py") if path.name not in made and path.name not in HAND_WRITTEN
    )
    return [
        f"{package.name}/{name} is made by no lesson: remove it, or move hand-written code to {package.name}/lab"
        for name in strange
    ]


def differences(notebooks: Path, package: Path) -> list[str]:
    """Returns what keeps lessons and package from agreeing to the letter: lesson faults, diffs and orphans; empty where they agree."""
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
            diff = difflib.unified_diff(
                current.splitlines(), text.splitlines(), file, f"{file} as its lesson makes it", lineterm=""
            )
            found.append("\n".join(diff) or f"{file} differs from what its lesson makes in its last line end")
    return found + orphans(made, package)


def export(notebooks: Path, package: Path) -> list[str]:
    """Writes the modules of all lessons and returns the names of those that changed.

    Nothing is written where a lesson cannot be exported. Raises ExportError for that, and for an orphan module.
    """
    made = modules(notebooks)
    changed = []
    for name, text in made.items():
        path = package / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(name)
    if strange := orphans(made, package):
        raise ExportError("\n".join(strange))
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; show the differences and exit 1 where there are any",
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
