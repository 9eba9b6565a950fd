"""EsViT trains: any backbone, both heads kept apart, both losses on schedule, a stop that changes nothing."""

import copy
import math
from pathlib import Path

import pytest
import torch
from support.regions import clear_case
from support.unlabelled import (
    BACKBONES,
    HEAD,
    SMALL,
    draw,
    same,
    stop_and_resume,
    train,
)
from torch import Tensor

from vit_course.dino import DINOSchedule, KoLeo, MultiCrop, SelfDistillation, sinkhorn_knopp
from vit_course.es_vit import EsViT, EsViTLoss, ViewsAndRegions
from vit_course.lab.parity import DIFFERENT, relative_error
from vit_course.training import fit
from vit_course.vit import ViT

# ---- Sinkhorn and Knopp, and KoLeo -------------------------------------------------------------------------


def test_koleo_is_of_the_views_and_leaves_the_regions_head_alone() -> None:
    """Sum over the two global crops; the paper's loss and its numbers stay."""
    model, loss, (crops, *_) = clear_case()
    crops = [(1 + view) * crop for view, crop in enumerate(crops)]
    paper, of_paper = copy.deepcopy(loss).with_numbers(*model(crops))
    plain, of_plain = SelfDistillation(copy.deepcopy(loss))(model, crops)
    assert torch.equal(plain, paper) and of_plain == of_paper
    value, numbers = SelfDistillation(copy.deepcopy(loss), koleo=3.0)(model, crops)
    wanted = sum(KoLeo()(model.student.backbone(crop)).item() for crop in crops[:2])
    assert numbers.pop("koleo").item() == pytest.approx(wanted, rel=1e-5)
    assert value.item() == pytest.approx(paper.item() + 3 * wanted, rel=1e-5)
    assert numbers == of_paper

    found = []
    for weight in (0.0, 3.0):
        model.zero_grad()
        SelfDistillation(copy.deepcopy(loss), weight, "bottleneck")(model, crops)[0].backward()
        found.append({name: parameter.grad for name, parameter in model.student.named_parameters()})
    moved = {name for name in found[0] if relative_error(found[1][name], found[0][name]) > DIFFERENT}
    assert {"head.mlp.0.weight", "head.mlp.4.weight", "backbone.cls_token"} <= moved
    assert not any("prototypes" in name or "region_head" in name for name in moved)


def test_sinkhorn_is_over_all_views_and_over_all_regions() -> None:
    """In each part the loss of teacher logits whose softmax is those targets; no center moves."""
    model, _, (crops, *_) = clear_case()
    student, teacher = model(crops)
    loss = EsViTLoss(24, centring="sinkhorn")
    value, numbers = loss.with_numbers(student, teacher)
    assert not loss.view.center.any() and not loss.region.center.any()

    def with_targets(rows: Tensor) -> Tensor:
        return 0.04 * sinkhorn_knopp(rows, 0.04).log()

    views = with_targets(teacher.views.flatten(0, 1)).view_as(teacher.views)
    regions = [view.flatten(0, 1) for view in teacher.regions]
    together = with_targets(torch.cat(regions)).split([len(view) for view in regions])
    one_by_one = [with_targets(view) for view in regions]
    wanted, other = (
        EsViTLoss(24)(
            student,
            ViewsAndRegions(
                views,
                [view.view_as(old) for view, old in zip(targets, teacher.regions, strict=True)],
                teacher.features,
            ),
        )
        for targets in (together, one_by_one)
    )
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert abs(other - wanted) > DIFFERENT * wanted
    total = numbers["entropy"] + numbers["kl"] + numbers["region_entropy"] + numbers["region_kl"]
    assert total.item() / 2 == pytest.approx(value.item(), rel=1e-5)


# ---- training, checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_learns(name: str, tmp_path: Path) -> None:
    """Three steps with local crops: every weight of the student is reached, the teacher follows, and both
    come back from the checkpoint.
    """
    torch.manual_seed(0)
    build, local_size = BACKBONES[name]
    model, loss = EsViT(build(), **HEAD, batch_norm=True), SelfDistillation(EsViTLoss(24))
    crop, images = MultiCrop(16, local_size, 2, rotation=180.0), draw(8, 3, 16, 16)
    features = model.backbone.forward_features(images)
    regions = model.eval()([images, images])[0].regions[0].shape[1]
    assert regions == (math.prod(model.backbone.grid) if features.ndim == 3 else features[0, 0].numel())
    before, path = copy.deepcopy(model), tmp_path / "run.pt"
    schedule = DINOSchedule(momentum=0.5, frozen=0.0)
    history = fit(
        model,
        lambda generator: crop(images, generator),
        loss,
        3,
        callbacks=[schedule],
        checkpoint=path,
        progress=False,
    )
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
    return model, SelfDistillation(EsViTLoss(24), koleo=1.0)


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
    assert again == history and "koleo" in history
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
