"""The whole of EsViT beside slow loops, token by token, and mistakes in it that those loops see."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.regions import clear_case, slow_region_loss
from support.unlabelled import slow_view_loss
from torch import Tensor, nn

from vit_course import es_vit
from vit_course.dino import DINOHead
from vit_course.es_vit import EsViT, EsViTLoss, best_match, region_loss
from vit_course.lab.parity import DIFFERENT, relative_error


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
        of_views, _ = slow_view_loss(student[0], teacher[0], centers[0].tolist())
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
    model, loss, steps = clear_case(prefix_tokens)
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
        patch.setattr(network, "features_and_regions", partial(features, network))


def views_only(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loss, "forward", lambda student, teacher: loss.view(student.views, teacher.views))


def parts_added(model: EsViT, loss: EsViTLoss, patch: pytest.MonkeyPatch) -> None:
    real = loss.with_numbers
    patch.setattr(loss, "with_numbers", lambda student, teacher: (2 * real(student, teacher)[0], {}))


MUTANTS = [
    normalised_over_tokens,
    match_of_unnormalised_features,
    match_over_the_student_s_regions,
    least_alike,
    one_shared_center,
    one_head_for_both,
    center_before_the_loss,
    center_that_rests,
    center_of_the_student,
    student_centred_too,
    temperatures_swapped,
    class_token_among_the_regions,
    views_only,
    parts_added,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_the_slow_loops_see_mistakes(mutate: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, steps = clear_case()
    wanted = slow_steps(model, loss, steps)
    mutate(model, loss, monkeypatch)
    error = largest_error(fast_steps(model, loss, steps), wanted)
    print(f"{mutate.__name__}: {error:.3g}")
    assert error > DIFFERENT
