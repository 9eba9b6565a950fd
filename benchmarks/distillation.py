"""The long table of lesson 08: what a teacher is worth where few digits have labels (`make results`).

    python benchmarks/distillation.py [--fresh] [--seeds 0 1 2 3 4]

Each row changes one thing from a row above it. Its recipe was chosen on 300 training digits set aside; the
table is measured on the test digits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from tables import Table, command
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vit_course.distillation import DistillationLoss, DistilledViT
from vit_course.lab.data import ImageSet, digits, normalise
from vit_course.training import augment, evaluate, fit
from vit_course.vit import ViT

SEEDS = (0, 1, 2, 3, 4)
STUDENT = dict(image_size=8, patch_size=2, channels=1, num_classes=10, dim=32, depth=3, heads=2, mlp_dim=64)
Batch = tuple[Tensor, Tensor]
Batches = Callable[[torch.Generator], Batch]


def batches_of(labelled: ImageSet, unlabelled: ImageSet | None = None, size: int = 64) -> Batches:
    """A function that draws a batch: of the labelled digits, or half of them and half without labels."""

    def draw(generator: torch.Generator) -> Batch:
        images, labels = labelled.sample(size if unlabelled is None else size // 2, generator)
        if unlabelled is not None:
            more, _ = unlabelled.sample(size - len(images), generator)
            images, labels = torch.cat([images, more]), torch.cat([labels, torch.full((len(more),), -100)])
        images = augment(normalise(images), scale=(0.7, 1.0), rotation=15, flip=False, generator=generator)
        return images, labels

    return draw


def from_labels(model: nn.Module, batch: Batch) -> Tensor:
    """The loss without a teacher; a model with two heads shows both to the labels."""
    logits = model(batch[0])
    heads = logits if isinstance(logits, tuple) else (logits,)
    return sum(F.cross_entropy(head, batch[1]) for head in heads) / len(heads)


def cnn() -> nn.Module:
    """Four convolutions with BatchNorm and ReLU, the mean over the picture, one linear layer."""
    widths = [(1, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2)]
    layers = [Conv2dNormActivation(before, after, stride=stride) for before, after, stride in widths]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@cache
def teacher(kind: str, labels: int, seed: int) -> nn.Module:
    """A teacher of this kind, 'CNN' or 'ViT', that learned from so many labelled digits."""
    torch.manual_seed(seed)
    model = cnn() if kind == "CNN" else ViT(**STUDENT)
    steps, lr = (300, 1e-2) if kind == "CNN" else (400, 5e-3)
    fit(model, batches_of(digits("train")[:labels]), from_labels, steps, lr=lr, seed=seed, progress=False)
    return model


def test_accuracy(model: nn.Module) -> float:
    """The share of the test digits that a model names."""
    return evaluate(model, ((normalise(images), labels) for images, labels in digits("test").batches()))


@dataclass(frozen=True)
class Student:
    """One student, spelled out: what it sees and from what it learns.

    Attributes:
        name: of the row.
        pictures: 'labelled' are the few, 'all' are all without labels, 'mixed' half of each.
        teacher, teacher_labels: its kind, None for no teacher, and how many labels it had.
        kind, temperature, alpha: of the loss.
        two_heads: whether it is a DistilledViT.
    """

    name: str
    pictures: str = "labelled"
    teacher: str | None = "CNN"
    teacher_labels: int = 60
    kind: str = "soft"
    temperature: float = 3.0
    alpha: float = 1.0
    two_heads: bool = False
    data: str = "digits"
    labels: int = 60
    steps: int = 400
    lr: float = 5e-3

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and test; teacher and student start from it both."""
        everything = digits("train")
        few = everything[: self.labels]
        drawn = {"labelled": (few,), "all": (everything,), "mixed": (few, everything)}[self.pictures]
        loss, of_teacher = from_labels, {}
        if self.teacher is not None:
            model = teacher(self.teacher, self.teacher_labels, seed)
            loss = DistillationLoss(model, self.kind, self.temperature, self.alpha)
            of_teacher = {"teacher_accuracy": test_accuracy(model)}
        torch.manual_seed(seed)
        student = (DistilledViT if self.two_heads else ViT)(**STUDENT)
        start = time.process_time()
        fit(student, batches_of(*drawn), loss, self.steps, lr=self.lr, seed=seed, progress=False)
        core_s = time.process_time() - start
        return {"accuracy": test_accuracy(student), "core_s": core_s} | of_teacher


TABLE = Table(
    "Handwritten digits, 60 of 1,437 with labels: what a teacher is worth",
    several=(
        Student("labels alone", teacher=None),
        Student("the same pictures, soft", alpha=0.5),
        Student("the same pictures, hard", kind="hard", alpha=0.5),
        Student("all pictures, soft", "all"),
        Student("all pictures, soft, T = 1", "all", temperature=1.0),
        Student("all pictures, soft, T = 10", "all", temperature=10.0),
        Student("all pictures, hard", "all", kind="hard"),
        Student("mixed pictures, hard, one head", "mixed", kind="hard", alpha=0.7),
        Student("mixed pictures, hard, two heads", "mixed", kind="hard", alpha=0.7, two_heads=True),
        *(Student(f"all pictures, soft, ViT with {n} labels", "all", "ViT", n) for n in (60, 120, 180, 250)),
    ),
)


if __name__ == "__main__":
    command(TABLE, "distillation", SEEDS, "Compute the stored table of lesson 08.")
