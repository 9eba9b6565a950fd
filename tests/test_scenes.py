"""Generated scenes: the same for equal arguments, with exact masks, and nothing but the outline knows the
class.
"""

import pytest
import torch
import torch.nn.functional as F
from support.neighbours import knn
from torch import Tensor

from vit_course.lab.data import ImageSet, scenes, shapes

LEVELS = ("easy", "default", "hard")


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[ImageSet, ImageSet]]:
    """Every level: 5,000 training and 2,000 test scenes."""
    return {level: (shapes(level, count=5_000), shapes(level, "test")) for level in LEVELS}


def test_equal_arguments_give_equal_scenes_and_others_do_not():
    whole = shapes(count=600)
    for part in (shapes(count=600), shapes(count=100)):
        for name in ("images", "labels", "masks", "boxes"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[: len(part)])
    for other in (shapes("easy", count=600), shapes(split="test", count=600), shapes(count=600, seed=1)):
        assert (other.images - whole.images).flatten(1).abs().amax(1).min() > 0.1  # not one scene is the same
    assert (whole.images[:250] - whole.images[250:500]).abs().mean() > 0.1  # nor do chunks repeat


def test_scenes_do_not_depend_on_the_random_state_around_them():
    torch.manual_seed(0)
    first, expected = shapes(count=50), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), expected) and torch.equal(shapes(count=50).images, first.images)


def test_seeds_of_all_chunks_differ_in_the_bits_that_pytorch_reads():
    assert (500_000 * scenes.MAX_CHUNKS + scenes.MAX_CHUNKS) * 2 < 2**32
    low, high = (torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(low, high)  # why it matters


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_level_holds(sets, level):
    train, test = sets[level]
    assert train.images.shape == (5000, 3, 32, 32) and test.images.shape == (2000, 3, 32, 32)
    assert train.images.min() >= 0 and train.images.max() <= 1
    assert train.labels.bincount().tolist() == [500] * 10 and test.labels.bincount().tolist() == [200] * 10
    assert train.labels[:250].bincount().min() == 25 and not torch.equal(
        train.labels[:250], train.labels[:250].sort().values
    )
    assert len(train.classes) == 10 and shapes(level, count=20, size=48).images.shape == (20, 3, 48, 48)


@pytest.mark.parametrize("level", LEVELS)
def test_boxes_are_the_tightest_around_the_masks(sets, level):
    test = sets[level][1][:300]
    for mask, box in zip(test.masks, test.boxes.int().tolist(), strict=True):
        rows, columns = mask.nonzero().T
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("level", LEVELS)
def test_masks_are_where_the_objects_are(sets, level):
    images, masks = sets[level][1].images, sets[level][1].masks[:, None].float()

    def step(mask: Tensor) -> Tensor:
        """Squared colour difference between inside and outside of a mask."""
        inside, outside = ((images * part).sum((2, 3)) / part.sum((2, 3)) for part in (mask, 1 - mask))
        return (inside - outside).pow(2).sum(1)

    true = step(masks)
    assert true.sqrt().mean() > 0.5
    for moved in (masks.roll(4, 3), masks.roll(-4, 2), masks.flip(3), masks.flip(2), masks.transpose(2, 3)):
        assert (true > step(moved)).float().mean() > 0.85 and true.mean() > 1.2 * step(moved).mean()


def test_masks_are_right_to_the_pixel(monkeypatch):
    flat = dict(scale=(0.5, 0.9), light=1.0, gap=0.5, texture=0.0, noise=0.0, strokes=0)
    monkeypatch.setitem(scenes.LEVELS, "easy", scenes.Level(**flat))
    scene = shapes("easy", count=1000)
    unclipped = ((scene.images > 0) & (scene.images < 1)).all((1, 2, 3))
    scene = scene[unclipped]
    brightness = scene.images.mean(
        1
    )  # scene at its least, object at its most, a straight line between them across the edge
    found = brightness > (brightness.amin((1, 2), keepdim=True) + brightness.amax((1, 2), keepdim=True)) / 2
    assert len(scene) > 30 and (found == scene.masks).float().mean() > 0.999


def test_every_outline_covers_the_same_area_within_its_circle():
    axis = torch.linspace(-1.5, 1.5, 1501)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for name, (outline, unit) in scenes.SHAPES.items():
        inside = outline(x / unit, y / unit) < 0
        assert inside.float().mean() * 9 == pytest.approx(scenes.AREA, rel=0.005), name
        assert torch.hypot(x, y)[inside].max() < 1.1, name


@pytest.mark.parametrize("name", scenes.SHAPES)
def test_outlines_are_signed_distances_near_the_edge(name):
    axis = torch.linspace(-1.5, 1.5, 601)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    outline, _ = scenes.SHAPES[name]
    distance = outline(x, y)
    slope = torch.hypot(*torch.gradient(distance, spacing=0.005))[2:-2, 2:-2]
    near = (distance.abs() < 0.1)[2:-2, 2:-2]
    assert slope[near].median() == pytest.approx(1, abs=0.01) and slope[near].max() < 1.1


@pytest.mark.parametrize(("level", "bound"), [("easy", 0.72), ("default", 0.45), ("hard", 0.42)])
def test_pixels_give_little_away(sets, level, bound):
    features = [images.images.mean(1).flatten(1) for images in sets[level]]
    train, test = (f - f.mean(1, keepdim=True) for f in features)
    share = knn(train, sets[level][0].labels, test, sets[level][1].labels)
    assert bound - 0.1 < share <= bound  # nor may a level become so hard that the recipes no longer hold


@pytest.mark.parametrize("level", LEVELS)
def test_colour_gives_nothing_away(sets, level):
    def histogram(images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, 64): the share of pixels in each box of colour space."""
        red, green, blue = (images * 4).long().clamp_max(3).flatten(2).unbind(1)
        cell = red * 16 + green * 4 + blue
        return torch.zeros(len(images), 64).scatter_add_(1, cell, torch.ones(cell.shape))

    train, test = sets[level]
    assert knn(histogram(train.images), train.labels, histogram(test.images), test.labels) < 0.14


@pytest.mark.parametrize("level", LEVELS)
def test_no_nuisance_knows_the_class(sets, level):
    scene = sets[level][0]
    mask = scene.masks[:, None]
    behind = F.max_pool2d(mask.float(), 5, 1, 2) == 0  # well outside the soft edge

    def mean(values: Tensor, where: Tensor) -> Tensor:
        """(b, c, h, w) -> (b,): mean over the pixels in ``where``."""
        return (values * where).sum((1, 2, 3)) / (where.sum((1, 2, 3)) * values.shape[1])

    axis = torch.arange(32.0)
    nuisances = {
        "brightness behind": mean(scene.images, behind),
        "brightness of the object": mean(scene.images, mask),
        "red behind": mean(scene.images[:, :1], behind),
        "red of the object": mean(scene.images[:, :1], mask),
        "texture behind": mean(scene.images**2, behind) - mean(scene.images, behind) ** 2,
        "column": mean(axis.expand(1, 1, 1, 32), mask),
        "row": mean(axis[:, None].expand(1, 1, 32, 1), mask),
    }
    for name, value in nuisances.items():
        by_class = torch.stack([value[scene.labels == k].mean() for k in range(10)])
        known = by_class.var(correction=0) / value.var()  # share of its variance that the class explains
        assert known < 0.015, (
            f"the class explains {known:.1%} of the {name}"
        )  # .2 % by chance; soft edges dim long outlines by .8 %


@pytest.mark.parametrize("level", LEVELS)
def test_area_alone_knows_nothing(sets, level):
    train, test = (scene.masks.float().mean((1, 2)) for scene in sets[level])
    labels, true = (scene.labels for scene in sets[level])
    by_class = torch.stack([train[labels == k].mean() for k in range(10)])
    assert by_class.min() > 0.92 * by_class.max()
    edges = train.quantile(torch.linspace(0, 1, 21)[1:-1])
    counts = torch.zeros(20, 10).index_put_(
        (torch.bucketize(train, edges), labels), torch.tensor(1.0), accumulate=True
    )
    assert (
        counts.argmax(1)[torch.bucketize(test, edges)] == true
    ).float().mean() < 0.13  # the likeliest class of each twentieth


def test_thresholding_does_not_solve_the_hard_level(sets):
    def threshold_iou(scene: ImageSet) -> float:
        """The best that one threshold per image could do, chosen with the mask at hand: more than any method
        can reach.
        """
        brightness = scene.images.mean(1)
        best = torch.zeros(len(scene))
        for threshold in torch.linspace(0.05, 0.95, 19):
            found = brightness > threshold
            best = best.maximum((found & scene.masks).sum((1, 2)) / (found | scene.masks).sum((1, 2)))
        return best.mean().item()

    easy, default, hard = (threshold_iou(sets[level][1]) for level in LEVELS)
    assert easy > default > hard + 0.1 and hard < 0.75
