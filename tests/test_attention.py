"""The formula is PyTorch's: values, gradients, dropout; bad input is named."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.attention import noise

from vit_course.attention import MultiHeadAttention, attention
from vit_course.lab.parity import DIFFERENT, SAME, relative_error


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


def test_attention_can_be_vectorised_and_differentiated_forwards() -> None:
    q, k, v = (noise(3, 2, 4, 5, 8, seed=seed) for seed in range(3))
    with torch.no_grad():
        mapped = torch.vmap(lambda *qkv: attention(*qkv)[0])(q, k, v)
        _, slope = torch.func.jvp(lambda q: attention(q, k[0], v[0])[0], (q[0],), (torch.ones_like(q[0]),))
    assert torch.equal(mapped, torch.stack([attention(*qkv)[0] for qkv in zip(q, k, v, strict=True)]))
    step = 1e-3 * torch.ones_like(q[0])
    ahead, behind = attention(q[0] + step, k[0], v[0])[0], attention(q[0] - step, k[0], v[0])[0]
    assert relative_error(slope, (ahead - behind) / 2e-3) < 1e-2


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
