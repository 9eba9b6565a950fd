"""The numbers of models as they were: names and shapes of their states, weights, and the logits that these
weights give.

    cd tests && python -m support.golden          # adds the models of the catalogue that are not stored yet
    cd tests && python -m support.golden "CaiT"   # stores this one again, where its numbers are meant to move

One file for each case of `support.models`, in tests/golden/. Weights are rounded to half precision, so that
the files are small, and the logits computed in double precision, so that they are the same on every
processor. States stand in one readable file.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from support.models import CASES, Case, images
from vit_course.lab.parity import randomise

FOLDER = Path(__file__).resolve().parents[1] / "golden"
STATES = FOLDER / "states.json"
LOGITS, IMAGES = "golden logits", "golden images"


def state_of(model: nn.Module) -> dict[str, list[int]]:
    """The name and shape of everything in a model's state."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def stored_states() -> dict[str, dict[str, list[int]]]:
    """`state_of` for every stored case."""
    return json.loads(STATES.read_text(encoding="utf-8")) if STATES.exists() else {}


def path_of(name: str) -> Path:
    """Where the weights and logits of a case lie."""
    return FOLDER / f"{name.replace(' ', '_')}.safetensors"


def load(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights, images (b, 3, 16, 16) and their logits (b, 5), in double precision."""
    weights = doubled(load_file(path_of(name)))
    pixels, logits = weights.pop(IMAGES), weights.pop(LOGITS)
    return weights, pixels, logits


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state, what is no whole number in double precision."""
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def store(name: str, case: Case) -> None:
    """Draw weights for a case and write them with its logits; its state goes into the common file."""
    states = stored_states() | {name: state_of(case.build())}
    weights = {
        key: value.half() if value.is_floating_point() else value
        for key, value in randomise(case.build()).state_dict().items()
    }
    pixels = images(2, 3, 16, 16, seed=1).half()
    model = case.build().double().eval()
    model.load_state_dict(doubled(weights))
    with torch.no_grad():
        logits = model(pixels.double())
    FOLDER.mkdir(exist_ok=True)
    save_file(weights | {IMAGES: pixels, LOGITS: logits}, path_of(name))
    lines = [f"{json.dumps(key)}: {json.dumps(state)}" for key, state in states.items()]
    STATES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or [name for name in CASES if not path_of(name).exists()]:
        store(name, CASES[name])
        print(f"stored {name}")
