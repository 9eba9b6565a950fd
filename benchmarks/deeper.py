"""The table of lesson a1: 24 pairs of layers behind each other or side by side (`make results`).

    python benchmarks/deeper.py [--fresh] [--seeds 10 11 12]

Handwritten digits of 8 × 8 pixels, equal steps, equal learning rate. The rate was chosen with seed 0 on 360
training digits set aside; the table is measured on the test digits, from seeds that no choice has seen.
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from tables import Table, command
from torch import Tensor, nn

from vit_course.atlas.deeper import DeepViT, ParallelViT
from vit_course.lab.data import ImageSet, digits
from vit_course.training import augment, evaluate, fit

SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "num_classes": 10,
    "channels": 1,
    "dim": 48,
    "heads": 4,
    "mlp_dim": 96,
}


@cache
def pictures() -> tuple[ImageSet, ImageSet]:
    """Digits to learn from and digits to test on."""
    return digits("train"), digits("test")


def centred(images: Tensor) -> Tensor:
    """Digits with mean and spread of about 0 and 1."""
    return (images - 0.3) / 0.37


@dataclass(frozen=True)
class Run:
    """One training, spelled out.

    Attributes:
        name: of the row.
        depth: blocks behind each other.
        branches: pairs side by side in each.
        layer_scale: what LayerScale starts with, None for none.
        re_attention: whether the heads are mixed; such a model has one branch and no LayerScale.
    """

    name: str
    depth: int
    branches: int = 1
    layer_scale: float | None = None
    re_attention: bool = False
    steps: int = 100
    lr: float = 3e-3
    batch: int = 32
    data: str = "digits"

    def build(self) -> nn.Module:
        """Make the network."""
        if self.re_attention:
            return DeepViT(**SIZES, depth=self.depth)
        return ParallelViT(**SIZES, depth=self.depth, branches=self.branches, layer_scale=self.layer_scale)

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and test."""
        learning, testing = pictures()

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            images, labels = learning.sample(self.batch, generator)
            images = augment(images, scale=(0.7, 1.0), rotation=12, flip=False, generator=generator)
            return centred(images), labels

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        torch.set_float32_matmul_precision("medium")
        torch.manual_seed(seed)
        model = self.build()
        start = time.process_time()
        fit(model, draw, loss, self.steps, lr=self.lr, seed=seed, progress=False)
        core_s = time.process_time() - start
        batches = [(centred(testing.images), testing.labels)]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"accuracy": evaluate(model, batches), "core_s": core_s, "parameters": parameters}


SMALL_START = 1e-4
TABLE = Table(
    "Digits: 24 attentions and 24 feed-forward layers, behind each other or side by side",
    several=(
        Run("24 × 1", 24),
        Run("24 × 1, re-attention", 24, re_attention=True),
        Run("12 × 2", 12, 2),
        Run("6 × 4", 6, 4),
        Run("24 × 1, LayerScale", 24, layer_scale=SMALL_START),
        Run("12 × 2, LayerScale", 12, 2, layer_scale=SMALL_START),
        Run("6 × 4, LayerScale", 6, 4, layer_scale=SMALL_START),
    ),
    seeds=(10, 11, 12),
)


if __name__ == "__main__":
    command(TABLE, "deeper", TABLE.seeds, "Compute the stored table of lesson a1.")
