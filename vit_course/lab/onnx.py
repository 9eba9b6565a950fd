"""Models as ONNX files, which other programs run without Python or PyTorch.

    from vit_course.lab import onnx

    onnx.export(model, "model.onnx")
    logits = onnx.run("model.onnx", images)

Needs the packages of the extra `export`: onnx, onnxscript and onnxruntime.
"""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_course.training import eval_mode
from vit_course.vit import Backbone

__all__ = ["PACKAGES", "export", "is_there", "run"]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(model: nn.Module, path: str | PathLike[str], images: Tensor | None = None) -> Path:
    """Write a model, as it evaluates images, to an ONNX file.

    The file takes `images` (b, c, h, w) and gives `logits`, for any number b of images of one size.

    Args:
        model: a model that takes images, such as a backbone of the course.
        path: the file to write.
        images: an example (b, c, h, w) of the size, channels and type that the file is to take; by default
            noise of a backbone's own image size, with three channels.

    Returns:
        The path. Weights of more than 2 GB lie beside it, in a second file.

    Raises:
        ValueError: without `images`, for a model that has no image size of its own.
        ImportError: without the packages of the extra `export`.
    """
    _require_packages("onnx", "onnxscript")
    if images is None:
        images = _example(model)
    # With one image in the example the exporter would take the number for a constant.
    pair = images[:1].expand(2, -1, -1, -1).to(next(model.parameters()).device)
    with eval_mode(model), torch.no_grad():
        program = torch.onnx.export(
            model,
            (pair.contiguous(),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None  # as ever with dynamo=True
    path = Path(path).expanduser()
    program.save(str(path))
    return path


def run(path: str | PathLike[str], images: Tensor) -> Tensor:
    """What an ONNX file gives for images (b, c, h, w), computed by onnxruntime on the processor.

    Raises:
        ImportError: without onnxruntime.
    """
    _require_packages("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(Path(path).expanduser()), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.detach().cpu().numpy()})
    return torch.from_numpy(logits)


def _example(model: Any) -> Tensor:
    """Noise of the size that a backbone is made for."""
    if not isinstance(model, Backbone):
        raise ValueError(
            f"{type(model).__name__} has no image size of its own: give images of the size that is wanted"
        )
    height, width = (side * patch for side, patch in zip(model.grid, model.patch_size, strict=True))
    return torch.randn(2, 3, height, width, dtype=next(model.parameters()).dtype)


def is_there(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


def _require_packages(*names: str) -> None:
    """Raise one ImportError that says what to install."""
    missing = [name for name in names if not is_there(name)]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
