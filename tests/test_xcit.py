"""What only XCiT promises."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_course.attention import MultiHeadAttention, record_attention
from vit_course.lab.catalogue import MODELS
from vit_course.lab.parity import SAME, randomise, relative_error
from vit_course.patching import ConvStem, PatchEmbedding
from vit_course.xcit import (
    ConvPatchEmbedding,
    FourierPositions,
    LocalPatchInteraction,
    XCAttention,
    XCiT,
)

SMALL = MODELS["XCiT"].tiny


def small_xcit(**changes) -> XCiT:
    return XCiT(**SMALL | changes)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


# ---- what only XCiT promises


def random_attention(**changes) -> XCAttention:
    return randomise(XCAttention(**{"dim": 32, "heads": 4} | changes))


@torch.no_grad()
def test_xca_is_the_loop_over_channels() -> None:
    """Equation 3 of the paper, channel by channel, on plain numbers."""
    layer, tokens = random_attention(dim=12, heads=2, dim_head=3), images(2, 5, 12)
    with record_attention(layer) as record:
        expected = layer(tokens)
    out = torch.zeros(2, 5, 6)
    for picture in range(2):
        q, k, v = (part.view(5, 2, 3) for part in layer.qkv(tokens[picture]).chunk(3, dim=1))
        for head in range(2):
            for asking in range(3):
                column = q[:, head, asking]
                scores = torch.stack(
                    [
                        layer.temperature[head, 0, 0] * (column @ other) / (column.norm() * other.norm())
                        for other in k[:, head].T
                    ]
                )
                shares = scores.exp() / scores.exp().sum()
                assert relative_error(record[0].weights[picture, head, asking], shares) < SAME
                out[picture, :, 3 * head + asking] = v[:, head] @ shares
    assert relative_error(layer.proj(out), expected) < SAME


@torch.no_grad()
def test_weights_are_channels_by_channels() -> None:
    model = randomise(small_xcit())
    with record_attention(model) as record:
        for size in ((16, 16), (8, 24)):
            model(images(3, 3, *size))
            n = size[0] * size[1] // 16
            shapes = [tuple(layer.weights.shape) for layer in record]
            assert shapes == [(3, 2, 16, 16)] * 2 + [(3, 2, 1, 1 + n)] * 2
            assert [layer.num_prefix_tokens for layer in record] == [0, 0, 1, 1]
            assert all(layer.grid == (size[0] // 4, size[1] // 4) for layer in record)
            for layer in record:
                torch.testing.assert_close(layer.weights.sum(dim=-1), torch.ones(layer.weights.shape[:3]))


@torch.no_grad()
def test_tokens_repeated_or_in_another_order_leave_the_weights() -> None:
    layer, tokens = random_attention(), images(2, 10, 32)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    weights = []
    with record_attention(layer) as record:
        for sequence in (tokens, torch.cat([tokens, tokens], dim=1), tokens[:, order]):
            out = layer(sequence)
            weights.append(record[0].weights)
    assert relative_error(weights[1], weights[0]) < SAME and relative_error(weights[2], weights[0]) < SAME
    assert relative_error(out, layer(tokens)[:, order]) < SAME


def test_dropout_of_weights_is_recorded_before_it() -> None:
    torch.manual_seed(0)
    layer = random_attention(dropout=0.5).train()
    with record_attention(layer) as record:
        layer(images(2, 10, 32))
    torch.testing.assert_close(record[0].weights.sum(dim=-1), torch.ones(2, 4, 8))


def flops(layer: nn.Module, n: int, dim: int = 64) -> int:
    """Counted with the weights recorded: PyTorch does not count its fused attention on a CPU."""
    counter = FlopCounterMode(display=False)
    with counter, record_attention(layer), torch.no_grad():
        layer(torch.zeros(1, n, dim))
    return counter.get_total_flops()


def test_cost_doubles_with_the_tokens() -> None:
    channels, tokens = XCAttention(dim=64, heads=4), MultiHeadAttention(dim=64, heads=4)
    for n in (64, 128, 256, 512):
        assert flops(channels, n) == 8 * n * 64**2 + 4 * n * 64**2 // 4
        assert flops(tokens, n) == 8 * n * 64**2 + 4 * n**2 * 64
    assert flops(channels, 512) == 8 * flops(channels, 64)


@torch.no_grad()
def test_local_interaction_sees_5_by_5_patches_of_one_channel() -> None:
    layer, tokens = randomise(LocalPatchInteraction(8)), images(1, 63, 8)
    poked = tokens.clone()
    poked[0, 3 * 9 + 4, 2] += 1  # row 3 of 7, column 4 of 9
    changed = (layer(poked, (7, 9)) != layer(tokens, (7, 9))).view(7, 9, 8)
    expected = torch.zeros(7, 9, 8, dtype=torch.bool)
    expected[1:6, 2:7, 2] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_local_interaction_learns_the_mean_of_a_batch_in_training_only() -> None:
    layer, tokens = LocalPatchInteraction(8), images(2, 12, 8)
    layer.eval()(tokens, (3, 4))
    assert layer.bn.num_batches_tracked == 0
    layer.train()(tokens, (3, 4))
    assert layer.bn.num_batches_tracked == 1 and layer.bn.running_mean.abs().sum() > 0


@torch.no_grad()
def test_positions_of_another_grid_are_read_off_the_same_waves() -> None:
    positions = randomise(FourierPositions(8))
    fine, coarse = positions((12, 8)).view(12, 8, 8), positions((6, 4)).view(6, 4, 8)
    torch.testing.assert_close(fine[1::2, 1::2], coarse)  # patches that end at the same place of the picture
    assert positions.waves((3, 5)).shape == (15, 64)
    apart = (positions.waves((6, 4))[:, None] - positions.waves((6, 4))[None]).norm(dim=-1)
    assert apart[~torch.eye(24, dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize(
    ("patch_size", "kind"),
    [(16, ConvPatchEmbedding), (8, ConvPatchEmbedding), (4, PatchEmbedding), ((8, 16), PatchEmbedding)],
)
def test_stem_by_patch_size(patch_size: int | tuple[int, int], kind: type) -> None:
    model = small_xcit(image_size=32, patch_size=patch_size)
    assert type(model.patch_embed) is kind
    assert model(images(2, 3, 32, 32)).shape == (2, 5)


def test_own_patch_embedding() -> None:
    stem = ConvStem(patch_size=8, dim=32)
    model = small_xcit(image_size=32, patch_size=8, patch_embedding=stem)
    assert model.patch_embed is stem and model(images(2, 3, 32, 32)).shape == (2, 5)


def test_stem_widths() -> None:
    for patch_size, widths in ((16, [4, 8, 16, 32]), (8, [8, 16, 32]), (2, [32])):
        stem = ConvPatchEmbedding(patch_size=patch_size, dim=32, channels=1)
        convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
        assert [layer.out_channels for layer in convolutions] == widths
        assert stem(images(2, 1, 32, 16)).shape == (2, 512 // patch_size**2, 32)


@pytest.mark.parametrize(("depth", "start"), [(1, 1.0), (12, 1.0), (13, 1e-5), (24, 1e-5)])
def test_layer_scale_starts_by_depth(depth: int, start: float) -> None:
    with torch.device("meta"):
        names = [name for name, _ in small_xcit(depth=depth).named_parameters() if name.endswith(".gamma")]
    assert len(names) == 3 * depth + 2 * 2
    model = small_xcit(depth=depth)
    assert all((model.get_parameter(name) == start).all() for name in names)


def test_class_blocks_lose_no_branch() -> None:
    """layer_dropout=1 switches the first stage off, for each sample, and leaves the second."""
    torch.manual_seed(0)
    model = small_xcit(layer_dropout=1.0).train()
    tokens = images(2, 16, 32)
    with torch.no_grad():
        features = model.forward_tokens(tokens)
        untouched = torch.cat([model.cls_token.expand(2, -1, -1), tokens + model.pos_embed((4, 4))], dim=1)
        assert relative_error(features, model.norm(model.cls_attn_blocks(untouched))) < SAME


BAD_CALLS = {
    "image_size": (lambda: small_xcit(image_size=(30, 32)), ValueError, r"\(30, 32\)"),
    "patch_size type": (lambda: small_xcit(patch_size=4.0), TypeError, "4.0"),
    "num_classes": (lambda: small_xcit(num_classes=-1), ValueError, "-1"),
    "dim type": (lambda: small_xcit(dim="64"), TypeError, "'64'"),
    "dim and heads": (lambda: small_xcit(heads=3), ValueError, "32.* 3"),
    "dim and stem": (
        lambda: small_xcit(image_size=16, patch_size=16, dim=36, heads=1),
        ValueError,
        "36.* 16",
    ),
    "depth": (lambda: small_xcit(depth=0), ValueError, "depth .* 0"),
    "cls_depth": (lambda: small_xcit(cls_depth=0), ValueError, "cls_depth .* 0"),
    "heads": (lambda: small_xcit(heads=0), ValueError, "heads .* 0"),
    "dim_head": (lambda: small_xcit(dim_head=0), ValueError, "dim_head .* 0"),
    "mlp_dim": (lambda: small_xcit(mlp_dim=2.5), TypeError, "2.5"),
    "channels": (lambda: small_xcit(channels=0), ValueError, "channels .* 0"),
    "dropout": (lambda: small_xcit(dropout=2.0), ValueError, "2.0"),
    "emb_dropout": (lambda: small_xcit(emb_dropout=-0.5), ValueError, "-0.5"),
    "layer_dropout": (lambda: small_xcit(layer_dropout=1.5), ValueError, "1.5"),
    "patch_embedding": (lambda: small_xcit(patch_embedding="conv"), TypeError, "'conv'"),
    "no images": (lambda: small_xcit()([1, 2]), TypeError, r"\[1, 2\]"),
    "bytes": (lambda: small_xcit()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), TypeError, "uint8"),
    "grey images": (lambda: small_xcit()(images(4, 1, 16, 16)), ValueError, "3 channels, got 1"),
    "odd images": (lambda: small_xcit()(images(4, 3, 16, 18)), ValueError, r"\(16, 18\)"),
    "token width": (lambda: small_xcit().forward_tokens(images(2, 16, 31)), ValueError, r"\(2, 16, 31\)"),
    "token number": (lambda: small_xcit().forward_tokens(images(2, 15, 32)), ValueError, r"\(2, 15, 32\)"),
    "token grid": (lambda: small_xcit().forward_tokens(images(2, 16, 32), (2, 6)), ValueError, "2 by 6"),
    "features": (lambda: small_xcit().forward_head(images(2, 32)), ValueError, r"\(2, 32\)"),
    "local width": (lambda: LocalPatchInteraction(0), ValueError, "dim .* 0"),
    "stem patch": (lambda: ConvPatchEmbedding(patch_size=6, dim=32), ValueError, "two .* 6"),
    "stem patch of one": (lambda: ConvPatchEmbedding(patch_size=1, dim=32), ValueError, "two .* 1"),
    "stem width": (lambda: ConvPatchEmbedding(patch_size=16, dim=36), ValueError, "36 .* 16"),
    "stem images": (
        lambda: ConvPatchEmbedding(patch_size=8, dim=32)(images(2, 3, 20, 16)),
        ValueError,
        r"\(20, 16\)",
    ),
    "positions width": (lambda: FourierPositions(0), ValueError, "dim .* 0"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_channel_of_zeros_is_no_division_by_zero(dtype: torch.dtype) -> None:
    layer = XCAttention(dim=8, heads=2).to(dtype)
    out = layer(torch.zeros(1, 4, 8, dtype=dtype))
    assert out.isfinite().all() and out.dtype == dtype
    tokens = images(2, 5, 8)
    precise = copy.deepcopy(layer).float()(tokens.to(dtype).float())
    assert relative_error(layer(tokens.to(dtype)).float(), precise) < (
        2e-3 if dtype == torch.float16 else 2e-2
    )
