"""What the README tells people to type works."""

import os
import re

import pytest
from layout import ROOT
from readme import README, with_tables


@pytest.fixture(scope="module")
def readme() -> str:
    if not README.exists() and "CI" not in os.environ:
        pytest.skip("there is no README.md yet")
    return README.read_text(encoding="utf-8")


def test_its_python_runs(readme, tmp_path, monkeypatch):
    """All snippets run in one namespace, in their order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, snippet in enumerate(
        re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL), start=1
    ):
        exec(compile(snippet, f"README.md, Python snippet {number}", "exec"), namespace)
    assert namespace, "the README has no Python snippet"


def test_its_make_targets_exist(readme):
    named = set(re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z]+)", readme, re.MULTILINE))
    assert {"lab", "test"} <= named
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets, (
        f"the README names make {', '.join(sorted(named - targets))}, which the Makefile lacks"
    )


def test_its_relative_links_lead_somewhere(readme):
    text = re.sub(r"```.*?```", "", readme, flags=re.DOTALL)
    targets = [
        target.split("#")[0]
        for target in re.findall(r"\]\(\s*<?([^)\s>]+)", text)
        if not re.match(r"[a-z]+:|#", target)
    ]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_its_tables_are_those_of_the_lessons_and_the_catalogue(readme):
    assert with_tables(readme) == readme, "write them again: python tools/readme.py"


def test_a_readme_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="has no lines <!-- lessons: .* and <!-- end of lessons -->"):
        with_tables("# vit_course\n")
