"""The ladder of lesson 12: its tables cost what counting by hand gives, and no rung sees what is hidden."""

import math

import pytest
import torch
from support.masked import colours

from vit_course.lab import guessers
from vit_course.mpp import Corruption, mean_colour_labels


def draw_of(*hidden: int) -> Corruption:
    index = torch.tensor([hidden])
    return Corruption(index, index, torch.ones_like(index, dtype=torch.bool))


def test_half_of_the_patches_are_hidden_and_all_of_them_masked():
    draw = guessers.hide(5, 16, seed=1)
    assert draw.index.shape == (5, 8) and draw.is_masked.all() and torch.equal(draw.index, draw.source)
    assert torch.equal(draw.index, guessers.hide(5, 16, seed=1).index)
    assert not torch.equal(draw.index, guessers.hide(5, 16, seed=2).index)


def test_surroundings_are_those_of_a_loop():
    images, draw = colours(3, 3, 12, 16), guessers.hide(3, 12, seed=0)
    found = guessers.surroundings(images, draw, 4)
    for image in range(3):
        hidden = set(draw.index[image].tolist())
        patch = {
            place: images[
                image, :, 4 * (place // 4) : 4 * (place // 4) + 4, 4 * (place % 4) : 4 * (place % 4) + 4
            ]
            for place in range(12)
        }
        for place in range(12):
            near = [
                other
                for other in range(12)
                if other not in hidden | {place}
                and abs(other // 4 - place // 4) <= 1
                and abs(other % 4 - place % 4) <= 1
            ]
            seen = near or [other for other in range(12) if other not in hidden]
            mean = torch.stack([patch[other].mean(dim=(1, 2)) for other in seen]).mean(dim=0)
            assert found[image, place] == mean_colour_labels(mean.view(1, 3, 1, 1), 1, 3).item()


def test_what_is_hidden_changes_no_surroundings():
    images, draw = colours(1, 3, 12, 12), draw_of(0, 4, 7)
    changed = images.clone()
    changed[..., 4:8, 4:8] = 1 - changed[..., 4:8, 4:8]  # patch 4
    assert torch.equal(guessers.surroundings(images, draw, 4), guessers.surroundings(changed, draw, 4))
    changed[..., :4, 4:8] = 1 - changed[..., :4, 4:8]  # patch 1, which is seen
    assert not torch.equal(guessers.surroundings(images, draw, 4), guessers.surroundings(changed, draw, 4))


def test_beside_is_to_the_left_and_in_the_first_column_to_the_right():
    labels = torch.arange(12).view(1, 3, 4)
    assert guessers.beside(labels).tolist() == [[[1, 0, 1, 2], [5, 4, 5, 6], [9, 8, 9, 10]]]


def test_a_table_costs_what_counting_by_hand_gives():
    """Colour 3 was seen three times beside 7 and once beside 5; the prior weighs as much as 100 pairs."""
    prior = torch.full((guessers.COLOURS,), 1 / guessers.COLOURS, dtype=torch.float64)
    known, answers = torch.tensor([3, 3, 3, 3]), torch.tensor([7, 7, 7, 5])
    cost = guessers.table_cost(known, answers, torch.tensor([3, 9]), torch.tensor([7, 7]), prior)
    seen = (3 + 100 / 512) / 104
    assert cost == pytest.approx((-math.log(seen) + math.log(512)) / 2)


def test_who_sees_more_pays_less():
    """On smooth pictures; on patches that know nothing of each other the tables are no better than prior."""
    coarse = torch.rand(400, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=True)
    rungs = guessers.ladder(smooth[:300], smooth[300:], guessers.hide(100, 16, 1), 4)
    assert list(rungs) == ["no idea", "the frequencies", "the patch beside it", "the surroundings"]
    costs = [rung.cost for rung in rungs.values()]
    assert costs == sorted(costs, reverse=True) and costs[2] < costs[1] - 0.2
    assert rungs["the surroundings"].right > 3 * rungs["the frequencies"].right
    mosaics = torch.rand(400, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    rungs = guessers.ladder(mosaics[:300], mosaics[300:], guessers.hide(100, 16, 1), 4)
    assert rungs["the patch beside it"].cost > rungs["the frequencies"].cost - 0.05


def test_the_frequencies_name_the_commonest_colour():
    white, black = torch.ones(1, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    train = torch.cat([white, black])
    rungs = guessers.ladder(train, train, guessers.hide(4, 4, 0), 4)
    assert rungs["the frequencies"].right == 0.75 and rungs["no idea"].cost == pytest.approx(math.log(512))
