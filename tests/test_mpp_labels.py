"""The colours are those of a slow loop, and patches are corrupted in the shares that were set."""

import math

import pytest
import torch
from support.masked import colours, seeded, slow_corrupt, slow_labels, small_mpp
from support.unlabelled import SMALL

from vit_course.lab.data import MEAN, STD, normalise, photos
from vit_course.mpp import MPP, corrupt, corruption_from, draw_corruption, mean_colour_labels
from vit_course.vit import ViT

# ---- the labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p1", "p2"), [(4, 4), (2, 8), (1, 1)])
@pytest.mark.parametrize(("bits", "channels"), [(3, 3), (1, 3), (5, 3), (8, 1), (3, 1), (2, 5)])
def test_labels_are_those_of_the_slow_loop(p1: int, p2: int, bits: int, channels: int) -> None:
    images = colours(3, channels, 8, 16, seed=bits)
    assert mean_colour_labels(images, (p1, p2), bits).tolist() == slow_labels(images, p1, p2, bits)


@pytest.mark.parametrize(
    ("colour", "label"),
    [
        ((0.0, 0.0, 0.0), 0),
        ((1.0, 1.0, 1.0), 511),
        ((0.5, 0.5, 0.5), 292),  # 4 + 8 · 4 + 64 · 4: the upper of the two levels that meet at .5
        ((0.499, 0.499, 0.499), 219),
        ((1.0, 0.0, 0.0), 7),
        ((0.0, 1.0, 0.0), 56),
        ((0.0, 0.0, 1.0), 448),
    ],
)
def test_labels_of_plain_colours(colour: tuple[float, ...], label: int) -> None:
    images = torch.tensor(colour).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert mean_colour_labels(images, 4, 3).tolist() == [[label] * 4] * 2


def test_borders_of_the_levels_survive_normalisation() -> None:
    """Each border k / 8, normalised and back: rounding must not drop it into the level below."""
    borders = (torch.arange(9) / 8).view(9, 1, 1, 1).expand(9, 3, 8, 8)
    wanted = torch.arange(9).clamp(max=7) * 73
    for mean, std in [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    ]:
        mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        back = (borders - mean) / std * std + mean
        assert mean_colour_labels(back, 4, 3)[:, 0].tolist() == wanted.tolist()


def test_normalised_images_have_the_labels_of_the_raw_ones() -> None:
    raw, grey = photos("test", 20).images, colours(4, 1, 16, 16)
    wanted = mean_colour_labels(raw, 4, 3)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    mean, std = (torch.tensor(imagenet[name]).view(3, 1, 1) for name in ("mean", "std"))
    everything = {"mask_prob": 1.0}
    grey_model = MPP(ViT(**SMALL, channels=1), **everything, channels=1, mean=[0.2], std=[3.0])
    for model, images, labels in [
        (small_mpp(**everything), raw, wanted),
        (small_mpp(**everything, mean=MEAN, std=STD), normalise(raw), wanted),
        (small_mpp(**everything, **imagenet), (raw - mean) / std, wanted),
        (grey_model, (grey - 0.2) / 3, mean_colour_labels(grey, 4, 3)),
    ]:
        _, targets, corruption = model.predict(images)
        assert torch.equal(targets, labels.gather(1, corruption.index))


def test_images_that_are_no_colours_are_refused() -> None:
    for images in (
        normalise(colours(2, 3, 16, 16)),
        255 * colours(2, 3, 16, 16),
        torch.full((1, 3, 16, 16), math.nan),
    ):
        with pytest.raises(
            ValueError, match=r"colours must be in 0 … 1, got means of patches in .* the mean and std"
        ):
            small_mpp()(images)
    small_mpp()(colours(2, 3, 16, 16) * 1.002 - 0.001)  # as after a resampling that overshoots


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.zeros(1, 3, 8, 8).byte(), 4, 3), TypeError, "divide bytes by 255"),
        ((torch.zeros(3, 8, 8), 4, 3), ValueError, r"axes \(b c h w\), got shape \(3, 8, 8\)"),
        ((torch.zeros(1, 3, 8, 8), 3, 3), ValueError, r"\(8, 8\) is not divisible by patch_size \(3, 3\)"),
        ((torch.zeros(1, 3, 8, 8), 4, 0), ValueError, "bits must be at least 1, got 0"),
        ((torch.zeros(1, 3, 8, 8), 4, 3.0), TypeError, "bits must be an int, got 3.0"),
        ((torch.zeros(1, 3, 8, 8), 4, 6), ValueError, r"6 bits in each of 3 channels are 2\^18 classes"),
        (([1.0], 4, 3), TypeError, "images must be a tensor"),
    ],
)
def test_labels_refuse_bad_input(arguments: tuple, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mean_colour_labels(*arguments)


# ---- the corruption ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "n", "m"),
    [
        (0.5, 16, 8),
        (0.5, 9, 5),
        (0.15, 196, 30),
        (0.07, 100, 7),
        (0.1, 30, 3),
        (0.01, 16, 1),
        (1.0, 7, 7),
        (1, 4, 4),
    ],
)
def test_exactly_so_many_patches_are_corrupted_each_once(share: float, n: int, m: int) -> None:
    """ceil(share · n), and 0.07 · 100 is 7 although floats say 7.000000000000001."""
    corruption = draw_corruption(50, n, mask_prob=share)
    assert all(part.shape == (50, m) for part in corruption)
    ordered = corruption.index.sort(dim=1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all() and 0 <= ordered.min() and ordered.max() < n


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 0.6)])
def test_shares_are_measured(shares: tuple[float, float]) -> None:
    """Masked, random and kept within three standard deviations; places and donors uniform."""
    b, n = 4000, 10
    corruption = draw_corruption(
        b, n, replace_prob=shares[0], random_patch_prob=shares[1], generator=seeded(1)
    )
    is_random = corruption.source != corruption.index
    assert not (is_random & corruption.is_masked).any()
    total = corruption.index.numel()
    counts = corruption.is_masked.sum(), is_random.sum(), (~is_random & ~corruption.is_masked).sum()
    for count, share in zip(counts, (*shares, 1 - sum(shares)), strict=True):
        assert abs(count.item() - total * share) <= 3 * math.sqrt(total * share * (1 - share) + 1e-9) + 1e-6
    places = corruption.index.flatten().bincount(minlength=n)
    assert (places - b / 2).abs().max() < 4 * math.sqrt(b / 4)
    if is_random.sum() > 1000:
        donors = ((corruption.source - corruption.index) % n)[is_random].bincount(minlength=n)
        expected = is_random.sum().item() / (n - 1)
        assert donors[0] == 0 and (donors[1:] - expected).abs().max() < 4 * math.sqrt(expected)


def test_images_have_draws_of_their_own_that_repeat() -> None:
    state = torch.get_rng_state()
    one, same, other = (draw_corruption(6, 16, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.index, other.index)
    assert len({tuple(row.sort().values.tolist()) for row in one.index}) == 6
    torch.manual_seed(5)
    first = draw_corruption(2, 16)
    torch.manual_seed(5)
    assert torch.equal(first.index, draw_corruption(2, 16).index)


def test_what_random_numbers_mean_by_hand() -> None:
    """Five patches, three corrupted: the smallest numbers stand at 3, 1 and 4."""
    order = torch.tensor([[0.9, 0.2, 0.7, 0.1, 0.3]])
    chance, shift = torch.tensor([[0.85, 0.79, 0.95]]), torch.tensor([[4, 1, 2]])
    index, source, is_masked = corruption_from(order, chance, shift, 0.8, 0.1)
    assert index.tolist() == [[3, 1, 4]] and is_masked.tolist() == [[False, True, False]]
    assert source.tolist() == [[2, 1, 4]]  # 3 + 4 in a circle of five; the others are not exchanged


def test_corrupt_is_the_slow_loop() -> None:
    """Untouched and kept patches keep every bit, others are masked or copied from patches as they were."""
    patches, token = torch.randn(20, 12, 5), torch.randn(5)
    for shares in ((0.8, 0.1), (0.0, 1.0), (0.2, 0.4)):
        corruption = draw_corruption(
            20, 12, replace_prob=shares[0], random_patch_prob=shares[1], generator=seeded(3)
        )
        wanted = slow_corrupt(patches, corruption, token)
        assert torch.equal(corrupt(patches, corruption, token), wanted)
        donors_are_corrupted = (corruption.source[:, :, None] == corruption.index[:, None, :]).any(-1)
        assert (donors_are_corrupted & (corruption.source != corruption.index)).any() or shares[1] == 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mask_prob": 0}, ValueError, "mask_prob must be above 0"),
        ({"mask_prob": 1.5}, ValueError, "mask_prob must be in 0 … 1, got 1.5"),
        ({"mask_prob": "0.5"}, TypeError, "mask_prob must be a number, got '0.5'"),
        ({"replace_prob": -0.1}, ValueError, "replace_prob must be in 0 … 1, got -0.1"),
        ({"replace_prob": 0.8, "random_patch_prob": 0.3}, ValueError, "together at most 1; got 0.8 and 0.3"),
        ({"n": 1}, ValueError, "n must be at least 2, got 1"),
        ({"b": 0}, ValueError, "b must be at least 1, got 0"),
    ],
)
def test_draws_refuse_bad_input(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        draw_corruption(**{"b": 2, "n": 16} | arguments)
    if not {"n", "b"} & set(arguments):
        with pytest.raises(error, match=says):  # at construction, not in the first step
            small_mpp(**arguments)


def test_a_draw_for_other_patches_is_refused() -> None:
    draw, patches, token = draw_corruption(2, 16, mask_prob=1.0), torch.randn(2, 16, 4), torch.zeros(4)
    for arguments, error, says in [
        ((patches[:1], draw, token), ValueError, r"patches \(1, 16, 4\) do not fit .* a draw for 2 images"),
        (
            (patches[:, :9], draw, token),
            ValueError,
            r"patches \(2, 9, 4\) .* 2 images of at least 16 patches",
        ),
        ((patches, draw, token[:1]), ValueError, r"patches \(2, 16, 4\) do not fit a mask token \(1,\)"),
        ((patches[0], draw, token), ValueError, r"axes \(b n d\), got shape \(16, 4\)"),
        ((patches.long(), draw, token), TypeError, "patches must be floats"),
    ]:
        with pytest.raises(error, match=says):
            corrupt(*arguments)


def test_a_draw_is_a_tuple_of_its_three_parts() -> None:
    draw = draw_corruption(2, 16)
    index, source, is_masked = draw
    assert index is draw.index and source is draw.source and is_masked is draw.is_masked
    assert isinstance(draw, tuple) and len(draw) == 3


def test_nothing_that_is_lent_is_changed() -> None:
    patches, token, images = torch.randn(2, 16, 4), torch.randn(4), colours(2, 3, 16, 16)
    draw = draw_corruption(2, 16, replace_prob=0.4, random_patch_prob=0.4)
    before = [part.clone() for part in (patches, token, images, *draw)]
    corrupt(patches, draw, token)[:] = 0
    mean_colour_labels(images, 4, 3)[:] = 0
    small_mpp(mean=MEAN, std=STD)(normalise(images)).backward()
    assert all(torch.equal(a, b) for a, b in zip((patches, token, images, *draw), before, strict=True))
