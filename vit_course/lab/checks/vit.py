"""Exercises of lesson 03: the class token, the post-norm block, and the weights of a foreign block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# -------------------------------------------------------------------------------------------- add_class_token


def add_class_token(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """Patches (b, n, d), class token (1, 1, d), positions (1, n + 1, d) -> tokens (b, n + 1, d)."""
    return torch.cat([class_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions


def _class_token_last(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([patches, class_token.expand(len(patches), -1, -1)], dim=1) + positions


def _no_positions(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([class_token.expand(len(patches), -1, -1), patches], dim=1)


def _patches_only(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([class_token.expand(len(patches), -1, -1), patches + positions[:, 1:]], dim=1)


def _shifted(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([class_token.expand(len(patches), -1, -1), patches + positions[:, :-1]], dim=1)


def _first_picture_only(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    nothing = torch.zeros_like(class_token).expand(len(patches) - 1, -1, -1)
    return torch.cat([torch.cat([class_token, nothing]), patches], dim=1) + positions


ADD_CLASS_TOKEN = Exercise(
    name="add_class_token",
    solution=add_class_token,
    cases=(_draw(0, (2, 5, 4), (1, 1, 4), (1, 6, 4)), _draw(1, (3, 4, 6), (1, 1, 6), (1, 5, 6))),
    praise=(
        "Every picture starts with the same class token, and row i of the positions belongs to token i of "
        "the sequence."
    ),
    mistakes={
        "class token last": Mistake(
            _class_token_last,
            says=(
                "The class token stands behind the patches. Every row then meets the position of its "
                "neighbour, and a model that reads token 0 reads a patch. Put it first: "
                "torch.cat([class_token, patches], dim=1)."
            ),
        ),
        "no positions": Mistake(
            _no_positions,
            says=lambda answer: (
                f"The class token stands where it should, {tuple(answer.shape[1:])} per picture, but no "
                "position was added. Add `positions` to the joined sequence; it has a row for each of its "
                "tokens."
            ),
        ),
        "positions on the patches only": Mistake(
            _patches_only,
            says=(
                "The patches are right, the class token has no position. It gets one too, row 0 of "
                "`positions`: join first, then add."
            ),
        ),
        "positions shifted by one": Mistake(
            _shifted,
            says=(
                "The patches got the positions 0, 1, 2 …, which are one row too early: row 0 belongs to "
                "the class token. Join first, then add all of `positions` to all tokens."
            ),
        ),
        "one picture only": Mistake(
            _first_picture_only,
            says=(
                "Only the first picture got the class token; the others got zeros. One token serves them "
                "all: class_token.expand(len(patches), -1, -1)."
            ),
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
                "You normalised the message and then added it. Add first, then normalise the sum: "
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
                "the output only through the mlp. Add mlp's answer to the tokens as they are after norm1."
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
    from vit_course.vit import TransformerBlock

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
    praise="Six names are all that lies between torchvision's block and yours: the arithmetic is the same.",
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


EXERCISES: list[Exercise] = [ADD_CLASS_TOKEN, POST_NORM_BLOCK, RUN_TORCHVISION_BLOCK]
