"""Every model keeps the names, shapes and numbers it had: stored weights load, and give the stored logits."""

from collections.abc import Iterator

import pytest
import torch
from support import golden
from support.models import CASES

from vit_course.lab.parity import relative_error

UNMOVED = 1e-6  # in double precision: what is computed in another order is the same


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    if not golden.path_of(request.param).exists():
        pytest.fail(f"nothing is stored of {request.param}: cd tests && python -m support.golden")
    return request.param


@pytest.fixture
def no_luck() -> Iterator[None]:
    """Memory that nobody has written holds NaN, and not by chance what stood there before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_names_shapes_and_order_of_the_state_stay(name: str) -> None:
    """The order too: the optimiser of a stopped run knows parameters by their place."""
    state, stored = golden.state_of(CASES[name].build()), golden.stored_states()[name]
    assert list(state.items()) == list(stored.items())


def test_stored_weights_give_the_stored_logits(name: str) -> None:
    weights, pixels, logits = golden.load(name)
    model = CASES[name].build().double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        assert relative_error(model(pixels), logits) < UNMOVED


def test_built_without_memory_and_filled_later(name: str, no_luck: None) -> None:
    """As loaders of large models do it: nothing that the state does not hold may be lost on the way."""
    weights, pixels, logits = golden.load(name)
    with torch.device("meta"):
        model = CASES[name].build()
    model = model.to_empty(device="cpu").double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        assert relative_error(model(pixels), logits) < UNMOVED


def test_nothing_is_stored_of_models_that_are_gone() -> None:
    assert golden.stored_states().keys() == CASES.keys()
    assert {path.name for path in golden.FOLDER.glob("*.safetensors")} == {
        golden.path_of(name).name for name in CASES
    }
