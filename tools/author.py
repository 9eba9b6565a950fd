"""Write a lesson as text: to a py:percent file and back.

    python tools/author.py new a9_mine    a skeleton with the sections of a lesson: notebooks/atlas/a9_mine.py
    python tools/author.py edit 02        02_attention.ipynb -> 02_attention.py, never over one that is there
    python tools/author.py build 02       02_attention.py -> .ipynb: formatted, run, and in its stored form

The .py file is a view for the author and git-ignored; the notebook is the source. A build that fails leaves
the notebook as it was. Cells that did not change keep their ids and tags. "solutions/02" are a lesson's
solutions.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import shell
from execute import ExecutionError, execute, normalise, write
from layout import ATLAS, LESSON_NAME, ROOT, find_lesson, lesson_number, lesson_paths, lessons_in, module_of

SKELETON = Path(__file__).with_name("skeleton.txt")


def new(name: str, notebooks: Path) -> Path:
    """Write the py:percent view of a lesson that is to be, and return its path.

    Args:
        name: "15_name" for a lesson of the course, "a9_name" for one of the atlas.
        notebooks: the folder of the course.

    Raises:
        ValueError: the name is not that of a lesson, or its number is taken.
        FileExistsError: there is a view of that name.
    """
    if not LESSON_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a lesson; good ones are 15_name and, in the atlas, a9_name"
        )
    folder = notebooks / ATLAS if name.startswith("a") else notebooks
    view = folder / f"{name}.py"
    for other in lesson_paths(notebooks):
        if lesson_number(other) == lesson_number(view):
            raise ValueError(f"the number of {name} is taken by {other.stem}")
    fail_if_there(view)
    names = [other.name for other in lessons_in(folder)]
    before, after = [other for other in names if other < name], [other for other in names if other > name]
    links = [f"[before]({other})" for other in before[-1:]] + [f"[after]({other})" for other in after[:1]]
    text = SKELETON.read_text(encoding="utf-8")
    for blank, word in {
        "NUMBER": lesson_number(view),
        "MODULE": module_of(view),
        "TITLE": name.partition("_")[2].replace("_", " ").capitalize(),
        "LINKS": " · ".join(links),
    }.items():
        text = text.replace(f"<{blank}>", word)
    folder.mkdir(exist_ok=True)
    view.write_text(text, encoding="utf-8", newline="\n")
    return view


def edit(lesson: str, notebooks: Path) -> Path:
    """Write the py:percent view of a lesson and return its path.

    Raises:
        ValueError: there is no such lesson.
        FileExistsError: there is a view already.
    """
    path = find_lesson(lesson, notebooks)
    view = path.with_suffix(".py")
    fail_if_there(view)
    jupytext("--to", "py:percent", "--opt", "notebook_metadata_filter=-all", "--output", str(view), str(path))
    return view


def fail_if_there(view: Path) -> None:
    """Keep what an author is writing: raise FileExistsError for a view that exists."""
    if view.exists():
        raise FileExistsError(f"{view.name} is there already: build it, or remove it first")


def build(lesson: str, notebooks: Path) -> Path:
    """Make a lesson from its py:percent view, converted, formatted, run and normalised, and return its path.

    Raises:
        ValueError: there is no such view.
        ExecutionError: a cell fails; the notebook on disk stays as it was.
        RuntimeError: another step fails; the notebook on disk stays as it was.
    """
    view = find_lesson(lesson, notebooks, suffix=".py")
    path = view.with_suffix(".ipynb")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        update = []
        if path.exists():
            shutil.copyfile(path, draft)
            update = ["--update"]
        jupytext(*update, "--to", "ipynb", "--output", str(draft), str(view))
        ruff("check", "--select", "I", "--fix-only", draft=draft)
        ruff("format", draft=draft)
        notebook = nbformat.read(draft, as_version=4)
    execute(notebook, path)
    normalise(notebook)
    write(notebook, path)
    return path


def jupytext(*arguments: str) -> None:
    """Run jupytext; raise RuntimeError with its message where it fails."""
    run("jupytext", "--quiet", *arguments)


def ruff(*arguments: str, draft: Path) -> None:
    """Run ruff on a notebook; raise RuntimeError with its message where it fails."""
    run("ruff", *arguments, "--quiet", "--config", str(ROOT / "pyproject.toml"), str(draft))


def run(module: str, *arguments: str) -> None:
    """Run a Python program; raise RuntimeError with its message where it fails."""
    result = shell.run(sys.executable, "-m", module, *arguments)
    if result.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{result.stderr or result.stdout}")


def main() -> int:
    shell.print_any_character()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["new", "edit", "build"])
    parser.add_argument("lesson", help="number or name")
    arguments = parser.parse_args()
    try:
        act = {"new": new, "edit": edit, "build": build}[arguments.command]
        path = act(arguments.lesson, ROOT / "notebooks")
    except (ValueError, FileExistsError, ExecutionError, RuntimeError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\r{path.relative_to(ROOT)} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
