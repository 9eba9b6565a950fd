"""The long table of lesson 09: what a network's features are worth, protocol by protocol (`make results`).

    python benchmarks/evaluation.py [--fresh] [--seeds 0 1 2 3 4]

A network of the zoo learned from scenes of 64 × 64 pixels with light objects; it is asked about scenes of
32 × 32 pixels of the hard level. A seed means other labelled scenes, another head and other batches. Rates
were chosen with seeds from 90 on and other test scenes.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from tables import UNSEEN, Table, command
from torch import Tensor, nn

from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.lab import zoo
from vit_course.lab.data import ImageSet, normalise, shapes
from vit_course.training import augment, evaluate, fit

SEEDS = (0, 1, 2, 3, 4)
FEW, MANY = 50, 1000
NETWORK = "scenes-vit"
LEVEL = "hard"


@cache
def labelled(seed: int) -> ImageSet:
    """The scenes whose labels may be used, of which a row takes the first so many."""
    return shapes(LEVEL, "train", MANY, seed=seed)


@cache
def unseen() -> ImageSet:
    """The scenes that the table is measured on."""
    return shapes(LEVEL, "test", 1_000, seed=UNSEEN)


@cache
def features(kind: str, seed: int | None) -> Tensor:
    """Features of the labelled scenes of a seed, or of the unseen ones for None.

    Args:
        kind: 'grey pixels', 'trained' or 'untrained'; of networks the class tokens of the last four blocks.
        seed: of the labelled scenes.
    """
    images = (unseen() if seed is None else labelled(seed)).images
    if kind == "grey pixels":
        grey = images.mean(dim=1).flatten(1)
        return grey - grey.mean(dim=1, keepdim=True)
    network: Any = zoo.load(NETWORK) if kind == "trained" else zoo.untrained(NETWORK)
    return extract_features(network, normalise(images), layers=4)


def trained_on(network: Any, scenes: ImageSet, steps: int, lr: float, seed: int) -> float:
    """The share of unseen scenes that a network names once it has been trained, with a fresh head."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = scenes.sample(32, generator)
        return augment(normalise(images), scale=(0.8, 1.0), rotation=180, generator=generator), labels

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    torch.manual_seed(seed)
    network.head = nn.Linear(network.num_features, len(scenes.classes))
    fit(network, draw, loss, steps, lr=lr, seed=seed, progress=False)
    return evaluate(network, ((normalise(images), labels) for images, labels in unseen().batches()))


@dataclass(frozen=True)
class Protocol:
    """One way to use a network with so many labels, spelled out.

    Attributes:
        name: of the row; `labels` is the number of labelled scenes.
        how: 'neighbours', 'linear', 'head' (the head alone is trained by steps), 'all' (everything is).
        of: whose features, as for `features`.
        layers: of how many last blocks the class tokens are read, where steps train nothing.
        steps, lr: of the training, where there is one.
    """

    name: str
    labels: int
    how: str
    of: str = "trained"
    layers: int = 1
    steps: int = 0
    lr: float = 0.0
    network: str = NETWORK
    data: str = LEVEL

    def run(self, seed: int) -> dict[str, float]:
        """Use the first labelled scenes of this seed, and test."""
        start = time.process_time()
        scenes = labelled(seed)[: self.labels]
        if self.how in ("head", "all"):
            network = zoo.load(NETWORK) if self.of == "trained" else zoo.untrained(NETWORK, seed)
            network.requires_grad_(self.how == "all")
            accuracy = trained_on(network, scenes, self.steps, self.lr, seed)
        else:
            known, queries = features(self.of, seed)[: self.labels], features(self.of, None)
            if self.of != "grey pixels":
                width = 64 * self.layers  # the last block stands last
                known, queries = known[:, -width:], queries[:, -width:]
            measure = knn_accuracy if self.how == "neighbours" else linear_probe
            accuracy = measure(known, scenes.labels, queries, unseen().labels)
        return {"accuracy": accuracy, "core_s": time.process_time() - start}


def _both(name: str, how: str, **options: Any) -> tuple[Protocol, ...]:
    """A protocol with few and with many labels."""
    return tuple(Protocol(f"{name}, {n} labels", n, how, **options) for n in (FEW, MANY))


TABLE = Table(
    "Hard scenes of 32 × 32 pixels, 50 and 1,000 with labels: what the features of scenes-vit are worth",
    several=(
        *_both("grey pixels, neighbours", "neighbours", of="grey pixels"),
        *_both("untrained, linear probe", "linear", of="untrained"),
        *_both("neighbours", "neighbours"),
        *_both("linear probe", "linear"),
        *_both("linear probe, four blocks", "linear", layers=4),
        *_both("head alone, augmented", "head", steps=100, lr=3e-2),
        *_both("fine-tuning", "all", steps=100, lr=1e-3),
        Protocol(f"from scratch, {MANY} labels", MANY, "all", of="untrained", steps=100, lr=2e-3),
    ),
)


if __name__ == "__main__":
    command(TABLE, "evaluation", SEEDS, "Compute the stored table of lesson 09.")
