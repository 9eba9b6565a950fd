"""What the tests of training share: a small model, batches of three kinds, losses, a stopped run."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit_course.training import fit
from vit_course.vit import ViT

STEPS = 13
PIXELS = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def small_vit(seed: int = 0, dim: int = 8, dropout: float = 0.3) -> ViT:
    torch.manual_seed(seed)
    sizes = {
        "image_size": 8,
        "patch_size": 4,
        "num_classes": 3,
        "dim": dim,
        "depth": 1,
        "heads": 2,
        "mlp_dim": dim,
    }
    return ViT(**sizes, dropout=dropout, emb_dropout=dropout)


def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(0, 40, (8,), generator=generator)
    return PIXELS[index] + 0.1 * torch.randn(8, 3, 8, 8, generator=generator), LABELS[index]


class NoisyImages(TensorDataset):
    """Images augmented as they are read, from the global random state, as torchvision's transforms do."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, label = super().__getitem__(index)
        return pixels + 0.1 * torch.randn(pixels.shape), label


BATCHES: dict[str, Callable] = {
    "function": lambda: drawn,
    "list": lambda: [(PIXELS[:8], LABELS[:8]), (PIXELS[8:16], LABELS[8:16]), (PIXELS[16:24], LABELS[16:24])],
    "loader": lambda: DataLoader(NoisyImages(PIXELS, LABELS), batch_size=8, shuffle=True),
}


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class CentredLoss(nn.Module):
    """A loss with a state of its own, as DINO's has a centre."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch[0])
        self.center.lerp_(logits.detach().to(self.center).mean(dim=0), 0.1)
        return F.cross_entropy(logits - self.center, batch[1]), {"center": self.center.norm()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def run(
    model: nn.Module, batches: Callable | list | DataLoader = drawn, loss: Callable = cross_entropy, **changes
) -> dict:
    return fit(model, batches, loss, **{"steps": STEPS, "progress": False} | changes)


class Stop(Exception):
    """A kill at a chosen step."""


def stop_at(step: int) -> Callable[[int], None]:
    def after_step(now: int) -> None:
        if now == step:
            raise Stop

    return after_step
