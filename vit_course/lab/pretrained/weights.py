"""A published model, or its name, as the course's model with its weights: which converter takes what."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torchvision
from torch import nn

from .cait import cait_from_timm
from .deeper import parallel_vit_from_timm
from .distillation import distilled_vit_from_timm
from .max_vit import max_vit_from_torchvision
from .vit import vit_from_timm, vit_from_torchvision
from .xcit import xcit_from_timm


def _vision_transformer_from_timm(model: Any) -> nn.Module:
    """The converter for timm's VisionTransformer, whose blocks decide what it is."""
    parallel = all(type(block).__name__ == "ParallelThingsBlock" for block in model.blocks)
    return parallel_vit_from_timm(model) if parallel else vit_from_timm(model)


# A converter takes a foreign model of exactly the class it stands under.
FROM_TIMM: dict[str, Callable[[Any], nn.Module]] = {
    "VisionTransformer": _vision_transformer_from_timm,
    "VisionTransformerDistilled": distilled_vit_from_timm,
    "Cait": cait_from_timm,
    "Xcit": xcit_from_timm,
}
FROM_TORCHVISION: dict[str, Callable[[Any], nn.Module]] = {
    "VisionTransformer": vit_from_torchvision,
    "MaxVit": max_vit_from_torchvision,
}


def from_timm(model: nn.Module | str, pretrained: bool = False) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of timm.

    Args:
        model: a model of timm, or the name of one.
        pretrained: for a name, download its published weights.

    Returns:
        A model of its own, with copied weights, on the same device; each part is in training or evaluation
        as its counterpart is. Dropout, which only training has, is left off.

    Raises:
        ValueError: for a name or a variant that the course's models do not compute, naming what differs.
        TypeError: for anything else.
        ConnectionError: where published weights cannot be had.
        ImportError: without timm.
    """
    timm = _import_timm()
    if isinstance(model, str):
        name = model
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}")
        model = _create(name, lambda: timm.create_model(name, pretrained=pretrained), download=pretrained)
    return _convert(model, "timm", FROM_TIMM)


def from_torchvision(model: nn.Module | str, weights: object = None) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of torchvision.

    Args:
        model: a model of torchvision, or the name of one.
        weights: for a name, the published weights to download, "DEFAULT" for example.

    Returns:
        A model as `from_timm` makes it.

    Raises:
        ValueError, TypeError, ConnectionError: as `from_timm` does.
    """
    if isinstance(model, str):
        name, models = model, torchvision.models
        if name not in models.list_models():
            raise ValueError(f"torchvision has no model {name!r}")
        if isinstance(weights, str) and weights not in models.get_model_weights(name).__members__:
            raise ValueError(f"torchvision has no weights {weights!r} for {name}")
        model = _create(name, lambda: models.get_model(name, weights=weights), download=weights is not None)
    return _convert(model, "torchvision", FROM_TORCHVISION)


def _import_timm() -> ModuleType:
    """timm, which only those need who want its models."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("from_timm needs timm: pip install timm") from error
    return timm


def _create(name: str, create: Callable[[], nn.Module], download: bool) -> nn.Module:
    """The created model; where weights were to be downloaded, any failure becomes one sentence."""
    try:
        return create()
    except Exception as error:  # every library on the way to a hub has errors of its own
        if not download:
            raise
        raise ConnectionError(
            f"the published weights of {name} could not be had; is there a network? ({error})"
        ) from error


def _convert(model: nn.Module, library: str, converters: dict[str, Callable[[Any], nn.Module]]) -> nn.Module:
    """Our model for a foreign one, by the converter for exactly its class: a subclass may differ."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"from_{library} needs a model of {library} or its name, got {model!r}")
    kind = type(model)
    if not kind.__module__.startswith(f"{library}.") or kind.__name__ not in converters:
        raise TypeError(
            f"from_{library} takes {library}'s {', '.join(converters)}, got {kind.__module__}.{kind.__name__}"
        )
    return converters[kind.__name__](model).to(next(model.parameters()))
