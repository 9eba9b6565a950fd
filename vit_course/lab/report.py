"""One HTML page about an experiment: tables, figures and the explorer in one file that needs no network.

table = Table(("", "kNN"), [("DINO", "45 %"), ("untrained network", "12 %")])
curve = Illustration(figure, alt="A curve that falls", caption="The loss at each step of training.")
write_page("my_experiment.html", "DINO on shapes", {"The table": ["What it says.", table], "Curves": [curve]})
"""

import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from matplotlib.figure import Figure

import vit_course

from .explorer import AttentionExplorer
from .pictures import as_html
from .writing import write_whole

STYLE = """
:root {
    color-scheme: light dark;
    --text: #24292f; --quiet: #5b6470; --line: #c3c7cd; --ground: #fff; --marked: #e6f0fa;
}
@media (prefers-color-scheme: dark) {
    :root { --text: #e4e7eb; --quiet: #a3acb7; --line: #46505c; --ground: #111418; --marked: #1b2c3d; }
}
body {
    margin: 0 auto; padding: 24px 16px; max-width: 960px;
    color: var(--text); background: var(--ground); font: 16px/1.5 system-ui, sans-serif;
}
table { border-collapse: collapse; margin: 16px 0; }
caption { caption-side: bottom; text-align: left; color: var(--quiet); font-size: 14px; padding-top: 6px; }
th, td { padding: 4px 14px; text-align: right; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; font-weight: normal; }
td:nth-child(2):last-child { text-align: left; }
thead th { font-weight: 600; }
tr.marked > * { background: var(--marked); font-weight: 600; }
figure { margin: 16px 0; }
img { max-width: 100%; background: #fff; }
figcaption, footer { color: var(--quiet); font-size: 14px; max-width: 720px; }
iframe { width: 100%; height: 880px; border: 1px solid var(--line); }
"""


@dataclass(frozen=True)
class Table:
    """A table of words and of numbers written as words, which shows itself in a notebook and on a page.

    Attributes:
        header: the names of the columns.
        rows: as many words each; the first of a row is its name.
        caption: a sentence below it.
        marked: the name of the row to stress.

    Raises:
        TypeError: for a cell that is not a string.
        ValueError: for a row of another length, naming it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marked: str | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"a row needs {len(self.header)} words, one for each column, got {tuple(row)}"
                )
        for cell in (cell for line in (self.header, *self.rows) for cell in line):
            if not isinstance(cell, str):
                raise TypeError(
                    f"a cell of a table is a string, got {cell!r}; write numbers as they are to be read"
                )

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        if self.caption:
            text.append(self.caption)
        return "\n".join(text)

    def _repr_html_(self) -> str:
        def line(words: Sequence[str]) -> str:
            name, *others = map(html.escape, words)
            stressed = ' class="marked"' if words[0] == self.marked else ""
            cells = "".join(f"<td>{word}</td>" for word in others)
            return f'<tr{stressed}><th scope="row">{name}</th>{cells}</tr>'

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        header = "".join(f'<th scope="col">{html.escape(word)}</th>' for word in self.header)
        body = "\n".join(map(line, self.rows))
        return f"<table>{caption}\n<thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody>\n</table>"


@dataclass(frozen=True)
class Illustration:
    """A figure for a page, with what a reader needs who was not there when it was made.

    Attributes:
        picture: a matplotlib figure.
        alt: the words in its place, for whoever cannot see it.
        caption: what it shows and how to read it, below it.

    Raises:
        ValueError: where one of the two texts is empty.
    """

    picture: Figure
    alt: str
    caption: str

    def __post_init__(self) -> None:
        for name, words in {"alt": self.alt, "caption": self.caption}.items():
            if not words.strip():
                raise ValueError(f"{name} must say in words what the picture shows, got {words!r}")


Part = str | Table | AttentionExplorer | Illustration | tuple[Figure, str]


def check_page(path: str | Path) -> Path:
    """Make sure that a page can be written, before an experiment rather than after it.

    Args:
        path: the file; ``~`` is the home folder.

    Returns:
        The path, without ``~``.

    Raises:
        ValueError: for a path that does not end in .html, or is a folder.
        FileNotFoundError: if its folder is not there.
        OSError: if nothing can be written into that folder.
    """
    path = Path(path).expanduser()
    if path.suffix != ".html":
        raise ValueError(f"a page is a file that ends in .html, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"a page is a file, but {str(path)!r} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} into")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise type(error)(f"nothing can be written into {str(path.parent)!r}: {error}") from error
    return path


def write_page(path: str | Path, title: str, sections: Mapping[str, Sequence[Part]]) -> Path:
    """Write one HTML file that works from disk without server or network, whole or not at all.

    Args:
        path: the file, ``….html``; ``~`` is the home folder. One that is there is replaced.
        title: what stands at the top.
        sections: heading -> parts: a string is a paragraph, a `Table` a table, an `Illustration`, or a pair
            of a matplotlib figure and the words in place of it, a figure, and an `AttentionExplorer` stays
            interactive. Below them stand the versions of the course and of PyTorch, and the date.

    Returns:
        The path, without ``~``.

    Raises:
        ValueError, OSError: as `check_page` does.
        TypeError: for another part, naming its section, such as a figure without words.
    """
    path = check_page(path)
    body = "\n".join(_section(heading, parts) for heading, parts in sections.items())
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
<footer>{_made_with()}</footer>
</body>
</html>
"""
    write_whole(path, text)
    return path


def _made_with() -> str:
    versions = f"vit_course {vit_course.__version__} and PyTorch {torch.__version__}"
    return f"Made with {versions} on {date.today().isoformat()}."


def _section(heading: str, parts: Sequence[Part]) -> str:
    drawn = "\n".join(_drawn(part, heading) for part in parts)
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{drawn}\n</section>"


def _drawn(part: Part, heading: str) -> str:
    """The HTML of one part."""
    match part:
        case str():
            return f"<p>{html.escape(part)}</p>"
        case Table():
            return part._repr_html_()
        case AttentionExplorer():
            return _explorer(part)
        case Illustration():
            caption = f"<figcaption>{html.escape(part.caption)}</figcaption>"
            return f"<figure>{as_html(part.picture, part.alt)}{caption}</figure>"
        case (Figure() as figure, str() as alt) if alt.strip():
            return f"<figure>{as_html(figure, alt)}</figure>"
    raise TypeError(
        f"section {heading!r} can hold strings, Tables, AttentionExplorers, Illustrations and pairs of a "
        f"figure and its words, got {part!r}"
    )


def _explorer(explorer: AttentionExplorer) -> str:
    """The explorer's own page in a frame: its script and style stay among themselves."""
    with tempfile.TemporaryDirectory() as folder:
        page = explorer.to_html(Path(folder) / "explorer.html").read_text(encoding="utf-8")
    return f'<iframe title="Attention explorer" srcdoc="{html.escape(page)}"></iframe>'
