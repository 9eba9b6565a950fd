"""Exercises of lesson 05: a scale folded into a linear layer, and two pieces of a known library to repair."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


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


# ------------------------------------------------------------------------------------------------ class_layer


def class_layer(
    class_token: Tensor,
    patches: Tensor,
    norm1: Callable,
    attend: Callable,
    gamma1: Tensor,
    norm2: Callable,
    mlp: Callable,
    gamma2: Tensor,
) -> Tensor:
    """One layer of CaiT's second stage: class token (b, 1, d), patches (b, n, d) -> class token (b, 1, d)."""
    tokens = norm1(torch.cat([class_token, patches], dim=1))
    class_token = class_token + gamma1 * attend(tokens[:, :1], tokens)
    return class_token + gamma2 * mlp(norm2(class_token))


def _attending(
    context: Callable[[Tensor, Tensor, Callable], Tensor], query: Callable | None = None
) -> Callable:
    """A class layer whose class token attends to another context, or with another query."""

    def layer(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
        q = query(class_token, norm1) if query else norm1(class_token)
        class_token = class_token + gamma1 * attend(q, context(class_token, patches, norm1))
        return class_token + gamma2 * mlp(norm2(class_token))

    return layer


_unnormalised_context = _attending(
    lambda class_token, patches, norm1: torch.cat([norm1(class_token), patches], dim=1)
)
_only_patches = _attending(lambda class_token, patches, norm1: norm1(patches))
_only_raw_patches = _attending(lambda class_token, patches, norm1: patches)
_nothing_normalised_in_the_context = _attending(
    lambda class_token, patches, norm1: torch.cat([class_token, patches], dim=1)
)
_unnormalised_query = _attending(
    lambda class_token, patches, norm1: norm1(torch.cat([class_token, patches], dim=1)),
    query=lambda class_token, norm1: class_token,
)


def _gammas_swapped(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    return class_layer(class_token, patches, norm1, attend, gamma2, norm2, mlp, gamma1)


def _no_gammas(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    one = torch.ones_like(gamma1)
    return class_layer(class_token, patches, norm1, attend, one, norm2, mlp, one)


def _as_the_library_has_it(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    class_token = class_token + gamma2 * attend(
        norm1(class_token), torch.cat([norm1(class_token), patches], dim=1)
    )
    return class_token + gamma1 * mlp(class_token)


def _mlp_without_norm(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    return class_layer(class_token, patches, norm1, attend, gamma1, lambda tokens: tokens, mlp, gamma2)


def _mlp_on_the_old_token(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    tokens = norm1(torch.cat([class_token, patches], dim=1))
    heard = class_token + gamma1 * attend(tokens[:, :1], tokens)
    return heard + gamma2 * mlp(norm2(class_token))


def _no_residual(class_token, patches, norm1, attend, gamma1, norm2, mlp, gamma2):
    tokens = norm1(torch.cat([class_token, patches], dim=1))
    return gamma2 * mlp(norm2(gamma1 * attend(tokens[:, :1], tokens)))


def _class_layer_case(seed: int, b: int, n: int, d: int, hidden: int) -> tuple:
    """A class token, patches and the parts of a layer, as functions with weights that show every mistake."""
    shapes = (
        (b, 1, d),
        (b, n, d),
        (d, d),
        (d, d),
        (d, d),
        (d, hidden),
        (hidden, d),
        (d,),
        (d,),
        (d,),
        (d,),
        (d,),
        (d,),
    )
    class_token, patches, q, k, v, first, second, *norms, gamma1, gamma2 = _draw(seed, *shapes)

    def norm(weight: Tensor, bias: Tensor) -> Callable:
        return lambda tokens: F.layer_norm(tokens, (d,), 1 + 0.3 * weight, 0.3 * bias, 1e-6)

    def attend(queries: Tensor, context: Tensor) -> Tensor:
        return (queries @ q @ (context @ k).transpose(1, 2) / d).softmax(dim=-1) @ context @ v

    def mlp(tokens: Tensor) -> Tensor:
        return F.gelu(tokens @ first / d**0.5) @ second

    return class_token, 2 * patches, norm(*norms[:2]), attend, gamma1, norm(*norms[2:]), mlp, gamma2


CLASS_LAYER = Exercise(
    name="class_layer",
    solution=class_layer,
    cases=(_class_layer_case(0, 2, 5, 4, 6), _class_layer_case(1, 3, 3, 6, 8)),
    praise=(
        "One norm over class token and patches, the class token among the keys, each branch with its "
        "factor: as published."
    ),
    mistakes={
        "as it came": Mistake(
            _as_the_library_has_it,
            says=(
                "This is the function as it came. Three things are wrong in it: what the patches pass "
                "before they are attended to, what the mlp reads, and which gamma belongs to which branch."
            ),
        ),
        "unnormalised patches": Mistake(
            _unnormalised_context,
            says=(
                "The class token is normalised, the patches that it asks are not. Join first, then "
                "normalise all: norm1(torch.cat([class_token, patches], dim=1))."
            ),
        ),
        "unnormalised context": Mistake(
            _nothing_normalised_in_the_context,
            says=(
                "The query is normalised, its context is not: keys and values come from norm1 of class "
                "token and patches."
            ),
        ),
        "unnormalised query": Mistake(
            _unnormalised_query,
            says=(
                "The context is normalised, the query is not: it comes from norm1(class_token), "
                "row 0 of the normalised tokens."
            ),
        ),
        "class token not among the keys": Mistake(
            _only_patches,
            says=(
                "The class token attends to the patches only. It attends to itself too: it is the first of "
                "the n + 1 keys."
            ),
        ),
        "raw patches alone": Mistake(
            _only_raw_patches,
            says=(
                "The context is the bare patches. It is norm1 of the class token and the patches, n + 1 "
                "tokens."
            ),
        ),
        "gammas swapped": Mistake(
            _gammas_swapped,
            says=(
                "gamma1 and gamma2 changed places. They have the same shape, so only values show it: "
                "gamma1 is the attention's."
            ),
        ),
        "no gammas": Mistake(
            _no_gammas,
            says="LayerScale is missing: multiply each branch with its gamma before you add it.",
        ),
        "mlp without norm": Mistake(
            _mlp_without_norm,
            says="The attention is right; the mlp reads the class token as it is. It reads norm2 of it.",
        ),
        "mlp on the old token": Mistake(
            _mlp_on_the_old_token,
            says=(
                "The mlp read the class token as it came in, not as it is after the attention: update "
                "class_token first."
            ),
        ),
        "no residual": Mistake(
            _no_residual,
            says="Nothing is added: each branch gives a change, class_token + gamma * branch.",
        ),
    },
)


EXERCISES: list[Exercise] = [FOLD_LAYER_SCALE, LAYER_DROP, CLASS_LAYER]
