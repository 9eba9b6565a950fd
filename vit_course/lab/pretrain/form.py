"""Which backbone a training means, in which size."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from vit_course.patching import require_at_least

from ..catalogue import MODELS, Row
from .settings import Pretraining

# Of a model that has no small form of its own in the catalogue.
_SMALL = {"dim": 64, "depth": 4, "heads": 2, "mlp_dim": 256}


def menu() -> dict[str, tuple[Row, dict[str, Any]]]:
    """The backbones that can be named: of each model of the catalogue its small form, then published sizes.

    Returns:
        For each name the row and the constructor's arguments.
    """
    small = {name: (row, row.small or _SMALL) for name, row in MODELS.items()}
    return small | {
        name: (row, size.sizes) for row in MODELS.values() for name, size in row.published.items()
    }


@dataclass(frozen=True)
class Form:
    """A backbone as the settings want it.

    Args:
        row: of the catalogue.
        arguments: of its constructor, but for num_classes.
        image_size: side of its pictures in pixels.
        is_published: whether it began as a published size.
    """

    row: Row
    arguments: dict[str, Any]
    image_size: int
    is_published: bool

    def build(self, num_classes: int, seed: int) -> Any:
        """The backbone with first weights from a seed; without classes it gives pooled features."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.row.kind(**self.arguments | {"num_classes": num_classes})

    @property
    def unit(self) -> int:
        """What the side of a picture must be a multiple of."""
        if self.row.features == "tokens":
            return self.arguments["patch_size"]
        with torch.device("meta"):
            made: Any = self.row.kind(**self.arguments | {"num_classes": 0})
        return made.size_unit

    def local_size(self) -> int:
        """Side of a local crop: three sevenths of the picture's, as 96 of 224, in whole units."""
        return max(1, round(self.image_size * 3 / 7 / self.unit)) * self.unit


def form(settings: Pretraining) -> Form:
    """The backbone that the settings name.

    Raises:
        ValueError: for a name that is not on the menu, or an argument that the model does not have.
    """
    names = {name.lower(): name for name in menu()}
    if settings.backbone.lower() not in names:
        raise ValueError(f"backbone {settings.backbone!r} is unknown; it can be {', '.join(names.values())}")
    row, sizes = menu()[names[settings.backbone.lower()]]
    is_published = "num_classes" in sizes
    image_size = settings.image_size or (sizes.get("image_size", 224) if is_published else 64)
    require_at_least(1, image_size=image_size)
    arguments = {name: value for name, value in sizes.items() if name != "num_classes"}
    if row.features == "tokens":
        patch_size = settings.patch_size or sizes.get("patch_size") or max(1, image_size // 8)
        arguments |= {"image_size": image_size, "patch_size": patch_size}
    elif settings.patch_size:
        raise ValueError(f"a {row.kind.__name__} has no patch_size, got {settings.patch_size}")
    changes = dict(_argument(row, text) for text in settings.sizes)
    if "dim" in changes and "mlp_dim" in arguments:
        arguments["mlp_dim"] = 4 * changes["dim"]
    wanted = Form(row, arguments | changes, image_size, is_published)
    for name, side in {"image_size": image_size, "local_size": settings.local_size or wanted.unit}.items():
        if side % wanted.unit:
            raise ValueError(
                f"{name} must be a multiple of {wanted.unit}, as this {settings.backbone} has it, got {side}"
            )
    return wanted


def _argument(row: Row, text: str) -> tuple[str, Any]:
    """A pair of name and value from "dim=64" or "depth=2,2"."""
    name, is_given, value = text.partition("=")
    own = {"num_classes", "image_size", "patch_size", "patch_embedding", "channels"}
    allowed = [argument for argument in signature(row.kind).parameters if argument not in own]
    if name not in allowed or not is_given:
        raise ValueError(f"sizes are pairs such as dim=64, of {', '.join(allowed)}; got {text!r}")
    if isinstance(signature(row.kind).parameters[name].default, str):
        return name, value  # which words it can be, the model says
    numbers = [_number(text, part) for part in value.split(",")]
    return name, numbers[0] if len(numbers) == 1 else tuple(numbers)


def _number(text: str, part: str) -> Any:
    if part in ("True", "False"):
        return part == "True"
    try:
        return float(part) if "." in part or "e" in part else int(part)
    except ValueError:
        raise ValueError(f"sizes are pairs of a name and a number such as dim=64, got {text!r}") from None
