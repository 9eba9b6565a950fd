"""What all tests share: no network, the long notebooks first, and a maker of small lessons to damage."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import torch
from execute import METADATA
from layout import ATLAS, ROOT, lessons_in

HERE = ("127.", "localhost", "::1")


def pytest_configure(config: pytest.Config) -> None:
    """Cut the network for the tests, and by a missing proxy for the kernels and programs that they start."""
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
    """Put lessons before tests, what trains longest first: two workers then end at about the same time."""
    notebooks = ROOT / "notebooks"
    longest_first = [*reversed(lessons_in(notebooks)), *lessons_in(notebooks / ATLAS)]
    order = {path: number for number, path in enumerate(longest_first)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def matmul_precision() -> Iterator[None]:
    """Give the precision of float32 products back: a bench sets it for its whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def write_lesson(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small lesson, stored as if it had been run, and returns its path.

    Its cells are strings: text, or code that begins with "%%". Its ``outputs`` are listed by the number of
    the code cell, from one.
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
