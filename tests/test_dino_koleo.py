"""KoLeo is that of DINOv2's code; SelfDistillation asks it of the right rows, and leaves nothing behind."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.unlabelled import HEAD, crops_of, draw, slow_view_loss, small_dino, small_vit
from torch import Tensor, nn

from vit_course.dino import DINO, DINOLoss, KoLeo, SelfDistillation, dino_loss
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.lab.dino_parity import KOLEO, WRONG_KOLEOS, load
from vit_course.lab.parity import DIFFERENT, randomise, relative_error

koleo = KoLeo()


def slow_koleo(features: Tensor) -> float:
    """By loops over plain numbers, for features (b, d)."""
    rows = [[number / math.hypot(*row) for number in row] for row in features.detach().double().tolist()]
    nearest = [min(math.dist(one, other) for other in rows if other is not one) for one in rows]
    return -sum(math.log(distance + 1e-8) for distance in nearest) / len(rows)


# ---- the term by itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KOLEO)
def test_value_and_gradient_are_those_of_the_authors_code(name: str) -> None:
    numbers = load(name)[0]
    features = numbers["input"].requires_grad_()
    value = koleo(features)
    (gradient,) = torch.autograd.grad(value, features)
    assert relative_error(value, numbers["output"]) < 1e-5
    assert relative_error(gradient, numbers["mid/gradient"]) < 1e-5
    equal = features.detach().clone()
    equal[1] = 2 * equal[0]
    assert relative_error(koleo(equal), numbers["mid/loss_if_two_directions_equal"]) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (8, 16), (32, 12), (40, 256)])
def test_it_is_that_of_the_slow_loops(shape: tuple[int, int]) -> None:
    features = (draw(*shape, seed=1) * draw(shape[0], 1, seed=2).exp()).double()
    if shape[1] > 1:  # in one dimension many directions are equal, and eps decides
        assert koleo(features).item() == pytest.approx(slow_koleo(features), abs=1e-6)
    assert koleo(features).isfinite()


def directions(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1)


@pytest.mark.parametrize("mistake", WRONG_KOLEOS)
def test_the_numbers_of_the_authors_see_mistakes(mistake: str) -> None:
    errors = []
    for name in KOLEO:
        numbers = load(name)[0]
        errors.append(relative_error(WRONG_KOLEOS[mistake](numbers["input"]), numbers["output"]))
    print(f"{mistake}: {errors}")
    assert max(errors) > DIFFERENT


@pytest.mark.parametrize("end", ["here", "there"])
def test_gradient_flows_through_both_ends(end: str) -> None:
    """With one end detached it is another gradient, which the authors' numbers see."""
    numbers = load("koleo_1")[0]
    features = numbers["input"].requires_grad_()
    of_all, nearest = directions(features), numbers["mid/nearest"]
    ends = {"here": of_all, "there": of_all[nearest]}
    ends[end] = ends[end].detach()
    value = -(F.pairwise_distance(*ends.values(), eps=1e-8) + 1e-8).log().mean()
    (gradient,) = torch.autograd.grad(value, features)
    assert relative_error(value, numbers["output"]) < 1e-5
    assert relative_error(gradient, numbers["mid/gradient"]) > DIFFERENT


def test_points_on_a_circle_end_evenly_spaced() -> None:
    """Of n points the best arrangement has -log(2 sin(π / n))."""
    points = torch.stack([1 + 0.1 * draw(12), 0.1 * draw(12, seed=1)], dim=1).requires_grad_()
    optimizer = torch.optim.SGD([points], lr=0.1)
    best = -math.log(2 * math.sin(math.pi / 12))
    assert koleo(points).item() > best + 1
    for step in range(3000):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 3000)
        optimizer.zero_grad()
        koleo(points).backward()
        optimizer.step()
        with torch.no_grad():
            points.copy_(directions(points))
    assert koleo(points).item() == pytest.approx(best, abs=0.05)


def test_two_opposite_pictures_are_each_other_s_neighbours() -> None:
    """A diagonal of -1 would tie with their cosine."""
    assert koleo(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-math.log(2), abs=1e-6)


def test_equal_pictures_have_a_finite_gradient() -> None:
    features = torch.eye(3)[[0, 0, 1, 2]].requires_grad_()
    (gradient,) = torch.autograd.grad(koleo(features), features)
    assert gradient.isfinite().all() and gradient.norm() > 0.1


def test_neighbours_are_chosen_in_float32() -> None:
    features = draw(256, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(koleo(features), KoLeo()(features))
        under_autocast = koleo(features)
    assert torch.equal(under_autocast, koleo(features))
    assert koleo(features.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(koleo(features.bfloat16()), koleo(features.bfloat16().float()))


def test_what_has_no_neighbour_is_refused() -> None:
    for features, kind, message in [
        (draw(1, 5), ValueError, r"one is its own neighbour: got features of shape \(1, 5\)"),
        (draw(2, 3, 5), ValueError, r"features must have axes \(b d\), got shape \(2, 3, 5\)"),
        (torch.ones(3, 5, dtype=torch.int64), TypeError, "features must be floats, got torch.int64"),
        ([[1.0]], TypeError, "features must be a tensor"),
    ]:
        with pytest.raises(kind, match=message):
            koleo(features)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"koleo must be in 0 .*, got {weight}"):
            SelfDistillation(DINOLoss(24), weight)
    with pytest.raises(ValueError, match="koleo_at must be 'features' or 'bottleneck', got 'head'"):
        SelfDistillation(DINOLoss(24), 0.1, "head")


# ---- in the objective --------------------------------------------------------------------------------------


def by_hand(model: DINO, crops: list[Tensor], koleo_at: str) -> tuple[float, float]:
    """The paper's loss from backbone, head and slow loops, and KoLeo of both global crops."""
    features = torch.stack([model.student.backbone(crop) for crop in crops])
    bottleneck = model.student.head.mlp(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    student = model.student.head(features)
    teacher = model.teacher.head(torch.cat([model.teacher.backbone(crop) for crop in crops[:2]]))
    paper, _ = slow_view_loss(student.tolist(), teacher.unflatten(0, (2, -1)).tolist(), 24 * [0.0])
    rows = {"features": features, "bottleneck": bottleneck}[koleo_at]
    return paper, slow_koleo(rows[0]) + slow_koleo(rows[1])


def clear_case() -> tuple[DINO, list[Tensor]]:
    """A model whose weights show mistakes, the teacher's others than the student's, and crops."""
    model = small_dino()
    randomise(model.student, seed=1)
    randomise(model.teacher, seed=2)
    return model, [(1 + view) * crop for view, crop in enumerate(crops_of(b=6))]


@pytest.mark.parametrize("koleo_at", ["features", "bottleneck"])
def test_it_adds_koleo_of_both_global_crops(koleo_at: str) -> None:
    model, crops = clear_case()
    paper, term = by_hand(model, crops, koleo_at)
    value, numbers = SelfDistillation(DINOLoss(24), 3.0, koleo_at)(model, crops)
    assert value.item() == pytest.approx(paper + 3 * term, rel=1e-5)
    assert set(numbers) == {"entropy", "kl", "koleo"}
    assert numbers["koleo"].item() == pytest.approx(term, rel=1e-5)
    assert not any(number.requires_grad for number in numbers.values())
    torch.testing.assert_close(numbers["entropy"] + numbers["kl"], DINOLoss(24)(*model(crops)))
    other = by_hand(model, crops, {"features": "bottleneck", "bottleneck": "features"}[koleo_at])[1]
    assert abs(other - term) > DIFFERENT * abs(term)


def test_koleo_of_other_rows_is_another_number() -> None:
    """Of the crops together, of the local ones too, of the teacher, of the mean: what the test above sees."""
    model, crops = clear_case()
    wanted = by_hand(model, crops, "features")[1]
    of_student = [model.student.backbone(crop) for crop in crops]
    of_teacher = [model.teacher.backbone(crop) for crop in crops]
    for name, mistake in {
        "both crops at once": 2 * slow_koleo(torch.cat(of_student[:2])),
        "local crops too": sum(map(slow_koleo, of_student)),
        "the teacher": sum(map(slow_koleo, of_teacher[:2])),
        "one crop": slow_koleo(of_student[0]),
        "the mean": sum(map(slow_koleo, of_student[:2])) / 2,
        "pictures and views exchanged": sum(
            map(slow_koleo, torch.cat(of_student).unflatten(0, (-1, 4)).unbind(1)[:2])
        ),
    }.items():
        error = abs(mistake - wanted) / abs(wanted)
        print(f"{name}: {error:.3g}")
        assert error > DIFFERENT, name


def test_default_place_is_the_published_one() -> None:
    model, crops = clear_case()
    assert torch.equal(
        SelfDistillation(DINOLoss(24), 0.1)(model, crops)[0],
        SelfDistillation(DINOLoss(24), 0.1, "features")(model, crops)[0],
    )


@pytest.mark.parametrize("koleo_at", ["features", "bottleneck"])
def test_its_gradient_reaches_what_made_the_rows_and_no_prototype(koleo_at: str) -> None:
    model, crops = clear_case()
    found = {}
    for weight in (0.0, 1.0):
        model.zero_grad()
        SelfDistillation(DINOLoss(24), weight, koleo_at)(model, crops)[0].backward()
        found[weight] = {name: parameter.grad.clone() for name, parameter in model.student.named_parameters()}
    moved = {name for name in found[0.0] if relative_error(found[1.0][name], found[0.0][name]) > DIFFERENT}
    assert {"backbone.cls_token", "backbone.patch_embed.proj.weight"} <= moved
    assert ("head.mlp.0.weight" in moved) == (koleo_at == "bottleneck")
    assert not any("prototypes" in name for name in moved)


def test_no_koleo_is_the_paper_s_loss_bit_by_bit() -> None:
    model, crops = clear_case()
    for objective in (SelfDistillation(DINOLoss(24)), SelfDistillation(DINOLoss(24), koleo=0)):
        value, numbers = objective(model, crops)
        wanted, of_loss = DINOLoss(24).with_numbers(*model(crops))
        assert torch.equal(value, wanted) and numbers == of_loss and set(numbers) == {"entropy", "kl"}


def test_a_refused_call_leaves_the_center_where_it_was() -> None:
    model, loss = small_dino(), DINOLoss(24)
    with pytest.raises(ValueError, match="one is its own neighbour"):
        SelfDistillation(loss, koleo=1.0)(model, crops_of(b=1))
    assert not loss.center.any()


def test_recording_leaves_nothing_on_the_model() -> None:
    """Also where the model refuses its crops halfway; a hook that stayed could not be pickled."""
    model, objective = small_dino(), SelfDistillation(DINOLoss(24), koleo=1.0)
    objective(model, crops_of())
    pickle.dumps(model)
    with pytest.raises(ValueError, match="refuses crops of 10 × 10"):
        objective(model, crops_of((16, 16, 10)))
    pickle.dumps(model)


def test_a_model_in_a_wrapper_is_found() -> None:
    """As in DistributedDataParallel."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, crops: list[Tensor]) -> object:
            return self.module(crops)

    model, crops = clear_case()
    wanted, _ = SelfDistillation(DINOLoss(24), 1.0)(model, crops)
    assert torch.equal(SelfDistillation(DINOLoss(24), 1.0)(Wrapper(model), crops)[0], wanted)


def test_a_loss_that_is_not_for_the_model_is_refused() -> None:
    torch.manual_seed(0)
    dino_model, es_vit = small_dino(), EsViT(small_vit(), **HEAD)
    with pytest.raises(TypeError, match="loss must be a DINOLoss or an EsViTLoss, got MSELoss"):
        SelfDistillation(nn.MSELoss())
    with pytest.raises(TypeError, match="loss must be a DINOLoss or an EsViTLoss, got <function dino_loss"):
        SelfDistillation(dino_loss)
    for weight in (0.0, 1.0):
        with pytest.raises(TypeError, match="student must be a tensor .*, got ViewsAndRegions"):
            SelfDistillation(DINOLoss(24), weight)(es_vit, crops_of())
        with pytest.raises(TypeError, match="must be the ViewsAndRegions of an EsViT, got Tensor"):
            SelfDistillation(EsViTLoss(24), weight)(dino_model, crops_of())
    with pytest.raises(TypeError, match="koleo is of the student of a DINO, got ViT"):
        SelfDistillation(DINOLoss(24), koleo=1.0)(small_vit(), crops_of())
