"""How hard the levels of `vit_course.lab.data.shapes` are for methods that learn no features: the table of
`scenes.py`.

    python benchmarks/calibrate_shapes.py

Every accuracy is in per cent, from 5,000 training and 2,000 test scenes; chance is 10. Nothing here is
trained on more than pixels: these are the numbers that a representation has to beat. Under a minute on one
core.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from vit_course.lab.data import LEVELS, ImageSet, normalise, shapes

TRAIN, TEST = 5_000, 2_000


def grey(images: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, h·w): the mean of the three colours."""
    return images.mean(1).flatten(1)


def without_mean(features: Tensor) -> Tensor:
    """Take each image's own mean away."""
    return features - features.mean(1, keepdim=True)


def colour_histogram(images: Tensor, bins: int = 4) -> Tensor:
    """(b, 3, h, w) -> (b, bins³): the share of pixels in each box of colour space."""
    red, green, blue = (images * bins).long().clamp_max(bins - 1).flatten(2).unbind(1)
    box = (red * bins + green) * bins + blue
    return torch.zeros(len(images), bins**3).scatter_add_(1, box, torch.ones(box.shape)) / box.shape[1]


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Weighted nearest neighbours by cosine, as in the DINO paper; in per cent."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    similarity, neighbours = (test @ train.T).topk(k)
    votes = torch.zeros(len(test), 10).scatter_add_(
        1, train_labels[neighbours], (similarity / temperature).exp()
    )
    return 100 * (votes.argmax(1) == test_labels).float().mean().item()


def linear(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Least squares on standardised features with a little weight decay, in per cent."""
    mean, std = train.mean(0), train.std(0) + 1e-5
    model = RidgeClassifier(alpha=1000).fit((train - mean) / std, train_labels)
    return 100 * model.score((test - mean) / std, test_labels)


def area_alone(train: ImageSet, test: ImageSet) -> float:
    """50 nearest neighbours on one number, the share of object pixels; in per cent."""
    area = [images.masks.float().mean((1, 2))[:, None].numpy() for images in (train, test)]
    return 100 * KNeighborsClassifier(50).fit(area[0], train.labels).score(area[1], test.labels)


def threshold_iou(images: ImageSet, method: str) -> float:
    """Mean overlap of what is brighter than a threshold with the true mask.

    Args:
        images: with masks.
        method: how the threshold of an image is chosen, "mean" or "otsu"; neither looks at the mask.
    """
    brightness = images.images.mean(1)
    threshold = brightness.mean((1, 2)) if method == "mean" else otsu(brightness)
    found = brightness > threshold[:, None, None]
    return ((found & images.masks).sum((1, 2)) / (found | images.masks).sum((1, 2))).mean().item()


def otsu(brightness: Tensor, bins: int = 64) -> Tensor:
    """(b, h, w) -> (b,): the threshold that parts each image's brightness into two groups with the means
    farthest apart.

    Source: Otsu 1979.
    """
    edges = torch.linspace(0, 1, bins + 1)[1:]
    below = (brightness.flatten(1)[:, None] < edges[:, None]).float()  # b, bins, pixels
    share = below.mean(2)
    sum_below = (below * brightness.flatten(1)[:, None]).mean(2)
    mean = brightness.mean((1, 2))[:, None]
    between = (mean * share - sum_below) ** 2 / (share * (1 - share)).clamp_min(1e-6)
    return edges[between.argmax(1)]


def measure(level: str) -> dict[str, float]:
    """One column of the table."""
    train, test = shapes(level, "train", TRAIN), shapes(level, "test", TEST)
    y, y_test = train.labels, test.labels
    a, b = train.images, test.images
    area = train.masks.float().mean((1, 2))
    by_class = torch.stack([area[y == k].mean() for k in range(10)])
    start = time.process_time()
    shapes(level, "train", TRAIN, seed=1)
    rate = TRAIN / (time.process_time() - start)
    return {
        "grey pixels, image mean removed, kNN": knn(without_mean(grey(a)), y, without_mean(grey(b)), y_test),
        "grey pixels, kNN": knn(grey(normalise(a)), y, grey(normalise(b)), y_test),
        "colour pixels, kNN": knn(normalise(a).flatten(1), y, normalise(b).flatten(1), y_test),
        "grey pixels, linear": linear(grey(a), y, grey(b), y_test),
        "colour pixels, linear": linear(a.flatten(1), y, b.flatten(1), y_test),
        "colour histogram, kNN": knn(colour_histogram(a), y, colour_histogram(b), y_test),
        "colour histogram, linear": linear(colour_histogram(a), y, colour_histogram(b), y_test),
        "object area alone": area_alone(train, test),
        "brightness above Otsu's threshold, IoU": threshold_iou(test, "otsu"),
        "brightness above the image's mean, IoU": threshold_iou(test, "mean"),
        "object area, share of the picture": area.mean().item(),
        "object area, smallest class / largest": (by_class.min() / by_class.max()).item(),
        "scenes a second on one core": rate,
    }


def main() -> None:
    """Measure all levels and print the table."""
    torch.set_num_threads(1)
    columns = {level: measure(level) for level in LEVELS}
    print(f"{'':40}" + "".join(f"{level:>9}" for level in columns))
    for row in columns["easy"]:
        decimals = 0 if "second" in row else 2 if "IoU" in row or row.startswith("object area,") else 1
        print(f"{row:40}" + "".join(f"{column[row]:9.{decimals}f}" for column in columns.values()))


if __name__ == "__main__":
    main()
