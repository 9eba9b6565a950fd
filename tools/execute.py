"""Run notebooks again from their first cell and store what they show, in the one form the tests expect.

    python tools/execute.py                 every lesson, then the solutions
    python tools/execute.py 02 solutions/02 these
    python tools/execute.py --normalise 02  only bring the stored form in order, run nothing

A notebook that fails stays on disk as it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from layout import ROOT, all_notebooks, find_lesson
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from shell import print_any_character

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class ExecutionError(RuntimeError):
    """A cell that failed; the message names the notebook and the cell and carries the error."""


def execute(notebook: NotebookNode, path: Path, timeout: int = 600) -> None:
    """Run all cells of a notebook in a new kernel and keep their outputs in place.

    Args:
        notebook: the notebook.
        path: where it stands; its cells run in that folder.
        timeout: the longest time for one cell, in seconds.

    Raises:
        ExecutionError: a cell fails, is too slow or kills the kernel, or is tagged raises-exception and
            raises nothing.
    """
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources=folder,
    )
    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for _, cell in code:
        cell.outputs, cell.execution_count = [], None
    with client.setup_kernel():
        for number, (index, cell) in enumerate(code, start=1):
            if sys.stdout.isatty():
                print(f"\r{path.stem}: cell {number} of {len(code)}", end="", flush=True)
            name = f"{path.name}, code cell {number} (id {cell.id})"
            try:
                client.execute_cell(cell, index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                raise ExecutionError(f"{name} failed:\n\n{error}") from error
            if "raises-exception" in cell.metadata.get("tags", []) and not any(
                output.output_type == "error" for output in cell.outputs
            ):
                raise ExecutionError(
                    f"{name} is tagged raises-exception but raised nothing:\n\n{cell.source}"
                )


def normalise(notebook: NotebookNode) -> None:
    """Bring a notebook into its stored form, in place, without traces of a machine, a moment or an editor.

    Kept are sources, tags, what folds a cell, execution counts, outputs and their metadata (the text
    alternatives of pictures). Dropped are all other metadata, widgets (they need a kernel) and the tracebacks
    of deliberate errors, which hold paths: their last line stays.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = kept_metadata(cell)
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
            if "data" in output:
                output.data.pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def kept_metadata(cell: NotebookNode) -> NotebookNode:
    """Return what of a cell's metadata is the author's: its tags, and whether JupyterLab folds its source."""
    kept = {}
    if cell.metadata.get("tags"):
        kept["tags"] = cell.metadata.tags
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all.

    Raises:
        nbformat.ValidationError: it is not valid.
    """
    nbformat.validate(notebook)
    partial = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


def main() -> int:
    print_any_character()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lessons", nargs="*", metavar="LESSON", help="number, name or path; all where none is given"
    )
    parser.add_argument(
        "--normalise", action="store_true", help="only bring the stored form in order, run nothing"
    )
    arguments = parser.parse_args()
    notebooks = ROOT / "notebooks"
    try:
        paths = [find_lesson(lesson, notebooks) for lesson in arguments.lessons] or all_notebooks(notebooks)
        for path in paths:
            start = time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            if not arguments.normalise:
                execute(notebook, path)
            normalise(notebook)
            write(notebook, path)
            print(
                f"\r{path.stem}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB",
                flush=True,
            )
    except (ValueError, ExecutionError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
