"""The instruments of lesson 09 give the numbers of their definitions: beside loops, scikit-learn, scikit-image and torchmetrics."""

import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from skimage.measure import label as connected_parts
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer
from torchvision.ops import masks_to_boxes

from vit_course import evaluation
from vit_course.cait import CaiT
from vit_course.distillation import DistilledViT
from vit_course.evaluation import (
    COCO_THRESHOLDS,
    attention_masks,
    boxes_from_masks,
    extract_features,
    jaccard,
    knn_accuracy,
    linear_probe,
    masks_to_pixels,
    mean_average_precision,
)
from vit_course.lab.data import boxes_around, shapes
from vit_course.lab.pretrained import adapt
from vit_course.max_vit import MaxViT
from vit_course.vit import SimpleViT, ViT
from vit_course.xcit import XCiT

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 64,
}
IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def blobs(
    seed: int = 0, train: int = 150, test: int = 90, d: int = 6, classes: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping clouds of points of very different lengths, as train and test features with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (train + test,), generator=generator)
    features = torch.randn(classes, d, generator=generator)[labels] + torch.randn(
        train + test, d, generator=generator
    )
    features *= 0.2 + 3 * torch.rand(train + test, 1, generator=generator)
    return features[:train], labels[:train], features[train:], labels[train:]


# ---- features --------------------------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """The least of a backbone that gives a map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, stride=4)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layer(images)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many class tokens it has
    "ViT": (lambda: ViT(**SMALL, dropout=0.5), 1),
    "ViT mean": (lambda: ViT(**SMALL, pool="mean"), 0),
    "SimpleViT": (lambda: SimpleViT(**SMALL), 0),
    "CaiT": (lambda: CaiT(**SMALL, cls_depth=1), 1),
    "XCiT": (lambda: XCiT(**{**SMALL, "patch_size": 8}), 1),
    "DistilledViT": (lambda: DistilledViT(**SMALL, dropout=0.5), 2),
    "MaxViT": (lambda: MaxViT(dim=16, depth=(1, 1), window_size=2, dim_head=8, num_classes=5), 0),
    "map": (Pyramid, 0),
    "timm": (
        lambda: adapt(
            timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=48, depth=1)
        ),
        1,
    ),
    "torchvision": (
        lambda: adapt(
            VisionTransformer(
                image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32, dropout=0.5
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_every_backbone(name: str) -> None:
    torch.manual_seed(0)
    build, prefix = BACKBONES[name]
    backbone = build().eval()
    with torch.no_grad():
        tokens = torch.cat([backbone.forward_features(image[None]) for image in IMAGES])
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    wanted = {"mean": tokens[:, prefix:].mean(dim=1), "patches": tokens[:, prefix:]}
    if prefix:
        wanted["cls"] = tokens[:, 0]
    backbone.train()
    for pool, features in wanted.items():
        found = extract_features(backbone, IMAGES, pool, batch_size=3)
        assert found.shape == features.shape and torch.allclose(found, features, atol=1e-4), pool
        assert not found.requires_grad
    assert torch.equal(
        extract_features(backbone, IMAGES), extract_features(backbone, IMAGES, "cls" if prefix else "mean")
    )
    if not prefix:
        with pytest.raises(ValueError, match="has no class token"):
            extract_features(backbone, IMAGES, "cls")


def test_every_part_is_put_back_into_its_own_mode_even_after_an_error() -> None:
    backbone = ViT(**SMALL, dropout=0.5).train()
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    extract_features(backbone, IMAGES)
    assert [module.training for module in backbone.modules()] == modes
    with pytest.raises(ValueError, match="not divisible"):
        extract_features(backbone, torch.zeros(2, 3, 15, 15))
    assert [module.training for module in backbone.modules()] == modes and len(set(modes)) == 2


def test_running_statistics_of_a_frozen_backbone_do_not_move() -> None:
    backbone = Pyramid()
    backbone.layer = nn.Sequential(backbone.layer, nn.BatchNorm2d(8))
    before = backbone.layer[1].running_mean.clone()
    extract_features(backbone.train(), IMAGES)
    assert torch.equal(before, backbone.layer[1].running_mean)


def test_batches_in_every_form_give_the_same_features() -> None:
    backbone = ViT(**SMALL)
    wanted = extract_features(backbone, IMAGES)
    loader = DataLoader(TensorDataset(IMAGES, torch.arange(7)), batch_size=2)
    for batches in (IMAGES.split(3), loader, iter([IMAGES[:4], IMAGES[4:]]), shapes_like(IMAGES)):
        assert torch.allclose(extract_features(backbone, batches), wanted, atol=1e-5)


def shapes_like(images: Tensor):
    yield from ((part, torch.zeros(len(part))) for part in images.split(5))


@pytest.mark.parametrize(
    "arguments, error, sentence",
    [
        ((lambda images: images, IMAGES), TypeError, "forward_features, got function"),
        ((nn.Linear(3, 3), IMAGES), TypeError, "got Linear; models of timm and torchvision"),
        ((ViT(**SMALL), IMAGES, "max"), ValueError, "pool must be .* got 'max'"),
        ((ViT(**SMALL), IMAGES, None, 0), ValueError, "batch_size must be at least 1, got 0"),
        ((ViT(**SMALL), (IMAGES * 255).byte()), TypeError, "divide bytes by 255"),
        ((ViT(**SMALL), IMAGES[0]), ValueError, r"got shape \(3, 16, 16\)"),
        ((ViT(**SMALL), []), ValueError, "no images"),
        ((ViT(**SMALL), ["path.png"]), TypeError, "path.png"),
    ],
)
def test_refused_by_extract_features(arguments: tuple, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        extract_features(*arguments)


# ---- neighbours ------------------------------------------------------------------------------------------------------------------------


def knn_by_loops(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    right = 0
    for asked, wanted in zip(test.double(), test_labels.tolist(), strict=True):
        cosines = [((feature @ asked) / (feature.norm() * asked.norm())).item() for feature in train.double()]
        votes = [0.0] * (int(labels.max()) + 1)
        for cosine, label in sorted(zip(cosines, labels.tolist(), strict=True), reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        right += votes.index(max(votes)) == wanted
    return right / len(test)


@pytest.mark.parametrize("k", [1, 2, 20, 150, 1000])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_neighbours_equal_a_loop_and_scikit_learn(k: int, temperature: float) -> None:
    for seed in range(3):
        data = blobs(seed)
        share = knn_accuracy(*data, k=k, temperature=temperature)
        assert share == pytest.approx(knn_by_loops(*data, k, temperature), abs=1e-9)
        judge = KNeighborsClassifier(
            min(k, 150), metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
        )
        train, labels, test, test_labels = (part.numpy() for part in data)
        assert share == pytest.approx(judge.fit(train, labels).score(test, test_labels), abs=1e-9)


def test_wrong_neighbours_would_show() -> None:
    """What the test above would not forgive: each of these moves the share by more than a picture."""
    train, labels, test, test_labels = data = blobs(0, train=300, test=400)
    right = knn_accuracy(*data)
    assert abs(right - knn_accuracy(*data, temperature=1e6)) > 0.01  # every vote alike
    assert abs(right - knn_accuracy(*data, k=1)) > 0.01
    lengths = (test @ train.T).topk(20).indices  # not normalised
    assert abs(right - (labels[lengths].mode().values == test_labels).double().mean().item()) > 0.01


def test_neighbours_in_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set larger than a chunk, and one smaller than the hundred chunks of the official code."""
    train, labels, test, test_labels = blobs(1, train=4000, test=3000)
    rows = []
    topk = Tensor.topk
    monkeypatch.setattr(Tensor, "topk", lambda self, k: rows.append(self.numel()) or topk(self, k))
    share = knn_accuracy(train, labels, test, test_labels)
    assert len(rows) > 1 and max(rows) <= 2**22 and sum(rows) == 4000 * 3000
    parts = [
        knn_accuracy(train, labels, test[i : i + 7], test_labels[i : i + 7]) * len(test[i : i + 7])
        for i in range(0, 3000, 7)
    ]
    assert share == pytest.approx(sum(parts) / 3000, abs=1e-3)


def test_neighbours_of_separate_blobs_and_of_itself_are_perfect() -> None:
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert knn_accuracy(features[:30], labels[:30], features[30:], labels[30:]) == 1.0
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    assert knn_accuracy(noise, labels, noise, labels, k=1) == 1.0


def test_scale_and_tiny_temperature_change_nothing() -> None:
    train, labels, test, test_labels = data = blobs(2)
    assert knn_accuracy(*data) == knn_accuracy(1e3 * train, labels, 1e-3 * test, test_labels)
    assert knn_accuracy(*data, temperature=1e-4) == pytest.approx(knn_accuracy(*data, k=1), abs=0.02)


def test_labels_that_training_never_saw_are_wrong_not_an_error() -> None:
    train, labels, test, test_labels = blobs(3)
    assert knn_accuracy(train, labels, test, test_labels + 50) == 0.0
    assert linear_probe(train, labels, test, test_labels + 50) == 0.0


# ---- linear probe ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01, 0.001])
def test_linear_probe_is_scikit_learns_logistic_regression(penalty: float) -> None:
    train, labels, test, test_labels = blobs(4, d=8)
    train, test = train + 5, test + 5
    scaler = StandardScaler().fit(train.double())
    judge = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=10_000)
    judge.fit(scaler.transform(train.double()), labels)
    weight, bias = evaluation._logistic_regression(train, labels, 4, penalty)
    ours = (test.double() @ weight.T + bias).softmax(dim=1)
    theirs = torch.tensor(judge.predict_proba(scaler.transform(test.double())))
    assert (ours - theirs).abs().max() < 2e-3
    assert linear_probe(train, labels, test, test_labels, penalty) == pytest.approx(
        judge.score(scaler.transform(test.double()), test_labels), abs=1.5 / len(test)
    )
    other, shift = evaluation._logistic_regression(train, labels, 4, 3 * penalty)
    assert ((test.double() @ other.T + shift).softmax(dim=1) - theirs).abs().max() > 1e-2


def test_linear_probe_is_deterministic_and_leaves_no_trace() -> None:
    data = blobs(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = linear_probe(*data)
    torch.manual_seed(7)
    assert linear_probe(*data) == first
    torch.set_rng_state(state)
    linear_probe(*data)
    assert torch.equal(state, torch.get_rng_state())


def test_penalty_is_chosen_without_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, test_labels = blobs(6)
    fitted = []
    original = evaluation._logistic_regression

    def spy(features: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        fitted.append(features)
        return original(features, *rest)

    monkeypatch.setattr(evaluation, "_logistic_regression", spy)
    linear_probe(train, labels, test, test_labels)
    known = {tuple(row) for row in train.tolist()}
    assert all({tuple(row) for row in features.tolist()} <= known for features in fitted)
    assert [len(features) for features in fitted[:-1]] == [120] * (len(fitted) - 1) and len(fitted[-1]) == 150
    assert linear_probe(train, labels, test.flip(0), test_labels.flip(0)) == pytest.approx(
        linear_probe(train, labels, test, test_labels)
    )


def test_noise_wants_a_strong_penalty_and_clean_features_a_weak_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 50, generator=generator)
    clean = noise.clone()
    clean[:, 0] = 5.0 * (2 * labels - 1) + noise[:, 0]
    assert evaluation._choose_penalty(noise, labels, 2) > 10 * evaluation._choose_penalty(clean, labels, 2)


def loud_and_faint() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features as random networks have them: loud directions hold noise, the classes are in faint ones."""
    generator = torch.Generator().manual_seed(0)
    loud = torch.randn(600, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    faint = torch.randn(600, 32, generator=generator)
    features, labels = loud + 0.1 * faint, faint[:, :5].argmax(dim=1)
    return features[:400], labels[:400], features[400:], labels[400:]


def test_penalty_is_found_behind_a_rise_of_the_loss() -> None:
    """From a penalty of 10 to 1 the held-out loss rises, far below them it is lowest."""
    data = loud_and_faint()
    assert linear_probe(*data, penalty=10.0) < 0.3 and linear_probe(*data, penalty=1.0) < 0.3
    assert linear_probe(*data) > 0.5


def test_few_steps_are_enough_where_features_vary_together(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, *_ = loud_and_faint()
    calls = []
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args: calls.append(1) or cross_entropy(*args))
    weight, bias = evaluation._logistic_regression(train, labels, 5, 1e-4)
    assert len(calls) < 40
    standard = StandardScaler().fit_transform(train.double())
    judge = LogisticRegression(C=1 / (1e-4 * len(train)), tol=1e-8, max_iter=10_000).fit(standard, labels)
    theirs = torch.tensor(judge.predict_proba(standard))
    assert ((train.double() @ weight.T + bias).softmax(dim=1) - theirs).abs().max() < 2e-3


def test_features_that_never_vary_do_no_harm() -> None:
    train, labels, test, test_labels = blobs(7)
    train, test = train.double(), test.double()  # in which the mean of 150 times 0.3 is not 0.3
    constant = torch.full((len(train), 1), 0.3, dtype=torch.float64)
    varying = 0.3 + torch.rand(len(test), 1, generator=torch.Generator().manual_seed(0)).double()
    with_constant = linear_probe(
        torch.cat([train, constant], dim=1), labels, torch.cat([test, varying], dim=1), test_labels
    )
    assert with_constant == pytest.approx(linear_probe(train, labels, test, test_labels), abs=1e-9)
    assert 0 <= linear_probe(torch.ones(20, 3), labels[:20], torch.ones(9, 3), test_labels[:9]) <= 1


BAD_FEATURES = {
    "a list": (lambda d: ([[1.0]], *d[1:]), TypeError, "train_features must be a tensor"),
    "whole numbers": (lambda d: (d[0].long(), *d[1:]), TypeError, "train_features must be floats"),
    "tokens": (lambda d: (d[0][None], *d[1:]), ValueError, r"axes \(b d\), got shape \(1, 150, 6\)"),
    "float labels": (
        lambda d: (d[0], d[1].float(), *d[2:]),
        TypeError,
        "train_labels must be an int64 tensor",
    ),
    "too few labels": (
        lambda d: (*d[:3], d[3][:5]),
        ValueError,
        r"test needs one label .* \(90, 6\) and labels \(5,\)",
    ),
    "no features": (lambda d: (d[0][:0], d[1][:0], *d[2:]), ValueError, "at least one"),
    "a negative label": (lambda d: (d[0], d[1] - 1, *d[2:]), ValueError, "must not be negative, got -1"),
    "other widths": (
        lambda d: (d[0], d[1], d[2][:, :4], d[3]),
        ValueError,
        r"one width, got shapes \(150, 6\) and \(90, 4\)",
    ),
    "nan": (
        lambda d: (d[0].index_fill(0, torch.tensor([3]), math.nan), *d[1:]),
        ValueError,
        "train_features hold nan .* row 3",
    ),
    "infinity": (
        lambda d: (*d[:2], d[2].index_fill(0, torch.tensor([8]), math.inf), d[3]),
        ValueError,
        "test_features .* row 8",
    ),
}


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features_are_named(measure: Callable, name: str) -> None:
    spoil, error, sentence = BAD_FEATURES[name]
    with pytest.raises(error, match=sentence):
        measure(*spoil(blobs()))


def test_bad_numbers_are_named() -> None:
    for changes, sentence in [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "got -1.0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            knn_accuracy(*blobs(), **changes)
    with pytest.raises(ValueError, match="penalty must be in 0 … inf, got -1.0"):
        linear_probe(*blobs(), penalty=-1.0)
    few = blobs(train=4)
    with pytest.raises(ValueError, match="at least 5 training images, got 4"):
        linear_probe(*few)
    assert 0 <= linear_probe(*few, penalty=0.1) <= 1


# ---- masks -----------------------------------------------------------------------------------------------------------------------------


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
    assert torch.equal(attention_masks(7 * weights, keep), masks)


def test_shares_reached_exactly_need_no_further_patch() -> None:
    assert attention_masks(torch.tensor([[[0.35, 0.25, 0.2, 0.2]]])).sum() == 2
    assert attention_masks(torch.full((1, 1, 10), 0.1)).sum() == 6
    assert attention_masks(torch.full((1, 1, 10), 0.1), keep=1.0).all()


def test_bad_weights_are_named() -> None:
    rows = torch.rand(2, 2, 9)
    for weights, keep, error, sentence in [
        (rows[0], 0.6, ValueError, r"axes \(b h n\), got shape \(2, 9\)"),
        (rows - 0.5, 0.6, ValueError, "must not be negative"),
        (rows * torch.tensor([[[1.0], [0.0]]]), 0.6, ValueError, "smallest sum of 0"),
        (rows * math.nan, 0.6, ValueError, "nan"),
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


def test_jaccard() -> None:
    generator = torch.Generator().manual_seed(0)
    found, truth = (torch.rand(5, 3, 7, 9, generator=generator) < 0.4 for _ in range(2))
    for picture in range(5):
        for head in range(3):
            a = {tuple(place) for place in found[picture, head].nonzero().tolist()}
            b = {tuple(place) for place in truth[picture, 0].nonzero().tolist()}
            assert jaccard(found, truth[:, :1])[picture, head] == pytest.approx(len(a & b) / len(a | b))
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert jaccard(nothing, nothing).tolist() == [1, 1] and jaccard(nothing, ~nothing).tolist() == [0, 0]
    with pytest.raises(TypeError, match="truth must be a bool tensor, got torch.int64"):
        jaccard(nothing, nothing.long())
    with pytest.raises(ValueError, match=r"one size, got \(2, 4, 4\) and \(2, 1, 16\)"):
        jaccard(nothing, nothing.view(2, 1, 16))


# ---- boxes -----------------------------------------------------------------------------------------------------------------------------


def test_largest_parts_are_scikit_images() -> None:
    generator = torch.Generator().manual_seed(0)
    for density in (0.1, 0.3, 0.45, 0.7):
        masks = torch.rand(40, 11, 17, generator=generator) < density
        for mask, part in zip(masks, evaluation._largest_part(masks), strict=True):
            numbers = torch.tensor(connected_parts(mask.numpy(), connectivity=2))
            assert not (part & ~mask).any() and len(numbers[part].unique()) == 1
            assert part.sum() == numbers[numbers > 0].bincount().max()
    spiral = torch.zeros(1, 9, 9, dtype=torch.bool)
    spiral[0, 0, :] = spiral[0, :, 8] = spiral[0, 8, :] = spiral[0, 2:, 0] = spiral[0, 2, :7] = True
    assert torch.equal(evaluation._largest_part(spiral), spiral)


def test_boxes_of_true_masks_are_the_labs_and_torchvisions() -> None:
    scenes = shapes("hard", "test", 200)
    found = torch.cat([image["boxes"] for image in boxes_from_masks(scenes.masks)])
    whole = evaluation._largest_part(scenes.masks) == scenes.masks
    whole = whole.flatten(1).all(dim=1)
    assert whole.float().mean() > 0.9 and torch.equal(found[whole], scenes.boxes[whole])
    parts = evaluation._largest_part(scenes.masks)
    assert torch.equal(found, boxes_around(parts))
    assert torch.equal(found - torch.tensor([0.0, 0.0, 1.0, 1.0]), masks_to_boxes(parts))


def test_stray_pixels_do_not_stretch_a_box_and_empty_masks_have_none() -> None:
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[0, 9, 11] = True
    masks[1, 4, 4] = True
    found = boxes_from_masks(masks, torch.tensor([0.5, 0.6, 0.7]), torch.tensor([3, 4, 5]))
    assert found[0]["boxes"].tolist() == [[3, 2, 9, 5]] and found[1]["boxes"].tolist() == [[4, 4, 5, 5]]
    assert [image["boxes"].shape[0] for image in found] == [1, 1, 0]
    assert [image["labels"].tolist() for image in found] == [[3], [4], []]
    assert found[1]["scores"].tolist() == pytest.approx([0.6]) and found[2]["scores"].shape == (0,)
    for bad, error, sentence in [
        ((masks.float(),), TypeError, "must be a bool tensor"),
        ((masks[0],), TypeError, r"got \(\(10, 12\)"),
        ((masks, torch.ones(2)), ValueError, r"3 masks need as many scores and labels, got \(2,\)"),
    ]:
        with pytest.raises(error, match=sentence):
            boxes_from_masks(*bad)


# ---- mean average precision ------------------------------------------------------------------------------------------------------------


def torchmetrics_says(detections: list, truths: list, thresholds: tuple[float, ...]) -> float:
    """torchmetrics' number: of its COCO backend where one is installed, else of its older form in plain PyTorch.

    The older form asks for pycocotools, which it needs for masks only, and counts overlaps above a threshold where COCO counts them from
    it on. Recalls are handed over in full precision: torchmetrics' own are float32.
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
    """Some images with true boxes of three classes, and detections near them, beside them, of four classes, some with equal scores."""
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
OBJECT = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "labels": torch.tensor([0])}


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
    """As pycocotools decides it: the first box takes the second object, and the second box then finds none."""
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


def test_bad_lists_are_named() -> None:
    good = one_box(1.0, 1.0)
    for found, objects, thresholds, error, sentence in [
        ([good], [], (0.5,), ValueError, "1 images with detections, but 0 with true boxes"),
        ([], [], (0.5,), ValueError, "at least one true box"),
        ([NOTHING], [NOTHING], (0.5,), ValueError, "at least one true box"),
        ([OBJECT], [OBJECT], (0.5,), TypeError, r"detections\[0\] must be a dictionary .* scores"),
        ([good], [[0, 0, 1, 1]], (0.5,), TypeError, r"truths\[0\] must be a dictionary"),
        ([good | {"boxes": good["boxes"][0]}], [OBJECT], (0.5,), ValueError, r"detections\[0\] must hold boxes \(m, 4\)"),
        ([good | {"scores": torch.ones(2)}], [OBJECT], (0.5,), ValueError, r"'scores': \(2,\)"),
        ([good], [OBJECT | {"boxes": good["boxes"].flip(1)}], (0.5,), ValueError, "x0 <= x1"),
        ([good], [OBJECT], (50,), ValueError, r"above 0 and up to 1, got \(50,\)"),
        ([good], [OBJECT], (), ValueError, r"got \(\)"),
    ]:  # fmt: skip
        with pytest.raises(error, match=sentence):
            mean_average_precision(found, objects, thresholds)


# ---- together --------------------------------------------------------------------------------------------------------------------------


def test_chance_level_of_a_mask_that_knows_nothing() -> None:
    """The formula of the lesson: 1 / (1/m + 1/a - 1)."""
    generator = torch.Generator().manual_seed(0)
    truth, found = (torch.rand(20, 200, 200, generator=generator) < share for share in (0.21, 0.6))
    assert jaccard(found, truth).mean().item() == pytest.approx(1 / (1 / 0.21 + 1 / 0.6 - 1), abs=0.005)


def test_baselines_of_the_scenes() -> None:
    """Grey pixels without their mean are far above chance by neighbours, a random backbone is not: the floor of lessons 10 to 12."""
    train, test = shapes("default", "train", 2000), shapes("default", "test", 1000)
    grey = [scenes.images.mean(dim=1).flatten(1) for scenes in (train, test)]
    grey = [part - part.mean(dim=1, keepdim=True) for part in grey]
    torch.manual_seed(0)
    backbone = SimpleViT(image_size=32, patch_size=8, num_classes=0, dim=32, depth=1, heads=2, mlp_dim=32)
    random = [extract_features(backbone, scenes.images) for scenes in (train, test)]
    pixels, untrained = (
        knn_accuracy(parts[0], train.labels, parts[1], test.labels) for parts in (grey, random)
    )
    assert pixels > 0.28 and untrained < 0.2
    assert knn_accuracy(
        F.normalize(grey[0]), train.labels, F.normalize(grey[1]), test.labels
    ) == pytest.approx(pixels, abs=0.01)
