"""What a converter checks in a foreign model, layer by layer, and how it takes over the weights."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Ours = TypeVar("Ours", bound=nn.Module)


def taken_over(ours: type[Ours], theirs: nn.Module, names: Mapping[str, str], **config: Any) -> Ours:
    """A model of the course with the weights of a foreign one, each part in the mode of its counterpart.

    Args:
        ours: the class of the new model.
        theirs: the foreign model, which stays as it is.
        names: patterns of their parameters' names, and what stands in ours instead. A name that becomes empty
            is left out.
        **config: the arguments of the new model.

    Returns:
        A model with copied weights.

    Raises:
        ValueError: where the weights are not those of such a model.
    """
    state, modes = {}, {}
    for name, tensor in theirs.state_dict().items():
        training = theirs.get_submodule(_owner(name)).training
        for pattern, ours_instead in names.items():
            name = re.sub(pattern, ours_instead, name)
        if name:
            state[name], modes[_owner(name)] = tensor, training
    model = filled(ours, state, **config).train(theirs.training)
    for part, training in modes.items():
        model.get_submodule(part).training = training  # not train(): a part of a part may have another mode
    return model


def filled(
    ours: type[Ours], state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, **config: Any
) -> Ours:
    """A model of the course of this configuration, with these weights and no others.

    Args:
        ours: the class of the new model.
        state: the weights under our names.
        dtype: the precision of the model, PyTorch's default by default.
        **config: the arguments of the new model.

    Raises:
        ValueError: where the weights are not those of such a model.
    """
    model = ours(**config).to(dtype)
    own = model.state_dict()
    try:
        model.load_state_dict({name: _fitted(tensor, own.get(name)) for name, tensor in state.items()})
    except RuntimeError as error:
        raise ValueError(
            f"these weights are not those of a {ours.__name__} with {config}: {error}"
        ) from error
    return model


def _owner(name: str) -> str:
    """The name of the part to which a parameter belongs."""
    return name.rpartition(".")[0]


def _fitted(theirs: Tensor, ours: Tensor | None) -> Tensor:
    """A matrix instead of a 1 × 1 convolution, where ours is a linear layer: both compute the same."""
    is_linear = ours is not None and ours.ndim == 2
    return theirs.flatten(1) if is_linear and theirs.ndim == 4 else theirs


def refuse(ours: type[nn.Module], library: str, findings: Mapping[str, bool]) -> None:
    """Raise one ValueError that names everything a foreign model does and ours does not.

    Args:
        ours: the class of the course.
        library: where the foreign model is from.
        findings: for each difference whether it is there.
    """
    found = [name for name, is_there in findings.items() if is_there]
    if found:
        raise ValueError(
            f"the course's {ours.__name__} cannot take over this model of {library}; it differs in: "
            f"{', '.join(found)}"
        )


def head_of_torchvision(model: Any) -> nn.Module:
    """The classifier of torchvision's ViT; who wants features puts an Identity into `heads` or `head`."""
    return getattr(model.heads, "head", model.heads)


def is_our_norm(layer: nn.Module) -> bool:
    """Whether a layer is the LayerNorm of the course's models."""
    return isinstance(layer, nn.LayerNorm) and layer.eps == 1e-6


def is_our_gelu(layer: nn.Module) -> bool:
    """Whether a layer is the exact GELU, of whichever library."""
    return type(layer).__name__ == "GELU" and getattr(layer, "approximate", "none") == "none"


def is_identity(layer: nn.Module | None) -> bool:
    """Whether there is no layer, or one that does nothing."""
    return layer is None or isinstance(layer, nn.Identity)
