"""Exercises of lesson 02: the weights, a whole layer from its matrices, and attention with a mask."""

import torch
from einops import rearrange
from torch import Tensor

from .exercise import Exercise, Mistake


def _numbers(seed: int, *shapes: tuple[int, ...], size: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(size * torch.randn(shape, generator=generator) for shape in shapes)


# ------------------------------------------------------------------------------------------------------------
# Warm-up: the weights
# ------------------------------------------------------------------------------------------------------------


def _scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 if scale is None else scale)


def _attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return _scores(q, k).softmax(dim=-1)


def _row(answer: Tensor) -> float:
    return float(answer[0, 0, 0].sum())


attention_weights = Exercise(
    name="attention_weights",
    solution=_attention_weights,
    # More keys than queries first: then rows and columns cannot be confused unseen.
    cases=(
        _numbers(0, (2, 3, 5, 8), (2, 3, 7, 8), size=1.5),
        _numbers(1, (1, 2, 6, 16), (1, 2, 6, 16), size=1.5),
    ),
    praise="Every row is one query's shares over the keys. It adds up to one, however many keys there are.",
    mistakes={
        "softmax over the queries": Mistake(
            lambda q, k: _scores(q, k).softmax(dim=-2),
            says=lambda answer: (
                f"Your first row sums to {_row(answer):.2f} and your first column to "
                f"{float(answer[0, 0, :, 0].sum()):.2f}: the softmax ran over the queries. Use dim=-1, the "
                "axis of the keys."
            ),
        ),
        "softmax over the heads": Mistake(
            lambda q, k: _scores(q, k).softmax(dim=1),
            says=lambda answer: (
                f"Your first row sums to {_row(answer):.2f}: the softmax ran over the heads. Use dim=-1, "
                "the axis of the keys."
            ),
        ),
        "no scale": Mistake(
            lambda q, k: _scores(q, k, scale=1).softmax(dim=-1),
            says=lambda answer: (
                "Your rows sum to one, but they are too sharp: the largest weight of the first head is "
                f"{float(answer[0, 0].max()):.2f}. Divide the scores by the square root of the width of a "
                "query, q.shape[-1] ** 0.5."
            ),
        ),
        "divided by k, not by its root": Mistake(
            lambda q, k: _scores(q, k, scale=q.shape[-1]).softmax(dim=-1),
            says=lambda answer: (
                "Your rows sum to one, but they are too flat: the largest weight of the first head is "
                f"{float(answer[0, 0].max()):.2f}. You divided by the width k; divide by its square root, "
                "q.shape[-1] ** 0.5."
            ),
        ),
        "scaled after the softmax": Mistake(
            lambda q, k: _scores(q, k, scale=1).softmax(dim=-1) / q.shape[-1] ** 0.5,
            says=lambda answer: (
                f"Your rows sum to {_row(answer):.2f}: you divided the weights. Divide the scores instead, "
                "before the softmax."
            ),
        ),
        "no softmax": Mistake(
            _scores,
            says=lambda answer: (
                f"These are the scores: the smallest is {float(answer.min()):.2f}, and a share cannot be "
                "negative. Turn each row into shares with .softmax(dim=-1)."
            ),
        ),
        "queries and keys swapped": Mistake(
            lambda q, k: _attention_weights(k, q),
            says=lambda answer: (
                f"You returned weights of shape {tuple(answer.shape)}: queries and keys changed places. "
                "The rows belong to the queries: q @ k.transpose(-2, -1)."
            ),
        ),
        "right, then turned over": Mistake(
            lambda q, k: _attention_weights(q, k).transpose(-2, -1),
            says=lambda answer: (
                f"Your weights have shape {tuple(answer.shape)}, and their columns sum to one. "
                "Return them with the queries as rows: (b, h, i, j), no transpose at the end."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Core: a whole layer
# ------------------------------------------------------------------------------------------------------------


def _layer(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    *,
    split: str = "b n (three h k) -> three b h n k",
    order: tuple[int, int, int] = (0, 1, 2),
    axis: int = -1,
    scale: str = "k",
    merge: str = "b h n k -> b n (h k)",
) -> Tensor:
    parts = rearrange(tokens @ qkv_weight.T + qkv_bias, split, three=3, h=heads)
    q, k, v = (parts[place] for place in order)
    width = {"k": q.shape[-1], "d": q.shape[-1] * heads, "none": 1}[scale]
    out = _scores(q, k, scale=width**0.5).softmax(dim=axis) @ v
    merged = (
        out.reshape(tokens.shape[0], tokens.shape[1], -1) if merge == "reshape" else rearrange(out, merge)
    )
    return merged @ proj_weight.T + proj_bias


def _split_by_reshape(
    tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor, heads: int
) -> Tensor:
    b, n, d = tokens.shape
    q, k, v = (
        part.reshape(b, heads, n, d // heads) for part in (tokens @ qkv_weight.T + qkv_bias).chunk(3, dim=-1)
    )
    out = _attention_weights(q, k) @ v
    return rearrange(out, "b h n k -> b n (h k)") @ proj_weight.T + proj_bias


def _layer_case(seed: int, b: int, n: int, d: int, heads: int) -> tuple:
    tokens, qkv_bias, proj_bias = _numbers(seed, (b, n, d), (3 * d,), (d,))
    # Weights of this size make the softmax choose; with small ones a wrong scale hardly shows.
    qkv_weight, proj_weight = _numbers(seed + 1, (3 * d, d), (d, d), size=1.2 * d**-0.5)
    return tokens, qkv_weight, qkv_bias, proj_weight, proj_bias, heads


def _with(**changes) -> Mistake:
    says = changes.pop("says")
    return Mistake(lambda *arguments: _layer(*arguments, **changes), says=says)


multi_head = Exercise(
    name="multi_head",
    solution=_layer,
    cases=(_layer_case(2, b=2, n=5, d=12, heads=3), _layer_case(4, b=3, n=6, d=16, heads=2)),
    praise=(
        "That is all of MultiHeadAttention: two linear layers with attention between them. Published "
        "weights would run through it."
    ),
    mistakes={
        "heads before q, k, v": _with(
            split="b n (h three k) -> three b h n k",
            says=(
                "The shapes are right, but you split into heads first, then into q, k, v. The 3·d numbers "
                "of a token are all of q, then all of k, then all of v: chunk(3, dim=-1) first, or '(three "
                "h k)'."
            ),
        ),
        "split without moving the axes": Mistake(
            _split_by_reshape,
            says=(
                "A reshape from (b, n, d) to (b, h, n, k) mixes tokens and heads. Give the heads an axis "
                "of their own, (b, n, h, k), then move it: rearrange(q, 'b n (h k) -> b h n k', h=heads)."
            ),
        ),
        "merged without moving the axes": _with(
            merge="reshape",
            says=(
                "Your heads are right, but a reshape from (b, h, n, k) to (b, n, d) mixes heads and "
                "tokens. Move the axis first: rearrange(out, 'b h n k -> b n (h k)')."
            ),
        ),
        "merged with the heads inside": _with(
            merge="b h n k -> b n (k h)",
            says="You merged as '(k h)'. Each head's k numbers stay together: '(h k)'.",
        ),
        "keys and values swapped": _with(
            order=(0, 2, 1),
            says="You took the values as keys and the keys as values: the order in qkv is q, k, v.",
        ),
        "queries and keys swapped": _with(
            order=(1, 0, 2),
            says="You took the keys as queries and the queries as keys: the order in qkv is q, k, v.",
        ),
        "softmax over the queries": _with(
            axis=-2,
            says=(
                "The softmax ran over the queries, so that the weights of a token do not add up to one. "
                "Use dim=-1."
            ),
        ),
        "no scale": _with(
            scale="none",
            says=(
                "The scores are not scaled: divide them by the square root of the width of a head, d // "
                "heads."
            ),
        ),
        "scaled by the whole width": _with(
            scale="d",
            says=(
                "You divided by √d, the width of a token. A head compares only k = d // heads numbers: "
                "divide by √k."
            ),
        ),
        "no bias in qkv": Mistake(
            lambda tokens, qkv_weight, qkv_bias, *rest: _layer(
                tokens, qkv_weight, torch.zeros_like(qkv_bias), *rest
            ),
            says="qkv_bias is missing: queries, keys and values are tokens @ qkv_weight.T + qkv_bias.",
        ),
        "no output layer": Mistake(
            lambda tokens, qkv_weight, qkv_bias, proj_weight, proj_bias, heads: _layer(
                tokens, qkv_weight, qkv_bias, torch.eye(len(proj_bias)), torch.zeros_like(proj_bias), heads
            ),
            says=(
                "The heads stand side by side, but nothing mixes them yet: finish with @ proj_weight.T + "
                "proj_bias."
            ),
        ),
        "no bias in the output layer": Mistake(
            lambda tokens, qkv_weight, qkv_bias, proj_weight, proj_bias, heads: _layer(
                tokens, qkv_weight, qkv_bias, proj_weight, torch.zeros_like(proj_bias), heads
            ),
            says="proj_bias is missing: add it at the very end.",
        ),
        "matrices not transposed": Mistake(
            lambda tokens, qkv_weight, qkv_bias, proj_weight, proj_bias, heads: _layer(
                tokens, qkv_weight, qkv_bias, proj_weight.T, proj_bias, heads
            ),
            says=(
                "proj_weight is stored as PyTorch stores it, (outputs, inputs): multiply by its transpose, "
                "or use F.linear."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Stretch: attention that must not look everywhere
# ------------------------------------------------------------------------------------------------------------


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    scores = _scores(q, k).masked_fill(~visible[:, None, None, :], float("-inf"))
    return scores.softmax(dim=-1) @ v


def _masked_case(seed: int, b: int, h: int, n: int, k: int, d: int) -> tuple[Tensor, ...]:
    q, keys, v, chance = _numbers(seed, (b, h, n, k), (b, h, n, k), (b, h, n, d), (b, n))
    visible = chance > 0
    visible[:, 0], visible[:, -1] = True, False  # never all hidden, never all visible
    return 1.5 * q, 1.5 * keys, v + 1, visible


masked_attention = Exercise(
    name="masked_attention",
    solution=_masked_attention,
    cases=(_masked_case(6, b=2, h=3, n=6, k=8, d=5), _masked_case(7, b=3, h=2, n=9, k=4, d=4)),
    praise=(
        "Hidden keys weigh exactly zero, the others share everything. Pictures of different sizes can now "
        "stand in one batch."
    ),
    mistakes={
        "masked after the softmax": Mistake(
            lambda q, k, v, visible: (_attention_weights(q, k) * visible[:, None, None, :]) @ v,
            says=(
                "What is left of a row no longer adds up to one: you set weights (or values) to zero after "
                "the softmax. Hide the scores before the softmax, with -inf."
            ),
        ),
        "score zero": Mistake(
            lambda q, k, v, visible: (_scores(q, k) * visible[:, None, None, :]).softmax(dim=-1) @ v,
            says=(
                "A hidden key still gets a share: its score is now 0, and e⁰ is 1. Only a score of -inf "
                "becomes a weight of 0."
            ),
        ),
        "mask the wrong way round": Mistake(
            lambda q, k, v, visible: _masked_attention(q, k, v, ~visible),
            says=(
                "You look exactly where nothing should be seen: `visible` is True where a key may be "
                "looked at, so fill where ~visible."
            ),
        ),
        "queries hidden": Mistake(
            lambda q, k, v, visible: (
                _scores(q, k).masked_fill(~visible[:, None, :, None], -1e9).softmax(dim=-1) @ v
            ),
            says=(
                "You hid rows, the queries; their scores are now all the same. Hide columns, the keys: "
                "visible[:, None, None, :]."
            ),
        ),
        "no mask": Mistake(
            lambda q, k, v, visible: _attention_weights(q, k) @ v,
            says=(
                "That is attention to all keys: `visible` was not used. Fill the scores of hidden keys "
                "with -inf before the softmax."
            ),
        ),
    },
)

EXERCISES: list[Exercise] = [attention_weights, multi_head, masked_attention]
