"""A Pyramid, and MaxViT on it: map and head, drop path over the depth, the meta device, and bad input."""

from collections.abc import Callable

import pytest
import torch
from support.max_vit import images, small
from torch import Tensor, nn

from vit_course.lab.parity import randomise
from vit_course.max_vit import Pyramid, SqueezeExcitation, WindowAttention, relative_position_index


class Tiles(Pyramid):
    """The least that a pyramid can be: means of four by four pixels, one convolution."""

    def __init__(self, num_classes: int = 5, dim: int = 8, size_unit: int = 4, channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, dim=dim, size_unit=size_unit, channels=channels)
        self.project = nn.Conv2d(channels, dim, 1)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def encode(self, images: Tensor) -> Tensor:
        return self.project(nn.functional.avg_pool2d(images, self.size_unit))


def test_a_pyramid_of_ones_own_writes_encode_alone() -> None:
    model, pixels = Tiles(), images(2, 3, 8, 12)
    features = model.forward_features(pixels)
    assert features.shape == (2, 8, 2, 3)
    assert torch.equal(model(pixels), model.head(model.norm(features.mean(dim=(2, 3)))))
    assert (model.num_features, model.num_classes, model.num_prefix_tokens) == (8, 5, 0)
    with pytest.raises(NotImplementedError, match="Pyramid has no encode"):
        Pyramid(num_classes=5, dim=8, size_unit=4)(pixels)


@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
def test_built_without_memory_and_loaded_later(assign: bool) -> None:
    """The index into the bias table is in no file: it is computed again."""
    model = randomise(small())
    with torch.device("meta"):
        copied = small().eval()
    if not assign:
        copied.to_empty(device="cpu")
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.data.fill_(7)  # what memory happens to hold
    copied.load_state_dict(model.state_dict(), assign=assign)
    with torch.no_grad():
        assert torch.equal(copied(images()), model(images()))


def test_layer_dropout_rises_evenly() -> None:
    model = small(depth=(1, 2, 2), layer_dropout=0.4)
    rates = [
        {part.drop_path.rate for part in (block.conv, block.block, block.grid)}
        for stage in model.stages
        for block in stage
    ]
    torch.testing.assert_close([rate for (rate,) in rates], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert small(depth=(1,), layer_dropout=0.4).stages[0][0].conv.drop_path.rate == 0


def test_a_pyramid() -> None:
    model = small(depth=(1, 1, 1), dim_stem=12).eval()
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    features = model.forward_features(images(2, 3, 64, 32))
    assert shapes == [(16, 16, 8), (32, 8, 4), (64, 4, 2)]
    assert features.shape == (2, 64, 4, 2) and model.num_features == 64 and model.num_prefix_tokens == 0
    assert model.stem.conv1.out_channels == 12 and not hasattr(model, "patch_embed")


def test_the_norm_follows_the_pooling() -> None:
    model = randomise(small(num_classes=0))
    with torch.no_grad():
        features = model.forward_features(images())
        assert torch.equal(model(images()), model.norm(features.mean(dim=(2, 3))))
        assert features.mean(dim=1).abs().max() > 0.1, "the map itself is not normalised"
        classes = randomise(small())
        assert torch.equal(
            classes(images()), classes.head(classes.norm(classes.forward_features(images()).mean(dim=(2, 3))))
        )
    assert [type(part) for part in classes.head] == [nn.Linear, nn.Tanh, nn.Linear]
    assert classes.head[2].bias is None


BAD_CALLS = {
    "depth number": (lambda: small(depth=2), TypeError, "depth .* 2"),
    "depth empty": (lambda: small(depth=()), TypeError, r"depth .* \(\)"),
    "depth zero": (lambda: small(depth=(1, 0)), ValueError, "depth .* 0"),
    "depth float": (lambda: small(depth=(1, 1.5)), TypeError, "1.5"),
    "dim type": (lambda: small(dim="16"), TypeError, "'16'"),
    "dim and heads": (lambda: small(dim_head=5), ValueError, "16 .* 5"),
    "dim too small": (lambda: small(dim=2, dim_head=2), ValueError, "dim_out .* 2"),
    "dim_head": (lambda: small(dim_head=0), ValueError, "dim_head .* 0"),
    "dim_stem": (lambda: small(dim_stem=0), ValueError, "dim_stem .* 0"),
    "window_size": (lambda: small(window_size=0), ValueError, "window_size .* 0"),
    "window_size pair": (lambda: small(window_size=(7, 7)), TypeError, r"\(7, 7\)"),
    "num_classes": (lambda: small(num_classes=-1), ValueError, "-1"),
    "channels": (lambda: small(channels=0), ValueError, "channels .* 0"),
    "dropout": (lambda: small(dropout=1.5), ValueError, "1.5"),
    "layer_dropout": (lambda: small(layer_dropout=-0.1), ValueError, "-0.1"),
    "layer_dropout type": (lambda: small(layer_dropout="some"), TypeError, "'some'"),
    "attention_scale": (lambda: small(attention_scale="width"), ValueError, "'width'"),
    "axis": (
        lambda: WindowAttention(dim=32, axis="window"),
        ValueError,
        "'window'",
    ),
    "odd images": (
        lambda: small()(images(2, 3, 16, 20)),
        ValueError,
        r"\(16, 20\).* multiples of 16.* \(16, 16\)",
    ),
    "small images": (lambda: small()(images(2, 3, 4, 40)), ValueError, r"\(4, 40\).* \(16, 32\)"),
    "published size": (
        lambda: small(window_size=7, depth=(1, 1, 1, 1))(images(1, 3, 256, 256)),
        ValueError,
        r"\(256, 256\).*multiples of 224.* \(224, 224\)",
    ),
    "grey images": (lambda: small()(images(2, 1, 16, 16)), ValueError, "3 channels, got 1"),
    "bytes": (lambda: small()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), TypeError, "uint8"),
    "one image": (lambda: small()(images(3, 16, 16)), ValueError, r"\(3, 16, 16\)"),
    "no images": (lambda: small()([1, 2]), TypeError, r"\[1, 2\]"),
    "features": (lambda: small().forward_head(images(2, 31, 2, 2)), ValueError, r"\(2, 31, 2, 2\)"),
    "tokens as features": (lambda: small().forward_head(images(2, 4, 32)), ValueError, r"\(2, 4, 32\)"),
    "members": (
        lambda: WindowAttention(dim=8, axis="grid", window_size=3, dim_head=8).members(5, 6),
        ValueError,
        "3 by 3 .* 5 by 6",
    ),
    "gate hidden": (lambda: SqueezeExcitation(dim=8, hidden_dim=0), ValueError, "hidden_dim .* 0"),
    "width": (lambda: Tiles(dim=0), ValueError, "dim .* 0"),
    "unit": (lambda: Tiles(size_unit=0), ValueError, "size_unit .* 0"),
    "unit type": (lambda: Tiles(size_unit=(4, 4)), TypeError, r"size_unit .* \(4, 4\)"),
    "size of one's own": (
        lambda: Tiles()(images(2, 3, 8, 10)),
        ValueError,
        r"\(8, 10\).* 4 pixels.* \(8, 8\)",
    ),
    "index": (lambda: relative_position_index(0), ValueError, "window_size .* 0"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
