"""From pictures and a model to the checked attention of every layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vit_course.attention import AttentionLayer, record_attention
from vit_course.patching import require_floats

from ..pretrained import adapt

KINDS = ("global", "class", "window", "channel")


@dataclass(frozen=True)
class Panel:
    """The attention of one model on all pictures.

    name: what the model is called on the page. layers: in the order in which they ran, float32 on the CPU; the weights (b, h, q, k),
    windows folded into b.
    """

    name: str
    layers: tuple[AttentionLayer, ...]

    def matching(self, number: int, layers: int) -> int:
        """The layer that stands as deep in this model as layer `number` does in a model of so many layers."""
        last = len(self.layers) - 1
        return (
            number
            if layers == len(self.layers)
            else (2 * number * last + layers - 1) // max(2 * (layers - 1), 1)
        )

    def rolls(self, number: int) -> bool:
        """Whether there is a rollout through the layers up to `number`: it is global, and so many tokens as all global ones before it."""
        before = [layer.weights.shape[-1] for layer in self.layers[: number + 1] if layer.kind == "global"]
        return self.layers[number].kind == "global" and len(set(before)) == 1


def check_images(images: Tensor) -> Tensor:
    """Pictures (c, h, w) or (b, c, h, w) as (b, c, h, w). Raises TypeError or ValueError for other shapes, channels, values."""
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images[None]
    require_floats("images", images, "b c h w")
    if images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images must be pictures (b, c, h, w) with 1 or 3 channels, got shape {tuple(images.shape)}"
        )
    images = images.detach().cpu().float()
    low, high = images.min().item(), images.max().item()
    if not (
        -1e-3 <= low and high <= 1 + 1e-3
    ):  # NaN fails this too; a resized picture may overshoot by a hair
        raise ValueError(
            f"images must have values in 0..1, got {low:.2f} to {high:.2f}; give the pictures as they look, "
            "and what makes them ready for the model as transform, for example transform=normalise"
        )
    return images.clamp(0, 1)


def check_masks(masks: Tensor | None, images: Tensor) -> Tensor | None:
    """True masks (h, w) or (b, h, w), one for each picture (b, c, h, w), as (b, h, w) of booleans."""
    if masks is None:
        return None
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks must be a tensor of booleans (b, h, w), got {kind}")
    wanted = (images.shape[0], *images.shape[2:])
    if (masks[None] if masks.ndim == 2 else masks).shape != wanted:
        raise ValueError(f"images {tuple(images.shape)} need masks {wanted}, got {tuple(masks.shape)}")
    return masks.reshape(wanted).cpu()


def record_panel(
    name: str, model: nn.Module, images: Tensor, transform: Callable[[Tensor], Tensor] | None
) -> Panel:
    """What every attention layer of `model` does with pictures (b, c, h, w) in 0..1, in eval mode and without gradients.

    transform: makes the model's input of the pictures; None feeds them as they are. The model keeps its mode.
    Raises TypeError for what is no model, ValueError where there is no attention or it does not fit the patches.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")
    recordable = _recordable(name, model)
    inputs = images if transform is None else transform(images)
    some_weight = next(recordable.parameters(), torch.empty(0))
    modes = {module: module.training for module in recordable.modules()}
    try:
        recordable.eval()
        with torch.no_grad(), record_attention(recordable) as record:
            recordable(inputs.to(some_weight))
    finally:
        for module, training in modes.items():
            module.training = training
    prefix = next((part.num_prefix_tokens for part in modes if hasattr(part, "num_prefix_tokens")), 1)
    layers = [replace(layer, weights=layer.weights.detach().cpu().float()) for layer in record]
    for layer in layers:
        _check_layer(layer, len(images), prefix)
    return Panel(name, tuple(layers))


def check_comparable(first: Panel, second: Panel) -> None:
    """Raise a ValueError unless each layer of the first model has the patch grid of the layer that stands beside it."""
    for number, layer in enumerate(first.layers):
        other = second.layers[second.matching(number, len(first.layers))]
        if layer.grid != other.grid:
            raise ValueError(
                f"one hover needs one grid: {layer.name} of {first.name} has {_grid(layer)} patches, "
                f"{other.name} of {second.name} has {_grid(other)}"
            )


def _recordable(name: str, model: nn.Module) -> nn.Module:
    """The model, or what makes a model of timm or torchvision recordable."""
    if any(hasattr(module, "attention_recorder") for module in model.modules()):
        return model
    try:
        adapted = adapt(model)
    except TypeError:
        adapted = model
    if not any(hasattr(module, "attention_recorder") for module in adapted.modules()):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no attention that can be recorded; "
            "the explorer reads the models of the course and the ViTs of timm and torchvision"
        )
    return adapted


def _check_layer(layer: AttentionLayer, images: int, num_prefix_tokens: int) -> None:
    """Raise a ValueError, with the numbers, for weights that do not fit the pictures, the grid or the kind of the layer."""
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
            f"{name} has {shape[-1]} tokens but no patch grid: the model needs patch_embed and patch_size, by which a grid is known"
        )
    rows, columns = layer.grid
    windows = len(layer.members) if layer.kind == "window" else 1
    if shape[0] != images * windows:
        raise ValueError(
            f"{name} has weights {shape} for {images} images of {windows} windows each: the first axis should be {images * windows}"
        )
    if layer.kind == "window":
        _check_members(layer, name)
    if layer.kind in ("global", "class"):
        prefix = shape[-1] - rows * columns
        if prefix not in (0, num_prefix_tokens):
            raise ValueError(
                f"{name}: {shape[-1]} tokens do not match {num_prefix_tokens} prefix tokens + "
                f"a grid of {rows} by {columns} = {rows * columns} patches"
            )
    if layer.kind == "class" and shape[-2] != 1:
        raise ValueError(f"{name} is of kind 'class', where one token asks, but {shape[-2]} do")
    if layer.kind in ("global", "channel") and shape[-2] != shape[-1]:
        raise ValueError(f"{name} needs as many queries as keys, got {shape[-2]} and {shape[-1]}")


def _check_members(layer: AttentionLayer, name: str) -> None:
    rows, columns = layer.grid
    members, tokens = layer.members, layer.weights.shape[-1]
    if members.shape[1] != tokens or layer.weights.shape[-2] != tokens:
        raise ValueError(
            f"{name} has windows of {members.shape[1]} patches, but weights {tuple(layer.weights.shape)}"
        )
    if not torch.equal(members.flatten().sort().values.cpu(), torch.arange(rows * columns)):
        raise ValueError(
            f"{name}: {tuple(members.shape)} members of windows do not name each of the {rows} by {columns} patches once"
        )


def _grid(layer: AttentionLayer) -> str:
    return f"{layer.grid[0]} by {layer.grid[1]}"
