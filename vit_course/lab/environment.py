"""Whether this machine has what the course needs, said in one sentence."""

import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement


def missing_packages(requirements: Iterable[str], installed: Callable[[str], str] = version) -> list[str]:
    """The requirements that are not met, each with what is there instead.

    requirements: as in a package's metadata, "torch>=2.4"; those of extras are passed over. installed: name -> version.
    Used in lesson 00.
    """
    problems = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} (not installed)")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement} (found {found})")
    return problems


def report() -> str:
    """What is here, a line each, and at the end one sentence that says whether the lessons will run, or what to type. Used in lesson 00."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"no GPU (none is needed), {torch.get_num_threads()} CPU threads"
    )
    lines = [
        f"Python      {sys.version.split()[0]}",
        f"PyTorch     {version('torch')}, {device}",
        f"vit_course  {version('vit_course')}",
    ]
    problems = missing_packages(requires("vit_course") or [])
    if problems:
        verdict = f"Not ready yet: {', '.join(problems)}. Type `{sys.executable} -m pip install -e .[dev]` in the folder of the course."
    else:
        verdict = "Everything is here: you can start."
    return "\n".join([*lines, verdict])
