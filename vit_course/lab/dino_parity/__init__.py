"""Lesson 10's parts beside stored numbers of DINOv2's own code, and wrong versions that these must see.

The files beside this module hold random inputs and what facebookresearch/dinov2 (commit b8931f7b, Apache 2.0)
makes of them: dinov2/loss/dino_clstoken_loss.py and koleo_loss.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ..parity import relative_error

FOLDER = Path(__file__).parent
SINKHORN = ("sinkhorn_0", "sinkhorn_1")
KOLEO = ("koleo_0", "koleo_1")


def load(name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The numbers of a file, by name, and the configuration with which they were made."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}, json.loads(file.metadata()["config"])


def errors(
    sinkhorn_knopp: Callable[[Tensor, float], Tensor], koleo: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Relative errors of targets, of KoLeo and of its gradient, the largest over the files.

    Args:
        sinkhorn_knopp: logits (n, k) and temperature -> targets (n, k).
        koleo: features (b, d) -> a scalar with a gradient.
    """
    found: dict[str, list[float]] = {"targets, DINOv2": [], "KoLeo, DINOv2": [], "its gradient, DINOv2": []}
    for name in SINKHORN:
        numbers, config = load(name)
        targets = sinkhorn_knopp(numbers["input"], config["teacher_temp"])
        found["targets, DINOv2"].append(relative_error(targets, numbers["output"]))
    for name in KOLEO:
        numbers, _ = load(name)
        features = numbers["input"].requires_grad_()
        value = koleo(features)
        (gradient,) = torch.autograd.grad(value, features)
        found["KoLeo, DINOv2"].append(relative_error(value.detach(), numbers["output"]))
        found["its gradient, DINOv2"].append(relative_error(gradient, numbers["mid/gradient"]))
    return {name: max(values) for name, values in found.items()}


def scaled(logits: Tensor, temperature: float, iterations: int = 3, prototypes_first: bool = True) -> Tensor:
    """Sinkhorn-Knopp targets by the formula as it stands, which overflows for large logits.

    Args:
        logits: (n, k).
        temperature: of the teacher.
        iterations: how often columns and rows are divided.
        prototypes_first: columns before rows, as it should be.
    """
    q = (logits / temperature).exp()
    n, k = q.shape
    for _ in range(iterations):
        for columns in (prototypes_first, not prototypes_first):
            q = q / q.sum(0, keepdim=True) * n / k if columns else q / q.sum(1, keepdim=True)
    return q


def nearest(rows: Tensor) -> Tensor:
    """The distance of each row (b, d) to its nearest neighbour, (b,)."""
    return (torch.cdist(rows, rows) + 1e3 * torch.eye(len(rows))).amin(dim=1)


# Wrong targets of logits and temperature, and wrong KoLeos of features, each of the right shape.
WRONG_TARGETS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rows before columns": lambda x, t: scaled(x, t, prototypes_first=False),
    "one iteration": lambda x, t: scaled(x, t, 1),
    "until it converges": lambda x, t: scaled(x, t, 50),
    "rows sum to 1 / n": lambda x, t: scaled(x, t) / len(x),
    "a plain softmax": lambda x, t: (x / t).softmax(dim=1),
    "softmax without the batch's mean": lambda x, t: ((x - x.mean(0)) / t).softmax(dim=1),
    "no temperature": lambda x, t: scaled(x, 1.0),
    "over the other axis": lambda x, t: scaled(x.T, t).T,
    "rows of zeros appended": lambda x, t: scaled(torch.cat([x, 0 * x[:2]]), t)[:-2],
}
WRONG_KOLEOS: dict[str, Callable[[Tensor], Tensor]] = {
    "not normalised": lambda x: -nearest(x).log().mean(),
    "farthest neighbour": lambda x: -(torch.cdist(F.normalize(x), F.normalize(x))).amax(1).log().mean(),
    "its own neighbour": lambda x: -(torch.zeros(len(x)) + 1e-8).log().mean(),
    "squared distances": lambda x: -nearest(F.normalize(x)).square().log().mean(),
    "sum over the pictures": lambda x: -nearest(F.normalize(x)).log().sum(),
    "other sign": lambda x: nearest(F.normalize(x)).log().mean(),
    "logarithm of the mean": lambda x: -nearest(F.normalize(x)).mean().log(),
}


def mistakes() -> dict[str, float]:
    """How far wrong versions are off, the largest relative error over the files."""
    off = {}
    for wrong, target in WRONG_TARGETS.items():
        cases = [load(name) for name in SINKHORN]
        off[wrong] = max(
            relative_error(target(numbers["input"], config["teacher_temp"]), numbers["output"])
            for numbers, config in cases
        )
    for wrong, koleo in WRONG_KOLEOS.items():
        files = [load(name)[0] for name in KOLEO]
        off[wrong] = max(relative_error(koleo(numbers["input"]), numbers["output"]) for numbers in files)
    return off
