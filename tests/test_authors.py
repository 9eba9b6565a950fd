"""The atlas's models give again what the code of their authors gave: every stored configuration."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.golden import FOLDER
from torch import nn

from vit_course.lab import authors
from vit_course.lab.authors import Golden
from vit_course.lab.parity import SAME
from vit_course.lab.pretrained import from_authors
from vit_course.lab.pretrained.authors import FROM_AUTHORS

SAME_IN_DOUBLE = 1e-9
FILES = {
    path.stem: path
    for folder in (authors.FOLDER, FOLDER / "authors")
    for path in folder.glob("*.safetensors")
}


@pytest.fixture(params=sorted(FILES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return authors.load(FILES[request.param])


def ours(golden: Golden) -> nn.Module:
    return from_authors(golden.variant, golden.weights, golden.config)


def test_equal_to_the_authors_model(golden: Golden) -> None:
    assert golden.error(ours(golden)) < SAME


def test_equal_in_double_precision(golden: Golden) -> None:
    if golden.output_double is None:
        pytest.skip("no output in double precision is stored")
    assert golden.error(from_authors(golden.variant, golden.doubled(), golden.config)) < SAME_IN_DOUBLE
    assert golden.error(ours(golden).double()) < SAME_IN_DOUBLE


def test_it_comes_in_evaluation_mode_and_is_a_copy(golden: Golden) -> None:
    model = ours(golden)
    assert not any(part.training for part in model.modules())
    for parameter in model.parameters():
        parameter.data.zero_()
    assert golden.error(ours(golden)) < SAME


def test_the_configuration_may_be_json(golden: Golden) -> None:
    assert golden.error(from_authors(golden.variant, golden.weights, json.dumps(golden.config))) < SAME


def test_every_variant_has_numbers() -> None:
    assert {authors.load(path).variant for path in FILES.values()} == FROM_AUTHORS.keys()


REFUSED: dict[str, tuple[Callable[[Golden], tuple], str]] = {
    "variant": (lambda g: ("bee_vit", g.weights, g.config), "from_authors knows deepvit.*got 'bee_vit'"),
    "argument": (lambda g: (g.variant, g.weights, g.config | {"wings": 2}), "nobody here knows: wings"),
    "hybrid": (lambda g: (g.variant, g.weights, g.config | {"hybrid_backbone": "resnet"}), "hybrid_backbone"),
    "other sizes": (lambda g: (g.variant, g.weights, g.config | {"mlp_ratio": 2}), "not those of a DeepViT"),
    "missing": (
        lambda g: (g.variant, {k: v for k, v in g.weights.items() if k != "norm.bias"}, g.config),
        "norm.bias",
    ),
    "no depth": (
        lambda g: (g.variant, g.weights, {k: v for k, v in g.config.items() if k != "depth"}),
        "'depth' is missing",
    ),
    "no weights": (lambda g: (g.variant, {}, g.config), "not those of a deepvit: .* is missing"),
}


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_what_differs_is_refused_in_words(call: Callable[[Golden], tuple], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_authors(*call(authors.load("deepvit_1")))


def test_unknown_numbers_are_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="stored as nothing; there are .*deepvit_1"):
        authors.load("nothing")
    with pytest.raises(ValueError, match="nothing.safetensors"):
        authors.load(Path("nothing.safetensors"))
