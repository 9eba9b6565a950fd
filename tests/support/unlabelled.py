"""What the tests of learning without labels share: small models, random numbers, slow loops, short runs."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from support.models import CASES
from vit_course.dino import DINO, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.lab.catalogue import MODELS
from vit_course.lab.pretrained import adapt
from vit_course.training import fit
from vit_course.vit import ViT

SMALL = MODELS["ViT"].tiny | {"num_classes": 0}
HEAD = {"out_dim": 24, "hidden_dim": 20, "bottleneck_dim": 12}


# ---- small models and random numbers -----------------------------------------------------------------------


def small_vit(seed: int = 0, **changes: Any) -> ViT:
    torch.manual_seed(seed)
    return ViT(**SMALL | changes)


def small_dino(seed: int = 0, **changes: Any) -> DINO:
    return DINO(small_vit(seed), **HEAD | changes)


def small_timm_vit(**changes: Any) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return adapt(VisionTransformer(**sizes | changes))


# Every small form of the catalogue and timm's ViTs, and the side in pixels of a local crop that each takes.
BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (partial(case.build, num_classes=0), case.local_size) for name, case in CASES.items()},
    "timm's ViT": (small_timm_vit, 8),
    "timm's ViT with registers": (partial(small_timm_vit, reg_tokens=4), 8),
    "timm's ViT, averaged": (partial(small_timm_vit, class_token=False, global_pool="avg"), 8),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crops_of(sizes: tuple[int, ...] = (16, 16, 8, 8), b: int = 4, seed: int = 0) -> list[Tensor]:
    return [draw(b, 3, size, size, seed=seed + view) for view, size in enumerate(sizes)]


# Crops that no DINO and no EsViT takes, and what they say of them.
REFUSED_CROPS: list[tuple[object, type[Exception], str]] = [
    (crops_of((16,)), ValueError, "needs two global crops or more, got 1"),
    (
        crops_of((16, 16, 10)),
        ValueError,
        r"refuses crops of 10 × 10 pixels: image_size \(10, 10\) is not divisible by patch_size \(4, 4\)",
    ),
    (
        [draw(4, 3, 16, 16), draw(3, 3, 16, 16)],
        ValueError,
        r"views of the same images, got shapes \[\(4, 3, 16, 16\), \(3, 3, 16, 16\)\]",
    ),
    ([draw(4, 1, 16, 16)] * 2, ValueError, "must have 3 channels, got 1"),
    (draw(4, 3, 16, 16), TypeError, "must be a"),
    ([1, 2], TypeError, "must be a"),
    ([None, None], TypeError, "must be a"),
]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


# ---- formulas as loops over plain numbers ------------------------------------------------------------------


def log_softmax(logits: list[float], temperature: float) -> list[float]:
    scaled = [logit / temperature for logit in logits]
    largest = max(scaled)
    log_sum = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return [value - log_sum for value in scaled]


def cross_entropy(
    teacher: list[float],
    student: list[float],
    center: list[float],
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
) -> float:
    """Of the student's answer and the target that the teacher's logits make."""
    centred = [logit - middle for logit, middle in zip(teacher, center, strict=True)]
    target, answer = log_softmax(centred, teacher_temp), log_softmax(student, student_temp)
    return -sum(math.exp(log_q) * log_p for log_q, log_p in zip(target, answer, strict=True))


def slow_view_loss(student: list, teacher: list, center: list, *temperatures: float) -> tuple[float, int]:
    """DINO's equations 1 to 4: the loss of logits [view][picture][prototype], and how many pairs of views it
    is the mean of.
    """
    of_pairs = [
        sum(
            cross_entropy(target, answer, center, *temperatures)
            for target, answer in zip(teacher[i], student[v], strict=True)
        )
        / len(teacher[i])
        for i in range(len(teacher))
        for v in range(len(student))
        if v != i
    ]
    return sum(of_pairs) / len(of_pairs), len(of_pairs)


# ---- short runs --------------------------------------------------------------------------------------------


class AfterStep:
    """A callback of `fit` that calls a function with the number of each step."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def after_step(self, run: Any) -> None:
        self.function(run.step)


def small_batches() -> Callable[[torch.Generator], list[Tensor]]:
    """Batches for `fit`: two global and a local view of eight of 32 images, turned by any angle."""
    images, crop = draw(32, 3, 16, 16), MultiCrop(16, 8, 1, rotation=180.0)

    def batches(generator: torch.Generator) -> list[Tensor]:
        return crop(images[torch.randint(32, (8,), generator=generator)], generator)

    return batches


def train(
    model: DINO,
    loss: SelfDistillation,
    steps: int = 6,
    frozen: float = 0.3,
    after: Callable[[int], None] | None = None,
    **changes: Any,
) -> dict[str, list[float]]:
    """A short run with everything switched on: local crops, rotation, every schedule."""
    callbacks: list[Any] = [DINOSchedule(lr=3e-3, momentum=0.9, frozen=frozen)]
    if after:
        callbacks.append(AfterStep(after))
    return fit(model, small_batches(), loss, steps, progress=False, callbacks=callbacks, **changes)


def stop_and_resume(
    whole: Callable[..., tuple[DINO, SelfDistillation]], stop: int, path: Path
) -> tuple[DINO, SelfDistillation, dict[str, list[float]]]:
    """Train what `whole` makes, stop it after `stop` + 1 steps and resume it from its checkpoint in another
    model and random state.
    """

    class Stop(Exception):
        pass

    def stop_after(step: int) -> None:
        if step == stop + 1:
            raise Stop

    with pytest.raises(Stop):
        train(*whole(), checkpoint=path, checkpoint_every=1, after=stop_after)
    model, loss = whole(seed=9)
    torch.manual_seed(99)
    return model, loss, train(model, loss, checkpoint=path, resume=True)
