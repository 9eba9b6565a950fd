"""Write a lesson as text: to a py:percent file and back.

    python tools/lesson.py edit 02     notebooks/02_attention.ipynb -> notebooks/02_attention.py (never over a file that is there)
    python tools/lesson.py build 02    notebooks/02_attention.py -> .ipynb: formatted, run, and stored in the form the tests expect

The .py file is a view for the author and git-ignored; the notebook is the source. A build that fails leaves the notebook as it was.
Cells that did not change keep their ids and tags. "solutions/02" names the solutions of a lesson.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from execute import ExecutionError, execute, normalise, write
from lessons import ROOT, find_lesson


def edit(lesson: str, notebooks: Path) -> Path:
    """Writes the py:percent view of a lesson and returns its path.

    Raises ValueError for an unknown lesson, FileExistsError where there is a view already.
    """
    path = find_lesson(lesson, notebooks)
    view = path.with_suffix(".py")
    if view.exists():
        raise FileExistsError(f"{view.name} is there already: build it, or remove it first")
    jupytext("--to", "py:percent", "--opt", "notebook_metadata_filter=-all", "--output", str(view), str(path))
    return view


def build(lesson: str, notebooks: Path) -> Path:
    """Makes a lesson from its py:percent view: converts, formats, runs and normalises it, and returns the notebook's path.

    Raises ValueError for an unknown view, RuntimeError where a step fails; the notebook on disk then stays as it was.
    """
    view = find_lesson(lesson, notebooks, suffix=".py")
    path = view.with_suffix(".ipynb")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        if path.exists():
            shutil.copyfile(path, draft)
        jupytext(*(["--update"] if path.exists() else []), "--to", "ipynb", "--output", str(draft), str(view))
        for tidy in (["check", "--select", "I", "--fix-only"], ["format"]):
            run(
                sys.executable,
                "-m",
                "ruff",
                *tidy,
                "--quiet",
                "--config",
                str(ROOT / "pyproject.toml"),
                str(draft),
            )
        notebook = nbformat.read(draft, as_version=4)
    execute(notebook, path)
    normalise(notebook)
    write(notebook, path)
    return path


def jupytext(*arguments: str) -> None:
    """Runs jupytext; raises RuntimeError with its answer where it fails."""
    run(sys.executable, "-m", "jupytext", "--quiet", *arguments)


def run(*command: str) -> None:
    """Runs a command; raises RuntimeError with its answer where it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{result.stderr or result.stdout}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("direction", choices=["edit", "build"])
    parser.add_argument("lesson", help="number or name")
    arguments = parser.parse_args()
    try:
        path = {"edit": edit, "build": build}[arguments.direction](arguments.lesson, ROOT / "notebooks")
    except (ValueError, FileExistsError, ExecutionError, RuntimeError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\r{path.relative_to(ROOT)} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
