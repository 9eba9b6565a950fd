"""A recording shows the weights that were used, and touches nothing."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from support.attention import PATHS, force, noise, random_attention, random_vit
from torch import Tensor, nn

from vit_course.attention import AttentionLayer, record_attention
from vit_course.lab.parity import SAME, relative_error


@PATHS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_recording_changes_nothing(fused: bool, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, fused)
    results = []
    for recorded in (False, True):
        model, pixels = random_vit().train(training), noise(2, 3, 16, 16).requires_grad_()
        if recorded:
            with record_attention(model):
                logits = model(pixels)
        else:
            logits = model(pixels)
        logits.square().sum().backward()
        results.append((logits.detach(), pixels.grad, *(parameter.grad for parameter in model.parameters())))
    for plain, seen in zip(*results, strict=True):
        # The gradient of the keys' bias is rounding alone, so that only its size can be compared.
        assert (plain - seen).norm() < 10 * SAME * max(plain.norm(), 1)


def traces(model: nn.Module) -> list:
    """Everything that a recording could leave behind in a model."""
    return [
        (name, key, str(value))
        for name, part in model.named_modules()
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules")
    ]


def test_recording_leaves_nothing_behind() -> None:
    model = random_vit()
    before = traces(model)
    with record_attention(model):
        model(noise(1, 3, 16, 16))
        assert traces(model) != before
    assert traces(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), record_attention(model):
        raise RuntimeError("on purpose")
    assert traces(model) == before
    with pytest.raises(ValueError), record_attention(model):
        model(noise(1, 3, 16, 15))
    assert traces(model) == before


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("size", "grid"), [((16, 16), (4, 4)), ((8, 24), (2, 6)), ((4, 4), (1, 1))])
def test_what_a_record_holds(pool: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = random_vit(pool=pool)
    with record_attention(model) as record:
        model(noise(2, 3, *size))
    tokens = grid[0] * grid[1] + model.num_prefix_tokens
    assert len(record) == 3
    assert [layer.name for layer in record] == [f"blocks.{i}.attn" for i in range(3)]
    for layer in record:
        assert isinstance(layer, AttentionLayer)
        assert layer.weights.shape == (2, 2, tokens, tokens)
        assert (layer.kind, layer.grid, layer.num_prefix_tokens, layer.members) == (
            "global",
            grid,
            model.num_prefix_tokens,
            None,
        )
        torch.testing.assert_close(layer.weights.sum(-1), torch.ones(2, 2, tokens))
    assert record["blocks.1.attn"] is record[1] and record[-1] is record[2]


def test_recorded_weights_are_those_that_were_used() -> None:
    model = random_vit()
    pixels, block = noise(2, 3, 16, 16), model.blocks[0]
    with record_attention(model) as record, torch.no_grad():
        model(pixels)
    tokens = (
        torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(pixels)], dim=1) + model.pos_embed
    )
    q, k, _ = block.attn.qkv(block.norm1(tokens)).view(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(record[0].weights, (q @ k.mT / 4).softmax(-1))


def test_weights_are_recorded_before_dropout() -> None:
    model = random_vit(dropout=0.5, emb_dropout=0.0)
    pixels = noise(2, 3, 16, 16)
    with record_attention(model) as record:
        model(pixels)
        expected = record[0].weights
        model.train()(pixels)
    torch.testing.assert_close(record[0].weights, expected)
    assert (record[2].weights > 0).all()


def test_gradients_flow_through_the_record() -> None:
    model, pixels = random_vit(), noise(2, 3, 16, 16)
    with record_attention(model) as record:
        logits = model(pixels)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), record[0].weights, retain_graph=True)
    assert gradient.abs().sum() > 0, "the recorded weights are not those that the logits come from"
    record[2].weights[:, :, 0].square().sum().backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_last_of_several_forwards_is_held() -> None:
    model = random_vit()
    with record_attention(model) as record:
        model(noise(1, 3, 16, 16, seed=1))
        model(noise(3, 3, 8, 24, seed=2))
    assert len(record) == 3
    assert {layer.weights.shape[0] for layer in record} == {3} and {layer.grid for layer in record} == {
        (2, 6)
    }


def test_layers_stand_in_the_order_in_which_they_ran_last() -> None:
    layers = nn.ModuleDict({"one": random_attention(), "other": random_attention()})
    with record_attention(layers) as record:
        for name in ("one", "other", "other", "one"):
            layers[name](noise(1, 3, 32))
    assert [layer.name for layer in record] == ["other", "one"]


def test_record_can_be_used_after_the_block_and_made_again() -> None:
    model, first, second = random_vit(), noise(1, 3, 16, 16, seed=1), noise(1, 3, 16, 16, seed=2)
    with record_attention(model) as record:
        model(first)
    kept = record[0].weights.clone()
    model(second)
    assert torch.equal(record[0].weights, kept), "the record goes on after its block"
    with record_attention(model) as again:
        model(second)
    assert not torch.equal(again[0].weights, kept)


def test_model_inside_a_model_and_shared_modules() -> None:
    class Twice(nn.Module):
        """One backbone under two names, as weight sharing has it."""

        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = random_vit()
            self.alone = random_attention(dim=32)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.alone(self.other.forward_features(pixels))

    model = Twice()
    with record_attention(model) as record:
        model(noise(2, 3, 16, 16))
    assert [layer.name for layer in record] == [
        "one.blocks.0.attn",
        "one.blocks.1.attn",
        "one.blocks.2.attn",
        "alone",
    ]
    assert {layer.num_prefix_tokens for layer in record} == {1}


def test_layer_alone_has_no_grid() -> None:
    layer = random_attention()
    with record_attention(layer) as record:
        layer(noise(2, 9, 32))
    assert (record[0].grid, record[0].num_prefix_tokens, record[0].name) == (None, 0, "")


def test_what_cannot_be_recorded_says_so() -> None:
    model = random_vit()
    with record_attention(model) as record:
        with pytest.raises(ValueError, match="nothing was recorded yet"):
            list(record)
        with pytest.raises(ValueError, match="nothing was recorded yet"):
            len(record)
        with pytest.raises(ValueError, match="being recorded already"), record_attention(model.blocks[0]):
            pass
        model(noise(1, 3, 16, 16))
        assert len(record) == 3, "the refused recording ended the running one"
    with pytest.raises(ValueError, match="Linear has no attention layer"), record_attention(nn.Linear(2, 2)):
        pass
    with pytest.raises(TypeError, match="'vit'"), record_attention("vit"):
        pass


def test_grid_is_that_of_the_tokens_that_were_there() -> None:
    model = random_vit()
    with record_attention(model) as record:
        model(noise(1, 3, 16, 16))
        model.forward_tokens(noise(1, 4, 32), (2, 2))
    assert {(layer.grid, layer.num_prefix_tokens) for layer in record} == {((2, 2), 1)}


@pytest.mark.parametrize("dropped", [3, 8])
def test_a_model_that_drops_patches_cannot_be_recorded(dropped: int) -> None:
    model = random_vit()
    encode = model.encode
    model.encode = lambda tokens, grid: encode(tokens, grid)[:, dropped:]
    model.blocks.register_forward_pre_hook(lambda blocks, given: (given[0][:, dropped:],))
    with record_attention(model), pytest.raises(ValueError, match=f"{17 - dropped} tokens.*4 by 4 patches"):
        model(noise(1, 3, 16, 16))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_while_recording_is_not_recorded(duplicate: Callable) -> None:
    model, pixels = random_vit(), noise(1, 3, 16, 16)
    with record_attention(model) as record:
        logits = model(pixels)
        kept = record[0].weights
        copied = duplicate(model)
        copied(noise(1, 3, 16, 16, seed=1))
    assert record[0].weights is kept, "the copy writes into the record of the original"
    with record_attention(copied) as again:
        assert relative_error(copied(pixels), logits) < SAME
    assert len(again) == 3
