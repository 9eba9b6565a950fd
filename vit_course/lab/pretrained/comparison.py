"""What a converter asks of a foreign model, layer by layer, before it takes over the weights."""

from torch import Tensor, nn


def filled(ours: type[nn.Module], state: dict[str, Tensor], **config) -> nn.Module:
    """A model of the course of this configuration, with these weights and no others."""
    model = ours(**config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"these weights are not those of a {ours.__name__} with {config}: {error}"
        ) from error
    return model


def refuse(ours: type[nn.Module], library: str, findings: dict[str, bool]) -> None:
    """One ValueError that names everything a foreign model does and ours does not."""
    found = [name for name, is_there in findings.items() if is_there]
    if found:
        raise ValueError(
            f"the course's {ours.__name__} cannot take over this model of {library}; it differs in: {', '.join(found)}"
        )


def is_our_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) and layer.eps == 1e-6


def is_our_gelu(layer: nn.Module) -> bool:
    return type(layer).__name__ == "GELU" and getattr(layer, "approximate", "none") == "none"


def is_identity(layer: nn.Module | None) -> bool:
    return layer is None or isinstance(layer, nn.Identity)
