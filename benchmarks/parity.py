"""How near the published models come in: the table of the README, stored beside the other results.

    python benchmarks/parity.py

Every row is one family of `vit_course.lab.pretrained.families`: a small twin with random weights, and the
relative error of our outputs beside the library's own.
"""

from importlib.metadata import version

from tables import write
from tqdm import tqdm

from vit_course.lab import results
from vit_course.lab.pretrained.families import FAMILIES, Family

TITLE = "Published models in the course: relative error of outputs beside the library's own"


def row(family: Family) -> dict[str, object]:
    """What was measured of one family."""
    return {
        "name": family.published,
        "library": family.library,
        "way": family.way,
        "error": family.error(),
    }


if __name__ == "__main__":
    rows = [row(family) for family in tqdm(FAMILIES)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("timm", "torchvision", "transformers"))
    write(results.FOLDER / "parity.json", f"{TITLE} ({packages})", rows)
