"""Symbolic links for tests, where the system lets them be made."""

from pathlib import Path

import pytest


def link(path: Path, target: Path) -> None:
    """Make a link to a file, a folder or nothing; skip the calling test where nobody may make one."""
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this system lets nobody make links")
