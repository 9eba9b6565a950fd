"""Give the learner copies of the lessons to write in, and never touch a copy that exists.

python tools/workspace.py               copy the lessons and solutions that are not in work/ yet
python tools/workspace.py --fresh 02    put a fresh copy of lesson 02 beside the one in work/
"""

import argparse
import itertools
import os
import shutil
import sys
from pathlib import Path

from layout import ROOT, all_notebooks, find_lesson


def copy_missing(notebooks: Path, work: Path) -> list[Path]:
    """Copies the lessons and solutions that ``work`` does not have yet, and returns the new copies.

    Raises FileNotFoundError where there is no lesson to copy.
    """
    lessons = all_notebooks(notebooks)
    if not lessons:
        raise FileNotFoundError(f"there are no lessons in {notebooks}")
    targets = {lesson: work / lesson.relative_to(notebooks) for lesson in lessons}
    return [copy(lesson, target) for lesson, target in targets.items() if not target.exists()]


def fresh_copy(lesson: str, notebooks: Path, work: Path) -> Path:
    """Copies one lesson under a name that is still free, beside the learner's own copy, and returns the new copy.

    lesson: its number ("02"), its name ("02_attention"), or "solutions/02". Raises ValueError for an unknown one.
    """
    source = find_lesson(lesson, notebooks)
    own = work / source.relative_to(notebooks)
    numbered = (own.with_name(f"{own.stem}.fresh{number}.ipynb") for number in itertools.count(2))
    names = itertools.chain([own, own.with_name(f"{own.stem}.fresh.ipynb")], numbered)
    return copy(source, next(path for path in names if not path.exists()))


def copy(source: Path, target: Path) -> Path:
    """Copies a file whole or not at all: it gets its name only when all of it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fresh", metavar="LESSON", help="put a fresh copy of this lesson beside the one in work/"
    )
    arguments = parser.parse_args()
    notebooks, work = ROOT / "notebooks", ROOT / "work"
    try:
        if arguments.fresh is not None:
            print(
                f"A fresh copy is in {fresh_copy(arguments.fresh, notebooks, work).relative_to(ROOT)}; your own copies are as they were."
            )
        else:
            new = copy_missing(notebooks, work)
            print(f"New in work/: {len(new)} notebooks. Copies that were there are as you left them.")
    except (ValueError, FileNotFoundError) as error:
        print(
            f"{error}. Name one like this: make reset LESSON=02" if arguments.fresh is not None else error,
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
