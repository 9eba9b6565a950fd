"""What every model of the course promises, whatever it computes. A later model joins with one entry in CASES."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from support.parity import SAME, relative_error
from torch import Tensor, nn

from vit_course.cait import CaiT
from vit_course.distillation import DistilledViT
from vit_course.max_vit import MaxViT
from vit_course.patching import ConvStem, patch_grid
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 64,
}

PYRAMID = {"num_classes": 5, "dim": 16, "depth": (1, 2), "window_size": 2, "dim_head": 8}


@dataclass(frozen=True)
class Case:
    """A model to hold to its promises.

    build: from changes of the constructor's arguments to a small model for images (b, 3, 16, 16) and 5 classes. dropouts: arguments that
    make training random. sizes: other (height, width) of images that the model must take. least_depth: a depth that shows each kind of
    layer once.
    """

    build: Callable[..., nn.Module]
    dropouts: dict[str, float] = field(default_factory=lambda: {"dropout": 0.3, "emb_dropout": 0.3})
    sizes: tuple[tuple[int, int], ...] = ((8, 8), (24, 16), (4, 32))
    least_depth: int | tuple[int, ...] = 1


CASES: dict[str, Case] = {
    "ViT": Case(lambda **changes: ViT(**SMALL | changes)),
    "ViT mean": Case(lambda **changes: ViT(**SMALL | {"pool": "mean"} | changes)),
    "ViT wide heads": Case(lambda **changes: ViT(**SMALL | {"dim_head": 24} | changes)),
    "ViT stem": Case(
        lambda **changes: ViT(**SMALL | {"patch_embedding": ConvStem(patch_size=4, dim=32)} | changes)
    ),
    "SimpleViT": Case(lambda **changes: SimpleViT(**SMALL | changes), dropouts={}),
    "DistilledViT": Case(lambda **changes: DistilledViT(**SMALL | changes)),
    "CaiT": Case(
        lambda **changes: CaiT(**SMALL | changes),
        dropouts={"dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3},
    ),
    "XCiT": Case(
        lambda **changes: XCiT(**SMALL | changes),
        dropouts={"dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3},
    ),
    "XCiT stem": Case(
        lambda **changes: XCiT(**SMALL | {"patch_size": 8, "tokens_norm": False} | changes),
        sizes=((8, 16), (24, 16), (8, 32)),
    ),
    "MaxViT": Case(
        lambda **changes: MaxViT(**PYRAMID | changes),
        dropouts={"dropout": 0.3, "layer_dropout": 0.3},
        sizes=((32, 16), (16, 48)),
        least_depth=(1, 1),
    ),
}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


def together(logits: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The mean of all heads: a DistilledViT gives the logits of its two heads in training."""
    return torch.stack(logits).mean(dim=0) if isinstance(logits, tuple) else logits


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
    """The graph is caught without a break; turning it into machine code is PyTorch's part, and takes a compiler and a minute."""
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
    """forward is forward_features and forward_head; forward_tokens goes on from patch_embed; the parts fit other sizes too."""
    with torch.no_grad():
        for size in ((16, 16), *CASES[name].sizes):
            batch = images(2, 3, *size)
            features = model.forward_features(batch)
            assert torch.equal(model.forward_head(features), model(batch))
            if features.ndim == 4:  # a pyramid ends in a map
                assert features.shape[:2] == (2, model.num_features)
                continue
            assert features.shape[2] == model.num_features
            torch.testing.assert_close(
                features.mean(dim=-1), torch.zeros(features.shape[:2]), atol=1e-5, rtol=0
            )  # normalised
            if hasattr(model, "forward_tokens"):
                tokens = model.patch_embed(batch)
                assert features.shape[1] == model.num_prefix_tokens + tokens.shape[1]
                assert torch.equal(model.forward_tokens(tokens, patch_grid(size, model.patch_size)), features)


def test_no_classes_give_pooled_features(name: str) -> None:
    model = CASES[name].build(num_classes=0).eval()
    assert model(images()).shape == (4, model.num_features)
