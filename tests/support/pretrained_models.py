"""Small models of timm and torchvision with weights that matter, and images for them."""

import torch
import torchvision
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_course.lab.parity import randomise

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
TINY_OF_TORCHVISION = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "mlp_dim": 48,
    "num_classes": 7,
}
STEM = [torchvision.models.vision_transformer.ConvStemConfig(8, 3, 2) for _ in range(3)]


def timm_vit(**config: object) -> VisionTransformer:
    """timm's ViT of the sizes TINY, or others."""
    torch.manual_seed(0)
    return randomise(VisionTransformer(**TINY | config))


def torchvision_vit(**config: object) -> TorchvisionViT:
    """torchvision's ViT of the same sizes, or others."""
    torch.manual_seed(0)
    return randomise(TorchvisionViT(**TINY_OF_TORCHVISION | config))


def images(*shape: int, seed: int = 0) -> Tensor:
    """Images of noise (2, 3, 32, 32), or of another shape."""
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(seed))
