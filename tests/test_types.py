"""The type hints of the package hold."""

import subprocess
import sys

import pytest
from layout import ROOT


@pytest.mark.slow
def test_the_package_has_no_type_error():
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
