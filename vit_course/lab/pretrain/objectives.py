"""What a backbone can be trained by on photographs: each objective with its model, loss, views and rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.dino import DINO, DINOLoss, DINOSchedule, SelfDistillation
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.mpp import MPP

from ..data import MEAN, STD, PhotoCrops, PhotoView
from .form import Form
from .settings import Pretraining
from .views import OneView


@dataclass(frozen=True)
class Experiment:
    """What `fit` needs.

    Args:
        model: what is trained.
        kept: the part of it to keep.
        loss: of the model and a batch.
        views: makes views of a photograph, a PhotoCrops or OneView.
        lr: highest learning rate.
        callbacks: of `fit`.
    """

    model: nn.Module
    kept: Any
    loss: Callable
    views: Any
    lr: float
    callbacks: Sequence[Any] = ()


@dataclass(frozen=True)
class Objective:
    """What a backbone can be trained by.

    Args:
        prepare: makes the experiment of settings, a form and the number of classes.
        name: what the catalogue calls it, in whose rows a model can have a reservation about it.
        has_labels: whether it needs labels.
        pool: which features are its; None for the class token where there is one.
    """

    prepare: Callable[[Pretraining, Form, int], Experiment]
    name: str
    has_labels: bool = False
    pool: str | None = None


def _rate(settings: Pretraining, of_256: float) -> float:
    """The learning rate: that of the settings, or the one for batches of 256 scaled to the batch."""
    return of_256 * settings.batch / 256 if settings.lr is None else settings.lr


def _self_distillation(
    settings: Pretraining, form: Form, model_kind: type[DINO], loss_kind: type[nn.Module]
) -> Experiment:
    widths = (
        {"out_dim": 65536} if form.is_published else {"out_dim": 512, "hidden_dim": 256, "bottleneck_dim": 32}
    )
    if settings.prototypes is not None:
        widths["out_dim"] = settings.prototypes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        model = model_kind(form.build(0, settings.seed), **widths, batch_norm=settings.head_batch_norm)
    loss = loss_kind(widths["out_dim"], teacher_temp=settings.teacher_temp[0], centring=settings.centring)
    crops = PhotoCrops(
        form.image_size,
        settings.local_size or form.local_size(),
        settings.local_crops,
        global_scale=(0.4, 1.0) if settings.local_crops else (0.14, 1.0),  # as the authors advise
    )
    lr = _rate(settings, 5e-4)
    schedule = DINOSchedule(lr=lr, momentum=settings.momentum, teacher_temp=settings.teacher_temp)
    return Experiment(model, model.backbone, SelfDistillation(loss, settings.koleo), crops, lr, [schedule])


def _dino(settings: Pretraining, form: Form, classes: int) -> Experiment:
    return _self_distillation(settings, form, DINO, DINOLoss)


def _es_vit(settings: Pretraining, form: Form, classes: int) -> Experiment:
    return _self_distillation(settings, form, EsViT, EsViTLoss)


def _colour_of_images(model: nn.Module, images: Tensor) -> Tensor:
    """MPP's loss."""
    return model(images)


def _mpp(settings: Pretraining, form: Form, classes: int) -> Experiment:
    backbone = form.build(0, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        model = MPP(backbone, mean=MEAN, std=STD)
    views = OneView(PhotoView(form.image_size, (0.25, 1.0), jitter=0.0, grey=0.0))
    return Experiment(model, backbone, _colour_of_images, views, _rate(settings, 1e-3))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """With label smoothing of 0.1; the mean over the heads of a model that has several in training."""
    images, labels = batch
    answers = model(images)
    heads = answers if isinstance(answers, tuple) else (answers,)
    return torch.stack([F.cross_entropy(logits, labels, label_smoothing=0.1) for logits in heads]).mean()


def _supervised(settings: Pretraining, form: Form, classes: int) -> Experiment:
    model = form.build(classes, settings.seed)
    view = PhotoView(form.image_size, (0.25, 1.0), grey=0.0, strength=(0.4, 0.4, 0.4, 0.0))
    return Experiment(model, model, cross_entropy, OneView(view), _rate(settings, 1e-3))


# Those of the catalogue, but for distillation, which needs a trained teacher; and training with labels.
OBJECTIVES = {
    "dino": Objective(_dino, "DINO"),
    "es_vit": Objective(_es_vit, "EsViT"),
    "mpp": Objective(_mpp, "MPP", pool="mean"),
    "supervised": Objective(_supervised, "supervised", has_labels=True),
}
