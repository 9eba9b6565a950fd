"""EsViT trains: any backbone, both heads kept apart, both losses on schedule, a stop that changes nothing."""

import copy
import math
from pathlib import Path

import pytest
import torch
from support.regions import clear_case, small_es_vit
from support.unlabelled import (
    BACKBONES,
    HEAD,
    SMALL,
    crops_of,
    draw,
    same,
    slow_uniformity,
    stop_and_resume,
    train,
)
from torch import Tensor

from vit_course import dino
from vit_course.dino import DINOSchedule, MultiCrop, SelfDistillation, uniformity
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.lab.parity import DIFFERENT, relative_error
from vit_course.training import fit
from vit_course.vit import ViT

# ---- keeping pictures and regions apart --------------------------------------------------------------------


def directions_of(model: EsViT, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the student's heads compare with their prototypes: of views (v, b, d), of all regions (n, d)."""
    backbone = model.student.backbone
    pooled = torch.stack([backbone(crop) for crop in crops])
    patches = [backbone.forward_features(crop)[:, backbone.num_prefix_tokens :] for crop in crops]
    of_views = model.student.head.mlp(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
    return of_views, model.student.region_head.mlp(torch.cat([view.flatten(0, 1) for view in patches]))


@pytest.mark.parametrize("prefix_tokens", [0, 1])
def test_spread_adds_the_mean_uniformity_of_both_heads(prefix_tokens: int) -> None:
    """That of views view by view, that of all regions at once; the paper's loss and its numbers stay."""
    model, loss, (crops, *_) = clear_case(prefix_tokens)
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


def test_spread_is_of_at_most_1024_regions_of_every_view_and_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops, given = small_es_vit(), crops_of((16, 16, 8), b=40), []
    monkeypatch.setattr(dino, "uniformity", lambda rows: given.append(rows) or uniformity(rows))
    SelfDistillation(EsViTLoss(24), spread=1.0)(model, crops)
    of_views, of_regions = directions_of(model, crops)
    torch.testing.assert_close(given[0], of_views)
    assert given[1].shape[0] == 1 and 512 < given[1].shape[1] <= 1024 < len(of_regions) == 40 * (16 + 16 + 4)
    distances, places = torch.cdist(given[1][0], of_regions).min(dim=1)
    assert distances.max() < 1e-3 and len(places.unique()) == given[1].shape[1]
    pictures = torch.cat([torch.arange(40 * t) // t + 40 * view for view, t in enumerate((16, 16, 4))])
    assert len(pictures[places].unique()) == 3 * 40
    assert len((places[places < 2 * 40 * 16] % 16).unique()) == 16  # and every place of the global views


def test_spread_reaches_both_heads_and_the_backbone_and_no_prototype() -> None:
    model, loss, (crops, *_) = clear_case()
    found = []
    for spread in (0.0, 3.0):
        model.zero_grad()
        SelfDistillation(copy.deepcopy(loss), spread)(model, crops)[0].backward()
        found.append({name: parameter.grad for name, parameter in model.student.named_parameters()})
    moved = {name for name in found[0] if relative_error(found[1][name], found[0][name]) > DIFFERENT}
    bottlenecks = {f"{head}.mlp.{layer}.weight" for head in ("head", "region_head") for layer in (0, 2, 4)}
    assert bottlenecks | {"backbone.cls_token", "backbone.patch_embed.proj.weight"} <= moved
    assert not any("prototypes" in name for name in moved)


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
