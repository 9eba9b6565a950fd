"""Exercises of lesson 10: the teacher's target, the loss of two views, and Sinkhorn's way to centre."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(10)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


# ---- warm-up: teacher_target -------------------------------------------------------------------------------


def _teacher_target(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    return ((logits - center) / temperature).softmax(dim=-1)


TEACHER_TARGET = Exercise(
    name="teacher_target",
    solution=_teacher_target,
    cases=(
        (0.3 * _random(4, 5), 0.2 * _random(5), 0.1),
        (0.3 * _random(5, 5), 0.2 * _random(5), 0.04),
        (0.2 * _random(2, 3, 6), 0.3 * _random(6), 0.5),
    ),
    praise="Centred, sharpened, and each row a distribution over the prototypes.",
    mistakes={
        "not centred": Mistake(
            lambda logits, center, temperature: (logits / temperature).softmax(dim=-1),
            "The center is not used: a prototype that the teacher always likes stays ahead. Take it away "
            "before the softmax.",
        ),
        "centre added": Mistake(
            lambda logits, center, temperature: ((logits + center) / temperature).softmax(dim=-1),
            "The center is added. It is taken away: what every picture gets says nothing about this one.",
        ),
        "centred after the temperature": Mistake(
            lambda logits, center, temperature: (logits / temperature - center).softmax(dim=-1),
            "The center is taken away after the division by the temperature, where it is far too small: "
            "(logits - center) / temperature.",
        ),
        "centred after the softmax": Mistake(
            lambda logits, center, temperature: (logits / temperature).softmax(dim=-1) - center,
            lambda answer: (
                f"Your first row sums to {answer.flatten(0, -2)[0].sum():.2f}: the center is a mean of "
                "logits, so it belongs before the softmax."
            ),
        ),
        "not sharpened": Mistake(
            lambda logits, center, temperature: (logits - center).softmax(dim=-1),
            lambda answer: (
                f"The largest target of your first row is {answer.flatten(0, -2)[0].max():.2f}, hardly more "
                "than the others: divide by the temperature before the softmax."
            ),
        ),
        "multiplied by the temperature": Mistake(
            lambda logits, center, temperature: ((logits - center) * temperature).softmax(dim=-1),
            "You multiply by the temperature. A low one has to make differences larger: divide.",
        ),
        "softmax over the batch": Mistake(
            lambda logits, center, temperature: ((logits - center) / temperature).softmax(dim=-2),
            lambda answer: (
                f"Your first row sums to {answer.flatten(0, -2)[0].sum():.2f}: the softmax ran over the "
                "pictures; the prototypes are the last axis."
            ),
        ),
        "logarithm": Mistake(
            lambda logits, center, temperature: ((logits - center) / temperature).log_softmax(dim=-1),
            "These are logarithms. The student is needed as a logarithm; the target is the plain "
            "probability.",
        ),
    },
)


# ---- core: two_view_loss -----------------------------------------------------------------------------------


def _two_view_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    mistake: str = "",
) -> Tensor:
    """The loss for two views, or one with a mistake in it."""
    if mistake == "roles swapped":
        student, teacher = teacher, student
    if mistake == "student centred too":
        student = student - center
    if mistake == "same view":
        teacher = teacher.flip(0)
    targets = ((teacher - center) / teacher_temp).softmax(dim=-1)
    log_probabilities = F.log_softmax(student / student_temp, dim=-1)
    if mistake == "no logarithm":
        log_probabilities = log_probabilities.exp()
    pairs = torch.stack(
        [
            -(targets[i] * log_probabilities[v]).sum(dim=-1)
            for i in range(2)
            for v in range(2)
            if v != i or mistake == "same view too"
        ]
    )
    if mistake == "summed over the batch":
        return pairs.sum(dim=1).mean()
    if mistake == "averaged over the prototypes":
        return pairs.mean() / student.shape[-1]
    if mistake == "pairs added":
        return pairs.mean(dim=1).sum()
    return -pairs.mean() if mistake == "sign" else pairs.mean()


def _two_view_mistake(name: str, says: str, **changed: Any) -> Mistake:
    return Mistake(lambda *case: _two_view_loss(*case, mistake=name, **changed), says)


TWO_VIEW_LOSS = Exercise(
    name="two_view_loss",
    solution=_two_view_loss,
    cases=(
        (0.3 * _random(2, 3, 5), 0.3 * _random(2, 3, 5), 0.1 * _random(5)),
        (0.3 * _random(2, 4, 8), 0.3 * _random(2, 4, 8), 0.1 * _random(8)),
        (40 * torch.eye(2).view(2, 1, 2), 40 * torch.eye(2).view(2, 1, 2), torch.zeros(2)),
    ),
    praise="The same as dino_loss, and 400 where log(softmax) would have been minus infinity.",
    mistakes={
        name: _two_view_mistake(name, says)
        for name, says in {
            "same view": (
                "You compare each view with itself. The student's view 0 has to say what the teacher says "
                "of view 1, and the other way round."
            ),
            "same view too": (
                "All four pairs are in it. Leave out the two in which teacher and student see the same "
                "picture: agreeing there is too easy."
            ),
            "roles swapped": (
                "Student and teacher have changed places: the teacher gives the target, the student the "
                "logarithm."
            ),
            "student centred too": "The center is the teacher's: leave the student's logits as they are.",
            "no logarithm": (
                "The student's probabilities need their logarithm: a cross-entropy is -Σ q log p."
            ),
            "summed over the batch": (
                "The pictures of the batch are added up; take their mean, or the loss grows with the batch."
            ),
            "averaged over the prototypes": (
                "You take the mean over the prototypes too. A cross-entropy is their sum; the mean is over "
                "pictures and pairs."
            ),
            "pairs added": "The two pairs are added up; take their mean.",
            "sign": "The sign is turned round: a cross-entropy is minus the sum.",
        }.items()
    }
    | {
        "one temperature": _two_view_mistake(
            "one temperature",
            "The target has the student's temperature. The teacher's is lower, 0.04: sharper than what the "
            "student says.",
            teacher_temp=0.1,
        ),
        "temperatures swapped": _two_view_mistake(
            "temperatures swapped",
            "The temperatures have changed places: 0.1 is the student's, 0.04 the teacher's.",
            student_temp=0.04,
            teacher_temp=0.1,
        ),
        "clipped": Mistake(
            lambda student, teacher, center: (
                -torch.stack(
                    [
                        ((teacher[i] - center) / 0.04).softmax(-1)
                        * ((student[1 - i] / 0.1).softmax(-1) + 1e-20).log()
                        for i in range(2)
                    ]
                )
                .sum(-1)
                .mean()
            ),
            "Right in easy cases, but log(softmax + a little) stops at 46 and its gradient with it: where "
            "the student is very sure and wrong the true loss is larger. Use F.log_softmax.",
        ),
    },
)


# ---- stretch: sinkhorn -------------------------------------------------------------------------------------


def _sinkhorn(logits: Tensor, temperature: float, rounds: int, *, mistake: str = "") -> Tensor:
    """Targets by Sinkhorn and Knopp, or with a mistake in them."""
    if mistake == "temperature multiplied":
        temperature = 1 / temperature
    b, k = logits.shape
    shares = (
        (logits / temperature).softmax(dim=-1) if mistake == "softmax first" else (logits / temperature).exp()
    )
    steps = {
        "columns": lambda shares: shares / shares.sum(dim=0, keepdim=True) * b / k,
        "rows": lambda shares: shares / shares.sum(dim=1, keepdim=True),
    }
    order: tuple[str, ...] = ("rows", "columns") if mistake == "rows first" else ("columns", "rows")
    if mistake in ("rows only", "columns only"):
        order = (mistake.split()[0],)
    for _ in range(1 if mistake == "one round" else rounds):
        for step in order:
            shares = steps[step](shares)
    return shares


SINKHORN = Exercise(
    name="sinkhorn",
    solution=_sinkhorn,
    cases=((0.5 * _random(6, 3), 0.2, 3), (0.5 * _random(4, 8), 0.3, 2), (0.5 * _random(5, 5), 0.5, 1)),
    praise=(
        "Each picture has a distribution, and no prototype can take them all: what a centre does slowly, "
        "done within one batch."
    ),
    mistakes={
        name: Mistake(lambda *case, name=name: _sinkhorn(*case, mistake=name), says)
        for name, says in {
            "rows only": (
                "Only the pictures are normalised: this is a plain softmax, and one prototype may still "
                "take every picture."
            ),
            "columns only": (
                "Only the prototypes are normalised. End each round with the pictures, so that each row is "
                "a distribution."
            ),
            "rows first": (
                "Rows first, then columns: then the rows do not sum to one at the end. The pictures have "
                "the last word, since their rows are the targets."
            ),
            "one round": "Only one round: repeat both divisions `rounds` times.",
            "softmax first": (
                "You start from a softmax, which divides the rows once too often: start from "
                "exp(logits / temperature)."
            ),
            "temperature multiplied": (
                "Divide by the temperature before the exponential: a low one makes sharp targets."
            ),
        }.items()
    },
)

EXERCISES = [TEACHER_TARGET, TWO_VIEW_LOSS, SINKHORN]
