"""One small experiment for each objective, in float64: what several processes, or several micro-batches, must
train as one process with whole batches does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.unlabelled import HEAD, draw, small_vit
from vit_course import mpp
from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.mpp import MPP, draw_corruption
from vit_course.training import fit

BATCH = 8
IMAGES = draw(32, 3, 16, 16).double()


@dataclass
class Experiment:
    """What `fit` needs, and what it gave.

    Args:
        model: in float64.
        batches: a function of a generator that draws the whole batch.
        loss: of the model and a batch.
        settings: more arguments of `fit`.
    """

    model: nn.Module
    batches: Callable[[torch.Generator], Any]
    loss: Callable
    settings: dict[str, Any] = field(default_factory=dict)

    def train(self, steps: int, run: Callable = fit, **changes: Any) -> dict[str, Any]:
        """Train, and return the history and all tensors of model and loss."""
        history = run(self.model, self.batches, self.loss, steps, progress=False, **self.settings | changes)
        state = {f"model {name}": tensor for name, tensor in self.model.state_dict().items()}
        if isinstance(self.loss, nn.Module):
            state |= {f"loss {name}": tensor for name, tensor in self.loss.state_dict().items()}
        return {"history": history, "state": state}


def drawn_images(generator: torch.Generator) -> Tensor:
    return IMAGES[torch.randint(len(IMAGES), (BATCH,), generator=generator)]


def drawn_crops(generator: torch.Generator) -> list[Tensor]:
    return MultiCrop(16, 8, 1, rotation=180.0)(drawn_images(generator), generator)


def self_distillation(model: DINO, loss: nn.Module) -> Experiment:
    schedule = DINOSchedule(lr=3e-3, momentum=0.9, frozen=0.2)
    return Experiment(model.double(), drawn_crops, SelfDistillation(loss).double(), {"callbacks": [schedule]})


def dino(centring: str) -> Experiment:
    return self_distillation(DINO(small_vit(), **HEAD), DINOLoss(HEAD["out_dim"], centring=centring))


def es_vit(centring: str) -> Experiment:
    return self_distillation(EsViT(small_vit(), **HEAD), EsViTLoss(HEAD["out_dim"], centring=centring))


def masked() -> Experiment:
    """MPP, with a corruption that is drawn for the whole batch and shared out like the images."""
    torch.manual_seed(0)
    model = MPP(small_vit()).double()

    def batches(generator: torch.Generator) -> tuple[Tensor, ...]:
        return drawn_images(generator).sigmoid(), *draw_corruption(BATCH, 16, generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, *corruption = batch
        with patch.object(mpp, "draw_corruption", lambda *size, **settings: mpp.Corruption(*corruption)):
            return model(images)

    return Experiment(model, batches, loss, {"lr": 3e-3})


def supervised() -> Experiment:
    """With a layer that no step uses: it gets no gradient, in one process or in several."""
    model = small_vit(num_classes=5).double()
    model.spare = nn.Linear(2, 2).double()

    def batches(generator: torch.Generator) -> dict[str, Tensor]:
        labels = torch.randint(5, (BATCH,), generator=generator)
        return {"images": drawn_images(generator), "labels": labels}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch["images"])
        return F.cross_entropy(logits, batch["labels"]), {"size": logits.detach().square().mean()}

    return Experiment(model, batches, loss, {"lr": 3e-3, "clip": 1.0})


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "DINO": lambda: dino("mean"),
    "DINO, Sinkhorn": lambda: dino("sinkhorn"),
    "EsViT": lambda: es_vit("mean"),
    "EsViT, Sinkhorn": lambda: es_vit("sinkhorn"),
    "MPP": masked,
    "supervised": supervised,
}


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest between two trainings: of losses, other numbers, weights and buffers such as centres.

    A bias of keys is left out. It adds the same to all scores of a query, so its gradient is zero but for
    rounding, and AdamW divides this by the root of its square.
    """
    assert one["history"].keys() == other["history"].keys() and one["state"].keys() == other["state"].keys()
    numbers = [
        abs(a - b)
        for name, row in one["history"].items()
        for a, b in zip(row, other["history"][name], strict=True)
    ]
    differences = {name: (other["state"][name] - tensor).abs() for name, tensor in one["state"].items()}
    tensors = [
        (d.unflatten(0, (3, -1))[[0, 2]] if name.endswith("qkv.bias") else d).max().item()
        for name, d in differences.items()
    ]
    return max(numbers + tensors)
