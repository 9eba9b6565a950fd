"""The folder of a run: its settings, its log, its checkpoint and the weights that it is worth keeping.

| file | holds |
|---|---|
| `config.json` | all settings, the versions that ran, the date |
| `log.jsonl` | a line for each step: loss, learning rate, and what a validation measured |
| `checkpoint.pt` | what `fit` resumes from |
| `model/` | the backbone, as `from_pretrained` reads it |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ..catalogue import MODELS
from ..writing import folder_beside, write_whole

CONFIG, LOG, CHECKPOINT, WEIGHTS = "config.json", "log.jsonl", "checkpoint.pt", "model"


@dataclass(frozen=True)
class RunFolder:
    """A folder that a training writes, and that its results are read from.

    Args:
        path: the folder, which need not be there yet.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def is_new(self) -> bool:
        """Whether nothing is there yet.

        Raises:
            ValueError: where a file stands in the place of the folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; a run needs a folder")
        return not self.path.exists() or not any(self.path.iterdir())

    def config(self) -> dict[str, Any]:
        """What `start` wrote.

        Raises:
            ValueError: for a folder without a run.
        """
        path = self.path / CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            config["settings"], config["image_size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} holds no run of vit-course pretrain: {CONFIG}: {error}") from error
        return config

    def start(self, config: Mapping[str, Any]) -> None:
        """Make the folder with its `config.json`, unless it has one."""
        if (self.path / CONFIG).exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")

    def keep(self, backbone: Any) -> None:
        """Write the weights: a kill leaves those of before, or these.

        Raises:
            OSError: where they cannot be written; those of before are then still there.
        """
        try:
            self.weights.mkdir(parents=True, exist_ok=True)
            with folder_beside(self.weights) as beside:
                backbone.save_pretrained(beside)
                for file in sorted(beside.iterdir()):
                    os.replace(file, self.weights / file.name)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"the weights could not be written to {self.weights}: {error}; what stood there before is "
                "kept"
            ) from error


def load_model(folder: Path) -> nn.Module:
    """The model of the course that a folder of `save_pretrained` holds.

    Args:
        folder: with `config.json` and `model.safetensors`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: for a folder with another model, or none.
    """
    try:
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("class")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no model that can be read: {error}") from error
    kinds: dict[str, Any] = {row.kind.__name__: row.kind for row in MODELS.values()}
    if name not in kinds:
        raise ValueError(f"{folder} holds a model of the class {name!r}, not one of {', '.join(kinds)}")
    return kinds[name].from_pretrained(folder)
