"""Patches hold the right pixels in the right order, and positions are the published ones."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import pyplot
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vit_course.lab import pictures
from vit_course.patching import (
    ConvStem,
    PatchEmbedding,
    patchify,
    resize_positions,
    sincos_positions,
    unpatchify,
)

SIZES = {
    "square": ((32, 32), 8),
    "wide": ((16, 48), 8),
    "tall patches": ((24, 32), (8, 4)),
    "one patch": ((6, 10), (6, 10)),
    "pixels": ((4, 5), 1),
}
sizes = pytest.mark.parametrize(("size", "patch"), SIZES.values(), ids=SIZES.keys())


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides(patch: int | tuple[int, int]) -> tuple[int, int]:
    return patch if isinstance(patch, tuple) else (patch, patch)


# ---- patchify and unpatchify
# -----------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_are_the_pixels_they_claim_to_be(
    size: tuple[int, int], patch: int | tuple[int, int], channels: int
) -> None:
    pixels, (p1, p2) = images(2, channels, *size), sides(patch)
    patches = patchify(pixels, patch)
    rows, columns = size[0] // p1, size[1] // p2
    assert patches.shape == (2, rows * columns, p1 * p2 * channels)
    for row in range(rows):
        for column in range(columns):
            cut = pixels[:, :, row * p1 : (row + 1) * p1, column * p2 : (column + 1) * p2]
            assert torch.equal(patches[:, row * columns + column], cut.permute(0, 2, 3, 1).flatten(1))


def test_order_inside_a_patch_is_row_column_channel() -> None:
    pixels = torch.arange(2 * 4 * 4).float().view(1, 2, 4, 4)
    assert patchify(pixels, 2)[0, 0].tolist() == [0, 16, 1, 17, 4, 20, 5, 21]
    assert patchify(pixels, 2)[0, 1, 0] == 2, "the second patch is to the right of the first"


@sizes
def test_unpatchify_is_the_inverse(size: tuple[int, int], patch: int | tuple[int, int]) -> None:
    pixels = images(2, 3, *size)
    assert torch.equal(unpatchify(patchify(pixels, patch), patch, size), pixels)
    patches = patchify(pixels, patch)
    assert torch.equal(patchify(unpatchify(patches, patch, size), patch), patches)


def test_precision_and_gradients_pass_through() -> None:
    pixels = images(1, 3, 8, 8).double().requires_grad_()
    patches = patchify(pixels, 4)
    assert patches.dtype == torch.float64
    patches.sum().backward()
    assert (pixels.grad == 1).all()


# ---- embeddings
# ----------------------------


@sizes
def test_patch_embedding_is_a_linear_layer_on_patches(
    size: tuple[int, int], patch: int | tuple[int, int]
) -> None:
    torch.manual_seed(0)
    embedding, pixels = PatchEmbedding(patch_size=patch, dim=12), images(2, 3, *size)
    nn.init.normal_(embedding.proj.bias)
    weight = rearrange(embedding.proj.weight, "d c p1 p2 -> d (p1 p2 c)")
    torch.testing.assert_close(
        embedding(pixels), F.linear(patchify(pixels, patch), weight, embedding.proj.bias)
    )


def test_patch_embedding_starts_as_a_linear_layer_does() -> None:
    torch.manual_seed(0)
    weight = PatchEmbedding(patch_size=8, dim=64).proj.weight
    bound = math.sqrt(6 / (3 * 8 * 8 + 64))
    assert 0.98 * bound < weight.abs().max() <= bound


EMBEDDINGS: dict[str, Callable[[], nn.Module]] = {
    "PatchEmbedding": lambda: PatchEmbedding(patch_size=4, dim=16),
    "ConvStem": lambda: ConvStem(patch_size=4, dim=16),
}
embeddings = pytest.mark.parametrize("make", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())


@embeddings
def test_one_token_for_each_patch_of_any_size(make: Callable[[], nn.Module]) -> None:
    embedding = make()
    for height, width in ((16, 16), (4, 4), (8, 20)):
        assert embedding(images(2, 3, height, width)).shape == (2, height * width // 16, 16)


def test_moving_the_image_by_a_patch_moves_the_tokens_by_one() -> None:
    torch.manual_seed(0)
    embedding, pixels = PatchEmbedding(patch_size=4, dim=16), images(2, 3, 16, 24)
    grid = rearrange(embedding(pixels), "b (rows columns) d -> b rows columns d", rows=4)
    moved = rearrange(
        embedding(pixels.roll((4, 8), dims=(2, 3))), "b (rows columns) d -> b rows columns d", rows=4
    )
    torch.testing.assert_close(moved, grid.roll((1, 2), dims=(1, 2)))


@embeddings
def test_token_is_in_the_place_of_its_patch(make: Callable[[], nn.Module]) -> None:
    """A change of one patch changes its own token and, for plain patches, no other.

    A stem's convolutions look further: their windows centre on the corner of a patch, so that the next token
    down or right sees as much.
    """
    torch.manual_seed(0)
    embedding, pixels = make(), images(1, 3, 16, 24, seed=1)
    for token in (0, 5, 6, 23):
        changed = pixels.clone()
        row, column = divmod(token, 6)
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = images(3, 4, 4)
        difference = (embedding(changed) - embedding(pixels)).norm(dim=-1)[0]
        if isinstance(embedding, PatchEmbedding):
            assert difference.nonzero().flatten().tolist() == [token]
        else:
            assert difference.argmax() in (token, token + 1, token + 6, token + 7)


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_conv_stem_halves_as_often_as_needed(patch_size: int) -> None:
    stem = ConvStem(patch_size=patch_size, dim=16, channels=1)
    strides = [layer.stride[0] for layer in stem.layers if isinstance(layer, nn.Conv2d)]
    assert (
        math.prod(strides) == patch_size
        and set(strides[:-1]) == {2}
        and stem.layers[-1].kernel_size == (1, 1)
    )
    assert stem(images(2, 1, 32, 16)).shape == (2, 512 // patch_size**2, 16)


def test_conv_stem_is_the_same_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    stem, pixels = ConvStem(patch_size=4, dim=16), images(3, 3, 16, 16)
    assert torch.equal(stem.train()(pixels), stem.eval()(pixels))
    torch.testing.assert_close(stem(pixels)[:1], stem(pixels[:1]))


# ---- positions
# ----------------------------


@pytest.mark.parametrize(("grid", "dim"), [((4, 4), 32), ((3, 7), 16), ((1, 5), 8), ((2, 3), 4)])
def test_sincos_positions_beside_a_loop(grid: tuple[int, int], dim: int) -> None:
    quarter, rows = dim // 4, []
    for y in range(grid[0]):
        for x in range(grid[1]):
            w = [10000 ** (-i / max(quarter - 1, 1)) for i in range(quarter)]
            rows.append(
                [f(p * v) for p, f in ((x, math.sin), (x, math.cos), (y, math.sin), (y, math.cos)) for v in w]
            )
    torch.testing.assert_close(sincos_positions(grid, dim), torch.tensor(rows), atol=1e-5, rtol=0)


def test_sincos_positions_tell_places_apart() -> None:
    positions = sincos_positions((6, 9), 32)
    assert positions.isfinite().all() and positions.shape == (54, 32)
    torch.testing.assert_close(positions.norm(dim=1), torch.full((54,), math.sqrt(32 / 2)))
    distances = torch.cdist(positions, positions) + 10 * torch.eye(54)
    assert distances.min() > 0.1
    assert sincos_positions((2, 2), 4).isfinite().all(), "one frequency divides zero by zero"
    assert not torch.equal(sincos_positions((2, 2), 16, temperature=100.0), sincos_positions((2, 2), 16))


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("old", "new"),
    [((14, 14), (7, 7)), ((4, 4), (6, 6)), ((4, 6), (9, 3)), ((2, 8), (8, 2)), ((1, 4), (3, 1))],
)
def test_resizing_is_timms(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    positions = images(prefix + old[0] * old[1], 8)
    theirs = resample_abs_pos_embed(positions[None], list(new), list(old), num_prefix_tokens=prefix)[0]
    assert torch.equal(resize_positions(positions, old, new, prefix), theirs)
    assert torch.equal(resize_positions(positions, old, old, prefix), positions)


def test_resizing_keeps_prefix_flat_positions_and_gradients() -> None:
    positions = torch.ones(17, 8, requires_grad=True)
    resized = resize_positions(torch.cat([3 * positions[:1], positions[1:]]), (4, 4), (5, 2), 1)
    assert torch.equal(resized[0], torch.full((8,), 3.0))
    torch.testing.assert_close(resized[1:], torch.ones(10, 8))
    resized.sum().backward()
    assert (positions.grad != 0).all()


def test_resizing_works_in_half_precision() -> None:
    positions = images(17, 8)
    half = resize_positions(positions.bfloat16(), (4, 4), (6, 2), 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.float(), resize_positions(positions, (4, 4), (6, 2), 1), atol=0.05, rtol=0.05
    )
    assert resize_positions(positions.double(), (4, 4), (6, 2), 1).dtype == torch.float64


# ---- bad input
# ----------------------------

GOOD = torch.zeros(1, 3, 16, 16)
BAD_CALLS = {
    "patchify height": (lambda: patchify(GOOD[:, :, :15], 4), ValueError, r"\(15, 16\).*\(4, 4\)"),
    "patchify width": (lambda: patchify(GOOD, (4, 5)), ValueError, r"\(16, 16\).*\(4, 5\)"),
    "patchify zero": (lambda: patchify(GOOD, 0), ValueError, "patch_size.* 0"),
    "patchify negative": (lambda: patchify(GOOD, (4, -4)), ValueError, r"\(4, -4\)"),
    "patchify float": (lambda: patchify(GOOD, 4.0), TypeError, "4.0"),
    "patchify bool": (lambda: patchify(GOOD, True), TypeError, "True"),
    "patchify triple": (lambda: patchify(GOOD, (4, 4, 4)), TypeError, r"\(4, 4, 4\)"),
    "patchify text": (lambda: patchify(GOOD, "4"), TypeError, "'4'"),
    "patchify one image": (lambda: patchify(GOOD[0], 4), ValueError, r"\(3, 16, 16\)"),
    "patchify bytes": (lambda: patchify(GOOD.byte(), 4), TypeError, "uint8"),
    "patchify list": (lambda: patchify([[1]], 4), TypeError, r"\[\[1\]\]"),
    "unpatchify number": (
        lambda: unpatchify(torch.zeros(1, 15, 48), 4, 16),
        ValueError,
        r"\(1, 15, 48\).*4 by 4",
    ),
    "unpatchify length": (lambda: unpatchify(torch.zeros(1, 16, 50), 4, 16), ValueError, r"\(1, 16, 50\)"),
    "unpatchify axes": (lambda: unpatchify(torch.zeros(16, 48), 4, 16), ValueError, r"\(16, 48\)"),
    "unpatchify size": (lambda: unpatchify(torch.zeros(1, 16, 48), 4, (16, 18)), ValueError, r"\(16, 18\)"),
    "unpatchify list": (lambda: unpatchify([[1]], 4, 16), TypeError, r"\[\[1\]\]"),
    "embedding width": (lambda: PatchEmbedding(patch_size=4, dim=0), ValueError, "dim.* 0"),
    "embedding type": (lambda: PatchEmbedding(patch_size=4, dim="16"), TypeError, "'16'"),
    "embedding channels": (
        lambda: PatchEmbedding(patch_size=4, dim=8, channels=-1),
        ValueError,
        "channels.* -1",
    ),
    "embedding grey": (
        lambda: PatchEmbedding(patch_size=4, dim=8)(GOOD[:, :1]),
        ValueError,
        "3 channels, got 1",
    ),
    "embedding size": (
        lambda: PatchEmbedding(patch_size=5, dim=8)(GOOD),
        ValueError,
        r"\(16, 16\).*\(5, 5\)",
    ),
    "stem patch": (lambda: ConvStem(patch_size=12, dim=16), ValueError, "12"),
    "stem pixel": (lambda: ConvStem(patch_size=1, dim=16), ValueError, "1"),
    "stem pair": (lambda: ConvStem(patch_size=(8, 8), dim=16), TypeError, r"\(8, 8\)"),
    "stem width": (lambda: ConvStem(patch_size=4, dim=20), ValueError, "20"),
    "stem size": (lambda: ConvStem(patch_size=8, dim=16)(GOOD[:, :, :12]), ValueError, r"\(12, 16\)"),
    "stem channels": (lambda: ConvStem(patch_size=8, dim=16)(GOOD[:, :1]), ValueError, "3 channels, got 1"),
    "sincos width": (lambda: sincos_positions((4, 4), 6), ValueError, "6"),
    "sincos zero": (lambda: sincos_positions((4, 4), 0), ValueError, "0"),
    "sincos type": (lambda: sincos_positions((4, 4), "8"), TypeError, "'8'"),
    "sincos grid": (lambda: sincos_positions((4, 0), 8), ValueError, r"\(4, 0\)"),
    "sincos temperature": (lambda: sincos_positions((4, 4), 8, temperature=0), ValueError, "temperature.* 0"),
    "resize number": (
        lambda: resize_positions(torch.zeros(16, 8), (4, 4), (2, 2), 1),
        ValueError,
        r"\(16, 8\).* 1 prefix.*4 by 4",
    ),
    "resize axes": (
        lambda: resize_positions(torch.zeros(1, 16, 8), (4, 4), (2, 2)),
        ValueError,
        r"\(1, 16, 8\)",
    ),
    "resize grid": (lambda: resize_positions(torch.zeros(16, 8), (4, 4), (2, 0)), ValueError, r"\(2, 0\)"),
    "resize grid type": (lambda: resize_positions(torch.zeros(16, 8), (4, 4), "2x2"), TypeError, "'2x2'"),
    "resize prefix": (
        lambda: resize_positions(torch.zeros(15, 8), (4, 4), (2, 2), -1),
        ValueError,
        "num_prefix_tokens.* -1",
    ),
    "resize list": (lambda: resize_positions([1.0], (1, 1), (2, 2)), TypeError, r"\[1.0\]"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


# ---- figures
# ------------


def test_similarity_of_a_position_and_itself_is_one() -> None:
    table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    alike = pictures.patching.similarity(table, (2, 3))
    assert alike.shape == (2, 3, 2, 3)
    for row, column in product(range(2), range(3)):
        assert alike[row, column, row, column].item() == pytest.approx(1, abs=1e-6)
    expected = F.cosine_similarity(table[1], table[5], dim=0)
    torch.testing.assert_close(alike[0, 1, 1, 2], expected)


def test_figures_have_a_panel_for_each_part() -> None:
    positions = {"one": sincos_positions((4, 4), 16), "two": sincos_positions((4, 4), 16)}
    figures = {
        4: pictures.patching.filters_and_positions(images(9, 3, 4, 4), positions, (4, 4)),  # and a colour bar
        2: pictures.patching.side_by_side([torch.zeros(3, 4, 6)] * 2, ["a", "b"]),
        3: pictures.patching.sensitivity({"a": torch.ones(8, 8), "b": torch.ones(8, 8)}, 4),
    }
    for panels, figure in figures.items():
        assert len(figure.axes) == panels
        pyplot.close(figure)
