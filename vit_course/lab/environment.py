"""Whether this machine has what the course needs, said in one sentence."""

import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement


def missing_packages(requirements: Iterable[str], installed: Callable[[str], str] = version) -> list[str]:
    """The requirements that are not met, each with what is there instead.

    Args:
        requirements: as in a package's metadata, "torch>=2.4"; those of extras are passed over.
        installed: gives the version of a package, or raises PackageNotFoundError.

    Returns:
        One entry for each, such as "torch>=2.4 (found 1.0)".
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
    """Describe this machine in a few lines; the last says whether the lessons will run, or what to type."""
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
        command = f'"{sys.executable}" -m pip install -e ".[dev]"'
        verdict = f"Not ready yet: {', '.join(problems)}. Type `{command}` in the folder of the course."
    else:
        verdict = "Everything is here: you can start."
    return "\n".join([*lines, verdict])
