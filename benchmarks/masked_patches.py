"""The long table of lesson 12: what masked patch prediction is worth where few digits have labels.

    python benchmarks/masked_patches.py [--fresh] [--seeds 5 6 7 8 9]

A network learns from all training digits without labels, and then from a few with them; beside it the same
network from scratch, with as many steps or as much time. The recipe was chosen on 360 training digits set
aside; the table is measured on the test digits.
"""

import copy
import time
from dataclasses import dataclass
from functools import cache
from statistics import mean

import torch
import torch.nn.functional as F
from tables import Table, command
from torch import Tensor, nn

from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.lab.data import MEAN, STD, ImageSet, digits, normalise
from vit_course.mpp import MPP
from vit_course.training import augment, evaluate, fit
from vit_course.vit import SimpleViT

SEEDS = (5, 6, 7, 8, 9)  # which no choice has seen
LABELS = (30, 60, 120, 240)
SIZES = dict(image_size=8, patch_size=2, channels=1, num_classes=10, dim=32, depth=3, heads=2, mlp_dim=64)
PRETRAINING, FINE_TUNING = 3000, 200  # steps
# From scratch in the time of both: a step of pre-training takes as long as 1.03 of the other kind.
EQUAL_TIME = 3300


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (b, 1, 8, 8), slightly turned and cropped, normalised."""
    return augment(normalise(images), scale=(0.7, 1.0), rotation=15, flip=False, generator=generator)


def few_digits(labels: int, seed: int) -> ImageSet:
    """So many of the training digits, drawn by the seed; fewer of them are the first of more."""
    everything = digits("train")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    return everything[order[:labels]]


def network(seed: int) -> SimpleViT:
    """The network from scratch; of one seed it has the same weights for every row."""
    torch.manual_seed(seed)
    return SimpleViT(**SIZES)


@cache
def pretrained(steps: int, batch: int, lr: float, seed: int) -> tuple[SimpleViT, dict[str, float]]:
    """A network that learned to predict hidden patches of all training digits, and what that took.

    Args:
        steps, batch, lr: of the training.
        seed: decides weights, images and masks.

    Returns:
        The network; the process time, "pretraining_core_s", and the last "pretraining_loss".
    """
    everything = digits("train")
    model = MPP(network(seed), channels=1, mean=MEAN, std=STD)
    start = time.process_time()
    history = fit(
        model,
        lambda generator: varied(everything.sample(batch, generator)[0], generator),
        lambda model, images: model(images),
        steps,
        lr=lr,
        seed=seed,
        progress=False,
    )
    cost = {"pretraining_core_s": time.process_time() - start}
    return model.backbone, cost | {"pretraining_loss": mean(history["loss"][-50:])}


def frozen_accuracy(backbone: nn.Module, few: ImageSet) -> float:
    """The share of the test digits that a linear layer on frozen features names, taught by a few digits."""
    known, queries = (extract_features(backbone, normalise(of.images)) for of in (few, digits("test")))
    return linear_probe(known, few.labels, queries, digits("test").labels)


@dataclass(frozen=True)
class FineTuning:
    """A network that learns from a few labelled digits, after so many steps of pre-training; 0 for none."""

    name: str
    labels: int
    pretraining: int = 0
    steps: int = FINE_TUNING
    batch: int = 64
    lr: float = 5e-3
    pretraining_lr: float = 4e-3
    data: str = "digits"

    def run(self, seed: int) -> dict[str, float]:
        """Pre-train, fine-tune and test; the numbers of the pre-training are called pretraining_…"""
        model, cost, few = network(seed), {}, few_digits(self.labels, seed)
        if self.pretraining:
            backbone, cost = pretrained(self.pretraining, self.batch, self.pretraining_lr, seed)
            model = copy.deepcopy(backbone)
        frozen = frozen_accuracy(model, few)

        def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            images, labels = few.sample(self.batch, generator)
            return varied(images, generator), labels

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        start = time.process_time()
        fit(model, batches, loss, self.steps, lr=self.lr, seed=seed, progress=False)
        core_s = time.process_time() - start
        test = digits("test").batches()
        accuracy = evaluate(model, ((normalise(images), labels) for images, labels in test))
        return {"accuracy": accuracy, "frozen": frozen, "core_s": core_s} | cost


@dataclass(frozen=True)
class Neighbour:
    """Each test digit gets the label of the nearest labelled one by the cosine of their pixels."""

    labels: int
    name: str = "nearest pixels"
    data: str = "digits"

    def run(self, seed: int) -> dict[str, float]:
        """Look up all test digits."""
        few, test = few_digits(self.labels, seed), digits("test")
        start = time.process_time()
        accuracy = knn_accuracy(few.images.flatten(1), few.labels, test.images.flatten(1), test.labels, k=1)
        return {"accuracy": accuracy, "core_s": time.process_time() - start}


TABLE = Table(
    "Handwritten digits, few of 1,437 with labels: masked patch prediction, then labels",
    several=(
        *(FineTuning("from scratch", labels) for labels in LABELS),
        *(FineTuning("after MPP", labels, PRETRAINING) for labels in LABELS),
        FineTuning("from scratch, equal time", 60, steps=EQUAL_TIME),
        *(Neighbour(labels) for labels in LABELS),
    ),
)


if __name__ == "__main__":
    command(TABLE, "masked_patches", SEEDS, "Compute the stored table of lesson 12.")
