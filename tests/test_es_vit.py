"""EsViT is the paper's: views, matches, regions and both centres beside slow double loops, and mistakes in them that those loops see."""

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.parity import DIFFERENT, heat, relative_error
from timm.models import VisionTransformer
from torch import Tensor, nn
from support.unlabelled import HEAD, SMALL, crops_of, draw, log_softmax, same, slow_uniformity, stop_and_resume, train

from vit_course import dino, es_vit
from vit_course.cait import CaiT
from vit_course.dino import DINO, DINOHead, DINOLoss, MultiCrop, SelfDistillation, dino_schedules, uniformity
from vit_course.distillation import DistilledViT
from vit_course.es_vit import EsViT, EsViTLoss, ViewsAndRegions, best_match, region_loss
from vit_course.lab.pretrained import adapt
from vit_course.max_vit import MaxViT
from vit_course.patching import ConvStem
from vit_course.training import fit
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT


def small_es_vit(seed: int = 0, **changes) -> EsViT:
    torch.manual_seed(seed)
    return EsViT(ViT(**SMALL), **HEAD | changes)


# ---- the loss, in loops over plain numbers ----------------------------------------------------------------------------------------------


def cross_entropy(
    teacher: list, student: list, center: list, student_temp: float, teacher_temp: float
) -> float:
    centred = [logit - middle for logit, middle in zip(teacher, center, strict=True)]
    target, answer = log_softmax(centred, teacher_temp), log_softmax(student, student_temp)
    return -sum(math.exp(log_q) * log_p for log_q, log_p in zip(target, answer, strict=True))


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


def slow_region_loss(
    student: list, student_features: list, teacher: list, teacher_features: list,
    center: list, student_temp: float = 0.1, teacher_temp: float = 0.04,
) -> float:  # fmt: skip
    """For every pair of different views, picture and region of the student: find the match, take its target."""
    of_pairs = []
    for i, of_teacher in enumerate(teacher):
        for v, of_student in enumerate(student):
            if v == i:
                continue
            terms = []
            for picture, regions in enumerate(of_student):
                for region, answer in enumerate(regions):
                    feature = student_features[v][picture][region]
                    likeness = [cosine(feature, other) for other in teacher_features[i][picture]]
                    target = of_teacher[picture][likeness.index(max(likeness))]
                    terms.append(cross_entropy(target, answer, center, student_temp, teacher_temp))
            of_pairs.append(sum(terms) / len(terms))
    return sum(of_pairs) / len(of_pairs)


def slow_view_loss(student: list, teacher: list, center: list) -> float:
    of_pairs = [
        sum(cross_entropy(target, answer, center, 0.1, 0.04) for target, answer in zip(teacher[i], student[v], strict=True))
        / len(teacher[i])
        for i in range(len(teacher)) for v in range(len(student)) if v != i
    ]  # fmt: skip
    return sum(of_pairs) / len(of_pairs)


def regions_of(
    counts: tuple[int, ...], width: int, b: int = 3, seed: int = 0, size: float = 1.0
) -> list[Tensor]:
    """For each view (b, t, width), the lengths of the rows very different."""
    rows = [draw(b, t, width, seed=seed + view) for view, t in enumerate(counts)]
    return [size * row * (1 + 5 * draw(*row.shape[:2], 1, seed=99).abs()) for row in rows]


def a_case(counts: tuple[int, ...] = (5, 4, 2), global_views: int = 2, k: int = 7, seed: int = 0) -> dict:
    return {
        "student": regions_of(counts, k, seed=seed + 10, size=0.3),
        "student_features": regions_of(counts, 6, seed=seed + 20),
        "teacher": regions_of(counts[:global_views], k, seed=seed + 30, size=0.3),
        "teacher_features": regions_of(counts[:global_views], 6, seed=seed + 40),
        "center": 0.3 * draw(k, seed=seed + 50),
    }


@pytest.mark.parametrize(
    "counts, global_views",
    [((4, 4), 2), ((5, 3), 2), ((4, 4, 2, 2, 2), 2), ((4, 9, 1, 3), 2), ((4, 2, 3), 1), ((3, 3, 3, 2), 3)],
)
@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (0.1, 0.07), (0.9, 0.5)])
@pytest.mark.parametrize("center_size", [0.0, 0.3, 2.0])
def test_region_loss_is_that_of_the_slow_loops(
    counts: tuple[int, ...], global_views: int, temperatures: tuple[float, float], center_size: float
) -> None:
    case = a_case(counts, global_views)
    case["center"] = center_size * draw(7, seed=3)
    for dtype, tolerance in {torch.float64: 1e-12, torch.float32: 1e-6}.items():
        cast = {
            name: part.to(dtype) if isinstance(part, Tensor) else [view.to(dtype) for view in part]
            for name, part in case.items()
        }
        loss, entropy, center = region_loss(*cast.values(), *temperatures)
        plain = [part.tolist() if isinstance(part, Tensor) else [view.tolist() for view in part] for part in cast.values()]  # fmt: skip
        wanted = slow_region_loss(*plain, *temperatures)
        assert abs(loss.item() - wanted) <= tolerance * abs(wanted)
        raw = torch.cat([view.flatten(0, 1) for view in cast["teacher"]])
        torch.testing.assert_close(center, 0.9 * cast["center"] + 0.1 * raw.mean(dim=0))
        assert center.dtype == dtype and 0 <= entropy <= math.log(7) + 1e-6


def test_match_is_the_largest_cosine() -> None:
    """By hand: the longest vector is not the best match, the one in the same direction is."""
    student = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [-1.0, 0.2]]])
    teacher = torch.tensor([[[9.0, 9.0], [0.2, 0.0], [0.0, 1.0], [-0.1, 0.0]]])
    assert best_match(student, teacher).tolist() == [[1, 0, 3]]
    features = draw(3, 7, 5)
    assert torch.equal(best_match(features, features), torch.arange(7).expand(3, 7))
    scaled = features * (1 + 9 * draw(3, 7, 1, seed=1).abs())
    assert torch.equal(best_match(3 * scaled, features), best_match(features, features))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order[best_match(features, features[:, order])], best_match(features, features))
    for one, other, message in [
        (draw(3, 7, 5), draw(3, 7, 6), r"got shapes \(3, 7, 5\) and \(3, 7, 6\)"),
        (draw(3, 7, 5), draw(2, 7, 5), r"matched within an image"),
        (draw(7, 5), draw(3, 7, 5), r"student must have axes \(b t d\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            best_match(one, other)


def test_regions_have_no_order_and_their_features_no_length() -> None:
    case = a_case((5, 5, 2))
    loss = region_loss(**case)[0]
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = case | {
        name: [view[:, order] for view in case[name]] for name in ("teacher", "teacher_features")
    }
    also = case | {
        name: [view[:, torch.arange(view.shape[1] - 1, -1, -1)] for view in case[name]]
        for name in ("student", "student_features")
    }
    scaled = case | {
        name: [view * (0.1 + draw(*view.shape[:2], 1, seed=7).abs()) for view in case[name]]
        for name in ("student_features", "teacher_features")
    }
    shifted = case | {
        "student": [view + 3 for view in case["student"]],
        "teacher": [view - 2 for view in case["teacher"]],
    }
    for other in (shuffled, also, scaled, shifted):
        torch.testing.assert_close(region_loss(**other)[0], loss)
    torn = case | {
        "teacher_features": [view[:, order] for view in case["teacher_features"]]
    }  # but not their logits
    assert abs(region_loss(**torn)[0] - loss) > 0.01 * loss


@pytest.mark.parametrize("k", [2, 64, 4096])
def test_uniform_answers_cost_log_k(k: int) -> None:
    features = [draw(3, 4, 5), draw(3, 4, 5, seed=1), draw(3, 2, 5, seed=2)]
    sure = [50 * F.one_hot(torch.randint(k, (3, 4)), k).float() for _ in range(2)]
    for teacher in ([torch.zeros(3, 4, k)] * 2, sure):
        loss, entropy, _ = region_loss(
            [torch.ones(3, view.shape[1], k) for view in features],
            features,
            teacher,
            features[:2],
            torch.zeros(k),
        )
        assert loss.item() == pytest.approx(math.log(k), rel=1e-6)
        assert entropy.item() == pytest.approx(0.0 if teacher is sure else math.log(k), rel=1e-6, abs=1e-6)


def test_extreme_logits_give_the_true_value() -> None:
    """log(softmax + eps) would stop at 46.05 and lose its gradient there."""
    student = [torch.tensor([[[20.0, 0.0]]], requires_grad=True) for _ in range(2)]
    teacher, features = [torch.tensor([[[0.0, 20.0]]])] * 2, [torch.ones(1, 1, 3)] * 2
    loss, _, _ = region_loss(student, features, teacher, features, torch.zeros(2))
    loss.backward()
    assert loss.item() == pytest.approx(200.0, abs=1e-4)
    torch.testing.assert_close(student[0].grad[0, 0], torch.tensor([5.0, -5.0]))  # 1 / (2 pairs · 0.1)


def test_gradients_reach_the_student_s_logits_only() -> None:
    """Not the teacher, not the centre, and no feature through the match."""
    case = a_case()
    for part in case.values():
        for tensor in [part] if isinstance(part, Tensor) else part:
            tensor.requires_grad_()
    region_loss(**case)[0].backward()
    assert all(view.grad is not None and view.grad.abs().sum() > 0 for view in case["student"])
    others = [*case["student_features"], *case["teacher"], *case["teacher_features"]]
    assert all(view.grad is None for view in others)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    case = a_case((4, 4, 2), k=64)
    rounded = case | {name: [view.bfloat16() for view in case[name]] for name in ("student", "teacher")}
    wanted = region_loss(
        **case | {name: [view.float() for view in rounded[name]] for name in ("student", "teacher")}
    )
    loss, _, center = region_loss(**rounded)
    assert loss.dtype == center.dtype == torch.float32
    torch.testing.assert_close(loss, wanted[0])
    torch.testing.assert_close(center, wanted[2])


# ---- the whole of it beside loops, and mistakes that the loops see -----------------------------------------------------------------------


def hot(prefix_tokens: int = 1) -> tuple[EsViT, EsViTLoss, list[list[Tensor]]]:
    """A model whose weights show mistakes, the teacher's others than the student's; a loss with centres; crops for four steps."""
    torch.manual_seed(0)
    model = EsViT(ViT(**SMALL, pool="cls" if prefix_tokens else "mean"), **HEAD)
    heat(model.student, seed=1)
    heat(model.teacher, seed=2)
    with torch.no_grad():
        for network in (model.student, model.teacher):
            network.backbone.norm.weight[:4] *= 6  # LayerNorm makes all lengths alike
    loss = EsViTLoss(24, center_momentum=0.3)  # a center that moves far shows when it moves
    loss.view.center.copy_(0.5 * draw(24, seed=3))
    loss.region.center.copy_(0.5 * draw(24, seed=4))
    return model, loss, [crops_of((8, 8, 4), b=2, seed=seed) for seed in range(0, 200, 50)]


def fast_steps(model: EsViT, loss: EsViTLoss, steps: list[list[Tensor]]) -> list[Tensor]:
    """The losses of steps that see centres which have moved, and the centres after them."""
    losses = torch.stack([loss(*model(crops)).detach() for crops in steps])
    return [losses, loss.view.center, loss.region.center]


def largest_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(relative_error(one, other) for one, other in zip(ours, theirs, strict=True))


@torch.no_grad()
def slow_steps(model: EsViT, loss: EsViTLoss, steps: list[list[Tensor]]) -> list[Tensor]:
    """The same from backbones and heads, view by view, token by token."""

    def logits(head: DINOHead, feature: Tensor) -> Tensor:
        hidden = head.mlp(feature)
        return torch.stack([F.cosine_similarity(hidden, row, dim=0) for row in head.prototypes.weight])

    def says(network: nn.Module, crops: list[Tensor]) -> tuple[list, list, list]:
        views, regions, features = [], [], []
        for crop in crops:
            tokens = [network.backbone.forward_features(picture[None])[0] for picture in crop]
            if network.backbone.num_prefix_tokens:
                pooled, patches = [rows[0] for rows in tokens], [rows[1:] for rows in tokens]
            else:
                pooled, patches = [rows.mean(dim=0) for rows in tokens], tokens
            views.append([logits(network.head, feature).tolist() for feature in pooled])
            regions.append([[logits(network.region_head, row).tolist() for row in rows] for rows in patches])
            features.append([rows.tolist() for rows in patches])
        return views, regions, features

    centers, losses = [loss.view.center.clone(), loss.region.center.clone()], []
    for crops in steps:
        student, teacher = says(model.student, crops), says(model.teacher, crops[:2])
        of_views = slow_view_loss(student[0], teacher[0], centers[0].tolist())
        of_regions = slow_region_loss(*student[1:], *teacher[1:], centers[1].tolist())
        losses.append((of_views + of_regions) / 2)
        means = [
            torch.tensor(teacher[0]).mean(dim=(0, 1)),
            torch.tensor(teacher[1]).mean(dim=(0, 1, 2)),
        ]
        centers = [0.3 * center + 0.7 * mean for center, mean in zip(centers, means, strict=True)]
    return [torch.tensor(losses), *centers]


@pytest.mark.parametrize("prefix_tokens", [0, 1])
def test_the_whole_is_that_of_the_slow_loops(prefix_tokens: int) -> None:
    model, loss, steps = hot(prefix_tokens)
    wanted = slow_steps(model, loss, steps)
    assert largest_error(fast_steps(model, loss, steps), wanted) < 1e-5


def normalised_over_tokens(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    def forward(head: DINOHead, features: Tensor) -> Tensor:
        return F.linear(F.normalize(head.mlp(features), dim=0), F.normalize(head.prototypes.weight, dim=-1))

    for network in (model.student, model.teacher):
        patch.setattr(network.region_head, "forward", partial(forward, network.region_head))


def match_of_unnormalised_features(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(es_vit, "best_match", lambda student, teacher: (student @ teacher.mT).argmax(dim=-1))


def match_over_the_student_s_regions(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    def same_place_or_last(student: Tensor, teacher: Tensor) -> Tensor:
        cosines = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT
        return cosines.argmax(dim=1)[:, : student.shape[1]].clamp(max=teacher.shape[1] - 1)

    patch.setattr(es_vit, "best_match", same_place_or_last)


def least_alike(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    real = best_match
    patch.setattr(es_vit, "best_match", lambda student, teacher: real(-student, teacher))


def one_shared_center(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    loss.region.center = loss.view.center


def one_head_for_both(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    model.student.region_head, model.teacher.region_head = model.student.head, model.teacher.head


def changed_region_loss(patch: pytest.MonkeyPatch, change: Callable) -> None:
    """In place of region_loss, `change` of the real one and its arguments by name."""
    names = list(inspect.signature(region_loss).parameters)
    patch.setattr(es_vit, "region_loss", lambda *given: change(dict(zip(names, given, strict=True))))


def center_before_the_loss(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    changed_region_loss(patch, lambda given: region_loss(**given | {"center": region_loss(**given)[2]}))


def center_that_rests(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    changed_region_loss(patch, lambda given: (*region_loss(**given)[:2], given["center"]))


def center_of_the_student(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    def change(given: dict) -> tuple:
        student = torch.cat([view.flatten(0, 1) for view in given["student"][:2]]).mean(dim=0)
        return *region_loss(**given)[:2], torch.lerp(student, given["center"], 0.9).detach()

    changed_region_loss(patch, change)


def student_centred_too(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    def change(given: dict) -> tuple:
        return region_loss(**given | {"student": [view - given["center"] for view in given["student"]]})

    changed_region_loss(patch, change)


def temperatures_swapped(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    changed_region_loss(
        patch, lambda given: region_loss(**given | {"student_temp": 0.04, "teacher_temp": 0.1})
    )


def class_token_among_the_regions(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    def features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = network.backbone.forward_features(images)
        return network.backbone.forward_head(tokens), tokens

    for network in (model.student, model.teacher):
        patch.setattr(network, "features", partial(features, network))


def views_only(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loss, "forward", lambda student, teacher: loss.view(student.views, teacher.views))


def parts_added(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    real = loss.with_numbers
    patch.setattr(loss, "with_numbers", lambda student, teacher: (2 * real(student, teacher)[0], {}))


MUTANTS = [
    normalised_over_tokens, match_of_unnormalised_features, match_over_the_student_s_regions, least_alike, one_shared_center,
    one_head_for_both, center_before_the_loss, center_that_rests, center_of_the_student, student_centred_too,
    temperatures_swapped, class_token_among_the_regions, views_only, parts_added,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_the_slow_loops_see_mistakes(mutate: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, steps = hot()
    wanted = slow_steps(model, loss, steps)
    mutate(model, loss, monkeypatch)
    error = largest_error(fast_steps(model, loss, steps), wanted)
    print(f"{mutate.__name__}: {error:.3g}")
    assert error > DIFFERENT


# ---- centres, numbers, refusals of the loss ---------------------------------------------------------------------------------------------


def outputs(seed: int = 0, k: int = 7) -> tuple[ViewsAndRegions, ViewsAndRegions]:
    case = a_case(seed=seed, k=k)
    student = ViewsAndRegions(0.3 * draw(3, 3, k, seed=seed + 1), case["student"], case["student_features"])
    teacher = ViewsAndRegions(0.3 * draw(2, 3, k, seed=seed + 2), case["teacher"], case["teacher_features"])
    return student, teacher


def test_both_centers_move_after_the_loss_in_training_only() -> None:
    loss, centers = EsViTLoss(7), [torch.zeros(7), torch.zeros(7)]
    for step in range(3):
        student, teacher = outputs(100 * step)
        of_views = slow_view_loss(student.views.tolist(), teacher.views.tolist(), centers[0].tolist())
        parts = [[view.tolist() for view in part] for part in (*student[1:], *teacher[1:])]
        of_regions = slow_region_loss(*parts, centers[1].tolist())
        assert loss(student, teacher).item() == pytest.approx((of_views + of_regions) / 2, rel=1e-5)
        means = (
            teacher.views.mean(dim=(0, 1)),
            torch.cat([view.flatten(0, 1) for view in teacher.regions]).mean(dim=0),
        )
        centers = [0.9 * center + 0.1 * mean for center, mean in zip(centers, means, strict=True)]
        torch.testing.assert_close(loss.view.center, centers[0])
        torch.testing.assert_close(loss.region.center, centers[1])
    loss.eval()(*outputs())
    torch.testing.assert_close(loss.view.center, centers[0])
    torch.testing.assert_close(loss.region.center, centers[1])
    assert set(loss.state_dict()) == {f"{part}.{name}" for part in ("view", "region") for name in ("center", "teacher_temp")}  # fmt: skip


def test_entropy_and_kl_of_both_parts_add_up_to_the_loss() -> None:
    """The entropy of the regions is that of the targets which are really used, those of the matches."""
    model, loss, (crops, *_) = hot()
    model.train()
    centers = loss.view.center.clone(), loss.region.center.clone()
    value, numbers = SelfDistillation(loss)(model, crops)
    student, teacher = model(crops)
    kl, entropies = [], []
    for i in range(2):
        for v in range(3):
            if v != i:
                match = best_match(student.features[v], teacher.features[i])
                targets = ((teacher.regions[i] - centers[1]) / 0.04).softmax(dim=-1)
                targets = torch.stack([rows[places] for rows, places in zip(targets, match, strict=True)])
                q = torch.distributions.Categorical(targets.double())
                p = torch.distributions.Categorical(logits=student.regions[v].detach().double() / 0.1)
                kl.append(torch.distributions.kl_divergence(q, p).mean().float())
                entropies.append(q.entropy().mean().float())
    torch.testing.assert_close(numbers["region_kl"], torch.stack(kl).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(numbers["region_entropy"], torch.stack(entropies).mean(), rtol=1e-4, atol=1e-6)
    q = torch.distributions.Categorical(((teacher.views - centers[0]) / 0.04).softmax(dim=-1))
    torch.testing.assert_close(numbers["entropy"], q.entropy().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sum(numbers.values()) / 2, value.detach())
    assert not any(number.requires_grad for number in numbers.values())


def test_loss_refuses_what_it_cannot_compare() -> None:
    case = a_case((5, 4, 2))
    for changes, message in [
        ({name: views[:1] for name, views in case.items() if name != "center"}, "needs two or more, .* got 1 and 1"),
        ({name: regions_of((5, 4, 2, 2), width) for name, width in (("teacher", 7), ("teacher_features", 6))}, "got 3 and 4"),
        ({"student_features": case["student_features"][:2]}, "logits of 3 views, but features of 2"),
        ({"student": regions_of((5, 4, 3), 7)}, r"student regions of view 2 must agree .* logits \(3, 3, 7\), features \(3, 2, 6\)"),
        ({"teacher": regions_of((5, 4), 8)}, r"teacher regions of view 0 .* logits \(3, 5, 8\), .* and center \(7,\)"),
        ({"center": torch.zeros(8)}, r"student regions of view 0 must agree"),
        ({"teacher_features": regions_of((5, 4), 5)}, r"features of one width: got shapes \(3, 4, 6\) and \(3, 5, 5\)"),
        ({"teacher": [draw(3, 7), draw(3, 4, 7)]}, r"teacher region logits of view 0 must have axes \(b t k\)"),
        ({"student_temp": 0.0}, "student_temp must be in"),
        ({"teacher_temp": -1.0}, "teacher_temp must be in"),
        ({"center_momentum": 1.5}, "center_momentum must be in"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            region_loss(**case | changes)
    with pytest.raises(TypeError, match="student region logits of view 1 must be a tensor"):
        region_loss(**case | {"student": [case["student"][0], None, case["student"][2]]})
    with pytest.raises(ValueError, match="out_dim must be at least 1"):
        EsViTLoss(0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_view_and_leaves_both_centers(bad: float) -> None:
    loss = EsViTLoss(7)
    loss(*outputs())
    before = copy.deepcopy(loss)
    for part, view, named in [
        ("regions", 2, "student region logits of view 2$"),
        ("features", 1, "student region features of view 1$"),
        (
            "views",
            2,
            "student logits of view 2$",
        ),  # the regions' part is whole: its centre must wait all the same
    ]:
        student, teacher = outputs()
        getattr(student, part)[view][0, 1] = bad
        with pytest.raises(ValueError, match=f"not finite are the {named}"):
            loss(student, teacher)
        assert same(loss, before)
    student, teacher = outputs()
    student.regions[0][0, 1] = teacher.regions[1][1, 1] = bad
    with pytest.raises(ValueError, match="student region logits of view 0, teacher region logits of view 1"):
        loss(student, teacher)
    with pytest.raises(ValueError, match="divided by the temperature"):
        region_loss(**a_case() | {"student": [1e38 * view.sign() for view in a_case()["student"]]})
    assert same(loss, before)


# ---- the model --------------------------------------------------------------------------------------------------------------------------


def test_views_are_dino_s() -> None:
    """With the same weights an EsViT says of whole views what a DINO says."""
    torch.manual_seed(0)
    backbone = ViT(**SMALL)
    plain, model, crops = DINO(backbone, **HEAD), EsViT(copy.deepcopy(backbone), **HEAD), crops_of()
    model.student.head.load_state_dict(plain.student.head.state_dict())
    model.teacher.head.load_state_dict(plain.teacher.head.state_dict())
    (student, teacher), (wanted, wanted_of_teacher) = model(crops), plain(crops)
    torch.testing.assert_close(student.views, wanted)
    torch.testing.assert_close(teacher.views, wanted_of_teacher)


def test_regions_stand_by_view() -> None:
    """Whatever was put into one batch, entry v is view v, its regions in reading order."""
    model, crops = small_es_vit().eval(), crops_of((16, 16, 8, 12, 12, 8))
    student, teacher = model(crops)
    assert [tuple(view.shape) for view in student.regions] == [(4, t, 24) for t in (16, 16, 4, 9, 9, 4)]
    assert [tuple(view.shape) for view in teacher.features] == [(4, 16, 32)] * 2
    assert student.views.shape == (6, 4, 24) and teacher.views.shape == (2, 4, 24)
    for view, crop in enumerate(crops):
        patches = model.student.backbone.forward_features(crop)[:, 1:]
        torch.testing.assert_close(student.features[view], patches)
        torch.testing.assert_close(student.regions[view], model.student.region_head(patches))
    for view in range(2):
        torch.testing.assert_close(teacher.regions[view], student.regions[view])


def test_class_token_is_no_region() -> None:
    """Another class token, after the last block, changes what is said of views and nothing of regions."""
    model, crops = small_es_vit().eval(), crops_of()
    student, _ = model(crops)

    def other_class_token(module: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
        return torch.cat([draw(tokens.shape[0], 1, 32, seed=8), tokens[:, 1:]], dim=1)

    model.student.backbone.norm.register_forward_hook(other_class_token)
    changed, _ = model(crops)
    assert relative_error(changed.views, student.views) > DIFFERENT
    for one, other in zip(changed.regions, student.regions, strict=True):
        assert torch.equal(one, other)


def test_cells_of_a_map_are_the_regions_of_a_pyramid() -> None:
    torch.manual_seed(0)
    model = EsViT(MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=2, dim_head=8), **HEAD).eval()
    crops = crops_of((32, 32, 16))
    student, teacher = model(crops)
    feature_map = model.student.backbone.forward_features(crops[0])
    assert feature_map.shape == (4, 32, 4, 4)
    for row in range(4):
        for column in range(4):
            cell = student.features[0][:, 4 * row + column]
            torch.testing.assert_close(cell, feature_map[:, :, row, column])
    torch.testing.assert_close(student.views[0], model.student.head(model.student.backbone(crops[0])))
    assert [view.shape[1] for view in student.regions] == [16, 16, 4] and len(teacher.regions) == 2
    assert EsViTLoss(24)(student, teacher).isfinite()


def test_one_pass_for_each_size_of_crops() -> None:
    model, calls = small_es_vit(), []
    for network in (model.student, model.teacher):
        network.backbone.patch_embed.register_forward_hook(
            lambda module, inputs, output: calls.append(tuple(inputs[0].shape))
        )
        for head in (network.head, network.region_head):
            head.register_forward_hook(lambda module, inputs, output: calls.append(tuple(inputs[0].shape)))
    model(crops_of((16, 16, 8, 8, 8)))
    teacher_s = [(8, 3, 16, 16), (8, 32), (128, 32)]
    student_s = [(8, 3, 16, 16), (12, 3, 8, 8), (20, 32), (128 + 48, 32)]
    assert sorted(calls) == sorted(teacher_s + student_s)


def test_region_head_has_length_one_for_each_region() -> None:
    """vit-pytorch's normalises over the regions of a picture; ours over the channels of one, whatever stands beside it."""
    model, crops = small_es_vit(), crops_of((16, 16))
    head = model.student.region_head
    student, _ = model(crops)
    alone = head(student.features[0][:1, 5])
    torch.testing.assert_close(student.regions[0][:1, 5], alone)
    bottleneck = head.mlp(student.features[0])
    cosines = F.cosine_similarity(bottleneck[..., None, :], head.prototypes.weight, dim=-1)
    torch.testing.assert_close(student.regions[0], cosines)


def test_teacher_has_neither_gradient_nor_dropout_nor_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    model = EsViT(ViT(**SMALL | {"dropout": 0.5}), **HEAD, batch_norm=True).train()
    assert model.student.training and not any(part.training for part in model.teacher.modules())
    assert not {p.data_ptr() for p in model.student.parameters()} & {
        p.data_ptr() for p in model.teacher.parameters()
    }
    assert same(model.student, model.teacher) and model.backbone is model.teacher.backbone
    before, crops = copy.deepcopy(model.teacher), crops_of()
    (_, first), (_, second) = model(crops), model(crops)
    assert torch.equal(first.views, second.views) and torch.equal(first.regions[1], second.regions[1])
    SelfDistillation(EsViTLoss(24))(model, crops)[0].backward()
    assert not first.views.requires_grad and not first.regions[0].requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    assert same(before, model.teacher)
    for _ in range(3):
        model.update_teacher(0.5)
    moved = zip(
        model.teacher.state_dict().items(),
        before.state_dict().values(),
        model.student.state_dict().values(),
        strict=True,
    )
    for (name, tensor), old, student in moved:
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, old / 8 + student * 7 / 8, msg=name)


def test_both_parts_reach_the_backbone() -> None:
    """The gradient of the loss is half of each part's, and neither is small."""
    model, loss, (crops, *_) = hot()
    gradients = {}
    for name in ("both", "view", "region"):
        model.zero_grad()
        student, teacher = model(crops)
        {
            "both": lambda s, t: copy.deepcopy(loss)(s, t),
            "view": lambda s, t: copy.deepcopy(loss.view)(s.views, t.views),
            "region": lambda s, t: region_loss(
                s.regions, s.features, t.regions, t.features, loss.region.center
            )[0],
        }[name](student, teacher).backward()
        gradients[name] = torch.cat(
            [p.grad.flatten() for p in model.student.backbone.parameters() if p.grad is not None]
        )
    torch.testing.assert_close(
        gradients["both"], (gradients["view"] + gradients["region"]) / 2, rtol=1e-4, atol=1e-5
    )
    assert min(gradients["view"].norm(), gradients["region"].norm()) > 0.05 * gradients["both"].norm()


def test_es_vit_refuses_what_does_not_fit() -> None:
    model = small_es_vit()
    for crops, message in [
        (crops_of((16,)), "needs two global crops or more, got 1"),
        (crops_of((16, 16, 10)), r"refuses crops of 10 × 10 pixels: image_size \(10, 10\) is not divisible by patch_size \(4, 4\)"),
        ([draw(4, 3, 16, 16), draw(3, 3, 16, 16)], r"views of the same images, got shapes \[\(4, 3, 16, 16\), \(3, 3, 16, 16\)\]"),
        ([draw(4, 1, 16, 16)] * 2, "must have 3 channels, got 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model(crops)
    for crops in (draw(4, 3, 16, 16), [1, 2], [None, None]):
        with pytest.raises(TypeError, match="must be a"):
            model(crops)
    with pytest.raises(TypeError, match="a model with forward_features .*, got Linear"):
        EsViT(nn.Linear(3, 3))
    with pytest.raises(
        ValueError, match=r"pooled features \(b, 32\), got \(8, 10\): build it with num_classes=0"
    ):
        EsViT(ViT(**SMALL | {"num_classes": 10}), **HEAD)(crops_of((16, 16)))
    mismatched = small_es_vit()
    mismatched.student.region_head = DINOHead(48, 24, hidden_dim=20, bottleneck_dim=12)
    with pytest.raises(ValueError, match=r"takes features of width 48, got shape \(128, 32\)"):
        mismatched(crops_of((16, 16)))
    narrow = small_es_vit()
    for network in (narrow.student, narrow.teacher):
        network.region_head = DINOHead(32, 20, hidden_dim=20, bottleneck_dim=12)
    loss = EsViTLoss(24)
    with pytest.raises(ValueError, match=r"logits \(4, 16, 20\), features \(4, 16, 32\) and center \(24,\)"):
        loss(*narrow(crops_of()))
    with pytest.raises(ValueError, match="agree on b and k"):
        EsViTLoss(25)(*model(crops_of()))
    for network in (model.student, model.teacher):
        network.head = DINOHead(32, 20, hidden_dim=20, bottleneck_dim=12)
    with pytest.raises(ValueError, match="agree on b and k"):
        loss(*model(crops_of()))
    assert loss.view.center.abs().sum() == loss.region.center.abs().sum() == 0


# ---- keeping pictures and regions apart -------------------------------------------------------------------------------------------------


def directions_of(model: EsViT, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the student's heads compare with their prototypes: of views (v, b, d), of the regions of all views (n, d)."""
    backbone = model.student.backbone
    pooled = torch.stack([backbone(crop) for crop in crops])
    patches = [backbone.forward_features(crop)[:, backbone.num_prefix_tokens :] for crop in crops]
    of_views = model.student.head.mlp(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
    return of_views, model.student.region_head.mlp(torch.cat([view.flatten(0, 1) for view in patches]))


@pytest.mark.parametrize("prefix_tokens", [0, 1])
def test_spread_adds_the_mean_uniformity_of_both_heads(prefix_tokens: int) -> None:
    """That of views view by view, that of all regions at once; the paper's loss and its numbers stay."""
    model, loss, (crops, *_) = hot(prefix_tokens)
    crops = [(1 + view) * crop for view, crop in enumerate(crops)]
    of_views, of_regions = directions_of(model, crops)
    views, regions = slow_uniformity(of_views), slow_uniformity(of_regions[None])
    paper, of_paper = copy.deepcopy(loss).with_numbers(*model(crops))
    plain, of_plain = SelfDistillation(copy.deepcopy(loss))(model, crops)
    assert torch.equal(plain, paper) and of_plain == of_paper
    value, numbers = SelfDistillation(copy.deepcopy(loss), spread=3.0)(model, crops)
    wanted = (views + regions) / 2
    assert numbers.pop("spread").item() == pytest.approx(wanted, rel=1e-5)
    assert value.item() == pytest.approx(paper.item() + 3 * wanted, rel=1e-5)
    assert numbers == of_paper

    by_view = [slow_uniformity(rows[None]) for rows in of_regions.split([8, 8, 2])]  # 2 pictures of 4, 4, 1
    for name, mistake in {
        "views only": views,
        "regions only": regions,
        "the sum": views + regions,
        "all views at once": (slow_uniformity(of_views.flatten(0, 1)[None]) + regions) / 2,
        "regions view by view": (views + sum(by_view) / 3) / 2,
    }.items():
        error = abs(mistake - wanted) / abs(wanted)
        print(f"{name}: {error:.3g}")
        assert error > DIFFERENT, name


def test_spread_asks_at_most_1024_regions_of_every_view_and_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops, asked = small_es_vit(), crops_of((16, 16, 8), b=40), []
    monkeypatch.setattr(dino, "uniformity", lambda rows: asked.append(rows) or uniformity(rows))
    SelfDistillation(EsViTLoss(24), spread=1.0)(model, crops)
    of_views, of_regions = directions_of(model, crops)
    torch.testing.assert_close(asked[0], of_views)
    assert asked[1].shape[0] == 1 and 512 < asked[1].shape[1] <= 1024 < len(of_regions) == 40 * (16 + 16 + 4)
    distances, places = torch.cdist(asked[1][0], of_regions).min(dim=1)
    assert distances.max() < 1e-3 and len(places.unique()) == asked[1].shape[1]
    pictures = torch.cat([torch.arange(40 * t) // t + 40 * view for view, t in enumerate((16, 16, 4))])
    assert len(pictures[places].unique()) == 3 * 40
    assert len((places[places < 2 * 40 * 16] % 16).unique()) == 16  # and every place of the global views


def test_spread_reaches_both_heads_and_the_backbone_and_no_prototype() -> None:
    model, loss, (crops, *_) = hot()
    found = []
    for spread in (0.0, 3.0):
        model.zero_grad()
        SelfDistillation(copy.deepcopy(loss), spread)(model, crops)[0].backward()
        found.append({name: parameter.grad for name, parameter in model.student.named_parameters()})
    moved = {name for name in found[0] if relative_error(found[1][name], found[0][name]) > DIFFERENT}
    bottlenecks = {f"{head}.mlp.{layer}.weight" for head in ("head", "region_head") for layer in (0, 2, 4)}
    assert bottlenecks | {"backbone.cls_token", "backbone.patch_embed.proj.weight"} <= moved
    assert not any("prototypes" in name for name in moved)


# ---- any backbone, training, checkpoints ------------------------------------------------------------------------------------------------


def timm_vit(**changes) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return adapt(VisionTransformer(**sizes | changes))


BACKBONES = {
    "ViT": (1, lambda: ViT(**SMALL)),
    "ViT, mean of the patches": (0, lambda: ViT(**SMALL, pool="mean")),
    "ViT, convolutional stem": (1, lambda: ViT(**SMALL, patch_embedding=ConvStem(patch_size=4, dim=32))),
    "SimpleViT": (0, lambda: SimpleViT(**SMALL)),
    "DistilledViT": (2, lambda: DistilledViT(**SMALL)),
    "CaiT": (1, lambda: CaiT(**SMALL, layer_dropout=0.1)),
    "XCiT": (1, lambda: XCiT(**SMALL)),
    "MaxViT": (0, lambda: MaxViT(num_classes=0, dim=16, depth=(1, 1), window_size=1, dim_head=8)),
    "timm's ViT": (1, timm_vit),
    "timm's ViT with registers": (5, lambda: timm_vit(reg_tokens=4)),
    "timm's ViT, averaged": (0, lambda: timm_vit(class_token=False, global_pool="avg")),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_learns(name: str, tmp_path: Path) -> None:
    """Three steps with local crops: every weight of the student is reached, the teacher follows, and both come back from the checkpoint."""
    torch.manual_seed(0)
    prefix_tokens, build = BACKBONES[name]
    model, loss = EsViT(build(), **HEAD, batch_norm=True), SelfDistillation(EsViTLoss(24))
    crop, images = MultiCrop(16, 8, 2, rotation=180.0), draw(8, 3, 16, 16)
    tokens = model.backbone.forward_features(images)
    regions = model.eval()([images, images])[0].regions[0].shape[1]
    assert regions == (tokens.shape[1] - prefix_tokens if tokens.ndim == 3 else tokens[0, 0].numel())
    before, path = copy.deepcopy(model), tmp_path / "run.pt"
    schedules = dino_schedules(model, loss, 3, momentum=0.5, frozen=0.0)
    history = fit(
        model, lambda generator: crop(images, generator), loss, 3, checkpoint=path, progress=False, **schedules
    )  # fmt: skip
    assert set(history) == {"loss", "lr", "entropy", "kl", "region_entropy", "region_kl"}
    assert all(math.isfinite(value) for values in history.values() for value in values)
    for (key, student), teacher, old in zip(
        model.student.named_parameters(), model.teacher.parameters(), before.teacher.parameters(), strict=True
    ):
        assert student.grad is not None, key
        assert not torch.equal(teacher, old) and not torch.equal(student, old), key
    again = EsViT(build(), **HEAD, batch_norm=True)
    again.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert same(model, again)


def whole(seed: int = 0) -> tuple[EsViT, SelfDistillation]:
    torch.manual_seed(seed)
    model = EsViT(ViT(**SMALL | {"dropout": 0.2}), **HEAD, batch_norm=True)
    return model, SelfDistillation(EsViTLoss(24), spread=1.0)


def test_schedules_find_both_heads_and_both_losses() -> None:
    (model, loss), resting, temperatures = whole(), [], []
    heads = model.student.head, model.student.region_head
    before = [head.prototypes.weight.clone() for head in heads]

    def watch(step: int) -> None:
        resting.append(
            [torch.equal(head.prototypes.weight, old) for head, old in zip(heads, before, strict=True)]
        )
        temperatures.append([part.teacher_temp.item() for part in (loss.loss.view, loss.loss.region)])

    train(model, loss, after=watch)
    assert resting == [[True, True]] * 2 + [[False, False]] * 4
    assert all(view == region for view, region in temperatures) and temperatures[-1][0] == pytest.approx(0.07)


@pytest.mark.parametrize("stop", range(5))
def test_training_stopped_anywhere_and_resumed_is_the_same(stop: int, tmp_path: Path) -> None:
    """Student, teacher, both centres and temperatures, optimiser, schedules and random state: bit by bit."""
    straight, straight_loss = whole()
    history = train(straight, straight_loss)
    resumed, resumed_loss, again = stop_and_resume(whole, stop, tmp_path / "run.pt")
    assert same(straight, resumed) and same(straight_loss, resumed_loss)
    assert again == history and "spread" in history
    assert resumed_loss.loss.view.center.abs().sum() > 0 and resumed_loss.loss.region.center.abs().sum() > 0
    assert not torch.equal(resumed_loss.loss.view.center, resumed_loss.loss.region.center)


@pytest.mark.parametrize(
    "part, named",
    [("head", "student logits of view 0"), ("region_head", "student region logits of view 0")],
)
def test_a_loss_that_is_not_finite_stops_the_training_and_saves_nothing(
    part: str, named: str, tmp_path: Path
) -> None:
    model, loss = whole()

    def poison(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                getattr(model.student, part).mlp[0].weight[0, 0] = math.nan

    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=f"not finite are the {named}"):
        train(model, loss, checkpoint=path, checkpoint_every=2, after=poison)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in [*state["model"].values(), *state["loss"].values()])
    assert loss.loss.region.center.isfinite().all()


def test_loss_is_a_dino_loss_twice() -> None:
    loss = EsViTLoss(24, student_temp=0.2, teacher_temp=0.05, center_momentum=0.8)
    for part in (loss.view, loss.region):
        assert isinstance(part, DINOLoss)
        assert (part.student_temp, part.teacher_temp.item(), part.center_momentum) == (
            0.2,
            pytest.approx(0.05),
            0.8,
        )
    student, teacher = outputs(k=24)
    wanted = region_loss(*student[1:], *teacher[1:], loss.region.center, 0.2, 0.05, 0.8)
    view = DINOLoss(24, 0.2, 0.05, 0.8)(student.views, teacher.views)
    torch.testing.assert_close(loss(student, teacher), (wanted[0] + view) / 2)
    torch.testing.assert_close(loss.region.center, wanted[2])
