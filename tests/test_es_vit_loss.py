"""EsViT's loss is the paper's: matches, regions and both centers beside slow loops and closed forms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support.regions import a_case, clear_case, outputs, regions_of, slow_region_loss
from support.unlabelled import draw, same, slow_view_loss
from torch import Tensor

from vit_course.dino import DINOLoss, SelfDistillation
from vit_course.es_vit import EsViTLoss, best_match, region_loss


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
        views = [[view.tolist() for view in part] for name, part in cast.items() if name != "center"]
        wanted = slow_region_loss(*views, cast["center"].tolist(), *temperatures)
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
        (draw(7, 5), draw(3, 7, 5), r"student must have axes \(b s d\)"),
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


# ---- centers, numbers, refusals ----------------------------------------------------------------------------


def test_both_centers_move_after_the_loss_in_training_only() -> None:
    loss, centers = EsViTLoss(7), [torch.zeros(7), torch.zeros(7)]
    for step in range(3):
        student, teacher = outputs(100 * step)
        of_views = slow_view_loss(student.views.tolist(), teacher.views.tolist(), centers[0].tolist())[0]
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
    names = [f"{part}.{name}" for part in ("view", "region") for name in ("center", "teacher_temp")]
    assert list(loss.state_dict()) == names


def test_entropy_and_kl_of_both_parts_add_up_to_the_loss() -> None:
    """The entropy of the regions is that of the targets which are really used, those of the matches."""
    model, loss, (crops, *_) = clear_case()
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
    one_view = {name: views[:1] for name, views in case.items() if name != "center"}
    four_views = {
        "teacher": regions_of((5, 4, 2, 2), 7),
        "teacher_features": regions_of((5, 4, 2, 2), 6),
    }
    for changes, message in [
        (one_view, "needs two or more, .* got 1 and 1"),
        (four_views, "got 3 and 4"),
        ({"student_features": case["student_features"][:2]}, "logits of 3 views, but features of 2"),
        (
            {"student": regions_of((5, 4, 3), 7)},
            r"student regions of view 2 must agree .* logits \(3, 3, 7\), features \(3, 2, 6\)",
        ),
        (
            {"teacher": regions_of((5, 4), 8)},
            r"teacher regions of view 0 .* logits \(3, 5, 8\), .* and center \(7,\)",
        ),
        ({"center": torch.zeros(8)}, r"student regions of view 0 must agree"),
        (
            {"teacher_features": regions_of((5, 4), 5)},
            r"features of one width: got shapes \(3, 4, 6\) and \(3, 5, 5\)",
        ),
        (
            {"teacher": [draw(3, 7), draw(3, 4, 7)]},
            r"teacher region logits of view 0 must have axes \(b n k\)",
        ),
        ({"student_temp": 0.0}, "student_temp must be in"),
        ({"teacher_temp": -1.0}, "teacher_temp must be in"),
        ({"center_momentum": 1.5}, "center_momentum must be in"),
    ]:
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


def test_targets_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One softmax for all regions of the teacher, one for each view of the student, and one for all whole
    views of each.
    """
    real, shapes = F.log_softmax, []

    def counted(logits: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(logits.shape))
        return real(logits, dim=dim)

    monkeypatch.setattr(F, "log_softmax", counted)
    EsViTLoss(7).with_numbers(*outputs())
    of_views, of_regions = [(2, 3, 7), (3, 3, 7)], [(27, 7), (3, 5, 7), (3, 4, 7), (3, 2, 7)]
    assert sorted(shapes) == sorted(of_views + of_regions)


def test_match_of_bfloat16_features_is_not_made_in_bfloat16() -> None:
    """Its cosines differ by 0.004 or not at all, and of equal ones the first would win."""
    student, teacher = draw(4, 64, 16).bfloat16(), draw(4, 256, 16, seed=1).bfloat16()
    match = best_match(student, teacher)
    assert torch.equal(match, best_match(student.float(), teacher.float()))
    rounded = (F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT).argmax(dim=-1)
    assert (match != rounded).float().mean() > 0.02


def test_centers_of_a_cast_module_arrive() -> None:
    wanted, cast = EsViTLoss(7), EsViTLoss(7).bfloat16()
    student, teacher = outputs()
    for _ in range(200):
        assert torch.equal(cast(student, teacher), wanted(student, teacher))
    assert same(cast, wanted)
    raw = torch.cat([view.flatten(0, 1) for view in teacher.regions])
    torch.testing.assert_close(cast.region.center, raw.mean(dim=0))
    case = a_case()
    _, _, center = region_loss(**case | {"center": case["center"].bfloat16()})
    assert torch.equal(center, region_loss(**case | {"center": case["center"].bfloat16().float()})[2])


@pytest.mark.parametrize("name", ["student_temp", "teacher_temp"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_temperatures_that_teach_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be in 1e-06 … 1000000.0, got {value}"):
        EsViTLoss(7, **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be in 1e-06 … 1000000.0, got {value}"):
        region_loss(**a_case(), **{name: value})


def test_a_center_at_rest_stays_while_the_other_moves() -> None:
    """The mode of each part counts: what its user put into evaluation stays there."""
    loss = EsViTLoss(7)
    loss.region.eval()
    loss(*outputs())
    assert loss.view.center.any() and not loss.region.center.any()


def test_answers_of_another_model_are_refused() -> None:
    student, teacher = outputs()
    for answers in ((student.views, teacher.views), (student, teacher.views), (None, teacher)):
        with pytest.raises(
            TypeError, match="must be the ViewsAndRegions of an EsViT, got (Tensor|NoneType); .* DINOLoss"
        ):
            EsViTLoss(7)(*answers)
