"""From pictures and a model to the checked attention of every layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_course.attention import AttentionLayer, record_attention
from vit_course.patching import require_floats
from vit_course.training import eval_mode

from ..pretrained import adapt

KINDS = ("global", "class", "window", "channel")


@dataclass(frozen=True)
class CheckedLayer(AttentionLayer):
    """An attention layer whose weights, float32 on the CPU, fit its pictures, its grid and its kind.

    Attributes:
        grid: (rows, columns) of the patches.
        members: for windows, (window, token) -> cell of the grid in reading order; else (0, 0).
    """

    grid: tuple[int, int]
    members: Tensor

    @property
    def windows(self) -> int:
        """How many rows of the weights' first axis belong to one picture."""
        return len(self.members) if self.kind == "window" else 1


@dataclass(frozen=True)
class Panel:
    """The attention of one model on all pictures.

    Attributes:
        name: what the model is called on the page.
        layers: in the order in which they ran; the weights are (b, h, q, k), windows folded into b.
    """

    name: str
    layers: tuple[CheckedLayer, ...]

    def matching(self, number: int, layers: int) -> int:
        """The layer that stands as deep in this model as layer `number` does in a model of so many layers."""
        if layers == len(self.layers):
            return number
        last = len(self.layers) - 1
        return (2 * number * last + layers - 1) // max(2 * (layers - 1), 1)

    def rolls(self, number: int) -> bool:
        """Whether there is a rollout up to layer `number`: it is global, as are others of as many tokens."""
        before = [layer.weights.shape[-1] for layer in self.layers[: number + 1] if layer.kind == "global"]
        return self.layers[number].kind == "global" and len(set(before)) == 1


def check_images(images: Tensor) -> Tensor:
    """Pictures as the explorer keeps them, a copy of its own.

    Args:
        images: (c, h, w) or (b, c, h, w), floats in 0..1, with 1 or 3 channels.

    Returns:
        float32 on the CPU (b, c, h, w).

    Raises:
        TypeError: for anything but a tensor of floats.
        ValueError: for other shapes, channels or values.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a tensor (c, h, w) or (b, c, h, w), got {type(images).__name__}; torchvision's "
            "to_tensor makes one of a picture (h, w, c), torch.stack one of several tensors"
        )
    if images.ndim == 3:
        images = images[None]
    require_floats("images", images, "b c h w")
    if images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images must be pictures (b, c, h, w) with 1 or 3 channels, got shape {tuple(images.shape)}"
        )
    images = images.detach().cpu().float()
    low, high = images.min().item(), images.max().item()
    if not (-1e-3 <= low and high <= 1 + 1e-3):  # NaN fails this too; a resized picture may overshoot
        raise ValueError(
            f"images must have values in 0..1, got {low:.2f} to {high:.2f}; give the pictures as they look, "
            "and what makes them ready for the model as transform, for example transform=normalise"
        )
    return images.clamp(0, 1)


def check_masks(masks: Tensor | None, images: Tensor) -> Tensor | None:
    """True masks as the explorer keeps them, a copy of its own.

    Args:
        masks: (h, w) or (b, h, w), booleans, one for each picture; or None.
        images: the pictures (b, c, h, w).

    Returns:
        Booleans on the CPU (b, h, w), or None.

    Raises:
        TypeError: for anything but a tensor of booleans.
        ValueError: for other shapes.
    """
    if masks is None:
        return None
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = (
            masks.dtype
            if isinstance(masks, Tensor)
            else f"{type(masks).__name__}; torch.from_numpy makes one"
        )
        raise TypeError(f"masks must be a tensor of booleans (b, h, w), got {kind}")
    wanted = (images.shape[0], *images.shape[2:])
    if (masks[None] if masks.ndim == 2 else masks).shape != wanted:
        raise ValueError(f"images {tuple(images.shape)} need masks {wanted}, got {tuple(masks.shape)}")
    return masks.reshape(wanted).to("cpu", copy=True)


def record_panel(
    name: str, model: nn.Module, images: Tensor, transform: Callable[[Tensor], Tensor] | None
) -> Panel:
    """What every attention layer of a model does with pictures, in eval mode and without gradients.

    Args:
        name: what the model is called on the page.
        model: any model of the course, or one that `adapt` knows. Every part keeps its mode.
        images: (b, c, h, w) in 0..1. They stay as they are, whatever transform and model do to theirs.
        transform: makes the model's input of the pictures; None feeds them as they are.

    Raises:
        TypeError: for what is no model, or a transform that gives no tensor.
        ValueError: where there is no attention, or it does not fit the patches.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")
    recordable = _recordable(name, model)
    inputs = images.clone() if transform is None else transform(images.clone())
    if not isinstance(inputs, Tensor):
        raise TypeError(f"transform must give a tensor (b, c, h, w), got {type(inputs).__name__}")
    dtype = next((part.dtype for part in recordable.parameters() if part.is_floating_point()), torch.float32)
    with eval_mode(recordable) as device, torch.no_grad(), record_attention(recordable) as record:
        recordable(inputs.to(device, dtype))
    return Panel(name, tuple(_checked(layer, len(images)) for layer in record))


def check_comparable(first: Panel, second: Panel) -> None:
    """Raise a ValueError unless each layer of the first model has the grid of the layer beside it."""
    for number, layer in enumerate(first.layers):
        other = second.layers[second.matching(number, len(first.layers))]
        if layer.grid != other.grid:
            raise ValueError(
                f"one hover needs one grid: {layer.name} of {first.name} has {_grid(layer)} patches, "
                f"{other.name} of {second.name} has {_grid(other)}"
            )


def _recordable(name: str, model: nn.Module) -> nn.Module:
    """The model, or what makes a model of timm or torchvision recordable."""
    if _has_attention(model):
        return model
    try:
        adapted = adapt(model)
    except TypeError:
        adapted = model
    if not _has_attention(adapted):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no attention that can be recorded; "
            "the explorer reads the models of the course and the ViTs of timm and torchvision"
        )
    return adapted


def _has_attention(model: nn.Module) -> bool:
    return any(hasattr(module, "attention_recorder") for module in model.modules())


def _checked(layer: AttentionLayer, images: int) -> CheckedLayer:
    """A copy of the layer, which nothing that becomes of the model changes.

    That tokens and grid fit each other is the record's to check.

    Raises:
        ValueError: with the numbers, for weights that do not fit the pictures, the grid or the kind.
    """
    shape, name = tuple(layer.weights.shape), f"layer {layer.name!r}"
    if layer.kind not in KINDS:
        raise ValueError(f"{name} is of kind {layer.kind!r}; the explorer knows {', '.join(KINDS)}")
    broken = int((~layer.weights.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{name} has {broken:,} of {layer.weights.numel():,} attention weights that are NaN or infinite"
        )
    if layer.grid is None:
        raise ValueError(
            f"{name} has {shape[-1]} tokens but no patch grid: the model needs patch_embed and patch_size, "
            "by which a grid is known"
        )
    checked = CheckedLayer(
        weights=layer.weights.detach().to("cpu", torch.float32, copy=True),
        kind=layer.kind,
        grid=layer.grid,
        num_prefix_tokens=layer.num_prefix_tokens,
        name=layer.name,
        members=torch.empty(0, 0) if layer.members is None else layer.members.to("cpu", copy=True),
    )
    if shape[0] != images * checked.windows:
        raise ValueError(
            f"{name} has weights {shape} for {images} images of {checked.windows} windows each: the first "
            f"axis should be {images * checked.windows}"
        )
    if layer.kind == "window":
        _check_members(checked, name)
        return checked
    queries, keys = shape[-2:]
    if layer.kind == "class" and queries != 1:
        raise ValueError(f"{name} is of kind 'class', which has one query, but it has {queries}")
    if layer.kind != "class" and queries != keys:
        raise ValueError(f"{name} needs as many queries as keys, got {queries} and {keys}")
    return checked


def _check_members(layer: CheckedLayer, name: str) -> None:
    """Raise a ValueError unless the windows hold every patch once and the weights are theirs."""
    (rows, columns), members, tokens = layer.grid, layer.members, layer.weights.shape[-1]
    if members.shape[1] != tokens or layer.weights.shape[-2] != tokens:
        raise ValueError(
            f"{name} has windows of {members.shape[1]} patches, but weights {tuple(layer.weights.shape)}"
        )
    if not torch.equal(members.flatten().sort().values, torch.arange(rows * columns)):
        raise ValueError(
            f"{name}: {tuple(members.shape)} members of windows do not name each of the {rows} by {columns} "
            "patches once"
        )


def _grid(layer: CheckedLayer) -> str:
    return f"{layer.grid[0]} by {layer.grid[1]}"
