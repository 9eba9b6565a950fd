"""Not only UTF-8 Linux: text is read and written as UTF-8 whatever the locale of the machine says."""

import ast
from pathlib import Path

import pytest
from layout import ROOT

FILES = sorted(
    path
    for folder in ("vit_course", "tools", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
# What these call open takes no text: pictures, archives, browsers, numbers of files, taps of attention.
NOT_TEXT = {"Image", "PIL", "os", "tap", "tarfile", "webbrowser", "zipfile"}
SUBPROCESS = {"run", "Popen", "check_output", "check_call", "call"}


def locale_text(source: str) -> list[int]:
    """The lines of a Python source in which text is read or written in the encoding of the locale."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and depends_on_locale(node)
    ]


def depends_on_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text without naming its encoding."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("read_text", "write_text"):
        # The encoding may also stand in its place: read_text(encoding), write_text(data, encoding).
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in SUBPROCESS and owner == "subprocess":
        return any(is_true(given.get(option)) for option in ("text", "universal_newlines"))
    if name in ("NamedTemporaryFile", "TemporaryFile", "fdopen"):
        mode = given.get("mode", call.args[1] if name == "fdopen" and len(call.args) > 1 else None)
        return mode is not None and "b" not in constant(mode)
    if name != "open" or owner in NOT_TEXT:
        return False
    place = 0 if isinstance(call.func, ast.Attribute) else 1  # Path.open(mode), open(file, mode)
    mode = given.get("mode", call.args[place] if len(call.args) > place else None)
    return mode is None or set(constant(mode)) <= set("rwaxt+U")


def constant(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "?"


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.write_text(words)",
        "path.write_text(words, errors='ignore')",
        "open(path)",
        "open(path, 'w')",
        "path.open()",
        "path.open('a')",
        "open(path, mode='r+')",
        "os.fdopen(number, 'w')",
        "NamedTemporaryFile(mode='w')",
        "subprocess.run(command, capture_output=True, text=True)",
    ],
)
def test_text_without_an_encoding_is_found(source):
    assert locale_text(f"\n{source}") == [2]


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text(encoding='utf-8')",
        "path.read_text('utf-8')",
        "path.write_text(words, 'utf-8')",
        "open(path, 'rb')",
        "open(path, mode='wb')",
        "path.open('rb')",
        "open(path, 'w', encoding='utf-8')",
        "Image.open(path)",
        "lab.open('notebook.ipynb')",
        "TemporaryFile()",
        "subprocess.run(command)",
        "subprocess.run(command, text=True, encoding='utf-8')",
    ],
)
def test_other_calls_are_left_alone(source):
    assert locale_text(source) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_depends_on_the_locale(path: Path):
    assert locale_text(path.read_text(encoding="utf-8")) == []
