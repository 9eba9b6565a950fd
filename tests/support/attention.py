"""Layers and models with weights that matter, and the two paths that attention takes."""

import pytest
import torch
from torch import Tensor

from vit_course import attention as module
from vit_course.attention import MultiHeadAttention
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import randomise
from vit_course.vit import ViT

SMALL = MODELS["ViT"].tiny | {"depth": 3}
PATHS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_attention(**changes) -> MultiHeadAttention:
    return randomise(MultiHeadAttention(**{"dim": 32, "heads": 4} | changes))


def random_vit(**changes) -> ViT:
    return randomise(ViT(**SMALL | changes))


def force(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """Send every attention of the course down one path."""
    monkeypatch.setattr(module, "fused_is_faster", lambda q: fused)
