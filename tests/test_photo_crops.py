"""DINO's views of photographs: every change equal to torchvision's, every probability as published."""

import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as peers
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from vit_course.lab.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PhotoCrops,
    PhotoView,
    normalise,
    photo,
    photo_crops,
)

PLAIN = PhotoView(32, (0.4, 1.0), flip=0.0, jitter=0.0, grey=0.0)
DRAWS = 4000
AMOUNTS = torch.tensor([0.6, 0.9, 1.0, 1.35]).view(4, 1, 1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(side: int = 64) -> Tensor:
    """A part of a photograph (3, side, side), uint8."""
    return (photo("astronaut")[:, 60 : 60 + side, 180 : 180 + side] * 255).round().byte()


def is_likely(found: int, draws: int, probability: float) -> bool:
    """Whether so many of so many draws are within 4.5 standard deviations of what is expected."""
    return abs(found - draws * probability) <= 4.5 * math.sqrt(draws * probability * (1 - probability)) + 1e-9


# Each change by itself, for one image and in a batch of four, each with its own amount


@pytest.mark.parametrize(
    ("change", "peer", "amounts"),
    [
        (photo_crops._brighten, peers.adjust_brightness, AMOUNTS),
        (photo_crops._contrast, peers.adjust_contrast, AMOUNTS),
        (photo_crops._saturate, peers.adjust_saturation, AMOUNTS),
        (photo_crops._saturate, peers.adjust_saturation, AMOUNTS * 0),
        (photo_crops._turn_hue, peers.adjust_hue, AMOUNTS - 1),
        (photo_crops._turn_hue, peers.adjust_hue, torch.tensor([-0.5, -0.1, 0.1, 0.5]).view(4, 1, 1, 1)),
    ],
    ids=["brightness", "contrast", "saturation", "grey", "hue", "hue of all ranges"],
)
def test_colours_change_as_in_torchvision(change, peer, amounts: Tensor) -> None:
    image = photograph().float() / 255
    image[:, :3, :3] = torch.eye(3)[:, None].expand(3, 3, 3)  # pure colours, and below black, white and greys
    image[:, 3, :4] = torch.tensor([0.0, 1.0, 0.3, 0.5])
    together = change(image.repeat(4, 1, 1, 1), amounts)
    for changed, amount in zip(together, amounts, strict=True):
        expected = peer(image, amount.item())
        assert (changed - expected).abs().max() < 5e-4  # its weights of grey have four digits
        assert torch.equal(change(image[None].clone(), amount[None])[0], changed)


def test_hue_is_exact() -> None:
    images = torch.rand(1, 3, 50, 50, generator=seeded())
    for turn in (-0.5, -0.1, 0.03, 0.2):
        changed = photo_crops._turn_hue(images, torch.full((1, 1, 1, 1), turn))
        assert (changed - peers.adjust_hue(images, turn)).abs().max() < 5e-6


def test_a_blur_is_gaussian() -> None:
    image, widths = photograph().float() / 255, (0.3, 1.0, 2.0)
    together = photo_crops._blur(image.repeat(3, 1, 1, 1), torch.tensor(widths).view(3, 1, 1, 1))
    for blurred, sigma in zip(together, widths, strict=True):
        wide = peers.gaussian_blur(image, [25, 25], [sigma, sigma])
        assert (blurred - wide)[:, 12:-12, 12:-12].abs().max() < 2e-3  # theirs goes beyond three sigma
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = photo_crops._blur(point, torch.full((1, 1, 1, 1), 1.5))[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-5) and torch.equal(spread, spread.T)
    assert spread.sum(0) @ (torch.arange(31.0) - 15).square() == pytest.approx(1.5**2, rel=0.04)


def test_a_blur_is_that_of_pillow_up_to_its_rounding() -> None:
    image = photograph(96)
    for sigma in (0.5, 1.3, 2.0):
        theirs = peers.to_pil_image(image).filter(ImageFilter.GaussianBlur(sigma))
        ours = photo_crops._blur(image[None].float(), torch.full((1, 1, 1, 1), sigma))[0]
        assert (ours - peers.pil_to_tensor(theirs)).abs().mean() < 1.2  # of 255; it blurs by boxes


def test_solarisation_inverts_from_128_on() -> None:
    greys = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    solarised = replace(PLAIN, solarise=1.0).recolour(greys) * 255
    assert torch.equal(solarised.round().byte(), peers.solarize(greys, 128))
    assert torch.equal((PLAIN.recolour(greys) * 255).round().byte(), greys)


# Probabilities and ranges over many draws


def shares(view: PhotoView) -> dict[str, float]:
    """How many of many images each change came to, seen in the pixels of every image."""
    colour = torch.tensor([0.3, 0.25, 0.2]).view(1, 3, 1, 1).expand(DRAWS, 3, 4, 4)
    coloured = view.recolour(colour, seeded(1))[:, :, 0, 0]
    is_grey = (coloured.amax(1) - coloured.amin(1)) < 1e-6
    weights = torch.tensor(photo_crops.LUMA)
    is_jittered = ((coloured * weights).sum(1) - (colour[:, :, 0, 0] * weights).sum(1)).abs() > 1e-5
    point = torch.full((DRAWS, 3, 9, 9), 0.1)
    point[:, :, 4, 4] = 0.4
    only_blur = replace(view, jitter=0.0, grey=0.0, solarise=0.0).recolour(point, seeded(2))
    white = replace(view, jitter=0.0, grey=0.0).recolour(torch.ones(DRAWS, 3, 2, 2), seeded(3))
    steps = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    generator = seeded(4)
    flipped = [view.crop(steps, generator)[0, 0, [0, -1]].tolist() for _ in range(DRAWS // 4)]
    return {
        "flip": sum(first > last for first, last in flipped),
        "jitter": is_jittered.sum().item(),
        "grey": is_grey.sum().item(),
        "both": (is_jittered & is_grey).sum().item(),
        "blur": (only_blur[:, 0, 4, 4] < 0.4 - 1e-6).sum().item(),
        "solarise": (white[:, 0, 0, 0] < 0.5).sum().item(),
    }


@pytest.mark.parametrize(
    ("number", "published"),
    [(0, {"blur": 1, "solarise": 0}), (1, {"blur": 0.1, "solarise": 0.2}), (2, {"blur": 0.5, "solarise": 0})],
    ids=["first global", "second global", "local"],
)
def test_every_probability_is_the_published_one(number: int, published: dict[str, float]) -> None:
    view = replace(PhotoCrops(32, 16, 3).views[number], size=16, sigma=(0.5, 2.0))  # a blur that one sees
    found = shares(view)
    for name, probability in ({"jitter": 0.8, "grey": 0.2, "both": 0.16} | published).items():
        assert is_likely(found[name], DRAWS, probability), (name, found[name] / DRAWS)
    assert is_likely(found["flip"], DRAWS // 4, 0.5), found["flip"]


def test_global_crops_differ_from_each_other_and_from_local_ones() -> None:
    """Seen from outside, in batches of white images and of points."""
    crops = PhotoCrops(16, 8, 2, mean=0.0, std=1.0)
    white = [torch.ones(1000, 3, view.size, view.size) for view in crops.views]
    dark = [(batch.amin((1, 2, 3)) < 0.5).sum().item() for batch in crops.recolour(white, seeded())]
    assert dark[0] == dark[2] == dark[3] == 0 and is_likely(dark[1], 1000, 0.2), dark
    points = [torch.zeros(1000, 3, view.size, view.size) for view in crops.views]
    for batch in points:
        batch[..., 4, 4] = 0.45
    around = [batch[:, :, 4, 5] - batch[:, :, 0, 0] for batch in crops.recolour(points, seeded())]
    blurred = [(difference > 1e-3).any(1).float().mean().item() for difference in around]
    seen = 0.91  # the others of the blurs are too narrow to reach a neighbour
    for share, probability in zip(blurred, (1.0, 0.1, 0.5, 0.5), strict=True):
        assert share == pytest.approx(seen * probability, abs=0.05)


def test_every_order_of_the_jitter_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    recorders = [lambda images, amount, part=part: order.append(part) or images for part in range(4)]
    monkeypatch.setattr(photo_crops, "_JITTER", recorders)
    view, generator, counts = replace(PLAIN, jitter=1.0), seeded(), Counter()
    for _ in range(2400):
        order.clear()
        view.recolour(torch.ones(1, 3, 1, 1), generator)
        counts[tuple(order)] += 1
    assert counts.keys() == set(permutations(range(4)))
    assert all(is_likely(count, 2400, 1 / 24) for count in counts.values()), counts


@pytest.mark.parametrize(
    ("part", "colour", "other", "low", "high"),
    [(0, 0.4, 0.4, 0.6, 1.4), (1, 0.4, 0.6, 0.6, 1.4), (2, 0.4, 0.4, 0.8, 1.2), (3, 0.4, 0.4, -0.1, 0.1)],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_the_strength_of_the_jitter_is_the_published_one(
    part: int, colour: float, other: float, low: float, high: float
) -> None:
    """The factors, read off the pixels, are spread evenly over their range."""
    strength = [0.0] * 4
    strength[part] = PhotoView.strength[part]
    images = torch.full((DRAWS, 3, 1, 2), colour)
    images[:, :, :, 1] = other
    if part > 1:
        images[:, 2] = images[:, 1] = 0.2  # a red
    view = replace(PLAIN, jitter=1.0, strength=tuple(strength))
    red, green, blue = view.recolour(images, seeded())[:, :, 0].unbind(1)
    factors = {
        0: red[:, 0] / colour,
        1: (red[:, 1] - red[:, 0]) / (other - colour),
        2: (red - green)[:, 0] / 0.2,
        3: (green - blue)[:, 0] / 0.2 / 6,
    }[part]
    assert low - 1e-5 <= factors.min() < low + 0.01 * (high - low)
    assert high + 1e-5 >= factors.max() > high - 0.01 * (high - low)
    for quarter in (0.25, 0.5, 0.75):
        assert is_likely((factors < low + quarter * (high - low)).sum().item(), DRAWS, quarter)


def test_the_width_of_the_blur_is_the_published_one() -> None:
    points = torch.zeros(DRAWS, 3, 17, 17)
    points[..., 8, 8] = 1
    rows = replace(PLAIN, blur=1.0).recolour(points, seeded())[:, 0].sum(1)
    widths = (rows * (torch.arange(17.0) - 8).square()).sum(1).sqrt()
    assert widths.max() == pytest.approx(2, abs=0.05) and is_likely((widths < 1.05).sum().item(), DRAWS, 0.5)


# Crops


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("size", [(375, 500), (500, 300), (40, 400)])
def test_crops_are_drawn_as_in_torchvision(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Mean and spread of area, shape and place over 4000 crops; a long picture takes few shapes."""

    def described(boxes: list[tuple[int, int, int, int]]) -> Tensor:
        top, left, height, width = torch.tensor(boxes).float().unbind(1)
        assert top.min() >= 0 and left.min() >= 0 and min(height.min(), width.min()) >= 1
        assert (top + height).max() <= size[0] and (left + width).max() <= size[1]
        area = height * width / (size[0] * size[1])
        return torch.stack([area, (width / height).log(), top / size[0], left / size[1]], dim=1)

    generator, whole = seeded(), torch.empty(3, *size)
    ours = described([photo_crops._draw_box(*size, scale, generator) for _ in range(DRAWS)])
    torch.manual_seed(0)
    ranges = list(scale), [3 / 4, 4 / 3]
    theirs = described([RandomResizedCrop.get_params(whole, *ranges) for _ in range(DRAWS)])
    allowed = 4.5 * (ours.var(0) / DRAWS + theirs.var(0) / DRAWS).sqrt() + 1 / min(size)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < allowed).all(), (ours.mean(0), theirs.mean(0))
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.1, atol=2 / min(size))


def test_a_picture_that_no_crop_fits_gives_its_middle() -> None:
    for size in ((40, 400), (400, 40), (1, 7)):
        box = photo_crops._draw_box(*size, (1.0, 1.0), seeded())
        assert box == tuple(RandomResizedCrop.get_params(torch.empty(3, *size), [1.0, 1.0], [3 / 4, 4 / 3]))


def test_a_crop_is_resized_with_an_antialiased_bicubic_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    box = (10, 20, 200, 230)
    monkeypatch.setattr(photo_crops, "_draw_box", lambda *given: box)
    image = (photo("coffee") * 255).byte()
    found = PLAIN.crop(image)
    settings = dict(interpolation=peers.InterpolationMode.BICUBIC, antialias=True)
    assert (found.int() - peers.resized_crop(image, *box, [32, 32], **settings).int()).abs().max() <= 1
    top, left, height, width = box
    picture = peers.to_pil_image(image).crop((left, top, left + width, top + height))
    theirs = peers.pil_to_tensor(picture.resize((32, 32), Image.Resampling.BICUBIC))
    assert (found.int() - theirs.int()).abs().max() <= 1
    flipped = replace(PLAIN, flip=1.0).crop(image)
    assert torch.equal(flipped, found.flip(2))


def test_global_crops_show_more_than_local_ones() -> None:
    rows, columns = torch.meshgrid(torch.arange(250), torch.arange(250), indexing="ij")
    image = torch.stack([rows, columns, columns]).byte()  # each pixel tells where it is
    crops, generator = PhotoCrops(32, 16, 4), seeded()
    for _ in range(50):
        *_, global_, local = (
            [
                np.ptp(crop[0].numpy().astype(int)) * np.ptp(crop[1].numpy().astype(int)) / 250**2
                for crop in views
            ]
            for cut in [crops.cut(image, generator)]
            for views in (cut[:2], cut[2:])
        )
        assert min(global_) > 0.3 and max(local) < 0.45


# The whole


def test_views_come_normalised_global_ones_first() -> None:
    crops = PhotoCrops(32, 16, 3)
    views = crops(photograph(), seeded())
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in views)
    plain = PhotoCrops(32, 16, 3, mean=0.0, std=1.0)(photograph(), seeded())
    assert all(-1e-6 <= view.min() and view.max() <= 1 + 1e-6 for view in plain)
    for view, raw in zip(views, plain, strict=True):
        assert torch.allclose(view, normalise(raw), atol=1e-6)
    as_published = PhotoCrops(32, 16, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)(photograph(), seeded())
    for view, raw in zip(as_published, plain, strict=True):
        assert torch.allclose(view, peers.normalize(raw, list(IMAGENET_MEAN), list(IMAGENET_STD)), atol=1e-6)
    assert len(PhotoCrops(32, local_crops=0)(photograph())) == 2


def test_draws_repeat_with_the_generator_and_leave_the_common_one_alone() -> None:
    crops, image = PhotoCrops(32, 16, 2), photograph()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (crops(image, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[2], first[3])  # every view has its own draw
    common = crops(image)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(common, crops(image), strict=True))


def test_every_image_of_a_batch_has_its_own_draw() -> None:
    crops = PhotoCrops(16, 8, 1)
    batches = [photograph(view.size).repeat(6, 1, 1, 1) for view in crops.views]
    for batch in crops.recolour(batches, seeded()):
        assert len({tuple(image.flatten().tolist()) for image in batch}) >= 5


def test_given_images_are_left_as_they_are() -> None:
    crops = PhotoCrops(16, 8, 1)
    for given in (photograph(16), photograph(16).float() / 255):
        batches = [given[None].repeat(2, 1, 1, 1) for _ in crops.views]
        crops.recolour(batches, seeded())
        assert all(torch.equal(image, given) for batch in batches for image in batch)


def test_pictures_of_pillow_and_bytes_give_the_same_views() -> None:
    crops, image = PhotoCrops(32, 16, 2), photograph()
    by_pillow = crops(peers.to_pil_image(image), seeded())
    for a, b in zip(crops(image, seeded()), by_pillow, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(crops.cut(image, seeded())[0], crops.cut(image.contiguous(), seeded())[0])


def test_no_crop_of_the_least_side_is_enlarged() -> None:
    assert PhotoCrops().least_side == 430
    for crops in (PhotoCrops(), PhotoCrops(local_crops=0), PhotoCrops(32, 16, 2, local_scale=(0.3, 0.4))):
        smallest = [math.sqrt(view.scale[0]) * crops.least_side / view.size for view in crops.views]
        assert 1 <= min(smallest) < 1.05


def test_colours_never_wait_for_a_device() -> None:
    """On the meta device there are no values to wait for: reading one raises."""
    view = replace(PLAIN, jitter=1.0, grey=0.5, blur=1.0, solarise=0.5)
    batch = torch.empty(16, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert view.recolour(batch, seeded()).device.type == "meta"


def test_views_are_drawn_alike_under_other_defaults() -> None:
    expected = PhotoCrops(32, 16, 2)(photograph(), seeded())
    image, generator = photograph(), seeded()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = PhotoCrops(32, 16, 2)(image, generator)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PhotoCrops(0), "size must be at least 1, got 0"),
        (lambda: PhotoCrops(local_crops=-1), "local_crops must be at least 0, got -1"),
        (lambda: PhotoCrops(global_scale=(0.5, 0.4)), "scale must be two numbers 0 < smallest <="),
        (lambda: PhotoCrops(local_scale=0.3), "scale must be two numbers, not 0.3"),
        (lambda: PhotoCrops(std=0.0), "std must be positive, not 0.0"),
        (lambda: PhotoCrops(mean=(0.1, 0.2)), "mean must be a number or three, not"),
        (lambda: PhotoView(32, (0.4, 1), blur=1.5), "blur must be in 0 … 1, got 1.5"),
        (lambda: PhotoView(32, (0.4, 1), strength=(0.4, 0.4, 0.2)), "strength must be four numbers"),
        (lambda: PhotoView(32, (0.4, 1), strength=(0.4, 0.4, 0.2, 0.6)), "hue must be in 0 … 0.5"),
        (lambda: PhotoView(32, (0.4, 1), sigma=(0.0, 1.0)), "sigma must be two numbers 0 < smallest"),
        (lambda: PhotoCrops()(torch.rand(3, 9, 9)), "a photograph is a uint8 tensor .* not torch.float32"),
        (lambda: PhotoCrops()(np.zeros((9, 9, 3))), "a photograph is a uint8 tensor .* not ndarray"),
        (lambda: PhotoCrops()(torch.zeros(9, 9, 3).byte()), r"the shape \(3, h, w\), not \(9, 9, 3\)"),
        (lambda: PhotoCrops().recolour([torch.rand(1, 3, 9, 9)]), "10 views need as many batches of crops"),
        (lambda: PLAIN.recolour(torch.rand(3, 9, 9)), r"the shape \(b, 3, h, w\), not \(3, 9, 9\)"),
        (lambda: PLAIN.recolour(torch.ones(1, 3, 9, 9).int()), "uint8 or of floats in 0..1, not torch.int32"),
    ],
)
def test_bad_arguments_are_named(make, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()
