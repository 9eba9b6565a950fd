"""A small experiment for every objective and every small model of the catalogue."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from support.models import cases
from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.distillation import DistillationLoss
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.lab import catalogue
from vit_course.lab.catalogue import Reservation
from vit_course.lab.data import MEAN, STD, normalise
from vit_course.mpp import MPP

HEADS = {"out_dim": 24, "hidden_dim": 20, "bottleneck_dim": 12}
# Self-distillation of this one is with KoLeo, as DINOv2's; of the others as DINO's.
WITH_KOLEO = "ViT"

Pair = tuple[str, str]


@dataclass
class Experiment:
    """What `fit` needs to train one backbone by one objective.

    Args:
        model: with `backbone`, the part that is trained, somewhere in it.
        loss: of a model and a batch.
        views: makes a batch of images and a generator.
        student: what learns.
        teacher: what is not trained but may follow.
        schedules: more arguments of `fit`.
    """

    model: nn.Module
    loss: Callable
    views: Callable[[Tensor, torch.Generator], object]
    student: nn.Module
    teacher: nn.Module | None = None
    schedules: dict = field(default_factory=dict)


def self_distillation(name: str, model: DINO, loss: nn.Module, steps: int) -> Experiment:
    loss = SelfDistillation(loss, 0.1 if name == WITH_KOLEO else 0.0)
    schedules = {"callbacks": [DINOSchedule(lr=3e-3, momentum=0.9, frozen=0.0)]}
    local_size = cases()[name].local_size if name in cases() else 8
    crop = MultiCrop(16, local_size, 1, rotation=180.0)
    return Experiment(model, loss, crop, model.student, model.teacher, schedules)


def dino(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    return self_distillation(name, DINO(build(0), **HEADS, batch_norm=True), DINOLoss(24), steps)


def es_vit(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    return self_distillation(name, EsViT(build(0), **HEADS, batch_norm=True), EsViTLoss(24), steps)


def distillation(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    teacher = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5))
    model, loss = build(5), DistillationLoss(teacher, "soft", alpha=0.5)

    def views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images, torch.arange(len(images)) % 5

    return Experiment(model, loss, views, model, loss.teacher, {"lr": 3e-3})


def mpp(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    model = MPP(build(0), mean=MEAN, std=STD)

    def views(images: Tensor, generator: torch.Generator) -> Tensor:
        return normalise(images.sigmoid())

    return Experiment(model, lambda model, images: model(images), views, model, schedules={"lr": 3e-3})


RECIPES: dict[str, Callable[..., Experiment]] = {
    "distillation": distillation,
    "DINO": dino,
    "EsViT": es_vit,
    "MPP": mpp,
}


def pairs() -> list[Pair]:
    """Every objective of the catalogue with every small model, those of other libraries last."""
    names = [*cases(), *catalogue.FOREIGN]
    return [(objective, name) for objective in catalogue.OBJECTIVES for name in names]


def reservation(pair: Pair) -> Reservation | None:
    """What the catalogue says of the pair, if anything."""
    objective, name = pair
    case = cases().get(name)
    return case.row.reservations.get(objective) if case else None


def prepare(objective: str, name: str, steps: int, dropout: float = 0.0, seed: int = 0) -> Experiment:
    """A small experiment, its weights drawn from the seed.

    Args:
        objective, name: one of `pairs`.
        steps: how many the schedules are made for.
        dropout: of the backbone, where it has any.
        seed: decides the weights.
    """
    torch.manual_seed(seed)
    case = cases().get(name)
    make = case.build if case else catalogue.FOREIGN[name]
    dropouts = {"dropout": dropout} if case is None or "dropout" in case.row.dropouts else {}

    def build(num_classes: int) -> nn.Module:
        return make(num_classes=num_classes, **dropouts)

    return RECIPES[objective](name, build, steps)
