"""Exercises of lesson 11: the targets of the matches, the region loss of a pair of views, mutual matches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(11)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def _features(b: int, n: int, d: int) -> Tensor:
    """Of very different lengths, so that a match without normalising is another one."""
    return _random(b, n, d) * (0.2 + 4 * torch.rand(b, n, 1, generator=_generator))


def _cosines(student: Tensor, teacher: Tensor) -> Tensor:
    return F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT


# ---- warm-up: matched_targets ------------------------------------------------------------------------------


def _matched_targets(targets: Tensor, match: Tensor) -> Tensor:
    return targets[torch.arange(targets.shape[0])[:, None], match]


def _by_the_first_picture(targets: Tensor, match: Tensor) -> Tensor:
    return targets[:, match[0]]


def _scattered(targets: Tensor, match: Tensor) -> Tensor:
    """Each target is put where its match number points, instead of fetched from there."""
    t = match.shape[1]
    places = torch.arange(t).clamp(max=targets.shape[1] - 1).expand_as(match)
    fetched = targets[torch.arange(targets.shape[0])[:, None], places]
    index = match.clamp(max=t - 1)[..., None].expand_as(fetched)
    return torch.zeros_like(fetched).scatter(1, index, fetched)


MATCHED_TARGETS = Exercise(
    name="matched_targets",
    solution=_matched_targets,
    cases=(
        (_random(2, 4, 3).softmax(dim=-1), torch.tensor([[2, 0, 3], [1, 1, 0]])),
        (_random(3, 5, 4).softmax(dim=-1), torch.randint(5, (3, 6), generator=_generator)),
        (_random(3, 4, 4).softmax(dim=-1), torch.randint(4, (3, 4), generator=_generator)),
    ),
    praise="Each region has the target of its match, picture by picture, also where two regions share one.",
    mistakes={
        "first picture's matches": Mistake(
            _by_the_first_picture,
            "Right for the first picture only: you use its matches for all. Each picture has a row of its "
            "own in match.",
        ),
        "all pictures for each": Mistake(
            lambda targets, match: targets[:, match],
            lambda answer: (
                f"Your answer has the shape {tuple(answer.shape)}: targets[:, match] takes every picture's "
                "matches from every picture. Name the picture too: torch.arange(b)[:, None] beside match."
            ),
        ),
        "first regions": Mistake(
            lambda targets, match: targets[:, torch.arange(match.shape[1]).clamp(max=targets.shape[1] - 1)],
            "These are the teacher's regions in their own order; match is not used. Region j is to get the "
            "target number match[j].",
        ),
        "put instead of fetched": Mistake(
            _scattered,
            "You put target j to the place match[j] (scatter). It is the other way round: place j fetches "
            "the target number match[j] (gather).",
        ),
        "mean of all": Mistake(
            lambda targets, match: targets.mean(dim=1, keepdim=True).expand(-1, match.shape[1], -1),
            "Every region gets the mean of all targets: that would teach the view, not the region.",
        ),
    },
)


# ---- core: pair_loss ---------------------------------------------------------------------------------------


def _pair_loss(
    student: Tensor,
    student_features: Tensor,
    teacher: Tensor,
    teacher_features: Tensor,
    center: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    mistake: str = "",
) -> Tensor:
    """The region loss of one pair of views, or one with a mistake in it."""
    likeness = _cosines(student_features, teacher_features)
    if mistake == "not normalised":
        likeness = student_features @ teacher_features.mT
    if mistake == "match by logits":
        likeness = _cosines(student, teacher)
    if mistake == "least alike":
        likeness = -likeness
    match = likeness.argmax(dim=-1)
    if mistake == "same place":
        match = torch.arange(student.shape[1]).clamp(max=teacher.shape[1] - 1).expand(student.shape[0], -1)
    if mistake == "student centred too":
        student = student - center
    centred = teacher if mistake == "not centred" else teacher - center
    targets = (centred / teacher_temp).softmax(dim=-1)
    answers = F.log_softmax(student / student_temp, dim=-1)
    if mistake == "match of the teacher's regions":
        back = likeness.argmax(dim=-2)
        terms = -(targets * _matched_targets(answers, back)).sum(dim=-1)
    else:
        terms = -(_matched_targets(targets, match) * answers).sum(dim=-1)
    if mistake == "summed over the regions":
        return terms.sum(dim=1).mean()
    if mistake == "averaged over the prototypes":
        return terms.mean() / student.shape[-1]
    return -terms.mean() if mistake == "sign" else terms.mean()


def _pair_mistake(name: str, says: str, **changed: Any) -> Mistake:
    return Mistake(lambda *case: _pair_loss(*case, mistake=name, **changed), says)


def _pair_case(b: int, t: int, s: int, k: int) -> tuple[Tensor, ...]:
    return (
        0.3 * _random(b, t, k),
        _features(b, t, 6),
        0.3 * _random(b, s, k),
        _features(b, s, 6),
        0.1 * _random(k),
    )


_SURE_AND_WRONG = (
    torch.tensor([[[40.0, 0.0]]]),
    torch.ones(1, 1, 6),
    torch.tensor([[[0.0, 40.0]]]),
    torch.ones(1, 1, 6),
    torch.zeros(2),
)

PAIR_LOSS = Exercise(
    name="pair_loss",
    solution=_pair_loss,
    cases=(_pair_case(2, 3, 5, 4), _pair_case(3, 6, 4, 7), _SURE_AND_WRONG),
    praise="The same as region_loss on one pair, and 400 where log(softmax) would have been minus infinity.",
    mistakes={
        name: _pair_mistake(name, says)
        for name, says in {
            "not normalised": (
                "The features are multiplied as they are, so long ones win. Divide the teacher's by their "
                "lengths before the match."
            ),
            "match by logits": (
                "You match by the logits. The match is made of the backbone's features; the logits say "
                "what is asked."
            ),
            "least alike": "You match what is least alike: argmax of the cosines, not argmin.",
            "same place": (
                "Region j is compared with the teacher's region j. The views are different crops: the same "
                "number is another piece of the scene."
            ),
            "match of the teacher's regions": (
                "You look for a match for each of the teacher's regions and take the mean over them. It is "
                "the student's regions that count: one term for each."
            ),
            "not centred": (
                "The center is not used: take it away from the teacher's logits before the softmax."
            ),
            "student centred too": "The center is the teacher's: leave the student's logits as they are.",
            "summed over the regions": (
                "The regions are added up; take their mean, or a large view would count for more than a "
                "small one."
            ),
            "averaged over the prototypes": (
                "You take the mean over the prototypes too. A cross-entropy is their sum; the mean is over "
                "pictures and regions."
            ),
            "sign": "The sign is turned round: a cross-entropy is minus the sum.",
        }.items()
    }
    | {
        "temperatures swapped": _pair_mistake(
            "temperatures swapped",
            "The temperatures have changed places: 0.1 is the student's, 0.04 the teacher's.",
            student_temp=0.04,
            teacher_temp=0.1,
        ),
        "one temperature": _pair_mistake(
            "one temperature",
            "The target has the student's temperature. The teacher's is lower, 0.04: sharper than what the "
            "student says.",
            teacher_temp=0.1,
        ),
    },
)


# ---- stretch: mutual_matches -------------------------------------------------------------------------------


def _mutual(likeness: Tensor) -> Tensor:
    """Cosines (b, t, s), or what somebody takes for them -> booleans (b, t)."""
    there, back = likeness.argmax(dim=2), likeness.argmax(dim=1)
    return back.gather(1, there) == torch.arange(likeness.shape[1])


def _mutual_matches(student: Tensor, teacher: Tensor) -> Tensor:
    return _mutual(_cosines(student, teacher))


def _same_number(student: Tensor, teacher: Tensor) -> Tensor:
    return _cosines(student, teacher).argmax(dim=2) == torch.arange(student.shape[1])


def _is_anyones(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether some region of the teacher goes to this region of the student."""
    back = _cosines(student, teacher).argmax(dim=1)
    return (back[:, None] == torch.arange(student.shape[1])[:, None]).any(dim=2)


def _has_a_match_of_its_own(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether no other region of the student goes to the same one."""
    there = _cosines(student, teacher).argmax(dim=2)
    return (there[:, :, None] == there[:, None]).sum(dim=2) == 1


MUTUAL_MATCHES = Exercise(
    name="mutual_matches",
    solution=_mutual_matches,
    cases=(
        (_features(2, 5, 4), _features(2, 7, 4)),
        (_features(3, 9, 4), _features(3, 6, 4)),
        (_features(3, 8, 3), _features(3, 8, 3)),
    ),
    praise="There and back again: only pairs that choose each other are left.",
    mistakes={
        "not normalised": Mistake(
            lambda student, teacher: _mutual(student @ teacher.mT),
            "The features are multiplied as they are. On the way back the student's lengths decide as "
            "well: normalise both.",
        ),
        "only the teacher's normalised": Mistake(
            lambda student, teacher: _mutual(student @ F.normalize(teacher, dim=-1).mT),
            "You normalise the teacher's features only. That is enough on the way there; on the way back "
            "the student's lengths decide: normalise both.",
        ),
        "same number": Mistake(
            _same_number,
            "You test whether region j matches region number j. Mutual means: the match of its match is j "
            "again.",
        ),
        "somebody's match": Mistake(
            _is_anyones,
            "You test whether any region of the teacher goes to j. It must be the one that j itself goes to.",
        ),
        "nobody else's": Mistake(
            _has_a_match_of_its_own,
            "You test whether j shares its match with no other region. Of several that go to one region, "
            "the one it goes back to is mutual.",
        ),
        "turned round": Mistake(
            lambda student, teacher: ~_mutual_matches(student, teacher),
            "Right the other way round: True is for mutual matches.",
        ),
    },
)

EXERCISES = [MATCHED_TARGETS, PAIR_LOSS, MUTUAL_MATCHES]
