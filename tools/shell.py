"""How the tools run programs and print, whatever encoding a machine has: text is UTF-8 everywhere."""

import os
import subprocess
import sys


def run(*command: str, source: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program and return its exit status and what it printed.

    Args:
        command: the program and its arguments.
        source: what it reads from its standard input.
    """
    # A Python that is started from here would otherwise write in the encoding of the locale.
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(
        command, input=source, capture_output=True, encoding="utf-8", errors="replace", env=environment
    )


def print_any_character() -> None:
    """Let ``print`` write every character; one that the encoding of the terminal lacks becomes an escape."""
    sys.stdout.reconfigure(errors="backslashreplace")  # as the error stream is from the start
