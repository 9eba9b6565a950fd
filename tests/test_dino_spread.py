"""What keeps pictures apart: uniformity beside slow loops, and its place in the loss of SelfDistillation."""

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from support.unlabelled import HEAD, crops_of, draw, slow_uniformity, slow_view_loss, small_dino, small_vit
from torch import Tensor, nn

from vit_course import dino
from vit_course.dino import DINO, DINOLoss, SelfDistillation, dino_loss, uniformity
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.lab.parity import DIFFERENT, randomise


def apart(*shape: int) -> Tensor:
    """Features (v, b, d) of very different lengths; those of the first view lie close together, those of
    the last all around.
    """
    near = torch.linspace(4.0, 0.0, shape[0])[:, None, None]
    return (draw(*shape, seed=1) + near * draw(1, 1, shape[2], seed=2)) * draw(*shape[:2], 1, seed=3).exp()


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 2, 1), (2, 3, 4), (3, 8, 16), (4, 32, 12), (1, 40, 256)])
def test_uniformity_is_that_of_the_slow_loops(shape: tuple[int, int, int]) -> None:
    for dtype, tolerance in {torch.float64: 1e-12, torch.float32: 1e-6}.items():
        features = apart(*shape).to(dtype)
        assert abs(uniformity(features).item() - slow_uniformity(features)) <= tolerance


@pytest.mark.parametrize("degrees, wanted", [(0, 0.0), (60, -2.0), (90, -4.0), (180, -8.0)])
def test_uniformity_of_two_directions_is_known(degrees: float, wanted: float) -> None:
    """-2 · squared distance, and that is 2 - 2 cos of the angle."""
    angle = torch.tensor(math.radians(degrees))
    pair = torch.stack([torch.tensor([3.0, 0.0]), 0.2 * torch.stack([angle.cos(), angle.sin()])])
    assert uniformity(pair[None]).item() == pytest.approx(wanted, abs=1e-6)


def test_properties_of_uniformity() -> None:
    features = apart(3, 8, 5)
    value = uniformity(features)
    torch.testing.assert_close(uniformity(features * draw(3, 8, 1, seed=4).exp()), value)
    torch.testing.assert_close(uniformity(features.flip(1)), value)
    torch.testing.assert_close(uniformity(features @ torch.linalg.qr(draw(5, 5, seed=5)).Q), value)
    torch.testing.assert_close(torch.stack([uniformity(view[None]) for view in features]).mean(), value)
    assert uniformity(draw(2, 1, 16).expand(2, 8, 16)).item() == pytest.approx(0.0, abs=2e-6)
    assert uniformity(draw(1, 200, 1000)).item() == pytest.approx(-4.0, abs=0.02)


def test_uniformity_drives_points_apart_and_has_a_gradient_where_two_coincide() -> None:
    """The root in a distance has none there. Four points end as a tetrahedron: squared distances 8/3."""
    points = torch.eye(3)[None, [0, 0, 1, 2]]  # whole numbers: the distance is 0, not nearly 0
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(uniformity(points), points)
    assert gradient.isfinite().all() and gradient.norm() > 0.01
    with torch.no_grad():
        points += 0.01 * draw(1, 4, 3)
    optimizer = torch.optim.SGD([points], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        uniformity(points).backward()
        optimizer.step()
    assert uniformity(points).item() == pytest.approx(-2 * 8 / 3, abs=1e-3)
    together = torch.eye(3)[None, [0, 0, 0, 0]].requires_grad_()
    assert torch.autograd.grad(uniformity(together), together)[0].isfinite().all()


def test_uniformity_refuses_what_has_no_pairs() -> None:
    for features, kind, message in [
        (draw(2, 1, 5), ValueError, r"of pairs of images: got shape \(2, 1, 5\)"),
        (draw(4, 5), ValueError, r"features must have axes \(v b d\), got shape \(4, 5\)"),
        (torch.ones(2, 3, 5, dtype=torch.int64), TypeError, "features must be floats, got torch.int64"),
        ([[[1.0]]], TypeError, "features must be a tensor"),
    ]:
        with pytest.raises(kind, match=message):
            uniformity(features)
    for spread in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"spread must be in 0 .*, got {spread}"):
            SelfDistillation(DINOLoss(24), spread)


def spread_by_hand(model: DINO, crops: list[Tensor]) -> tuple[float, Tensor]:
    """The loss with spread=3 from backbone, head and slow loops; and the directions (v, b, d)."""
    features = torch.stack([model.student.backbone(crop) for crop in crops])
    directions = model.student.head.mlp(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    student = F.linear(
        F.normalize(directions, dim=-1), F.normalize(model.student.head.prototypes.weight, dim=-1)
    )
    teacher = model.teacher.head(torch.cat([model.teacher.backbone(crop) for crop in crops[:2]]))
    paper, _ = slow_view_loss(student.tolist(), teacher.unflatten(0, (2, -1)).tolist(), 24 * [0.0])
    return paper + 3 * slow_uniformity(directions), directions


def clear_case(batch_norm: bool = False) -> tuple[DINO, list[Tensor]]:
    """A model whose weights show mistakes, the teacher's others than the student's, and crops."""
    model = small_dino(batch_norm=batch_norm)
    randomise(model.student, seed=1)
    randomise(model.teacher, seed=2)
    return model, [(1 + view) * crop for view, crop in enumerate(crops_of(b=6))]


def test_a_refused_call_leaves_the_center_where_it_was() -> None:
    model, loss = small_dino(), DINOLoss(24)
    with pytest.raises(ValueError, match=r"of pairs of images: got shape \(4, 1, 12\)"):
        SelfDistillation(loss, spread=1.0)(model, crops_of(b=1))
    assert not loss.center.any()


def test_uniformity_of_bfloat16_is_summed_in_float32() -> None:
    features = draw(2, 6, 8).bfloat16()
    assert uniformity(features).dtype == torch.float32
    torch.testing.assert_close(uniformity(features), uniformity(features.float()))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_spread_adds_the_uniformity_of_the_student_s_directions(batch_norm: bool) -> None:
    model, crops = clear_case(batch_norm)
    wanted, directions = spread_by_hand(model, crops)
    value, numbers = SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert set(numbers) == {"entropy", "kl", "spread"}
    assert numbers["spread"].item() == pytest.approx(slow_uniformity(directions), rel=1e-5)
    assert not any(number.requires_grad for number in numbers.values())
    paper = DINOLoss(24)(*model(crops))
    torch.testing.assert_close(numbers["entropy"] + numbers["kl"], paper)


def squared_distances(features: Tensor) -> Tensor:
    """Of the directions of features (v, b, d), all pairs of a view: (v, pairs)."""
    return torch.stack([torch.pdist(F.normalize(view, dim=-1)) for view in features]).square()


def lengths_count(features: Tensor) -> Tensor:
    distances = torch.stack([torch.pdist(view) for view in features]).square()
    return (-2 * distances).exp().mean(dim=1).log().mean()


def all_views_at_once(features: Tensor) -> Tensor:
    return uniformity(features.flatten(0, 1)[None])


def one_log_for_all_views(features: Tensor) -> Tensor:
    return (-2 * squared_distances(features)).exp().mean().log()


def temperature_one(features: Tensor) -> Tensor:
    return (-squared_distances(features)).exp().mean(dim=1).log().mean()


def mean_of_logs(features: Tensor) -> Tensor:
    return -2 * squared_distances(features).mean()


def no_square(features: Tensor) -> Tensor:
    return (-2 * squared_distances(features).sqrt()).exp().mean(dim=1).log().mean()


def each_with_itself(features: Tensor) -> Tensor:
    directions = F.normalize(features, dim=-1)
    return (-2 * torch.cdist(directions, directions) ** 2).exp().mean(dim=(1, 2)).log().mean()


def sum_over_views(features: Tensor) -> Tensor:
    return features.shape[0] * uniformity(features)


def other_sign(features: Tensor) -> Tensor:
    return -uniformity(features)


OTHER_SPREADS = [
    lengths_count,
    all_views_at_once,
    one_log_for_all_views,
    temperature_one,
    mean_of_logs,
    no_square,
    each_with_itself,
    sum_over_views,
    other_sign,
]


@pytest.mark.parametrize("mutant", OTHER_SPREADS, ids=lambda mutant: mutant.__name__)
def test_the_slow_loops_see_another_spread(mutant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops = clear_case()
    wanted, _ = spread_by_hand(model, crops)
    monkeypatch.setattr(dino, "uniformity", mutant)
    error = abs(SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)[0].item() - wanted) / abs(wanted)
    print(f"{mutant.__name__}: {error:.3g}")
    assert error > DIFFERENT


@pytest.mark.parametrize(
    "place", ["student.backbone", "student.head", "student.head.mlp.2", "teacher.head.mlp"]
)
def test_the_slow_loops_see_directions_of_another_place(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def record_there(student: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
        made: list[Tensor] = []
        directions: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, given: tuple, output: Tensor) -> None:
            made.append(output)  # the backbone runs once for each size
            directions[student.head] = torch.cat(made)

        with model.get_submodule(place).register_forward_hook(keep):
            yield directions

    model, crops = clear_case()
    wanted, _ = spread_by_hand(model, crops)
    monkeypatch.setattr(dino, "_record_directions", record_there)
    error = abs(SelfDistillation(DINOLoss(24), spread=3.0)(model, crops)[0].item() - wanted) / abs(wanted)
    print(f"{place}: {error:.3g}")
    assert error > DIFFERENT


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def test_gradient_of_the_spread_reaches_the_backbone_and_no_prototype() -> None:
    """It is that of the formula written with distances, and no small part of the whole."""
    model, crops = clear_case()
    found = {}
    for spread in (0.0, 3.0):
        model.zero_grad()
        SelfDistillation(DINOLoss(24), spread)(model, crops)[0].backward()
        found[spread] = gradients(model.student.backbone), model.student.head.prototypes.weight.grad.clone()
    model.zero_grad()
    _, directions = spread_by_hand(model, crops)
    (-2 * squared_distances(directions)).exp().mean(dim=1).log().mean().mul(3).backward()
    own = gradients(model.student.backbone)
    torch.testing.assert_close(found[3.0][0] - found[0.0][0], own, rtol=1e-3, atol=1e-5)
    assert own.norm() > 0.05 * found[0.0][0].norm()
    assert torch.equal(found[3.0][1], found[0.0][1])


def test_no_spread_is_the_paper_s_loss_bit_by_bit() -> None:
    model, crops = clear_case()
    for objective in (SelfDistillation(DINOLoss(24)), SelfDistillation(DINOLoss(24), spread=0)):
        value, numbers = objective(model, crops)
        wanted, of_loss = DINOLoss(24).with_numbers(*model(crops))
        assert torch.equal(value, wanted) and numbers == of_loss and set(numbers) == {"entropy", "kl"}


def test_recording_leaves_nothing_on_the_model() -> None:
    """Also where the model refuses its crops halfway; a hook that stayed could not be pickled."""
    model, objective = small_dino(), SelfDistillation(DINOLoss(24), spread=1.0)
    objective(model, crops_of())
    pickle.dumps(model)
    with pytest.raises(ValueError, match="refuses crops of 10 × 10"):
        objective(model, crops_of((16, 16, 10)))
    pickle.dumps(model)


def test_a_loss_that_is_not_for_the_model_is_refused() -> None:
    torch.manual_seed(0)
    dino, es_vit = small_dino(), EsViT(small_vit(), **HEAD)
    with pytest.raises(TypeError, match="loss must be a DINOLoss or an EsViTLoss, got MSELoss"):
        SelfDistillation(nn.MSELoss())
    with pytest.raises(TypeError, match="loss must be a DINOLoss or an EsViTLoss, got <function dino_loss"):
        SelfDistillation(dino_loss)
    for spread in (0.0, 1.0):
        with pytest.raises(TypeError, match="student must be a tensor .*, got ViewsAndRegions"):
            SelfDistillation(DINOLoss(24), spread)(es_vit, crops_of())
        with pytest.raises(TypeError, match="must be the ViewsAndRegions of an EsViT, got Tensor"):
            SelfDistillation(EsViTLoss(24), spread)(dino, crops_of())
    with pytest.raises(TypeError, match="spread is of the heads of a DINO or an EsViT, got ViT"):
        SelfDistillation(DINOLoss(24), spread=1.0)(small_vit(), crops_of())
