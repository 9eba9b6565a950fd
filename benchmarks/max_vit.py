"""The long table of lesson 07: which part of a small MaxViT earns its place, and when (`make results`).

    python benchmarks/max_vit.py [--fresh] [--seeds 0 1 2]

Measured on 2,000 training scenes of the easy level set aside, with the recipe of the lesson. The rows
"instead: …" change one thing each and have one seed: they look for what makes windows late, no more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from tables import Table, command
from torch import Tensor, nn

from vit_course.lab.data import ImageSet, normalise, shapes
from vit_course.max_vit import MaxViT, MBConv, WindowTransformerBlock
from vit_course.patching import ConvStem
from vit_course.training import augment, evaluate, fit
from vit_course.vit import ViT

VALIDATION = 2000


@cache
def scenes() -> tuple[ImageSet, ImageSet]:
    """Scenes to learn from and scenes to validate on."""
    every = shapes("easy", "train")
    return every[:-VALIDATION], every[-VALIDATION:]


def layers(model: nn.Module, kind: type[nn.Module]) -> list:
    """All layers of a kind."""
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def without_mbconv(model: MaxViT) -> None:
    """Leave of each MBConv what halves the map and widens it."""
    for (block,) in model.stages:
        block.conv = block.conv.shortcut


def without_windows(model: MaxViT) -> None:
    """Leave out both window layers of each block."""
    for (block,) in model.stages:
        block.block, block.grid = nn.Identity(), nn.Identity()


def windows_from_zero(model: MaxViT) -> None:
    """Let the branches of the window layers begin at zero."""
    for block in layers(model, WindowTransformerBlock):
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)


def pool_the_maximum(model: MaxViT) -> None:
    model.forward_head = lambda features: model.head(model.norm(features.amax(dim=(2, 3))))


def linear_head(model: MaxViT) -> None:
    model.head = nn.Linear(model.num_features, 10)


def stem_without_stride(model: MaxViT) -> None:
    model.stem.conv1.stride = (1, 1)


def stage_that_stays(model: MaxViT) -> None:
    """Keep the size of the map in the second stage."""
    conv = model.stages[1][0].conv
    conv.branch.depthwise.stride, conv.shortcut[0] = (1, 1), nn.Identity()


def without_shortcut(model: MaxViT) -> None:
    """Cut the shortcut where the map changes."""
    for conv in layers(model, MBConv):
        if len(conv.shortcut):
            nn.init.zeros_(conv.shortcut[-1].weight)
            conv.shortcut[-1].requires_grad_(False)


CHANGES: dict[str, Callable[[MaxViT], None]] = {
    change.__name__: change
    for change in (
        without_mbconv,
        without_windows,
        windows_from_zero,
        pool_the_maximum,
        linear_head,
        stem_without_stride,
        stage_that_stays,
        without_shortcut,
    )
}


@dataclass(frozen=True)
class Run:
    """One training, spelled out.

    Attributes:
        name: of the row.
        change: one of CHANGES, or None.
        model: 'MaxViT', or 'ViT' for the ViT behind the convolutional stem.
        dim, dim_head: of the MaxViT.
    """

    name: str
    change: str | None = None
    steps: int = 500
    model: str = "MaxViT"
    dim: int = 32
    dim_head: int = 16
    lr: float = 2e-3
    momentum: float = 0.1  # of running statistics: the published 0.01 is too slow for so few steps
    batch: int = 32
    data: str = "easy"

    def build(self) -> nn.Module:
        """Make the network."""
        if self.model == "ViT":
            sizes = dict(image_size=32, patch_size=4, num_classes=10, dim=64, depth=3, heads=2, mlp_dim=128)
            return ViT(**sizes, patch_embedding=ConvStem(patch_size=4, dim=64))
        model = MaxViT(num_classes=10, dim=self.dim, depth=(1, 1), window_size=4, dim_head=self.dim_head)
        for norm in layers(model, nn.BatchNorm2d):
            norm.momentum = self.momentum
        if self.change is not None:
            CHANGES[self.change](model)
        return model

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and validate."""
        learning, validation = scenes()

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            images, labels = learning.sample(self.batch, generator)
            return normalise(augment(images, generator=generator)), labels

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

        torch.set_float32_matmul_precision("medium")
        torch.manual_seed(seed)
        model = self.build()
        start = time.process_time()
        fit(model, draw, loss, self.steps, lr=self.lr, seed=seed, progress=False)
        core_s = time.process_time() - start
        batches = ((normalise(images), labels) for images, labels in validation.batches(500))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"accuracy": evaluate(model, batches), "core_s": core_s, "parameters": parameters}


MBCONV, WINDOWS = "without MBConv", "without windows"
TABLE = Table(
    "Shapes in scenes, easy level: which part of a MaxViT earns its place",
    several=(
        Run("MaxViT"),
        Run(MBCONV, "without_mbconv"),
        Run(WINDOWS, "without_windows"),
        Run("ViT, convolutional stem", model="ViT"),
        Run("MaxViT, long", steps=1500),
        Run(f"{MBCONV}, long", "without_mbconv", steps=1500),
        Run(f"{WINDOWS}, long", "without_windows", steps=1500),
    ),
    single=(
        Run("instead: learning rate 0.005", lr=5e-3),
        Run("instead: learning rate 0.0008", lr=8e-4),
        Run("instead: heads of 32 channels", dim_head=32),
        Run("instead: heads of 8 channels", dim_head=8),
        Run("instead: stages of 48 and 96 channels", dim=48),
        Run("instead: window branches that begin at zero", "windows_from_zero"),
        Run("instead: maximum pooling", "pool_the_maximum"),
        Run("instead: one linear layer as head", "linear_head"),
        Run("instead: stem without stride", "stem_without_stride"),
        Run("instead: second stage that does not shrink", "stage_that_stays"),
        Run("instead: no shortcut where the map shrinks", "without_shortcut"),
    ),
)


if __name__ == "__main__":
    command(TABLE, "max_vit", (0, 1, 2), "Compute the stored table of lesson 07.")
