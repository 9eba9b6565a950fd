"""Exercises of lesson 05: the parts of CaiT; a folded scale, dropped layers, and several class tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from vit_course.attention import MultiHeadAttention, attend
from vit_course.cait import (
    ClassAttention,
    ClassAttentionBlock,
    LayerScale,
    LayerScaleBlock,
    TalkingHeadsAttention,
    mix_heads,
)
from vit_course.vit import residual

from .exercise import Exercise, Mistake, forward


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# ------------------------------------------------------------------------------------------------- LayerScale


class _ScalePerToken(LayerScale):
    def forward(self, tokens):
        return self.gamma[:, None] * tokens


class _ScaleAndItself(LayerScale):
    def forward(self, tokens):
        return tokens + self.gamma * tokens


class _ScaleAdded(LayerScale):
    def forward(self, tokens):
        return tokens + self.gamma


class _OneScale(LayerScale):
    def forward(self, tokens):
        return self.gamma.mean() * tokens


class _MatrixOfOnes(LayerScale):
    def forward(self, tokens):
        return tokens @ self.gamma.expand(len(self.gamma), -1)


LAYER_SCALE = Exercise(
    name="LayerScale",
    solution=LayerScale,
    # as many tokens as channels: where the factors go along the wrong axis, no shape tells
    cases=(
        ({"dim": 4, "init": 0.1}, _draw(0, (2, 4, 4))),
        ({"dim": 5, "init": 0.1}, _draw(1, (3, 5, 5))),
    ),
    praise="One factor for each channel, the same for every token.",
    mistakes={
        "a factor per token": Mistake(
            _ScalePerToken,
            says=(
                "Your factors go along the tokens: gamma[:, None] multiplies row by row. Channels are the "
                "last axis, and gamma, of shape (d,), already stands along it."
            ),
        ),
        "the token added": Mistake(
            _ScaleAndItself,
            says=(
                "You added the input itself. LayerScale only multiplies: the block around it adds the "
                "result to the token."
            ),
        ),
        "added": Mistake(_ScaleAdded, says="You added gamma. It is a factor: multiply."),
        "one factor for all": Mistake(
            _OneScale,
            says="You took one factor for all channels. Each channel has its own: no mean over gamma.",
        ),
        "no diagonal matrix": Mistake(
            _MatrixOfOnes,
            says=(
                "The matrix of the formula is diagonal, with gamma on the diagonal and zeros elsewhere; "
                "yours has gamma in every row, and mixes the channels."
            ),
        ),
    },
    calls=forward,
)


# -------------------------------------------------------------------------------------------- LayerScaleBlock


class _NoScale(LayerScaleBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn)
        return residual(tokens, self.norm2, self.mlp)


class _FirstScaleTwice(LayerScaleBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls1)
        return residual(tokens, self.norm2, self.mlp, self.ls1)


class _ScalesSwapped(LayerScaleBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls2)
        return residual(tokens, self.norm2, self.mlp, self.ls1)


class _SumScaled(LayerScaleBlock):
    def forward(self, tokens):
        tokens = self.ls1(residual(tokens, self.norm1, self.attn))
        return self.ls2(residual(tokens, self.norm2, self.mlp))


class _ScaledBeforeTheBranch(LayerScaleBlock):
    def forward(self, tokens):
        tokens = tokens + self.attn(self.ls1(self.norm1(tokens)))
        return tokens + self.mlp(self.ls2(self.norm2(tokens)))


class _NormAfterwards(LayerScaleBlock):
    def forward(self, tokens):
        tokens = self.norm1(tokens + self.ls1(self.attn(tokens)))
        return self.norm2(tokens + self.ls2(self.mlp(tokens)))


class _NoNorm(LayerScaleBlock):
    def forward(self, tokens):
        tokens = tokens + self.ls1(self.attn(tokens))
        return tokens + self.ls2(self.mlp(tokens))


class _SideBySide(LayerScaleBlock):
    def forward(self, tokens):
        update = self.ls1(self.attn(self.norm1(tokens)))
        return tokens + update + self.ls2(self.mlp(self.norm2(tokens)))


class _NoResidual(LayerScaleBlock):
    def forward(self, tokens):
        return self.ls2(self.mlp(self.norm2(self.ls1(self.attn(self.norm1(tokens))))))


class _FirstNormTwice(LayerScaleBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls1)
        return residual(tokens, self.norm1, self.mlp, self.ls2)


class _SecondScaleMissing(LayerScaleBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls1)
        return residual(tokens, self.norm2, self.mlp)


class _AttentionOnly(LayerScaleBlock):
    def forward(self, tokens):
        return residual(tokens, self.norm1, self.attn, self.ls1)


def _block_case(seed: int, b: int, n: int, d: int) -> tuple:
    attention = MultiHeadAttention(dim=d, heads=2)
    return {"attn": attention, "dim": d, "mlp_dim": 2 * d, "init": 0.1}, _draw(seed, (b, n, d))


LAYER_SCALE_BLOCK = Exercise(
    name="LayerScaleBlock",
    solution=LayerScaleBlock,
    cases=(_block_case(0, 2, 5, 4), _block_case(1, 1, 3, 8)),
    praise="Norm, branch, scale, and only then the sum: twice, each branch with a scale of its own.",
    mistakes={
        "no scale": Mistake(
            _NoScale, says="This is the block of lesson 03: ls1 and ls2 are missing from its branches."
        ),
        "the first scale twice": Mistake(
            _FirstScaleTwice, says="Both branches have ls1. The feed-forward branch has its own, ls2."
        ),
        "scales swapped": Mistake(
            _ScalesSwapped,
            says="ls1 belongs to attention and ls2 to the feed-forward layer: you swapped them.",
        ),
        "the sum scaled": Mistake(
            _SumScaled,
            says=(
                "You scaled the sum, and the token with it: after a start of 1e-5 nothing of the picture "
                "would be left. Only the branch is scaled: tokens + ls1(attn(norm1(tokens)))."
            ),
        ),
        "scaled before the branch": Mistake(
            _ScaledBeforeTheBranch,
            says=(
                "You scaled what the branch reads. LayerScale stands behind it: its biases, and the spread "
                "that attention gives, are scaled too."
            ),
        ),
        "norm after the sum": Mistake(
            _NormAfterwards,
            says="The norm comes first inside the branch (pre-norm, lesson 03), not after the sum.",
        ),
        "no norm": Mistake(_NoNorm, says="The branches read tokens that passed no norm: norm1, norm2."),
        "side by side": Mistake(
            _SideBySide,
            says=(
                "Both branches read the same tokens. The feed-forward layer comes second: it reads what "
                "attention has already added."
            ),
        ),
        "no residual": Mistake(
            _NoResidual, says="The branches are right, but they replace the tokens. Add each to them."
        ),
        "the first norm twice": Mistake(
            _FirstNormTwice, says="Both branches have norm1. The feed-forward branch has its own, norm2."
        ),
        "the second scale missing": Mistake(
            _SecondScaleMissing, says="Attention is scaled, the feed-forward layer is not: ls2 is missing."
        ),
        "attention only": Mistake(
            _AttentionOnly, says="The first branch is right; the second, the feed-forward layer, is missing."
        ),
    },
    calls=forward,
)


# -------------------------------------------------------------------------------------------------- mix_heads


def _mixed_with_the_transpose(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight.T, bias)


def _no_bias(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight, torch.zeros_like(bias))


def _transposed_without_bias(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight.T, torch.zeros_like(bias))


def _own_head_only(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight.diag().diag(), bias)


def _heads_summed(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, torch.ones_like(weight), bias)


def _shares(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight.softmax(dim=-1), bias)


def _added_to_the_maps(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return maps + mix_heads(maps, weight, bias)


def _bias_for_every_old_head(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mix_heads(maps, weight, len(bias) * bias)


MIX_HEADS = Exercise(
    name="mix_heads",
    solution=mix_heads,
    cases=(_draw(0, (2, 3, 4, 5), (3, 3), (3,)), _draw(1, (1, 4, 2, 3), (4, 4), (4,))),
    praise="Every new head is a mixture of all old ones, the same mixture for each query and key.",
    mistakes={
        "transposed": Mistake(
            _mixed_with_the_transpose,
            says=(
                "You used the matrix the other way round. weight is (g, h): its *row* g makes new head g, "
                "as in nn.Linear: torch.einsum('gh, bhij -> bgij', weight, maps)."
            ),
        ),
        "no bias": Mistake(
            _no_bias, says="The mixture is right, the bias is missing: one number for each new head."
        ),
        "transposed, no bias": Mistake(
            _transposed_without_bias,
            says="Two things: row g of weight makes new head g (you took column g), and the bias is missing.",
        ),
        "own head only": Mistake(
            _own_head_only,
            says="Each new head is made of its own old head only. Sum over all old heads h.",
        ),
        "summed": Mistake(
            _heads_summed, says="You summed the heads. Each counts weight[g, h] times in new head g."
        ),
        "shares": Mistake(
            _shares,
            says="The entries of weight are used as they are: they may be negative and need not sum to one.",
        ),
        "bias in the inner loop": Mistake(
            _bias_for_every_old_head,
            says="You added the bias once for every old head. It comes once, after the sum over h.",
        ),
        "added": Mistake(_added_to_the_maps, says="You added the old maps. The mixture takes their place."),
    },
)


# -------------------------------------------------------------------------------------- TalkingHeadsAttention


def _mixed(maps: Tensor, layer: torch.nn.Linear) -> Tensor:
    return mix_heads(maps, layer.weight, layer.bias)


class _Talking(TalkingHeadsAttention):
    """Talking heads in steps that a mistake can change one by one."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / q.shape[-1] ** 0.5

    def before(self, scores: Tensor) -> Tensor:
        return _mixed(scores, self.proj_l)

    def shares(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def after(self, weights: Tensor) -> Tensor:
        return _mixed(weights, self.proj_w)

    def read(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.merge(self.read(self.after(self.shares(self.before(self.scores(q, k)))), v))


class _NoMixing(_Talking):
    def before(self, scores):
        return scores

    def after(self, weights):
        return weights


class _OnlyBefore(_Talking):
    def after(self, weights):
        return weights


class _OnlyAfter(_Talking):
    def before(self, scores):
        return scores


class _MixersSwapped(_Talking):
    def before(self, scores):
        return _mixed(scores, self.proj_w)

    def after(self, weights):
        return _mixed(weights, self.proj_l)


class _MixersTransposed(_Talking):
    def before(self, scores):
        return mix_heads(scores, self.proj_l.weight.T, self.proj_l.bias)

    def after(self, weights):
        return mix_heads(weights, self.proj_w.weight.T, self.proj_w.bias)


class _NotDivided(_Talking):
    def scores(self, q, k):
        return q @ k.mT


class _DividedTooMuch(_Talking):
    def scores(self, q, k):
        return q @ k.mT / q.shape[-1]


class _SoftmaxOverQueries(_Talking):
    def shares(self, scores):
        return scores.softmax(dim=-2)


class _SoftmaxOverHeads(_Talking):
    def shares(self, scores):
        return scores.softmax(dim=1)


class _SoftmaxAfterBothMixes(_Talking):
    def shares(self, scores):
        return scores

    def after(self, weights):
        return super().after(weights).softmax(dim=-1)


class _SecondSoftmax(_Talking):
    def after(self, weights):
        return super().after(weights).softmax(dim=-1)


class _RowsMadeOne(_Talking):
    def after(self, weights):
        mixed = super().after(weights)
        return mixed / mixed.sum(dim=-1, keepdim=True)


class _OutputsMixed(_Talking):
    def after(self, weights):
        return weights

    def read(self, weights, v):
        return _mixed(weights @ v, self.proj_w)


TALKING_HEADS_ATTENTION = Exercise(
    name="TalkingHeadsAttention",
    solution=TalkingHeadsAttention,
    cases=(({"dim": 8, "heads": 2}, _draw(0, (2, 5, 8))), ({"dim": 12, "heads": 4}, _draw(1, (1, 3, 12)))),
    praise="Mixed before the softmax and once more after it; rows need not sum to one any longer.",
    mistakes={
        "no mixing": Mistake(
            _NoMixing,
            says="This is the attention of lesson 02: the heads are not mixed. proj_l, then proj_w.",
        ),
        "only before": Mistake(
            _OnlyBefore, says="The second mix is missing: mix the weights with proj_w, after the softmax."
        ),
        "only after": Mistake(
            _OnlyAfter, says="The first mix is missing: mix the scores with proj_l, before the softmax."
        ),
        "mixes swapped": Mistake(
            _MixersSwapped,
            says="proj_l mixes the scores (the paper's logits) and proj_w the weights: you swapped them.",
        ),
        "transposed": Mistake(
            _MixersTransposed,
            says="Both mixing matrices are used the other way round: row g makes new head g.",
        ),
        "no scale": Mistake(
            _NotDivided, says="The scores are not divided by the square root of the width k of a head."
        ),
        "too much scale": Mistake(
            _DividedTooMuch, says="You divided by the width k of a head; it is its square root."
        ),
        "softmax over queries": Mistake(
            _SoftmaxOverQueries,
            says="Your softmax runs over the queries. It runs over the keys, the last axis.",
        ),
        "softmax over heads": Mistake(
            _SoftmaxOverHeads, says="Your softmax runs over the heads. It runs over the keys, the last axis."
        ),
        "softmax last": Mistake(
            _SoftmaxAfterBothMixes, says="The softmax comes between the two mixes, not behind both."
        ),
        "a second softmax": Mistake(
            _SecondSoftmax,
            says=(
                "You put a second softmax behind the second mix, so that rows sum to one again. They need "
                "not: the mixed weights are used as they are, negative ones too."
            ),
        ),
        "rows made one": Mistake(
            _RowsMadeOne, says="You divided the rows by their sums. The mixed weights are used as they are."
        ),
        "outputs mixed": Mistake(
            _OutputsMixed,
            says=(
                "You mixed what the heads read. It is the weights that are mixed: new head g reads its own "
                "values with weights from all heads."
            ),
        ),
    },
    calls=forward,
)


# --------------------------------------------------------------------------------------------- ClassAttention


class _Reading(ClassAttention):
    """Class attention in parts that a mistake can change one by one."""

    def queries(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1]

    def context(self, tokens: Tensor) -> Tensor:
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.context(tokens)
        q, k, v = self.q(self.queries(tokens)), self.k(context), self.v(context)
        return self.merge(attend(self.split(q), self.split(k), self.split(v))[0])


class _AllQueries(_Reading):
    def queries(self, tokens):
        return tokens


class _PatchesAsQueries(_Reading):
    def queries(self, tokens):
        return tokens[:, 1:]


class _LastTokenAsQuery(_Reading):
    def queries(self, tokens):
        return tokens[:, -1:]


class _MeanAsQuery(_Reading):
    def queries(self, tokens):
        return tokens.mean(dim=1, keepdim=True)


class _WithoutItself(_Reading):
    def context(self, tokens):
        return tokens[:, 1:]


class _ReadsUnscaled(ClassAttention):
    def forward(self, tokens):
        q, k, v = self.split(self.q(tokens[:, :1])), self.split(self.k(tokens)), self.split(self.v(tokens))
        return self.merge(attend(q * q.shape[-1] ** 0.5, k, v)[0])


class _NotMerged(ClassAttention):
    def forward(self, tokens):
        q, k, v = self.split(self.q(tokens[:, :1])), self.split(self.k(tokens)), self.split(self.v(tokens))
        return attend(q, k, v)[0].transpose(1, 2).flatten(2)


class _ProjectedTwice(_Reading):
    def forward(self, tokens):
        return self.proj(super().forward(tokens))


class _OneHead(_Reading):
    def forward(self, tokens):
        return self.proj(attend(self.q(tokens[:, :1]), self.k(tokens), self.v(tokens))[0])


class _ClassTokenAdded(ClassAttention):
    def forward(self, tokens):
        return tokens[:, :1] + super().forward(tokens)


CLASS_ATTENTION = Exercise(
    name="ClassAttention",
    solution=ClassAttention,
    cases=(({"dim": 8, "heads": 2}, _draw(0, (2, 5, 8))), ({"dim": 12, "heads": 4}, _draw(1, (1, 3, 12)))),
    praise="One query, n + 1 keys: row 0 of self-attention, and nothing else was computed.",
    mistakes={
        "all tokens attend": Mistake(
            _AllQueries,
            says=(
                "All tokens attend in yours, and it gives n + 1 tokens back. Only the class token has a "
                "query here: self.q(tokens[:, :1])."
            ),
        ),
        "the patches attend": Mistake(
            _PatchesAsQueries,
            says="The patches attend in yours. It is the class token that does: tokens[:, :1].",
        ),
        "the last token attends": Mistake(
            _LastTokenAsQuery,
            says="The last token attends in yours. The class token comes first: tokens[:, :1].",
        ),
        "the mean attends": Mistake(
            _MeanAsQuery, says="Your query is made of the mean of all tokens. Only the class token makes it."
        ),
        "class token not among the keys": Mistake(
            _WithoutItself,
            says="Your class token attends to the patches only. It attends to itself too: n + 1 keys.",
        ),
        "no scale": Mistake(
            _ReadsUnscaled, says="The scores are not divided by the square root of the width k of a head."
        ),
        "not merged": Mistake(
            _NotMerged,
            says="The heads stand side by side; proj, which mixes them, is missing: self.merge does both.",
        ),
        "projected twice": Mistake(
            _ProjectedTwice, says="You applied proj twice: self.merge already contains it."
        ),
        "one head": Mistake(
            _OneHead, says="You have one wide head. self.split makes `heads` of them, self.merge joins them."
        ),
        "class token added": Mistake(
            _ClassTokenAdded,
            says="You added the class token. The block does that, after LayerScale: give back what was read.",
        ),
    },
    calls=forward,
)


# ---------------------------------------------------------------------------------------- ClassAttentionBlock


class _ClassBlock(ClassAttentionBlock):
    """The class block in parts that a mistake can change one by one."""

    def context(self, tokens: Tensor) -> Tensor:
        return self.norm1(tokens)

    def read(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1] + self.ls1(self.attn(self.context(tokens)))

    def feed(self, class_token: Tensor, tokens: Tensor) -> Tensor:
        return class_token + self.ls2(self.mlp(self.norm2(class_token)))

    def forward(self, tokens: Tensor) -> Tensor:
        class_token = self.feed(self.read(tokens), tokens)
        return torch.cat([class_token, tokens[:, 1:]], dim=1)


class _PatchesWithoutNorm(_ClassBlock):
    def context(self, tokens):
        return torch.cat([self.norm1(tokens[:, :1]), tokens[:, 1:]], dim=1)


class _NothingNormalised(_ClassBlock):
    def context(self, tokens):
        return tokens


class _GammasSwapped(_ClassBlock):
    def read(self, tokens):
        return tokens[:, :1] + self.ls2(self.attn(self.norm1(tokens)))

    def feed(self, class_token, tokens):
        return class_token + self.ls1(self.mlp(self.norm2(class_token)))


class _GammasForgotten(_ClassBlock):
    def read(self, tokens):
        return tokens[:, :1] + self.attn(self.norm1(tokens))

    def feed(self, class_token, tokens):
        return class_token + self.mlp(self.norm2(class_token))


class _FedWithoutNorm(_ClassBlock):
    def feed(self, class_token, tokens):
        return class_token + self.ls2(self.mlp(class_token))


class _FedWithTheOldToken(_ClassBlock):
    def feed(self, class_token, tokens):
        return class_token + self.ls2(self.mlp(self.norm2(tokens[:, :1])))


class _NothingKept(_ClassBlock):
    def read(self, tokens):
        return self.ls1(self.attn(self.norm1(tokens)))

    def feed(self, class_token, tokens):
        return self.ls2(self.mlp(self.norm2(class_token)))


class _ClassTokenAlone(ClassAttentionBlock):
    def forward(self, tokens):
        return super().forward(tokens)[:, :1]


class _ReadByAll(ClassAttentionBlock):
    """The one token that attention gives is added to all of them, by broadcasting."""

    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls1)
        return residual(tokens, self.norm2, self.mlp, self.ls2)


class _ReadByAllFedAlone(ClassAttentionBlock):
    def forward(self, tokens):
        tokens = residual(tokens, self.norm1, self.attn, self.ls1)
        return torch.cat([residual(tokens[:, :1], self.norm2, self.mlp, self.ls2), tokens[:, 1:]], dim=1)


class _AllFed(ClassAttentionBlock):
    def forward(self, tokens):
        class_token = tokens[:, :1] + self.ls1(self.attn(self.norm1(tokens)))
        return residual(torch.cat([class_token, tokens[:, 1:]], dim=1), self.norm2, self.mlp, self.ls2)


class _ReadsItselfOnly(_ClassBlock):
    def read(self, tokens):
        return residual(tokens[:, :1], self.norm1, self.attn, self.ls1)


class _AddedToTheNorm(_ClassBlock):
    def read(self, tokens):
        normalised = self.norm1(tokens)
        return normalised[:, :1] + self.ls1(self.attn(normalised))


class _PatchesComeNormalised(ClassAttentionBlock):
    def forward(self, tokens):
        return torch.cat([super().forward(tokens)[:, :1], self.norm1(tokens)[:, 1:]], dim=1)


class _NotFed(_ClassBlock):
    def feed(self, class_token, tokens):
        return class_token


class _FirstClassNormTwice(_ClassBlock):
    def feed(self, class_token, tokens):
        return class_token + self.ls2(self.mlp(self.norm1(class_token)))


class _OldTokenForgotten(_ClassBlock):
    def read(self, tokens):
        return self.ls1(self.attn(self.norm1(tokens)))


_CLASS_BLOCK = {"heads": 2, "mlp_dim": 6, "init": 0.1}
CLASS_ATTENTION_BLOCK = Exercise(
    name="ClassAttentionBlock",
    solution=ClassAttentionBlock,
    cases=(
        ({"dim": 4} | _CLASS_BLOCK, (2 * _draw(0, (2, 6, 4))[0],)),
        ({"dim": 8} | _CLASS_BLOCK, (2 * _draw(1, (1, 4, 8))[0],)),
    ),
    praise="One norm over class token and patches; only the class token moves on.",
    mistakes={
        "unnormalised patches": Mistake(
            _PatchesWithoutNorm,
            says=(
                "The class token is normalised, the patches that it attends to are not. One norm for all: "
                "self.attn(self.norm1(tokens))."
            ),
        ),
        "nothing normalised": Mistake(
            _NothingNormalised,
            says="Attention reads tokens that passed no norm: self.attn(self.norm1(tokens)).",
        ),
        "gammas swapped": Mistake(
            _GammasSwapped,
            says="ls1 belongs to attention and ls2 to the feed-forward layer: you swapped them.",
        ),
        "no gammas": Mistake(_GammasForgotten, says="The scales ls1 and ls2 are missing from the branches."),
        "mlp without norm": Mistake(
            _FedWithoutNorm, says="The feed-forward layer reads a class token that passed no norm: norm2."
        ),
        "mlp on the old token": Mistake(
            _FedWithTheOldToken,
            says="The feed-forward layer reads the class token as it came in, without what it has read.",
        ),
        "no residual": Mistake(_NothingKept, says="The branches replace the class token. Add each to it."),
        "class token alone": Mistake(
            _ClassTokenAlone,
            says="The class token is right. The next block needs the patches too: join them again.",
        ),
        "all tokens changed": Mistake(
            _ReadByAll,
            says=(
                "The patches changed too: attention gives one token, (b, 1, d), and adding it to "
                "(b, 1 + n, d) adds it to every token, without any error. Add it to tokens[:, :1] only; the "
                "feed-forward layer, too, is for the class token alone."
            ),
        ),
        "read by all": Mistake(
            _ReadByAllFedAlone,
            says=(
                "What the class token read was added to the patches as well: (b, 1, d) added to "
                "(b, 1 + n, d) goes to every token, without any error. Add it to tokens[:, :1] only."
            ),
        ),
        "read itself only": Mistake(
            _ReadsItselfOnly,
            says=(
                "Your class token attends to itself alone: attention was given tokens[:, :1]. Give it all of "
                "them, normalised: self.attn(self.norm1(tokens))."
            ),
        ),
        "added to the norm": Mistake(
            _AddedToTheNorm,
            says="You added to the normalised class token. The sum starts from tokens[:, :1] as it came in.",
        ),
        "patches come back normalised": Mistake(
            _PatchesComeNormalised,
            says="The class token is right, but the patches come back normalised: join tokens[:, 1:] to it.",
        ),
        "no mlp": Mistake(
            _NotFed, says="The class token has read; its feed-forward layer, the second branch, is missing."
        ),
        "the first norm twice": Mistake(
            _FirstClassNormTwice,
            says="Both branches have norm1. The feed-forward branch has its own, norm2.",
        ),
        "first sum missing": Mistake(
            _OldTokenForgotten,
            says="What attention reads replaces the class token. Add it: tokens[:, :1] + ...",
        ),
        "mlp on all tokens": Mistake(
            _AllFed,
            says="The feed-forward layer changed the patches as well. Only the class token passes it.",
        ),
    },
    calls=forward,
)


# ------------------------------------------------------------------------------------------- fold_layer_scale


def fold_layer_scale(weight: Tensor, bias: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer (d, d) and (d,), and the LayerScale behind it, as one linear layer."""
    return gamma[:, None] * weight, gamma * bias


def _scaled_inputs(weight: Tensor, bias: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return gamma * weight, gamma * bias


def _bias_left_alone(weight: Tensor, bias: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return gamma[:, None] * weight, bias


def _scaled_inputs_bias_left_alone(weight: Tensor, bias: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return gamma * weight, bias


def _divided(weight: Tensor, bias: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return weight / gamma[:, None], bias / gamma


FOLD_LAYER_SCALE = Exercise(
    name="fold_layer_scale",
    solution=fold_layer_scale,
    cases=(_draw(0, (4, 4), (4,), (4,)), _draw(1, (6, 6), (6,), (6,))),
    praise=(
        "After training, LayerScale costs nothing: it becomes part of the layer before it, as a diagonal "
        "matrix from the left."
    ),
    mistakes={
        "inputs scaled": Mistake(
            _scaled_inputs,
            says=(
                "gamma * weight multiplies the columns, which belong to the layer's inputs. A row of "
                "`weight` makes one output channel, and it is outputs that LayerScale multiplies: gamma[:, "
                "None] * weight."
            ),
        ),
        "bias left alone": Mistake(
            _bias_left_alone,
            says=(
                "The weight is right. But LayerScale comes after the whole layer, so it multiplies the "
                "bias too."
            ),
        ),
        "inputs scaled, bias left alone": Mistake(
            _scaled_inputs_bias_left_alone,
            says=(
                "Two things: gamma * weight multiplies columns, the inputs, where it should be rows, "
                "gamma[:, None] * weight; and the bias is multiplied too."
            ),
        ),
        "divided": Mistake(
            _divided,
            says="You divided. The new layer must give gamma times what the old one gave.",
        ),
    },
)


# ------------------------------------------------------------------------------------------------- layer_drop


def layer_drop(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    """Tokens (b, n, d) through branches with stochastic depth; draws (branches, b) are uniform in 0 … 1."""
    for branch, draw in zip(branches, draws, strict=True):
        change = branch(tokens)
        if training:
            change = change * (draw >= rate)[:, None, None] / (1 - rate)
        tokens = tokens + change
    return tokens


def _whole_batch(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    return layer_drop(tokens, branches, rate, draws[:, :1].expand_as(draws), training)


def _as_it_came(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        if draw[0] >= rate:
            tokens = tokens + branch(tokens)
    return tokens


def _in_evaluation_too(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    return layer_drop(tokens, branches, rate, draws, True)


def _not_rescaled(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        kept = (draw >= rate)[:, None, None] if training else 1
        tokens = tokens + branch(tokens) * kept
    return tokens


def _rescaled_in_evaluation_too(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        kept = (draw >= rate)[:, None, None] if training else 1
        tokens = tokens + branch(tokens) * kept / (1 - rate)
    return tokens


def _only_a_draw_for_each(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    return _not_rescaled(tokens, branches, rate, draws, True)


def _only_evaluation_mended(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    return _not_rescaled(tokens, branches, rate, draws[:, :1].expand_as(draws), training)


def _multiplied_by_the_share(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        change = branch(tokens)
        tokens = tokens + (change * (draw >= rate)[:, None, None] * (1 - rate) if training else change)
    return tokens


def _nothing_in_evaluation(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    return layer_drop(tokens, branches, rate, draws, training) if training else tokens


def _scaled_in_evaluation(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        tokens = tokens + branch(tokens) * ((draw >= rate)[:, None, None] if training else 1 - rate)
    return tokens


def _upside_down(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        change = branch(tokens)
        tokens = tokens + (change * (draw < rate)[:, None, None] / rate if training else change)
    return tokens


def _divided_by_the_rate(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        change = branch(tokens)
        tokens = tokens + (change * (draw >= rate)[:, None, None] / rate if training else change)
    return tokens


def _sum_dropped(
    tokens: Tensor, branches: list[Callable], rate: float, draws: Tensor, training: bool
) -> Tensor:
    for branch, draw in zip(branches, draws, strict=True):
        tokens = tokens + branch(tokens)
        if training:
            tokens = tokens * (draw >= rate)[:, None, None] / (1 - rate)
    return tokens


def _branches_case(seed: int, b: int, training: bool) -> tuple:
    """Tokens, three branches, a rate that drops some samples in each of them but not all, and the draws."""
    tokens, *matrices = _draw(seed, (b, 2, 3), (3, 3), (3, 3), (3, 3))
    branches = [lambda x, matrix=matrix: torch.tanh(x @ matrix) for matrix in matrices]
    draws = torch.tensor([[0.1, 0.6, 0.3, 0.9], [0.5, 0.2, 0.8, 0.1], [0.7, 0.1, 0.2, 0.6]])[:, :b]
    return tokens, branches, 0.4, draws, training


LAYER_DROP = Exercise(
    name="layer_drop",
    solution=layer_drop,
    cases=(_branches_case(0, 4, True), _branches_case(1, 4, False)),
    praise=(
        "Each sample has a draw of its own, what is kept is made up for what is not, and evaluation takes "
        "all branches."
    ),
    mistakes={
        "as it came": Mistake(
            _as_it_came,
            says=(
                "This is the function as it came: one draw for the whole batch, nothing rescaled, and "
                "layers missing in evaluation too."
            ),
        ),
        "one draw for the batch": Mistake(
            _whole_batch,
            says=(
                "All samples follow the first one's draw. draws[i] has one number per sample: (draws[i] >= "
                "rate)[:, None, None]."
            ),
        ),
        "also in evaluation": Mistake(
            _in_evaluation_too,
            says=(
                "Training is right. But with training=False branches are still dropped: a picture would "
                "get other logits each time."
            ),
        ),
        "not rescaled": Mistake(
            _not_rescaled,
            says=(
                "What is kept must be divided by the share that is kept, 1 - rate; otherwise evaluation, "
                "which keeps all, adds more than the layers behind ever saw in training."
            ),
        ),
        "enlarged in evaluation too": Mistake(
            _rescaled_in_evaluation_too,
            says=(
                "Training is right. In evaluation nothing is dropped, so nothing is to be made up for: "
                "divide by 1 - rate in training only."
            ),
        ),
        "only a draw for each": Mistake(
            _only_a_draw_for_each,
            says=(
                "One of three mended: each sample follows its own draw. What is kept is not yet rescaled, "
                "and `training` is not yet used."
            ),
        ),
        "only evaluation mended": Mistake(
            _only_evaluation_mended,
            says=(
                "One of three mended: evaluation keeps all. In training all samples still follow the first "
                "one's draw, and what is kept is not rescaled."
            ),
        ),
        "multiplied by the share": Mistake(
            _multiplied_by_the_share,
            says="You multiplied by 1 - rate. What is kept must make up for what is not: divide by it.",
        ),
        "nothing in evaluation": Mistake(
            _nothing_in_evaluation,
            says="Training is right. In evaluation you leave out all branches; it takes them all.",
        ),
        "rescaled in evaluation": Mistake(
            _scaled_in_evaluation,
            says=(
                "You shrink the branches in evaluation instead of enlarging them in training. Both keep "
                "the expectation (Huang et al. 2016 did it your way), but here evaluation is the plain "
                "network: divide by 1 - rate in training."
            ),
        ),
        "dropped where it should be kept": Mistake(
            _upside_down,
            says=(
                "You keep the samples whose draw is below the rate. The rate is the share that is dropped: "
                "keep draw >= rate, and divide by 1 - rate."
            ),
        ),
        "divided by the rate": Mistake(
            _divided_by_the_rate,
            says=(
                "The right samples are kept, but divided by `rate`. A share of 1 - rate is kept: divide by "
                "that."
            ),
        ),
        "tokens dropped": Mistake(
            _sum_dropped,
            says=(
                "You dropped the sum, and with it the token itself. Only the branch is dropped: tokens + "
                "kept * branch(tokens)."
            ),
        ),
    },
)


# --------------------------------------------------------------------------------------- several_class_tokens


def several_class_tokens(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    """What the first `prefix` tokens take up from all tokens: q, k, v (b, h, n, k) -> (b, h, prefix, k)."""
    return attend(q[:, :, :prefix], k, v)[0]


def _first_only(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :1], k, v)[0]


def _first_for_all(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :1], k, v)[0].expand(-1, -1, prefix, -1)


def _everyone(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q, k, v)[0]


def _patches_only(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :prefix], k[:, :, prefix:], v[:, :, prefix:])[0]


def _each_by_itself(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    def own(tokens: Tensor, number: int) -> Tensor:
        return torch.cat([tokens[:, :, number : number + 1], tokens[:, :, prefix:]], dim=2)

    read = [attend(q[:, :, i : i + 1], own(k, i), own(v, i))[0] for i in range(prefix)]
    return torch.cat(read, dim=2)


def _one_key_for_the_prefix(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :prefix], k[:, :, prefix - 1 :], v[:, :, prefix - 1 :])[0]


def _class_tokens_among_themselves(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])[0]


def _unscaled(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    return attend(q[:, :, :prefix] * q.shape[-1] ** 0.5, k, v)[0]


SEVERAL_CLASS_TOKENS = Exercise(
    name="several_class_tokens",
    solution=several_class_tokens,
    cases=(
        (*_draw(0, (2, 2, 7, 4), (2, 2, 7, 4), (2, 2, 7, 4)), 2),
        (*_draw(1, (1, 3, 8, 6), (1, 3, 8, 6), (1, 3, 8, 6)), 3),
    ),
    praise="Each class token has a query of its own; all tokens, the class tokens among them, are keys.",
    mistakes={
        "only the first": Mistake(
            _first_only,
            says="Only the first class token attends. The first `prefix` tokens do: q[:, :, :prefix].",
        ),
        "the first for all": Mistake(
            _first_for_all, says="All class tokens got what the first one read. Each has a query of its own."
        ),
        "all tokens attend": Mistake(
            _everyone,
            says=(
                "The patches attend too. They have no query in the class stage; cut q along its tokens, the "
                "third axis: q[:, :, :prefix]."
            ),
        ),
        "patches only": Mistake(
            _patches_only,
            says="The keys are the patches alone. The class tokens are keys and values as well.",
        ),
        "each by itself": Mistake(
            _each_by_itself,
            says=(
                "Your class tokens do not see each other. That can be wanted, but class attention takes all "
                "tokens as keys, every class token among them."
            ),
        ),
        "among themselves": Mistake(
            _class_tokens_among_themselves,
            says="Your class tokens read only each other. Cut q alone: k and v stay whole.",
        ),
        "one class token among the keys": Mistake(
            _one_key_for_the_prefix,
            says="Only the last class token is among the keys. All of them are: k and v stay whole.",
        ),
        "no scale": Mistake(
            _unscaled, says="The scores are not divided by the square root of the width k of a head."
        ),
    },
)


EXERCISES: list[Exercise] = [
    LAYER_SCALE,
    LAYER_SCALE_BLOCK,
    MIX_HEADS,
    TALKING_HEADS_ATTENTION,
    CLASS_ATTENTION,
    CLASS_ATTENTION_BLOCK,
    FOLD_LAYER_SCALE,
    LAYER_DROP,
    SEVERAL_CLASS_TOKENS,
]
