"""Exercises of lesson a1: re-attention, branches side by side, linear attention; a folded norm, and what
parallel branches forget."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_course.atlas.deeper import ParallelBlock, ReAttention, linear_attention
from vit_course.cait import mix_heads

from .exercise import Exercise, Mistake, forward


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# ------------------------------------------------------------------------------------------------ ReAttention


class _Steps(ReAttention):
    """Re-attention in steps that a mistake can change one by one."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / q.shape[-1] ** 0.5

    def shares(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def mix(self, maps: Tensor) -> Tensor:
        return mix_heads(maps, self.reatten_matrix.weight, self.reatten_matrix.bias)

    def normed(self, maps: Tensor) -> Tensor:
        return self.map_scale * self.var_norm(maps)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.merge(self.normed(self.mix(self.shares(self.scores(q, k)))) @ v)


class _Ordinary(_Steps):
    def mix(self, maps):
        return maps

    def normed(self, maps):
        return maps


class _NoMixing(_Steps):
    def mix(self, maps):
        return maps


class _Transposed(_Steps):
    def mix(self, maps):
        return mix_heads(maps, self.reatten_matrix.weight.T, self.reatten_matrix.bias)


class _NoBias(_Steps):
    def mix(self, maps):
        return mix_heads(maps, self.reatten_matrix.weight, torch.zeros_like(self.reatten_matrix.bias))


class _NoNorm(_Steps):
    def normed(self, maps):
        return self.map_scale * maps


class _NotScaled(_Steps):
    def normed(self, maps):
        return self.var_norm(maps)


class _ScaledBeforeTheNorm(_Steps):
    def normed(self, maps):
        return self.var_norm(self.map_scale * maps)


class _MixedBeforeTheSoftmax(_Steps):
    def forward(self, tokens):
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.merge(self.normed(self.mix(self.scores(q, k)).softmax(dim=-1)) @ v)


class _NormBeforeTheMix(_Steps):
    def mix(self, maps):
        return super().mix(self.map_scale * self.var_norm(maps))

    def normed(self, maps):
        return maps


class _SecondSoftmax(_Steps):
    def normed(self, maps):
        return super().normed(maps).softmax(dim=-1)


class _NotDivided(_Steps):
    def scores(self, q, k):
        return q @ k.mT


RE_ATTENTION = Exercise(
    name="ReAttention",
    solution=ReAttention,
    cases=(
        ({"dim": 8, "heads": 2, "map_scale": 0.5}, _draw(0, (2, 5, 8))),
        ({"dim": 12, "heads": 4, "map_scale": 2.0}, _draw(1, (1, 3, 12))),
    ),
    praise="Softmax, mix, norm, scale: maps that any head may borrow from the others.",
    mistakes={
        "ordinary attention": Mistake(
            _Ordinary,
            says="This is the attention of lesson 02. Mix its maps with reatten_matrix, then var_norm.",
        ),
        "no mixing": Mistake(_NoMixing, says="The maps are not mixed: reatten_matrix has no say yet."),
        "transposed": Mistake(
            _Transposed,
            says="You used the matrix the other way round: *row* g of weight makes new head g.",
        ),
        "no bias": Mistake(
            _NoBias,
            says=(
                "The bias of reatten_matrix is missing. In training the norm would take it out again; in "
                "evaluation the norm subtracts a stored mean, which was measured with the bias in it."
            ),
        ),
        "no norm": Mistake(_NoNorm, says="The maps are mixed, not normalised: var_norm comes after the mix."),
        "not scaled": Mistake(_NotScaled, says="map_scale is missing: it multiplies the normalised maps."),
        "scaled before the norm": Mistake(
            _ScaledBeforeTheNorm,
            says="map_scale stands behind the norm: before it, in training, the norm takes it out again.",
        ),
        "mixed before the softmax": Mistake(
            _MixedBeforeTheSoftmax,
            says="You mixed the scores. Re-attention mixes the *maps*: the softmax comes first.",
        ),
        "norm before the mix": Mistake(
            _NormBeforeTheMix, says="The norm comes after the mix, so that each *new* head is normalised."
        ),
        "second softmax": Mistake(
            _SecondSoftmax,
            says="No softmax follows: the new rows may be negative, and need not sum to one.",
        ),
        "not divided": Mistake(
            _NotDivided, says="The scores are not divided by the square root of the width k of a head."
        ),
    },
    calls=forward,
)


# ---------------------------------------------------------------------------------------------- ParallelBlock


class _InTurn(ParallelBlock):
    def forward(self, tokens):
        for attention, mlp in zip(self.attns, self.ffns, strict=True):
            tokens = tokens + attention(tokens)
            tokens = tokens + mlp(tokens)
        return tokens


class _OneByOne(ParallelBlock):
    def forward(self, tokens):
        for branch in (*self.attns, *self.ffns):
            tokens = tokens + branch(tokens)
        return tokens


class _AllAtOnce(ParallelBlock):
    def forward(self, tokens):
        return tokens + sum(branch(tokens) for branch in (*self.attns, *self.ffns))


class _Mean(ParallelBlock):
    def forward(self, tokens):
        for branches in (self.attns, self.ffns):
            tokens = tokens + sum(branch(tokens) for branch in branches) / len(branches)
        return tokens


class _FirstBranchOnly(ParallelBlock):
    def forward(self, tokens):
        tokens = tokens + self.attns[0](tokens)
        return tokens + self.ffns[0](tokens)


class _TokensAddedByEach(ParallelBlock):
    def forward(self, tokens):
        for branches in (self.attns, self.ffns):
            tokens = sum(tokens + branch(tokens) for branch in branches)
        return tokens


class _NoResidual(ParallelBlock):
    def forward(self, tokens):
        for branches in (self.attns, self.ffns):
            tokens = sum(branch(tokens) for branch in branches)
        return tokens


class _FeedForwardFirst(ParallelBlock):
    def forward(self, tokens):
        for branches in (self.ffns, self.attns):
            tokens = tokens + sum(branch(tokens) for branch in branches)
        return tokens


PARALLEL_BLOCK = Exercise(
    name="ParallelBlock",
    solution=ParallelBlock,
    cases=(
        ({"dim": 8, "heads": 2, "mlp_dim": 12, "layer_scale": 0.1}, _draw(0, (2, 5, 8))),
        ({"dim": 4, "heads": 1, "mlp_dim": 8, "branches": 3}, _draw(1, (1, 3, 4))),
    ),
    praise="All attentions read the same tokens; all feed-forward layers read what the attentions made.",
    mistakes={
        "in turn": Mistake(
            _InTurn,
            says=(
                "Your branches stand behind each other: attention, feed-forward, attention, feed-forward. "
                "That is two ordinary blocks. Side by side, all attentions read the same tokens."
            ),
        ),
        "one by one": Mistake(
            _OneByOne,
            says="Each attention reads what the one before it added. All should read the same tokens.",
        ),
        "all at once": Mistake(
            _AllAtOnce,
            says="The feed-forward layers read what the attentions have added: two sums in turn.",
        ),
        "mean": Mistake(_Mean, says="You took the mean of the branches. The paper adds their *sum*."),
        "first branch only": Mistake(_FirstBranchOnly, says="Only the first branch of each kind is used."),
        "tokens added by each": Mistake(
            _TokensAddedByEach,
            says="Every branch adds the tokens again. They come once: tokens + the sum of the branches.",
        ),
        "no residual": Mistake(_NoResidual, says="The branches replace the tokens. Add their sum to them."),
        "feed-forward first": Mistake(_FeedForwardFirst, says="The attentions come first, as in any block."),
    },
    calls=forward,
)


# ------------------------------------------------------------------------------------------- linear_attention


def _with(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v) / (q @ k.sum(dim=-2).unsqueeze(-1))


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _not_divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v)


def _by_the_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _not_divided(q, k, v) / k.shape[-2]


def _relu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _with(q.relu() + 1, k.relu() + 1, v)


def _keys_as_they_are(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _with(F.elu(q) + 1, k, v)


def _exponential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _with(q.exp(), k.exp(), v)


def _without_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _with(F.elu(q), F.elu(k), v)


def _summed_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    maps = q @ k.mT
    return maps / maps.sum(dim=-2, keepdim=True) @ v


LINEAR_ATTENTION = Exercise(
    name="linear_attention",
    solution=linear_attention,
    cases=(
        _draw(0, (2, 2, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3)),
        _draw(1, (1, 3, 4, 2), (1, 3, 4, 2), (1, 3, 4, 2)),
    ),
    praise="The same shares as with the map, and no map: its cost grows with n.",
    mistakes={
        "softmax": Mistake(_softmax, says="This is softmax attention. Each weight should be φ(q) · φ(k)."),
        "not divided": Mistake(
            _not_divided, says="The weights do not sum to one: divide by φ(q) · Σ φ(k), one number a query."
        ),
        "divided by n": Mistake(
            _by_the_number, says="You divided by the number of keys. Divide by the sum of the weights."
        ),
        "relu": Mistake(_relu, says="You took relu + 1. φ(x) = elu(x) + 1, whose gradient never vanishes."),
        "keys as they are": Mistake(
            _keys_as_they_are, says="φ is applied to the queries only: the keys too."
        ),
        "exponential": Mistake(_exponential, says="You took exp for φ. Here φ(x) = elu(x) + 1."),
        "without one": Mistake(
            _without_one, says="The + 1 is missing: elu alone is negative, and weights must not be."
        ),
        "summed over queries": Mistake(
            _summed_over_queries,
            says="You divided by the sum over the queries; each *row* should sum to one.",
        ),
    },
)


# -------------------------------------------------------------------------------------------------- fold_norm


def fold_norm(
    weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The mixing matrix (g, h) and bias (g,) that do what matrix, bias and stored batch norm do.

    Args:
        weight, bias: of the mix.
        mean, var, gamma, beta: of the norm, (g,) each.
        eps: what the norm adds to the variance.
    """
    factor = gamma / (var + eps).sqrt()
    return factor[:, None] * weight, factor * (bias - mean) + beta


def _columns(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps).sqrt()
    return factor * weight, factor * (bias - mean) + beta


def _mean_left_out(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps).sqrt()
    return factor[:, None] * weight, factor * bias + beta


def _bias_left_out(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps).sqrt()
    return factor[:, None] * weight, beta - factor * mean


def _by_the_variance(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps)
    return factor[:, None] * weight, factor * (bias - mean) + beta


def _bias_as_it_was(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps).sqrt()
    return factor[:, None] * weight, bias - factor * mean + beta


def _epsilon_outside(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var.sqrt() + eps)
    return factor[:, None] * weight, factor * (bias - mean) + beta


def _norm_case(seed: int, heads: int) -> tuple:
    weight, bias, mean, var, gamma, beta = _draw(seed, (heads, heads), *[(heads,)] * 5)
    return weight, bias, mean, var.square() + 0.1, gamma, beta, 0.05


FOLD_NORM = Exercise(
    name="fold_norm",
    solution=fold_norm,
    cases=(_norm_case(0, 3), _norm_case(1, 4)),
    praise="One mix instead of a mix and a norm, and the bias has a say again.",
    mistakes={
        "columns": Mistake(
            _columns, says="You scaled the columns, the old heads. The norm is of the *new* heads: rows."
        ),
        "mean left out": Mistake(_mean_left_out, says="The stored mean is not subtracted."),
        "bias left out": Mistake(
            _bias_left_out,
            says="The bias is gone. The stored mean was measured with it: what is left is bias − mean.",
        ),
        "divided by the variance": Mistake(
            _by_the_variance, says="You divided by the variance. The norm divides by its square root."
        ),
        "bias not scaled": Mistake(_bias_as_it_was, says="The norm scales the bias as it scales the maps."),
        "epsilon outside": Mistake(_epsilon_outside, says="eps is added to the variance, inside the root."),
    },
)


# -------------------------------------------------------------------------------------------------- forgotten


def _identity(matrices: Sequence[Tensor]) -> Tensor:
    return torch.eye(len(matrices[0]))


def _in_sequence(matrices: Sequence[Tensor]) -> Tensor:
    one = _identity(matrices)
    return reduce(lambda done, matrix: (one + matrix) @ done, matrices, one)


def forgotten(matrices: Sequence[Tensor]) -> Tensor:
    """What linear residual branches in sequence compute, minus what they compute side by side: (d, d).

    Args:
        matrices: the branches (d, d) in the order in which they run; a token is a column.
    """
    return _in_sequence(matrices) - _identity(matrices) - sum(matrices)


def _other_order(matrices):
    return forgotten(list(matrices)[::-1])


def _neighbours_only(matrices):
    return sum(second @ first for first, second in zip(matrices, matrices[1:], strict=False))


def _pairs_only(matrices):
    return sum(matrices[late] @ matrices[early] for late in range(len(matrices)) for early in range(late))


def _identity_left_in(matrices):
    return _in_sequence(matrices) - sum(matrices)


def _longest_only(matrices):
    return reduce(lambda done, matrix: matrix @ done, matrices)


def _the_other_sign(matrices):
    return -forgotten(matrices)


FORGOTTEN = Exercise(
    name="forgotten",
    solution=forgotten,
    cases=((list(_draw(0, (3, 3), (3, 3), (3, 3))),), (list(_draw(1, (2, 2), (2, 2))),)),
    praise="Every product of two or more branches, in the order in which they run, is what gets lost.",
    mistakes={
        "other order": Mistake(
            _other_order,
            says="The order is reversed: the first branch stands on the right, next to the token.",
        ),
        "neighbours only": Mistake(
            _neighbours_only, says="A branch reads *all* earlier ones, not only its neighbour.", cases=1
        ),
        "pairs only": Mistake(
            _pairs_only,
            says="Pairs are there; with three branches there is a product of three as well.",
            cases=1,
        ),
        "longest only": Mistake(
            _longest_only, says="Only the product of all is there; those of fewer are lost too.", cases=1
        ),
        "identity left in": Mistake(
            _identity_left_in, says="Both nets hand on the token itself: the identity cancels."
        ),
        "other sign": Mistake(_the_other_sign, says="The sign: sequence minus side by side."),
    },
)

EXERCISES = [RE_ATTENTION, PARALLEL_BLOCK, LINEAR_ATTENTION, FOLD_NORM, FORGOTTEN]
