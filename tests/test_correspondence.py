"""The correspondence test knows where every region went, and counts what it says it counts."""

import pytest
import torch
from torch import Tensor

from vit_course.lab.correspondence import Copies, make_copies
from vit_course.lab.data import ImageSet, shapes
from vit_course.patching import patchify


@pytest.fixture(scope="module")
def copies() -> Copies:
    return make_copies(shapes("easy", "test")[:40])


def brightest_corner(scenes: Tensor, side: int) -> ImageSet:
    """Black scenes whose object, one region at row 0 and column 1, is white."""
    masks = torch.zeros(len(scenes), 32, 32, dtype=torch.bool)
    masks[:, :side, side : 2 * side] = True
    return ImageSet(
        masks[:, None].expand(-1, 3, -1, -1).float(), torch.zeros(len(scenes)).long(), ("a",), masks
    )


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_the_true_place_is_where_the_region_stands(grid: int) -> None:
    """Of scenes in which one region is white, the white region of the turned copy is the true place."""
    side = 32 // grid
    copies = make_copies(brightest_corner(torch.zeros(3), side), grid)
    place = 1 if grid > 1 else 0
    assert copies.on_object.nonzero()[:, 1].tolist() == [place] * 3
    goal = int(copies.true_place[place])
    assert copies.on_turned_object.nonzero()[:, 1].tolist() == [goal] * 3
    brightness = patchify(copies.turned, side).mean(dim=-1)
    assert brightness.argmax(dim=1).tolist() == [goal] * 3
    assert sorted(copies.true_place.tolist()) == list(range(grid**2))


def test_perfect_matches_find_everything_and_others_what_they_find(copies: Copies) -> None:
    b = len(copies.upright)
    perfect = copies.true_place.expand(b, -1)
    assert copies.judge(perfect) == {"place": 1.0, "object": 1.0}
    elsewhere = (perfect + 1) % 16
    found = copies.judge(elsewhere)
    assert found["place"] == 0.0 and 0 < found["object"] < 1
    mixed = torch.where(torch.arange(b)[:, None] < b // 2, perfect, elsewhere)
    on_object = copies.on_object.sum(dim=1)
    wanted = on_object[: b // 2].sum() / on_object.sum()
    assert copies.judge(mixed)["place"] == pytest.approx(wanted.item())


def test_copies_are_one_scene_in_two_colours(copies: Copies) -> None:
    """The object stays lighter than its ground, the colours are others, and the draw repeats."""
    again = make_copies(shapes("easy", "test")[:40])
    assert torch.equal(copies.upright, again.upright) and torch.equal(copies.turned, again.turned)
    back = copies.turned.rot90(k=-1, dims=(2, 3))
    assert (back - copies.upright).abs().mean() > 0.2
    masks = shapes("easy", "test")[:40].masks[:, None]
    for images in (copies.upright, back):
        grey = images.mean(dim=1, keepdim=True)
        lighter = (grey * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3)) > grey.mean(dim=(1, 2, 3))
        assert lighter.float().mean() > 0.9


def test_what_does_not_fit_is_named(copies: Copies) -> None:
    scenes = shapes("easy", "test")[:2]
    with pytest.raises(ValueError, match=r"must have shape \(40, 16\), got \(2, 16\)"):
        copies.judge(torch.zeros(2, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="5 by 5 regions do not fill images of 32 by 32"):
        make_copies(scenes, grid=5)
    with pytest.raises(ValueError, match="grid must be at least 1"):
        make_copies(scenes, grid=0)
    with pytest.raises(ValueError, match="needs scenes with masks"):
        make_copies(ImageSet(scenes.images, scenes.labels, scenes.classes))
