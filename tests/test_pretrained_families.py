"""Every published family that the README names comes in exactly, and its attention is the library's own."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.pretrained_models import images
from torch import Tensor, nn

from vit_course.attention import record_attention, rollout
from vit_course.lab import results
from vit_course.lab.explorer import AttentionExplorer
from vit_course.lab.parity import DIFFERENT, SAME, randomise, relative_error
from vit_course.lab.pretrained import adapt, adapters, dino_later, from_dino, hugging_face
from vit_course.lab.pretrained.families import FAMILIES, LIBRARIES, WAYS, Family, names_of_authors, outputs
from vit_course.vit import Backbone

IDS = [f"{family.published}, {family.library}" for family in FAMILIES]


def pair(family: Family) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs; a test is skipped where transformers is not installed."""
    try:
        return family.pair()
    except ModuleNotFoundError as error:
        assert error.name == "transformers"
        pytest.skip("transformers is not installed")


def family(published: str, library: str) -> Family:
    return next(row for row in FAMILIES if (row.published, row.library) == (published, library))


def is_of_transformers(model: nn.Module) -> bool:
    return type(model).__module__.startswith("transformers.")


def own_attention(theirs: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    """The attention weights that transformers' explicit implementation gives."""
    theirs.set_attn_implementation("eager")
    weights = theirs(pixels, output_attentions=True).attentions
    theirs.set_attn_implementation("sdpa")
    return weights


@pytest.mark.parametrize("row", FAMILIES, ids=IDS)
def test_outputs_and_attention_are_the_librarys_own(row: Family) -> None:
    ours, theirs = pair(row)
    pixels = row.images()
    with torch.no_grad():
        expected = outputs(theirs, pixels)
        assert relative_error(ours(pixels), expected) < SAME
        with record_attention(ours) as record:
            assert relative_error(ours(pixels), expected) < SAME
        if is_of_transformers(theirs):
            for layer, weights in zip(record, own_attention(theirs, pixels), strict=True):
                assert relative_error(layer.weights, weights) < SAME
            assert relative_error(record[0].weights, record[1].weights) > DIFFERENT
            assert layer.num_prefix_tokens == ours.num_prefix_tokens and layer.kind == "global"
            assert rollout(record).shape == weights.shape[:1] + weights.shape[-2:]
        assert torch.equal(outputs(theirs, pixels), expected), "something was left behind"


def test_the_stored_table_has_every_family() -> None:
    """The README shows it; `python benchmarks/parity.py` measures it again."""
    rows = results.load("parity")["rows"]
    assert [(row["name"], row["library"], row["way"]) for row in rows] == [
        (row.published, row.library, row.way) for row in FAMILIES
    ]
    assert all(0 < row["error"] < SAME for row in rows)


def test_every_row_is_of_a_known_library_and_way() -> None:
    assert {row.library for row in FAMILIES} == set(LIBRARIES)
    assert {row.way for row in FAMILIES} == {*WAYS, "from_dino"}
    assert len(set(IDS)) == len(IDS)


# ---- mistakes that the comparison must see -----------------------------------------------------------------


def no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face.TransformersAdapter, "positions", lambda *given: None)


def registers_before_the_class_token(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hugging_face.TransformersAdapter.with_prefix

    def wrong(self: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return right(self, tokens, grid).roll(-1, dims=1)

    monkeypatch.setattr(hugging_face.TransformersAdapter, "with_prefix", wrong)


def norms_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face.TransformersAdapter, "normalise", lambda self, tokens: tokens)


def other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid turned: right number of tokens, wrong rotary positions."""
    right = hugging_face.TransformersAdapter.run_blocks
    monkeypatch.setattr(
        hugging_face.TransformersAdapter, "run_blocks", lambda self, tokens, grid: right(self, tokens, (2, 8))
    )


def other_places_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._EvaAdapter.run_blocks
    monkeypatch.setattr(
        adapters._EvaAdapter, "run_blocks", lambda self, tokens, grid: right(self, tokens, (2, 8))
    )


def biases_of_values_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dino_later._split_biases

    def wrong(state: dict[str, Tensor]) -> None:
        right(state)
        for name in state:
            if name.endswith("v_bias"):
                state[name] = torch.zeros_like(state[name])

    monkeypatch.setattr(dino_later, "_split_biases", wrong)


def factors_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dino_later._NAMES | {r"\.ls1\.": ".ls3.", r"\.ls2\.": ".ls1.", r"\.ls3\.": ".ls2."}
    monkeypatch.setattr(dino_later, "_NAMES", names)


def position_of_the_class_token_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dino_later.with_names_of_timm

    def wrong(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return right(weights) | {"cls_token": weights["cls_token"]}

    monkeypatch.setattr("vit_course.lab.pretrained.dino.with_names_of_timm", wrong)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (no_positions, "ViT", "transformers"),
    (no_positions, "DINOv2", "transformers"),
    (no_positions, "CLIP, pictures", "transformers"),
    (registers_before_the_class_token, "DINOv2 with registers", "transformers"),
    (registers_before_the_class_token, "DINOv3", "transformers"),
    (norms_left_out, "DeiT, distilled", "transformers"),
    (other_places, "DINOv3", "transformers"),
    (other_places_in_timm, "DINOv3", "timm"),
    (other_places_in_timm, "DINOv3", "the authors' files"),
    (biases_of_values_forgotten, "DINOv3", "the authors' files"),
    (factors_exchanged, "DINOv2", "the authors' files"),
    (position_of_the_class_token_forgotten, "DINOv2 with registers", "the authors' files"),
]


@pytest.mark.parametrize(
    ("mistake", "published", "library"), MISTAKES, ids=[f"{m.__name__}, {p}, {b}" for m, p, b in MISTAKES]
)
def test_a_mistake_is_seen(
    mistake: Callable, published: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = family(published, library)
    pair(row)
    mistake(monkeypatch)
    assert row.error() > DIFFERENT


def test_a_wrong_scale_of_recorded_attention_is_seen() -> None:
    _, theirs = pair(family("ViT", "transformers"))
    layer = theirs.vit.layers[0].attention
    layer.scaling *= 2
    ours = adapt(theirs)
    with torch.no_grad(), record_attention(ours) as record:
        ours(images())
        layer.scaling /= 2
        right = own_attention(theirs, images())
    assert relative_error(record[0].weights, right[0]) > DIFFERENT


# ---- transformers ------------------------------------------------------------------------------------------

OF_TRANSFORMERS = [row for row in FAMILIES if row.library == "transformers"]
BY_NAME = [row.published for row in OF_TRANSFORMERS]


@pytest.mark.parametrize("row", OF_TRANSFORMERS, ids=BY_NAME)
def test_other_image_sizes_are_transformers_own(row: Family) -> None:
    ours, theirs = pair(row)
    pixels = images(2, 3, 16, 48)
    resizes_by_itself = row.published.startswith("DINOv")
    with torch.no_grad():
        expected = theirs(pixels, **{} if resizes_by_itself else {"interpolate_pos_encoding": True})
        for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
            if expected.get(name) is not None:
                break
        given = expected[name][:, 0] if name == "last_hidden_state" else expected[name]
        with record_attention(ours) as record:
            assert relative_error(ours(pixels), given) < SAME
    assert {layer.grid for layer in record} == {(2, 6)}


@pytest.mark.parametrize("row", OF_TRANSFORMERS, ids=BY_NAME)
def test_recording_leaves_nothing_behind(row: Family) -> None:
    from_transformers = pytest.importorskip("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    ours, theirs = pair(row)
    configs = {name: part.config for name, part in theirs.named_modules() if hasattr(part, "config")}
    functions = set(from_transformers)
    with record_attention(ours) as record:
        ours.train()(images())
        ours(images())
    for name, config in configs.items():
        assert theirs.get_submodule(name).config is config and config._attn_implementation == "sdpa"
    assert set(from_transformers) == functions
    weights = record[0].weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    pixels = images().requires_grad_()
    ours.eval()(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_weights_are_recorded_before_dropout() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        attention_probs_dropout_prob=0.5,
    )
    ours = adapt(randomise(transformers.ViTModel(config)).train())
    with record_attention(ours) as record:
        assert not torch.equal(ours(images()), ours(images())), "dropout is off while recording"
    torch.testing.assert_close(record[0].weights.sum(-1), torch.ones(2, 2, 17))


@pytest.mark.parametrize("row", OF_TRANSFORMERS, ids=BY_NAME)
def test_the_explorer_shows_them(row: Family) -> None:
    _, theirs = pair(row)
    explorer = AttentionExplorer(theirs, images().sigmoid())
    assert explorer.map().shape == (4, 4) and explorer.token == "cls"


@pytest.mark.parametrize("row", OF_TRANSFORMERS, ids=BY_NAME)
def test_they_are_backbones(row: Family) -> None:
    """What the objectives need: tokens before positions, and copies that are models of their own."""
    ours, theirs = pair(row)
    assert isinstance(ours, Backbone) and adapt(ours) is ours
    assert len(ours.state_dict()) == len(theirs.state_dict()), "some weights are listed twice"
    features = ours.forward_features(images())
    assert features.shape == (2, ours.num_prefix_tokens + 16, 32)
    assert torch.equal(ours.forward_tokens(ours.patch_embed(images())), features)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
        with record_attention(twin) as record:
            assert relative_error(twin.forward_features(images()), features) < SAME
    assert len(record) == 2
    twin.forward_features(images()).square().sum().backward()
    reached = {name for name, parameter in twin.named_parameters() if parameter.grad is not None}
    assert sum("attention" in name or "attn" in name for name in reached) >= 12


def test_what_is_not_known_of_transformers_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    with pytest.raises(TypeError, match=r"does not know transformers\..*ResNetModel"):
        adapt(transformers.ResNetModel(config))


# ---- timm's Eva --------------------------------------------------------------------------------------------


def eva(name: str = "vit_small_patch16_dinov3", **sizes: object) -> nn.Module:
    common = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "num_classes": 7}
    torch.manual_seed(0)
    return randomise(timm.create_model(name, pretrained=False, **common | sizes))


EVA: dict[str, Callable[[], nn.Module]] = {
    "DINOv3": eva,
    "DINOv3, class token": lambda: eva(global_pool="token"),
    "DINOv3, features": lambda: eva(num_classes=0),
    "DINOv3, gated": lambda: eva("vit_small_plus_patch16_dinov3"),
    "EVA-02": lambda: eva("eva02_tiny_patch14_224"),
    "learned rotary positions": lambda: eva("vit_small_patch16_rope_mixed_224"),
    "rotary and learned positions": lambda: eva("vit_small_patch16_rope_ape_224"),
    "norm after pooling": lambda: eva("vit_medium_patch16_rope_reg1_gap_256"),
}


@pytest.mark.parametrize("name", EVA)
def test_an_eva_is_timms_own(name: str) -> None:
    theirs = EVA[name]()
    ours, expected = adapt(theirs), theirs(images())
    assert relative_error(ours(images()), expected) < SAME
    with record_attention(ours) as record:
        assert relative_error(ours(images()), expected) < SAME
    assert [layer.grid for layer in record] == [(4, 4)] * 2
    assert record[0].num_prefix_tokens == theirs.num_prefix_tokens
    torch.testing.assert_close(record[0].weights.sum(-1), torch.ones(record[0].weights.shape[:-1]))
    if theirs.dynamic_img_size:
        pixels = images(2, 3, 16, 48)
        assert relative_error(ours(pixels), theirs(pixels)) < SAME
    else:
        with pytest.raises(
            ValueError, match=r"rotary positions for a grid of \(4, 4\) patches only, got \(2, 6"
        ):
            ours(images(2, 3, 16, 48))


def test_an_eva_that_drops_patches_is_refused() -> None:
    with pytest.raises(TypeError, match="patch_drop_rate"):
        adapt(eva(patch_drop_rate=0.5))


# ---- the authors' files ------------------------------------------------------------------------------------

FILES = [row for row in FAMILIES if row.way == "from_dino" and row.published != "DINO"]


@pytest.mark.parametrize("row", FILES, ids=[row.published for row in FILES])
def test_recorded_attention_of_a_file_is_that_of_the_other_library(row: Family) -> None:
    """timm computes what the file holds, transformers what it was made of."""
    ours, theirs = pair(row)
    with torch.no_grad(), record_attention(ours) as record:
        features = ours.forward_features(images())
        assert relative_error(features, theirs(images()).last_hidden_state) < SAME
        for layer, weights in zip(record, own_attention(theirs, images()), strict=True):
            assert relative_error(layer.weights, weights) < SAME


def of_training(weights: dict[str, Tensor]) -> dict[str, object]:
    """A full checkpoint of DINOv2's training code: heads, and blocks in chunks that go on counting."""
    names = {
        name: f"backbone.{name}".replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1.")
        for name in weights
    }
    teacher = {new: weights[name] for name, new in names.items()}
    return {"teacher": teacher | {"dino_head.mlp.0.weight": torch.ones(3, 128)}}


@pytest.mark.parametrize("row", FILES, ids=[row.published for row in FILES])
@pytest.mark.parametrize("form", ["file", "training", "safetensors", "timm's names"])
def test_every_form_of_a_file_is_read(row: Family, form: str, tmp_path: Path) -> None:
    ours, theirs = pair(row)
    weights: dict = {name: tensor.contiguous() for name, tensor in names_of_authors(theirs).items()}
    path = tmp_path / "weights.pth"
    if form == "timm's names":
        weights = ours.model.state_dict()
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(weights, path)
    else:
        torch.save(of_training(weights) if form == "training" else weights, path)
    again = from_dino(path).eval()
    with torch.no_grad():
        assert relative_error(again(images()), outputs(theirs, images())) < SAME


@pytest.mark.parametrize(("published", "config"), [("DINOv2", "Dinov2Config"), ("DINOv3", "DINOv3ViTConfig")])
def test_gated_feed_forward_layers_come_in(published: str, config: str) -> None:
    """Those of the largest models. DINOv2's authors keep gate and values in one matrix."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    own = {"use_swiglu_ffn": True}
    if published == "DINOv3":
        own = {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}
    kind = getattr(transformers, config.removesuffix("Config") + "Model")
    config = getattr(transformers, config)(**sizes, **own, patch_size=8, intermediate_size=176, mlp_ratio=4)
    torch.manual_seed(0)
    theirs = randomise(kind(config))
    state = names_of_authors(theirs)
    for number in range(2):
        for part in ("weight", "bias"):
            block = f"blocks.{number}.mlp."
            gate, values = state.pop(f"{block}gate_proj.{part}"), state.pop(f"{block}fc1.{part}")
            back = state.pop(f"{block}fc2.{part}")
            if published == "DINOv2":
                state[f"{block}w12.{part}"] = torch.cat([gate, values])
            else:
                state[f"{block}w1.{part}"], state[f"{block}w2.{part}"] = gate, values
            state[f"{block}w3.{part}"] = back
    ours = from_dino(state).eval()
    with torch.no_grad():
        assert relative_error(ours(images()), outputs(theirs, images())) < SAME


def test_a_file_with_biases_of_keys_is_refused() -> None:
    _, theirs = pair(family("DINOv3", "the authors' files"))
    state = {name: t for name, t in names_of_authors(theirs).items() if not name.endswith("_mask")}
    with pytest.raises(ValueError, match=r"the keys have biases \(blocks.0.attn.qkv.bias\)"):
        from_dino(state)


def test_a_file_of_which_something_is_missing_is_refused() -> None:
    _, theirs = pair(family("DINOv2", "the authors' files"))
    state = {name: t for name, t in names_of_authors(theirs).items() if "blocks.1.ls2" not in name}
    with pytest.raises(ValueError, match=r"(?s)this checkpoint is not .* DINO ViT.*Missing.*blocks\.1\.ls2"):
        from_dino(state)


@pytest.mark.parametrize("row", FILES, ids=[row.published for row in FILES])
@pytest.mark.parametrize("lost", ["mlp.fc1.weight", "mlp.fc2.weight"])
def test_the_first_layer_that_is_missing_is_named(row: Family, lost: str) -> None:
    _, theirs = pair(row)
    state = {name: t for name, t in names_of_authors(theirs).items() if name != f"blocks.0.{lost}"}
    with pytest.raises(ValueError, match=rf"(?s)this checkpoint is not .* DINO ViT.*blocks\.0\.{lost}"):
        from_dino(state)
