"""What the tests of learning without labels share: sizes, noise, slow loops, and a resumed run."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vit_course.dino import DINO, MultiCrop, SelfDistillation, dino_schedules
from vit_course.lab.catalogue import MODELS
from vit_course.training import fit

SMALL = MODELS["ViT"].tiny | {"num_classes": 0}
HEAD = {"out_dim": 24, "hidden_dim": 20, "bottleneck_dim": 12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crops_of(sizes: tuple[int, ...] = (16, 16, 8, 8), b: int = 4, seed: int = 0) -> list[Tensor]:
    return [draw(b, 3, size, size, seed=seed + view) for view, size in enumerate(sizes)]


def slow_uniformity(features: Tensor) -> float:
    """L_uniform with t = 2 for features (v, b, d), by loops over plain numbers of double precision.

    Source: Wang and Isola 2020.
    """
    of_views = []
    for view in features.detach().double().tolist():
        directions = [[number / math.hypot(*row) for number in row] for row in view]
        terms = [
            math.exp(-2 * math.dist(one, other) ** 2)
            for i, one in enumerate(directions)
            for j, other in enumerate(directions)
            if i != j
        ]
        of_views.append(math.log(sum(terms) / len(terms)))
    return sum(of_views) / len(of_views)


def log_softmax(logits: list[float], temperature: float) -> list[float]:
    scaled = [logit / temperature for logit in logits]
    largest = max(scaled)
    log_sum = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return [value - log_sum for value in scaled]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


def train(
    model: DINO,
    loss: SelfDistillation,
    steps: int = 6,
    frozen: float = 0.3,
    after: Callable[[int], None] | None = None,
    **changes,
) -> dict[str, list[float]]:
    """A short run with everything switched on: local crops, rotation, every schedule."""
    images, crop = draw(32, 3, 16, 16), MultiCrop(16, 8, 1, rotation=180.0)

    def batches(generator: torch.Generator) -> list[Tensor]:
        return crop(images[torch.randint(32, (8,), generator=generator)], generator)

    schedules = dino_schedules(model, loss, steps, lr=3e-3, momentum=0.9, frozen=frozen)
    if after:
        own = schedules["after_step"]
        schedules["after_step"] = lambda step: (own(step), after(step))
    return fit(model, batches, loss, steps, progress=False, **schedules | changes)


def stop_and_resume(
    whole: Callable[..., tuple[DINO, SelfDistillation]], stop: int, path: Path
) -> tuple[DINO, SelfDistillation, dict[str, list[float]]]:
    """Train what `whole` makes, stop it, and resume it in another model and random state.

    Args:
        whole: makes the model and the loss, from a seed.
        stop: the run stops after one step more.
        path: of the checkpoint.

    Returns:
        Model, loss and history of the resumed run.
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
