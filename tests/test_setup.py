"""Two commands on a fresh machine: pins, Makefile, conda, wheel, CI, and no network."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

import pytest
import yaml
from layout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.browser import chromium_path, node_path


def read(name: str) -> str:
    """Read a file of the clone."""
    return (ROOT / name).read_text(encoding="utf-8")


MAKEFILE = read("Makefile")
PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
BENCHMARKS_ONLY = {"vit-pytorch"}


def pins() -> dict[str, str]:
    """Read the pinned version of each package."""
    lines = read("constraints.txt").splitlines()
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
    wanted = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    direct = {canonicalize_name(Requirement(line).name) for line in wanted}
    assert len(direct) > 15
    assert direct <= {canonicalize_name(name) for name in pins()}


def test_conda_installs_what_make_installs():
    (install,) = re.findall(r"pip install (-c \S+) (-e \.\[dev\])$", MAKEFILE, re.MULTILINE)
    section = read("environment.yml").split("- pip:")[1]
    assert re.findall(r"- (.+)", section) == list(install)


def test_the_wheel_holds_the_package_with_its_scripts_styles_and_results_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("vit_course", "tools", "tests", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    kinds = {".py", ".js", ".css", ".json", ".safetensors", ".typed"}
    kept = [path for path in (source / "vit_course").rglob("*") if path.suffix in kinds]
    assert sorted(names) == sorted(path.relative_to(source).as_posix() for path in kept)
    explorer = {f"vit_course/lab/explorer/{name}" for name in ("__init__.py", "explorer.js", "explorer.css")}
    assert explorer | {"vit_course/py.typed"} <= set(names)


def run_here(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the clone."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")


def test_code_and_notebooks_are_in_standard_form():
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        result = run_here("ruff", *command, ".")
        assert result.returncode == 0, result.stdout + result.stderr


def test_words_are_spelt_right():
    result = run_here("codespell_lib")
    assert result.returncode == 0, result.stdout + result.stderr


def test_tests_have_no_network():
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=1) as client,
    ):
        assert client.getpeername() == server.getsockname()


# Python's stand-in: it notes its arguments, makes an environment of itself, and installs only where it may.
STAND_IN = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip --version") test -z "$BROKEN" ;;
    *"pip install"*) test -z "$FAIL" ;;
    "-c "*) test -z "$OLD" || exec "$REAL" -c "import sys; sys.version_info = (3, 9, 1); ${2}" "$3" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make in a fresh clone with Python's stand-in: its result, and what was run.

    Both stand in folders with a space and an apostrophe in their names, as people have them.
    """
    if os.name == "nt":
        pytest.skip("Windows has no make; the README says what to type instead")
    clone, log = tmp_path / "Ada's clone", tmp_path / "log"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    python = tmp_path / "Ada's Python" / "python3"
    python.parent.mkdir()
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.write_text("", encoding="utf-8")
        environment = {**os.environ, "LOG": str(log), "REAL": sys.executable, **environment}
        environment.pop("MAKEFLAGS", None)
        command = ["make", f"PYTHON={python}", *arguments]
        result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, encoding="utf-8")
        return result, log.read_text(encoding="utf-8").splitlines()

    run.folder, run.python = clone, python
    return run


def installs(lines: list[str]) -> int:
    """Count the installs among what was run."""
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
    shutil.copy(make.python, make.folder / ".venv" / "bin" / "python")
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
    assert "lax" not in commands + read("pyproject.toml")
    assert re.search(r"^test quick soak execute: export OMP_NUM_THREADS = 1$", MAKEFILE, re.MULTILINE)


def test_make_quick_leaves_out_the_notebooks_and_what_is_slow(make):
    commands = make("-n", "quick")[0].stdout
    assert "tools/export.py --check" in commands
    assert 'pytest tests -m "not slow and not soak" -p no:nbval' in commands


def test_lab_stays_on_this_machine_with_its_token(make):
    _, lines = make("lab")
    command = lines[-1].replace(" --allow-root", "").split()
    assert command[:3] == ["-m", "jupyterlab", "--ip=localhost"]
    # The address that is printed, not only the browser that opens, leads to the learner's own lesson 00.
    assert command[3:5] == ["--ServerApp.root_dir=work", "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
    assert command[5:] == []


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text(encoding="utf-8")


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
    if os.name == "nt":
        pytest.skip("the script is for bash")
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name in ("bash", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name))
    for name in ("apt-get", "make", *there):
        script = f'#!/bin/bash\necho "{name} $* CI=${{CI:-}}" >> {log}\n'
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {"PATH": str(programs)}
    subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True)
    *before, last = log.read_text(encoding="utf-8").splitlines()
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
    assert set(targets) >= {"lab", "reset", "test", "quick", "export", "bench", "results", "clean"}
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_clean_keeps_what_the_learner_wrote(make):
    answer = make.folder / "work" / "02_attention.ipynb"
    answer.parent.mkdir()
    answer.write_text("my answer", encoding="utf-8")
    make("test")
    assert make("clean")[0].returncode == 0
    assert answer.read_text(encoding="utf-8") == "my answer" and not (make.folder / ".venv").exists()


@pytest.fixture
def failing_hooks(tmp_path, write_lesson):
    """Return a function that runs the hooks of pre-commit on a small clone and names those that fail."""
    write_lesson("01_mine", "# Mine", "%%#| default_exp mine", "%%#| export\nSIZE = 2")
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "vit_course").mkdir()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home"), "GIT_CONFIG_GLOBAL": os.devnull}

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
        return result.stdout + result.stderr

    def failing() -> set[str]:
        run("git", "add", "notebooks", "vit_course", "pyproject.toml", ".pre-commit-config.yaml")
        shown = run(sys.executable, "-m", "pre_commit", "run", "--all-files")
        assert shown.count("...Passed") + shown.count("...Failed") == 4, shown
        return set(re.findall(r"hook id: ([\w-]+)", shown))

    run("git", "init")
    run(sys.executable, "tools/export.py")
    return failing


@pytest.mark.slow
def test_hooks_let_a_good_clone_pass_and_each_sees_its_damage(failing_hooks, tmp_path):
    assert failing_hooks() == set()
    with (tmp_path / "vit_course" / "mine.py").open("a", encoding="utf-8") as module:
        module.write("print(nowhere ) # teh end\n")  # codespell:ignore teh
    assert failing_hooks() == {"ruff-check", "ruff-format", "export", "codespell"}


def test_ci_on_github_covers_what_the_package_promises():
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert promised[0] == PROJECT["requires-python"].removeprefix(">=")
    for job in workflow["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == promised
    commands = [step.get("run", "") for step in workflow["jobs"]["quick"]["steps"]]
    quick = re.search(r"-m pytest (tests .*?) -n", MAKEFILE.split("quick: $")[1])[1]
    assert any(quick in command for command in commands)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## [{PROJECT['version']}]" in read("CHANGELOG.md")


def test_addresses_are_placeholders_in_one_place():
    assert all(address.startswith("https://example.org/") for address in PROJECT["urls"].values())
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        assert "example.org" not in read(name)
