"""Exercises of lesson 10: head, targets and loss of DINO, DINOv2's two changes, and uses elsewhere."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.dino import DINOHead, KoLeo, dino_loss, sinkhorn_knopp, teacher_target

from .exercise import Exercise, Mistake, filled, forward

_generator = torch.Generator().manual_seed(10)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def _row_sum(answer: Tensor) -> str:
    return f"your first row sums to {answer.flatten(0, -2)[0].sum():.2f}"


# ---- step 1: DINOHead --------------------------------------------------------------------------------------


def _heads(
    bottleneck: Callable[[Tensor], Tensor] = lambda rows: F.normalize(rows, dim=-1),
    prototypes: Callable[[Tensor], Tensor] = lambda rows: F.normalize(rows, dim=-1),
    before: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Callable[..., DINOHead]:
    """The class of a head that does something else to its bottleneck, its prototypes or its features."""

    class Changed(DINOHead):
        def forward(self, features: Tensor) -> Tensor:
            return bottleneck(self.mlp(before(features))) @ prototypes(self.prototypes.weight).T

    return Changed


def _plain_logits(head: DINOHead, features: Tensor) -> Tensor:
    return head.prototypes(head.mlp(features))


def _with_logits(
    change: Callable[[Tensor], Tensor], logits: Callable[[DINOHead, Tensor], Tensor] = _plain_logits
) -> Callable[..., DINOHead]:
    """The class of a head that does something to its logits."""

    class Changed(DINOHead):
        def forward(self, features: Tensor) -> Tensor:
            return change(logits(self, features))

    return Changed


_HEAD = {"in_dim": 6, "out_dim": 5, "hidden_dim": 8, "bottleneck_dim": 4}

DINO_HEAD = Exercise(
    name="DINOHead",
    solution=DINOHead,
    cases=((_HEAD, (3 * _random(4, 6),)), (_HEAD | {"bottleneck_dim": 3, "out_dim": 7}, (_random(2, 3, 6),))),
    praise="Every logit is a cosine: no prototype can win by being long.",
    mistakes={
        "nothing normalised": Mistake(
            _heads(lambda rows: rows, lambda rows: rows),
            lambda answer: (
                f"Your largest logit is {answer.abs().max():.2f}; a cosine is at most 1. Scale the "
                "bottleneck and each prototype to length 1."
            ),
        ),
        "bottleneck not normalised": Mistake(
            _heads(bottleneck=lambda rows: rows),
            "The prototypes have length 1, the bottleneck has not: F.normalize(…, dim=-1) for both.",
        ),
        "prototypes not normalised": Mistake(
            _heads(prototypes=lambda rows: rows),
            "The bottleneck has length 1, the prototypes have not: a long prototype would win for every "
            "picture. Normalise the rows of self.prototypes.weight.",
        ),
        "normalised over the batch": Mistake(
            _heads(bottleneck=lambda rows: F.normalize(rows, dim=0)),
            "The bottleneck is normalised over the pictures. Each picture's own vector is to have length 1: "
            "dim=-1.",
        ),
        "columns of the prototypes": Mistake(
            _heads(prototypes=lambda rows: F.normalize(rows, dim=0)),
            "The columns of self.prototypes.weight (K, bottleneck_dim) have length 1; a prototype is a row: "
            "dim=-1.",
        ),
        "a GELU too many": Mistake(
            _heads(bottleneck=lambda rows: F.normalize(F.gelu(rows), dim=-1)),
            "There is a GELU behind the bottleneck. It cuts off the negative coordinates, so directions fill "
            "only a corner of the sphere.",
        ),
        "normalised over axis 1": Mistake(
            _heads(bottleneck=lambda rows: F.normalize(rows, dim=1)),
            "Right for features with two axes. With three, axis 1, F.normalize's default, is not the last: "
            "dim=-1.",
        ),
        "logits normalised": Mistake(
            _with_logits(lambda logits: F.normalize(logits, dim=-1)),
            "The logits have length 1. Not they but the two vectors of each cosine are to be normalised: the "
            "bottleneck and each prototype.",
        ),
        "cosines normalised": Mistake(
            _with_logits(lambda logits: F.normalize(logits, dim=-1), DINOHead.forward),
            "These are the right cosines, scaled once more to length 1. Return them as they are.",
        ),
        "softmax": Mistake(
            _with_logits(lambda logits: logits.softmax(dim=-1), DINOHead.forward),
            "These are probabilities. The head returns cosines; softmax and temperature belong to the loss.",
        ),
        "features normalised": Mistake(
            _heads(lambda rows: rows, before=lambda rows: F.normalize(rows, dim=-1)),
            "You normalise the features. It is the bottleneck, what self.mlp returns, that is to have "
            "length 1.",
        ),
        "features normalised too": Mistake(
            _heads(before=lambda rows: F.normalize(rows, dim=-1)),
            "Bottleneck and prototypes are right, but the features are normalised as well: give them to "
            "self.mlp as they are.",
        ),
        "one length for the batch": Mistake(
            _heads(bottleneck=lambda rows: rows / rows.norm()),
            "The bottleneck is divided by one number, the length of the whole batch. Each picture has a "
            "length of its own: F.normalize(…, dim=-1).",
        ),
        "only the bottleneck": Mistake(
            _heads(prototypes=lambda rows: torch.eye(rows.shape[1])),
            "This is the bottleneck itself, of length 1. Compare it with each prototype: one cosine each.",
        ),
    },
    calls=forward,
    errors={
        "cannot be multiplied": (
            "self.mlp comes first, and self.prototypes.weight is (K, bottleneck_dim): F.linear transposes it "
            "by itself, @ does not."
        ),
        "must match the size": "A length of shape (b,) does not divide (b, d): norm(dim=-1, keepdim=True).",
    },
)


# ---- step 2: teacher_target --------------------------------------------------------------------------------

_FAR = torch.tensor([0.0, 1e30, 0.0, 0.0])  # a prototype that no picture may have, whatever its logits

TEACHER_TARGET = Exercise(
    name="teacher_target",
    solution=teacher_target,
    cases=(
        (0.3 * _random(4, 5), 0.2 * _random(5), 0.1),
        (0.3 * _random(5, 5), 0.2 * _random(5), 0.04),
        (0.2 * _random(2, 3, 6), 0.3 * _random(6), 0.5),
        (0.3 * _random(3, 4), _FAR, 0.1),
    ),
    praise="Centred, sharpened, and each row a distribution over the prototypes.",
    mistakes={
        "not centred": Mistake(
            lambda logits, center, temperature: (logits / temperature).softmax(dim=-1),
            "The center is not used: a prototype that the teacher always likes stays ahead. Take it away "
            "before the softmax.",
        ),
        "mean of the centre": Mistake(
            lambda logits, center, temperature: ((logits - center.mean()) / temperature).softmax(dim=-1),
            "You take one number, the mean of the center, from all logits. A softmax does not notice that: "
            "each prototype has a center of its own, so subtract the vector.",
        ),
        "mean of the batch": Mistake(
            lambda logits, center, temperature: (
                (logits - logits.flatten(0, -2).mean(dim=0)) / temperature
            ).softmax(dim=-1),
            "You take away the mean of this batch. The center is a running mean of earlier ones, and is "
            "given to you.",
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
                f"{_row_sum(answer).capitalize()}: the center is a mean of logits, so it belongs before the "
                "softmax."
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
                f"{_row_sum(answer).capitalize()}: the softmax ran over the pictures; the prototypes are the "
                "last axis."
            ),
            cases=2,
        ),
        "softmax over axis 1": Mistake(
            lambda logits, center, temperature: ((logits - center) / temperature).softmax(dim=1),
            "Right for logits with two axes. With three, axis 1 is the pictures: the prototypes are the last "
            "axis, dim=-1.",
        ),
        "only the centre divided": Mistake(
            lambda logits, center, temperature: (logits - center / temperature).softmax(dim=-1),
            "Only the center is divided by the temperature: brackets, (logits - center) / temperature.",
        ),
        "centre minus logits": Mistake(
            lambda logits, center, temperature: ((center - logits) / temperature).softmax(dim=-1),
            "You take the logits from the center, so the prototype that fits worst gets most. The center is "
            "taken from the logits.",
        ),
        "no softmax": Mistake(
            lambda logits, center, temperature: (logits - center) / temperature,
            lambda answer: (
                f"{_row_sum(answer).capitalize()}: centred and sharpened, but not yet a distribution. The "
                "softmax is missing."
            ),
        ),
        "sharpened after the softmax": Mistake(
            lambda logits, center, temperature: (logits - center).softmax(dim=-1) / temperature,
            lambda answer: (
                f"{_row_sum(answer).capitalize()}: you divide probabilities by the temperature. Divide the "
                "logits, before the softmax."
            ),
        ),
        "one softmax for all": Mistake(
            lambda logits, center, temperature: (
                ((logits - center) / temperature).flatten().softmax(dim=0).view_as(logits)
            ),
            lambda answer: (
                f"{_row_sum(answer).capitalize()}: all rows together sum to 1. Each picture is to have a "
                "distribution of its own."
            ),
        ),
        "the winner": Mistake(
            lambda logits, center, temperature: F.one_hot(
                (logits - center).argmax(dim=-1), logits.shape[-1]
            ).float(),
            "Each row is 1 for one prototype and 0 for the rest: a temperature of zero. Use a softmax.",
        ),
        "logarithm": Mistake(
            lambda logits, center, temperature: ((logits - center) / temperature).log_softmax(dim=-1),
            "These are logarithms. The student is needed as a logarithm; the target is the plain "
            "probability.",
        ),
    },
)


# ---- step 3: two_view_loss ---------------------------------------------------------------------------------


def two_view_loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    return dino_loss(student, teacher, center)[0]


def _wrong_view_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    mistake: str,
) -> Tensor:
    """The loss for two views with a mistake in it."""
    if mistake == "roles swapped":
        student, teacher = teacher, student
    if mistake == "student centred too":
        student = student - center
    if mistake == "same view":
        teacher = teacher.flip(0)
    if mistake == "other pictures":
        teacher = teacher.flip(0, 1)  # so that the pairs are of one view, and of other pictures
    if mistake == "not centred":
        center = torch.zeros_like(center)
    targets = ((teacher - center) / teacher_temp).softmax(dim=-1)
    log_p = F.log_softmax(student / student_temp, dim=-1)
    if mistake == "softmax over the pictures":
        targets = ((teacher - center) / teacher_temp).softmax(dim=1)
        log_p = F.log_softmax(student / student_temp, dim=1)
    if mistake == "softmax over the views":
        targets = ((teacher - center) / teacher_temp).softmax(dim=0)
        log_p = F.log_softmax(student / student_temp, dim=0)
    if mistake == "cross_entropy of three axes":
        return F.cross_entropy(student / student_temp, targets.flip(0))
    if mistake == "clamped":
        log_p = (student / student_temp).softmax(dim=-1).clamp(min=1e-8).log()
    if mistake == "log(softmax)":
        log_p = (student / student_temp).softmax(dim=-1).log()
    if mistake == "clipped":
        log_p = ((student / student_temp).softmax(dim=-1) + 1e-20).log()
    if mistake == "no logarithm":
        log_p = log_p.exp()
    pairs = torch.stack(
        [
            -(targets[i] * log_p[v]).sum(dim=-1)
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
    if mistake == "everything added":
        return pairs.sum()
    if mistake == "one pair":
        return pairs[0].mean()
    if mistake == "the other pair":
        return pairs[1].mean()
    if mistake == "KL":
        return pairs.mean() + (targets * targets.clamp(min=1e-30).log()).sum(dim=-1).mean()
    return -pairs.mean() if mistake == "sign" else pairs.mean()


def _two_view_mistake(name: str, says: str, **changed: Any) -> Mistake:
    return Mistake(lambda *case: _wrong_view_loss(*case, mistake=name, **changed), says)


TWO_VIEW_LOSS = Exercise(
    name="two_view_loss",
    solution=two_view_loss,
    cases=(
        (0.3 * _random(2, 3, 5), 0.3 * _random(2, 3, 5), 0.1 * _random(5)),
        (0.3 * _random(2, 4, 8), 0.3 * _random(2, 4, 8), 0.1 * _random(8)),
        (40 * torch.eye(2).view(2, 1, 2), 40 * torch.eye(2).view(2, 1, 2), torch.zeros(2)),
    ),
    praise="The same as dino_loss, and 400 where log(softmax) would have been infinite.",
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
            "not centred": "The center is not used: take it from the teacher's logits before the softmax.",
            "log(softmax)": (
                "Right in easy cases, but infinite where the student is very sure and wrong: its softmax is "
                "rounded to zero there, and the logarithm of that is minus infinity. Use F.log_softmax, "
                "which takes both at once."
            ),
            "clipped": (
                "Right in easy cases, but log(softmax + a little) stops at 46 and its gradient with it: "
                "where the student is very sure and wrong the true loss is larger. Use F.log_softmax."
            ),
            "KL": (
                "This is KL(teacher ‖ student): the cross-entropy without the targets' own entropy. Its "
                "gradient is the same, but the loss of the paper is the whole cross-entropy, -Σ q log p."
            ),
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
            "everything added": (
                "Pictures and pairs are added up; the sum runs over the prototypes only, then take the mean."
            ),
            "one pair": (
                "Only one pair counts, the teacher's view 0 with the student's view 1. The other way round "
                "is the second."
            ),
            "the other pair": (
                "Only one pair counts, the teacher's view 1 with the student's view 0. The other way round "
                "is the second."
            ),
            "other pictures": (
                "You compare each picture with another one of the same view: flip(0) turns the views, "
                "flip(1) the pictures."
            ),
            "softmax over the pictures": (
                "Both softmaxes run over axis 1, the pictures of the batch. The prototypes are the last "
                "axis: dim=-1."
            ),
            "softmax over the views": (
                "Both softmaxes run over axis 0, the two views. The prototypes are the last axis: dim=-1."
            ),
            "cross_entropy of three axes": (
                "F.cross_entropy takes axis 1 for the classes, which here is the pictures. Call it for each "
                "pair, with (b, K), or write -(q * log_softmax).sum(dim=-1).mean()."
            ),
            "clamped": (
                "Right in easy cases, but a clamped softmax stops at the logarithm of the clamp, and its "
                "gradient is zero there: where the student is very sure and wrong the true loss is larger. "
                "Use F.log_softmax."
            ),
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
        "no temperature of the student": _two_view_mistake(
            "no temperature of the student",
            "The student's logits are not divided by its temperature, 0.1.",
            student_temp=1.0,
        ),
    },
)


# ---- step 4: sinkhorn_knopp --------------------------------------------------------------------------------


def _wrong_sinkhorn(logits: Tensor, temperature: float, iterations: int, *, mistake: str) -> Tensor:
    """Targets by Sinkhorn and Knopp with a mistake in them."""
    if mistake == "temperature multiplied":
        temperature = 1 / temperature
    scaled = logits if mistake == "no temperature" else logits / temperature
    if mistake == "softmax in turn":
        for _ in range(iterations):
            scaled = scaled.softmax(dim=0).softmax(dim=1)
        return scaled
    if mistake == "softmax first":
        scaled = scaled.log_softmax(dim=-1)
    elif mistake == "maximum of each sample":
        scaled = scaled - scaled.amax(dim=1, keepdim=True)
    elif mistake != "no maximum":
        scaled = scaled - scaled.max()
    q = scaled.exp()
    order: tuple[str, ...] = (
        ("samples", "prototypes") if mistake == "samples first" else ("prototypes", "samples")
    )
    if mistake in ("samples only", "prototypes only"):
        order = (mistake.split()[0],)
    rounds = {"one iteration": 1, "always three": 3, "converged": 100}.get(mistake, iterations)
    for _ in range(rounds):
        for step in order:
            if step == "prototypes":
                q = q / q.sum(dim=0, keepdim=True)
            else:
                q = q / q.sum(dim=1, keepdim=True)
    return q / len(q) if mistake == "samples to 1 / n" else q


SINKHORN_KNOPP = Exercise(
    name="sinkhorn_knopp",
    solution=sinkhorn_knopp,
    cases=(
        (0.5 * _random(6, 3), 0.2, 3),
        (0.5 * _random(4, 8), 0.3, 2),
        (10 + _random(5, 4), 0.1, 4),  # exp(100) has no float32
    ),
    praise=(
        "Each picture has a distribution, and no prototype takes them all: what a centre does slowly, done "
        "within one batch."
    ),
    tolerance=1e-4,
    mistakes={
        name: Mistake(lambda *case, name=name: _wrong_sinkhorn(*case, mistake=name), says)
        for name, says in {
            "samples only": (
                "Only the pictures are normalised: this is a plain softmax, and one prototype may still "
                "take every picture."
            ),
            "prototypes only": (
                "Only the prototypes are normalised. End each round with the pictures, so that each row is "
                "a distribution."
            ),
            "samples first": (
                "Rows first, then columns: then the rows do not sum to one at the end. The pictures have "
                "the last word, since their rows are the targets."
            ),
            "one iteration": "Only one round: repeat both divisions `iterations` times.",
            "converged": (
                "This goes on until nothing changes. So many rounds as `iterations` says, three by default: "
                "the targets of DINOv2 are those of three."
            ),
            "softmax first": (
                "You start from a softmax, which divides the rows once too often: start from "
                "exp(logits / temperature)."
            ),
            "maximum of each sample": (
                "You subtract each row's own maximum, which divides the rows once too often. Subtract one "
                "number, the maximum of all."
            ),
            "no maximum": (
                "Right while the logits are small; in the third case the exponential overflows. Subtract the "
                "largest of all logits first: a common factor cancels in the first division."
            ),
            "temperature multiplied": (
                "Divide by the temperature before the exponential: a low one makes sharp targets."
            ),
            "always three": (
                "Always three rounds, whatever `iterations` says: the second case asks for two, the third "
                "for four."
            ),
            "no temperature": ("The temperature is not used: start from exp(logits / temperature)."),
            "softmax in turn": (
                "You take a softmax of a softmax, so the exponential is taken again in each round. Take it "
                "once, at the start; after that only divide by sums."
            ),
            "samples to 1 / n": (
                "Your rows sum to 1 / n. DINOv2's code ends with a multiplication by the number of samples, "
                "so that each row is a distribution."
            ),
        }.items()
    },
)


# ---- step 5: KoLeo -----------------------------------------------------------------------------------------


def _koleos(value: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """The class of a module that computes something else from the features."""

    class Changed(KoLeo):
        def forward(self, features: Tensor) -> Tensor:
            return value(features)

    return Changed


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1)


def _nearest(rows: Tensor) -> Tensor:
    """The distance of each row to its nearest neighbour."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(torch.eye(len(rows), dtype=torch.bool), math.inf).amin(dim=1)


def _by_product(rows: Tensor) -> Tensor:
    """The place of each row's neighbour, the row with the largest product."""
    return (rows @ rows.T).fill_diagonal_(-math.inf).argmax(dim=1)


def _by_distance(rows: Tensor, nearest: Tensor) -> Tensor:
    """KoLeo of rows with given neighbours."""
    return -(rows - rows[nearest]).norm(dim=1).log().mean()


KOLEO = Exercise(
    name="KoLeo",
    solution=KoLeo,
    cases=(
        ({}, (2 * _random(5, 3),)),
        ({}, (_random(8, 4),)),
        ({}, (torch.tensor([[2.0, 0.0], [-0.5, 0.8], [-0.6, -0.9]]),)),  # no two have a cosine above 0
    ),
    praise="Each picture is pushed from its nearest neighbour only, and most where the two are close.",
    tolerance=1e-4,
    mistakes={
        "not normalised": Mistake(
            _koleos(lambda features: -_nearest(features).log().mean()),
            "The features keep their lengths: the loss could fall for ever by making them longer. Scale "
            "each to length 1 first.",
        ),
        "nothing normalised": Mistake(
            _koleos(lambda features: _by_distance(features, _by_product(features))),
            "The features keep their lengths: a product is a cosine only for directions, and the loss could "
            "fall for ever by making features longer. Scale each to length 1 first.",
        ),
        "neighbours by direction, distance without": Mistake(
            _koleos(lambda features: _by_distance(features, _by_product(_directions(features)))),
            "The neighbour is right, but the distance is of the features as they came: take it between the "
            "directions z.",
        ),
        "diagonal of zeros": Mistake(
            _koleos(
                lambda features: _by_distance(
                    _directions(features),
                    (_directions(features) @ _directions(features).T).fill_diagonal_(0).argmax(dim=1),
                )
            ),
            "Right where each picture has a neighbour with a cosine above 0. In the third case all cosines "
            "are negative, and the 0 on the diagonal wins: fill it with -math.inf.",
        ),
        "one minus the cosine": Mistake(
            _koleos(lambda features: -(_nearest(_directions(features)).square() / 2).log().mean()),
            "This is minus the logarithm of 1 - cosine, which is half of the squared distance. Take the "
            "distance itself.",
        ),
        "one length for all": Mistake(
            _koleos(
                lambda features: (
                    -(_directions(features) - _directions(features)[_by_product(_directions(features))])
                    .norm()
                    .log()
                )
            ),
            "This is the length of all differences together: norm(dim=1) gives each picture its own.",
        ),
        "its own neighbour": Mistake(
            _koleos(lambda features: torch.tensor(-math.log(1e-8))),
            "Each picture is its own nearest neighbour, at distance 0. Exclude the diagonal.",
        ),
        "its own neighbour, by the formula": Mistake(
            _koleos(
                lambda features: (
                    -(F.pairwise_distance(_directions(features), _directions(features), eps=1e-8) + 1e-8)
                    .log()
                    .mean()
                )
            ),
            "Each picture is its own nearest neighbour, at distance 0. Exclude the diagonal.",
        ),
        "infinite": Mistake(
            _koleos(lambda features: torch.tensor(math.inf)),
            "The loss is infinite: each picture is its own nearest neighbour, at distance 0. Exclude the "
            "diagonal.",
        ),
        "farthest neighbour": Mistake(
            _koleos(
                lambda features: (
                    -torch.cdist(_directions(features), _directions(features)).amax(dim=1).log().mean()
                )
            ),
            "This is the distance to the farthest picture. Push each from its nearest.",
        ),
        "mean of all distances": Mistake(
            _koleos(lambda features: -F.pdist(_directions(features)).log().mean()),
            "All pairs count. In KoLeo each picture has one partner, its nearest neighbour.",
        ),
        "squared": Mistake(
            _koleos(lambda features: -_nearest(_directions(features)).square().log().mean()),
            "You have the squared distance: the loss is twice what it should be.",
        ),
        "cosine": Mistake(
            _koleos(
                lambda features: (
                    (_directions(features) @ _directions(features).T).fill_diagonal_(-2).amax(dim=1).mean()
                )
            ),
            "This is the mean cosine with the nearest neighbour. KoLeo is minus the logarithm of the "
            "distance.",
        ),
        "sum": Mistake(
            _koleos(lambda features: -_nearest(_directions(features)).log().sum()),
            "The pictures are added up; take their mean.",
        ),
        "no logarithm": Mistake(
            _koleos(lambda features: -_nearest(_directions(features)).mean()),
            "The logarithm is missing. It makes close pairs count most.",
        ),
        "sign": Mistake(
            _koleos(lambda features: _nearest(_directions(features)).log().mean()),
            "The sign is turned round: this loss would pull each picture to its neighbour.",
        ),
        "logarithm of the mean": Mistake(
            _koleos(lambda features: -_nearest(_directions(features)).mean().log()),
            "You take the logarithm of the mean distance; it is the mean of the logarithms.",
        ),
        "normalised over the batch": Mistake(
            _koleos(lambda features: -_nearest(F.normalize(features, dim=0)).log().mean()),
            "The columns have length 1: normalise each picture's features, dim=1.",
        ),
        "normalised over the batch, by products": Mistake(
            _koleos(
                lambda features: _by_distance(
                    F.normalize(features, dim=0), _by_product(F.normalize(features, dim=0))
                )
            ),
            "The columns have length 1: normalise each picture's features, dim=1.",
        ),
    },
    calls=forward,
)


# ---- practice ----------------------------------------------------------------------------------------------


def best_koleo(points: int) -> float:
    return -math.log(2 * math.sin(math.pi / points))


BEST_KOLEO = Exercise(
    name="best_koleo",
    solution=best_koleo,
    cases=((4,), (3,), (100,)),
    praise="Six points end as a hexagon with sides 1, so their loss is zero; more than six make it positive.",
    mistakes={
        "the arc": Mistake(
            lambda points: -math.log(2 * math.pi / points),
            "This is the length of the arc between neighbours. KoLeo measures straight through: the chord.",
        ),
        "half the chord": Mistake(
            lambda points: -math.log(math.sin(math.pi / points)),
            "This is half of the chord: two points at the angle α are 2 sin(α / 2) apart.",
        ),
        "twice the angle": Mistake(
            lambda points: -math.log(2 * math.sin(2 * math.pi / points)) if points > 2 else 0.0,
            "The angle between neighbours is 2 π / n, and the chord is 2 sin of half of it.",
        ),
        "sign": Mistake(
            lambda points: math.log(2 * math.sin(math.pi / points)),
            "This is the logarithm of the distance; the loss is minus that.",
        ),
        "the distance": Mistake(
            lambda points: 2 * math.sin(math.pi / points),
            "This is the distance to the neighbour; the loss is minus its logarithm.",
        ),
        "degrees": Mistake(
            lambda points: -math.log(abs(2 * math.sin(180 / points))),
            "math.sin takes radians: half the angle between neighbours is π / n.",
        ),
        "another base": Mistake(
            lambda points: -math.log10(2 * math.sin(math.pi / points)),
            "Your logarithm has the base 10; KoLeo's is the natural one, math.log.",
        ),
        "the base 2": Mistake(
            lambda points: -math.log2(2 * math.sin(math.pi / points)),
            "Your logarithm has the base 2; KoLeo's is the natural one, math.log.",
        ),
        "sum over the points": Mistake(
            lambda points: -points * math.log(2 * math.sin(math.pi / points)),
            "The points are added up; KoLeo is their mean, and all are alike.",
        ),
        "squared": Mistake(
            lambda points: -2 * math.log(2 * math.sin(math.pi / points)),
            "You have the squared distance: the loss is twice what it should be.",
        ),
        "half the angle": Mistake(
            lambda points: -math.log(2 * math.sin(math.pi / (2 * points))),
            "The angle is halved twice: between neighbours it is 2 π / n, and the chord is 2 sin of π / n.",
        ),
        "n - 1 gaps": Mistake(
            lambda points: -math.log(2 * math.sin(math.pi / (points - 1))),
            "A circle of n points has n gaps, not n - 1: the last point is the first one's neighbour.",
        ),
    },
    errors={"math domain error": "Is the angle in radians? math.sin takes no degrees."},
)


def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> tuple[Tensor, ...]:
    of_student = student.state_dict()
    return tuple(
        torch.lerp(of_student[name], own, momentum) if own.is_floating_point() else of_student[name]
        for name, own in teacher.state_dict().items()
    )


def _network(seen: int, size: float) -> nn.Module:
    """A small network with running statistics, which has seen so many batches."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
        for tensor in network.state_dict().values():
            tensor.mul_(size) if tensor.is_floating_point() else tensor.fill_(seen)
    return network


def _state(
    teacher: nn.Module,
    student: nn.Module,
    buffer: Callable[[Tensor, Tensor, Tensor], Tensor],
    momentum: float,
) -> tuple[Tensor, ...]:
    """`follow`, but for its buffers, which a function makes of the teacher's, the student's and the mean."""
    parameters = dict(teacher.named_parameters())
    names = teacher.state_dict().items()
    averaged = follow(teacher, student, momentum)
    return tuple(
        mean if name in parameters else buffer(own, student.state_dict()[name], mean)
        for (name, own), mean in zip(names, averaged, strict=True)
    )


FOLLOW = Exercise(
    name="follow",
    solution=follow,
    cases=((_network(2, 1.0), _network(40, -0.5), 0.9), (_network(5, 0.3), _network(6, 2.0), 0.5)),
    praise="Weights and running statistics move a little, and the counter is the student's.",
    mistakes={
        "buffers kept": Mistake(
            lambda teacher, student, momentum: _state(teacher, student, lambda own, new, mean: own, momentum),
            "The weights moved, BatchNorm's running mean and variance did not: they are buffers, not "
            "parameters, and they are averaged as well.",
        ),
        "buffers copied": Mistake(
            lambda teacher, student, momentum: _state(teacher, student, lambda own, new, mean: new, momentum),
            "The weights are right. The running mean and variance were copied from the student: they are "
            "averaged like the weights; only the counter, a whole number, is copied.",
        ),
        "counter kept": Mistake(
            lambda teacher, student, momentum: _state(
                teacher,
                student,
                lambda own, new, mean: mean if own.is_floating_point() else own,
                momentum,
            ),
            "All floats are right. The counter of batches, a whole number, is the student's.",
        ),
        "counter averaged": Mistake(
            lambda teacher, student, momentum: tuple(
                (momentum * own + (1 - momentum) * student.state_dict()[name]).to(own.dtype)
                for name, own in teacher.state_dict().items()
            ),
            "All floats are right. The counter of batches is averaged and rounded; a whole number is the "
            "student's.",
        ),
        "only the parameters": Mistake(
            lambda teacher, student, momentum: tuple(
                torch.lerp(new, own, momentum)
                for own, new in zip(teacher.parameters(), student.parameters(), strict=True)
            ),
            "These are the parameters only. BatchNorm's running statistics are buffers: go through "
            "state_dict(), which holds both.",
        ),
        "momentum swapped": Mistake(
            lambda teacher, student, momentum: follow(teacher, student, 1 - momentum),
            "Teacher and student have changed shares: momentum is how much of itself the teacher keeps.",
        ),
        "the student": Mistake(
            lambda teacher, student, momentum: tuple(student.state_dict().values()),
            "This is the student, as if momentum were 0.",
        ),
        "the student's next state": Mistake(
            lambda teacher, student, momentum: follow(student, teacher, momentum),
            "It is the student that moved towards the teacher. The gradient moves the student; the teacher "
            "follows.",
        ),
        "the teacher": Mistake(
            lambda teacher, student, momentum: tuple(teacher.state_dict().values()),
            "The teacher has not moved.",
        ),
    },
    errors={
        "not implemented for": (
            "One tensor of the state is a counter, a whole number, which has no average: take the student's."
        )
    },
)


def masked_patch_loss(student: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    of_patches = -(targets * F.log_softmax(student / 0.1, dim=-1)).sum(dim=-1)  # (b, n)
    of_pictures = (of_patches * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return of_pictures.mean()


def _of_patches(student: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.log_softmax(student / 0.1, dim=-1)).sum(dim=-1)


def _masked_case(b: int, n: int, k: int, masked: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.zeros(b, n, dtype=torch.bool)
    for picture, count in enumerate(masked):
        mask[picture, torch.randperm(n, generator=_generator)[:count]] = True
    return 0.3 * _random(b, n, k), (10 * 0.3 * _random(b, n, k)).softmax(dim=-1), mask


MASKED_PATCH_LOSS = Exercise(
    name="masked_patch_loss",
    solution=masked_patch_loss,
    cases=(_masked_case(3, 6, 5, [1, 4, 2]), _masked_case(2, 9, 4, [3, 0])),
    praise="iBOT's loss for patches: every picture counts alike, however many of its patches are hidden.",
    mistakes={
        "all patches": Mistake(
            lambda student, targets, mask: _of_patches(student, targets).mean(),
            "All patches count. A patch that the student sees is no riddle: only the masked ones.",
        ),
        "mask inverted": Mistake(
            lambda student, targets, mask: masked_patch_loss(student, targets, ~mask),
            "You compare the patches that the student saw; the hidden ones are those where mask is True.",
        ),
        "mean over all masked patches": Mistake(
            lambda student, targets, mask: _of_patches(student, targets)[mask].mean(),
            "This is the mean over all masked patches of the batch: a picture with many of them counts "
            "more. First the mean of each picture, then of the pictures.",
        ),
        "divided by all patches": Mistake(
            lambda student, targets, mask: (_of_patches(student, targets) * mask).mean(),
            "The sum is over masked patches, but you divide by all: divide by the number of masked ones.",
        ),
        "NaN without masked patches": Mistake(
            lambda student, targets, mask: (
                (_of_patches(student, targets) * mask).sum(dim=1) / mask.sum(dim=1)
            ).mean(),
            "Right, until a picture has no masked patch: 0 / 0. It counts with 0; divide by one there.",
        ),
        "pictures without a mask left out": Mistake(
            lambda student, targets, mask: (
                (_of_patches(student, targets) * mask).sum(dim=1) / mask.sum(dim=1)
            ).nanmean(),
            "Right, until a picture has no masked patch: you leave it out of the mean. It counts with 0, and "
            "the mean is over all pictures.",
        ),
        "sum over pictures": Mistake(
            lambda student, targets, mask: masked_patch_loss(student, targets, mask) * len(mask),
            "The pictures are added up; take their mean.",
        ),
        "mean over the prototypes": Mistake(
            lambda student, targets, mask: masked_patch_loss(student, targets, mask) / targets.shape[-1],
            "You take the mean over the prototypes too. A cross-entropy is their sum.",
        ),
        "softmax of the targets": Mistake(
            lambda student, targets, mask: masked_patch_loss(student, targets.softmax(dim=-1), mask),
            "The targets are probabilities already: no softmax for them.",
        ),
        "softmax over the patches": Mistake(
            lambda student, targets, mask: (
                -(targets * F.log_softmax(student / 0.1, dim=1)).sum(dim=-1).mul(mask).sum(dim=1)
                / mask.sum(dim=1).clamp(min=1)
            ).mean(),
            "The softmax runs over the patches; the prototypes are the last axis: dim=-1.",
        ),
        "sum over patches": Mistake(
            lambda student, targets, mask: (_of_patches(student, targets) * mask).sum(dim=1).mean(),
            "The patches of a picture are added up; take their mean.",
        ),
        "no temperature": Mistake(
            lambda student, targets, mask: masked_patch_loss(student / 10, targets, mask),
            "The student's temperature is missing: divide its logits by 0.1.",
        ),
        "sign": Mistake(
            lambda student, targets, mask: -masked_patch_loss(student, targets, mask),
            "The sign is turned round: a cross-entropy is minus the sum.",
        ),
    },
)

EXERCISES = [
    DINO_HEAD,
    TEACHER_TARGET,
    TWO_VIEW_LOSS,
    SINKHORN_KNOPP,
    KOLEO,
    BEST_KOLEO,
    FOLLOW,
    MASKED_PATCH_LOSS,
]
