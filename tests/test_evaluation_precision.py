"""Mean average precision is COCO's, as torchmetrics counts it, and counts nothing that is not a number."""

import math
import sys
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_course.evaluation import COCO_THRESHOLDS, mean_average_precision


def torchmetrics_says(detections: list, truths: list, thresholds: tuple[float, ...]) -> float:
    """torchmetrics' number: of its COCO backend where there is one, else of its older form in plain PyTorch.

    The older form wants pycocotools, which it needs for masks only, and counts overlaps above a threshold
    where COCO counts them from it on. Recalls are handed over in full precision: torchmetrics' own are
    float32.
    """
    options = {"rec_thresholds": [percent / 100 for percent in range(101)]}
    if find_spec("pycocotools") or find_spec("faster_coco_eval"):
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_thresholds=list(thresholds), **options)
        metric.update(detections, truths)
        return metric.compute()["map"].item()
    from torchmetrics.detection import _mean_ap

    stand_in = {name: ModuleType(name) for name in ("pycocotools", "pycocotools.mask")}
    with patch.dict(sys.modules, stand_in), patch.object(_mean_ap, "_PYCOCOTOOLS_AVAILABLE", True):
        metric = _mean_ap.MeanAveragePrecision(iou_thresholds=[t - 1e-6 for t in thresholds], **options)
        metric.update(detections, truths)
        return metric.compute()["map"].item()


def random_lists(seed: int, most: int = 6, whole: bool = False) -> tuple[list, list]:
    """Images with true boxes of three classes, and detections near and beside them, of four classes."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def boxes(count: int, classes: int) -> dict[str, Tensor]:
        corner, size = (
            20 * torch.rand(count, 2, generator=generator),
            2 + 10 * torch.rand(count, 2, generator=generator),
        )
        return {
            "boxes": torch.cat([corner, corner + size], dim=1),
            "labels": torch.randint(classes, (count,), generator=generator),
        }

    detections, truths = [], []
    for _ in range(7):
        truth, strays = boxes(number(0, 5), 3), boxes(number(0, most), 4)
        near = truth["boxes"] + (0.6 * torch.randn(truth["boxes"].shape, generator=generator)).clamp(
            -0.9, 0.9
        )
        found = {key: torch.cat([part, strays[key]]) for key, part in (truth | {"boxes": near}).items()}
        found["scores"] = torch.rand(len(found["labels"]), generator=generator)
        if seed % 2:  # many equal scores; few boxes, because the older form sorts many equals in any order
            found["scores"] = (4 * found["scores"]).round() / 4
        if whole:
            truth["boxes"], found["boxes"] = truth["boxes"].round(), found["boxes"].round()
        detections.append(found)
        truths.append(truth)
    return detections, truths


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("whole", [False, True], ids=["any boxes", "whole pixels"])
def test_mean_average_precision_is_torchmetrics(seed: int, whole: bool) -> None:
    lists = random_lists(seed, most=700 if seed == 4 else 6, whole=whole)
    for thresholds in (COCO_THRESHOLDS, (0.5,), (0.75,), (0.3, 0.6)):
        ours = mean_average_precision(*lists, thresholds)
        assert ours == pytest.approx(torchmetrics_says(*lists, thresholds), abs=1e-5), thresholds
        assert 0 < ours < 1


def one_box(overlap: float, score: float, label: int = 0) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10 * overlap]]),
        "scores": torch.tensor([score]),
        "labels": torch.tensor([label]),
    }


NOTHING = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
OBJECT = {"boxes": BOX, "labels": torch.tensor([0])}
GOOD = one_box(1.0, 1.0)


def test_average_precision_in_numbers() -> None:
    """Hit, miss, hit, miss, one object of three never found: (34 · 1 + 33 · 2/3) / 101."""
    found = [one_box(0.8, 0.9), one_box(0.1, 0.8), one_box(0.8, 0.7), one_box(0.1, 0.6)]
    objects = [OBJECT, NOTHING, OBJECT, OBJECT]
    assert mean_average_precision(found, objects, (0.5,)) == pytest.approx(56 / 101, abs=1e-12)
    assert mean_average_precision(found, objects) == pytest.approx(0.7 * 56 / 101, abs=1e-12)
    assert mean_average_precision([OBJECT | {"scores": torch.ones(1)}], [OBJECT]) == 1.0
    assert mean_average_precision([NOTHING], [OBJECT]) == 0.0
    # An overlap of exactly the threshold counts, and 0.8 and 0.6 are not exact in floats.
    for overlap in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert mean_average_precision([one_box(overlap, 1.0)], [OBJECT], (overlap,)) == 1.0


def test_a_second_box_on_the_same_object_is_a_miss() -> None:
    twice = {key: torch.cat([one_box(0.9, 0.9)[key], one_box(1.0, 0.8)[key]]) for key in one_box(1, 1)}
    both = mean_average_precision([twice, NOTHING], [OBJECT, OBJECT], (0.5,))
    assert both == pytest.approx(51 / 101, abs=1e-12)  # one of two found, at precision 1
    assert mean_average_precision([twice, one_box(1.0, 0.1)], [OBJECT, OBJECT], (0.5,)) == pytest.approx(
        (51 + 50 * 2 / 3) / 101, abs=1e-12
    )


def test_of_two_objects_overlapped_alike_the_last_is_taken() -> None:
    """As pycocotools decides: the first box takes the second object, and the second box then finds none."""
    objects = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0]]),
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    found = objects | {
        "boxes": torch.tensor([[2.0, 0.0, 12.0, 10.0], [4.0, 0.0, 14.0, 10.0]]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    assert mean_average_precision([found], [objects], (0.5,)) == pytest.approx(51 / 101, abs=1e-12)


def test_classes_count_alike_and_false_classes_are_left_out() -> None:
    one, two = OBJECT, OBJECT | {"labels": torch.tensor([1])}
    found = [one_box(1.0, 0.9, 0), one_box(1.0, 0.9, 0), one_box(1.0, 0.9, 0)]
    assert mean_average_precision(found, [one, one, two], (0.5,)) == pytest.approx(0.5, abs=1e-12)
    assert mean_average_precision([one_box(1.0, 0.9), one_box(1.0, 1.0, 7)], [one, NOTHING]) == 1.0


def with_changed(key: str, part: object, error: type, sentence: str) -> tuple:
    """A case: one good detection with one part of it changed."""
    return [GOOD | {key: part}], [OBJECT], (0.5,), error, rf"detections\[0\] must .*{sentence}"


BAD_LISTS = {
    "no truths": ([GOOD], [], (0.5,), ValueError, "1 images with detections, but 0 with true boxes"),
    "no images": ([], [], (0.5,), ValueError, "at least one true box"),
    "no true box": ([NOTHING], [NOTHING], (0.5,), ValueError, "at least one true box"),
    "no scores": ([OBJECT], [OBJECT], (0.5,), TypeError, r"detections\[0\] must be a dictionary .* scores"),
    "no dictionary": ([GOOD], [[0, 0, 1, 1]], (0.5,), TypeError, r"truths\[0\] must be a dictionary"),
    "a single box": with_changed("boxes", GOOD["boxes"][0], ValueError, r"hold boxes \(m, 4\)"),
    "too many scores": with_changed("scores", torch.ones(2), ValueError, r"'scores': \(2,\)"),
    "a bare label": with_changed("labels", torch.tensor(0), ValueError, r"'labels': \(\)"),
    "float labels": with_changed(
        "labels", torch.tensor([0.5]), TypeError, "whole numbers as labels, got torch.float32"
    ),
    "a score of nan": with_changed(
        "scores", torch.tensor([math.nan]), ValueError, r"finite scores, got \[nan\]"
    ),
    "an infinite score": with_changed(
        "scores", torch.tensor([math.inf]), ValueError, r"finite scores, got \[inf\]"
    ),
    "a corner of nan": with_changed(
        "boxes", BOX * torch.tensor([1, 1, math.nan, 1]), ValueError, "finite boxes, .*nan"
    ),
    "an infinite box": with_changed(
        "boxes", BOX + torch.tensor([0, 0, math.inf, 0]), ValueError, "finite boxes, .*inf"
    ),
    "NumPy": with_changed("boxes", GOOD["boxes"].numpy(), TypeError, "of the tensors boxes, labels, scores"),
    "a box from right to left": ([GOOD], [OBJECT | {"boxes": BOX.flip(1)}], (0.5,), ValueError, "x0 <= x1"),
    "a threshold in percent": ([GOOD], [OBJECT], (50,), ValueError, r"above 0 and up to 1, got \(50,\)"),
    "a threshold of nan": ([GOOD], [OBJECT], (math.nan,), ValueError, r"got \(nan,\)"),
    "no thresholds": ([GOOD], [OBJECT], (), ValueError, r"got \(\)"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists_are_named(name: str) -> None:
    found, objects, thresholds, error, sentence = BAD_LISTS[name]
    with pytest.raises(error, match=sentence):
        mean_average_precision(found, objects, thresholds)


def test_thresholds_may_come_in_any_form_and_boxes_in_any_type() -> None:
    lists = random_lists(0, whole=True)
    wanted = mean_average_precision(*lists)
    for thresholds in (
        list(COCO_THRESHOLDS),
        np.array(COCO_THRESHOLDS),
        torch.tensor(COCO_THRESHOLDS, dtype=torch.float64),
    ):
        assert mean_average_precision(*lists, thresholds) == wanted
    assert mean_average_precision(*lists, 0.5) == mean_average_precision(*lists, (0.5,)) > wanted
    for dtype in (torch.float16, torch.float64, torch.int32):
        same = [[image | {"boxes": image["boxes"].to(dtype)} for image in images] for images in lists]
        assert mean_average_precision(*same) == wanted


def test_nothing_that_is_lent_is_changed() -> None:
    lists = random_lists(0)
    before = [[{key: part.clone() for key, part in image.items()} for image in images] for images in lists]
    mean_average_precision(*lists)
    for images, copies in zip(lists, before, strict=True):
        for image, copy in zip(images, copies, strict=True):
            assert list(image) == list(copy) and all(torch.equal(image[key], copy[key]) for key in copy)
