"""Small models, crops and random numbers that the tests of DINO and EsViT share."""

import torch
from torch import Tensor

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 0,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 64,
}
HEAD = {"out_dim": 24, "hidden_dim": 20, "bottleneck_dim": 12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crops_of(sizes: tuple[int, ...] = (16, 16, 8, 8), b: int = 4, seed: int = 0) -> list[Tensor]:
    return [draw(b, 3, size, size, seed=seed + view) for view, size in enumerate(sizes)]
