"""The first cell of the course tells the truth about a machine."""

from importlib.metadata import PackageNotFoundError

from vit_course.lab import environment


def test_this_machine_is_ready():
    assert environment.report().splitlines()[-1] == "Everything is here: you can start."


def test_missing_and_old_packages_are_named():
    def installed(name: str) -> str:
        if name == "einops":
            raise PackageNotFoundError(name)
        return "1.0"

    problems = environment.missing_packages(
        ["torch>=2.4", "einops", "tqdm>=0.5", 'timm>=9; extra == "dev"'], installed
    )
    assert problems == ["torch>=2.4 (found 1.0)", "einops (not installed)"]


def test_report_says_what_to_type(monkeypatch):
    monkeypatch.setattr(environment, "requires", lambda name: ["a_package_nobody_has>=1"])
    verdict = environment.report().splitlines()[-1]
    assert (
        verdict.startswith("Not ready yet: a_package_nobody_has (not installed).")
        and "pip install" in verdict
    )
