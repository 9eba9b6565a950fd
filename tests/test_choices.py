"""The choices of an experiment: what they stand for, and what is refused before anything is computed."""

from pathlib import Path

import pytest
import torch
from support.toy import add_toy
from torchvision.utils import save_image

from vit_course.lab import catalogue, data
from vit_course.lab.choices import OBJECTIVES, Choices, networks

PRINTED = dict(
    data="easy",
    size=None,
    patch=None,
    network="ViT",
    objective="DINO",
    steps=400,
    seed=0,
    guess=...,
    page="capstone.html",
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with classes, one with a single class and a flat one, and goes where they are."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for place in ("mine/cats", "mine/dogs", "one/cats", "flat"):
        Path(place).mkdir(parents=True)
        for number in range(10):
            save_image(torch.rand(3, 12, 18, generator=generator), Path(place, f"{number}.png"))


def choose(**others: object) -> Choices:
    return Choices(**PRINTED | others)  # type: ignore[arg-type]


def test_none_stands_for_sizes_that_learn_in_minutes() -> None:
    assert (choose().side, choose().patch_side, choose().channels) == (32, 8, 3)
    assert (choose(data="digits").side, choose(data="digits").patch_side) == (8, 2)
    assert choose(data="digits").channels == 1
    finer = choose(size=64, patch=4)
    assert (finer.side, finer.patch_side) == (64, 4)
    assert "64 × 64 pixels in patches of 4: 400 steps, seed 0" in str(finer)
    assert "patches" not in str(choose(network="MaxViT"))


def test_a_guess_may_stay_unanswered() -> None:
    assert choose().percent is None and choose(guess=None).percent is None
    assert choose(guess=60).percent == 60 and choose(guess=0).percent == 0


@pytest.mark.parametrize("source", ["mine", "one", "flat"])
def test_the_pictures_of_a_folder_come_in_an_order_drawn_by_chance(source: str) -> None:
    train, test = choose(data=source, size=16, objective="MPP").load()
    assert train.images.shape[1:] == (3, 16, 16)
    assert (len(train), len(test)) == ((16, 4) if source == "mine" else (8, 2))
    if source == "mine":
        assert train.labels.diff().min() < 0
    assert len(train.classes) == {"mine": 2, "one": 1, "flat": 0}[source]
    assert choose(data=source).is_photographic and choose(data=f"./{source}").pictures_name == source


def test_generated_pictures_have_the_chosen_size_and_unseen_test_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vit_course.lab import choices

    monkeypatch.setattr(choices, "shapes", lambda *given, **named: data.shapes(*given, count=5, **named))
    train, test = choose(size=24, patch=4).load()
    assert train.images.shape == test.images.shape == (5, 3, 24, 24)
    unseen = data.shapes("easy", "test", count=5, size=24, seed=1)
    assert torch.equal(test.images, unseen.images)
    assert not choose().is_photographic and choose(data="photos").is_photographic


REFUSED = {
    "network": (dict(network="Vit"), f"NETWORK is 'Vit', which is none of {', '.join(networks())}"),
    "a network off the menu": (dict(network="DistilledViT"), "NETWORK is 'DistilledViT', which is none of"),
    "objective": (
        dict(objective="dino"),
        f"OBJECTIVE is 'dino', which is none of supervised, {', '.join(catalogue.OBJECTIVES)}",
    ),
    "data": (
        dict(data="cats"),
        "DATA is 'cats', which is no folder and none of easy, default, hard, digits, photos",
    ),
    "no data": (dict(data=""), "DATA is '', which is no folder"),
    "guess": (dict(guess=101), "GUESS must be in 0 … 100, got 101"),
    "steps": (dict(steps=0), "STEPS must be at least 1"),
    "seed": (dict(seed=-1), "SEED must be at least 0"),
    "size": (dict(size=0), "SIZE must be at least 1"),
    "size of digits": (dict(data="digits", size=32), "SIZE is 32, but digits are 8 × 8: leave it None"),
    "patches that do not fill": (dict(size=32, patch=64), "PATCH is 64 and SIZE 32: PATCH must be a power"),
    "patches of an odd size": (
        dict(size=33, patch=3),
        "PATCH is 3 and SIZE 33: PATCH must be",
    ),
    "patches of a pyramid": (
        dict(network="MaxViT", patch=8),
        "PATCH is 8, but MaxViT makes its own cells: leave it None",
    ),
    "MPP on a pyramid": (
        dict(network="MaxViT", objective="MPP"),
        "OBJECTIVE is 'MPP': MPP hides single patches, of which a pyramid has none",
    ),
    "labels of a flat folder": (
        dict(data="flat", objective="supervised"),
        "OBJECTIVE is 'supervised', which needs labels, but 'flat' has no two sub-folders",
    ),
    "labels of one class": (
        dict(data="one", objective="distillation"),
        "OBJECTIVE is 'distillation', which needs labels, but 'one' has no two sub-folders",
    ),
    "page": (dict(page="capstone.pdf"), "a page is a file that ends in .html, got 'capstone.pdf'"),
}


@pytest.mark.parametrize(("others", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_choice_gets_a_sentence(others: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(**others)


def test_a_page_goes_into_a_folder_that_is_there() -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder 'results' to write mine.html into"):
        choose(page="results/mine.html")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_folder_with_classes_takes_every_objective(objective: str) -> None:
    assert choose(data="mine", objective=objective).objective == objective


def test_a_new_row_of_the_catalogue_is_on_the_menu(monkeypatch: pytest.MonkeyPatch) -> None:
    add_toy(monkeypatch)
    assert "Toy" in networks() and choose(network="Toy").has_patches
