"""Numbers of the authors' own models, which the course's models must give again.

    golden = load("deepvit_1")
    golden.error(from_authors(golden.variant, golden.weights, golden.config))

Each file holds a small configuration with weights that make every part count, run once in evaluation mode
through the code that the authors published; its metadata names repository and commit. The files that lessons
show lie beside this module, all others in tests/golden/authors. The weights are random and of our own making;
no code of the authors is in them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

__all__ = ["FOLDER", "Golden", "load"]

FOLDER = Path(__file__).parent
WEIGHTS = "weights/"


@dataclass(frozen=True)
class Golden:
    """One configuration of the authors' code, and what it computes.

    Attributes:
        variant: which model, as `vit_course.lab.pretrained.from_authors` knows it.
        config: the arguments of the authors' constructor.
        source: paper, repository and commit.
        weights: by their names in the authors' code.
        images: what the model saw.
        output: what it gave, in single precision.
        output_double: the same run in double precision, where it was stored.
    """

    variant: str
    config: Mapping[str, Any]
    source: str
    weights: Mapping[str, Tensor]
    images: Tensor
    output: Tensor
    output_double: Tensor | None

    def answer(self, images: Tensor) -> Tensor:
        """What the authors' model gave for its images, in the place of that model."""
        return self.output

    def doubled(self) -> dict[str, Tensor]:
        """The weights in double precision; what is a whole number stays one."""
        return {
            name: part.double() if part.is_floating_point() else part for name, part in self.weights.items()
        }

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """The largest difference of a model's outputs, as a share of the largest output.

        Args:
            model: in evaluation mode, of either precision.

        Raises:
            ValueError: for a model in double precision where no such run is stored.
        """
        dtype = next(model.parameters()).dtype
        expected = self.output_double if dtype == torch.float64 else self.output
        if expected is None:
            raise ValueError(f"of this {self.variant} no output in double precision is stored")
        return ((model(self.images.to(dtype)) - expected).abs().max() / expected.abs().max()).item()


def load(file: str | Path) -> Golden:
    """Read a stored configuration.

    Args:
        file: the path of a safetensors file, or the name of one beside this module.

    Raises:
        ValueError: there is no such file.
    """
    path = file if isinstance(file, Path) else FOLDER / f"{file}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in FOLDER.glob("*.safetensors")))
        raise ValueError(f"no numbers of authors are stored as {file}; there are {there}")
    with safe_open(path, "pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    return Golden(
        variant=about["variant"],
        config=json.loads(about["config"]),
        source=f"{about['paper']}; {about['repo']}, commit {about['commit']}",
        weights={
            name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)
        },
        images=tensors["input"],
        output=tensors["output"],
        output_double=tensors.get("output_f64"),
    )
