"""The layer is PyTorch's on both of its paths, and the two are one to the rest of the course."""

import pytest
import torch
from support.attention import PATHS, force, noise, random_attention, random_vit
from torch import nn

from vit_course import attention as module
from vit_course.attention import MultiHeadAttention, record_attention
from vit_course.lab.parity import SAME, randomise, relative_error


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
