"""What the tests of lesson 08 share: small students, teachers whose mode shows, and noise to learn from."""

import copy

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vit_course.distillation import DistilledViT
from vit_course.lab.catalogue import MODELS

SMALL = MODELS["DistilledViT"].tiny
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 7}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


def small_vit(**changes) -> DistilledViT:
    torch.manual_seed(0)
    return DistilledViT(**SMALL | changes)


def timm_vit(model: str | None = None, **config) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(model) if model else VisionTransformerDistilled(**TINY | config)


def suited(model: nn.Module, batch: int = 2) -> Tensor:
    return images(batch, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)


class Fixed(nn.Module):
    """A model that gives these logits for any images; the logits can learn."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(nn.Parameter(part.clone()) for part in logits)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.logits[0] if len(self.logits) == 1 else tuple(self.logits)


def cnn_teacher() -> nn.Module:
    """With BatchNorm and dropout, both of which would show in training mode."""
    torch.manual_seed(1)
    return nn.Sequential(
        Conv2dNormActivation(3, 8, stride=2),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 16, 16, generator=generator) + 2, torch.randint(5, (8,), generator=generator)
