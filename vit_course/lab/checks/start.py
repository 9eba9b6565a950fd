"""Exercises of lesson 00."""

import torch
from torch import Tensor

from .exercise import Exercise, Mistake

GENERATOR = torch.Generator().manual_seed(0)


def count_patches(height: int, width: int, patch_size: int) -> int:
    return (height // patch_size) * (width // patch_size)


def share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).float().mean().item()


def share_on_object(weights: Tensor, covered: Tensor) -> Tensor:
    to_patches = weights.mean(dim=1)[:, 0, 1:]
    to_patches = to_patches / to_patches.sum(dim=1, keepdim=True)
    return (to_patches * covered).sum(dim=1)


def most_received_patch(weights: Tensor) -> int:
    return int(weights.mean(dim=0)[1:, 1:].mean(dim=0).argmax())


def surplus_confidence(logits: Tensor, labels: Tensor) -> float:
    sure = logits.softmax(dim=1).amax(dim=1).mean().item()
    return sure - share_right(logits, labels)


def _naming_case(n: int) -> tuple[Tensor, Tensor]:
    """Logits of n pictures for n classes, so that an argmax along the wrong axis runs; and the labels."""
    labels = torch.arange(n) - torch.arange(n) % 3
    logits = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(n), labels] += 2.0
    return logits, labels


def _object_case(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights of two pictures in which heads and rows differ, and how much of each patch is object."""
    n = 1 + rows * columns
    weights = torch.rand(2, 3, n, n, generator=GENERATOR)
    weights[:, 0, 0, 0] += 5.0
    weights[:, 1, 0, n // 2 :] += 1.0
    weights[:, 2, 1, :] += 2.0
    return weights / weights.sum(dim=-1, keepdim=True), torch.rand(2, n - 1, generator=GENERATOR).round(
        decimals=1
    )


def _received_case(n: int, most: int, by_class_token: int, giver: int) -> tuple[Tensor]:
    """Weights of two heads: patches take most from one, the class token from another, one patch from all."""
    weights = torch.rand(2, n, n, generator=GENERATOR)
    weights[:, 1:, 1 + most] += 1.5
    weights[:, 1:, 0] += 4.0
    weights[:, 0, 1 + by_class_token] += 60.0
    weights[0, 1:, n - 1] += 2.0
    weights = weights / weights.sum(dim=-1, keepdim=True)
    weights[:, 1 + giver, 1:] += 0.05 / n
    return (weights,)


EXERCISES = [
    Exercise(
        name="count_patches",
        solution=count_patches,
        cases=((32, 32, 8), (224, 224, 16), (32, 48, 8), (8, 24, 8)),
        praise="Rows times columns: that is the number of tokens the model works on.",
        mistakes={
            "added": Mistake(
                lambda height, width, patch_size: height // patch_size + width // patch_size,
                lambda answer: (
                    f"You counted {answer} patches in a 32 by 32 image cut into 8 by 8. Rows and columns "
                    "multiply: 4 rows of 4 are 16."
                ),
            ),
            "patch side once": Mistake(
                lambda height, width, patch_size: height * width // patch_size,
                "You divided the pixels by patch_size once. A patch is patch_size high and patch_size "
                "wide, so divide by its square.",
            ),
            "square": Mistake(
                lambda height, width, patch_size: (height // patch_size) ** 2,
                "That is right for square images only: the width counts too.",
            ),
            "a float": Mistake(
                lambda height, width, patch_size: height / patch_size * width / patch_size,
                lambda answer: (
                    f"{answer} is the right number as a float; patches are counted in whole numbers, so "
                    "divide with //."
                ),
            ),
        },
    ),
    Exercise(
        name="share_right",
        solution=share_right,
        cases=(_naming_case(20), (torch.tensor([[-5.5, -7.0, -4.5, -6.0]]), torch.tensor([2]))),
        praise="The scores themselves do not matter, only which one is the largest.",
        mistakes={
            "wrong axis": Mistake(
                lambda logits, labels: (logits.argmax(dim=0) == labels).float().mean().item(),
                "argmax ran over the images (dim=0). For each image, take the best class: dim=1.",
            ),
            "no axis": Mistake(
                lambda logits, labels: (logits.argmax() == labels).float().mean().item(),
                "Without an axis, argmax gives one place in the whole table. For each image, take the best "
                "class: dim=1.",
            ),
            "the score": Mistake(
                lambda logits, labels: (logits.amax(dim=1) == labels).float().mean().item(),
                "You compared the largest score itself with the label. The guess is the place of that "
                "score, which argmax gives.",
            ),
            "a count": Mistake(
                lambda logits, labels: (logits.argmax(dim=1) == labels).float().sum().item(),
                lambda answer: (
                    f"You returned {answer:g}, the number of right answers; divide it by the number of "
                    "images."
                ),
            ),
            "a percentage": Mistake(
                lambda logits, labels: 100 * share_right(logits, labels),
                lambda answer: f"You returned {answer:.0f}, a percentage. A share lies between 0 and 1.",
            ),
            "errors": Mistake(
                lambda logits, labels: 1 - share_right(logits, labels),
                "That is the share of wrong answers: one minus it is what you want.",
            ),
        },
    ),
    Exercise(
        name="share_on_object",
        solution=share_on_object,
        cases=(_object_case(3, 4), _object_case(4, 4)),
        praise="A share of what goes to patches: 0 would be all background, 1 all object.",
        mistakes={
            "class token counted": Mistake(
                lambda weights, covered: (weights.mean(dim=1)[:, 0, 1:] * covered).sum(dim=1),
                "What the class token takes from itself still counts in your total: divide the weights on "
                "patches by their own sum first.",
            ),
            "one sum for all": Mistake(
                lambda weights, covered: (
                    weights.mean(dim=1)[:, 0, 1:] / weights.mean(dim=1)[:, 0, 1:].sum() * covered
                ).sum(dim=1),
                "You divided by the sum over all pictures. Each picture has its own: "
                "sum(dim=1, keepdim=True).",
            ),
            "share of the object": Mistake(
                lambda weights, covered: (
                    (weights.mean(dim=1)[:, 0, 1:] * covered).sum(dim=1) / covered.sum(dim=1)
                ),
                "You divided by how much object there is; divide by the sum of the weights on patches.",
            ),
            "one head": Mistake(
                lambda weights, covered: share_on_object(weights[:, :1], covered),
                "That is the first head alone; average over the heads.",
            ),
            "column": Mistake(
                lambda weights, covered: (
                    weights.mean(dim=1)[:, 1:, 0]
                    / weights.mean(dim=1)[:, 1:, 0].sum(dim=1, keepdim=True)
                    * covered
                ).sum(dim=1),
                "You read the column of the class token: what each patch takes from it. What it takes itself "
                "stands in its row.",
            ),
            "heads last": Mistake(
                lambda weights, covered: (
                    (weights[:, :, 0, 1:] / weights[:, :, 0, 1:].sum(dim=-1, keepdim=True) * covered[:, None])
                    .sum(dim=-1)
                    .mean(dim=1)
                ),
                "You divided within each head and averaged afterwards; average over the heads first, then "
                "divide once.",
            ),
            "a mean": Mistake(
                lambda weights, covered: share_on_object(weights, covered) / covered.shape[1],
                "You took the mean over the patches. The weights are shares already, so their products with "
                "`covered` are added up.",
            ),
            "all pictures": Mistake(
                lambda weights, covered: share_on_object(weights, covered).mean(),
                "That is one number, the mean over the pictures; return one for each picture, shape (b,).",
            ),
        },
    ),
    Exercise(
        name="most_received_patch",
        solution=most_received_patch,
        cases=(
            _received_case(13, most=7, by_class_token=2, giver=4),
            _received_case(10, most=0, by_class_token=5, giver=8),
            _received_case(17, most=11, by_class_token=15, giver=3),
            (torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(1)),),
        ),
        praise="A column says who is attended to; a row, who attends.",
        mistakes={
            "rows, the class token's too": Mistake(
                lambda weights: int(weights.mean(dim=0)[:, 1:].mean(dim=1).argmax()),
                "Two things: you averaged each row, which is what a token takes, and the row of the class "
                "token is among them.",
            ),
            "rows": Mistake(
                lambda weights: int(weights.mean(dim=0)[1:, 1:].mean(dim=1).argmax()),
                "You averaged each row, which is what a patch takes. What it receives stands in its column: "
                "average over the rows (dim=0).",
            ),
            "class token attends": Mistake(
                lambda weights: int(weights.mean(dim=0)[:, 1:].mean(dim=0).argmax()),
                "The row of the class token is still among those that you average; only patches count here.",
            ),
            "class token receives": Mistake(
                lambda weights: int(weights.mean(dim=0)[1:].mean(dim=0).argmax()),
                "The column of the class token is still among the answers, so the numbers are one too high, "
                "or 0 for the class token itself.",
            ),
            "number of the token": Mistake(
                lambda weights: most_received_patch(weights) + 1,
                "That is the number of its token. Patches are counted without the class token: patch 0 is "
                "token 1.",
            ),
            "one head": Mistake(
                lambda weights: int(weights[0, 1:, 1:].mean(dim=0).argmax()),
                "That is the first head alone; average over the heads.",
            ),
        },
    ),
    Exercise(
        name="surplus_confidence",
        solution=surplus_confidence,
        cases=(
            (3 * torch.randn(60, 8, generator=GENERATOR), torch.randint(8, (60,), generator=GENERATOR)),
            (torch.eye(5)[[0, 1, 2, 3, 4, 0]] * 2, torch.tensor([0, 1, 2, 3, 4, 1])),
        ),
        praise="Above 0 the model is surer than it is right; below 0 it is more often right than it is sure.",
        mistakes={
            "the other way round": Mistake(
                lambda logits, labels: -surplus_confidence(logits, labels),
                "The sign is the wrong way round: confidence minus accuracy.",
            ),
            "confidence alone": Mistake(
                lambda logits, labels: logits.softmax(dim=1).amax(dim=1).mean().item(),
                "That is the mean confidence; now subtract the accuracy.",
            ),
            "surest picture": Mistake(
                lambda logits, labels: logits.softmax(dim=1).max().item() - share_right(logits, labels),
                "You took the largest probability of all pictures. Take the largest of each, then the mean.",
            ),
            "chance of the truth": Mistake(
                lambda logits, labels: (
                    logits.softmax(dim=1).gather(1, labels[:, None]).mean().item()
                    - share_right(logits, labels)
                ),
                "You took the probability of the true class. Confidence is the largest probability, whether "
                "or not that guess is right.",
            ),
            "no softmax": Mistake(
                lambda logits, labels: logits.amax(dim=1).mean().item() - share_right(logits, labels),
                "The largest logit is no probability: a softmax over the classes comes first.",
            ),
            "softmax over pictures": Mistake(
                lambda logits, labels: (
                    logits.softmax(dim=0).amax(dim=1).mean().item() - share_right(logits, labels)
                ),
                "Your softmax runs over the pictures (dim=0); the classes of one picture stand along dim=1.",
            ),
        },
    ),
]
