"""An ONNX file gives what PyTorch gives, for any number of images."""

from pathlib import Path

import pytest
import torch
from support.models import CASES, images
from support.pretrained_models import images as larger_images
from support.pretrained_models import timm_vit
from torch import nn

from vit_course.lab import onnx
from vit_course.lab.parity import DIFFERENT, SAME, randomise, relative_error
from vit_course.lab.pretrained import adapt

needs_onnx = pytest.mark.skipif(
    not all(map(onnx.is_there, onnx.PACKAGES)),
    reason="onnx, onnxscript or onnxruntime is not installed",
)
# One of each kind in `make quick`; exporting is slow, and the windows of MaxViT slowest.
QUICK = {"ViT", "SimpleViT"}


def cases() -> list:
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]


@needs_onnx
@pytest.mark.parametrize("name", cases())
def test_every_backbone_gives_the_same_logits_at_any_batch_size(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = randomise(case.build(depth=case.least_depth, **case.dropouts)).train()
    modes = [part.training for part in model.modules()]
    path = onnx.export(model, tmp_path / "model.onnx", images())
    assert [part.training for part in model.modules()] == modes
    model.eval()
    for batch in (1, 2, 5):
        pixels = images(batch, 3, 16, 16)
        with torch.no_grad():
            assert relative_error(onnx.run(path, pixels), model(pixels)) < SAME
    with torch.no_grad():
        assert relative_error(onnx.run(path, pixels), randomise(model, seed=1)(pixels)) > DIFFERENT


@needs_onnx
def test_a_backbones_own_size_is_the_default(tmp_path: Path) -> None:
    model = randomise(CASES["ViT"].build(image_size=(8, 16)))
    path = onnx.export(model, str(tmp_path / "model.onnx"))
    pixels = images(3, 3, 8, 16)
    with torch.no_grad():
        assert relative_error(onnx.run(path, pixels), model(pixels)) < SAME


@needs_onnx
@pytest.mark.slow
def test_an_adapted_model_is_exported(tmp_path: Path) -> None:
    model = adapt(timm_vit(reg_tokens=2, init_values=0.5))
    path = onnx.export(model, tmp_path / "model.onnx")
    with torch.no_grad():
        assert relative_error(onnx.run(path, larger_images()), model(larger_images())) < SAME


@needs_onnx
def test_a_model_without_a_size_asks_for_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MaxViT has no image size of its own: give images"):
        onnx.export(CASES["MaxViT"].build(), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="Linear has no image size of its own"):
        onnx.export(nn.Linear(2, 2), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx, "is_there", lambda name: False)
    with pytest.raises(ImportError, match="ONNX needs onnx, onnxscript: pip install onnx onnxscript onnx"):
        onnx.export(CASES["ViT"].build(), tmp_path / "model.onnx")
    with pytest.raises(ImportError, match="ONNX needs onnxruntime: pip install"):
        onnx.run(tmp_path / "model.onnx", images())
