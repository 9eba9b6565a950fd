"""What all tests share: no network, the long notebooks first, and a maker of small lessons to plant defects in."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from execute import METADATA

NOTEBOOK = re.compile(r"(\d\d)_\w+\.ipynb")
HERE = ("127.", "localhost", "::1")


def pytest_configure(config: pytest.Config) -> None:
    """Cuts the network for the tests, and by a proxy that is not there for the kernels and programs they start."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(HERE):
            raise OSError(f"tests run without a network, but something connects to {address[0]}")
        connect(self, address)

    socket.socket.connect = connect_here
    os.environ |= dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts notebooks before tests, and later lessons, which train longest, first: two workers then end at about the same time."""

    def weight(item: pytest.Item) -> int:
        lesson = NOTEBOOK.fullmatch(item.path.name)
        return -1 - int(lesson[1]) if lesson and item.path.parent.name != "solutions" else 0

    items.sort(key=weight)


@pytest.fixture
def write_lesson(tmp_path: Path) -> Callable[..., Path]:
    """Gives a function that writes a small lesson, stored as if it had been run, and returns its path.

    Its cells are strings: text, or code that begins with "%%"; ``outputs`` maps the number of a code cell, from one, to its outputs.
    """

    def write(
        name: str, *cells: str, outputs: dict[int, list] | None = None, folder: str = "notebooks"
    ) -> Path:
        notebook = nbformat.v4.new_notebook(metadata=METADATA)
        number = 0
        for position, source in enumerate(cells):
            if source.startswith("%%"):
                number += 1
                stored = [nbformat.from_dict(output) for output in (outputs or {}).get(number, [])]
                cell = nbformat.v4.new_code_cell(
                    source.removeprefix("%%").strip(), execution_count=number, outputs=stored
                )
            else:
                cell = nbformat.v4.new_markdown_cell(source)
            cell.id = f"cell-{position}"
            notebook.cells.append(cell)
        path = tmp_path / folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write
