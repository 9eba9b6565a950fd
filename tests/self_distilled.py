"""Small models, crops, random numbers and a slow double loop that the tests of DINO and EsViT share."""

import math

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


def slow_uniformity(features: Tensor) -> float:
    """L_uniform of Wang and Isola (2020) with t = 2, for features (v, b, d): loops over plain numbers of double precision."""
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
