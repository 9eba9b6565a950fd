"""The zoo: small models that the course trained, stored with their cards; a lesson opens with one at once.

    from vit_course.lab import zoo

    model = zoo.load("photos-vit")        # trained, in eval mode; its images go through `normalise` first
    before = zoo.untrained("photos-vit")  # the same network with fresh weights, to look at beside it
    zoo.card("photos-vit").measured       # what it was found to be worth

Each model is a file of weights and a card, beside this module. `make results` makes them from recipes of the
course (benchmarks/zoo.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as safetensors_load
from torch import nn

from vit_course.patching import ConvStem

from ..catalogue import MODELS
from ..data.image_set import check_choice

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """What a stored model is, how it came to be, and what it was found to be worth.

    Attributes:
        model: its name in the catalogue.
        sizes: the arguments of its constructor.
        stem: whether a `ConvStem` stands in the place of the plain patch embedding.
        classes: what its logits stand for.
        recipe: all that decided its weights but the seed.
        seed: of weights, batches and augmentation.
        parameters: how many numbers it has learned.
        core_s: what the training took, in seconds of one thread.
        validation_accuracy: on the pictures on which the recipe was chosen.
        measured: numbers by name, on pictures that no choice has seen.
        sample: the same numbers on the first of these pictures, which the tests measure again.
        date, machine: when and on what it was trained.
        sha256: of its file of weights.
    """

    model: str
    sizes: dict[str, Any]
    stem: bool
    classes: list[str]
    recipe: dict[str, Any]
    seed: int
    parameters: int
    core_s: float
    validation_accuracy: float
    measured: dict[str, float]
    sample: dict[str, float]
    date: str
    machine: dict[str, str]
    sha256: str

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        return build(self.model, self.sizes, self.stem)

    def as_json(self) -> str:
        """Write the card as text, with a line for each entry."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def build(model: str, sizes: dict[str, Any], stem: bool = False) -> nn.Module:
    """Make a network of the catalogue with fresh weights.

    Args:
        model: its name in the catalogue.
        sizes: the arguments of its constructor.
        stem: whether a `ConvStem` stands in the place of the plain patch embedding.
    """
    sizes = dict(sizes)
    if stem:
        sizes["patch_embedding"] = ConvStem(patch_size=sizes["patch_size"], dim=sizes["dim"])
    return MODELS[model].kind(**sizes)


def names() -> list[str]:
    """The names of the models that are stored."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name: str) -> Card:
    """Read the card of a model.

    Args:
        name: one of `names()`.

    Raises:
        TypeError, ValueError: for another name, where the sentence lists those there are, and for a file that
            is not a card.
    """
    check_choice("name", name, tuple(names()))
    path = FOLDER / f"{name}.json"
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path.name} is not a card of the zoo: {error}; install the course again"
        ) from error


def load(name: str) -> nn.Module:
    """Load a trained model.

    Args:
        name: one of `names()`.

    Returns:
        The model in eval mode, with the weights of its card.

    Raises:
        TypeError, ValueError: for another name, and for a file of weights that the card does not describe.
    """
    stored = card(name)
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path.name} is missing: install the course again")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != stored.sha256:
        raise ValueError(f"{path.name} is not the file that its card describes: install the course again")
    model = stored.build()
    model.load_state_dict(safetensors_load(weights))
    return model.eval()


def untrained(name: str, seed: int = 0) -> nn.Module:
    """Make the network of a model with fresh weights, to look at beside the trained one.

    Args:
        name: one of `names()`.
        seed: of the weights; the caller's random state stays as it is.

    Returns:
        The model in eval mode.

    Raises:
        TypeError, ValueError: for another name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return card(name).build().eval()
