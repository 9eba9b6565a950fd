"""Attention is the published one on every path, and a recording shows it without touching it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.parity import DIFFERENT, SAME, randomise, relative_error
from torch import Tensor, nn

from vit_course import attention as module
from vit_course.attention import AttentionLayer, MultiHeadAttention, attention, record_attention, rollout
from vit_course.lab.catalogue import MODELS
from vit_course.vit import SimpleViT, ViT

SMALL = MODELS["ViT"].tiny | {"depth": 3}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_attention(**changes) -> MultiHeadAttention:
    return randomise(MultiHeadAttention(**{"dim": 32, "heads": 4} | changes))


def random_vit(**changes) -> ViT:
    return randomise(ViT(**SMALL | changes))


def force(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """Send every attention of the course down one path."""
    monkeypatch.setattr(module, "fused_is_faster", lambda q: fused)


# ---- attention
# ----------------------------


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize(("queries", "keys", "width", "out"), [(7, 7, 16, 16), (3, 9, 16, 5), (1, 4, 1, 8)])
def test_attention_is_pytorchs(queries: int, keys: int, width: int, out: int, grad: bool) -> None:
    q, k, v = (
        3 * noise(2, 4, queries, width, seed=1),
        noise(2, 4, keys, width, seed=2),
        noise(2, 4, keys, out, seed=3),
    )
    before = [tensor.clone() for tensor in (q, k, v)]
    with torch.set_grad_enabled(grad):
        output, weights = attention(q, k, v)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(weights, (q @ k.mT / width**0.5).softmax(-1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, queries))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((q, k, v), before, strict=True)), (
        "the inputs were written to"
    )


def test_attention_sees_a_wrong_scale() -> None:
    q, k, v = (noise(2, 4, 7, 16, seed=seed) for seed in range(3))
    assert (
        relative_error(attention(q, k, v)[0], F.scaled_dot_product_attention(q, k, v, scale=1 / 16))
        > DIFFERENT
    )


def test_gradients_of_attention_are_pytorchs() -> None:
    gradients = []
    for function in (lambda *qkv: attention(*qkv)[0], F.scaled_dot_product_attention):
        inputs = [noise(2, 4, 7, 16, seed=seed).requires_grad_() for seed in range(3)]
        function(*inputs).square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs) < SAME


def test_equal_keys_give_the_mean_of_the_values() -> None:
    q, v = noise(2, 4, 3, 16), noise(2, 4, 9, 8)
    output, weights = attention(q, torch.ones(2, 4, 9, 16), v)
    torch.testing.assert_close(weights, torch.full((2, 4, 3, 9), 1 / 9))
    torch.testing.assert_close(output, v.mean(dim=2, keepdim=True).expand(2, 4, 3, 8))


def test_scaling_the_queries_is_a_temperature() -> None:
    q, k, v = (noise(1, 1, 6, 16, seed=seed) for seed in range(3))
    torch.testing.assert_close(attention(3 * q, k, v)[1], (3 * (q @ k.mT) / 4).softmax(-1))


def test_large_scores_stay_finite() -> None:
    q = 1e4 * noise(1, 1, 6, 16)
    assert all(tensor.isfinite().all() for tensor in attention(q, q, q))


def test_dropout_drops_weights_and_gives_them_undropped() -> None:
    torch.manual_seed(0)
    q, k = noise(4, 4, 20, 8, seed=1), noise(4, 4, 20, 8, seed=2)
    values = torch.eye(20).expand(4, 4, 20, 20)  # the output is then the matrix of weights that were used
    used, weights = attention(q, k, values, dropout=0.25)
    torch.testing.assert_close(weights, attention(q, k, values)[1])
    kept = used != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(used[kept], weights[kept] / 0.75)


# ---- many heads
# ----------------------------

PATHS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])


@PATHS
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_equal_to_torchs_multihead_attention(
    fused: bool, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, fused)
    theirs = randomise(nn.MultiheadAttention(32, 4, batch_first=True))
    ours = MultiHeadAttention(dim=32, heads=4).eval()
    ours.load_state_dict(
        {
            "qkv.weight": theirs.in_proj_weight,
            "qkv.bias": theirs.in_proj_bias,
            "proj.weight": theirs.out_proj.weight,
            "proj.bias": theirs.out_proj.bias,
        }
    )
    tokens = noise(2, 9, 32)
    with torch.set_grad_enabled(grad):
        output, weights = theirs(tokens, tokens, tokens, average_attn_weights=False)
        assert relative_error(ours(tokens), output) < SAME
        with record_attention(ours) as record:
            assert relative_error(ours(tokens), output) < SAME
        assert relative_error(record[0].weights, weights) < SAME


@PATHS
def test_permuted_tokens_give_permuted_outputs(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, fused)
    layer, tokens, order = (
        random_attention(),
        noise(2, 9, 32),
        torch.randperm(9, generator=torch.Generator().manual_seed(0)),
    )
    assert relative_error(layer(tokens[:, order]), layer(tokens)[:, order]) < SAME


def test_width_of_a_head_is_free() -> None:
    layer = random_attention(heads=3, dim_head=5)
    assert layer.qkv.weight.shape == (45, 32) and layer(noise(2, 7, 32)).shape == (2, 7, 32)
    assert random_attention(heads=4).qkv.weight.shape == (96, 32)


@pytest.mark.parametrize("mode", ["train", "eval", "no grad"])
@pytest.mark.parametrize(("precision", "bound"), [("highest", SAME), ("medium", 0.02)])
def test_paths_agree(mode: str, precision: str, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused and the explicit path give the same logits and gradients, in both settings of matrix
    products.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        results = []
        for fused in (True, False):
            force(monkeypatch, fused)
            model, pixels = random_vit().train(mode == "train"), noise(2, 3, 16, 16).requires_grad_()
            with torch.set_grad_enabled(mode != "no grad"):
                logits = model(pixels)
            if mode != "no grad":
                logits.sum().backward()
            results.append((logits.detach(), pixels.grad))
        for ours, theirs in zip(*results, strict=True):
            assert ours is theirs is None or relative_error(ours, theirs) < bound
    finally:
        torch.set_float32_matmul_precision(before)


def test_paths_are_really_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused path keeps no weights, the explicit one does not call PyTorch's: the tests above compare
    different code.
    """
    calls, attend = [], module.attend
    monkeypatch.setattr(module, "attend", lambda *args: calls.append("explicit") or attend(*args))
    for fused in (True, False):
        force(monkeypatch, fused)
        random_attention()(noise(1, 3, 32))
    assert calls == ["explicit"]


def test_dropout_only_in_training_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for fused in (True, False):
        force(monkeypatch, fused)
        layer, tokens = random_attention(dropout=0.5), noise(2, 9, 32)
        assert torch.equal(layer(tokens), layer(tokens))
        nn.init.eye_(layer.train().proj.weight)
        layer.proj_drop.p = 0.0
        torch.manual_seed(0)
        assert not torch.equal(layer(tokens), layer(tokens)), f"no dropout of weights, fused={fused}"


def test_which_path_is_chosen() -> None:
    before = torch.get_float32_matmul_precision()
    short, long = torch.zeros(1, 1, 197, 8), torch.zeros(1, 1, 1025, 8)
    try:
        torch.set_float32_matmul_precision("highest")
        assert (
            module.fused_is_faster(short)
            and module.fused_is_faster(long)
            and module.fused_is_faster(short.to("meta"))
        )
        assert not module.fused_is_faster(short.bfloat16()) and module.fused_is_faster(long.bfloat16())
        torch.set_float32_matmul_precision("medium")
        assert not module.fused_is_faster(short) and module.fused_is_faster(long)
    finally:
        torch.set_float32_matmul_precision(before)


# ---- recording
# ----------------------------


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


def test_attention_can_be_vectorised_and_differentiated_forwards() -> None:
    q, k, v = (noise(3, 2, 4, 5, 8, seed=seed) for seed in range(3))
    with torch.no_grad():
        mapped = torch.vmap(lambda *qkv: attention(*qkv)[0])(q, k, v)
        _, slope = torch.func.jvp(lambda q: attention(q, k[0], v[0])[0], (q[0],), (torch.ones_like(q[0]),))
    assert torch.equal(mapped, torch.stack([attention(*qkv)[0] for qkv in zip(q, k, v, strict=True)]))
    step = 1e-3 * torch.ones_like(q[0])
    ahead, behind = attention(q[0] + step, k[0], v[0])[0], attention(q[0] - step, k[0], v[0])[0]
    assert relative_error(slope, (ahead - behind) / 2e-3) < 1e-2


# ---- rollout
# ----------------------------


def layer_of(weights: Tensor, kind: str = "global") -> AttentionLayer:
    return AttentionLayer(weights, kind, None, 0, kind)


def test_rollout_of_a_model() -> None:
    model = SimpleViT(**SMALL)
    with record_attention(model) as record:
        model(noise(2, 3, 16, 16))
    result = rollout(record)
    assert result.shape == (2, 16, 16) and (result >= 0).all()
    torch.testing.assert_close(result.sum(-1), torch.ones(2, 16))


def test_rollout_by_hand() -> None:
    identity = torch.eye(4)
    first, second = (noise(2, 3, 4, 4, seed=seed).softmax(-1) for seed in (1, 2))
    one, two = (first.mean(1) + identity) / 2, (second.mean(1) + identity) / 2
    torch.testing.assert_close(rollout([layer_of(first)]), one)
    torch.testing.assert_close(rollout([layer_of(first), layer_of(second)]), two @ one)
    assert relative_error(one @ two, two @ one) > DIFFERENT, "the order of the layers does not show"
    torch.testing.assert_close(rollout([layer_of(identity.expand(2, 3, 4, 4))] * 3), identity.expand(2, 4, 4))
    uniform = torch.full((1, 2, 4, 4), 0.25)
    torch.testing.assert_close(rollout([layer_of(uniform)] * 2), (0.25 * identity + 0.75 * uniform[:, 0]))
    torch.testing.assert_close(rollout([layer_of(first), layer_of(torch.ones(2, 3, 1, 9), "class")]), one)


def test_rollout_refuses_what_does_not_multiply() -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        rollout([layer_of(torch.ones(1, 1, 4, 4)), layer_of(torch.ones(1, 1, 5, 5))])
    with pytest.raises(ValueError, match="none"):
        rollout([layer_of(torch.ones(1, 1, 4, 4), "channel")])
    with (
        pytest.raises(ValueError, match="nothing was recorded yet"),
        record_attention(random_vit()) as record,
    ):
        rollout(record)
    with pytest.raises(TypeError, match="tensor"):
        rollout([torch.ones(1, 1, 4, 4)])


# ---- bad input
# ----------------------------

GOOD = torch.zeros(2, 4, 7, 16)
BAD_CALLS = {
    "list": (lambda: attention([1], GOOD, GOOD), TypeError, r"q .*\[1\]"),
    "axes": (lambda: attention(GOOD, GOOD[0], GOOD), ValueError, r"k .*\(4, 7, 16\)"),
    "ints": (lambda: attention(GOOD, GOOD, GOOD.long()), TypeError, "v .*int64"),
    "types": (lambda: attention(GOOD, GOOD.double(), GOOD), TypeError, "float64"),
    "width": (lambda: attention(GOOD, GOOD[..., :8], GOOD), ValueError, r"\(2, 4, 7, 8\)"),
    "number": (lambda: attention(GOOD, GOOD, GOOD[:, :, :6]), ValueError, r"\(2, 4, 6, 16\)"),
    "heads": (lambda: attention(GOOD, GOOD[:, :2], GOOD), ValueError, r"\(2, 2, 7, 16\)"),
    "batch": (lambda: attention(GOOD[:1], GOOD, GOOD), ValueError, r"\(1, 4, 7, 16\)"),
    "dropout": (lambda: attention(GOOD, GOOD, GOOD, 2.0), ValueError, "dropout.* 2.0"),
    "dropout type": (lambda: attention(GOOD, GOOD, GOOD, "much"), TypeError, "'much'"),
    "module heads": (lambda: MultiHeadAttention(dim=32, heads=5), ValueError, "32.* 5"),
    "module no heads": (lambda: MultiHeadAttention(dim=32, heads=0), ValueError, "heads.* 0"),
    "module dim": (lambda: MultiHeadAttention(dim=32.0, heads=4), TypeError, "32.0"),
    "module dim_head": (
        lambda: MultiHeadAttention(dim=32, heads=4, dim_head=-8),
        ValueError,
        "dim_head.* -8",
    ),
    "module dropout": (
        lambda: MultiHeadAttention(dim=32, heads=4, dropout=-0.1),
        ValueError,
        "dropout.* -0.1",
    ),
    "module dropout type": (lambda: MultiHeadAttention(dim=32, heads=4, dropout=None), TypeError, "None"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
