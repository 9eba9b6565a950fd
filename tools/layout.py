"""Where the lessons are: the one place that knows the layout of ``notebooks/``.

The course stands in ``notebooks/`` itself, the atlas in ``notebooks/atlas``; ``notebooks/solutions`` solves
the exercises of both.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSON_NAME = re.compile(r"(?:\d\d|a\d)_[a-z][a-z0-9_]*")
ATLAS = "atlas"
SOLUTIONS = "solutions"


def lesson_paths(notebooks: Path) -> list[Path]:
    """List the lesson notebooks in teaching order: the course, then the atlas.

    Args:
        notebooks: the folder of the course; solutions and checkpoints in it are left out.
    """
    return [*lessons_in(notebooks), *lessons_in(notebooks / ATLAS)]


def all_notebooks(notebooks: Path) -> list[Path]:
    """List the lessons, then the notebooks with the solutions of their exercises."""
    return [*lesson_paths(notebooks), *lessons_in(notebooks / SOLUTIONS)]


def lessons_in(folder: Path, suffix: str = ".ipynb") -> list[Path]:
    """List the files of one folder that are named like lessons, in order."""
    return sorted(path for path in folder.glob(f"*{suffix}") if LESSON_NAME.fullmatch(path.stem))


def find_lesson(lesson: str, notebooks: Path, suffix: str = ".ipynb") -> Path:
    """Find the file of one lesson.

    Args:
        lesson: its number ("02", "a1"), name ("02_attention") or path; "solutions/02" for its solutions.
        notebooks: the folder of the course.
        suffix: ".ipynb" for the notebook, ".py" for its text view.

    Raises:
        ValueError: none or several answer to that name; the sentence lists the lessons that are there.
    """
    wanted = Path(lesson).stem
    folders = [SOLUTIONS] if SOLUTIONS in Path(lesson).parts else ["", ATLAS]
    candidates = [path for folder in folders for path in lessons_in(notebooks / folder, suffix)]
    found = [path for path in candidates if wanted in (path.stem, lesson_number(path))]
    if len(found) != 1:
        known = ", ".join(path.stem for path in candidates) or "none"
        fault = "several lessons are" if found else "no lesson is"
        raise ValueError(f"{fault} called {lesson!r}; the lessons are: {known}")
    return found[0]


def lesson_number(path: Path) -> str:
    """Return the number of a lesson, "02" or "a1"."""
    return path.stem.split("_")[0]


def module_of(path: Path) -> str:
    """Return the module that is named after a lesson: "attention", or "atlas.deeper" for atlas/a1_deeper."""
    name = path.stem.partition("_")[2]
    return f"{ATLAS}.{name}" if path.parent.name == ATLAS else name


def within_notebooks(path: Path) -> str:
    """Return the path of a lesson below the folder of the course, with forward slashes."""
    return f"{ATLAS}/{path.name}" if path.parent.name == ATLAS else path.name
