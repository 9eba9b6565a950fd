"""Exercises of lesson 08: softened targets, the soft loss, and a forward pass with two tokens, two heads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(8)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- warm-up: soft_targets ---------------------------------------------------------------------------------


def _soft_targets(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(dim=-1)


def _row_sum(answer: Tensor) -> str:
    return f"your first row sums to {answer[0].sum():.2f}"


SOFT_TARGETS = Exercise(
    name="soft_targets",
    solution=_soft_targets,
    cases=((2 * _random(4, 4), 3.0), (_random(3, 5), 0.5), (_random(2, 6), 10.0)),
    praise="Divided before the softmax, the logits become odds of which the T-th root is taken.",
    mistakes={
        "multiplied": Mistake(
            lambda logits, temperature: (logits * temperature).softmax(dim=-1),
            says=lambda answer: (
                f"The largest share of the first row is {answer[0].max():.3f}: it became harder, not "
                "softer. Divide by the temperature."
            ),
        ),
        "divided after the softmax": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1) / temperature,
            says=lambda answer: f"{_row_sum(answer).capitalize()}: divide the logits, before the softmax.",
        ),
        "over the pictures": Mistake(
            lambda logits, temperature: (logits / temperature).softmax(dim=0),
            says=lambda answer: (
                f"{_row_sum(answer).capitalize()}: the softmax ran over the pictures. Use dim=-1, the "
                "classes."
            ),
        ),
        "temperature forgotten": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1),
            says="These are the shares at temperature 1: divide the logits by the temperature first.",
        ),
        "not normalised": Mistake(
            lambda logits, temperature: (logits / temperature).exp(),
            says=lambda answer: f"{_row_sum(answer).capitalize()}: these are odds. Divide them by their sum.",
        ),
        "root without normalising": Mistake(
            lambda logits, temperature: logits.softmax(dim=-1) ** (1 / temperature),
            says=lambda answer: (
                f"Nearly: the roots of the shares are right as odds, but {_row_sum(answer)}. Divide by the "
                "sum, or divide the logits and take one softmax."
            ),
        ),
        "hard answers": Mistake(
            lambda logits, temperature: F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float(),
            says=(
                "These are the teacher's answers, zero or one: the soft targets say how likely it finds "
                "the other classes, too."
            ),
        ),
    },
)


# ---- core: soft_loss ---------------------------------------------------------------------------------------


def _soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * _kl(teacher / temperature, student / temperature).sum() / len(student)


def _kl(wanted: Tensor, given: Tensor) -> Tensor:
    """The terms (b, classes) of KL(softmax(wanted) ‖ softmax(given))."""
    log_p, log_q = wanted.log_softmax(dim=-1), given.log_softmax(dim=-1)
    return log_p.exp() * (log_p - log_q)


def _says_ratio(words: str) -> Callable[[Tensor], str]:
    return lambda answer: f"You get {float(answer):.3f}. {words}"


SOFT_LOSS = Exercise(
    name="soft_loss",
    solution=_soft_loss,
    cases=(
        (2 * _random(4, 5), 2 * _random(4, 5), 3.0),
        (_random(3, 10), 3 * _random(3, 10), 2.0),
        (3 * _random(2, 4), _random(2, 4), 0.5),
    ),
    praise="Zero where they agree, the same for a batch shown twice, and as loud at T = 10 as at T = 1.",
    mistakes={
        "no T²": Mistake(
            lambda student, teacher, temperature: _soft_loss(student, teacher, temperature) / temperature**2,
            _says_ratio(
                "The divergence is right, but its gradient shrinks with the square of the temperature: "
                "multiply by temperature**2."
            ),
        ),
        "T instead of T²": Mistake(
            lambda student, teacher, temperature: _soft_loss(student, teacher, temperature) / temperature,
            _says_ratio(
                "You multiplied by T. One factor 1/T stands in front of the gradient, the other hides in q "
                "- p: it takes T²."
            ),
        ),
        "turned round": Mistake(
            lambda student, teacher, temperature: _soft_loss(teacher, student, temperature),
            "This is KL(student ‖ teacher). The teacher's shares are the weights: sum p · (log p - log q) "
            "with p from the teacher. (F.kl_div wants the student first, which is easy to turn round.)",
        ),
        "only the teacher softened": Mistake(
            lambda student, teacher, temperature: (
                temperature**2 * _kl(teacher / temperature, student).sum() / len(student)
            ),
            "The teacher was softened and the student was not: they would agree only if the student "
            "learned to be T times as unsure. Divide both by the temperature.",
        ),
        "only the student softened": Mistake(
            lambda student, teacher, temperature: (
                temperature**2 * _kl(teacher, student / temperature).sum() / len(student)
            ),
            "The student was softened and the teacher was not. Divide both by the temperature.",
        ),
        "mean over classes too": Mistake(
            lambda student, teacher, temperature: (
                _soft_loss(student, teacher, temperature) / student.shape[-1]
            ),
            _says_ratio(
                "You took the mean over all b · classes numbers. A divergence is a sum over classes; only "
                'the pictures are averaged (reduction="batchmean", not "mean").'
            ),
        ),
        "sum over pictures": Mistake(
            lambda student, teacher, temperature: _soft_loss(student, teacher, temperature) * len(student),
            _says_ratio(
                "You summed over the pictures, so a larger batch is a larger loss. Divide by their number."
            ),
        ),
        "cross-entropy": Mistake(
            lambda student, teacher, temperature: (
                -(temperature**2)
                * ((teacher / temperature).softmax(-1) * (student / temperature).log_softmax(-1)).sum()
                / len(student)
            ),
            _says_ratio(
                "This is the cross-entropy with the soft targets. Its gradient is right, but it is not "
                "zero where both agree: subtract the teacher's own entropy, p · log p."
            ),
        ),
        "sign": Mistake(
            lambda student, teacher, temperature: -_soft_loss(student, teacher, temperature),
            _says_ratio("A divergence is never negative: it is log p - log q, not the other way."),
        ),
    },
)


# ---- stretch: two_token_logits -----------------------------------------------------------------------------


def _two_token_logits(
    patches: Tensor,
    class_token: Tensor,
    dist_token: Tensor,
    positions: Tensor,
    blocks: Callable,
    head: Callable,
    head_dist: Callable,
    *,
    mistake: str = "",
) -> Tensor:
    """The forward pass of a DistilledViT in evaluation from its parts, or one with a mistake in it."""
    b = len(patches)
    first, second = class_token.expand(b, -1, -1), dist_token.expand(b, -1, -1)
    if mistake == "tokens swapped":
        first, second = second, first
    if mistake == "distillation token last":
        tokens = torch.cat([first, patches, second], dim=1) + positions
        tokens = blocks(tokens)
        return (head(tokens[:, 0]) + head_dist(tokens[:, -1])) / 2
    if mistake == "no position for the new token":
        tokens = torch.cat([first, patches], dim=1) + torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        tokens = torch.cat([tokens[:, :1], second, tokens[:, 1:]], dim=1)
    elif mistake == "no positions":
        tokens = torch.cat([first, second, patches], dim=1)
    else:
        tokens = torch.cat([first, second, patches], dim=1) + positions
    tokens = blocks(tokens)
    one, two = tokens[:, 0], tokens[:, 1]
    if mistake == "both heads on the class token":
        two = one
    if mistake == "heads swapped":
        head, head_dist = head_dist, head
    if mistake == "class head only":
        return head(one)
    if mistake == "sum":
        return head(one) + head_dist(two)
    if mistake == "mean of the shares":
        return (head(one).softmax(dim=-1) + head_dist(two).softmax(dim=-1)) / 2
    return (head(one) + head_dist(two)) / 2


def _two_token_case(b: int, n: int, d: int, classes: int) -> tuple:
    """Tokens, positions, and three parts as functions with weights large enough to show every mistake."""
    mixing, value, first, second = _random(d, d), _random(d, d), _random(d, classes), _random(d, classes)

    def blocks(tokens: Tensor) -> Tensor:
        weights = (tokens @ mixing @ tokens.mT / d).softmax(dim=-1)
        return F.layer_norm(tokens + weights @ tokens @ value, (d,))

    return (
        _random(b, n, d),
        _random(1, 1, d),
        _random(1, 1, d),
        _random(1, n + 2, d),
        blocks,
        lambda token: token @ first,
        lambda token: token @ second,
    )


TWO_TOKEN_LOGITS = Exercise(
    name="two_token_logits",
    solution=_two_token_logits,
    cases=(_two_token_case(2, 5, 4, 3), _two_token_case(3, 4, 6, 5)),
    praise=(
        "Two tokens with positions of their own, each read by its own head, and the mean of what they say: "
        "DeiT at test time."
    ),
    mistakes={
        name: Mistake(lambda *case, _name=name: _two_token_logits(*case, mistake=_name), says)
        for name, says in {
            "distillation token last": (
                "The distillation token stands behind the patches, so every patch meets the position of "
                "its neighbour. It comes second: class token, distillation token, patches."
            ),
            "tokens swapped": (
                "The distillation token stands first. The order is class token, distillation token, patches."
            ),
            "no position for the new token": (
                "The distillation token has no position. It gets row 1 of `positions`: join all tokens "
                "first, then add."
            ),
            "no positions": (
                "The order is right, but no positions were added: one row for each token, both learned "
                "ones included."
            ),
            "both heads on the class token": (
                "Both heads read token 0. `head_dist` reads token 1, which is what learns from the teacher."
            ),
            "heads swapped": "The heads changed places: `head` reads token 0, `head_dist` token 1.",
            "class head only": (
                "This is the class head alone: half of what was learned is thrown away. Take the mean of "
                "both heads."
            ),
            "sum": (
                "You added the two logits. The answer would be the same class, but twice as sure of it: "
                "divide by 2."
            ),
            "mean of the shares": (
                "You averaged after the softmax. DeiT averages the logits, so that the result is logits "
                "again."
            ),
        }.items()
    },
)


EXERCISES: list[Exercise] = [SOFT_TARGETS, SOFT_LOSS, TWO_TOKEN_LOGITS]
