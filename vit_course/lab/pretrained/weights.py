"""A published model, or its name, into the model of the course with its weights: which converter takes which class."""

from collections.abc import Callable

import torchvision
from torch import nn

from .cait import cait_from_timm
from .distillation import distilled_vit_from_timm
from .max_vit import max_vit_from_torchvision
from .vit import vit_from_timm, vit_from_torchvision
from .xcit import xcit_from_timm

# A converter takes a foreign model of exactly the class it stands under.
FROM_TIMM: dict[str, Callable[[nn.Module], nn.Module]] = {
    "VisionTransformer": vit_from_timm,
    "VisionTransformerDistilled": distilled_vit_from_timm,
    "Cait": cait_from_timm,
    "Xcit": xcit_from_timm,
}
FROM_TORCHVISION: dict[str, Callable[[nn.Module], nn.Module]] = {
    "VisionTransformer": vit_from_torchvision,
    "MaxVit": max_vit_from_torchvision,
}


def from_timm(model: nn.Module | str, pretrained: bool = False) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of timm.

    model: a model of timm, or the name of one. pretrained: for a name, download its published weights.
    Returns a model of its own, with copied weights, on the same device; dropout, which only training has, is left off.
    Raises ValueError for a name or a variant that the course's models do not compute, naming what differs; TypeError for anything else;
    ConnectionError where published weights cannot be had; ImportError without timm.
    """
    timm = _import_timm("from_timm")
    if isinstance(model, str):
        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}")
        model = _download(model, lambda: timm.create_model(model, pretrained=pretrained), wanted=pretrained)
    return _convert(model, "timm", FROM_TIMM)


def from_torchvision(model: nn.Module | str, weights: object = None) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of torchvision.

    model: a model of torchvision, or the name of one. weights: for a name, the published weights to download, "DEFAULT" for example.
    Returns, and raises, as `from_timm` does.
    """
    if isinstance(model, str):
        if model not in torchvision.models.list_models():
            raise ValueError(f"torchvision has no model {model!r}")
        if (
            isinstance(weights, str)
            and weights not in torchvision.models.get_model_weights(model).__members__
        ):
            raise ValueError(f"torchvision has no weights {weights!r} for {model}")
        model = _download(
            model, lambda: torchvision.models.get_model(model, weights=weights), wanted=weights is not None
        )
    return _convert(model, "torchvision", FROM_TORCHVISION)


def _import_timm(caller: str):
    """timm, which only those need who want its models."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{caller} needs timm: pip install timm") from error
    return timm


def _download(name: str, create: Callable[[], nn.Module], wanted: bool) -> nn.Module:
    """The created model; where its weights were wanted from the network, any failure becomes one sentence."""
    try:
        return create()
    except Exception as error:  # every library on the way to a hub has errors of its own
        if not wanted:
            raise
        raise ConnectionError(
            f"the published weights of {name} could not be had; is there a network? ({error})"
        ) from error


def _convert(
    model: nn.Module, library: str, converters: dict[str, Callable[[nn.Module], nn.Module]]
) -> nn.Module:
    """Our model for a foreign one, by the converter for exactly its class: a subclass may compute something else."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"from_{library} needs a model of {library} or its name, got {model!r}")
    kind = type(model)
    if not kind.__module__.startswith(f"{library}.") or kind.__name__ not in converters:
        raise TypeError(
            f"from_{library} takes {library}'s {', '.join(converters)}, got {kind.__module__}.{kind.__name__}"
        )
    ours = converters[kind.__name__](model)
    return ours.to(next(model.parameters())).train(model.training)
