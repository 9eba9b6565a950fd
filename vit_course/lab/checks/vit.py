"""Exercises of lesson 03: a ViT by its parts, a block of torchvision, a ViT of one's own functions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import attention
from vit_course.patching import patchify
from vit_course.vit import FeedForward, TransformerBlock, ViT

from .exercise import Exercise, Mistake, filled, forward


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# ------------------------------------------------------------------------------------------------ FeedForward


class _NoActivation(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.fc1(tokens))))


class _Relu(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(tokens)))


class _ActivationTwice(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.act(self.fc2(self.act(self.fc1(tokens))))


class _ActivationFirst(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.act(tokens)))


class _ActivationLast(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.act(self.fc2(self.fc1(tokens)))


class _AddsTokens(FeedForward):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + super().forward(tokens)


FEED_FORWARD = Exercise(
    name="FeedForward",
    solution=FeedForward,
    cases=(
        ({"dim": 4, "hidden_dim": 6}, _draw(0, (2, 3, 4))),
        ({"dim": 6, "hidden_dim": 5}, _draw(1, (1, 4, 6))),
    ),
    praise="Two linear layers and a GELU between them, the same for every token; no token sees another.",
    calls=forward,
    mistakes={
        "no activation": Mistake(
            _NoActivation,
            says=(
                "There is no GELU between the two layers. Without it they are one linear layer, of rank at "
                "most hidden_dim: self.act(self.fc1(tokens))."
            ),
        ),
        "ReLU": Mistake(_Relu, says="That is a ReLU; the ViT has a GELU, self.act."),
        "activation twice": Mistake(
            _ActivationTwice,
            says=(
                "The GELU stands after the second layer too. What is added to the tokens may be negative as "
                "well: it stands between the layers only."
            ),
        ),
        "activation first": Mistake(
            _ActivationFirst,
            says="The GELU stands before both layers; it belongs between them: self.act(self.fc1(tokens)).",
        ),
        "activation last": Mistake(
            _ActivationLast,
            says="The GELU stands after both layers; it belongs between them: self.fc2(self.act(…)).",
        ),
        "adds the tokens": Mistake(
            _AddsTokens,
            says=(
                "You added the tokens that came in. The residual connection belongs to the block, which "
                "comes next; this layer gives the update alone."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------- TransformerBlock


class _NoResidual(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm2(self.attn(self.norm1(tokens))))


class _OneResidual(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm2(tokens + self.attn(self.norm1(tokens))))


class _PostNorm(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        return post_norm_block(tokens, self.norm1, self.attn, self.norm2, self.mlp)


class _NoNorm(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return tokens + self.mlp(tokens)


class _NormAfterThePart(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.norm1(self.attn(tokens))
        return tokens + self.norm2(self.mlp(tokens))


class _NoSecondNorm(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(tokens)


class _FirstNormTwice(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm1(tokens))


class _NoFirstResidual(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _NormalisedResidual(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.attn(tokens))
        return tokens + self.mlp(tokens)


class _OldTokens(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.mlp(self.norm2(tokens + self.attn(self.norm1(tokens))))


class _Parallel(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.attn(self.norm1(tokens)) + self.mlp(self.norm2(tokens))


class _NormsSwapped(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm2(tokens))
        return tokens + self.mlp(self.norm1(tokens))


class _MlpFirst(TransformerBlock):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens + self.attn(self.norm1(tokens))


TRANSFORMER_BLOCK = Exercise(
    name="TransformerBlock",
    solution=TransformerBlock,
    cases=(
        ({"dim": 4, "heads": 2, "mlp_dim": 6}, _draw(0, (2, 5, 4))),
        ({"dim": 6, "heads": 1, "mlp_dim": 8}, _draw(1, (1, 3, 6))),
    ),
    praise="Equations 2 and 3: each part reads normalised tokens, and its output is added to the tokens.",
    calls=forward,
    mistakes={
        "no residual": Mistake(
            _NoResidual,
            says=(
                "Nothing is added: what the tokens held before is lost, twice. Each part gives an update, "
                "tokens + part(norm(tokens))."
            ),
        ),
        "one residual": Mistake(
            _OneResidual,
            says="The second half replaces the tokens. Add there too: tokens + self.mlp(…).",
        ),
        "attention replaces the tokens": Mistake(
            _NoFirstResidual,
            says="The first half replaces the tokens. Add there too: tokens + self.attn(…).",
        ),
        "post-norm": Mistake(
            _PostNorm,
            says=(
                "This is the block of 2017: it normalises the sum. In the ViT the norm stands before each "
                "part, and nothing is normalised after the addition: tokens + self.attn(self.norm1(tokens))."
            ),
        ),
        "no norm": Mistake(
            _NoNorm,
            says="The parts read the tokens as they are; let them read normalised ones, self.norm1(…).",
        ),
        "norm after the part": Mistake(
            _NormAfterThePart,
            says=(
                "You normalised what comes out of each part. In the ViT the norm stands before it: "
                "self.attn(self.norm1(tokens))."
            ),
        ),
        "no norm before the mlp": Mistake(
            _NoSecondNorm,
            says="The mlp reads the tokens as they are; let it read normalised ones, self.norm2(tokens).",
        ),
        "norm1 twice": Mistake(
            _FirstNormTwice,
            says="norm1 stands before both parts. The mlp has a norm of its own, self.norm2.",
        ),
        "normalised tokens added to": Mistake(
            _NormalisedResidual,
            says=(
                "You added to the normalised tokens, so the sizes that the norm took away are gone. Only "
                "the input of a part is normalised; it is added to the tokens themselves."
            ),
        ),
        "old tokens in the second addition": Mistake(
            _OldTokens,
            says=(
                "The second addition starts again from the tokens that came in. Add the mlp's output to the "
                "tokens as they are after attention."
            ),
        ),
        "mlp beside attention": Mistake(
            _Parallel,
            says=(
                "The mlp read the tokens that came in, beside attention instead of after it. It works on the "
                "result of the first half."
            ),
        ),
        "norms swapped": Mistake(
            _NormsSwapped,
            says=(
                "norm1 and norm2 changed places. They have weights of their own: norm1 belongs to attention, "
                "norm2 to the mlp. Fresh norms are alike, so only trained weights show it."
            ),
        ),
        "mlp first": Mistake(
            _MlpFirst, says="Attention comes first, then the mlp; you have them in reverse."
        ),
    },
)


# -------------------------------------------------------------------------------------------------------- ViT


def _sequence(model: ViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class tokens (b, 1, d) and patch tokens (b, n, d), before positions."""
    patches = model.patch_embed(images)
    assert model.cls_token is not None  # these mistakes are made with a class token
    return model.cls_token.expand(len(patches), -1, -1), patches


class _ClassTokenLast(ViT):
    def forward(self, images: Tensor) -> Tensor:
        class_token, patches = _sequence(self, images)
        tokens = torch.cat([patches, class_token], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, -1])


class _ReadsAPatch(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, -1])


class _NoPositions(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class _PositionsOnPatchesOnly(ViT):
    def forward(self, images: Tensor) -> Tensor:
        class_token, patches = _sequence(self, images)
        tokens = torch.cat([class_token, patches + self.pos_embed[:, 1:]], dim=1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class _PositionsShifted(ViT):
    def forward(self, images: Tensor) -> Tensor:
        class_token, patches = _sequence(self, images)
        tokens = torch.cat([class_token, patches + self.pos_embed[:, :-1]], dim=1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class _NoLastNorm(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.blocks(tokens)[:, 0])


class _NormBeforeTheBlocks(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.blocks(self.norm(tokens))[:, 0])


class _MeanOfAll(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


class _MeanOfPatches(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 1:].mean(dim=1))


class _LogitsOfEveryToken(ViT):
    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(_sequence(self, images), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens)))


_SMALL = {"num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 12}

VIT = Exercise(
    name="ViT",
    solution=ViT,
    cases=(
        ({"image_size": (8, 12), "patch_size": 4} | _SMALL, _draw(0, (2, 3, 8, 12))),
        ({"image_size": 4, "patch_size": 2, "channels": 1} | _SMALL, _draw(1, (3, 1, 4, 4))),
    ),
    praise="Equations 1 to 4, in the order of the paper: this is the whole Vision Transformer.",
    calls=forward,
    mistakes={
        "class token last": Mistake(
            _ClassTokenLast,
            says=(
                "The class token stands behind the patches, so every token meets the position of its "
                "neighbour. Published weights have it first: torch.cat([class_token, patches], dim=1)."
            ),
        ),
        "reads a patch": Mistake(
            _ReadsAPatch,
            says="You read the last token, which is a patch; the class token is [:, 0].",
        ),
        "no positions": Mistake(
            _NoPositions,
            says=(
                "No position was added, so the model cannot tell where a patch lies. Add self.pos_embed to "
                "the joined tokens; it has a row for each of them."
            ),
        ),
        "positions on the patches only": Mistake(
            _PositionsOnPatchesOnly,
            says=(
                "The patches are right, the class token has no position. It gets row 0 of self.pos_embed: "
                "join first, then add."
            ),
        ),
        "positions shifted by one": Mistake(
            _PositionsShifted,
            says=(
                "The patches got positions that are one row too early: row 0 belongs to the class token. "
                "Join first, then add all of self.pos_embed."
            ),
        ),
        "no last norm": Mistake(
            _NoLastNorm,
            says="Equation 4 is missing: self.norm stands between the last block and the head.",
        ),
        "norm before the blocks": Mistake(
            _NormBeforeTheBlocks,
            says="self.norm stands before the blocks; it follows them: self.norm(self.blocks(tokens)).",
        ),
        "mean of all tokens": Mistake(
            _MeanOfAll,
            says="You averaged all tokens. Here the class token alone is read, [:, 0].",
        ),
        "mean of the patches": Mistake(
            _MeanOfPatches,
            says=(
                "You averaged the patches, as SimpleViT does later. This ViT reads its class token, [:, 0]."
            ),
        ),
        "logits of every token": Mistake(
            _LogitsOfEveryToken,
            says=lambda answer: (
                f"You have logits for every token, {tuple(answer.shape)}. Take the class token out first: "
                "[:, 0] leaves (b, d), and the head makes (b, num_classes) of it."
            ),
        ),
    },
)


# ----------------------------------------------------------------------------------------------------- encode


def _encode_prefix_last(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    prefix = [token.expand(len(tokens), -1, -1) for token in self.prefix()]
    return self.blocks(torch.cat([tokens, *prefix], dim=1) + self.positions(grid))


def _encode_no_positions(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    prefix = [token.expand(len(tokens), -1, -1) for token in self.prefix()]
    return self.blocks(torch.cat([*prefix, tokens], dim=1))


def _encode_positions_as_they_are(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    prefix = [token.expand(len(tokens), -1, -1) for token in self.prefix()]
    return self.blocks(torch.cat([*prefix, tokens], dim=1) + self.pos_embed)


def _encode_and_normalise(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return self.norm(ViT.encode(self, tokens, grid))


def _encode_and_read(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return ViT.encode(self, tokens, grid)[:, 0]


def _encode_no_blocks(self: ViT, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    prefix = [token.expand(len(tokens), -1, -1) for token in self.prefix()]
    return torch.cat([*prefix, tokens], dim=1) + self.positions(grid)


def _encode_case(
    seed: int, grid: tuple[int, int], pool: str = "cls"
) -> tuple[nn.Module, Tensor, tuple[int, int]]:
    """A ViT for 2 × 3 patches with weights that matter, patch tokens, and their grid."""
    with torch.random.fork_rng(devices=[]):
        model = ViT(
            image_size=(8, 12), patch_size=4, num_classes=3, dim=8, depth=2, heads=2, mlp_dim=12, pool=pool
        )
        filled(model.eval())
    (tokens,) = _draw(seed, (2, grid[0] * grid[1], 8))
    return model.requires_grad_(False), tokens, grid


ENCODE = Exercise(
    name="encode",
    solution=ViT.encode,
    cases=(_encode_case(0, (2, 3)), _encode_case(1, (3, 2)), _encode_case(2, (2, 3), pool="mean")),
    praise="With or without a class token, on any grid: the rest of a ViT stands in Backbone.",
    mistakes={
        "prefix last": Mistake(
            _encode_prefix_last,
            says="The class token stands behind the patches; it comes first, as do its positions.",
        ),
        "no positions": Mistake(
            _encode_no_positions, says="No position was added: self.positions(grid) has a row for each token."
        ),
        "positions of another grid": Mistake(
            _encode_positions_as_they_are,
            says=(
                "Right for pictures of image_size only. Another grid needs its own positions, also where it "
                "has as many patches: self.positions(grid) instead of self.pos_embed."
            ),
        ),
        "normalised here": Mistake(
            _encode_and_normalise,
            says="You normalised the result. Backbone does that after encode, so it would be done twice.",
        ),
        "class token read here": Mistake(
            _encode_and_read,
            says="You read out token 0. encode returns all tokens; forward_head chooses among them.",
        ),
        "no blocks": Mistake(
            _encode_no_blocks,
            says="The tokens are joined and placed, but they have not passed through self.blocks.",
        ),
    },
)


# -------------------------------------------------------------------------------------------- post_norm_block


def post_norm_block(
    tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    """The block of Vaswani et al. 2017: add, then normalise. Tokens (b, n, d) -> (b, n, d)."""
    tokens = norm1(tokens + attention(tokens))
    return norm2(tokens + mlp(tokens))


def _pre_norm(tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable) -> Tensor:
    tokens = tokens + attention(norm1(tokens))
    return tokens + mlp(norm2(tokens))


def _norm_inside(
    tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    tokens = tokens + norm1(attention(tokens))
    return tokens + norm2(mlp(tokens))


def _no_residual(
    tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    return norm2(mlp(norm1(attention(tokens))))


def _old_tokens(
    tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    return norm2(tokens + mlp(norm1(tokens + attention(tokens))))


def _parallel(tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable) -> Tensor:
    return norm2(norm1(tokens + attention(tokens)) + mlp(tokens))


def _norms_swapped(
    tokens: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    return post_norm_block(tokens, norm2, attention, norm1, mlp)


def _parts(seed: int, b: int, n: int, d: int, hidden: int) -> tuple:
    """Tokens and the four parts of a block, as functions with weights large enough to show every mistake."""
    shapes = ((b, n, d), (d, d), (d, d), (d, hidden), (hidden, d), (d,), (d,), (d,), (d,))
    tokens, mixing, value, first, second, *norms = _draw(seed, *shapes)

    def norm(weight: Tensor, bias: Tensor) -> Callable:
        return lambda x: F.layer_norm(x, (d,), 1 + 0.3 * weight, 0.3 * bias, 1e-6)

    def attention(x: Tensor) -> Tensor:
        return (x @ mixing @ x.transpose(1, 2) / d).softmax(dim=-1) @ x @ value

    def mlp(x: Tensor) -> Tensor:
        return F.gelu(x @ first / d**0.5) @ second

    return 2 * tokens, norm(*norms[:2]), attention, norm(*norms[2:]), mlp


POST_NORM_BLOCK = Exercise(
    name="post_norm_block",
    solution=post_norm_block,
    cases=(_parts(0, 2, 5, 4, 6), _parts(1, 3, 4, 6, 8)),
    praise=(
        "Add, then normalise: the 2017 block. Nothing passes it unchanged, which is what makes many of "
        "them hard to train."
    ),
    mistakes={
        "pre-norm": Mistake(
            _pre_norm,
            says=(
                "This is the ViT's block: it normalises what goes into a part. Here the norm comes after "
                "the addition: norm1(tokens + …)."
            ),
        ),
        "norm before the addition": Mistake(
            _norm_inside,
            says=(
                "You normalised the update and then added it. Add first, then normalise the sum: "
                "norm1(tokens + attention(tokens))."
            ),
        ),
        "no residual": Mistake(
            _no_residual,
            says=(
                "Nothing is added: what the tokens held before is lost twice. Each part gives a change, "
                "tokens + part(tokens)."
            ),
        ),
        "old tokens in the second addition": Mistake(
            _old_tokens,
            says=(
                "The second addition starts again from the tokens that came in, so the first half reaches "
                "the output only through the mlp. Add the mlp's output to the tokens as they are after norm1."
            ),
        ),
        "mlp beside attention": Mistake(
            _parallel,
            says=(
                "The mlp read the tokens that came in, beside attention instead of behind it. It works on "
                "the result of the first half: mlp(tokens) after `tokens = norm1(…)`."
            ),
        ),
        "norms swapped": Mistake(
            _norms_swapped,
            says=(
                "norm1 and norm2 changed places: they have weights of their own. norm1 follows attention, "
                "norm2 the mlp."
            ),
        ),
    },
)


# -------------------------------------------------------------------------------------- run_torchvision_block

_NAMES = {
    "ln_1": "norm1",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}


def run_torchvision_block(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """Tokens (b, n, d) through a TransformerBlock of ours that carries the weights of a torchvision
    EncoderBlock.
    """
    return _run(tokens, _renamed(weights, _NAMES), heads)


def _run(tokens: Tensor, state: dict[str, Tensor], heads: int, strict: bool = True) -> Tensor:
    block = TransformerBlock(dim=tokens.shape[-1], heads=heads, mlp_dim=len(state["mlp.fc1.bias"]))
    block.load_state_dict(state, strict=strict)
    return block.eval()(tokens)


def _renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    state = {}
    for name, weight in weights.items():
        for theirs, ours in names.items():
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        state[name] = weight
    return state


def _foreign_norms_swapped(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    return _run(tokens, _renamed(weights, _NAMES | {"ln_1": "norm2", "ln_2": "norm1"}), heads)


def _transposed(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    state = _renamed(weights, _NAMES)
    return _run(tokens, state | {"attn.proj.weight": state["attn.proj.weight"].T}, heads)


def _head_first(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    state = _renamed(weights, _NAMES)
    for name in ("attn.qkv.weight", "attn.qkv.bias"):
        rows = state[name].unflatten(0, (3, heads, -1))
        state[name] = rows.transpose(0, 1).flatten(0, 2)
    return _run(tokens, state, heads)


def _keys_first(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    state = _renamed(weights, _NAMES)
    for name in ("attn.qkv.weight", "attn.qkv.bias"):
        q, k, v = state[name].chunk(3)
        state[name] = torch.cat([k, q, v])
    return _run(tokens, state, heads)


def _attention_left_out(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    names = {theirs: ours for theirs, ours in _NAMES.items() if not theirs.startswith("self_attention")}
    return _run(tokens, _renamed(weights, names), heads, strict=False)


def _in_projection_left_out(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    names = {theirs: ours for theirs, ours in _NAMES.items() if "in_proj" not in theirs}
    return _run(tokens, _renamed(weights, names), heads, strict=False)


def _one_head(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    return _run(tokens, _renamed(weights, _NAMES), 1)


def _torchvision_case(
    seed: int, b: int, n: int, d: int, hidden: int, heads: int
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Tokens, weights of a size that matters under torchvision's names, and a number of heads."""
    shapes = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "self_attention.in_proj_weight": (3 * d, d),
        "self_attention.in_proj_bias": (3 * d,),
        "self_attention.out_proj.weight": (d, d),
        "self_attention.out_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.0.weight": (hidden, d),
        "mlp.0.bias": (hidden,),
        "mlp.3.weight": (d, hidden),
        "mlp.3.bias": (d,),
    }
    tokens, *values = _draw(seed, (b, n, d), *shapes.values())
    weights = {}
    for (name, shape), value in zip(shapes.items(), values, strict=True):
        if len(shape) == 2:
            value = value * (2 / shape[1]) ** 0.5
        weights[name] = 1 + 0.3 * value if name in ("ln_1.weight", "ln_2.weight") else value
    return tokens, weights, heads


RUN_TORCHVISION_BLOCK = Exercise(
    name="run_torchvision_block",
    solution=run_torchvision_block,
    cases=(_torchvision_case(0, 2, 5, 12, 20, 3), _torchvision_case(1, 1, 7, 8, 24, 2)),
    praise="Seven names are all that lies between torchvision's block and yours: the arithmetic is the same.",
    mistakes={
        "norms swapped": Mistake(
            _foreign_norms_swapped,
            says=(
                "ln_1 and ln_2 changed places. Both have the same shape, so loading cannot notice: ln_1 "
                "goes to norm1."
            ),
        ),
        "transposed": Mistake(
            _transposed,
            says=(
                "out_proj.weight was transposed. Both libraries keep a linear layer as (out, in), and a "
                "square one loads either way: copy it as it is."
            ),
        ),
        "packed head by head": Mistake(
            _head_first,
            says=(
                "The rows of in_proj_weight were regrouped head by head. In both libraries all queries "
                "come first, then all keys, then all values: copy it as it is."
            ),
        ),
        "queries and keys swapped": Mistake(
            _keys_first,
            says="Queries and keys changed places. in_proj_weight is q, k, v from top to bottom, as qkv is.",
        ),
        "attention left out": Mistake(
            _attention_left_out,
            says=(
                "Attention still has the random weights it was made with: strict=False let the names of "
                "self_attention pass unused. Rename them, and leave strict as it is, so that a forgotten "
                "name is an error."
            ),
        ),
        "in projection left out": Mistake(
            _in_projection_left_out,
            says=(
                "attn.qkv still has the random weights it was made with: strict=False hid it. torchvision "
                "writes in_proj_weight and in_proj_bias with an underscore, not a dot."
            ),
        ),
        "one head": Mistake(
            _one_head,
            says=(
                "The weights are right, but your block has one head. The shapes do not depend on the "
                "number of heads, the values do: pass heads=heads."
            ),
        ),
    },
)


# ----------------------------------------------------------------------------------------------------- my_vit

_HEAD_WIDTH = 64  # of the published ViT-Ti, -S, -B and -L


def my_vit(images: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Images (b, c, h, w) and a ViT's weights by timm's names -> logits; heads are 64 wide."""
    return _assembled(images, weights)


def _assembled(
    images: Tensor,
    weights: dict[str, Tensor],
    *,
    patches_order: str = "d c p q -> d (p q c)",
    class_token_first: bool = True,
    positions: bool = True,
    eps: float = 1e-6,
    heads: int | None = None,
    scale: float = 1.0,
    packing: str = "b n (qkv h k) -> qkv b h n k",
    activation: Callable[[Tensor], Tensor] = F.gelu,
    norms: tuple[str, str] = ("norm1", "norm2"),
    attention_residual: bool = True,
    mlp_residual: bool = True,
    last_norm: bool = True,
    pool: str = "cls",
) -> Tensor:
    """A ViT in plain functions; the options after `weights` put a mistake into it."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    kernel = weights["patch_embed.proj.weight"]
    matrix = rearrange(kernel, patches_order)
    x = patchify(images, kernel.shape[-1]) @ matrix.T + weights["patch_embed.proj.bias"]
    parts = [weights["cls_token"].expand(len(x), -1, -1), x]
    x = torch.cat(parts if class_token_first else parts[::-1], dim=1)
    if positions:
        x = x + weights["pos_embed"]
    heads = heads or x.shape[-1] // _HEAD_WIDTH
    block = 0
    while (name := f"blocks.{block}") + ".norm1.weight" in weights:
        joint = linear(f"{name}.attn.qkv", norm(f"{name}.{norms[0]}", x))
        q, k, v = rearrange(joint, packing, qkv=3, h=heads)
        update = rearrange(attention(scale * q, k, v)[0], "b h n k -> b n (h k)")
        update = linear(f"{name}.attn.proj", update)
        x = x + update if attention_residual else update
        hidden = activation(linear(f"{name}.mlp.fc1", norm(f"{name}.{norms[1]}", x)))
        update = linear(f"{name}.mlp.fc2", hidden)
        x = x + update if mlp_residual else update
        block += 1
    if last_norm:
        x = norm("norm", x)
    return linear("head", x[:, 0] if pool == "cls" else x[:, 1:].mean(dim=1))


def _variant(**options: Any) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    return partial(_assembled, **options)


def _vit_weights(seed: int, dim: int, depth: int, patch_size: int, tokens: int, faint: float) -> dict:
    """Weights of a size that matters under timm's names; `faint` scales what tokens are first made of."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (dim,),
    }
    for block in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", dim, dim),
            ("mlp.fc2", dim, dim),
        ):
            shapes |= {f"blocks.{block}.{name}.weight": (out, into), f"blocks.{block}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (dim,), f"blocks.{block}.{name}.bias": (dim,)}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (5, dim), "head.bias": (5,)}
    weights = {}
    for (name, shape), value in zip(shapes.items(), _draw(seed, *shapes.values()), strict=True):
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            value = 1 + 0.3 * value
        elif len(shape) == 1:
            value = 0.3 * value
        elif name.endswith("weight"):
            value = value * (2 / value[0].numel()) ** 0.5
        weights[name] = value * faint if name.startswith(("cls_", "pos_", "patch_")) else value
    return weights


MY_VIT = Exercise(
    name="my_vit",
    solution=my_vit,
    cases=(
        (*_draw(0, (2, 3, 8, 12)), _vit_weights(1, 128, 2, 4, 7, faint=1.0)),
        (*_draw(2, (1, 3, 8, 8)), _vit_weights(3, 192, 1, 4, 5, faint=1e-3)),
    ),
    praise="Your patches, your attention, your blocks: together they are the published model.",
    mistakes={
        "patches in another order": Mistake(
            _variant(patches_order="d c p q -> d (c p q)"),
            says=(
                "The kernel was flattened channel first, your patches row, column, channel: "
                "rearrange(kernel, 'd c p q -> d (p q c)')."
            ),
        ),
        "class token last": Mistake(
            _variant(class_token_first=False),
            says="The class token stands behind the patches; published weights have it first.",
        ),
        "no positions": Mistake(_variant(positions=False), says="pos_embed was not added to the tokens."),
        "eps 1e-5": Mistake(
            _variant(eps=1e-5),
            says=(
                "Right for tokens of ordinary size, wrong for faint ones: the ViT's norms have eps 1e-6, "
                "PyTorch's default is 1e-5."
            ),
        ),
        "no eps": Mistake(
            _variant(eps=0.0),
            says=(
                "Right for tokens of ordinary size, wrong for faint ones: the norms divide by "
                "√(variance + eps), with eps 1e-6."
            ),
        ),
        "one head": Mistake(
            _variant(heads=1),
            says="You have one head. Published ViTs have heads of width 64: dim // 64 of them.",
        ),
        "no scale": Mistake(
            _variant(scale=_HEAD_WIDTH**0.5),
            says="The scores are not divided by √64, the square root of a head's width.",
        ),
        "scale by the width": Mistake(
            _variant(scale=_HEAD_WIDTH**-0.5),
            says="The scores are divided by 64; they are divided by its square root.",
        ),
        "packed head by head": Mistake(
            _variant(packing="b n (h qkv k) -> qkv b h n k"),
            says=(
                "The rows of qkv were read head by head. All queries come first, then all keys, then all "
                "values: 'b n (qkv h k) -> qkv b h n k'."
            ),
        ),
        "approximate GELU": Mistake(
            _variant(activation=partial(F.gelu, approximate="tanh")),
            says="That is the tanh approximation of the GELU; the ViT has the exact one, F.gelu(x).",
        ),
        "ReLU": Mistake(_variant(activation=F.relu), says="That is a ReLU; the ViT has a GELU, F.gelu(x)."),
        "no residual around attention": Mistake(
            _variant(attention_residual=False),
            says="Attention's output replaced the tokens; it is added to them.",
        ),
        "no residual around the mlp": Mistake(
            _variant(mlp_residual=False),
            says="The mlp's output replaced the tokens; it is added to them.",
        ),
        "norms swapped": Mistake(
            _variant(norms=("norm2", "norm1")),
            says="norm1 and norm2 changed places: norm1 belongs to attention, norm2 to the mlp.",
        ),
        "no last norm": Mistake(
            _variant(last_norm=False),
            says="The last norm is missing: norm.weight, norm.bias, before the head.",
        ),
        "mean of the patches": Mistake(
            _variant(pool="mean"), says="You averaged the patches; this model reads its class token, x[:, 0]."
        ),
    },
)


EXERCISES: list[Exercise] = [
    FEED_FORWARD,
    TRANSFORMER_BLOCK,
    VIT,
    ENCODE,
    POST_NORM_BLOCK,
    RUN_TORCHVISION_BLOCK,
    MY_VIT,
]
