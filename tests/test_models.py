"""What every model of the course promises, whatever it computes: each row of the catalogue is held to it."""

import copy
import io
import pickle
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.models import CASES, images, together
from torch import nn

from vit_course.attention import record_attention
from vit_course.lab.parity import SAME, relative_error
from vit_course.patching import patch_grid
from vit_course.training import eval_mode


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name].build(**CASES[name].dropouts).eval()


def test_evaluation_is_deterministic_and_training_is_not(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        outputs = torch.stack([model(images()) for _ in range(8)])
        assert (outputs == outputs[0]).all(), "dropout is active in evaluation"
        if CASES[name].dropouts:
            model.train()
            one, other = together(model(images())), together(model(images()))
            assert not torch.equal(one, other), "dropout does nothing in training"


def test_output_depends_on_the_input_at_init(model: nn.Module) -> None:
    with torch.no_grad():
        one, other = model(images(seed=1)), model(images(seed=2))
    assert relative_error(one, other) > 0.01
    assert one.std(dim=0).min() > 1e-4, "some logit is the same for every image"


def test_every_parameter_gets_a_gradient(model: nn.Module) -> None:
    F.cross_entropy(model(images()), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_samples_do_not_see_each_other(model: nn.Module) -> None:
    batch = images()
    others = torch.cat([batch[:1], 10 * images(seed=3)[1:]])
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[:1], model(others)[:1])
        torch.testing.assert_close(model(batch)[:1], model(batch[:1]))


def test_a_batch_can_be_learned_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model, batch, labels = CASES[name].build(), images(8, 3, 16, 16), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(together(model(batch)), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_seed_decides_the_weights(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([tensor.flatten() for tensor in CASES[name].build().state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_copies_and_files(model: nn.Module, name: str) -> None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = CASES[name].build(**CASES[name].dropouts).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert torch.equal(twin(images()), model(images()))
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(twin(images()), model(images())), "the copy shares memory with the original"


def test_other_image_sizes(model: nn.Module, name: str) -> None:
    for size in CASES[name].sizes:
        pixels = images(2, 3, *size).requires_grad_()
        logits = model(pixels)
        assert logits.shape == (2, 5) and logits.isfinite().all()
        logits.sum().backward()
        assert (pixels.grad.abs().sum(dim=(0, 1)) > 0).all(), "some pixel is not seen"


def test_precisions(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        logits = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(model(images()).float(), logits) < 0.05
        half = copy.deepcopy(model).bfloat16()
        assert relative_error(half(images().bfloat16()).float(), logits) < 0.05
        assert half(images(2, 3, *CASES[name].sizes[0]).bfloat16()).dtype == torch.bfloat16
        double = copy.deepcopy(model).double()
        assert relative_error(double(images().double()).float(), logits) < SAME


@pytest.mark.slow
def test_compiles_in_one_piece(name: str) -> None:
    """The graph is caught without a break; turning it into machine code is PyTorch's part."""
    torch._dynamo.reset()
    model = CASES[name].build(depth=CASES[name].least_depth).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(images()), model(images())) < SAME


def test_exports_with_any_batch_size(name: str) -> None:
    model = CASES[name].build(depth=CASES[name].least_depth).eval()
    program = torch.export.export(
        model, (images(),), dynamic_shapes=({0: torch.export.Dim("b", min=2)},)
    ).module()
    assert relative_error(program(images(7, 3, 16, 16)), model(images(7, 3, 16, 16))) < SAME


def test_backbone_protocol(model: nn.Module, name: str) -> None:
    """forward is forward_features and forward_head; forward_tokens goes on from patch_embed."""
    assert model.num_prefix_tokens == CASES[name].prefix_tokens
    with torch.no_grad():
        for size in ((16, 16), *CASES[name].sizes):
            batch = images(2, 3, *size)
            features = model.forward_features(batch)
            assert torch.equal(model.forward_head(features), model(batch))
            if CASES[name].row.features == "map":
                assert features.ndim == 4 and features.shape[:2] == (2, model.num_features)
                continue
            assert features.shape[2] == model.num_features
            torch.testing.assert_close(
                features.mean(dim=-1), torch.zeros(features.shape[:2]), atol=1e-5, rtol=0
            )  # normalised
            tokens = model.patch_embed(batch)
            assert features.shape[1] == CASES[name].prefix_tokens + tokens.shape[1]
            assert torch.equal(model.forward_tokens(tokens, patch_grid(size, model.patch_size)), features)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].row.features == "tokens"])
def test_a_token_sees_its_own_patch_or_the_row_says_otherwise(name: str) -> None:
    """After a change of the first patch alone, which of the tokens of the patches differ?"""
    torch.manual_seed(0)
    model, batch = CASES[name].build().eval(), images(1, 3, 16, 16)
    other, (height, width) = batch.clone(), model.patch_size
    other[..., :height, :width] += 1.0
    with torch.no_grad():
        differs = (model.patch_embed(batch) != model.patch_embed(other)).any(dim=-1)[0].tolist()
    assert differs[0] and any(differs[1:]) != CASES[name].plain_patches


def test_it_attends_as_its_row_says(model: nn.Module, name: str) -> None:
    with torch.no_grad(), record_attention(model) as record:
        model(images())
    assert {layer.kind for layer in record} == set(CASES[name].row.attention)


def test_evaluation_leaves_every_part_the_mode_it_had(model: nn.Module) -> None:
    """Also those that their user froze while the rest is in training."""
    model.train()
    for part in list(model.modules())[::3]:
        part.training = False
    before = [part.training for part in model.modules()]
    with eval_mode(model):
        assert not any(part.training for part in model.modules())
        one, other = model(images()), model(images())
    assert torch.equal(one, other)
    assert [part.training for part in model.modules()] == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_are_those_of_the_weights(model: nn.Module, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    with torch.no_grad():
        features = model.forward_features(images().to(dtype))
        assert features.dtype == model.forward_head(features).dtype == dtype


def test_types_follow_the_default(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = CASES[name].build().eval()
        with torch.no_grad():
            assert model(images()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(tensor.dtype == torch.float64 for tensor in model.state_dict().values() if tensor.ndim)


@pytest.mark.parametrize("name", [name for name in CASES if "layer_dropout" in CASES[name].row.dropouts])
def test_paths_are_dropped_for_each_sample_by_itself(name: str) -> None:
    """Sixteen copies of one image differ in training, and only because paths are dropped."""
    torch.manual_seed(0)
    copies = images(1, 3, 16, 16).expand(16, -1, -1, -1)
    with torch.no_grad():
        for rate in (0.0, 0.5):
            logits = together(CASES[name].build(layer_dropout=rate).train()(copies))
            assert (relative_error(logits, logits[:1].expand_as(logits)) > 1e-3) == (rate > 0)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the names of functions that check arguments, one for each call that no other check makes."""
    made: list[str] = []
    running: list[str] = []

    def noted(name: str, function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            if not running:
                made.append(name)
            running.append(name)
            try:
                return function(*arguments, **options)
            finally:
                running.pop()

        return call

    for module in [module for key, module in sys.modules.items() if key.startswith("vit_course.")]:
        for name, function in list(vars(module).items()):
            if name.lstrip("_").startswith("require_"):
                monkeypatch.setattr(module, name, noted(name, function))
    return made


def test_arguments_are_checked_once_however_deep_the_model(name: str, checks: list[str]) -> None:
    """A pass through a deeper model makes no more checks: inner layers make none."""
    least = CASES[name].least_depth
    deeper = 3 * least if isinstance(least, int) else tuple(3 * blocks for blocks in least)
    model = CASES[name].build(depth=deeper).eval()
    checks.clear()  # those of the constructor
    model(images())
    assert 0 < len(checks) <= 6, checks


def test_no_classes_give_pooled_features(name: str) -> None:
    model = CASES[name].build(num_classes=0).eval()
    assert model(images()).shape == (4, model.num_features)
