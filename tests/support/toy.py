"""A model that no lesson has: what the rest of the course makes of one more row in the catalogue."""

import pytest
from torch import nn

from vit_course.lab import catalogue
from vit_course.lab.catalogue import Entrant, Published, Reservation, Row, Twin, Variant
from vit_course.vit import SimpleViT


class Toy(SimpleViT):
    """Stands for the model of a lesson that is not written yet."""


SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "num_classes": 5,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
}
FORGETS = "Toys forget what was hidden."


def row() -> Row:
    """The one row that such a model needs."""
    return Row(
        kind=Toy,
        lesson="99",
        tiny=SIZES,
        attention=("global",),
        dropouts=(),
        other_sizes=((8, 8), (16, 24)),
        small={"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16},
        entrants={"Toy": Entrant(lambda: SIZES, steps=10)},
        variants={"narrow": Variant(lambda: {"dim": 8})},
        published={"Toy-T": Published(SIZES, 4_805, {"timm": Twin(lambda: nn.Linear(3, 3))}, bench_batch=2)},
        reservations={"MPP": Reservation(FORGETS)},
    )


def add_toy(monkeypatch: pytest.MonkeyPatch) -> Row:
    """Add the row to the catalogue for one test, and return it."""
    monkeypatch.setitem(catalogue.MODELS, "Toy", row())
    return catalogue.MODELS["Toy"]
