"""Published models come in as the course's own; what ours do not compute is refused by name."""

import importlib
import sys
from collections.abc import Callable
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from support.pretrained_models import STEM, images, timm_vit, torchvision_vit
from timm.models import VisionTransformer
from torch import nn
from torchvision.models.maxvit import MaxVit

from vit_course import lab
from vit_course.attention import MultiHeadAttention
from vit_course.lab.parity import SAME, disagreement, relative_error
from vit_course.lab.pretrained import adapt, from_timm, from_torchvision
from vit_course.vit import ViT

# ---- weights into the course's ViT (parity itself: test_vit.py) --------------------------------------------


def test_names_are_created_without_a_download() -> None:
    ours = from_timm("vit_tiny_patch16_224", pretrained=False)
    assert type(ours) is ViT and sum(parameter.numel() for parameter in ours.parameters()) == 5_717_416
    dino = from_timm("vit_small_patch16_224.dino")
    assert isinstance(dino.head, nn.Identity) and dino.num_features == 384 and dino.grid == (14, 14)


def test_published_weights_need_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hubs raise without one becomes one sentence. They are not called: they try for a minute."""

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


def small_max_vit() -> MaxVit:
    return MaxVit(
        input_size=(64, 64),
        stem_channels=8,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.2,
        num_classes=3,
    )


FROZEN = {
    "ViT": (timm_vit, from_timm, "blocks.0.norm1", "blocks.0.norm1"),
    "XCiT": (
        lambda: timm.models.Xcit(
            img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4, cls_attn_layers=1
        ),
        from_timm,
        "patch_embed",
        "patch_embed",
    ),
    "torchvision's ViT": (torchvision_vit, from_torchvision, "encoder.ln", "norm"),
    "MaxViT": (small_max_vit, from_torchvision, "blocks.0", "stages.0"),
}


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("training", [True, False])
def test_a_part_keeps_its_mode(name: str, training: bool) -> None:
    """A BatchNorm that was frozen in evaluation mode must not move when its copy is trained."""
    make, convert, theirs, ours = FROZEN[name]
    model = make().train(training)
    model.get_submodule(theirs).train(not training)
    converted = convert(model)
    assert converted.training is training
    weighty = {
        name: part
        for name, part in converted.named_modules()
        if any(True for _ in part.parameters(recurse=False))
    }
    other = {name for name, part in weighty.items() if part.training is not training}
    assert other == {name for name in weighty if f"{name}.".startswith(f"{ours}.")} != set()


@pytest.mark.parametrize("name", FROZEN)
def test_another_default_type_changes_no_copy(name: str, request: pytest.FixtureRequest) -> None:
    make, convert, *_ = FROZEN[name]
    theirs, pixels = make().eval(), images(2, 3, 64, 64) if name == "MaxViT" else images()
    expected = theirs(pixels)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    logits = convert(theirs)(pixels)
    assert logits.dtype == torch.float32 and relative_error(logits, expected) < SAME


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
    "parallel attention and feed-forward": (
        lambda: from_timm(timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock)),
        "its blocks",
    ),
    "stem": (lambda: from_torchvision(torchvision_vit(conv_stem_configs=STEM)), "conv_stem_configs"),
    "hidden head": (lambda: from_torchvision(torchvision_vit(representation_size=16)), "representation_size"),
    "torchvision epsilon": (lambda: from_torchvision(torchvision_vit(norm_layer=nn.LayerNorm)), "eps 1e-6"),
    "unknown timm name": (lambda: from_timm("vit_tiny_patch17"), "'vit_tiny_patch17'"),
    "unknown torchvision name": (lambda: from_torchvision("vit_b_17"), "'vit_b_17'"),
    "unknown weights": (lambda: from_torchvision("vit_b_16", weights="BEST"), "'BEST'"),
}


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
    # An import makes the module an attribute of its package too: afterwards this is the old one again.
    monkeypatch.setattr(lab, "pretrained", lab.pretrained)
    for module in [name for name in sys.modules if name.startswith("vit_course.lab.pretrained")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    fresh = importlib.import_module("vit_course.lab.pretrained")
    fresh.adapt(torchvision_vit())
    with pytest.raises(ImportError, match="from_timm needs timm: pip install timm"):
        fresh.from_timm("vit_tiny_patch16_224")
