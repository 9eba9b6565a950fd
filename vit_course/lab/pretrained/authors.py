"""Weights of the authors' own code in the course's models: which converter takes which variant."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .deeper import deep_vit_from_authors

Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], nn.Module]

# A converter takes weights under the authors' names and the arguments of their constructor.
FROM_AUTHORS: dict[str, Converter] = {
    "deepvit": deep_vit_from_authors,
}


def from_authors(variant: str, weights: Mapping[str, Tensor], config: Mapping[str, Any] | str) -> nn.Module:
    """The course's model with weights that belong to the code its authors published.

    Args:
        variant: which model, one of FROM_AUTHORS: "deepvit".
        weights: by their names in the authors' code.
        config: the arguments of the authors' constructor by name, with `norm_eps` for the epsilon of its
            layer norms; or the same as JSON.

    Returns:
        A model in evaluation mode, with copied weights, in the precision that they have.

    Raises:
        ValueError: for another variant, for arguments that ours does not compute, naming them, and for
            weights that are not those of such a model.
    """
    if variant not in FROM_AUTHORS:
        raise ValueError(f"from_authors knows {', '.join(FROM_AUTHORS)}, got {variant!r}")
    arguments = json.loads(config) if isinstance(config, str) else config
    try:
        return FROM_AUTHORS[variant](weights, arguments).eval()
    except KeyError as error:
        raise ValueError(f"weights and config are not those of a {variant}: {error} is missing") from error
