"""Evaluation.

What makes a representation good, and how do you find out without fooling yourself?

Made from notebooks/09_evaluation.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.ops import box_iou

from vit_course.patching import pair, require_at_least, require_between, require_floats, require_images

__all__ = [
    "extract_features",
    "knn_accuracy",
    "linear_probe",
    "attention_masks",
    "masks_to_pixels",
    "jaccard",
    "boxes_from_masks",
    "COCO_THRESHOLDS",
    "mean_average_precision",
]


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    pool: str | None = None,
    batch_size: int = 100,
) -> Tensor:
    """Features of a frozen backbone, without gradients and in eval mode; every part is put back into its own
    mode afterwards.

    backbone: any model of the backbone protocol: forward_features gives normalised tokens (b,
    num_prefix_tokens + n, d) or a map (b, d, h, w). images: (b, c, h, w), or batches of them; of a batch that
    is a pair (a DataLoader's images and labels) the first part is read. pool: 'cls' takes the first token,
    'mean' the mean of the patches, 'patches' all of them; by default the class token where there is one, else
    the mean. batch_size: images at a time where they come as one tensor.
    Returns (b, d), for 'patches' (b, n, d), on the CPU, in the order of the images.
    Raises TypeError for another model or other images, ValueError for an unknown pool.

    Built in lesson 09.
    """
    if not isinstance(backbone, nn.Module) or not callable(getattr(backbone, "forward_features", None)):
        raise TypeError(
            f"extract_features needs a model with forward_features, got {type(backbone).__name__}; models of "
            f"timm and torchvision come in through vit_course.lab.pretrained.adapt"
        )
    if pool not in (None, "cls", "mean", "patches"):
        raise ValueError(f"pool must be 'cls', 'mean', 'patches' or None, got {pool!r}")
    require_at_least(1, batch_size=batch_size)
    if isinstance(images, Tensor):
        require_images(images)
        images = images.split(batch_size)
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in backbone.modules()}
    features = []
    backbone.eval()
    try:
        for batch in images:
            batch = batch[0] if isinstance(batch, tuple | list) else batch
            require_images(batch)
            features.append(_pooled(backbone, backbone.forward_features(batch.to(device)), pool).cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    if not features:
        raise ValueError("extract_features was given no images")
    return torch.cat(features)


def _pooled(backbone: nn.Module, features: Tensor, pool: str | None) -> Tensor:
    """Tokens or a map -> the class token (b, d), the mean of the patches (b, d), or the patches (b, n, d)."""
    prefix = getattr(backbone, "num_prefix_tokens", 0) if features.ndim == 3 else 0
    if features.ndim == 4:
        features = rearrange(features, "b d rows columns -> b (rows columns) d")
    if pool == "cls" and not prefix:
        raise ValueError(f"{type(backbone).__name__} has no class token: pool must be 'mean' or 'patches'")
    if pool == "cls" or (pool is None and prefix):
        return features[:, 0]
    return features[:, prefix:] if pool == "patches" else features[:, prefix:].mean(dim=1)


def _require_labelled(name: str, features: Tensor, labels: Tensor) -> None:
    """Raise a TypeError or ValueError unless there is a finite feature (b, d) for every whole label (b,)."""
    require_floats(f"{name}_features", features, "b d")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}_labels must be an int64 tensor, got {kind}")
    if labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"{name} needs one label for every feature, at least one, got features {tuple(features.shape)} "
            f"and labels {tuple(labels.shape)}"
        )
    if labels.min() < 0:
        raise ValueError(f"{name}_labels must not be negative, got {labels.min()}")
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name}_features hold nan or infinite numbers, first in row {finite.int().argmin()}"
        )


def _require_both(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> None:
    """Raise a TypeError or ValueError unless both sets are whole and their features equally wide."""
    _require_labelled("train", train_features, train_labels)
    _require_labelled("test", test_features, test_labels)
    if train_features.shape[1] != test_features.shape[1]:
        shapes = f"{tuple(train_features.shape)} and {tuple(test_features.shape)}"
        raise ValueError(f"train and test features must have one width, got shapes {shapes}")


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of test images that their nearest training images name right (Wu et al. 2018, section 3.4;
    Caron et al. 2021, section 3.2).

    Each of the k nearest by cosine votes for its class with the weight exp(cosine / temperature). Where there
    are fewer than k training images, all of them vote. Similarities are computed in chunks of about four
    million, so memory stays small.

    train_features, test_features: (b, d). train_labels, test_labels: (b,), int64. Returns a share in 0 … 1.
    Raises TypeError or ValueError for features and labels that do not fit together, k below 1, a temperature
    that is not positive.

    Built in lesson 09.
    """
    _require_both(train_features, train_labels, test_features, test_labels)
    require_at_least(1, k=k)
    require_between(0, math.inf, temperature=temperature)
    if temperature == 0:
        raise ValueError("temperature must be above 0")
    train, test = (F.normalize(features.float(), dim=1) for features in (train_features, test_features))
    classes, rows = int(train_labels.max()) + 1, max(1, 2**22 // train.shape[0])
    right = 0
    for asked, labels in zip(test.split(rows), test_labels.split(rows), strict=True):
        similarity, nearest = (asked @ train.T).topk(min(k, train.shape[0]))
        # The nearest gets weight 1: a factor common to all votes of a row changes no winner and cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(asked.shape[0], classes).scatter_add_(1, train_labels[nearest], weights)
        right += (votes.argmax(dim=1) == labels).sum().item()
    return right / test.shape[0]


_PENALTIES = tuple(10.0**power for power in range(1, -5, -1))


def _logistic_regression(
    features: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """The weight (classes, d) and bias (classes,) with the least cross-entropy + penalty / 2 · |weight|², on
    standardised features; given back for the features as they are.
    """
    features = features.detach().double()
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6 * spread.max(), spread, 1.0)  # what never varies must not be blown up
    features = (features - mean) / spread
    variances, axes = torch.linalg.eigh(features.T @ features / features.shape[0])
    # Along these axes, each divided by the root of the objective's curvature at zero weights, the valley is round.
    axes = axes / (variances / classes + penalty).clamp(min=1e-9).sqrt()
    along_axes = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [along_axes, bias], max_iter=500, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        weight = along_axes @ axes.T
        loss = F.cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    weight = along_axes.detach() @ axes.T / spread
    return weight, bias.detach() - weight @ mean


def _choose_penalty(features: Tensor, labels: Tensor, classes: int) -> float:
    """The penalty with the lowest loss on a held-out fifth of the training set."""
    if len(labels) < 5:
        raise ValueError(
            f"choosing the penalty needs at least 5 training images, got {len(labels)}; give a penalty"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    asked, kept = order[: len(labels) // 5], order[len(labels) // 5 :]
    losses = {}
    for penalty in _PENALTIES:
        weight, bias = _logistic_regression(features[kept], labels[kept], classes, penalty)
        logits = features[asked].double() @ weight.T + bias
        losses[penalty] = F.cross_entropy(logits, labels[asked]).item()
    return min(losses, key=losses.__getitem__)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    penalty: float | None = None,
) -> float:
    """The share of test images that one linear layer on frozen features names right.

    The layer is a logistic regression with an L2 penalty on standardised features, fitted to the end by
    L-BFGS in float64: no seed, no learning rate. (Caron et al. 2021, section 3.2, train theirs by SGD.)

    train_features, test_features: (b, d). train_labels, test_labels: (b,), int64. penalty: the factor before
    |weight|² / 2 beside the mean cross-entropy; by default chosen on a fifth of the training set.
    Returns a share in 0 … 1.
    Raises TypeError or ValueError for features and labels that do not fit together.

    Built in lesson 09.
    """
    _require_both(train_features, train_labels, test_features, test_labels)
    require_between(0, math.inf, penalty=0.0 if penalty is None else penalty)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    if penalty is None:
        penalty = _choose_penalty(train_features, train_labels, classes)
    weight, bias = _logistic_regression(train_features, train_labels, classes, penalty)
    logits = test_features.detach().double() @ weight.T + bias
    return (logits.argmax(dim=1) == test_labels).double().mean().item()


def attention_masks(weights: Tensor, keep: float = 0.6) -> Tensor:
    """The fewest patches that together hold a share of the attention (Caron et al. 2021, section 4.2.2).

    weights: rows of the class token over the patches (b, h, n), not negative; they need not sum to one.
    keep: the share to hold, above 0 and up to 1. Returns booleans (b, h, n).
    Raises TypeError or ValueError for other weights, or a row without any weight.

    Built in lesson 09.
    """
    require_floats("weights", weights, "b h n")
    require_between(0, 1, keep=keep)
    if keep == 0:
        raise ValueError("keep must be above 0")
    if not (weights >= 0).all() or not (weights.sum(dim=-1) > 0).all():
        raise ValueError(
            f"weights must not be negative and each row must hold some, got a smallest weight of "
            f"{weights.min():.3g} and a smallest sum of {weights.sum(dim=-1).min():.3g}"
        )
    ordered, order = weights.double().sort(dim=-1, descending=True, stable=True)
    held_before = ordered.cumsum(dim=-1) - ordered
    # A share that is reached exactly is reached, whatever the last bit says.
    kept = held_before < (keep - 1e-6) * ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def masks_to_pixels(masks: Tensor, grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """Masks over patches (b, h, n), in reading order -> masks over pixels (b, h, rows · p1, columns · p2).

    grid: (rows, columns) of the patches. patch_size: p or (p1, p2), in pixels.
    Raises ValueError where the patches do not fill the grid.

    Built in lesson 09.
    """
    (rows, columns), (p1, p2) = pair(grid, "grid"), pair(patch_size, "patch_size")
    if not isinstance(masks, Tensor) or masks.ndim != 3 or masks.shape[2] != rows * columns:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(
            f"masks must be (b, h, {rows} · {columns}) for a grid of {(rows, columns)}, got {shape}"
        )
    return repeat(masks, "b h (rows columns) -> b h (rows p1) (columns p2)", rows=rows, p1=p1, p2=p2)


def jaccard(found: Tensor, truth: Tensor) -> Tensor:
    """Pixels in both masks by pixels in either (Jaccard 1901; also intersection over union, IoU).

    found, truth: booleans (…, h, w) of shapes that broadcast. Returns (…), in 0 … 1; two empty masks agree: 1.
    Raises TypeError or ValueError for other masks.

    Built in lesson 09.
    """
    for name, masks in {"found": found, "truth": truth}.items():
        if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
            kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
            raise TypeError(f"{name} must be a bool tensor, got {kind}")
    if min(found.ndim, truth.ndim) < 2 or found.shape[-2:] != truth.shape[-2:]:
        raise ValueError(
            f"jaccard needs masks of one size, got {tuple(found.shape)} and {tuple(truth.shape)}"
        )
    both, either = (found & truth).sum(dim=(-2, -1)), (found | truth).sum(dim=(-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _largest_part(masks: Tensor) -> Tensor:
    """Of each mask (b, h, w) the largest part whose pixels touch, also at corners; an empty one stays empty."""
    b, h, w = masks.shape
    numbers = torch.arange(1, h * w + 1, dtype=torch.int32, device=masks.device).view(h, w) * masks
    while True:
        padded = F.pad(numbers, (1, 1, 1, 1))
        tall = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
        wide = torch.maximum(torch.maximum(tall[:, :, :-2], tall[:, :, 1:-1]), tall[:, :, 2:])
        spread = wide * masks
        if torch.equal(spread, numbers):
            break
        numbers = spread
    numbers = numbers.flatten(1).long()
    sizes = numbers.new_zeros(b, h * w + 1).scatter_add_(1, numbers, (numbers > 0).long())
    return masks & (numbers == sizes.argmax(dim=1, keepdim=True)).view(b, h, w)


def boxes_from_masks(
    masks: Tensor, scores: Tensor | None = None, labels: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """The box around the largest connected part of each mask, as detections in torchmetrics' form.

    masks: booleans (b, h, w). scores: (b,), 1 by default. labels: (b,), int64, 0 by default.
    Returns for each image a dictionary of boxes (m, 4), x0 y0 x1 y1 in pixels with x1 and y1 just outside,
    scores (m,) and labels (m,); m is 1, or 0 where the mask is empty.
    Raises TypeError or ValueError for other masks, scores or labels.

    Built in lesson 09.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3:
        kind = (tuple(masks.shape), masks.dtype) if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks must be a bool tensor (b, h, w), got {kind}")
    b = masks.shape[0]
    scores = torch.ones(b, device=masks.device) if scores is None else scores
    labels = torch.zeros(b, dtype=torch.int64, device=masks.device) if labels is None else labels
    if scores.shape != (b,) or labels.shape != (b,):
        raise ValueError(
            f"{b} masks need as many scores and labels, got {tuple(scores.shape)}, {tuple(labels.shape)}"
        )

    def first_and_last(used: Tensor) -> tuple[Tensor, Tensor]:
        used = used.int()
        return used.argmax(dim=1), used.shape[1] - used.flip(1).argmax(dim=1)

    parts = _largest_part(masks)
    (x0, x1), (y0, y1) = first_and_last(parts.any(dim=1)), first_and_last(parts.any(dim=2))
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    some = masks.flatten(1).any(dim=1)
    return [
        {"boxes": boxes[i : i + 1][some[i : i + 1]], "scores": scores[i : i + 1][some[i : i + 1]],
         "labels": labels[i : i + 1][some[i : i + 1]]}
        for i in range(b)
    ]  # fmt: skip


COCO_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


def mean_average_precision(
    detections: Sequence[dict[str, Tensor]],
    truths: Sequence[dict[str, Tensor]],
    iou_thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> float:
    """Mean average precision of boxes, as COCO counts it (Lin et al. 2014), over classes and thresholds.

    detections: for each image a dictionary of boxes (m, 4) x0 y0 x1 y1, scores (m,) and labels (m,), at most
    100 of a class counted. truths: the same without scores; all count, there are no crowds.
    iou_thresholds: overlaps from which a box is a hit; COCO's ten by default, (.5,) for AP50.
    Returns a share in 0 … 1. Raises TypeError or ValueError for lists and dictionaries that do not fit, or
    where there is no true box at all.

    Built in lesson 09.
    """
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} images with detections, but {len(truths)} with true boxes")
    for name, images in {"detections": detections, "truths": truths}.items():
        for number, image in enumerate(images):
            _require_boxes(f"{name}[{number}]", image, ("scores",) if name == "detections" else ())
    thresholds = torch.tensor([float(threshold) for threshold in iou_thresholds], dtype=torch.float64)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"iou_thresholds must be overlaps above 0 and up to 1, got {tuple(iou_thresholds)}")
    classes = torch.cat([image["labels"] for image in truths]).unique().tolist() if len(truths) else []
    if not classes:
        raise ValueError("mean average precision needs at least one true box")
    of_classes = [_average_precision(detections, truths, label, thresholds) for label in classes]
    return torch.stack(of_classes).mean().item()


def _require_boxes(name: str, image: dict[str, Tensor], also: tuple[str, ...]) -> None:
    """Raise a TypeError or ValueError unless a dictionary holds boxes (m, 4) and as many of everything else."""
    wanted = ("boxes", "labels", *also)
    if not isinstance(image, dict) or not all(isinstance(image.get(key), Tensor) for key in wanted):
        raise TypeError(
            f"{name} must be a dictionary of the tensors {', '.join(wanted)}, got {image!r}"[:200]
        )
    shapes = {key: tuple(image[key].shape) for key in wanted}
    m = len(image["labels"])
    if shapes["boxes"] != (m, 4) or any(shapes[key] != (m,) for key in wanted[1:]):
        raise ValueError(f"{name} must hold boxes (m, 4) and m of the others, got {shapes}")
    if not (image["boxes"][:, :2] <= image["boxes"][:, 2:]).all():
        raise ValueError(
            f"{name} must hold boxes x0 y0 x1 y1 with x0 <= x1, y0 <= y1, got {image['boxes'].tolist()}"
        )


def _hits(boxes: Tensor, truths: Tensor, thresholds: Tensor) -> Tensor:
    """Which boxes (m, 4), the surest first, find a true box (t, 4) that is still free: (m, thresholds)."""
    hits = torch.zeros(len(boxes), len(thresholds), dtype=torch.bool)
    if not len(boxes) or not len(truths):
        return hits
    # Of equal overlaps COCO takes the last, max the first: so the last stands first.
    overlaps = box_iou(boxes.double(), truths.double().flip(0))
    free = torch.ones(len(thresholds), len(truths), dtype=torch.bool)
    for box, overlap in enumerate(overlaps):
        best, which = torch.where(free & (overlap >= thresholds[:, None]), overlap, -1.0).max(dim=1)
        hits[box] = best > 0
        free[hits[box], which[hits[box]]] = False
    return hits


def _average_precision(
    detections: Sequence[dict[str, Tensor]],
    truths: Sequence[dict[str, Tensor]],
    label: int,
    thresholds: Tensor,
) -> Tensor:
    """Average precision of one class at each threshold: the best precision at 101 recalls, 0, .01 … 1."""
    scores, hits, count = [], [], 0
    for found, truth in zip(detections, truths, strict=True):
        score, order = found["scores"][found["labels"] == label].sort(descending=True, stable=True)
        boxes = found["boxes"][found["labels"] == label][order][:100]
        wanted = truth["boxes"][truth["labels"] == label]
        scores.append(score[:100])
        hits.append(_hits(boxes, wanted, thresholds))
        count += len(wanted)
    ranking = torch.cat(scores).argsort(descending=True, stable=True)
    right = torch.cat(hits)[ranking].double().cumsum(dim=0)  # (m, thresholds)
    precision = right / torch.arange(1, len(right) + 1)[:, None]
    best = (
        torch.cat([precision, precision.new_zeros(1, len(thresholds))]).flip(0).cummax(dim=0).values.flip(0)
    )
    recalls = (torch.arange(101, dtype=torch.float64) / 100).expand(len(thresholds), -1).contiguous()
    first = torch.searchsorted((right / count).T.contiguous(), recalls)  # the rank that reaches each recall
    return best.T.gather(1, first).mean(dim=1)
