"""Exercises of lesson 00."""

import torch
from torch import Tensor

from .exercise import Exercise, Mistake

GENERATOR = torch.Generator().manual_seed(0)


def count_patches(height: int, width: int, patch_size: int) -> int:
    return (height // patch_size) * (width // patch_size)


def share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).float().mean().item()


def most_attended_patch(weights: Tensor, rows: int, columns: int) -> tuple[int, int]:
    return divmod(int(weights.mean(dim=0)[0, 1:].argmax()), columns)


def _attention_case(rows: int, columns: int, patch: int) -> tuple[Tensor, int, int]:
    """Weights of three heads whose mean takes most from one patch, and one head alone from another."""
    n = 1 + rows * columns
    weights = torch.rand(3, n, n, generator=GENERATOR)
    weights[:, 0, 0] = 3.0
    weights[:, 0, 1 + patch] += 1.5
    weights[0, 0, n - 1] += 2.5
    weights[:, 2, 0] += 4.0
    return weights / weights.sum(dim=-1, keepdim=True), rows, columns


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
        cases=(
            (torch.randn(50, 10, generator=GENERATOR), torch.randint(10, (50,), generator=GENERATOR)),
            (torch.eye(4)[[0, 1, 2, 3, 0, 1]] - 5, torch.tensor([0, 1, 2, 0, 0, 1])),
        ),
        praise="The scores themselves do not matter, only which one is the largest.",
        mistakes={
            "wrong axis": Mistake(
                lambda logits, labels: (
                    (logits.argmax(dim=0)[: len(labels)] == labels[: logits.shape[1]]).float().mean().item()
                ),
                "argmax ran over the images (dim=0). For each image, take the best class: dim=1.",
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
        name="most_attended_patch",
        solution=most_attended_patch,
        cases=(
            _attention_case(4, 6, patch=8),
            _attention_case(3, 5, patch=11),
            _attention_case(5, 5, patch=3),
        ),
        praise=(
            "Row 0 asks, its first entry is the class token itself, and the rest is a grid in reading order."
        ),
        mistakes={
            "column": Mistake(
                lambda weights, rows, columns: divmod(weights.mean(dim=0)[1:, 0].argmax().item(), columns),
                "You read column 0: which patch takes most from the class token. The one that asks stands "
                "in the row.",
            ),
            "class token counted": Mistake(
                lambda weights, rows, columns: divmod(weights.mean(dim=0)[0].argmax().item(), columns),
                "You left the class token among the patches, and it takes most from itself. Skip the first "
                "entry of its row.",
            ),
            "off by one": Mistake(
                lambda weights, rows, columns: divmod(
                    weights.mean(dim=0)[0, 1:].argmax().item() + 1, columns
                ),
                "You are one patch too far: after the first entry is cut off, the first patch has number 0.",
            ),
            "rows for columns": Mistake(
                lambda weights, rows, columns: divmod(weights.mean(dim=0)[0, 1:].argmax().item(), rows),
                "You divided by the number of rows. In reading order a row of patches is `columns` long.",
            ),
            "swapped": Mistake(
                lambda weights, rows, columns: divmod(weights.mean(dim=0)[0, 1:].argmax().item(), columns)[
                    ::-1
                ],
                "Row and column are swapped: first how far down, then how far to the right.",
            ),
            "one head": Mistake(
                lambda weights, rows, columns: divmod(weights[0, 0, 1:].argmax().item(), columns),
                "That is the favourite of the first head alone; average over the heads first.",
            ),
        },
    ),
]
