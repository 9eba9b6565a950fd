"""Published models come in as the course's own, or adapted; what ours do not compute is refused by name."""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from support.parity import DIFFERENT, SAME, disagreement, heat, relative_error
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_course.attention import MultiHeadAttention, record_attention, rollout
from vit_course.lab.pretrained import adapt, from_dino, from_timm, from_torchvision
from vit_course.vit import SimpleViT, ViT

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}


def timm_vit(**config) -> VisionTransformer:
    torch.manual_seed(0)
    return heat(VisionTransformer(**TINY | config))


def torchvision_vit(**config) -> TorchvisionViT:
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "mlp_dim": 48,
        "num_classes": 7,
    }
    return heat(TorchvisionViT(**sizes | config))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(seed))


# ---- weights into the course's ViT (parity itself: test_vit.py) ------------------------------------------------------------------------


def test_names_are_created_without_a_download() -> None:
    ours = from_timm("vit_tiny_patch16_224", pretrained=False)
    assert type(ours) is ViT and sum(parameter.numel() for parameter in ours.parameters()) == 5_717_416
    dino = from_timm("vit_small_patch16_224.dino")
    assert isinstance(dino.head, nn.Identity) and dino.num_features == 384 and dino.grid == (14, 14)


def test_published_weights_need_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hubs raise without one becomes one sentence. They are not called here: they try for a minute, or find a cache."""

    def no_network(*args: object, **options: object) -> nn.Module:
        raise URLError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", no_network)
    monkeypatch.setattr(torchvision.models, "get_model", no_network)
    with pytest.raises(ConnectionError, match="vit_tiny_patch16_224 could not be had; is there a network"):
        from_timm("vit_tiny_patch16_224", pretrained=True)
    with pytest.raises(ConnectionError, match="vit_b_16 could not be had; is there a network"):
        from_torchvision("vit_b_16", weights="DEFAULT")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_converted_model_is_a_copy(library: str) -> None:
    theirs, convert = (timm_vit(), from_timm) if library == "timm" else (torchvision_vit(), from_torchvision)
    ours, before = convert(theirs), theirs(images())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert torch.equal(theirs(images()), before)
    assert not ours.training and convert(theirs.train()).training
    assert next(convert(theirs.double()).parameters()).dtype == torch.float64


@pytest.mark.parametrize("replace", ["heads", "head"])
def test_torchvision_without_head(replace: str) -> None:
    theirs = torchvision_vit()
    if replace == "heads":
        theirs.heads = nn.Identity()
    else:
        theirs.heads.head = nn.Identity()
    ours = from_torchvision(theirs)
    assert ours(images()).shape == (2, 32) and disagreement(ours, theirs, images()) < SAME


def test_other_image_sizes_are_timms() -> None:
    theirs = timm_vit(dynamic_img_size=True)
    ours = from_timm(theirs)
    for size in ((32, 32), (16, 48), (64, 40)):
        assert disagreement(ours, theirs, images(2, 3, *size)) < SAME


@pytest.mark.parametrize("form", ["backbone", "full", "file"])
def test_dino_checkpoints(form: str, tmp_path: Path) -> None:
    """DINO's files hold timm's names; a full checkpoint has the teacher's backbone under a prefix, beside its head."""
    torch.manual_seed(0)
    theirs = heat(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=0)
    )
    checkpoint = theirs.state_dict()
    if form == "full":
        student = {f"module.backbone.{name}": torch.zeros_like(tensor) for name, tensor in checkpoint.items()}
        teacher = {f"backbone.{name}": tensor for name, tensor in checkpoint.items()} | {
            "head.last_layer.weight_g": torch.ones(3)
        }
        checkpoint = {"student": student, "teacher": teacher, "epoch": 100}
    if form == "file":
        torch.save(checkpoint, tmp_path / "dino.pth")
        checkpoint = tmp_path / "dino.pth"
    ours = from_dino(checkpoint).eval()
    assert ours.num_features == 128 and disagreement(ours, theirs, images()) < SAME


def with_tanh_gelu(model: VisionTransformer) -> VisionTransformer:
    model.blocks[1].mlp.act = nn.GELU("tanh")
    return model


REFUSED: dict[str, tuple[Callable, str]] = {
    "LayerScale": (lambda: from_timm(timm_vit(init_values=0.1)), "LayerScale"),
    "registers": (lambda: from_timm(timm_vit(reg_tokens=2)), "register tokens"),
    "qk_norm": (lambda: from_timm(timm_vit(qk_norm=True)), "qk_norm"),
    "scale_attn_norm": (lambda: from_timm(timm_vit(scale_attn_norm=True)), "scale_attn_norm"),
    "scale_mlp_norm": (lambda: from_timm(timm_vit(scale_mlp_norm=True)), "scale_mlp_norm"),
    "qkv_bias": (lambda: from_timm(timm_vit(qkv_bias=False)), "qkv_bias"),
    "pre_norm": (lambda: from_timm(timm_vit(pre_norm=True)), "pre_norm"),
    "fc_norm": (lambda: from_timm(timm_vit(global_pool="avg", class_token=False)), "fc_norm"),
    "final_norm": (lambda: from_timm(timm_vit(final_norm=False)), "final_norm"),
    "no_embed_class": (lambda: from_timm(timm_vit(no_embed_class=True)), "no_embed_class"),
    "no positions": (lambda: from_timm(timm_vit(pos_embed="none")), "pos_embed"),
    "tanh": (lambda: from_timm(timm_vit(act_layer="gelu_tanh")), "act_layer"),
    "tanh inside": (lambda: from_timm(with_tanh_gelu(timm_vit())), "act_layer"),
    "relu": (lambda: from_timm(timm_vit(act_layer=nn.ReLU)), "act_layer"),
    "epsilon": (
        lambda: from_timm(timm_vit(norm_layer=lambda dim, **options: nn.LayerNorm(dim, eps=1e-5))),
        "eps 1e-6",
    ),
    "rms": (lambda: from_timm(timm_vit(norm_layer="rmsnorm")), "not LayerNorm"),
    "map pooling": (lambda: from_timm(timm_vit(global_pool="map", class_token=False)), "attn_pool"),
    "average with class": (
        lambda: from_timm(timm_vit(global_pool="avg", fc_norm=False)),
        "global_pool='avg' with a class",
    ),
    "no pooling": (lambda: from_timm(timm_vit(global_pool="")), "global_pool=''"),
    "two at once": (
        lambda: from_timm(timm_vit(init_values=0.1, reg_tokens=1)),
        "LayerScale.*register tokens",
    ),
    "parallel blocks": (
        lambda: from_timm(timm_vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock)),
        "its blocks",
    ),
    "stem": (lambda: from_torchvision(torchvision_vit(conv_stem_configs=STEM)), "conv_stem_configs"),
    "hidden head": (lambda: from_torchvision(torchvision_vit(representation_size=16)), "representation_size"),
    "torchvision epsilon": (lambda: from_torchvision(torchvision_vit(norm_layer=nn.LayerNorm)), "eps 1e-6"),
    "unknown timm name": (lambda: from_timm("vit_tiny_patch17"), "'vit_tiny_patch17'"),
    "unknown torchvision name": (lambda: from_torchvision("vit_b_17"), "'vit_b_17'"),
    "unknown weights": (lambda: from_torchvision("vit_b_16", weights="BEST"), "'BEST'"),
    "no DINO": (lambda: from_dino({"layer.weight": torch.zeros(2)}), "layer.weight"),
    "part of DINO": (
        lambda: from_dino(
            {k: v for k, v in timm_vit(num_classes=0).state_dict().items() if "norm1" not in k}
        ),
        "norm1",
    ),
}
STEM = [torchvision.models.vision_transformer.ConvStemConfig(8, 3, 2) for _ in range(3)]


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_differs_is_refused_by_name(call: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_timm(5), "5"),
        (lambda: from_timm(timm.create_model("resnet10t")), "resnet.ResNet"),
        (lambda: from_timm(timm.create_model("swin_tiny_patch4_window7_224")), "SwinTransformer"),
        (lambda: from_timm(torchvision_vit()), "torchvision.models"),
        (lambda: from_torchvision(timm_vit()), "timm.models"),
        (lambda: from_torchvision("resnet18"), "ResNet"),
        (lambda: from_torchvision(None), "None"),
        (lambda: adapt(nn.Linear(2, 2)), "Linear"),
        (lambda: adapt(MultiHeadAttention(dim=8, heads=2)), "MultiHeadAttention"),
        (lambda: adapt(timm.create_model("resnet10t")), "ResNet"),
        (lambda: adapt("vit"), "str"),
        (lambda: adapt(timm_vit(global_pool="max", class_token=False)), "global_pool='max'"),
    ],
)
def test_unknown_models_are_a_type_error(call: Callable, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


def test_timm_is_only_needed_for_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm is not among the course's dependencies: the package, imported anew, can do without."""
    for module in [name for name in sys.modules if name.startswith("vit_course.lab.pretrained")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    fresh = importlib.import_module("vit_course.lab.pretrained")
    fresh.adapt(torchvision_vit())
    with pytest.raises(ImportError, match="from_timm needs timm: pip install timm"):
        fresh.from_timm("vit_tiny_patch16_224")


# ---- adapters --------------------------------------------------------------------------------------------------------------------------

FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "timm": timm_vit,
    "timm averaged, norm before": lambda: timm_vit(global_pool="avg", class_token=False, fc_norm=False),
    "timm averaged, norm after": lambda: timm_vit(global_pool="avg", class_token=False),
    "timm averaged, norm after, class token": lambda: timm_vit(global_pool="avg"),
    "timm registers, LayerScale": lambda: timm_vit(reg_tokens=2, init_values=0.5, no_embed_class=True),
    "timm registers with positions": lambda: timm_vit(reg_tokens=2),
    "timm pre-norm, qk-norm": lambda: timm_vit(pre_norm=True, qk_norm=True),
    "timm attention pooling": lambda: timm_vit(global_pool="map", class_token=False),
    "timm dynamic": lambda: timm_vit(dynamic_img_size=True),
    "timm features": lambda: timm_vit(num_classes=0),
    "timm without positions": lambda: timm_vit(pos_embed="none"),
    "timm distilled": lambda: heat(timm.models.deit.VisionTransformerDistilled(**TINY)),
    "torchvision": torchvision_vit,
    "torchvision stem": lambda: torchvision_vit(conv_stem_configs=STEM),
    "torchvision hidden head": lambda: torchvision_vit(representation_size=16),
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> nn.Module:
    return FOREIGN[request.param]()


def prefix_tokens(model: nn.Module) -> int:
    return getattr(model, "num_prefix_tokens", 1)


def test_adapter_gives_the_same_logits(foreign: nn.Module) -> None:
    adapter, expected = adapt(foreign), foreign(images())
    assert relative_error(adapter(images()), expected) < SAME
    assert relative_error(adapter.forward_head(adapter.forward_features(images())), expected) < SAME
    with record_attention(adapter):
        assert relative_error(adapter(images()), expected) < SAME
    assert torch.equal(foreign(images()), expected)


def test_adapter_speaks_the_protocol(foreign: nn.Module) -> None:
    adapter = adapt(foreign)
    assert (adapter.num_features, adapter.patch_size, adapter.grid) == (32, (8, 8), (4, 4))
    features = adapter.forward_features(images())
    assert features.shape == (
        2,
        adapter.num_prefix_tokens + 16,
        32,
    ) and adapter.num_prefix_tokens == prefix_tokens(foreign)
    tokens = adapter.patch_embed(images())
    assert tokens.shape == (2, 16, 32)
    assert torch.equal(adapter.forward_tokens(tokens), features)
    for height, width in ((16, 48), (40, 32)):
        resized = adapter.forward_features(images(2, 3, height, width))
        assert (
            resized.shape == (2, adapter.num_prefix_tokens + height * width // 64, 32)
            and resized.isfinite().all()
        )
    with pytest.raises(ValueError, match=r"\(30, 32\)"):
        adapter(images(2, 3, 30, 32))
    with (
        pytest.raises(ValueError, match=r"\(2, 15, 32\)|4 by 4")
        if getattr(foreign, "pos_embed", 0) is not None
        else nullcontext()
    ):
        adapter.forward_tokens(images(2, 15, 32))


def test_tokens_are_normalised_whatever_timm_does() -> None:
    """Each token is centred before the norm's own scale and shift; where timm norms after pooling, so is what pooling gives."""
    for config in ({}, {"global_pool": "avg", "class_token": False}, {"global_pool": "avg"}):
        theirs = timm_vit(**config)
        norm = theirs.norm if isinstance(theirs.fc_norm, nn.Identity) else theirs.fc_norm
        features = (adapt(theirs).forward_features(images()) - norm.bias) / norm.weight
        torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:2]), atol=1e-4, rtol=0)
        assert 0.5 < features.std(-1).mean() < 4
        raw = theirs.forward_features(images())
        pooled = adapt(theirs).forward_features(images())[:, theirs.num_prefix_tokens :].mean(1)
        if norm is theirs.fc_norm:
            assert relative_error(pooled, norm(raw[:, theirs.num_prefix_tokens :].mean(1))) < SAME
        else:
            assert relative_error(adapt(theirs).forward_features(images()), raw) < SAME


def test_adapted_sizes_are_timms_own() -> None:
    theirs = timm_vit(dynamic_img_size=True)
    fixed = timm_vit()
    assert all(
        torch.equal(a, b)
        for a, b in zip(theirs.state_dict().values(), fixed.state_dict().values(), strict=True)
    )
    pixels = images(2, 3, 16, 48)
    assert relative_error(adapt(fixed)(pixels), theirs(pixels)) < SAME
    assert fixed.patch_embed.img_size == (32, 32) and fixed.pos_embed.shape == (1, 17, 32)
    ours = from_torchvision(torchvision_vit())
    assert relative_error(adapt(torchvision_vit())(pixels), ours(pixels)) < SAME


def traces(model: nn.Module) -> list:
    """Everything that a recording could leave behind: flags and hooks of every part."""
    skipped = ("_parameters", "_buffers", "_modules")
    return [
        (name, key, str(value))
        for name, part in model.named_modules()
        for key, value in vars(part).items()
        if key not in skipped
    ]


def hooks(model: nn.Module) -> int:
    return sum(
        len(value)
        for part in model.modules()
        for key, value in vars(part).items()
        if key.endswith("hooks") and value
    )


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_recording_leaves_nothing_behind(library: str) -> None:
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    adapter = adapt(theirs)
    before = traces(theirs)
    with record_attention(adapter):
        adapter(images())
        assert traces(theirs) != before
    assert traces(theirs) == before and hooks(theirs) == hooks(adapter) == 0
    with pytest.raises(RuntimeError, match="on purpose"), record_attention(adapter):
        adapter(images())
        raise RuntimeError("on purpose")
    assert traces(theirs) == before and hooks(theirs) == hooks(adapter) == 0
    with (
        pytest.raises(ValueError, match="being recorded already"),
        record_attention(adapter),
        record_attention(adapter),
    ):
        pass
    assert traces(theirs) == before


def test_flags_of_timm_come_back_as_they_were() -> None:
    theirs = timm_vit()
    theirs.blocks[0].attn.fused_attn, theirs.blocks[1].attn.fused_attn = False, True
    with record_attention(adapt(theirs)):
        assert not theirs.blocks[1].attn.fused_attn
    assert [block.attn.fused_attn for block in theirs.blocks] == [False, True]


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_recorded_weights_are_ours(library: str, grad: bool) -> None:
    """Two ways to the same numbers: record the foreign model, and record the course's ViT with its weights."""
    theirs, convert = (timm_vit(), from_timm) if library == "timm" else (torchvision_vit(), from_torchvision)
    adapter, ours = adapt(theirs), convert(theirs)
    for size, grid in (((32, 32), (4, 4)), ((16, 48), (2, 6))):
        with (
            torch.set_grad_enabled(grad),
            record_attention(adapter) as record,
            record_attention(ours) as expected,
        ):
            adapter(images(2, 3, *size)), ours(images(2, 3, *size))
        for layer, twin in zip(record, expected, strict=True):
            assert relative_error(layer.weights, twin.weights) < SAME
            assert (layer.kind, layer.grid, layer.num_prefix_tokens) == ("global", grid, 1)
        assert relative_error(rollout(record), rollout(expected)) < SAME
    name = "blocks.{}.attn" if library == "timm" else "encoder.layers.encoder_layer_{}.self_attention"
    assert [layer.name for layer in record] == [name.format(0), name.format(1)]
    assert relative_error(record[0].weights, record[1].weights) > DIFFERENT


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_gradients_flow_through_adapter_and_record(library: str) -> None:
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    adapter, gradients = adapt(theirs), []
    for context in (nullcontext(), record_attention(adapter)):
        pixels = images().requires_grad_()
        with context as record:
            logits = adapter(pixels)
        (gradient,) = torch.autograd.grad(logits.square().sum(), pixels, retain_graph=True)
        gradients.append(gradient)
    pixels = images().requires_grad_()
    (direct,) = torch.autograd.grad(theirs(pixels).square().sum(), pixels)
    assert all(relative_error(gradient, direct) < SAME for gradient in gradients)
    (through,) = torch.autograd.grad(logits[:, 0].sum(), record[0].weights)
    assert through.abs().sum() > 0


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_are_recorded_before_dropout(library: str) -> None:
    theirs = timm_vit(attn_drop_rate=0.5) if library == "timm" else torchvision_vit(attention_dropout=0.5)
    adapter = adapt(theirs.train())
    with record_attention(adapter) as record:
        assert not torch.equal(adapter(images()), adapter(images())), "dropout is off while recording"
    torch.testing.assert_close(record[0].weights.sum(-1), torch.ones(2, 4, 17))
    adapter.eval()
    with record_attention(adapter):
        assert torch.equal(adapter(images()), adapter(images()))


def test_adapter_shares_the_model() -> None:
    theirs = timm_vit()
    adapter = adapt(theirs)
    assert adapter.model is theirs and not adapter.training
    assert [
        parameter is other for parameter, other in zip(adapter.parameters(), theirs.parameters(), strict=True)
    ].count(False) == 0
    assert len(adapter.state_dict()) == len(theirs.state_dict()), "some weights are listed twice"
    assert adapter.train().model.training and not adapter.eval().model.training
    with torch.no_grad():
        theirs.head.bias += 1
    assert relative_error(adapter(images()), theirs(images())) < SAME


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_adapter_can_be_copied(library: str) -> None:
    """DINO's teacher is a deep copy: it has a model of its own, and its taps listen to that one."""
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    adapter = adapt(theirs)
    expected = adapter(images())
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.mul_(0.5)
            with record_attention(twin) as record:
                assert (
                    torch.equal(twin(images()), expected) or relative_error(twin(images()), expected) < SAME
                )
            assert len(record) == 2 and hooks(theirs) == 0
            for parameter in theirs.parameters():
                parameter.mul_(2)


def test_models_of_the_course_come_back_as_they_are() -> None:
    sizes = {
        "image_size": 16,
        "patch_size": 4,
        "num_classes": 5,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 16,
    }

    class Learners(ViT):
        """A change of the course's model in a notebook."""

    for model in (
        ViT(**sizes),
        SimpleViT(**sizes),
        Learners(**sizes),
        adapt(timm_vit()),
        adapt(torchvision_vit()),
    ):
        assert adapt(model) is model


def test_swin_gives_maps_with_channels_first() -> None:
    torch.manual_seed(0)
    theirs = timm.models.SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4
    ).eval()
    adapter = adapt(theirs)
    features = adapter.forward_features(images())
    assert features.shape == (2, 32, 4, 4) and adapter.num_features == 32
    assert relative_error(adapter(images()), theirs(images())) < SAME
    assert relative_error(adapter.forward_head(features), theirs(images())) < SAME
    with pytest.raises(ValueError, match="no attention layer"), record_attention(adapter):
        pass
