"""Two commands on a fresh machine: pins, Makefile, conda, wheel, and no network."""

import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version

import pytest
from support.browser import chromium_path, node_path
from layout import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
BENCHMARKS_ONLY = {"vit-pytorch"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("package", pins())
def test_installed_versions_are_the_pinned_ones(package):
    try:
        installed = version(package)
    except PackageNotFoundError:
        assert package in BENCHMARKS_ONLY, f"{package} is pinned but not installed"
        return
    # A CPU build, 2.14.1+cpu, satisfies the pin 2.14.1.
    assert installed.split("+")[0] == pins()[package]


def test_every_direct_dependency_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    direct = set(re.findall(r'"([A-Za-z0-9_-]+)>=[\d.]+"', project.split("[project]")[1].split("[tool")[0]))
    assert len(direct) > 15
    assert {name.lower() for name in direct} - {"python"} <= {name.lower() for name in pins()}


def test_conda_installs_what_make_installs():
    (install,) = re.findall(r"pip install (-c \S+) (-e \.\[dev\])$", MAKEFILE, re.MULTILINE)
    section = (ROOT / "environment.yml").read_text().split("- pip:")[1]
    assert re.findall(r"- (.+)", section) == list(install)


def test_the_wheel_holds_the_package_with_its_scripts_styles_and_results_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("vit_course", "tools", "tests", "notebooks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--quiet",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    kept = [
        path for path in (source / "vit_course").rglob("*") if path.suffix in {".py", ".js", ".css", ".json"}
    ]
    assert sorted(names) == sorted(str(path.relative_to(source)) for path in kept)
    assert {
        f"vit_course/lab/explorer/{name}" for name in ("__init__.py", "explorer.js", "explorer.css")
    } <= set(names)


def test_code_and_notebooks_are_in_standard_form():
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_tests_have_no_network():
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=1) as client,
    ):
        assert client.getpeername() == server.getsockname()


# A stand-in for Python that notes its arguments, makes an environment out of itself, and installs only where it is told to.
STAND_IN = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip --version") test -z "$BROKEN" ;;
    *"pip install"*) test -z "$FAIL" ;;
    "-c "*) test -z "$OLD" || exec "$REAL" -c "import sys; sys.version_info = (3, 9, 1); ${2}" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Gives a function that runs make in a fresh clone with a stand-in for Python, and returns its result and what was run."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.write_text("")
        environment = {**os.environ, "LOG": str(log), "REAL": sys.executable, **environment}
        environment.pop("MAKEFLAGS", None)
        command = ["make", f"PYTHON={python}", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return result, log.read_text().splitlines()

    run.folder = tmp_path
    return run


def installs(lines: list[str]) -> int:
    return sum("pip install" in line for line in lines)


@pytest.mark.parametrize("target", ["lab", "test"])
def test_one_command_sets_itself_up_once(make, target):
    result, lines = make(target)
    assert result.returncode == 0, result.stderr
    assert "-m venv .venv" in lines and "-m pip install -c constraints.txt -e .[dev]" in lines
    assert installs(lines) == 1 and installs(make(target)[1]) == 0


def test_an_install_that_was_cut_short_is_done_again(make):
    assert make("test", FAIL="1")[0].returncode != 0
    result, lines = make("test")
    assert result.returncode == 0 and installs(lines) == 1


def test_new_pins_are_installed(make):
    make("test")
    os.utime(make.folder / "constraints.txt", (2**31, 2**31))
    assert installs(make("test")[1]) == 1


def test_an_environment_made_before_is_kept(make):
    """Whoever puts a CPU build of PyTorch into .venv first keeps it."""
    (make.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(make.folder / "python", make.folder / ".venv" / "bin")
    _, lines = make("test")
    assert "-m venv .venv" not in lines and installs(lines) == 1


def test_an_old_python_is_answered_in_a_sentence(make):
    result, lines = make("lab", OLD="1")
    assert result.returncode != 0 and installs(lines) == 0
    assert re.search(r"vit_course needs Python 3.11 or newer; .* is 3\.9", result.stderr)


def test_no_python_is_answered_in_a_sentence(make):
    result, _ = make("lab", "PYTHON=python-that-is-not-there")
    assert (
        result.returncode != 0
        and "There is no python-that-is-not-there here" in result.stdout + result.stderr
    )


def test_make_test_is_strict_and_one_thread_per_worker(make):
    commands = make("-n", "test")[0].stdout
    assert "tools/export.py --check" in commands and "pytest tests notebooks -n 2 --dist loadfile" in commands
    assert "lax" not in commands + (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^test execute: export OMP_NUM_THREADS = 1$", MAKEFILE, re.MULTILINE)


def test_lab_stays_on_this_machine_with_its_token(make):
    _, lines = make("lab")
    command = lines[-1].replace(" --allow-root", "").split()
    assert command[:3] == ["-m", "jupyterlab", "--ip=localhost"]
    # The address that is printed, not only the browser that opens, leads to the learner's own lesson 00.
    assert command[3:] == ["--ServerApp.root_dir=work", "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        ((), "chromium nodejs"),
        (("chromium",), "nodejs"),
        (("node",), "chromium"),
        (("chromium", "node"), None),
    ],
)
def test_ci_installs_the_browser_and_node_where_they_are_missing(tmp_path, there, installed):
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name in ("bash", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name))
    for name in ("apt-get", "make", *there):
        (programs / name).write_text(f'#!/bin/bash\necho "{name} $* CI=${{CI:-}}" >> {log}\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": str(programs)}
    subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True)
    *before, last = log.read_text().splitlines()
    assert last == "make test CI=true"
    assert [line.split()[1] for line in before] == (["update", "install"] if installed else [])
    assert not installed or f"Retries=3 {installed} CI=" in before[1]


def test_without_a_browser_a_test_is_skipped_with_a_sentence_but_not_on_ci(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("VIT_COURSE_CHROMIUM", raising=False)
    monkeypatch.delenv("CI", raising=False)
    for path, sentence in (
        (chromium_path, "apt-get install chromium"),
        (node_path, "apt-get install nodejs"),
    ):
        with pytest.raises(pytest.skip.Exception, match=sentence):
            path()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="this test needs Chromium"):
        chromium_path()
    monkeypatch.setenv("VIT_COURSE_CHROMIUM", sys.executable)
    assert chromium_path() == sys.executable


def test_every_target_of_help_is_there(make):
    help_text = make("help")[0].stdout
    targets = re.findall(r"make (\w+)", help_text)
    assert set(targets) >= {"lab", "reset", "test", "export", "bench", "results", "clean"}
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_clean_keeps_what_the_learner_wrote(make):
    answer = make.folder / "work" / "02_attention.ipynb"
    answer.parent.mkdir()
    answer.write_text("my answer")
    make("test")
    assert make("clean")[0].returncode == 0
    assert answer.read_text() == "my answer" and not (make.folder / ".venv").exists()
