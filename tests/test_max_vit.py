"""MaxViT is the published model: torchvision's weights give its logits, gradients and statistics."""

from collections.abc import Callable

import pytest
import torch
from support.max_vit import adding, suited, torchvision_max_vit
from torch import nn
from torchvision.models import maxvit_t, swin_t
from torchvision.models.maxvit import MaxVit

from vit_course.attention import record_attention
from vit_course.lab.parity import SAME, disagreement, randomise, relative_error
from vit_course.lab.pretrained import from_torchvision
from vit_course.max_vit import MaxViT

TORCHVISION = {
    "window 4": {},
    "window 7": {"input_size": (56, 56), "partition_size": 7},
    "one stage, window 3": {
        "input_size": (36, 36),
        "partition_size": 3,
        "block_channels": [24],
        "block_layers": [2],
    },
    "three stages": {
        "input_size": (32, 32),
        "partition_size": 2,
        "block_channels": [16, 32, 64],
        "block_layers": [1, 1, 2],
    },
    "wide heads, narrow stem": {"head_dim": 16, "stem_channels": 12},
    "window 1": {"input_size": (16, 16), "partition_size": 1},
}


@pytest.mark.parametrize("config", TORCHVISION.values(), ids=TORCHVISION.keys())
def test_equal_to_torchvision(config: dict) -> None:
    theirs = randomise(torchvision_max_vit(**config))
    assert disagreement(from_torchvision(theirs), theirs, suited(theirs)) < SAME


def test_maxvit_t_is_equal_to_torchvision() -> None:
    """Eleven blocks with such weights let the cells grow to hundreds, where float32 has no five digits left.

    So once in float64, and once in float32 with less added to the cells by each block.
    """
    theirs = randomise(maxvit_t())
    assert disagreement(from_torchvision(theirs.double()), theirs, suited(theirs, batch=1).double()) < SAME
    theirs = adding(0.3, randomise(maxvit_t()))
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs, batch=1)) < SAME
    assert sum(parameter.numel() for parameter in ours.parameters()) == 30_919_624
    assert ours.size_unit == 224


def test_recorded_is_equal_to_torchvision_too() -> None:
    """The explicit path, with weights kept, as well as the fused one."""
    theirs = randomise(torchvision_max_vit())
    ours = from_torchvision(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert len(record) == 2 * 4


def test_gradients_equal_to_torchvision() -> None:
    theirs = randomise(torchvision_max_vit())
    ours = from_torchvision(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Keys meet every query with the same bias, which softmax does not see: its gradients are rounding.
        if not name.endswith("attn.qkv.bias"):
            assert relative_error(parameter.grad, other.grad) < 10 * SAME, name


def test_trains_like_torchvision() -> None:
    """Batch statistics, and the share of them that the running ones take: eps and momentum of each norm."""
    theirs = randomise(torchvision_max_vit(stochastic_depth_prob=0.0)).train()
    ours = from_torchvision(theirs)
    assert ours.training
    for _ in range(2):
        assert relative_error(ours(suited(theirs, 4)), theirs(suited(theirs, 4))) < SAME
    ours_after, theirs_after = (
        [tensor for name, tensor in model.state_dict().items() if "running" in name]
        for model in (ours, theirs)
    )
    assert len(ours_after) == len(theirs_after) == 2 * (1 + 3 * 4)
    for mine, yours in zip(ours_after, theirs_after, strict=True):
        assert relative_error(mine, yours) < SAME


# Width of the stem, of the first stage, blocks, parameters of timm's model with TensorFlow's weights.
VARIANTS = {
    "T": (64, 64, (2, 2, 5, 2), 30_916_528),
    "S": (64, 96, (2, 2, 5, 2), 68_927_956),
    "B": (64, 96, (2, 6, 14, 2), 119_467_708),
    "L": (128, 128, (2, 6, 14, 2), 211_785_560),
}


@pytest.mark.parametrize(("dim_stem", "dim", "depth", "timms"), VARIANTS.values(), ids=VARIANTS.keys())
def test_parameter_counts_are_the_published_ones(
    dim_stem: int, dim: int, depth: tuple[int, ...], timms: int
) -> None:
    """torchvision's. timm's gives a bias to the first convolution and to the logits, and has no shortcut
    convolution where widths agree.
    """
    with torch.device("meta"):
        ours = MaxViT(num_classes=1000, dim=dim, depth=depth, dim_stem=dim_stem)
        theirs = torchvision_max_vit(
            input_size=(224, 224),
            stem_channels=dim_stem,
            partition_size=7,
            head_dim=32,
            num_classes=1000,
            block_channels=[dim * 2**stage for stage in range(4)],
            block_layers=list(depth),
        )
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    shortcut = dim_stem * dim + dim if dim_stem == dim else 0
    assert count == timms - dim_stem - 1000 + shortcut
    assert dim_stem != 64 or dim != 64 or count == 30_919_624


def _changed(change: Callable[[MaxVit], None]) -> MaxVit:
    model = torchvision_max_vit()
    change(model)
    return model


REFUSED = {
    "widths": (
        lambda: torchvision_max_vit(block_channels=[16, 24]),
        r"widths of its stages, \[16, 24\], which do not double",
    ),
    "expansion": (lambda: torchvision_max_vit(expansion_ratio=2), "expansion_ratio"),
    "squeeze": (lambda: torchvision_max_vit(squeeze_ratio=0.5), "squeeze_ratio"),
    "mlp": (lambda: torchvision_max_vit(mlp_ratio=2), "mlp_ratio"),
    "eps": (lambda: torchvision_max_vit(norm_layer=nn.BatchNorm2d), "norm_layer"),
    "instance norm": (lambda: torchvision_max_vit(norm_layer=nn.InstanceNorm2d), "norm_layer"),
    "activation": (lambda: torchvision_max_vit(activation_layer=nn.ReLU), "activation_layer"),
    "two at once": (
        lambda: torchvision_max_vit(mlp_ratio=2, activation_layer=nn.ReLU),
        "mlp_ratio.*activation_layer",
    ),
    "no head": (
        lambda: _changed(lambda model: setattr(model, "classifier", nn.Identity())),
        "head .*Identity",
    ),
    "no last layer": (
        lambda: _changed(lambda model: model.classifier.__setitem__(5, nn.Identity())),
        "Tanh - Identity",
    ),
    "last layer with a bias": (
        lambda: _changed(lambda model: model.classifier.__setitem__(5, nn.Linear(32, 3))),
        "head .*Linear",
    ),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_converter_names_what_differs(build: Callable[[], MaxVit], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_torchvision(build())


def test_converter_takes_no_other_class() -> None:
    class Own(MaxVit):
        pass

    with pytest.raises(TypeError, match="Own"):
        from_torchvision(Own((64, 64), 16, 4, [16], [1], 8, 0.0))
    with pytest.raises(TypeError, match="SwinTransformer"):
        from_torchvision(swin_t())


def test_converter_copies() -> None:
    theirs = torchvision_max_vit().eval()
    ours = from_torchvision(theirs)
    assert not ours.training
    before = ours(suited(theirs))
    for parameter in theirs.parameters():
        parameter.data.zero_()
    assert torch.equal(ours(suited(theirs)), before)
