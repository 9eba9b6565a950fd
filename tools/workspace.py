"""Give the learner copies of the lessons to write in, and never touch a copy that exists.

python tools/workspace.py               copy the lessons and solutions that are not in work/ yet
python tools/workspace.py --fresh 02    put a fresh copy of lesson 02 beside the one in work/
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
from layout import ROOT, all_notebooks, find_lesson


def copy_missing(notebooks: Path, work: Path) -> list[Path]:
    """Copy the lessons and solutions that ``work`` does not have yet.

    Returns:
        The new copies.

    Raises:
        FileNotFoundError: where there is no lesson to copy.
        NotADirectoryError: where a file stands in place of a folder; nothing is copied then.
    """
    lessons = all_notebooks(notebooks)
    if not lessons:
        raise FileNotFoundError(f"there are no lessons in {notebooks}")
    targets = {lesson: work / lesson.relative_to(notebooks) for lesson in lessons}
    for target in targets.values():
        check_folder(target.parent)
    return [copy(lesson, target) for lesson, target in targets.items() if not os.path.lexists(target)]


def fresh_copy(lesson: str, notebooks: Path, work: Path) -> Path:
    """Copy one lesson under a name that is still free, beside the learner's own copy.

    Args:
        lesson: its number ("02"), its name ("02_attention"), or "solutions/02".

    Returns:
        The new copy.

    Raises:
        ValueError: for an unknown lesson.
        NotADirectoryError: where a file stands in place of a folder.
    """
    source = find_lesson(lesson, notebooks)
    own = work / source.relative_to(notebooks)
    check_folder(own.parent)
    numbered = (own.with_name(f"{own.stem}.fresh{number}.ipynb") for number in itertools.count(2))
    names = itertools.chain([own, own.with_name(f"{own.stem}.fresh.ipynb")], numbered)
    return copy(source, next(path for path in names if not os.path.lexists(path)))


def outdated(notebooks: Path, work: Path) -> list[Path]:
    """List the copies of lessons that were rewritten since: of the lesson's cells they hold less than half.

    Cells keep their ids whatever the learner writes into them. A copy that is no notebook, or has no ids, is
    not listed.
    """
    found = []
    for lesson in all_notebooks(notebooks):
        copied = work / lesson.relative_to(notebooks)
        new, old = cell_ids(lesson), cell_ids(copied)
        if old and len(new & old) < len(new) / 2:
            found.append(copied)
    return found


def cell_ids(path: Path) -> set[str]:
    """Return the ids of a notebook's cells, none where there is no such notebook."""
    try:
        return {cell.id for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells}
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError):
        return set()


def check_folder(folder: Path) -> None:
    """Raise a NotADirectoryError unless this is a folder, a link to one, or can become one."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not place.is_dir():
            kind = "a link that leads nowhere" if place.is_symlink() and not place.exists() else "a file"
            raise NotADirectoryError(
                f"the copies go into the folder {folder}, but {place} is {kind}: rename it"
            )


def copy(source: Path, target: Path) -> Path:
    """Copy a file whole or not at all: it gets its name only when all of it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    return target


def answer_news(settings: Path) -> None:
    """Answer before it is asked what JupyterLab asks at its first start, whether it may fetch news: no.

    Args:
        settings: the file of JupyterLab's own defaults; one that is there stays as it is.
    """
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(
            json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}),
            encoding="utf-8",
        )


def main() -> int:
    """Run the command line; returns the exit status."""
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
            new_copy = fresh_copy(arguments.fresh, notebooks, work).relative_to(ROOT)
            print(f"A fresh copy is in {new_copy}; your own copies are as they were.")
        else:
            with contextlib.suppress(OSError):  # of a Python that may not be written to: then it asks
                answer_news(Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json"))
            new = copy_missing(notebooks, work)
            print(f"New in work/: {len(new)} notebooks. Copies that were there are as you left them.")
            for copied in outdated(notebooks, work):
                name = copied.relative_to(work).with_suffix("").as_posix()
                print(
                    f"{copied.relative_to(ROOT)} is of an earlier edition; the new one, beside yours: "
                    f"make reset LESSON={name}"
                )
    except ValueError as error:
        print(f"{error}. Name one like this: make reset LESSON=02", file=sys.stderr)
        return 1
    except OSError as error:  # a folder that is a file, that may not be written, or a full disk
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
