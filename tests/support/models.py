"""The small models that every contract test runs through: each row of the catalogue, and its variants."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_course.lab import catalogue
from vit_course.lab.catalogue import Row, Sizes, Variant


@dataclass(frozen=True)
class Case:
    """A small model, for images (b, 3, 16, 16) and 5 classes, to hold to its promises."""

    row: Row
    variant: Variant

    def build(self, **changes: object) -> nn.Module:
        """The model, with changes of the constructor's arguments."""
        return self.row.build(**self.variant.arguments() | changes)

    @property
    def dropouts(self) -> dict[str, float]:
        """Arguments that make training random."""
        return dict.fromkeys(self.row.dropouts, 0.3)

    @property
    def sizes(self) -> Sizes:
        """Other (height, width) of images that the model must take."""
        return self.variant.other_sizes or self.row.other_sizes

    @property
    def local_size(self) -> int:
        """Side of a local crop in pixels: half the picture, where the model takes that."""
        return 8 if (8, 8) in self.sizes else 16

    @property
    def prefix_tokens(self) -> int:
        """How many tokens of the features are no patches."""
        own = self.variant.prefix_tokens
        return self.row.prefix_tokens if own is None else own

    @property
    def plain_patches(self) -> bool:
        """Whether each token sees its own patch only."""
        own = self.variant.plain_patches
        return self.row.plain_patches if own is None else own

    @property
    def least_depth(self) -> int | tuple[int, ...]:
        """A depth that shows each kind of layer once."""
        return self.row.least_depth


def cases() -> dict[str, Case]:
    """All cases by name: "ViT", "ViT mean" …"""
    found = {}
    for name, row in catalogue.MODELS.items():
        found[name] = Case(row, Variant(dict))
        found |= {f"{name} {variant}": Case(row, row.variants[variant]) for variant in row.variants}
    return found


CASES = cases()


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise of a shape, (4, 3, 16, 16) by default."""
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


def together(logits: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The mean of all heads: a DistilledViT gives the logits of its two heads in training."""
    return torch.stack(logits).mean(dim=0) if isinstance(logits, tuple) else logits
