"""Exercises of lesson 11: matches, the loss of a pair of views, regions, all pairs, other uses of a match."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import pack
from torch import Tensor

from vit_course.dino import log_targets
from vit_course.es_vit import best_match, pair_loss, region_loss, regions_of

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(11)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def _features(b: int, n: int, d: int) -> Tensor:
    """Of very different lengths, so that a match without normalising is another one."""
    return _random(b, n, d) * (0.2 + 4 * torch.rand(b, n, 1, generator=_generator))


def _cosines(student: Tensor, teacher: Tensor) -> Tensor:
    return F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT


def _cosines_over_regions(student: Tensor, teacher: Tensor) -> Tensor:
    """Normalised along the wrong axis: over the regions."""
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).mT


def _same_place(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.arange(student.shape[1]).clamp(max=teacher.shape[1] - 1).expand(len(student), -1)


_WRONG_AXIS = (
    "You normalise over the regions: each number of the features is divided by its length over a whole view. "
    "Each region's own d numbers are to have length 1: dim=-1."
)
_NOT_NORMALISED = (
    "The teacher's features are multiplied at their own lengths, so long ones win whatever their direction. "
    "Divide them by their lengths first."
)
_LEAST_ALIKE = "You match what is least alike: the largest cosine, not the smallest."


# ---- step 1: best_match ------------------------------------------------------------------------------------

BEST_MATCH = Exercise(
    name="best_match",
    solution=best_match,
    cases=(
        (_features(2, 3, 6), _features(2, 5, 6)),
        (_features(3, 6, 4), _features(3, 4, 4)),
        (_features(2, 5, 8), _features(2, 5, 8)),
    ),
    praise="The nearest direction wins, whatever its length, picture by picture.",
    mistakes={
        "not normalised": Mistake(
            lambda student, teacher: (student @ teacher.mT).argmax(dim=-1), _NOT_NORMALISED
        ),
        "normalised over the regions": Mistake(
            lambda student, teacher: _cosines_over_regions(student, teacher).argmax(dim=-1), _WRONG_AXIS
        ),
        "least alike": Mistake(
            lambda student, teacher: _cosines(student, teacher).argmin(dim=-1), _LEAST_ALIKE
        ),
        "the nearest by distance": Mistake(
            lambda student, teacher: torch.cdist(student, teacher).argmin(dim=-1),
            "You take the nearest features as they are. The nearest *direction* is wanted: normalise both, "
            "then the smallest distance is the largest cosine.",
        ),
        "match of the teacher's regions": Mistake(
            lambda student, teacher: _cosines(student, teacher).argmax(dim=-2),
            lambda answer: (
                f"Your answer has the shape {tuple(answer.shape)}: one match for each of the teacher's "
                "regions. Each of the *student's* regions wants one: argmax over the last axis."
            ),
        ),
        "the cosine itself": Mistake(
            lambda student, teacher: _cosines(student, teacher).amax(dim=-1),
            "These are the largest cosines. Wanted is where they stand: argmax instead of max.",
        ),
        "same place": Mistake(
            _same_place,
            "Region j is given the teacher's region j. The views are different crops: the same number is "
            "another piece of the scene.",
        ),
    },
)


# ---- step 2: pair_loss -------------------------------------------------------------------------------------

_Pair = tuple[Tensor, Tensor]


def _of_matches(values: Tensor, match: Tensor) -> Tensor:
    """Rows (b, t, k) at the places (b, s) -> (b, s, k)."""
    return values[torch.arange(len(values))[:, None], match]


def _compared(log_p: Tensor, targets: Tensor) -> _Pair:
    """Cross-entropy and entropy of targets (b, s, k), which stand beside the answers already."""
    return -(targets * log_p).sum(dim=-1).mean(), torch.special.entr(targets).sum(dim=-1).mean()


def _pair(match: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., _Pair]:
    """The loss of a pair with another way to match features."""
    return lambda log_p, student, targets, teacher: _compared(
        log_p, _of_matches(targets, match(student, teacher))
    )


def _soft(sharpness: float) -> Callable[..., _Pair]:
    """The loss with a weighted mean of all targets in place of that of the match."""
    return lambda log_p, student, targets, teacher: _compared(
        log_p, (sharpness * _cosines(student, teacher)).softmax(dim=-1) @ targets
    )


def _scaled(factor: Callable[[Tensor], float]) -> Callable[..., _Pair]:
    """Both numbers too large or too small by a factor that the answers' shape decides."""

    def changed(log_p: Tensor, *others: Tensor) -> _Pair:
        loss, entropy = pair_loss(log_p, *others)
        return factor(log_p) * loss, factor(log_p) * entropy

    return changed


def _loss_changed(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., _Pair]:
    """Another loss, made of both numbers, beside the right entropy."""

    def changed(*case: Tensor) -> _Pair:
        loss, entropy = pair_loss(*case)
        return change(loss, entropy), entropy

    return changed


def _of_teachers_regions(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
    return _compared(_of_matches(log_p, best_match(teacher, student)), targets)


def _entropy_changed(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., _Pair]:
    """Another entropy, made of answers and used targets (b, s, k), beside the right loss."""

    def changed(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
        used = _of_matches(targets, best_match(student, teacher))
        return _compared(log_p, used)[0], change(log_p, used)

    return changed


def _by_pytorch(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., _Pair]:
    """A loss of PyTorch's for answers and used targets (b, s, k), beside the right entropy."""

    def changed(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
        used = _of_matches(targets, best_match(student, teacher))
        return loss(log_p, used), _compared(log_p, used)[1]

    return changed


def _first_prototype_only(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
    return _compared(log_p, targets.gather(1, best_match(student, teacher)[..., None]))


def _for_all_pictures(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
    return _compared(log_p, targets[:, best_match(student, teacher)])


def _entropy_of_all(log_p: Tensor, student: Tensor, targets: Tensor, teacher: Tensor) -> _Pair:
    return pair_loss(log_p, student, targets, teacher)[0], torch.special.entr(targets).sum(dim=-1).mean()


def _pair_case(b: int, s: int, t: int, k: int) -> tuple[Tensor, ...]:
    return (
        (3 * _random(b, s, k)).log_softmax(dim=-1),
        _features(b, s, 6),
        (5 * _random(b, t, k)).softmax(dim=-1),
        _features(b, t, 6),
    )


_SURE_AND_WRONG = (
    torch.tensor([[[0.0, -400.0]]]),
    torch.ones(1, 1, 6),
    torch.tensor([[[0.0, 1.0]]]),
    torch.ones(1, 1, 6),
)

PAIR_LOSS = Exercise(
    name="pair_loss",
    solution=pair_loss,
    cases=(_pair_case(2, 3, 5, 4), _pair_case(3, 6, 4, 7), _SURE_AND_WRONG),
    praise="Each of the student's regions has the target of its match; a sure and wrong answer costs 400.",
    mistakes={
        "not normalised": Mistake(
            _pair(lambda student, teacher: (student @ teacher.mT).argmax(dim=-1)), _NOT_NORMALISED
        ),
        "normalised over the regions": Mistake(
            _pair(lambda student, teacher: _cosines_over_regions(student, teacher).argmax(dim=-1)),
            _WRONG_AXIS,
        ),
        "soft matching": Mistake(
            _soft(1.0),
            "You blend the targets of all regions, weighted by a softmax of the cosines. The match is hard: "
            "one region, the best, lends its target.",
        ),
        "sharp soft matching": Mistake(
            _soft(10.0),
            "You blend the targets of several regions, weighted by a sharp softmax of the cosines. The match "
            "is hard: one region, the best, lends its target.",
        ),
        "match by answers": Mistake(
            lambda log_p, student, targets, teacher: _compared(
                log_p, _of_matches(targets, best_match(log_p, targets))
            ),
            "You match by the heads' answers. The match is made of the backbone's features; the answers are "
            "what is compared afterwards.",
        ),
        "least alike": Mistake(_pair(lambda student, teacher: best_match(-student, teacher)), _LEAST_ALIKE),
        "same place": Mistake(
            _pair(_same_place),
            "Region j is compared with the teacher's region j. The views are different crops: the same "
            "number is another piece of the scene.",
        ),
        "first picture's matches": Mistake(
            _pair(lambda student, teacher: best_match(student, teacher)[:1].expand(len(student), -1)),
            "You use the first picture's matches for all. Each picture has a row of its own.",
        ),
        "match of the teacher's regions": Mistake(
            _of_teachers_regions,
            "You look for a match for each of the teacher's regions and take the mean over them. It is the "
            "student's regions that count: one term for each.",
        ),
        "mean of all targets": Mistake(
            lambda log_p, student, targets, teacher: _compared(
                log_p, targets.mean(dim=1, keepdim=True).expand_as(log_p)
            ),
            "Every region is given the mean of all targets: that would teach the view, not the region.",
        ),
        "entropy of all targets": Mistake(
            _entropy_of_all,
            "The loss is right. The entropy is that of the targets which are *used*, one for each of the "
            "student's regions: a region that is nobody's match does not count.",
        ),
        "entropy of the student": Mistake(
            _entropy_changed(lambda log_p, used: torch.special.entr(log_p.exp()).sum(dim=-1).mean()),
            "The loss is right. The entropy is that of the student's answers; wanted is the entropy of the "
            "targets that were used.",
        ),
        "entropy without 0 · ln 0": Mistake(
            _entropy_changed(lambda log_p, used: -(used * used.log()).sum(dim=-1).mean()),
            "The loss is right, but where a target is 0 its entropy is NaN: 0 · ln 0 is not a number for a "
            "computer. torch.special.entr(q) is -q ln q, and 0 there.",
        ),
        "entropy with the wrong sign": Mistake(
            _entropy_changed(lambda log_p, used: -torch.special.entr(used).sum(dim=-1).mean()),
            "The loss is right, and so is the entropy but for its sign: torch.special.entr has the minus in "
            "it already.",
        ),
        "divergence beside the loss": Mistake(
            _entropy_changed(
                lambda log_p, used: _compared(log_p, used)[0] - torch.special.entr(used).sum(dim=-1).mean()
            ),
            "The loss is right. Your second number is the KL divergence; wanted is the entropy of the "
            "targets.",
        ),
        "the two exchanged": Mistake(
            lambda *case: pair_loss(*case)[::-1],
            "Both numbers are right but have changed places: the cross-entropy first, then the entropy.",
        ),
        "one number of each target": Mistake(
            _first_prototype_only,
            "You fetch one number of each target, that of the first prototype. `gather` takes as many as its "
            "index has: repeat the match over all k.",
        ),
        "every picture's matches": Mistake(
            _for_all_pictures,
            "targets[:, match] takes the matches of all pictures for each picture. Each has a row of its "
            "own: targets[torch.arange(b)[:, None], match].",
        ),
        "regions as classes": Mistake(
            _by_pytorch(lambda log_p, used: F.cross_entropy(log_p, used)),
            "F.cross_entropy takes axis 1 for the classes, and that is your regions. Flatten pictures and "
            "regions to one axis first, or sum over the last axis yourself.",
        ),
        "divergence by pictures": Mistake(
            _by_pytorch(lambda log_p, used: F.kl_div(log_p, used, reduction="batchmean")),
            "F.kl_div with batchmean is a KL divergence, added up over the regions of a picture. Wanted is "
            "the cross-entropy, as a mean over them.",
        ),
        "divergence": Mistake(
            _loss_changed(lambda loss, entropy: loss - entropy),
            "Your first number is the KL divergence: the entropy of the targets is taken away. The loss is "
            "the cross-entropy, as in lesson 10; its gradient is the same.",
        ),
        "sign": Mistake(
            _loss_changed(lambda loss, entropy: -loss),
            "The sign of the loss is turned round: a cross-entropy is minus the sum.",
        ),
        "summed over the regions": Mistake(
            _scaled(lambda log_p: log_p.shape[1]),
            "The regions are added up. Take their mean, or a large view would count for more than a small "
            "one.",
        ),
        "summed over pictures and regions": Mistake(
            _scaled(lambda log_p: log_p.shape[0] * log_p.shape[1]),
            "Pictures and regions are added up: take the mean over both.",
        ),
        "averaged over the prototypes": Mistake(
            _scaled(lambda log_p: 1 / log_p.shape[2]),
            "You take the mean over the prototypes too. A cross-entropy is their sum, and so is an entropy; "
            "the mean is over pictures and regions.",
        ),
    },
)


# ---- step 3: regions_of ------------------------------------------------------------------------------------


def _tokens_and_map() -> tuple[tuple, ...]:
    return (_random(2, 5, 6), 1), (_random(2, 5, 2, 3), 0), (_random(2, 6, 3), 0), (_random(3, 7, 4), 2)


def _map_changed(change: Callable[[Tensor], Tensor]) -> Callable:
    """Tokens as they should be, a map in another way."""
    return lambda features, prefix: change(features) if features.ndim == 4 else features[:, prefix:]


REGIONS_OF = Exercise(
    name="regions_of",
    solution=regions_of,
    cases=_tokens_and_map(),
    praise="Patches without class tokens, or the cells of a map: one form for every backbone.",
    mistakes={
        "class token among the regions": Mistake(
            lambda features, prefix: regions_of(features, 0),
            "The class token is among your regions. It stands for no place in the view: leave the first "
            "num_prefix_tokens out.",
        ),
        "always one class token": Mistake(
            lambda features, prefix: regions_of(features, 1),
            "You always leave out one token. There may be none or two: num_prefix_tokens says how many.",
        ),
        "column by column": Mistake(
            _map_changed(lambda features: features.transpose(2, 3).flatten(2).mT),
            "The cells of the map come out column by column. Reading order is row by row.",
        ),
        "reshaped": Mistake(
            _map_changed(lambda features: features.reshape(len(features), -1, features.shape[1])),
            "You reshaped the map: the d numbers of a cell are torn apart. Move the axis d to the end first.",
        ),
        "d before the regions": Mistake(
            _map_changed(lambda features: features.flatten(2)),
            "For a map your answer has the axes (b, d, n): the regions come before d.",
        ),
        "the last tokens": Mistake(
            lambda features, prefix: (
                features[:, : features.shape[1] - prefix] if features.ndim == 3 else regions_of(features, 0)
            ),
            "You left out the last tokens. Class tokens stand first.",
        ),
    },
)


# ---- step 4: region_loss -----------------------------------------------------------------------------------

_ARGUMENTS = (
    "student",
    "student_features",
    "teacher",
    "teacher_features",
    "center",
    "student_temp",
    "teacher_temp",
    "center_momentum",
)
_Numbers = tuple[Tensor, Tensor, Tensor]


def _over(combine: Callable[[list[Tensor], list[int], int], Tensor], own: bool = False) -> Callable:
    """Loss and entropy put together in another way, beside the right center.

    Args:
        combine: of the numbers of all pairs, how many regions the student's view of each has, and how many
            views are global.
        own: whether pairs of a view with itself are among them.
    """

    def wrong(*given: Any) -> _Numbers:
        student, student_features, teacher, teacher_features, center, student_temp, teacher_temp, _ = given
        targets = [log_targets(view, center, teacher_temp).exp() for view in teacher]
        log_p = [(view / student_temp).log_softmax(dim=-1) for view in student]
        views = [(i, v) for i in range(len(teacher)) for v in range(len(student)) if own or i != v]
        pairs = [pair_loss(log_p[v], student_features[v], targets[i], teacher_features[i]) for i, v in views]
        counts = [student[v].shape[1] for _, v in views]
        loss, entropy = (combine(list(part), counts, len(teacher)) for part in zip(*pairs, strict=True))
        return loss, entropy, region_loss(*given)[2]

    return wrong


def _mean(numbers: list[Tensor], *_: Any) -> Tensor:
    return torch.stack(numbers).mean()


def _weighted(numbers: list[Tensor], counts: list[int], _: int) -> Tensor:
    return (torch.stack(numbers) * torch.tensor(counts)).sum() / sum(counts)


def _global_only(numbers: list[Tensor], counts: list[int], global_views: int) -> Tensor:
    """The pairs come teacher by teacher, and of each teacher's the global ones first."""
    of_teachers = torch.stack(numbers).view(global_views, -1)
    return of_teachers[:, : global_views - 1].mean()


def _with(**changed: Callable[[dict], Any]) -> Callable[..., _Numbers]:
    """Loss and entropy for arguments of which some are made anew from all of them; the right center."""

    def wrong(*given: Any) -> _Numbers:
        named = dict(zip(_ARGUMENTS, given, strict=True))
        loss, entropy, _ = region_loss(**named | {name: change(named) for name, change in changed.items()})
        return loss, entropy, region_loss(*given)[2]

    return wrong


def _center_changed(change: Callable[[dict], Tensor]) -> Callable[..., _Numbers]:
    """Another center for the next step beside the right numbers."""
    return lambda *given: (*region_loss(*given)[:2], change(dict(zip(_ARGUMENTS, given, strict=True))))


def _moved(towards: Tensor, given: dict) -> Tensor:
    return torch.lerp(towards, given["center"], given["center_momentum"])


def _changed(by: Callable[..., Tensor], targets: Callable[[Tensor], Tensor] = torch.exp) -> Callable:
    """Loss and entropy with another way from the student's logits and its temperature to log-probabilities,
    or from the targets' logarithms to targets; the right center.
    """

    def wrong(*given: Any) -> _Numbers:
        student, features, teacher, teacher_features, center, student_temp, teacher_temp, _ = given
        log_p = [by(view, student_temp) for view in student]
        wanted = [targets(log_targets(view, center, teacher_temp)) for view in teacher]
        pairs = [
            pair_loss(log_p[v], features[v], wanted[i], teacher_features[i])
            for i in range(len(teacher))
            for v in range(len(student))
            if i != v
        ]
        loss, entropy = (torch.stack(part).mean() for part in zip(*pairs, strict=True))
        return loss, entropy, region_loss(*given)[2]

    return wrong


def _log_softmax(view: Tensor, temperature: float) -> Tensor:
    return (view / temperature).log_softmax(dim=-1)


def _each_pair_once(*given: Any) -> _Numbers:
    student, features, teacher, teacher_features, center, student_temp, teacher_temp, _ = given
    pairs = [
        pair_loss(
            _log_softmax(student[v], student_temp),
            features[v],
            log_targets(teacher[i], center, teacher_temp).exp(),
            teacher_features[i],
        )
        for i in range(len(teacher))
        for v in range(i + 1, len(student))
    ]
    loss, entropy = (torch.stack(part).mean() for part in zip(*pairs, strict=True))
    return loss, entropy, region_loss(*given)[2]


def _entropy_of_all_targets(*given: Any) -> _Numbers:
    loss, _, center = region_loss(*given)
    targets = [log_targets(view, given[4], given[6]).exp() for view in given[2]]
    return loss, _mean([torch.special.entr(view).sum(dim=-1).mean() for view in targets]), center


def _center_first(*given: Any) -> _Numbers:
    center = region_loss(*given)[2]
    named = dict(zip(_ARGUMENTS, given, strict=True)) | {"center": center}
    loss, entropy, _ = region_loss(**named)
    return loss, entropy, center


def _mean_answer(views: list[Tensor]) -> Tensor:
    rows, _ = pack(views, "* k")
    return rows.mean(dim=0)


def _views_case(counts: tuple[int, ...], k: int, *settings: float) -> tuple:
    student, features = [0.3 * _random(2, n, k) for n in counts], [_features(2, n, 6) for n in counts]
    teacher, of_teacher = (
        [0.3 * _random(2, n, k) for n in counts[:2]],
        [_features(2, n, 6) for n in counts[:2]],
    )
    return (student, features, teacher, of_teacher, 0.1 * _random(k), *settings)


REGION_LOSS = Exercise(
    name="region_loss",
    solution=region_loss,
    cases=(_views_case((4, 5, 2), 5, 0.1, 0.04, 0.9), _views_case((3, 5, 2, 2), 7, 0.2, 0.05, 0.6)),
    praise="Each view answers for every other one, and the center moves towards all the teacher's logits.",
    mistakes={
        "same view too": Mistake(
            _over(_mean, own=True),
            "You compare a view with itself too: there every region is its own match. Leave out v = i.",
        ),
        "global views only": Mistake(
            _over(_global_only),
            "Only the global views answer. All views of the student do, the local ones too.",
        ),
        "sum of the pairs": Mistake(
            _over(lambda numbers, *_: torch.stack(numbers).sum()),
            "You added up the pairs of views. Take their mean, as DINO's loss does.",
        ),
        "mean over all regions": Mistake(
            _over(_weighted),
            "Your mean is over all regions at once, so that large views count for more. First the mean over "
            "the regions of a pair, then over the pairs.",
        ),
        "not centred": Mistake(
            _with(center=lambda given: torch.zeros_like(given["center"])),
            "The center is not used: it is taken away from the teacher's logits before the softmax.",
        ),
        "student centred too": Mistake(
            _with(student=lambda given: [view - given["center"] for view in given["student"]]),
            "The center is the teacher's: leave the student's logits as they are.",
        ),
        "temperatures exchanged": Mistake(
            _with(
                student_temp=lambda given: given["teacher_temp"],
                teacher_temp=lambda given: given["student_temp"],
            ),
            "The temperatures have changed places: the teacher's is the lower one.",
        ),
        "no temperature for the student": Mistake(
            _with(student_temp=lambda given: 1.0),
            "The student's logits are not divided by its temperature.",
        ),
        "one temperature": Mistake(
            _with(teacher_temp=lambda given: given["student_temp"]),
            "The targets have the student's temperature. The teacher has its own, a lower one.",
        ),
        "each pair once": Mistake(
            _each_pair_once,
            "You compare each pair of views once, v > i. Each of the teacher's views is compared with all "
            "*other* views of the student, earlier ones too: v != i.",
        ),
        "targets as logarithms": Mistake(
            _changed(_log_softmax, targets=lambda logarithms: logarithms),
            "Your targets are still logarithms, which have no entropy: log_targets(…).exp() are the "
            "probabilities.",
        ),
        "logits for log-probabilities": Mistake(
            _changed(lambda view, temperature: view / temperature),
            "You gave pair_loss the student's logits. It wants log-probabilities: log_softmax over the "
            "prototypes.",
        ),
        "probabilities for their logarithms": Mistake(
            _changed(lambda view, temperature: (view / temperature).softmax(dim=-1)),
            "You gave pair_loss the student's probabilities. It wants their logarithms: log_softmax.",
        ),
        "temperature after the softmax": Mistake(
            _changed(lambda view, temperature: view.log_softmax(dim=-1) / temperature),
            "The student's temperature divides the logits, before log_softmax; afterwards the numbers are no "
            "log-probabilities any more.",
        ),
        "match by answers": Mistake(
            _with(
                student_features=lambda given: given["student"],
                teacher_features=lambda given: given["teacher"],
            ),
            "You match by the heads' logits. The match is made of the backbone's features.",
        ),
        "student's features for the teacher's": Mistake(
            _with(teacher_features=lambda given: given["student_features"][: len(given["teacher"])]),
            "The teacher's views are matched by the student's features of them. They have features of their "
            "own: teacher_features[i].",
        ),
        "entropy of all targets": Mistake(
            _entropy_of_all_targets,
            "The loss is right. The entropy is that of all the teacher's regions; take the mean of what "
            "pair_loss gives, the entropy of the targets that are used.",
        ),
        "the next center already": Mistake(
            _center_first,
            "You moved the center before the loss. The targets of this step are made with the old one; the "
            "new one is for the next step.",
        ),
        "momentum turned round": Mistake(
            _center_changed(
                lambda given: torch.lerp(
                    given["center"], _mean_answer(given["teacher"]), given["center_momentum"]
                )
            ),
            "The loss is right, but the center leaps: center_momentum is the share of the *old* center that "
            "stays.",
        ),
        "center of the targets": Mistake(
            _center_changed(
                lambda given: _moved(
                    _mean_answer(
                        [
                            log_targets(view, given["center"], given["teacher_temp"]).exp()
                            for view in given["teacher"]
                        ]
                    ),
                    given,
                )
            ),
            "The loss is right, but the center moves towards the targets. It is a mean of the teacher's "
            "*logits*, as they come from the head.",
        ),
        "center of centred logits": Mistake(
            _center_changed(lambda given: _moved(_mean_answer(given["teacher"]) - given["center"], given)),
            "The loss is right, but the center moves towards the logits after it was taken away from them. "
            "It wants the raw ones.",
        ),
        "moved once for each view": Mistake(
            _center_changed(
                lambda given: _moved(
                    _mean_answer(given["teacher"][1:]),
                    given | {"center": _moved(_mean_answer(given["teacher"][:1]), given)},
                )
            ),
            "The loss is right, but the center moves once for each of the teacher's views. It moves once a "
            "step, towards the mean over all of them: pack the views first.",
        ),
        "center stays": Mistake(
            _center_changed(lambda given: given["center"]),
            "The loss is right, but the center stays where it was. `next_center` moves it.",
        ),
        "center of the student": Mistake(
            _center_changed(lambda given: _moved(_mean_answer(given["student"]), given)),
            "The loss is right, but the center moves towards the student's answers. It is the mean of "
            "the *teacher's* logits.",
        ),
        "center of the last view": Mistake(
            _center_changed(lambda given: _moved(_mean_answer(given["teacher"][-1:]), given)),
            "The loss is right, but the center has seen the last of the teacher's views only: it moves "
            "towards the mean over all of them.",
        ),
        "center as a mean of means": Mistake(
            _center_changed(
                lambda given: _moved(
                    torch.stack([_mean_answer([view]) for view in given["teacher"]]).mean(dim=0), given
                )
            ),
            "The loss is right. The center moves towards the mean over all the teacher's regions at once, "
            "not towards the mean of the views' means: pack the views first.",
        ),
    },
)


# ---- practice ----------------------------------------------------------------------------------------------


def _mutual(likeness: Tensor) -> Tensor:
    """Cosines (b, s, t), or what somebody takes for them -> booleans (b, s)."""
    there, back = likeness.argmax(dim=2), likeness.argmax(dim=1)
    return back.gather(1, there) == torch.arange(likeness.shape[1])


def _mutual_matches(student: Tensor, teacher: Tensor) -> Tensor:
    return _mutual(_cosines(student, teacher))


def _same_number(student: Tensor, teacher: Tensor) -> Tensor:
    return best_match(student, teacher) == torch.arange(student.shape[1])


def _is_anyones(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether some region of the teacher goes to this region of the student."""
    back = best_match(teacher, student)
    return (back[:, None] == torch.arange(student.shape[1])[:, None]).any(dim=2)


def _has_a_match_of_its_own(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether no other region of the student goes to the same one."""
    there = best_match(student, teacher)
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
            "The features are multiplied as they are. On the way back the student's lengths decide as well: "
            "normalise both.",
        ),
        "only the teacher's normalised": Mistake(
            lambda student, teacher: _mutual(student @ F.normalize(teacher, dim=-1).mT),
            "You normalise the teacher's features only. That is enough on the way there; on the way back the "
            "student's lengths decide: normalise both.",
        ),
        "normalised over the regions": Mistake(
            lambda student, teacher: _mutual(_cosines_over_regions(student, teacher)), _WRONG_AXIS
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
            "You test whether j shares its match with no other region. Of several that go to one region, the "
            "one it goes back to is mutual.",
        ),
        "turned round": Mistake(
            lambda student, teacher: ~_mutual_matches(student, teacher),
            "Right the other way round: True is for mutual matches.",
        ),
    },
)


def _carried(likeness: Tensor, masks: Tensor, count: int) -> Tensor:
    """The mean mask of the `count` most alike: cosines (b, s, t), masks (b, t) -> shares (b, s)."""
    nearest = likeness.topk(count, dim=-1).indices  # (b, s, count)
    return masks.float()[torch.arange(len(masks))[:, None, None], nearest].mean(dim=-1)


def _carry_masks(student: Tensor, teacher: Tensor, masks: Tensor, count: int) -> Tensor:
    return _carried(_cosines(student, teacher), masks, count)


def _carry_weighted(student: Tensor, teacher: Tensor, masks: Tensor, count: int) -> Tensor:
    values, nearest = _cosines(student, teacher).topk(count, dim=-1)
    known = masks.float()[torch.arange(len(masks))[:, None, None], nearest]
    return (values.softmax(dim=-1) * known).sum(dim=-1)


CARRY_MASKS = Exercise(
    name="carry_masks",
    solution=_carry_masks,
    cases=(
        (_features(2, 5, 4), _features(2, 7, 4), _random(2, 7) > 0, 3),
        (_features(3, 6, 4), _features(3, 6, 4), _random(3, 6) > 0, 1),
        (_features(2, 4, 5), _features(2, 9, 5), _random(2, 9) > 0, 4),
    ),
    praise="A mask drawn once goes wherever the features do: so objects are followed through a film.",
    mistakes={
        "not normalised": Mistake(
            lambda student, teacher, masks, count: _carried(student @ teacher.mT, masks, count),
            _NOT_NORMALISED,
        ),
        "normalised over the regions": Mistake(
            lambda student, teacher, masks, count: _carried(
                _cosines_over_regions(student, teacher), masks, count
            ),
            _WRONG_AXIS,
        ),
        "the best only": Mistake(
            lambda student, teacher, masks, count: _carry_masks(student, teacher, masks, 1),
            "You look at the best match only. Take the mean over the `count` best.",
        ),
        "the worst": Mistake(
            lambda student, teacher, masks, count: _carried(-_cosines(student, teacher), masks, count),
            _LEAST_ALIKE,
        ),
        "weighted": Mistake(
            _carry_weighted,
            "You weight the best by a softmax of their cosines. Here each of them counts the same.",
        ),
        "summed": Mistake(
            lambda student, teacher, masks, count: count * _carry_masks(student, teacher, masks, count),
            "You count how many of the best show the object. Their share is wanted: divide by `count`.",
        ),
        "same place": Mistake(
            lambda student, teacher, masks, count: masks.float().gather(1, _same_place(student, teacher)),
            "Region j takes what region j of the other view shows. Its best matches decide.",
        ),
        "the first picture's mask": Mistake(
            lambda student, teacher, masks, count: _carry_masks(
                student, teacher, masks[:1].expand_as(masks), count
            ),
            "You look up every picture's matches in the first picture's mask: each has a row of its own.",
        ),
        "majority": Mistake(
            lambda *case: _carry_masks(*case) > 0.5,
            "You decide by majority. Wanted is the share itself; whoever draws a mask of it may choose where "
            "to cut.",
        ),
        "any": Mistake(
            lambda *case: _carry_masks(*case) > 0,
            "You ask whether any of the best matches is in the mask. Wanted is the share of them that is.",
        ),
    },
    errors={
        "could not infer output dtype": "The masks are booleans, which have no mean: use .float() first."
    },
)


EXERCISES: list[Exercise] = [
    BEST_MATCH,
    PAIR_LOSS,
    REGIONS_OF,
    REGION_LOSS,
    MUTUAL_MATCHES,
    CARRY_MASKS,
]
