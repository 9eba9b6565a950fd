"""DINO's published files come in, in every form and without running code; other files are refused by name."""

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.pretrained_models import images
from timm.models import VisionTransformer
from torch import Tensor, nn

from vit_course.lab.parity import SAME, disagreement, randomise
from vit_course.lab.pretrained import from_dino

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}


def published() -> VisionTransformer:
    torch.manual_seed(0)
    return randomise(VisionTransformer(**SIZES))


def backbone() -> dict[str, Tensor]:
    return published().state_dict()


def full(teachers_prefix: str = "backbone.") -> dict:
    """What `main_dino.py` writes: two networks with heads, optimizer, loss and the arguments of the run."""
    student = {f"module.backbone.{name}": torch.zeros_like(tensor) for name, tensor in backbone().items()}
    teacher = {f"{teachers_prefix}{name}": tensor for name, tensor in backbone().items()}
    rate = np.linspace(0, 1e-3, 5)[2]  # of DINO's schedules, which NumPy computes
    return {
        "student": student | {"module.head.mlp.0.weight": torch.ones(3, 128)},
        "teacher": teacher
        | {teachers_prefix.replace("backbone", "head") + "last_layer.weight_g": torch.ones(3)},
        "optimizer": {"state": {}, "param_groups": [{"lr": rate, "weight_decay": np.float32(0.04)}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 3)},
        "fp16_scaler": None,
    }


FORMS: dict[str, Callable[[], dict]] = {
    "backbone": backbone,
    "full": full,
    "full, of a teacher with BatchNorms": lambda: full("module.backbone."),
    "backbone, of a network with a head": lambda: {f"backbone.{name}": t for name, t in backbone().items()},
}


@pytest.mark.parametrize("written", ["dictionary", "file", "file of old", "file at home"])
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_teachers_features(
    form: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: object = FORMS[form]()
    if written != "dictionary":
        torch.save(checkpoint, tmp_path / "dino.pth", _use_new_zipfile_serialization=written != "file of old")
        checkpoint = tmp_path / "dino.pth"
    if written == "file at home":
        monkeypatch.setenv("HOME", str(tmp_path))
        checkpoint = "~/dino.pth"
    ours = from_dino(checkpoint).eval()
    assert ours.num_features == 128 and disagreement(ours, published(), images()) < SAME


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(backbone(), tmp_path / "model.safetensors")
    ours = from_dino(tmp_path / "model.safetensors").eval()
    assert disagreement(ours, published(), images()) < SAME


def test_numpy_may_have_written_its_numbers_under_the_old_name(tmp_path: Path) -> None:
    """NumPy 1 wrote numpy.core, as DINO's published files hold it; NumPy 2 writes numpy._core."""
    path = tmp_path / "full.pth"
    torch.save(full(), path, _use_new_zipfile_serialization=False)
    new, old = b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"
    written = path.read_bytes()
    assert new in written or old in written
    path.write_bytes(written.replace(new, old))
    assert from_dino(path).num_features == 128


class RunsCode:
    """An object that runs code where it is unpickled."""

    def __reduce__(self) -> tuple:
        return print, ("this should never run",)


# ---- wrong files -------------------------------------------------------------------------------------------


def saved(checkpoint: object) -> Callable[[Path], object]:
    return lambda path: torch.save(checkpoint, path)


def zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter/text.txt", "hello")


def cut_off(path: Path) -> None:
    torch.save(backbone(), path)
    path.write_bytes(path.read_bytes()[:3000])


def with_shape(name: str, *shape: int) -> dict[str, Tensor]:
    return backbone() | {name: torch.zeros(shape)}


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (Path.mkdir, "it is a folder"),
    "empty": (Path.touch, "it is empty"),
    "text": (lambda path: path.write_bytes(b"hello, world"), "it begins with b'hello, world'"),
    "half a pickle": (lambda path: path.write_bytes(b"\x80\x02"), r"it begins with b'\\x80\\x02' \(EOFError"),
    "zip": (zip_of_text, r"it begins with b'PK"),
    "cut off": (cut_off, r"it begins with b'PK.*zip archive"),
    "code": (saved({"teacher": RunsCode()}), "it holds print, which could run code"),
    "model": (saved(nn.Linear(2, 2)), "it holds torch.nn.modules.linear.Linear"),
    "list": (saved([1, 2]), "it holds an object of type list"),
    "tensor": (saved(torch.ones(2)), "it holds an object of type Tensor"),
    "no names": (saved({}), "it holds nothing"),
    "numbers for names": (saved({1: torch.ones(2)}), "it holds 1"),
    "other model": (saved(nn.Linear(2, 2).state_dict()), "it holds weight, bias"),
    "linear classifier": (
        saved({"epoch": 1, "state_dict": {"module.linear.weight": torch.ones(2, 2)}, "best_acc": 77.0}),
        "it holds epoch, state_dict, best_acc",
    ),
    "teacher is a number": (saved({"teacher": 3}), "it holds an object of type int"),
    "teacher of another model": (
        saved({"teacher": {"backbone.conv1.weight": torch.ones(2)}}),
        "backbone.conv1",
    ),
    "missing weights": (
        saved({name: tensor for name, tensor in backbone().items() if "norm1" not in name}),
        "Missing.*norm1",
    ),
    "one factor of LayerScale": (saved(with_shape("blocks.0.ls1.gamma", 128)), r"Missing.*blocks\.0\.ls2"),
    "patches without axes": (saved(with_shape("patch_embed.proj.weight", 128, 192)), "it holds cls_token"),
    "longish patches": (saved(with_shape("patch_embed.proj.weight", 128, 3, 8, 4)), "size mismatch"),
    "longish images": (saved(with_shape("pos_embed", 1, 9, 128)), "size mismatch for pos_embed"),
    "no patches": (saved(with_shape("patch_embed.proj.weight", 128, 3, 0, 0)), "at least 1"),
    "values": (saved(backbone() | {"blocks.0.norm1.bias": 3}), "blocks.0.norm1.bias"),
    "text for safetensors": (lambda path: path.with_suffix(".safetensors").write_bytes(b"hello"), "b'hello'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_named_with_what_is_in_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write, sentence = WRONG[kind]
    path = tmp_path / "checkpoint.pth"
    write(path)
    if not path.exists() and path.with_suffix(".safetensors").exists():
        path = path.with_suffix(".safetensors")
    with pytest.raises(ValueError, match=f"(?s){path}.*{sentence}"):
        from_dino(path)
    assert "never run" not in capsys.readouterr().out


def test_a_wrong_dictionary_is_named_by_what_is_in_it() -> None:
    with pytest.raises(ValueError, match="this checkpoint is not .* DINO ViT; it holds layer.weight"):
        from_dino({"layer.weight": torch.zeros(2)})
    with pytest.raises(TypeError, match="must be a path or a dictionary, got int"):
        from_dino(5)
