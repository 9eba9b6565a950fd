"""Write lessons as pages of HTML in build/pages, for a look at how they read; folded cells open with a click.

    python tools/page.py          every lesson and its solutions
    python tools/page.py 02 a1    these

JupyterLab folds a cell by its metadata source_hidden, converted pages by its tag hide-input: MyST by itself,
nbconvert by the template below.
"""

import argparse
import sys
from pathlib import Path

from layout import ROOT, all_notebooks, find_lesson
from nbconvert import HTMLExporter
from shell import print_any_character

FOLDING = """
{%- extends 'lab/index.html.j2' -%}
{%- block input_group -%}
{%- if 'hide-input' in cell.metadata.get('tags', []) -%}
<details><summary>Show the code</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock input_group -%}
"""


def page(path: Path, folder: Path) -> Path:
    """Write a notebook as a page.

    Args:
        path: the notebook.
        folder: where the page goes, under the name of the notebook.

    Returns:
        The path of the page.
    """
    text, _ = HTMLExporter(raw_template=FOLDING).from_filename(str(path))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.stem}.html"
    target.write_text(text, encoding="utf-8", newline="\n")
    return target


def main() -> int:
    print_any_character()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lessons", nargs="*", metavar="LESSON", help="number or name; all where none is given"
    )
    arguments = parser.parse_args()
    notebooks = ROOT / "notebooks"
    try:
        paths = [find_lesson(lesson, notebooks) for lesson in arguments.lessons] or all_notebooks(notebooks)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in paths:
        target = ROOT / "build" / "pages" / path.relative_to(notebooks).parent
        print(f"{page(path, target).relative_to(ROOT)} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
