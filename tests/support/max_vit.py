"""What the tests of lesson 07 share: a small MaxViT, and torchvision's as small."""

import torch
from torch import Tensor
from torchvision.models.maxvit import MaxVit

from vit_course.max_vit import MaxViT

SMALL = {"num_classes": 5, "dim": 16, "depth": (1, 2), "window_size": 2, "dim_head": 8}


def small(**changes) -> MaxViT:
    return MaxViT(**SMALL | changes)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


def torchvision_max_vit(**config) -> MaxVit:
    torch.manual_seed(0)
    sizes = {
        "input_size": (64, 64),
        "stem_channels": 16,
        "partition_size": 4,
        "block_channels": [16, 32],
        "block_layers": [2, 2],
        "head_dim": 8,
        "stochastic_depth_prob": 0.2,
        "num_classes": 7,
    }
    return MaxVit(**sizes | config)


def suited(model: MaxVit, batch: int = 2) -> Tensor:
    """Images that a model of torchvision was made for: its first map is a quarter of them."""
    rows, columns = model.blocks[0].grid_size
    return images(batch, 3, 4 * rows, 4 * columns)


def adding(share: float, model: MaxVit) -> MaxVit:
    """The model with everything that its layers add to the cells scaled down."""
    for name, tensor in model.state_dict().items():
        if any(part in name for part in ("stem.1.0.", "proj.", "conv_c.", "merge.", "mlp_layer.3.")):
            tensor.mul_(share)
    return model
