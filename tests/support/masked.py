"""Small images and models for the tests of masked patch prediction, and the same computed patch by patch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from support.unlabelled import SMALL
from vit_course.mpp import MPP, Corruption
from vit_course.vit import ViT


def colours(*shape: int, seed: int = 0) -> Tensor:
    """Images in 0 … 1 whose patches differ in colour: the mean of mere noise is grey everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], shape[2] // 4, shape[3] // 4, generator=generator)
    noise = 0.1 * torch.randn(*shape, generator=generator)
    return (F.interpolate(coarse, shape[2:]) + noise).clamp(0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_mpp(seed: int = 0, **changes) -> MPP:
    torch.manual_seed(seed)
    return MPP(ViT(**SMALL), **changes)


def slow_labels(images: Tensor, p1: int, p2: int, bits: int) -> list[list[int]]:
    """Pixel by pixel, in Python's own numbers."""
    b, c, height, width = images.shape
    pixels, levels = images.tolist(), 2**bits
    return [
        [
            sum(
                min(
                    levels - 1,
                    math.floor(
                        levels
                        * math.fsum(
                            pixels[i][channel][y][x]
                            for y in range(top, top + p1)
                            for x in range(left, left + p2)
                        )
                        / (p1 * p2)
                    ),
                )
                * levels**channel
                for channel in range(c)
            )
            for top in range(0, height, p1)
            for left in range(0, width, p2)
        ]
        for i in range(b)
    ]


def slow_corrupt(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    """Patch by patch, from a copy that nothing has touched."""
    changed = patches.clone()
    for i in range(patches.shape[0]):
        for place, source, masked in zip(*(part[i].tolist() for part in corruption), strict=True):
            changed[i, place] = mask_token if masked else patches[i, source]
    return changed
