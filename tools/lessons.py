"""Where the lessons are: the one place that knows the layout of ``notebooks/``."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSON_NAME = re.compile(r"\d\d_[a-z][a-z0-9_]*")


def lesson_paths(notebooks: Path) -> list[Path]:
    """Returns the lesson notebooks of a folder in teaching order, without solutions and checkpoints."""
    return sorted(path for path in notebooks.glob("*.ipynb") if LESSON_NAME.fullmatch(path.stem))


def all_notebooks(notebooks: Path) -> list[Path]:
    """Returns the lessons of a folder, then the notebooks with the solutions of their exercises."""
    return [*lesson_paths(notebooks), *lesson_paths(notebooks / "solutions")]


def find_lesson(lesson: str, notebooks: Path, suffix: str = ".ipynb") -> Path:
    """Returns the file of the lesson called ``lesson``: its number ("02"), name ("02_attention") or path.

    Raises ValueError, with a list of the lessons there are, where none or several answer to that name.
    """
    wanted = Path(lesson).stem
    solved = "solutions" in Path(lesson).parts
    candidates = sorted((notebooks / "solutions" if solved else notebooks).glob(f"*{suffix}"))
    found = [path for path in candidates if wanted in (path.stem, path.stem.split("_")[0])]
    if len(found) != 1:
        known = ", ".join(path.stem for path in candidates) or "none"
        raise ValueError(
            f"{'several lessons are' if found else 'no lesson is'} called {lesson!r}; the lessons are: {known}"
        )
    return found[0]
