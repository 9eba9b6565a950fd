"""Models of timm and torchvision give the backbone protocol through adapters and can be recorded."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from support.pretrained_models import STEM, TINY, images, timm_vit, torchvision_vit
from torch import nn

from vit_course.attention import record_attention, rollout
from vit_course.lab.explorer import AttentionExplorer
from vit_course.lab.parity import DIFFERENT, SAME, randomise, relative_error
from vit_course.lab.pretrained import adapt, from_timm, from_torchvision
from vit_course.vit import Backbone, SimpleViT, ViT

# ---- adapters ----------------------------------------------------------------------------------------------

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
    "timm distilled": lambda: randomise(timm.models.deit.VisionTransformerDistilled(**TINY)),
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
    assert isinstance(adapter, Backbone)
    assert (adapter.num_features, adapter.patch_size, adapter.grid) == (32, (8, 8), (4, 4))
    assert adapter.num_classes == (0 if getattr(foreign, "num_classes", 7) == 0 else 7)
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
    with pytest.raises(ValueError, match=r"4 by 4 patches needs 16 tokens, got shape \(2, 15, 32\)"):
        adapter.forward_tokens(images(2, 15, 32))


def test_tokens_are_normalised_whatever_timm_does() -> None:
    """Each token is centred before the norm's own scale and shift, also where timm norms after pooling."""
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
def test_recording_changes_the_model_only_while_it_runs(library: str) -> None:
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    inside: list[list] = []
    middle = theirs.blocks[0].norm1 if library == "timm" else theirs.encoder.layers[0].ln_1
    middle.register_forward_hook(lambda *_: inside.append(traces(theirs)))
    adapter = adapt(theirs)
    before = traces(theirs), hooks(theirs), hooks(adapter)
    with record_attention(adapter) as record:
        adapter(images())
        assert (traces(theirs), hooks(theirs), hooks(adapter)) == before
        weights = record[0].weights
        theirs(images(seed=1))
        assert record[0].weights is weights, "it was not the adapter that ran"
    assert inside[0] != before[0] == inside[1]
    assert (traces(theirs), hooks(theirs), hooks(adapter)) == before
    with pytest.raises(ValueError, match="divisible"), record_attention(adapter):
        adapter(images())
        adapter(images(2, 3, 30, 32))
    middle.register_forward_hook(stumble)
    before = traces(theirs), hooks(theirs), hooks(adapter)
    with pytest.raises(RuntimeError, match="on purpose"), record_attention(adapter):
        adapter(images())
    assert (traces(theirs), hooks(theirs), hooks(adapter)) == before
    with (
        pytest.raises(ValueError, match="being recorded already"),
        record_attention(adapter),
        record_attention(adapter),
    ):
        pass
    assert (traces(theirs), hooks(theirs), hooks(adapter)) == before


def stumble(*_: object) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_two_adapters_of_one_model_record_each_its_own_run(library: str) -> None:
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    first, second = adapt(theirs), adapt(theirs)
    with record_attention(first) as record, record_attention(second) as other:
        first(images())
        assert len(record) == 2
        with pytest.raises(ValueError, match="nothing was recorded yet"):
            len(other)
        second(images(seed=1))
    assert relative_error(record[0].weights, other[0].weights) > 0.1
    assert hooks(theirs) == 0 and not any("forward" in vars(part) for part in theirs.modules())


def test_what_a_user_has_changed_in_a_layer_stays() -> None:
    theirs, other = timm_vit(), torchvision_vit()
    theirs.blocks[0].attn.fused_attn, theirs.blocks[1].attn.fused_attn = False, True
    inside: list[bool] = []
    theirs.blocks[1].attn.register_forward_hook(lambda *_: inside.append(theirs.blocks[1].attn.fused_attn))
    with record_attention(adapter := adapt(theirs)) as record:
        adapter(images())
    assert len(record) == 2 and inside == [False]
    assert [block.attn.fused_attn for block in theirs.blocks] == [False, True]
    layer = other.encoder.layers[0].self_attention
    layer.forward = users = nn.MultiheadAttention.forward.__get__(layer)
    with record_attention(adapter := adapt(other)):
        adapter(images())
    assert layer.forward is users


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_copy_made_while_recording_is_as_any_other(library: str, grad: bool) -> None:
    theirs = timm_vit() if library == "timm" else torchvision_vit()
    adapter = adapt(theirs)
    expected = adapter(images())
    with torch.set_grad_enabled(grad), record_attention(adapter) as record:
        adapter(images())
        weights = record[0].weights
        twins = copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter)), adapt(copy.deepcopy(theirs))
        for twin in twins:
            assert relative_error(twin(images()), expected) < SAME
        assert record[0].weights is weights, "a copy was recorded instead"
    for twin in twins:
        with record_attention(twin) as record:
            twin(images())
        assert relative_error(record[0].weights, weights) < SAME
        assert traces(twin.model) == traces(theirs) and hooks(twin) == 0
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
            assert twin(images()).abs().max() == 0, "the copy runs on the weights of the first"
    assert relative_error(adapter(images()), expected) < SAME


def test_patches_that_are_dropped_in_training_are_not_recorded() -> None:
    """Also not where as many are dropped as stand before the patches, so that nothing seems to be missing."""
    for config in ({}, {"reg_tokens": 3, "no_embed_class": True}):
        adapter = adapt(timm_vit(patch_drop_rate=0.25, **config).train())
        assert adapter.forward_features(images()).shape[1] == adapter.num_prefix_tokens + 12
        with (
            pytest.raises(ValueError, match=r"of 16 there are 12 left, .* record it in eval mode"),
            record_attention(adapter),
        ):
            adapter(images())
        adapter.eval()
        with record_attention(adapter) as record:
            adapter(images())
        assert record[0].weights.shape[-1] == adapter.num_prefix_tokens + 16


def test_a_record_has_the_grid_of_the_last_tokens() -> None:
    adapter = adapt(timm_vit())
    with record_attention(adapter) as record:
        adapter(images())
        adapter.forward_tokens(images(2, 4, 32), (2, 2))
    assert [(layer.grid, layer.num_prefix_tokens) for layer in record] == [((2, 2), 1)] * 2


PREFIXES = {
    "none": ({"class_token": False, "global_pool": "avg"}, 0),
    "class": ({}, 1),
    "registers": ({"reg_tokens": 4, "no_embed_class": True}, 5),
    "registers with positions": ({"reg_tokens": 2}, 3),
    "registers alone": ({"class_token": False, "reg_tokens": 3, "global_pool": "avg"}, 3),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_record_counts_the_tokens_before_the_patches(name: str) -> None:
    config, prefix = PREFIXES[name]
    adapter = adapt(timm_vit(**config))
    for size, grid in (((32, 32), (4, 4)), ((16, 48), (2, 6))):
        with record_attention(adapter) as record:
            adapter(images(2, 3, *size))
        assert [(layer.grid, layer.num_prefix_tokens) for layer in record] == [(grid, prefix)] * 2
    explorer = AttentionExplorer(adapter, images().sigmoid())
    assert explorer.map().shape == (4, 4) and explorer.token == ("cls" if prefix else 10)
    assert f"{prefix - 1} more prefix token" in explorer.words or prefix < 2


@pytest.mark.parametrize("training", [True, False])
def test_an_adapters_own_parts_have_the_mode_of_the_model(training: bool) -> None:
    """`fit` trains a model that is wholly in evaluation mode; in any other such a part counts as frozen."""
    for model in (timm_vit(), torchvision_vit()):
        adapter = adapt(model.train(training))
        assert {part.training for part in adapter.modules()} == {training}
    mixed = timm_vit().train(training)
    mixed.blocks[1].train(not training)
    before = {name: part.training for name, part in mixed.named_modules()}
    adapter = adapt(mixed)
    assert {name: part.training for name, part in mixed.named_modules()} == before
    assert adapter.training is training


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_recorded_weights_are_ours(library: str, grad: bool) -> None:
    """Two ways to the same numbers: the foreign model is recorded, and the course's ViT with its weights."""
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
    """DINO's teacher is a deep copy: it has a model of its own, and its taps record that one."""
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
