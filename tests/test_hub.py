"""What `save_pretrained` writes, `from_pretrained` brings back; all else is refused in words."""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import CASES, images
from support.pretrained_models import timm_vit
from torch import nn

from vit_course.lab.parity import randomise
from vit_course.lab.pretrained import adapt
from vit_course.patching import ConvStem, PatchEmbedding
from vit_course.vit import ViT

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 32,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 32,
}


@pytest.mark.parametrize("name", CASES)
def test_every_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = randomise(CASES[name].build())
    model.save_pretrained(tmp_path / "run")
    again = type(model).from_pretrained(tmp_path / "run")
    assert type(again) is type(model) and not again.training
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_a_model_that_came_back_can_be_trained_and_saved_over_itself(tmp_path: Path) -> None:
    """Its weights must not lie in the file that the second save writes."""
    ViT(**SIZES).save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path).train()
    again(images()).square().sum().backward()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter -= parameter.grad
    again.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(ViT.from_pretrained(tmp_path)(images()), again.eval()(images()))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_keep_their_type(kind: torch.dtype, tmp_path: Path) -> None:
    model = CASES["SimpleViT"].build().to(kind).eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in again.parameters()} == {kind} and again.pos_embed.dtype == kind
    with torch.no_grad():
        assert torch.equal(again(images().to(kind)), model(images().to(kind)))


def test_arguments_can_differ_where_the_weights_fit(tmp_path: Path) -> None:
    ViT(**SIZES).save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path, emb_dropout=0.5).pos_drop.p == 0.5
    with pytest.raises(ValueError, match=r"head.bias has shape \(5,\), not \(7,\)"):
        ViT.from_pretrained(tmp_path, num_classes=7)
    with pytest.raises(ValueError, match="make no ViT.*'colour'"):
        ViT.from_pretrained(tmp_path, colour=3)


def test_the_configuration_is_what_a_reader_would_write(tmp_path: Path) -> None:
    stem = ConvStem(patch_size=4, dim=32, channels=1)
    ViT(**SIZES | {"image_size": (16, 8)}, channels=1, patch_embedding=stem).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    stem_in_json = {"ConvStem": {"patch_size": 4, "dim": 32, "channels": 1}}
    assert config == {"class": "ViT"} | SIZES | {
        "image_size": [16, 8],
        "channels": 1,
        "patch_embedding": stem_in_json,
    }


def test_a_patch_embedding_of_lesson_01_is_named(tmp_path: Path) -> None:
    embedding = PatchEmbedding(patch_size=(4, 8), dim=32)
    model = ViT(**SIZES | {"patch_size": (4, 8)}, patch_embedding=embedding).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(ViT.from_pretrained(tmp_path)(images()), model(images()))


def test_signatures_are_those_of_the_constructors() -> None:
    """`__new__` must not hide the keywords that Shift-Tab shows."""
    for case in CASES.values():
        kind = case.row.kind
        own = list(inspect.signature(kind.__init__).parameters)[1:]
        assert list(inspect.signature(kind).parameters) == own and "num_classes" in own


def test_copies_remember_their_arguments(tmp_path: Path) -> None:
    copy.deepcopy(ViT(**SIZES)).save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path).grid == (4, 4)


# ---- what is not saved -------------------------------------------------------------------------------------


class OwnEmbedding(PatchEmbedding):
    """The same weights, and another computation."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().forward(pictures).flip(1)


def with_other_head() -> nn.Module:
    model = ViT(**SIZES)
    model.head = nn.Linear(32, 7)
    return model


def with_other_activation() -> nn.Module:
    model = ViT(**SIZES)
    model.blocks[0].mlp.act = nn.ReLU()
    return model


def with_own_embedding() -> nn.Module:
    model = ViT(**SIZES)
    model.patch_embed = OwnEmbedding(patch_size=4, dim=32)
    return model


NOT_SAVED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "module": (
        lambda: ViT(**SIZES, patch_embedding=OwnEmbedding(patch_size=4, dim=32)),
        r"a model with patch_embedding=OwnEmbedding\(…\) cannot be saved",
    ),
    "head": (with_other_head, "this ViT cannot be saved: some of its parts are not those"),
    "activation": (with_other_activation, "this ViT cannot be saved"),
    "embedding": (with_own_embedding, "this ViT cannot be saved"),
    "foreign": (lambda: adapt(timm_vit()), r"a model with model=VisionTransformer\(…\) cannot be saved"),
}


@pytest.mark.parametrize(("make", "words"), NOT_SAVED.values(), ids=NOT_SAVED.keys())
def test_what_would_not_come_back_is_not_saved(
    make: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    ViT(**SIZES).save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=words):
        make().save_pretrained(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match=words):
        make().save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- what is not loaded ------------------------------------------------------------------------------------


def change(**entries: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | entries
        config = {name: value for name, value in config.items() if value != "away"}
        path.write_text(json.dumps(config), encoding="utf-8")

    return apply


def weights(**tensors: torch.Tensor | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors") | {
            k.replace("__", "."): t for k, t in tensors.items()
        }
        save_file({k: t for k, t in state.items() if t is not None}, folder / "model.safetensors")

    return apply


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "can be read.*config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "can be read.*model.safetensors"),
    "text": (lambda folder: (folder / "config.json").write_text("hello", encoding="utf-8"), "can be read"),
    "list": (
        lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
        "holds a model of another library",
    ),
    "text as weights": (
        lambda folder: (folder / "model.safetensors").write_text("hello", encoding="utf-8"),
        "can be read",
    ),
    "another class": (change(**{"class": "CaiT"}), "holds a CaiT, not a ViT of the course"),
    "no class": (change(**{"class": "away"}), "holds a model of another library, not a ViT of the course"),
    "unknown key": (change(colour=3, size=4), "a ViT has no argument colour, size"),
    "missing key": (change(dim="away"), "these arguments make no ViT.*'dim'"),
    "wrong size": (change(dim=-1), "these arguments make no ViT: dim must be at least 1, got -1"),
    "wrong embedding": (
        change(patch_embedding={"os.system": {}}),
        "patch_embedding must be PatchEmbedding or ConvStem, got os.system",
    ),
    "other size": (change(dim=64), r"the weights are not those of such a ViT: .* has shape"),
    "weights missing": (weights(norm__bias=None), "such a ViT: 1 missing, norm.bias for one"),
    "weights too many": (weights(more=torch.ones(1)), "such a ViT: 1 too many, more for one"),
}


@pytest.mark.parametrize(("damage", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_damaged_folder_is_named_in_one_sentence(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    ViT(**SIZES).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{words}") as caught:
        ViT.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere/at_all", "/nowhere/at/all", "a name with spaces"])
def test_a_model_that_nobody_has_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=f"there is no folder {name}, and the hub") as caught:
        ViT.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_hub_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's download stands in its own library; here a folder stands for what it leaves behind."""
    model = ViT(**SIZES).eval()
    model.save_pretrained(tmp_path)
    asked = {}

    def snapshot(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("vit_course.vit.snapshot_download", snapshot)
    again = ViT.from_pretrained("someone/model", revision="v1")
    assert asked["name"] == "someone/model" and asked["revision"] == "v1"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
