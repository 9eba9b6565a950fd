"""Evaluation.

What is in the features of a network, how do you measure it, and which number would a network without any
training reach?

Made from notebooks/09_evaluation.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor
from torchvision.ops import box_iou

from vit_course.max_vit import Pyramid
from vit_course.patching import pair, require_at_least, require_between, require_floats, require_images
from vit_course.training import eval_mode
from vit_course.vit import Backbone, require_backbone

__all__ = [
    "extract_features",
    "knn_accuracy",
    "logistic_regression",
    "linear_probe",
    "effective_rank",
    "attention_masks",
    "masks_to_pixels",
    "jaccard",
    "boxes_from_masks",
    "COCO_THRESHOLDS",
    "mean_average_precision",
]


@torch.no_grad()
def extract_features(
    backbone: Backbone | Pyramid,
    images: Tensor | Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    pool: str | None = None,
    batch_size: int = 100,
    layers: int = 1,
) -> Tensor:
    """Features of a frozen backbone, without gradients and in evaluation mode.

    Args:
        backbone: any model with forward_features, which gives normalised tokens (b, num_prefix_tokens + n, d)
            or a map (b, d, h, w). Every part of it gets back the mode it had.
        images: (b, c, h, w), or batches of them; of a batch that is a pair (a DataLoader's images and labels)
            the first part is read.
        pool: 'cls' takes the first token, 'mean' the mean of the patches, 'patches' all of them; by default
            the class token where there is one, else the mean.
        batch_size: images at a time where they come as one tensor.
        layers: of how many last blocks the features are put side by side, each after the final norm, the last
            block's last; more than 1 for models whose `blocks` carry all tokens. Caron et al. probe ViT-S so,
            with the class tokens of 4.

    Returns:
        (b, layers · d), for 'patches' (b, n, layers · d), on the CPU, in the order of the images, as the
        model gives them: a NaN is refused by the measures, which name its row.

    Raises:
        TypeError: for another model or other images.
        ValueError: for an unknown pool, features of another form, more layers than the model has blocks, or
            no images at all.

    Source: Caron et al. 2021, appendix F.2, for the last four layers.

    Built in lesson 09.
    """
    require_backbone("backbone", backbone, "forward_features")
    if pool not in (None, "cls", "mean", "patches"):
        raise ValueError(f"pool must be 'cls', 'mean', 'patches' or None, got {pool!r}")
    require_at_least(1, batch_size=batch_size, layers=layers)
    if isinstance(images, Tensor):
        require_images(images)
        images = images.split(batch_size)
    features = []
    with eval_mode(backbone) as device:
        for batch in images:
            batch = batch[0] if isinstance(batch, tuple | list) else batch
            require_images(batch)
            of_layers = _last_layers(backbone, batch.to(device), layers)
            features.append(torch.cat([_pooled(backbone, part, pool) for part in of_layers], dim=-1).cpu())
    if not any(len(batch) for batch in features):
        raise ValueError("extract_features was given no images")
    return torch.cat(features)


def _last_layers(backbone: Backbone | Pyramid, images: Tensor, layers: int) -> list[Tensor]:
    """What forward_features gives, after what it would give if earlier blocks were the last."""
    blocks = list(getattr(backbone, "blocks", ())) if layers > 1 else []
    if layers > 1 and len(blocks) < layers:
        raise ValueError(f"{type(backbone).__name__} has {len(blocks)} blocks, got layers={layers}")
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda *call: outputs.append(call[2])) for block in blocks[-layers:-1]
    ]
    try:
        last = backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    if any(tokens.shape != last.shape for tokens in outputs):
        raise ValueError(
            f"the blocks of {type(backbone).__name__} give {tuple(outputs[0].shape)}, the model "
            f"{tuple(last.shape)}: layers must be 1"
        )
    return [*(backbone.norm(tokens) for tokens in outputs), last]


def _pooled(backbone: Backbone | Pyramid, features: Tensor, pool: str | None) -> Tensor:
    """Tokens or a map -> the class token (b, d), the mean of the patches (b, d), or the patches (b, n, d)."""
    if features.ndim not in (3, 4):
        raise ValueError(
            f"forward_features must give tokens (b, n, d) or a map (b, d, h, w), got {tuple(features.shape)} "
            f"from {type(backbone).__name__}"
        )
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    if features.ndim == 4:
        features, prefix = rearrange(features, "b d rows columns -> b (rows columns) d"), 0
    if pool == "cls" and not prefix:
        raise ValueError(f"{type(backbone).__name__} has no class token: pool must be 'mean' or 'patches'")
    if pool == "cls" or (pool is None and prefix):
        return features[:, 0]
    patches = features[:, prefix:]
    return patches if pool == "patches" else patches.mean(dim=1)


def _whole_labels(prefix: str, features: Tensor, labels: Tensor | Sequence[int]) -> Tensor:
    """The labels (b,) as int64, beside the features (b, d). Raises a TypeError or ValueError unless every
    feature is finite and has a label.
    """
    require_floats(f"{prefix}features", features, "b d")
    whole = labels if isinstance(labels, Tensor) else torch.tensor(labels)
    if whole.is_floating_point() or whole.is_complex():
        raise TypeError(f"{prefix}labels must be an int64 tensor or other whole numbers, got {whole.dtype}")
    whole = whole.to(features.device, torch.int64)
    if whole.shape != features.shape[:1] or not features.numel():
        raise ValueError(
            f"{prefix}features need one label each, at least one, got features {tuple(features.shape)} and "
            f"labels {tuple(whole.shape)}"
        )
    if whole.min() < 0:
        raise ValueError(f"{prefix}labels must not be negative, got {whole.min()}")
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"{prefix}features hold nan or infinite numbers, first in row {bad.int().argmax()}, "
            f"in {bad.sum()} of {len(bad)} rows"
        )
    return whole


def _both_labels(
    train_features: Tensor,
    train_labels: Tensor | Sequence[int],
    test_features: Tensor,
    test_labels: Tensor | Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The labels of both sets. Raises a TypeError or ValueError unless the features are equally wide."""
    train_labels = _whole_labels("train_", train_features, train_labels)
    test_labels = _whole_labels("test_", test_features, test_labels)
    if train_features.shape[1] != test_features.shape[1]:
        shapes = f"{tuple(train_features.shape)} and {tuple(test_features.shape)}"
        raise ValueError(f"train and test features must have one width, got shapes {shapes}")
    return train_labels, test_labels


def _directions(features: Tensor) -> Tensor:
    """Rows of length one (b, d), in float32, however long or short they were; a row of zeros stays one."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    largest = features.abs().amax(dim=1, keepdim=True)  # taken out first: squares of 1e30 overflow
    features = features / largest.clamp(min=torch.finfo(features.dtype).tiny)
    return F.normalize(features.float(), dim=1)


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor | Sequence[int],
    test_features: Tensor,
    test_labels: Tensor | Sequence[int],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of test images that their nearest training images name right.

    Each of the k nearest by cosine votes for its class with the weight exp(cosine / temperature). Where there
    are fewer than k training images, all of them vote. Similarities are computed in float32, in chunks of
    about four million, so memory stays small.

    Args:
        train_features, test_features: (b, d), finite.
        train_labels, test_labels: (b,), whole numbers from 0 on.
        k: how many neighbours vote.
        temperature: how much nearness counts, above 0; small: the nearest alone, infinite: all alike.

    Returns:
        A share in 0 … 1.

    Raises:
        TypeError, ValueError: for features and labels that do not fit together or are not finite, k below 1,
            a temperature that is not positive.

    Source: Wu et al. 2018, section 3.4; Caron et al. 2021, section 3.2.

    Built in lesson 09.
    """
    train_labels, test_labels = _both_labels(train_features, train_labels, test_features, test_labels)
    require_at_least(1, k=k)
    require_between(0, math.inf, temperature=temperature)
    if temperature == 0:
        raise ValueError("temperature must be above 0")
    train, test = _directions(train_features), _directions(test_features)
    classes, rows = int(train_labels.max()) + 1, max(1, 2**22 // train.shape[0])
    right = 0
    with torch.autocast(train.device.type, enabled=False):  # cosines in bfloat16 would change neighbours
        for queries, labels in zip(test.split(rows), test_labels.split(rows), strict=True):
            similarity, nearest = (queries @ train.T).topk(min(k, train.shape[0]))
            # The nearest gets weight 1: a factor common to all votes of a row changes no winner.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            votes = weights.new_zeros(len(queries), classes).scatter_add_(1, train_labels[nearest], weights)
            right += int((votes.argmax(dim=1) == labels).sum())
    return right / test.shape[0]


_PENALTIES = tuple(10.0**power for power in range(1, -5, -1))


@torch.inference_mode(False)
@torch.enable_grad()
def logistic_regression(
    features: Tensor, labels: Tensor | Sequence[int], classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """The linear layer with the least mean cross-entropy + penalty / 2 · |weight|².

    Fitted to the end by L-BFGS in float64: no seed, no learning rate. Of the biases that fit, which differ by
    one number for all classes, it takes the one with the mean 0.

    Args:
        features: (b, d), finite.
        labels: (b,), whole numbers below `classes`.
        classes: c.
        penalty: the price of large weights, finite and not negative; the bias costs nothing.

    Returns:
        weight (c, d) and bias (c,), in float64; logits are features @ weight.T + bias.

    Raises:
        TypeError, ValueError: for features and labels that do not fit together or are not finite, and for
            another penalty.

    Source: Liu and Nocedal 1989, for L-BFGS.

    Built in lesson 09.
    """
    labels = _whole_labels("", features, labels).clone()  # a tensor of inference mode cannot be trained on
    require_at_least(1, classes=classes)
    _require_penalty(penalty)
    if labels.max() >= classes:
        raise ValueError(f"labels must be below {classes}, the number of classes, got {labels.max()}")
    features = features.detach().double()
    mean = features.mean(dim=0)
    features = features - mean
    variances, axes = torch.linalg.eigh(features.T @ features / features.shape[0])
    # Along these axes, each divided by the root of the curvature at zero weights, the bottom is round.
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
    weight = along_axes.detach() @ axes.T
    bias = bias.detach() - weight @ mean
    return weight, bias - bias.mean()


def _require_penalty(penalty: float) -> None:
    """Raise a TypeError or ValueError unless a penalty is a finite number that is not negative."""
    require_between(0, math.inf, penalty=penalty)
    if penalty == math.inf:
        raise ValueError("penalty must be finite, got inf")


def _standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All of these (…, d) in float64, with the mean of the first and each column divided by its spread."""
    # What varies by no more than one rounding of its own numbers weighs nothing, rather than being blown up.
    low, high = train.aminmax(dim=0)
    varies = high - low > torch.finfo(train.dtype).eps * torch.maximum(low.abs(), high.abs())
    mean, spread = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    spread = torch.where(varies, spread, torch.inf)
    return [(features.double() - mean) / spread for features in (train, *others)]


def _choose_penalty(features: Tensor, labels: Tensor, classes: int) -> float:
    """The penalty with the lowest loss on a held-out fifth of the training set."""
    if len(labels) < 5:
        raise ValueError(
            f"choosing the penalty needs at least 5 training images, got {len(labels)}; give a penalty"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[: len(labels) // 5], order[len(labels) // 5 :]
    fitted, judged = _standardised(features[kept], features[held_out])
    losses = {}
    for penalty in _PENALTIES:
        weight, bias = logistic_regression(fitted, labels[kept], classes, penalty)
        losses[penalty] = F.cross_entropy(judged @ weight.T + bias, labels[held_out]).item()
    return min(losses, key=losses.__getitem__)


@torch.no_grad()
def linear_probe(
    train_features: Tensor,
    train_labels: Tensor | Sequence[int],
    test_features: Tensor,
    test_labels: Tensor | Sequence[int],
    penalty: float | None = None,
) -> float:
    """The share of test images that one linear layer on frozen features names right.

    The layer is a logistic regression with an L2 penalty on standardised features, fitted to the end by
    L-BFGS in float64: no seed, no learning rate. A column that is constant in the training set, up to one
    rounding of its own type, weighs nothing. (Caron et al. 2021 train theirs by SGD.)

    Args:
        train_features, test_features: (b, d), finite.
        train_labels, test_labels: (b,), whole numbers from 0 on.
        penalty: the finite factor before |weight|² / 2 beside the mean cross-entropy; by default chosen on a
            fifth of the training set.

    Returns:
        A share in 0 … 1.

    Raises:
        TypeError, ValueError: for features and labels that do not fit together or are not finite, a penalty
            that is negative or infinite, or one to be chosen from fewer than 5 images.

    Source: Caron et al. 2021, section 3.2, for the measure.

    Built in lesson 09.
    """
    train_labels, test_labels = _both_labels(train_features, train_labels, test_features, test_labels)
    _require_penalty(0.0 if penalty is None else penalty)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    if penalty is None:
        penalty = _choose_penalty(train_features, train_labels, classes)
    known, queries = _standardised(train_features, test_features)
    weight, bias = logistic_regression(known, train_labels, classes, penalty)
    logits = queries @ weight.T + bias
    return (logits.argmax(dim=1) == test_labels).double().mean().item()


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """How many directions features use: e to the entropy of their singular values' shares.

    It is 1 where all rows are multiples of one row, and min(b, d) where all singular values are equal.
    Nothing is centred; of features without their mean, pass features - features.mean(dim=0).

    Args:
        features: (b, d), finite.

    Returns:
        A number in 1 … min(b, d); 0 where all features are zero.

    Raises:
        TypeError, ValueError: for other features.

    Source: Roy and Vetterli 2007; Garrido et al. 2023, RankMe, equation 1.

    Built in lesson 09.
    """
    require_floats("features", features, "b d")
    if not features.numel() or not features.isfinite().all():
        raise ValueError(f"features must be finite and at least one, got shape {tuple(features.shape)}")
    lengths = torch.linalg.svdvals(features.double())
    if not lengths.any():
        return 0.0
    return torch.special.entr(lengths / lengths.sum()).sum().exp().item()


def attention_masks(weights: Tensor, keep: float = 0.6) -> Tensor:
    """The fewest patches that together hold a share of the attention.

    Args:
        weights: rows of the class token over the patches (b, h, n), finite and not negative; they need not
            sum to one.
        keep: the share to hold, above 0 and up to 1.

    Returns:
        Booleans (b, h, n); a patch without weight is never kept.

    Raises:
        TypeError, ValueError: for other weights, a row without any weight, a share out of range.

    Source: Caron et al. 2021, section 4.2.2.

    Built in lesson 09.
    """
    require_floats("weights", weights, "b h n")
    require_between(0, 1, keep=keep)
    if keep == 0:
        raise ValueError("keep must be above 0")
    if not weights.shape[2]:
        raise ValueError(f"weights must hold at least one patch, got shape {tuple(weights.shape)}")
    weights = weights.double()
    if not (weights.isfinite() & (weights >= 0)).all() or not (weights.sum(dim=-1) > 0).all():
        raise ValueError(
            f"weights must be finite, must not be negative and each row must hold some, got weights in "
            f"{weights.min():.3g} … {weights.max():.3g} and a smallest sum of {weights.sum(dim=-1).min():.3g}"
        )
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    held_before = ordered.cumsum(dim=-1) - ordered
    # A share that is reached exactly is reached, whatever the last bit says.
    kept = held_before < keep * (1 - 1e-6) * ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def masks_to_pixels(masks: Tensor, grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """Blows each patch of a mask up to its pixels.

    Args:
        masks: over patches (b, h, n), in reading order.
        grid: (rows, columns) of the patches.
        patch_size: p or (p1, p2), in pixels.

    Returns:
        Masks over pixels (b, h, rows · p1, columns · p2).

    Raises:
        ValueError: where the patches do not fill the grid.

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
    """Pixels in both masks by pixels in either, also called intersection over union, IoU.

    Args:
        found, truth: booleans (…, h, w) of shapes that broadcast.

    Returns:
        (…), in 0 … 1; two empty masks agree: 1.

    Raises:
        TypeError, ValueError: for other masks.

    Source: Jaccard 1901.

    Built in lesson 09.
    """
    for name, masks in {"found": found, "truth": truth}.items():
        if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
            kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
            raise TypeError(f"{name} must be a bool tensor, got {kind}: compare it with a threshold")
    shapes = f"{tuple(found.shape)} and {tuple(truth.shape)}"
    if min(found.ndim, truth.ndim) < 2 or found.shape[-2:] != truth.shape[-2:]:
        raise ValueError(f"jaccard needs masks of one size, got {shapes}")
    try:
        torch.broadcast_shapes(found.shape, truth.shape)
    except RuntimeError as error:
        raise ValueError(f"jaccard needs masks of shapes that broadcast, got {shapes}") from error
    both, either = (found & truth).sum(dim=(-2, -1)), (found | truth).sum(dim=(-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _largest_part(masks: Tensor) -> Tensor:
    """Of each mask (b, h, w) the largest part whose pixels touch, also at corners; an empty one stays so."""
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
    masks: Tensor,
    scores: Tensor | Sequence[float] | None = None,
    labels: Tensor | Sequence[int] | None = None,
) -> list[dict[str, Tensor]]:
    """The box around the largest connected part of each mask, as detections in torchmetrics' form.

    Args:
        masks: booleans (b, h, w).
        scores: (b,), 1 by default.
        labels: (b,), int64, 0 by default.

    Returns:
        For each image a dictionary of boxes (m, 4), x0 y0 x1 y1 in pixels with x1 and y1 just outside, scores
        (m,) and labels (m,); m is 1, or 0 where the mask is empty.

    Raises:
        TypeError, ValueError: for other masks, scores or labels.

    Built in lesson 09.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3:
        kind = (tuple(masks.shape), masks.dtype) if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks must be a bool tensor (b, h, w), got {kind}")
    if 0 in masks.shape[1:]:
        raise ValueError(f"masks must hold at least one pixel, got shape {tuple(masks.shape)}")
    b = masks.shape[0]
    scores = torch.ones(b) if scores is None else torch.as_tensor(scores)
    labels = torch.zeros(b, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}")
    if scores.shape != (b,) or labels.shape != (b,):
        raise ValueError(
            f"{b} masks need as many scores and labels, got {tuple(scores.shape)}, {tuple(labels.shape)}"
        )

    def first_and_last(used: Tensor) -> tuple[Tensor, Tensor]:
        used = used.int()
        return used.argmax(dim=1), used.shape[1] - used.flip(1).argmax(dim=1)

    parts = _largest_part(masks)
    (x0, x1), (y0, y1) = first_and_last(parts.any(dim=1)), first_and_last(parts.any(dim=2))
    whole = {"boxes": torch.stack([x0, y0, x1, y1], dim=1).float(), "scores": scores, "labels": labels}
    some = masks.flatten(1).any(dim=1)
    of_images = {name: part.to(masks.device)[some].split(some.int().tolist()) for name, part in whole.items()}
    return [{name: parts[image] for name, parts in of_images.items()} for image in range(b)]


COCO_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


def mean_average_precision(
    detections: Sequence[dict[str, Tensor]],
    truths: Sequence[dict[str, Tensor]],
    iou_thresholds: float | Sequence[float] = COCO_THRESHOLDS,
) -> float:
    """Mean average precision of boxes, as COCO counts it, over classes and thresholds.

    Args:
        detections: for each image a dictionary of boxes (m, 4) x0 y0 x1 y1, scores (m,) and labels (m,),
            whole numbers; at most 100 of a class are counted.
        truths: the same without scores; all count, there are no crowds.
        iou_thresholds: overlaps from which a box is a hit; COCO's ten by default, (.5,) for AP50.

    Returns:
        A share in 0 … 1.

    Raises:
        TypeError, ValueError: for lists and dictionaries that do not fit, boxes or scores that are not
            finite, thresholds out of range, or no true box at all.

    Source: Lin et al. 2014; the average over 101 recalls is that of COCO's tools.

    Built in lesson 09.
    """
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} images with detections, but {len(truths)} with true boxes")
    for number, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        _require_boxes(f"detections[{number}]", found, ("boxes", "labels", "scores"))
        _require_boxes(f"truths[{number}]", truth, ("boxes", "labels"))
    thresholds = torch.as_tensor(iou_thresholds, dtype=torch.float64).flatten()
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"iou_thresholds must be overlaps above 0 and up to 1, got {iou_thresholds}")
    classes = torch.cat([image["labels"] for image in truths]).unique().tolist() if len(truths) else []
    if not classes:
        raise ValueError("mean average precision needs at least one true box")
    of_classes = [_average_precision(detections, truths, label, thresholds) for label in classes]
    return torch.stack(of_classes).mean().item()


def _require_boxes(name: str, image: dict[str, Tensor], keys: tuple[str, ...]) -> None:
    """Raise a TypeError or ValueError unless a dictionary holds boxes (m, 4) and as many of all else."""
    if not isinstance(image, dict) or not all(isinstance(image.get(key), Tensor) for key in keys):
        raise TypeError(f"{name} must be a dictionary of the tensors {', '.join(keys)}, got {image!r}"[:200])
    shapes = {key: tuple(image[key].shape) for key in keys}
    m = image["labels"].numel()
    if shapes["boxes"] != (m, 4) or any(shapes[key] != (m,) for key in keys[1:]):
        raise ValueError(f"{name} must hold boxes (m, 4) and m of the others, got {shapes}")
    if image["labels"].is_floating_point():
        raise TypeError(f"{name} must hold whole numbers as labels, got {image['labels'].dtype}")
    for key in keys:
        if not image[key].isfinite().all():
            raise ValueError(f"{name} must hold finite {key}, got {image[key].tolist()}")
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
    precision = torch.cat([precision, precision.new_zeros(1, len(thresholds))])  # of recalls never reached
    best = precision.flip(0).cummax(dim=0).values.flip(0)
    recalls = (torch.arange(101, dtype=torch.float64) / 100).expand(len(thresholds), -1).contiguous()
    first = torch.searchsorted((right / count).T.contiguous(), recalls)  # the rank that reaches each recall
    return best.T.gather(1, first).mean(dim=1)
