"""Lesson 02: attention, its heads, the layer and rollout; a layer to repair, and attention with a mask."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import AttentionLayer, HeadedAttention, MultiHeadAttention, attention, rollout

from .exercise import Exercise, Mistake, filled, forward


def _numbers(seed: int, *shapes: tuple[int, ...], size: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(size * torch.randn(shape, generator=generator) for shape in shapes)


def _scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 if scale is None else scale)


# ------------------------------------------------------------------------------------------------------------
# Build, step 1: attention
# ------------------------------------------------------------------------------------------------------------


def _row(answer: tuple[Tensor, Tensor]) -> float:
    return float(answer[1][0, 0, 0].sum())


def _largest(answer: tuple[Tensor, Tensor]) -> float:
    return float(answer[1][0, 0].max())


def _from_weights(weights: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """Attention with weights made in another way."""

    def answer(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        made = weights(q, k)
        return made @ v, made

    return answer


def _attention_case(seed: int, queries: int, keys: int, width: int, out: int) -> tuple[Tensor, ...]:
    q, k = _numbers(seed, (2, 3, queries, width), (2, 3, keys, width), size=1.5)
    return q, k, *_numbers(seed + 1, (2, 3, keys, out))


attention_exercise = Exercise(
    name="attention",
    solution=attention,
    # More keys than queries first: then rows and columns cannot be confused unseen.
    cases=(_attention_case(0, 5, 7, 8, 6), _attention_case(2, 6, 6, 16, 4)),
    praise="Every row of the weights is one query's shares over the keys, and adds up to one.",
    mistakes={
        "softmax over the queries": Mistake(
            _from_weights(lambda q, k: _scores(q, k).softmax(dim=-2)),
            says=lambda answer: (
                f"Your first row of weights sums to {_row(answer):.2f} and your first column to "
                f"{float(answer[1][0, 0, :, 0].sum()):.2f}: the softmax ran over the queries. Use dim=-1, "
                "the axis of the keys."
            ),
        ),
        "softmax over the heads": Mistake(
            _from_weights(lambda q, k: _scores(q, k).softmax(dim=1)),
            says=lambda answer: (
                f"Your first row of weights sums to {_row(answer):.2f}: the softmax ran over the heads. Use "
                "dim=-1, the axis of the keys."
            ),
        ),
        "no scale": Mistake(
            _from_weights(lambda q, k: _scores(q, k, scale=1).softmax(dim=-1)),
            says=lambda answer: (
                "Your rows sum to one, but they are too sharp: the largest weight of the first head is "
                f"{_largest(answer):.2f}. Divide the scores by the square root of the width of a query, "
                "q.shape[-1] ** 0.5."
            ),
        ),
        "divided by k, not by its root": Mistake(
            _from_weights(lambda q, k: _scores(q, k, scale=q.shape[-1]).softmax(dim=-1)),
            says=lambda answer: (
                "Your rows sum to one, but they are too flat: the largest weight of the first head is "
                f"{_largest(answer):.2f}. You divided by the width k; divide by its square root, "
                "q.shape[-1] ** 0.5."
            ),
        ),
        "scaled by the width of the values": Mistake(
            lambda q, k, v: _from_weights(
                lambda q, k: _scores(q, k, scale=v.shape[-1] ** 0.5).softmax(dim=-1)
            )(q, k, v),
            says="You divided by the root of the width of the values; it is the width of queries and keys.",
        ),
        "scaled after the softmax": Mistake(
            _from_weights(lambda q, k: _scores(q, k, scale=1).softmax(dim=-1) / q.shape[-1] ** 0.5),
            says=lambda answer: (
                f"Your rows of weights sum to {_row(answer):.2f}: you divided the weights. Divide the scores "
                "instead, before the softmax."
            ),
        ),
        "softmax over the queries, no scale": Mistake(
            _from_weights(lambda q, k: _scores(q, k, scale=1).softmax(dim=-2)),
            says=(
                "Two things: the softmax ran over the queries (use dim=-1), and the scores are not divided "
                "by q.shape[-1] ** 0.5."
            ),
        ),
        "no softmax": Mistake(
            _from_weights(_scores),
            says=lambda answer: (
                f"Your weights are the scores: the smallest is {float(answer[1].min()):.2f}, and a share "
                "cannot be negative. Turn each row into shares with .softmax(dim=-1)."
            ),
        ),
        "weights first": Mistake(
            lambda q, k, v: attention(q, k, v)[::-1],
            says="Both are right, in the other order: return the output first, then the weights.",
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Build, step 2: heads get an axis of their own, and come back
# ------------------------------------------------------------------------------------------------------------


def _split_and_merge(module_type: Callable[..., Any], case: tuple[dict, tuple]) -> tuple:
    """Split tokens into heads, and merge the output of heads."""
    arguments, (tokens, out) = case
    module = module_type(**arguments)
    module.proj = nn.Linear(arguments["dim"], arguments["dim"])
    filled(module).eval()
    return module.split(tokens), module.merge(out)


_split_and_merge.methods = ("split", "merge")  # type: ignore[attr-defined]  # what the learner writes


class _SplitByReshape(HeadedAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), self.heads, tokens.shape[1], -1)


class _SplitOtherOrder(HeadedAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (k h) -> b h n k", h=self.heads)


class _MergeByReshape(HeadedAttention):
    def merge(self, out: Tensor) -> Tensor:
        return self.proj(out.reshape(len(out), out.shape[2], -1))


class _BothByReshape(_SplitByReshape, _MergeByReshape):
    pass


class _MergeOtherOrder(HeadedAttention):
    def merge(self, out: Tensor) -> Tensor:
        return self.proj(rearrange(out, "b h n k -> b n (k h)"))


class _BothOtherOrder(_SplitOtherOrder, _MergeOtherOrder):
    pass


class _NoOutputLayer(HeadedAttention):
    def merge(self, out: Tensor) -> Tensor:
        return rearrange(out, "b h n k -> b n (h k)")


headed_attention = Exercise(
    name="HeadedAttention",
    solution=HeadedAttention,
    cases=(
        ({"dim": 12, "heads": 3}, _numbers(10, (2, 5, 12), (2, 3, 5, 4))),
        ({"dim": 16, "heads": 2}, _numbers(11, (3, 6, 16), (3, 2, 6, 8))),
    ),
    praise="Each head has its own slice of the width, and finds its way back to it.",
    calls=_split_and_merge,
    mistakes={
        "split by reshape": Mistake(
            _SplitByReshape,
            says=(
                "split: a reshape from (b, n, d) to (b, h, n, k) moves no number and so mixes tokens and "
                "heads. Move the axis: rearrange(tokens, 'b n (h k) -> b h n k', h=self.heads)."
            ),
        ),
        "split in the other order": Mistake(
            _SplitOtherOrder,
            says="split: you split as '(k h)'. Each head's k numbers stand together: '(h k)'.",
        ),
        "merged by reshape": Mistake(
            _MergeByReshape,
            says=(
                "merge: a reshape from (b, h, n, k) to (b, n, d) mixes heads and tokens. Move the axis "
                "first: rearrange(out, 'b h n k -> b n (h k)')."
            ),
        ),
        "both by reshape": Mistake(
            _BothByReshape,
            says=(
                "split and merge: a reshape moves no number, so that it mixes tokens and heads. Both need "
                "the axis moved: rearrange, with 'b n (h k)' on one side and 'b h n k' on the other."
            ),
        ),
        "merged in the other order": Mistake(
            _MergeOtherOrder,
            says="merge: you merged as '(k h)'. Each head's k numbers stay together: '(h k)'.",
        ),
        "both in the other order": Mistake(
            _BothOtherOrder,
            says=(
                "split and merge: you wrote '(k h)' in both. Each head's k numbers stand together: '(h k)', "
                "on both ways."
            ),
        ),
        "no output layer": Mistake(
            _NoOutputLayer,
            says="merge: the heads stand side by side, but nothing mixes them yet: finish with self.proj.",
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Build, step 3: the layer
# ------------------------------------------------------------------------------------------------------------


class _Layer(MultiHeadAttention):
    """The layer, with places to go wrong."""

    packed = "b n (three h k) -> three b h n k"
    order = (0, 1, 2)
    axis = -1
    scale: Callable[["_Layer", Tensor], float | None] = staticmethod(lambda layer, q: None)
    merged = "b h n k -> b n (h k)"
    mixes = True
    residual = False

    def forward(self, tokens: Tensor) -> Tensor:
        parts = rearrange(self.qkv(tokens), self.packed, three=3, h=self.heads)
        q, k, v = (parts[place] for place in self.order)
        out = _scores(q, k, type(self).scale(self, q)).softmax(dim=self.axis) @ v
        out = out.reshape(*tokens.shape[:2], -1) if self.merged == "reshape" else rearrange(out, self.merged)
        out = self.proj(out) if self.mixes else out
        return tokens + out if self.residual else out


def _layer(**changes) -> type[_Layer]:
    return type("Wrong", (_Layer,), changes)


class _SplitBeforeMoving(MultiHeadAttention):
    def forward(self, tokens: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        q, k, v = (part.reshape(b, self.heads, n, -1) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.merge(_scores(q, k).softmax(dim=-1) @ v)


multi_head_attention = Exercise(
    name="MultiHeadAttention",
    solution=MultiHeadAttention,
    cases=(
        ({"dim": 12, "heads": 3}, _numbers(20, (2, 5, 12))),
        ({"dim": 16, "heads": 2, "dim_head": 5}, _numbers(21, (3, 6, 16))),
    ),
    praise="Two linear layers with attention between them. Published weights would run through it.",
    calls=forward,
    mistakes={
        "heads before q, k, v": Mistake(
            _layer(packed="b n (h three k) -> three b h n k"),
            says=(
                "The shapes are right, but you split into heads first, then into q, k, v. The numbers of a "
                "token are all of q, then all of k, then all of v: chunk(3, dim=-1) first, or '(three h k)'."
            ),
        ),
        "split without moving the axes": Mistake(
            _SplitBeforeMoving,
            says="A reshape from (b, n, h·k) to (b, h, n, k) mixes tokens and heads: use self.split.",
        ),
        "merged without moving the axes": Mistake(
            _layer(merged="reshape"),
            says="A reshape from (b, h, n, k) to (b, n, h·k) mixes heads and tokens: use self.merge.",
        ),
        "merged with the heads inside": Mistake(
            _layer(merged="b h n k -> b n (k h)"),
            says="You merged as '(k h)'. Each head's k numbers stay together, '(h k)': use self.merge.",
        ),
        "keys and values swapped": Mistake(
            _layer(order=(0, 2, 1)),
            says="You took the values as keys and the keys as values: the order in qkv is q, k, v.",
        ),
        "queries and keys swapped": Mistake(
            _layer(order=(1, 0, 2)),
            says="You took the keys as queries and the queries as keys: the order in qkv is q, k, v.",
        ),
        "softmax over the queries": Mistake(
            _layer(axis=-2),
            says="The softmax ran over the queries, so that the weights of a query do not add up to one.",
        ),
        "no scale": Mistake(
            _layer(scale=staticmethod(lambda layer, q: 1.0)),
            says="The scores are not scaled: divide them by the square root of the width of a head.",
        ),
        "scaled by the whole width": Mistake(
            _layer(scale=staticmethod(lambda layer, q: layer.inner**0.5)),
            says="You divided by the root of the whole width. A head compares only k numbers: divide by √k.",
        ),
        "no output layer": Mistake(
            _layer(mixes=False),
            says="The heads stand side by side, but nothing mixes them yet: self.merge ends with self.proj.",
        ),
        "input added": Mistake(
            _layer(residual=True),
            says="You added the input. A block will do that in lesson 03; the layer returns its own output.",
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Build, step 4: rollout
# ------------------------------------------------------------------------------------------------------------


def _record(seed: int, heads: int, tokens: int, depth: int) -> list[AttentionLayer]:
    shape = (2, heads, tokens, tokens)
    layers = [
        AttentionLayer((2 * weights).softmax(dim=-1), "global", None, 0, f"layers.{number}")
        for number, weights in enumerate(_numbers(seed, *[shape] * depth))
    ]
    (last,) = _numbers(seed + 1, (2, heads, 1, tokens))
    return [*layers, AttentionLayer(last.softmax(dim=-1), "class", None, 0, "class_layer")]


def _roll_class_layers_too(record: list[AttentionLayer]) -> Tensor:
    return _roll([replace(layer, kind="global") for layer in record])


def _roll_heads_apart(record: list[AttentionLayer]) -> Tensor:
    def one(head: int) -> Tensor:
        return _roll(record, over_heads=lambda weights: weights[:, head])

    return torch.stack([one(head) for head in range(record[0].weights.shape[1])]).mean(dim=0)


def _roll(
    record: list[AttentionLayer],
    *,
    over_heads: Callable[[Tensor], Tensor] = lambda weights: weights.mean(dim=1),
    added: float = 1.0,
    everywhere: bool = False,
    shared_out: bool = True,
    last_on_the_left: bool = True,
) -> Tensor:
    layers = [over_heads(layer.weights) for layer in record if layer.kind == "global"]
    result = identity = torch.eye(layers[0].shape[-1])
    for weights in layers:
        mixed = weights + (added if everywhere else added * identity)
        if shared_out:
            mixed = mixed / (1 + added)
        result = mixed @ result if last_on_the_left else result @ mixed
    return result


rollout_exercise = Exercise(
    name="rollout",
    solution=rollout,
    cases=((_record(30, heads=3, tokens=5, depth=3),), (_record(32, heads=2, tokens=6, depth=4),)),
    praise="Row i says which input tokens output token i can come from, as far as weights can tell.",
    mistakes={
        "nothing added": Mistake(
            lambda record: _roll(record, added=0),
            says="Each layer passes half of its input on unchanged: A' = (A + 1) / 2, with 1 the identity.",
        ),
        "one added to every number": Mistake(
            lambda record: _roll(record, everywhere=True),
            says=(
                "You added 1 to every number of A. The 1 in A' = (A + 1) / 2 is the identity matrix, with "
                "ones on the diagonal only: torch.eye(n)."
            ),
        ),
        "not halved": Mistake(
            lambda record: _roll(record, shared_out=False),
            says=lambda answer: (
                f"Your first row sums to {float(answer[0, 0].sum()):.1f}, it should be one: A + 1 has rows "
                "that sum to two, so halve it in each layer."
            ),
        ),
        "layers in the other order": Mistake(
            lambda record: _roll(record, last_on_the_left=False),
            says="The layers multiply in the other order: a later layer stands on the left, mixed @ result.",
        ),
        "max over the heads": Mistake(
            lambda record: _roll(record, over_heads=lambda weights: weights.amax(dim=1)),
            says="You took the largest weight over the heads. Average over them: .mean(dim=1).",
        ),
        "heads averaged at the end": Mistake(
            _roll_heads_apart,
            says=(
                "You followed each head alone and averaged at the end. A token passes on what all heads gave "
                "it: average over the heads in each layer, .mean(dim=1), before you multiply."
            ),
        ),
        "one head": Mistake(
            lambda record: _roll(record, over_heads=lambda weights: weights[:, 0]),
            says="You followed the first head alone. Average over the heads: .mean(dim=1).",
        ),
        "every kind of layer": Mistake(
            _roll_class_layers_too,
            says="You multiplied all layers of the record. Use only those whose kind is 'global'.",
        ),
        "the last layer alone": Mistake(
            lambda record: _roll(record[-2:]),
            says="That is the last layer alone. Multiply the matrices of all 'global' layers.",
        ),
    },
)


# ------------------------------------------------------------------------------------------------------------
# Practise: repair a layer
# ------------------------------------------------------------------------------------------------------------


def _repaired_layer(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    *,
    faults: tuple[str, ...] = (),
) -> Tensor:
    packed = "b n (h three k)" if "packing" in faults else "b n (three h k)"
    q, k, v = rearrange(tokens @ qkv_weight.T + qkv_bias, f"{packed} -> three b h n k", three=3, h=heads)
    width = tokens.shape[-1] if "scale" in faults else q.shape[-1]
    out = _scores(q, k, width**0.5).softmax(dim=-1) @ v
    merged = rearrange(out, f"b h n k -> b n {'(k h)' if 'merging' in faults else '(h k)'}")
    return merged @ proj_weight.T + proj_bias


def _layer_case(seed: int, b: int, n: int, d: int, heads: int) -> tuple:
    tokens, qkv_bias, proj_bias = _numbers(seed, (b, n, d), (3 * d,), (d,))
    # Weights of this size make the softmax choose; with small ones a wrong scale hardly shows.
    qkv_weight, proj_weight = _numbers(seed + 1, (3 * d, d), (d, d), size=1.2 * d**-0.5)
    return tokens, qkv_weight, qkv_bias, proj_weight, proj_bias, heads


FAULTS = {
    "packing": "how the 3·d numbers are unpacked (all of q come first, then all of k, then all of v)",
    "scale": "the scale (which width do the dot products of a head run over?)",
    "merging": "how the heads are put side by side (each head's numbers stay together)",
}


def _left(faults: tuple[str, ...]) -> Mistake:
    """The mistake of a layer in which these faults are left, and what to say about the first of them."""
    one = f"one is {FAULTS[faults[0]]}" if len(faults) > 1 else f"it is {FAULTS[faults[0]]}"
    number = {1: "One fault is left", 2: "Two faults are left", 3: "All three faults are there"}[len(faults)]
    return Mistake(lambda *arguments: _repaired_layer(*arguments, faults=faults), says=f"{number}: {one}.")


repaired_layer = Exercise(
    name="repaired_layer",
    solution=_repaired_layer,
    cases=(_layer_case(2, b=2, n=5, d=12, heads=3), _layer_case(4, b=3, n=6, d=16, heads=2)),
    praise="Weights trained elsewhere run through it now. No shape ever told you what was wrong.",
    mistakes={
        " and ".join(faults): _left(faults) for number in (3, 2, 1) for faults in combinations(FAULTS, number)
    },
)


# ------------------------------------------------------------------------------------------------------------
# Practise: attention that must not look everywhere
# ------------------------------------------------------------------------------------------------------------


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, fault: str = "", scale: float | None = None
) -> Tensor:
    scores, mask = _scores(q, k, scale), visible[:, None, None, :]
    if fault == "late":
        return (scores.softmax(dim=-1) * mask) @ v
    if fault == "zero":
        return (scores * mask).softmax(dim=-1) @ v
    if fault == "none":
        return scores.softmax(dim=-1) @ v
    if fault == "queries":
        return scores.masked_fill(~visible[:, None, :, None], -1e9).softmax(dim=-1) @ v
    if fault == "both":
        return scores.masked_fill(~(mask & visible[:, None, :, None]), -1e9).softmax(dim=-1) @ v
    if fault == "inverted":
        mask = ~mask
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v


def _masked_case(seed: int, b: int, h: int, n: int, k: int, d: int) -> tuple[Tensor, ...]:
    q, keys, v, chance = _numbers(seed, (b, h, n, k), (b, h, n, k), (b, h, n, d), (b, n))
    visible = chance > 0
    visible[:, 0], visible[:, -1] = True, False  # never all hidden, never all visible
    return 1.5 * q, 1.5 * keys, v + 1, visible


NO_SCALE = "The scores are not scaled: divide them by q.shape[-1] ** 0.5."
MASKS = {
    "masked after the softmax": (
        "late",
        "What is left of a row no longer adds up to one: you set weights (or values) to zero after the "
        "softmax. Hide the scores before the softmax, with -inf.",
    ),
    "score zero": (
        "zero",
        "A hidden key still gets a share: its score is now 0, and e⁰ is 1. Only a score of -inf becomes a "
        "weight of 0.",
    ),
    "mask the wrong way round": (
        "inverted",
        "You attend exactly to what should be hidden: `visible` is True where a key may be attended to, so "
        "fill where ~visible.",
    ),
    "queries hidden": (
        "queries",
        "You hid rows, the queries; their scores are now all the same. Hide columns, the keys: "
        "visible[:, None, None, :].",
    ),
    "queries and keys hidden": (
        "both",
        "The keys are hidden as they should be, but you hid the rows of the empty queries too; their scores "
        "are now all the same. Hide the keys only: visible[:, None, None, :].",
    ),
    "no mask": (
        "none",
        "That is attention to all keys: `visible` was not used. Fill the scores of hidden keys with -inf "
        "before the softmax.",
    ),
}


def _masked(fault: str, says: str, scale: float | None = None) -> Mistake:
    return Mistake(lambda *arguments: _masked_attention(*arguments, fault=fault, scale=scale), says=says)


masked_attention = Exercise(
    name="masked_attention",
    solution=_masked_attention,
    cases=(_masked_case(6, b=2, h=3, n=6, k=8, d=5), _masked_case(7, b=3, h=2, n=9, k=4, d=4)),
    praise=(
        "Hidden keys weigh exactly zero, the others share everything. Pictures of different sizes can now "
        "stand in one batch."
    ),
    mistakes={name: _masked(fault, says) for name, (fault, says) in MASKS.items()}
    | {"no scale": _masked("", f"The mask is right. {NO_SCALE}", scale=1.0)}
    | {
        f"{name}, and no scale": _masked(fault, f"Two things. {says} And: {NO_SCALE}", scale=1.0)
        for name, (fault, says) in MASKS.items()
    },
)

EXERCISES: list[Exercise] = [
    attention_exercise,
    headed_attention,
    multi_head_attention,
    rollout_exercise,
    repaired_layer,
    masked_attention,
]
