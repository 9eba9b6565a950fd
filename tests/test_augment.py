"""Augmentation draws once for each image, keeps shapes, and computes in a type that can hold it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vit_course.training import augment


def pictures(b: int = 6, height: int = 24, width: int = 24) -> Tensor:
    """Smooth pictures, all the same one."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, (3 * x).sin() * (2 * y).cos()]).expand(b, -1, -1, -1).clone()


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "only",
    [{"rotation": 0, "flip": False}, {"scale": (1, 1), "flip": False}, {"scale": (1, 1), "rotation": 0}],
    ids=["crop", "turn", "flip"],
)
def test_every_image_has_a_draw_of_its_own(only: dict) -> None:
    out = augment(pictures(), generator=draws(), **only)
    different = sum(not torch.allclose(out[i], out[j]) for i in range(6) for j in range(i))
    assert different >= 5 if "rotation" in only and "scale" in only else different == 15


def test_nothing_to_do_gives_the_images_back() -> None:
    for shape in ((24, 24), (12, 30)):
        out = augment(pictures(6, *shape), scale=(1, 1), rotation=0, flip=False, generator=draws())
        torch.testing.assert_close(out, pictures(6, *shape), atol=1e-5, rtol=0)


def test_flip_alone_mirrors_half_of_the_images() -> None:
    originals = torch.rand(200, 1, 8, 8, generator=draws())
    out = augment(originals, scale=(1, 1), rotation=0, flip=True, generator=draws())
    kept = (out - originals).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (out - originals.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all() and 70 < kept.sum() < 130


def test_crops_keep_the_share_that_was_asked_for() -> None:
    """On pictures of their own coordinates, the spread of the result is that of the crop."""
    out = augment(pictures(300), scale=(0.3, 0.5), rotation=0, flip=False, generator=draws())
    width, height = (out[:, axis].amax(dim=(1, 2)) - out[:, axis].amin(dim=(1, 2)) for axis in (0, 1))
    area = width * height / 4
    assert 0.28 < area.min() < 0.34 and 0.46 < area.max() < 0.52
    assert 0.79 < (width / height).min() < 0.9 and 1.1 < (width / height).max() < 1.27
    whole = augment(pictures(300), scale=(0.9, 1), rotation=0, flip=False, generator=draws())
    width, height = (whole[:, axis].amax(dim=(1, 2)) - whole[:, axis].amin(dim=(1, 2)) for axis in (0, 1))
    assert (width * height / 4).min() > 0.87, "a stretched crop no longer fits and was cut"
    assert out.amax() <= pictures().amax() + 1e-5 and out.amin() >= pictures().amin() - 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 80)])
def test_turns_keep_shapes(height: int, width: int) -> None:
    """A disc keeps its pixels and a bar its length, in wide pictures too."""
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    distance = (x.square() + y.square()).sqrt()
    middle = distance < 18  # further out are reflections
    disc, bar = (distance < 12).float(), ((x.abs() < 12) & (y.abs() < 2)).float()
    turned = (
        augment(
            torch.stack([disc, bar]).expand(20, 2, -1, -1),
            scale=(1, 1),
            rotation=180,
            flip=False,
            generator=draws(),
        )
        * middle
    )
    torch.testing.assert_close(turned[:, 0].sum(dim=(1, 2)), disc.sum().expand(20), rtol=0.03, atol=0)
    length = (turned[:, 1] * distance).amax(dim=(1, 2))
    assert (length - (bar * distance).amax()).abs().max() < 1, "the bar changes its length with the turn"


def test_small_turns_stay_small() -> None:
    out = augment(pictures(), scale=(1, 1), rotation=5, flip=False, generator=draws())
    assert 0.001 < (out - pictures())[:, :, 4:-4, 4:-4].abs().mean() < 0.06


def test_augment_is_reproducible_finite_and_sized() -> None:
    for size, shape in ((None, (6, 3, 12, 30)), (16, (6, 3, 16, 16)), (40, (6, 3, 40, 40))):
        one, other = (augment(pictures(6, 12, 30), size=size, generator=draws(3)) for _ in range(2))
        assert one.shape == shape and torch.equal(one, other) and one.isfinite().all()
    assert not torch.equal(augment(pictures(), generator=draws(1)), augment(pictures(), generator=draws(2)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment(pictures(), generator=draws())
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    assert augment(pictures().double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_lose_no_more_than_their_rounding(dtype: torch.dtype) -> None:
    """At 224 pixels bfloat16 cannot tell one column from the next: the grid must not be of that type."""
    images = torch.rand(8, 3, 224, 224, generator=draws())
    exact, half = (
        augment(image, generator=draws(1)) for image in (images.to(dtype).float(), images.to(dtype))
    )
    assert half.dtype == dtype and torch.equal(half, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_finite(dtype: torch.dtype) -> None:
    for seed in range(8):
        images = torch.rand(16, 1, 224, 224, generator=draws(seed)).to(dtype)
        assert augment(images, generator=draws(seed)).isfinite().all(), seed


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_of_torch_does_not_matter(default: torch.dtype) -> None:
    images, before = pictures(), torch.get_default_dtype()
    wanted = augment(images, generator=draws(1))
    torch.set_default_dtype(default)
    try:
        out = augment(images, generator=draws(1))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(out, wanted)


# ---- bad input

IMAGES = torch.zeros(4, 3, 8, 8)
BAD_CALLS = {
    "bytes": (lambda: augment(IMAGES.byte()), TypeError, "uint8"),
    "one image": (lambda: augment(IMAGES[0]), ValueError, r"\(3, 8, 8\)"),
    "scale": (lambda: augment(IMAGES, scale=(0, 1)), ValueError, r"\(0, 1\)"),
    "scale order": (lambda: augment(IMAGES, scale=(0.9, 0.5)), ValueError, r"\(0.9, 0.5\)"),
    "scale large": (lambda: augment(IMAGES, scale=(0.5, 1.5)), ValueError, "1.5"),
    "scale type": (lambda: augment(IMAGES, scale=0.5), TypeError, "0.5"),
    "scale text": (lambda: augment(IMAGES, scale=("a", "b")), TypeError, "'a'"),
    "rotation": (lambda: augment(IMAGES, rotation=-10), ValueError, "rotation.* -10"),
    "rotation type": (lambda: augment(IMAGES, rotation="left"), TypeError, "'left'"),
    "size": (lambda: augment(IMAGES, size=0), ValueError, "size.* 0"),
    "size type": (lambda: augment(IMAGES, size=(8, 8)), TypeError, r"\(8, 8\)"),
    "generator": (lambda: augment(IMAGES, generator=5), TypeError, "generator.* 5"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
