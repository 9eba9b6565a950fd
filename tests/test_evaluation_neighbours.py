"""The vote of the nearest neighbours is that of its formula, at any scale and in any type of number."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from support.features import blobs
from torch import Tensor

from vit_course.evaluation import extract_features, knn_accuracy
from vit_course.lab.data import shapes
from vit_course.vit import SimpleViT


def knn_by_loops(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    right = 0
    for query, wanted in zip(test.double(), test_labels.tolist(), strict=True):
        cosines = [((feature @ query) / (feature.norm() * query.norm())).item() for feature in train.double()]
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


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_lengths_whose_square_no_float_holds_are_lengths_all_the_same(scale: float) -> None:
    train, labels, test, test_labels = data = blobs(1)
    assert knn_accuracy(scale * train, labels, scale * test, test_labels) == knn_accuracy(*data) > 0.8
    assert knn_accuracy(scale * train, labels, test, test_labels) == knn_accuracy(*data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_types_are_compared_in_float32(dtype: torch.dtype) -> None:
    train, labels, test, test_labels = blobs(3, train=600, test=800, classes=12)
    train, test = 1e4 * train.to(dtype), 1e4 * test.to(dtype)  # float16 ends at 65,504
    keep = train.isfinite().all(dim=1), test.isfinite().all(dim=1)
    sets = train[keep[0]], labels[keep[0]], test[keep[1]], test_labels[keep[1]]
    assert min(mask.sum() for mask in keep) > 300
    in_float32 = sets[0].float(), sets[1], sets[2].float(), sets[3]
    assert knn_accuracy(*sets) == pytest.approx(knn_accuracy(*in_float32), abs=1e-9)


def test_autocast_changes_no_neighbour() -> None:
    for seed in range(3):
        data = blobs(seed, train=600, test=800, classes=12)
        with torch.autocast("cpu", torch.bfloat16):
            share = knn_accuracy(*data)
        assert share == knn_accuracy(*data)


def test_labels_that_training_never_saw_are_wrong_not_an_error() -> None:
    train, labels, test, test_labels = blobs(3)
    assert knn_accuracy(train, labels, test, test_labels + 50) == 0.0


def test_bad_numbers_are_named() -> None:
    for changes, sentence in [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"temperature": math.nan}, "got nan"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            knn_accuracy(*blobs(), **changes)


def test_baselines_of_the_scenes() -> None:
    """By neighbours grey pixels without their mean are far above chance, a random backbone is not."""
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
