"""The parts of CaiT do what the lesson says of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_course.attention import MultiHeadAttention, record_attention, rollout
from vit_course.cait import (
    CaiT,
    ClassAttention,
    ClassAttentionBlock,
    LayerScale,
    StochasticDepth,
    TalkingHeadsAttention,
    layer_scale_init,
    mix_heads,
)
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import DIFFERENT, SAME, randomise, relative_error

SMALL = MODELS["CaiT"].tiny
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 7}


def small_cait(**changes) -> CaiT:
    return CaiT(**SMALL | changes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(*shape: int, seed: int = 0) -> Tensor:
    return normal(*(shape or (4, 3, 16, 16)), seed=seed)


# ---- LayerScale


@pytest.mark.parametrize(("depth", "init"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layer_scale_starts_by_the_depth_of_the_whole_model(depth: int, init: float) -> None:
    assert layer_scale_init(depth) == init
    gammas = [module.gamma for module in small_cait(depth=depth).modules() if isinstance(module, LayerScale)]
    assert len(gammas) == 2 * (depth + 2)
    assert all(torch.equal(gamma, torch.full((32,), init)) for gamma in gammas)


def test_without_scale_the_trunk_does_nothing() -> None:
    model = randomise(small_cait())
    for block in model.blocks:
        block.ls1.gamma.data.zero_()
        block.ls2.gamma.data.zero_()
    tokens = normal(2, 16, 32)
    assert torch.equal(model.blocks(tokens), tokens)


def test_layer_scale_is_a_factor_per_channel() -> None:
    scale, tokens = LayerScale(3, 0.5), normal(2, 4, 3)
    assert torch.equal(scale(tokens), tokens / 2)
    scale.gamma.data = torch.tensor([0.0, 1.0, 2.0])
    assert torch.equal(scale(tokens), tokens * torch.tensor([0.0, 1.0, 2.0]))


# ---- talking heads


def test_mixing_heads_is_a_sum_over_heads() -> None:
    maps, weight, bias = normal(2, 3, 4, 5), normal(6, 3, seed=1), normal(6, seed=2)
    expected = torch.zeros(2, 6, 4, 5)
    for new in range(6):
        for old in range(3):
            expected[:, new] += weight[new, old] * maps[:, old]
        expected[:, new] += bias[new]
    torch.testing.assert_close(mix_heads(maps, weight, bias), expected)


def talking() -> TalkingHeadsAttention:
    return randomise(TalkingHeadsAttention(dim=32, heads=4))


def test_heads_that_only_hear_themselves_are_plain_attention() -> None:
    attention, plain = talking(), MultiHeadAttention(dim=32, heads=4)
    for mixer in (attention.proj_l, attention.proj_w):
        mixer.weight.data = torch.eye(4)
    attention.proj_w.bias.data.zero_()  # the bias before the softmax is the same for all keys
    plain.load_state_dict(
        {name: tensor for name, tensor in attention.state_dict().items() if name in plain.state_dict()}
    )
    tokens = normal(2, 7, 32)
    assert relative_error(attention(tokens), plain(tokens)) < SAME


def test_rows_of_talking_heads_do_not_sum_to_one() -> None:
    """Each row of a mixture sums to the sum of its mixing row, and n times the bias more."""
    attention, tokens = talking(), normal(2, 7, 32)
    with record_attention(attention) as record:
        attention(tokens)
    sums = record[0].weights.sum(dim=-1)
    expected = attention.proj_w.weight.sum(dim=1) + 7 * attention.proj_w.bias
    torch.testing.assert_close(sums, expected[None, :, None].expand(2, 4, 7))
    assert (sums - 1).abs().min() > 0.01


def test_recorded_weights_are_the_ones_used() -> None:
    attention, tokens = talking(), normal(2, 7, 32)
    with record_attention(attention) as record:
        out = attention(tokens)
    values = attention.qkv(tokens).chunk(3, dim=-1)[2].unflatten(-1, (4, 8)).transpose(1, 2)
    again = attention.proj((record[0].weights @ values).transpose(1, 2).flatten(2))
    assert relative_error(again, out) < SAME
    attention.train().attn_drop.p = 0.5
    with record_attention(attention) as dropped:
        attention(tokens)
    torch.testing.assert_close(dropped[0].weights, record[0].weights)  # before dropout


# ---- class attention


def test_class_attention_is_the_first_row_of_plain_attention() -> None:
    attention, plain = randomise(ClassAttention(dim=32, heads=4)), MultiHeadAttention(dim=32, heads=4)
    state = attention.state_dict()
    plain.load_state_dict(
        {f"qkv.{part}": torch.cat([state[f"{name}.{part}"] for name in "qkv"]) for part in ("weight", "bias")}
        | {f"proj.{part}": state[f"proj.{part}"] for part in ("weight", "bias")}
    )
    tokens = normal(2, 7, 32)
    with record_attention(attention) as record:
        out = attention(tokens)
    assert out.shape == (2, 1, 32)
    assert relative_error(out, plain(tokens)[:, :1]) < SAME
    weights = record[0].weights
    assert weights.shape == (2, 4, 1, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 1))


def test_class_attention_drops_in_training_only() -> None:
    attention, tokens = ClassAttention(dim=32, heads=4, dropout=0.5), normal(2, 7, 32)
    assert not torch.equal(attention(tokens), attention(tokens))
    assert torch.equal(attention.eval()(tokens), attention(tokens))


def test_class_stage_leaves_the_patches_alone() -> None:
    block, tokens = randomise(ClassAttentionBlock(dim=32, heads=4, mlp_dim=64, init=1.0)), normal(2, 7, 32)
    out = block(tokens)
    assert torch.equal(out[:, 1:], tokens[:, 1:])
    assert relative_error(out[:, :1], tokens[:, :1]) > DIFFERENT


def flops(module: nn.Module, n: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(normal(1, n, 32))
    return counter.get_total_flops()


def test_class_attention_costs_grow_with_the_tokens_not_with_their_square() -> None:
    """Each further token costs the same; in self-attention each costs more than the one before."""

    def growth(module: nn.Module) -> int:
        return flops(module, 256) - 2 * flops(module, 192) + flops(module, 128)

    assert growth(ClassAttention(dim=32, heads=4)) == 0
    # scores and output: 4 n² d; two mixings of h heads: 4 n² h²
    assert growth(TalkingHeadsAttention(dim=32, heads=4)) == 2 * 64**2 * (4 * 32 + 4 * 4**2)


# ---- stochastic depth


def test_stochastic_depth_is_off_in_evaluation() -> None:
    branch = normal(8, 3, 4)
    assert StochasticDepth(0.9).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch


@pytest.mark.parametrize("shape", [(512, 3), (512, 3, 4), (512, 2, 3, 4)])
def test_stochastic_depth_draws_for_each_sample(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    branch = 1 + normal(*shape).abs()
    factors = (StochasticDepth(0.25)(branch) / branch).flatten(1)
    assert (factors - factors[:, :1]).abs().max() < 1e-6, "a sample was torn apart"
    assert ((factors[:, 0] == 0) | ((factors[:, 0] - 4 / 3).abs() < 1e-6)).all()
    assert 0.18 < (factors[:, 0] == 0).float().mean() < 0.32


def test_stochastic_depth_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    drop, branch = StochasticDepth(0.4), normal(1, 5).expand(20_000, 5)
    torch.testing.assert_close(drop(branch).mean(dim=0), branch[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stochastic_depth_at_rate_one(dtype: torch.dtype) -> None:
    branch = normal(4, 3, 2).to(dtype).requires_grad_()
    out = StochasticDepth(1)(branch)
    out.sum().backward()
    assert out.dtype == dtype and not out.any() and not branch.grad.any()


def test_layer_dropout_drops_branches_of_single_samples_in_the_first_stage() -> None:
    model = randomise(small_cait(layer_dropout=0.5, depth=4)).train()
    torch.manual_seed(0)
    same = images(1, 3, 16, 16).expand(16, -1, -1, -1)
    assert len({round(value, 4) for value in model(same)[:, 0].tolist()}) > 8, "one draw for the whole batch"
    rates = {
        name: module.rate for name, module in model.named_modules() if isinstance(module, StochasticDepth)
    }
    assert rates == {f"blocks.{i}.drop_path": 0.5 for i in range(4)}
    tokens = normal(4, 17, 32)
    assert torch.equal(model.blocks_token_only(tokens), model.blocks_token_only(tokens))


def test_a_trunk_without_branches_is_the_identity() -> None:
    model, tokens = randomise(small_cait(layer_dropout=1.0)).train(), normal(2, 16, 32)
    assert torch.equal(model.blocks(tokens), tokens)


# ---- the record


def test_record_tells_the_stages_apart() -> None:
    model = randomise(small_cait())
    with record_attention(model) as record:
        recorded = model(images(2, 3, 8, 24))
    assert relative_error(recorded, model(images(2, 3, 8, 24))) < SAME
    assert [(layer.name, layer.kind, layer.grid, layer.num_prefix_tokens) for layer in record] == [
        ("blocks.0.attn", "global", (2, 6), 0),
        ("blocks.1.attn", "global", (2, 6), 0),
        ("blocks_token_only.0.attn", "class", (2, 6), 1),
        ("blocks_token_only.1.attn", "class", (2, 6), 1),
    ]
    assert [tuple(layer.weights.shape) for layer in record] == [(2, 2, 12, 12)] * 2 + [(2, 2, 1, 13)] * 2


def test_rollout_takes_the_first_stage_and_normalises_it() -> None:
    model = randomise(small_cait())
    with record_attention(model) as record, torch.no_grad():
        model(images(2, 3, 16, 16))
    result = rollout(record)
    assert result.shape == (2, 16, 16)
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(2, 16), rtol=1e-4, atol=1e-4)


# ---- bad input

BAD_CALLS: dict[str, tuple[Callable, type[Exception], str]] = {
    "image size": (lambda: small_cait(image_size=30), ValueError, r"\(30, 30\).*\(4, 4\)"),
    "heads": (lambda: small_cait(heads=3), ValueError, "32.* 3"),
    "depth": (lambda: small_cait(depth=0), ValueError, "depth .* 0"),
    "cls_depth": (lambda: small_cait(cls_depth=0), ValueError, "cls_depth .* 0"),
    "cls_depth type": (lambda: small_cait(cls_depth=2.0), TypeError, "cls_depth .* 2.0"),
    "layer_dropout": (lambda: small_cait(layer_dropout=1.5), ValueError, "1.5"),
    "dropout": (lambda: small_cait(dropout=-0.1), ValueError, "-0.1"),
    "emb_dropout": (lambda: small_cait(emb_dropout=float("nan")), ValueError, "nan"),
    "num_classes": (lambda: small_cait(num_classes=-1), ValueError, "num_classes .* -1"),
    "one image": (lambda: small_cait()(images(3, 16, 16)), ValueError, r"\(3, 16, 16\)"),
    "bytes": (lambda: small_cait()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), TypeError, "uint8"),
    "odd images": (lambda: small_cait()(images(4, 3, 16, 18)), ValueError, r"\(16, 18\)"),
    "token number": (lambda: small_cait().forward_tokens(normal(2, 15, 32)), ValueError, r"\(2, 15, 32\)"),
    "features": (lambda: small_cait().forward_head(normal(2, 32)), ValueError, r"\(2, 32\)"),
    "class heads": (lambda: ClassAttention(dim=8, heads=3), ValueError, "8.* 3"),
    "scale init": (lambda: LayerScale(8, -0.1), ValueError, "init .* -0.1"),
    "scale init type": (lambda: LayerScale(8, "small"), TypeError, "'small'"),
    "scale depth": (lambda: layer_scale_init(0), ValueError, "depth .* 0"),
    "rate": (lambda: StochasticDepth(1.1), ValueError, "rate .* 1.1"),
    "rate type": (lambda: StochasticDepth("often"), TypeError, "'often'"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
