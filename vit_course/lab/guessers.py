"""Guessers of hidden colours that need no network: the ladder that masked patch prediction has to climb.

    rungs = guessers.ladder(train.images, test.images, draw, patch_size=4)
    rungs["the patch beside it"].cost, rungs["the patch beside it"].right

Each guesser is a table, counted on the training images: how often does each colour occur where this or that
is seen? The more a guesser may look at, the less it pays (lesson 12, section Maths).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_course.mpp import Corruption, draw_corruption, mean_colour_labels
from vit_course.patching import patch_grid

BITS, COLOURS = 3, 512
WEIGHT = 100.0  # labels of the prior that each row of a table is mixed with: none ever says "impossible"


class Rung(NamedTuple):
    """What a guesser reaches on hidden patches.

    Attributes:
        cost: mean cross-entropy, in nats.
        right: share of patches whose colour it names exactly, in 0 … 1.
    """

    cost: float
    right: float


def hide(b: int, n: int, seed: int) -> Corruption:
    """Draw half of the n patches of b images, all of them to be masked."""
    generator = torch.Generator().manual_seed(seed)
    return draw_corruption(b, n, replace_prob=1.0, random_patch_prob=0.0, generator=generator)


def surroundings(images: Tensor, draw: Corruption, patch_size: int) -> Tensor:
    """The label of the mean colour of the visible ones among the eight patches around each patch.

    Where none is visible it is the mean of all visible patches of the image.

    Args:
        images: (b, 3, h, w) in 0 … 1.
        draw: which patches are hidden.
        patch_size: p, in pixels.

    Returns:
        int64 (b, n).
    """
    rows, columns = patch_grid(images.shape[-2:], patch_size)
    visible = torch.ones(len(images), rows * columns).scatter(1, draw.index, 0.0).view(-1, 1, rows, columns)
    colours = F.avg_pool2d(images, patch_size) * visible
    around = torch.ones(1, 1, 3, 3)
    around[..., 1, 1] = 0
    count = F.conv2d(visible, around, padding=1)
    total = F.conv2d(colours, around.expand(3, -1, -1, -1), padding=1, groups=3)
    anywhere = colours.sum(dim=(2, 3), keepdim=True) / visible.sum(dim=(2, 3), keepdim=True)
    mean = torch.where(count > 0, total / count.clamp(min=1), anywhere)
    return mean_colour_labels(mean, 1, BITS)


def beside(labels: Tensor) -> Tensor:
    """The label of the patch to the left of each, in the first column of the one to the right.

    Args:
        labels: (b, rows, columns).
    """
    return torch.cat([labels[:, :, 1:2], labels[:, :, :-1]], dim=2)


def table_cost(
    known: Tensor, answers: Tensor, new_known: Tensor, new_answers: Tensor, prior: Tensor
) -> float:
    """Cross-entropy of the table P(answer | known), counted on pairs and tried on new ones.

    Args:
        known, answers: labels of what is seen and of what was asked, of one shape.
        new_known, new_answers: the same of new pairs.
        prior: (COLOURS,), the frequencies that each row is mixed with, as much as `WEIGHT` pairs.

    Returns:
        The mean over the new pairs, in nats.
    """
    pairs = (COLOURS * known + answers).flatten()
    counts = pairs.bincount(minlength=COLOURS**2).view(COLOURS, COLOURS).double()
    table = (counts + WEIGHT * prior) / (counts.sum(dim=1, keepdim=True) + WEIGHT)
    return -table[new_known, new_answers].log().mean().item()


def ladder(train: Tensor, test: Tensor, draw: Corruption, patch_size: int, seed: int = 1) -> dict[str, Rung]:
    """What guessers reach that understand more and more, on the same hidden patches.

    Args:
        train, test: images (b, 3, h, w) in 0 … 1, to count on and to be asked about.
        draw: the hidden patches of the test images.
        patch_size: p, in pixels.
        seed: of what is hidden in the training images, for the table of surroundings.

    Returns:
        Rungs by name: no idea; the frequencies of colours; the patch beside it, which may itself be hidden;
        the surroundings, of which only visible patches count. The last two name the colour that they see.
    """
    rows, columns = patch_grid(test.shape[-2:], patch_size)
    train_labels, test_labels = (mean_colour_labels(images, patch_size, BITS) for images in (train, test))
    truth = test_labels.gather(1, draw.index)
    prior = (train_labels.flatten().bincount(minlength=COLOURS) + 0.1).double()
    prior = prior / prior.sum()
    train_draw = hide(len(train), rows * columns, seed)
    seen = {
        "the patch beside it": [
            beside(labels.view(-1, rows, columns)).flatten(1) for labels in (train_labels, test_labels)
        ],
        "the surroundings": [
            surroundings(images, of, patch_size) for images, of in ((train, train_draw), (test, draw))
        ],
    }
    rungs = {
        "no idea": Rung(math.log(COLOURS), 1 / COLOURS),
        "the frequencies": Rung(-prior[truth].log().mean().item(), _share(truth == prior.argmax())),
    }
    for name, (known, new_known) in seen.items():
        answers, at_hidden = train_labels, new_known.gather(1, draw.index)
        if name == "the surroundings":  # counted where training patches are hidden, as they are asked
            known, answers = (labels.gather(1, train_draw.index) for labels in (known, answers))
        rungs[name] = Rung(table_cost(known, answers, at_hidden, truth, prior), _share(at_hidden == truth))
    return rungs


def _share(right: Tensor) -> float:
    return right.float().mean().item()
