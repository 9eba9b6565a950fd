"""Masks from attention, their overlap with the truth, and the boxes around them, beside independent code."""

import math

import numpy as np
import pytest
import torch
from skimage.measure import label as connected_parts
from torch import Tensor
from torchvision.ops import masks_to_boxes

from vit_course.evaluation import attention_masks, boxes_from_masks, jaccard, masks_to_pixels
from vit_course.lab.data import boxes_around, shapes

# ---- masks -------------------------------------------------------------------------------------------------


def official_mask(row: Tensor, keep: float) -> Tensor:
    """As in visualize_attention of the DINO paper's code: ascending, cumulative share above 1 - keep."""
    share, order = (row.double() / row.double().sum()).sort()
    return torch.zeros(len(row), dtype=torch.bool).scatter(0, order, share.cumsum(0) > 1 - keep)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.95])
def test_masks_keep_the_share_with_the_fewest_patches(keep: float) -> None:
    weights = torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0)) ** 4
    masks = attention_masks(weights, keep)
    shares = weights / weights.sum(dim=-1, keepdim=True)
    held = (shares * masks).sum(dim=-1)
    smallest = torch.where(masks, shares, 2.0).amin(dim=-1)
    assert (held >= keep - 1e-5).all() and (held - smallest < keep).all()
    assert (smallest >= torch.where(masks, -1.0, shares).amax(dim=-1)).all()
    for row, mask in zip(weights.flatten(0, 1), masks.flatten(0, 1), strict=True):
        assert torch.equal(mask, official_mask(row, keep))
    for scale in (7.0, 1e30, 1e-30):
        assert torch.equal(attention_masks(scale * weights.double(), keep), masks)


def test_shares_reached_exactly_need_no_further_patch() -> None:
    assert attention_masks(torch.tensor([[[0.35, 0.25, 0.2, 0.2]]])).sum() == 2
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        equal = torch.full((1, 1, 10), 0.1, dtype=dtype)
        kept = [attention_masks(equal, tenths / 10).sum().item() for tenths in range(1, 11)]
        assert kept == list(range(1, 11))


def test_no_share_is_too_small_for_a_patch_and_no_empty_patch_is_kept() -> None:
    row = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]])
    assert attention_masks(row, 1e-9).tolist() == [[[True, False, False, False]]]
    assert attention_masks(row, 1.0).tolist() == [[[True, True, True, False]]]
    assert attention_masks(row[..., :1], 1e-9).all()


def test_half_precision_sums_are_taken_where_they_fit() -> None:
    weights = 1 + torch.rand(2, 3, 200, generator=torch.Generator().manual_seed(0))
    large = (20_000 * weights).half()  # a row's sum is far above float16's 65,504
    assert torch.equal(attention_masks(large), attention_masks(large.double()))


def test_masks_change_nothing_that_is_lent() -> None:
    weights = torch.rand(2, 2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = weights.clone()
    attention_masks(weights)[:] = True
    assert torch.equal(weights, before)


def test_bad_weights_are_named() -> None:
    rows = torch.rand(2, 2, 9)
    one_infinite = rows.clone()
    one_infinite[1, 0, 3] = math.inf
    for weights, keep, error, sentence in [
        (rows[0], 0.6, ValueError, r"axes \(b h n\), got shape \(2, 9\)"),
        (rows[..., :0], 0.6, ValueError, r"at least one patch, got shape \(2, 2, 0\)"),
        (rows - 0.5, 0.6, ValueError, "must not be negative"),
        (rows * torch.tensor([[[1.0], [0.0]]]), 0.6, ValueError, "smallest sum of 0"),
        (rows * math.nan, 0.6, ValueError, "nan"),
        (one_infinite, 0.6, ValueError, "must be finite, .* … inf"),
        (rows, 0.0, ValueError, "above 0"),
        (rows, 60, ValueError, "keep must be in 0 … 1, got 60"),
        (rows > 0.5, 0.6, TypeError, "must be floats, got torch.bool"),
    ]:
        with pytest.raises(error, match=sentence):
            attention_masks(weights, keep)


def test_patches_become_pixels() -> None:
    masks = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    pixels = masks_to_pixels(masks, (3, 4), (2, 5))
    assert pixels.shape == (2, 3, 6, 20) and pixels.dtype == torch.bool
    for row in range(6):
        for column in range(20):
            assert torch.equal(pixels[:, :, row, column], masks[:, :, row // 2 * 4 + column // 5])
    with pytest.raises(ValueError, match=r"3 · 5\) for a grid of \(3, 5\), got \(2, 3, 12\)"):
        masks_to_pixels(masks, (3, 5), 2)


# ---- overlap -----------------------------------------------------------------------------------------------


def test_jaccard() -> None:
    generator = torch.Generator().manual_seed(0)
    found, truth = (torch.rand(5, 3, 7, 9, generator=generator) < 0.4 for _ in range(2))
    before = found.clone(), truth.clone()
    for picture in range(5):
        for head in range(3):
            a = {tuple(place) for place in found[picture, head].nonzero().tolist()}
            b = {tuple(place) for place in truth[picture, 0].nonzero().tolist()}
            assert jaccard(found, truth[:, :1])[picture, head] == pytest.approx(len(a & b) / len(a | b))
    assert torch.equal(found, before[0]) and torch.equal(truth, before[1])
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert jaccard(nothing, nothing).tolist() == [1, 1] and jaccard(nothing, ~nothing).tolist() == [0, 0]
    for other, error, sentence in [
        (nothing.long(), TypeError, "truth must be a bool tensor, got torch.int64"),
        (nothing.float(), TypeError, "truth must be a bool tensor, got torch.float32: compare it with a"),
        (nothing.numpy(), TypeError, "truth must be a bool tensor, got ndarray"),
        (nothing.view(2, 1, 16), ValueError, r"one size, got \(2, 4, 4\) and \(2, 1, 16\)"),
        (nothing[[0, 0, 0]], ValueError, r"that broadcast, got \(2, 4, 4\) and \(3, 4, 4\)"),
    ]:
        with pytest.raises(error, match=sentence):
            jaccard(nothing, other)


def test_chance_level_of_a_mask_that_knows_nothing() -> None:
    """The formula of the lesson: 1 / (1/m + 1/a - 1)."""
    generator = torch.Generator().manual_seed(0)
    truth, found = (torch.rand(20, 200, 200, generator=generator) < share for share in (0.21, 0.6))
    assert jaccard(found, truth).mean().item() == pytest.approx(1 / (1 / 0.21 + 1 / 0.6 - 1), abs=0.005)


# ---- boxes -------------------------------------------------------------------------------------------------


def parts_of(mask: Tensor) -> list[Tensor]:
    """The connected parts of a mask (h, w), the largest first, by scikit-image."""
    numbers = torch.tensor(connected_parts(mask.numpy(), connectivity=2))
    parts = [numbers == number for number in range(1, int(numbers.max()) + 1)]
    return sorted(parts, key=lambda part: -part.sum().item())


def test_boxes_stand_around_scikit_images_largest_part() -> None:
    """Of parts of one size either may be taken."""
    generator = torch.Generator().manual_seed(0)
    for density in (0.1, 0.3, 0.45, 0.7):
        masks = torch.rand(40, 11, 17, generator=generator) < density
        before = masks.clone()
        for mask, found in zip(masks, boxes_from_masks(masks), strict=True):
            parts = parts_of(mask)
            largest = torch.stack([part for part in parts if part.sum() == parts[0].sum()])
            assert found["boxes"][0].tolist() in boxes_around(largest).tolist()
        assert torch.equal(masks, before)


def test_a_part_may_wind_as_it_likes() -> None:
    """A spiral, which takes many steps from end to end, beside a full square that is smaller than it."""
    spiral = torch.zeros(1, 9, 20, dtype=torch.bool)
    spiral[0, 0, :9] = spiral[0, :, 8] = spiral[0, 8, :9] = spiral[0, 2:, 0] = spiral[0, 2, :7] = True
    spiral[0, 2:7, 6] = spiral[0, 6, 2:7] = True
    spiral[0, 2:7, 12:17] = True  # 25 pixels beside 44
    assert len(parts_of(spiral[0])) == 2
    assert boxes_from_masks(spiral)[0]["boxes"].tolist() == [[0, 0, 9, 9]]


def test_boxes_of_true_masks_are_the_labs_and_torchvisions() -> None:
    scenes = shapes("hard", "test", 200)
    found = torch.cat([image["boxes"] for image in boxes_from_masks(scenes.masks)])
    parts = [parts_of(mask) for mask in scenes.masks]
    whole = torch.tensor([len(of_mask) == 1 for of_mask in parts])
    assert whole.float().mean() > 0.9 and torch.equal(found[whole], scenes.boxes[whole])
    largest = torch.stack([of_mask[0] for of_mask in parts])
    assert torch.equal(found, boxes_around(largest))
    assert torch.equal(found - torch.tensor([0.0, 0.0, 1.0, 1.0]), masks_to_boxes(largest))


def test_stray_pixels_do_not_stretch_a_box_and_empty_masks_have_none() -> None:
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[0, 9, 11] = True
    masks[1, 4, 4] = True
    scores, labels = torch.tensor([0.5, 0.6, 0.7]), torch.tensor([3, 4, 5])
    found = boxes_from_masks(masks, scores, labels)
    assert found[0]["boxes"].tolist() == [[3, 2, 9, 5]] and found[1]["boxes"].tolist() == [[4, 4, 5, 5]]
    assert [image["boxes"].shape for image in found] == [(1, 4), (1, 4), (0, 4)]
    assert [image["labels"].tolist() for image in found] == [[3], [4], []]
    assert found[1]["scores"].tolist() == pytest.approx([0.6]) and found[2]["scores"].shape == (0,)
    found[0]["scores"][:] = found[1]["labels"][:] = 9
    assert scores.tolist() == pytest.approx([0.5, 0.6, 0.7]) and labels.tolist() == [3, 4, 5]
    assert boxes_from_masks(masks[:0]) == []
    for bad, error, sentence in [
        ((masks.float(),), TypeError, "must be a bool tensor"),
        ((masks[0],), TypeError, r"got \(\(10, 12\)"),
        ((masks[:, :0],), ValueError, r"at least one pixel, got shape \(3, 0, 12\)"),
        ((masks, torch.ones(2)), ValueError, r"3 masks need as many scores and labels, got \(2,\)"),
        ((masks, None, torch.ones(3)), TypeError, "labels must be whole numbers, got torch.float32"),
        ((masks, None, [0.0, 1.0, 2.0]), TypeError, "labels must be whole numbers, got torch.float32"),
    ]:
        with pytest.raises(error, match=sentence):
            boxes_from_masks(*bad)


def test_scores_and_labels_may_be_lists_or_numpy() -> None:
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    wanted = boxes_from_masks(masks, torch.tensor([0.5, 0.25]), torch.tensor([3, 4]))
    for scores, labels in [([0.5, 0.25], [3, 4]), (np.array([0.5, 0.25], np.float32), np.array([3, 4]))]:
        for image, same in zip(boxes_from_masks(masks, scores, labels), wanted, strict=True):
            assert all(torch.equal(image[key], same[key]) for key in same)
