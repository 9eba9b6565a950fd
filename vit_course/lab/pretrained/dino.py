"""The ViTs that DINO, DINOv2 and DINOv3 published, as backbones of the course."""

import argparse
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit_course.vit import Backbone, ViT

from .comparison import filled
from .dino_later import dinov2, dinov3, with_names_of_timm

# Full checkpoints hold more than weights: the arguments of the run, and learning rates that NumPy computed.
# These run no code when they are read. NumPy's function has had two names.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
# What every ViT of theirs has, and how many axes it has.
_TELLING = {"cls_token": 3, "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2}


def from_dino(checkpoint: Mapping[str, object] | str | PathLike[str]) -> Backbone:
    """The ViT that the authors of DINO, DINOv2 or DINOv3 published, without classes.

    DINO's is a ViT of the course; it is the subject of lesson 10. Those of DINOv2 (LayerScale, with or
    without registers) and DINOv3 (rotary positions besides) are made by timm and adapted, see `adapt`.

    Args:
        checkpoint: one of their files or of timm's copies, or what it holds: a backbone alone, or a full
            checkpoint, of which the teacher is taken. A name that ends in .safetensors is read as such a
            file.

    Returns:
        A backbone that gives class token features (b, d).

    Raises:
        ValueError: for a file or dictionary that holds no such backbone, naming the file and what it holds.
        TypeError: for what is neither a path nor a dictionary.
        ImportError: for weights of DINOv2 and DINOv3 without timm.

    Source:
        Caron et al. 2021; Oquab et al. 2023; Darcet et al. 2024; Siméoni et al. 2025;
        github.com/facebookresearch.
    """
    if isinstance(checkpoint, Mapping):
        return _vit(checkpoint, "this checkpoint")
    if not isinstance(checkpoint, str | PathLike):
        raise TypeError(f"checkpoint must be a path or a dictionary, got {type(checkpoint).__name__}")
    path = Path(checkpoint).expanduser()
    return _vit(_read(path), str(path))


def _read(path: Path) -> object:
    """What a file of torch.save or safetensors holds; no code in it is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # there is no end to the ways in which foreign bytes fail
        raise ValueError(f"{path} is not a file of weights: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read: what it is, or how it begins, rather than where the reader stumbled."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "it may not be read"
    foreign_class = re.search(r"GLOBAL (\S+)", str(error))
    if foreign_class:
        return f"it holds {foreign_class[1]}, which could run code when it is read"
    with path.open("rb") as file:
        start = file.read(24)
    if not start:
        return "it is empty"
    stumbled = str(error).partition("\n")[0]
    return f"it begins with {start!r} ({type(error).__name__}: {stumbled})"


def _vit(checkpoint: object, source: str) -> Backbone:
    """The ViT in a checkpoint; `source` is what errors call it."""
    weights = checkpoint.get("teacher", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    state = _backbone(weights) if isinstance(weights, Mapping) else {}
    if any(getattr(state.get(name), "ndim", None) != axes for name, axes in _TELLING.items()):
        raise ValueError(f"{source} is not a checkpoint of a DINO ViT; it holds {_contents(weights)}")
    try:
        if "blocks.0.gamma_1" in state:
            return dinov3(state)
        if "pos_embed" not in state:
            raise ValueError("it has neither positions (pos_embed) nor DINOv3's LayerScale")
        return dinov2(state) if "blocks.0.ls1.gamma" in state else _dino(state)
    except KeyError as error:
        raise ValueError(f"{source} is not a checkpoint of a DINO ViT: {error.args[0]} is missing") from error
    except ValueError as error:
        raise ValueError(f"{source} is not a checkpoint of a DINO ViT: {error}") from error


def _dino(state: Mapping[str, Tensor]) -> ViT:
    """DINO's ViT: square images, heads of width 64."""
    dim, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    return filled(
        ViT,
        state,
        image_size=round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch_size,
        patch_size=patch_size,
        num_classes=0,
        dim=dim,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        heads=max(1, dim // 64),
        mlp_dim=len(state["blocks.0.mlp.fc1.weight"]),
        channels=channels,
    )


def _backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by timm's names, without those of heads.

    "module." is DistributedDataParallel's, "backbone." that of DINO's training code.
    """
    names = {name: re.sub(r"^(module\.)?(backbone\.)?", "", str(name)) for name in weights}
    heads = ("head.", "dino_head.", "ibot_head.")
    return with_names_of_timm(
        {ours: weights[name] for name, ours in names.items() if not ours.startswith(heads)}
    )


def _contents(weights: object) -> str:
    """What stands where a backbone should be."""
    if not isinstance(weights, Mapping):
        return f"an object of type {type(weights).__name__}"
    names = [str(name) for name in weights]
    if not names:
        return "nothing"
    return ", ".join(names[:5] + ["…"] if len(names) > 5 else names)
