"""The rows of the catalogue are true, and one more row is all that it takes to add a model."""

import inspect
import subprocess
import sys

import bench
import pytest
import readme
import torch
from layout import ROOT
from support import models, objectives
from support.toy import FORGETS, Toy, add_toy
from torch import nn

from vit_course.lab import leaderboard, pretrained
from vit_course.lab.catalogue import FOREIGN, MODELS, OBJECTIVES, Published, Row
from vit_course.lab.parity import SAME, relative_error

PUBLISHED = {name: (row, size) for row in MODELS.values() for name, size in row.published.items()}
TWINS = {
    f"{name} of {library}": (row, size, library)
    for name, (row, size) in PUBLISHED.items()
    for library, twin in size.twins.items()
    if twin.is_equal
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("row", "size"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_counts_are_the_published_ones(row: Row, size: Published) -> None:
    with torch.device("meta"):
        assert parameters(row.kind(**size.sizes)) == size.parameters


@pytest.mark.parametrize(("row", "size", "library"), TWINS.values(), ids=TWINS)
def test_an_equal_twin_is_converted_into_this_size(row: Row, size: Published, library: str) -> None:
    """The library's converter makes just the model that the row names; the lessons' tests compare logits."""
    convert = {"timm": pretrained.from_timm, "torchvision": pretrained.from_torchvision}[library]
    with torch.device("meta"):
        theirs = size.twins[library].make()
        ours, converted = row.kind(**size.sizes), convert(theirs)
    assert parameters(theirs) == size.parameters
    assert type(converted) is row.kind
    assert [(name, tensor.shape) for name, tensor in converted.state_dict().items()] == [
        (name, tensor.shape) for name, tensor in ours.state_dict().items()
    ]


@pytest.mark.parametrize("row", MODELS.values(), ids=MODELS)
def test_a_row_names_all_dropouts(row: Row) -> None:
    arguments = inspect.signature(row.kind).parameters
    assert set(row.dropouts) == {name for name in arguments if name.endswith("dropout")}


@pytest.mark.parametrize("row", MODELS.values(), ids=MODELS)
def test_reservations_are_about_objectives_there_are(row: Row) -> None:
    assert row.reservations.keys() <= OBJECTIVES.keys()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_models_are_of_the_same_small_form(name: str) -> None:
    torch.manual_seed(0)
    model = FOREIGN[name](num_classes=3, dropout=0.5)
    assert model.eval()(models.images()).shape == (4, 3)
    one, other = (model.train()(models.images()) for _ in range(2))
    assert relative_error(one, other) > SAME


def test_the_catalogue_needs_no_library_of_others() -> None:
    code = "import sys, vit_course.lab.catalogue; print({'timm', 'vit_pytorch'}.isdisjoint(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert answer.stdout.strip() == "True"


# ---- One more row ----------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Row:
    return add_toy(monkeypatch)


def test_a_new_row_is_held_to_the_promises_of_all(toy: Row) -> None:
    cases = models.cases()
    assert list(cases)[-2:] == ["Toy", "Toy narrow"]
    assert type(cases["Toy narrow"].build()) is Toy and cases["Toy narrow"].build().num_features == 8
    assert cases["Toy"].sizes == toy.other_sizes and cases["Toy"].dropouts == {}


def test_a_new_row_is_timed(toy: Row) -> None:
    family = bench.families()["Toy-T"]
    assert list(family.libraries) == [bench.OURS, "timm"] and (family.batch, family.image_size) == (2, 16)
    assert type(family.build(bench.OURS)) is Toy


def test_a_new_row_stands_on_the_leaderboard(toy: Row) -> None:
    assert leaderboard.models()[-2:] == ("Toy", "CNN")


def test_a_new_row_stands_in_the_readme(toy: Row) -> None:
    assert "| Toy | 99 | tokens | global | timm | Toy-T 4,805 |" in readme.models_table()
    table = readme.objectives_table()
    assert " | Toy | " in table.splitlines()[0] and f") {FORGETS}" in table


def test_a_new_row_is_trained_by_every_objective(toy: Row) -> None:
    assert [objective for objective, name in objectives.pairs() if name == "Toy narrow"] == list(OBJECTIVES)
    assert objectives.reservation(("MPP", "Toy")) == toy.reservations["MPP"]
    for objective in OBJECTIVES:
        model = objectives.prepare(objective, "Toy", steps=1).model
        assert any(type(part) is Toy for part in model.modules())
