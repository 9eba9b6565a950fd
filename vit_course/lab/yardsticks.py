"""What features and attention are worth on one set of pictures, and the simple rules that they have to beat.

Lesson 13 puts every result beside these. Lesson 09 builds the measures; here stand the baselines.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.attention import record_attention
from vit_course.evaluation import (
    attention_masks,
    boxes_from_masks,
    effective_rank,
    extract_features,
    jaccard,
    knn_accuracy,
    linear_probe,
    masks_to_pixels,
    mean_average_precision,
)
from vit_course.max_vit import Pyramid
from vit_course.training import eval_mode
from vit_course.vit import Backbone

from .data import ImageSet, normalise
from .pictures.for_real import principal_colours
from .report import Table
from .results import wilson

# Each measure, and how its numbers are written.
MEASURES = {"kNN": ".0%", "linear": ".0%", "rank": ".0f", "IoU": ".2f", "mAP": ".2f", "AP50": ".2f"}
LARGEST_PIXELS = 32  # side up to which a linear layer on pixels is solved in seconds


def grey_pixels(images: Tensor) -> Tensor:
    """Grey values without their mean, of pictures averaged down to at most 32 pixels a side.

    Args:
        images: (b, c, h, w).

    Returns:
        (b, pixels).
    """
    grey = images.mean(dim=1, keepdim=True)
    if grey.shape[-1] > LARGEST_PIXELS:
        grey = F.adaptive_avg_pool2d(grey, LARGEST_PIXELS)
    pixels = grey.flatten(1)
    return pixels - pixels.mean(dim=1, keepdim=True)


def score_features(known: Tensor, queries: Tensor, labelled: ImageSet, test: ImageSet) -> dict[str, float]:
    """What features are worth.

    Args:
        known: features (b, d) of the labelled pictures.
        queries: features of the test pictures.
        labelled, test: the pictures; where they have fewer than two classes there are no accuracies.

    Returns:
        "kNN" and "linear", shares of test pictures that the 20 nearest neighbours and a linear layer name
        right, where there are classes; "rank", the effective rank of the test features without their mean.
    """
    scores = {}
    if len(test.classes) > 1:
        both = known, labelled.labels, queries, test.labels
        scores = {"kNN": knn_accuracy(*both), "linear": linear_probe(*both)}
    return scores | {"rank": effective_rank(queries - queries.mean(dim=0))}


def score_masks(masks: Tensor, scores: Tensor, scenes: ImageSet) -> dict[str, float]:
    """How well masks find the objects of scenes.

    Args:
        masks: booleans (b, h, w).
        scores: how sure each is, (b,).
        scenes: with their true masks and boxes.

    Returns:
        "IoU", the mean Jaccard index; "mAP" and "AP50", mean average precision of the boxes around the masks.
    """
    assert scenes.masks is not None and scenes.boxes is not None
    boxes = boxes_from_masks(masks, scores)
    truths = [{"boxes": box[None], "labels": torch.zeros(1, dtype=torch.int64)} for box in scenes.boxes]
    return {
        "IoU": jaccard(masks, scenes.masks).mean().item(),
        "mAP": mean_average_precision(boxes, truths),
        "AP50": mean_average_precision(boxes, truths, (0.5,)),
    }


def otsu(images: Tensor) -> tuple[Tensor, Tensor]:
    """What is brighter than the threshold that leaves most of the grey values' variance between its sides.

    Args:
        images: (b, c, h, w).

    Returns:
        Masks (b, h, w), and the share of the variance that the cut explains (b,).

    Source: Otsu 1979.
    """
    grey = images.mean(dim=1)
    values = grey.flatten(1).double().sort(dim=1).values  # (b, n)
    n, mean = values.shape[1], values.mean(dim=1, keepdim=True)
    below = torch.arange(1, n) / n  # share of the pixels under each cut
    mean_below = values.cumsum(dim=1)[:, :-1] / torch.arange(1, n)
    between = below / (1 - below) * (mean - mean_below) ** 2  # variance between the two sides
    best, cut = between.max(dim=1)
    threshold = values.gather(1, cut[:, None])[..., None]
    return grey > threshold, (best / values.var(dim=1, correction=0)).float()


def middle_square(scenes: ImageSet) -> Tensor:
    """The same mask for every picture, (b, h, w): the middle half of both sides."""
    b, _, h, w = scenes.images.shape
    masks = torch.zeros(b, h, w, dtype=torch.bool)
    masks[:, h // 4 : -(h // 4), w // 4 : -(w // 4)] = True
    return masks


def closer(images: Tensor) -> Tensor:
    """A network's input at twice the size, (b, c, h, w) in 0..1 -> (b, c, 2h, 2w): twice as many patches to
    a side, each half as wide in the picture.
    """
    return F.interpolate(normalise(images), scale_factor=2, mode="bilinear")


def where_it_attends(backbone: nn.Module, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The attention over patches in the last layer that sees the whole picture, the mean of its heads.

    Args:
        backbone: a model with such a layer.
        inputs: what it takes, (b, c, h, w).

    Returns:
        (b, n), rows that sum to one: of the class token, or, in a model without one, the mean of all patches;
        and the grid of the patches.
    """
    found = []
    for batch in inputs.split(100):
        with torch.no_grad(), eval_mode(backbone), record_attention(backbone) as record:
            backbone(batch)
        last = [layer for layer in record if layer.kind in ("global", "class")][-1]
        rows = last.weights.mean(dim=1)[:, :, last.num_prefix_tokens :]  # (b, queries, n)
        found.append(rows[:, 0] if last.num_prefix_tokens else rows.mean(dim=1))
    rows = torch.cat(found)
    assert last.grid is not None  # such layers have one
    return rows / rows.sum(dim=1, keepdim=True), last.grid


def attention_finds(backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The patches that hold 60 % of the attention, of pictures seen `closer`.

    Args:
        backbone: a model with a layer that sees the whole picture.
        images: (b, c, h, w) in 0..1.

    Returns:
        Masks (b, h, w), and the attention inside their boxes (b,).
    """
    rows, grid = where_it_attends(backbone, closer(images))
    patch = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    masks = masks_to_pixels(attention_masks(rows[:, None]), grid, patch)[:, 0]
    density = masks_to_pixels(rows[:, None], grid, patch)[:, 0] / (patch[0] * patch[1])
    corners = [found["boxes"][0].int().tolist() for found in boxes_from_masks(masks)]
    inside = [image[y0:y1, x0:x1].sum() for image, (x0, y0, x1, y1) in zip(density, corners, strict=True)]
    return masks, torch.stack(inside)


def whole_patches(scenes: ImageSet, grid: tuple[int, int]) -> Tensor:
    """The true masks cut to whole patches, (b, h, w): a patch counts where the object covers half of it."""
    assert scenes.masks is not None
    patch = scenes.masks.shape[1] // grid[0], scenes.masks.shape[2] // grid[1]
    covered = F.avg_pool2d(scenes.masks.float()[:, None], patch).flatten(2) > 0.5
    return masks_to_pixels(covered, grid, patch)[:, 0]


def score_rules(scenes: ImageSet) -> dict[str, dict[str, float]]:
    """How well masks do that no network made."""
    even = torch.ones(len(scenes))
    middle = middle_square(scenes)
    return {
        "the whole picture": score_masks(torch.ones_like(middle), even, scenes),
        "a square in the middle": score_masks(middle, even, scenes),
        "brighter than Otsu's threshold": score_masks(*otsu(scenes.images), scenes),
    }


def score_patches(scenes: ImageSet, patch_size: int) -> dict[str, dict[str, float]]:
    """The best that a mask of whole patches can do, of pictures seen `closer`."""
    grid = 2 * scenes.images.shape[2] // patch_size, 2 * scenes.images.shape[3] // patch_size
    even = torch.ones(len(scenes))
    return {"the best that whole patches can": score_masks(whole_patches(scenes, grid), even, scenes)}


def components(backbone: Backbone | Pyramid, inputs: Tensor) -> Tensor:
    """The three directions in which patch features differ most, as colours.

    Args:
        backbone: any model of the course.
        inputs: square pictures as it takes them, (b, c, h, w); their patches are compared with each other.

    Returns:
        (b, 3, rows, columns) in 0..1: each component runs from its 2nd to its 98th percentile.
    """
    patches = extract_features(backbone, inputs, "patches")  # (b, n, d)
    rows = isqrt(patches.shape[1])
    colours = principal_colours(patches.flatten(0, 1))
    return colours.view(len(inputs), rows, rows, 3).permute(0, 3, 1, 2)


def nearest(known: Tensor, queries: Tensor, k: int) -> Tensor:
    """Where the k features stand that are nearest to each query by cosine: (b, d), (q, d) -> (q, k)."""
    return (F.normalize(queries, dim=1) @ F.normalize(known, dim=1).T).topk(k).indices


def how_to_read(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Sentences on the columns that `score_table` has for these scores, for somebody who knows none of them.

    Args:
        scores: for each name its measures.
    """
    measures = {measure for of_name in scores.values() for measure in of_name}
    sentences = ["How to read the table:"]
    if "kNN" in measures:
        sentences.append(
            "kNN is the share of test pictures that get the right name from the 20 training pictures whose "
            "features are most like theirs; linear is that of one linear layer on the same features."
        )
    if "rank" in measures:
        sentences.append(
            "Rank says in how many directions the features of the test pictures spread, which are never more "
            "than there are test pictures."
        )
    if "IoU" in measures:
        sentences.append(
            "IoU is the overlap of the part that attention marks with the true object, from 0 to 1; mAP and "
            "AP50 judge the box around that part."
        )
    return " ".join(sentences)


def score_table(scores: Mapping[str, Mapping[str, float]], marked: str, caption: str) -> Table:
    """All scores in one table, with a column for each measure that somebody has.

    Args:
        scores: for each name its measures, as the functions here give them.
        marked: the name that stands first and is stressed.
        caption: a sentence below it.
    """
    measures = [measure for measure in MEASURES if any(measure in of_name for of_name in scores.values())]
    rows = [
        [name, *(_written(scores[name].get(measure), MEASURES[measure]) for measure in measures)]
        for name in dict.fromkeys([marked, *scores])
    ]
    return Table(["", *measures], rows, caption=caption, marked=marked)


def _written(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form).replace("%", " %")


def verdict(guess: float | None, share: float, count: int) -> str:
    """What became of a guess.

    Args:
        guess: right answers of 100; None where nobody guessed.
        share: right answers in 0..1.
        count: of test pictures.
    """
    low, high = (100 * end for end in wilson(round(share * count), count))
    interval = f"Wilson's 95 % interval {low:.0f} to {high:.0f}"
    reached = f"{100 * share:.0f} of 100 are named right by their nearest neighbours ({interval})"
    if guess is None:
        return f"{reached}. Nobody guessed."
    if low <= guess <= high:
        return f"{reached}. The guess was {guess:g}: as near as {count:,} pictures can tell."
    side = "high" if guess > high else "low"
    return f"{reached}. The guess was {guess:g}: {abs(guess - 100 * share):.0f} too {side}."
