"""Exercises of lesson 12: the class of a colour, corrupted patches, and sixteen colours instead of one."""

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

from .exercise import Exercise, Mistake

_generator = torch.Generator().manual_seed(12)


def _uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_generator)


def _pack(levels: Tensor) -> Tensor:
    return (levels.long() * torch.tensor([1, 8, 64])).sum(dim=-1)


# ---- warm-up: colour_label ---------------------------------------------------------------------------------


def _colour_label(patches: Tensor) -> Tensor:
    return _pack((patches.mean(dim=1) * 8).floor().clamp(max=7))


COLOUR_LABEL = Exercise(
    name="colour_label",
    solution=_colour_label,
    cases=(
        (0.8 * _uniform(7, 4, 3) + 0.1 * torch.arange(3),),
        (torch.stack([torch.ones(9, 3), torch.zeros(9, 3), torch.eye(3).repeat(3, 1)]),),
        (_uniform(20, 1, 3).expand(20, 16, 3),),
    ),
    praise="Eight levels of each channel, 512 colours, and white is still one of them.",
    mistakes={
        "rounded": Mistake(
            lambda patches: _pack((patches.mean(dim=1) * 8).round().clamp(max=7)),
            "You round to the nearest level. A level is an interval: use floor, so that 0.99 · 8 = 7.92 is "
            "level 7 and 0.5 is level 4.",
        ),
        "not clamped": Mistake(
            lambda patches: _pack((patches.mean(dim=1) * 8).floor()),
            "All right but for pure white, red, green and blue: 1.0 · 8 is level 8, which does not exist. "
            "The highest is 7.",
        ),
        "seven levels": Mistake(
            lambda patches: _pack((patches.mean(dim=1) * 7).floor()),
            "You multiply by 7: then only pure white is in the highest level. Eight intervals need a "
            "factor of 8.",
        ),
        "rounded to seven": Mistake(
            lambda patches: _pack((patches.mean(dim=1) * 7).round()),
            "round(7 · mean) makes the first and the last level half as wide as the others: use floor(8 · "
            "mean).",
        ),
        "channels reversed": Mistake(
            lambda patches: _colour_label(patches.flip(-1)),
            "Blue has the weight 1 and red 64. Here red counts 1, green 8 and blue 64.",
        ),
        "levels added": Mistake(
            lambda patches: (patches.mean(dim=1) * 8).floor().clamp(max=7).long().sum(dim=-1),
            "The levels of red, green and blue are added up, so different colours share a label: weigh "
            "them by 1, 8 and 64.",
        ),
        "decimal digits": Mistake(
            lambda patches: (
                (patches.mean(dim=1) * 8).floor().clamp(max=7).long() * torch.tensor([1, 10, 100])
            ).sum(dim=-1),
            "You pack the levels as decimal digits. There are 8 levels, so the weights are 1, 8 and 64.",
        ),
        "levels averaged": Mistake(
            lambda patches: _pack((patches * 8).floor().clamp(max=7).mean(dim=1).floor()),
            "You take the level of every pixel and then their mean. First the mean of the patch, then its "
            "level.",
        ),
        "first pixel": Mistake(
            lambda patches: _colour_label(patches[:, :1]),
            "This is the colour of the first pixel of each patch: take the mean over all its pixels.",
        ),
        "grey": Mistake(
            lambda patches: _colour_label(patches.mean(dim=2, keepdim=True).expand_as(patches)),
            "You took the mean over the channels too, so every label is a grey. Only the pixels are "
            "averaged.",
        ),
        "levels not packed": Mistake(
            lambda patches: (patches.mean(dim=1) * 8).floor().clamp(max=7).long(),
            "The levels are right; now make one number of the three: red + 8 · green + 64 · blue.",
        ),
    },
)


# ---- core: corrupt_tokens ----------------------------------------------------------------------------------


def _corrupt_tokens(
    tokens: Tensor, index: Tensor, draws: Tensor, other: Tensor, mask_token: Tensor, *, mistake: str = ""
) -> Tensor:
    """Tokens after their corruption, or after one with a mistake in it."""
    out = tokens.clone()
    if mistake == "masked before exchanged":
        tokens = tokens.clone()
        tokens[index[draws < 0.8]] = mask_token
    low, high = {"shares swapped": (0.1, 0.9), "none kept": (0.8, 1.0)}.get(mistake, (0.8, 0.9))
    if mistake == "zeros":
        mask_token = torch.zeros_like(mask_token)
    for place, number, donor in zip(index.tolist(), draws.tolist(), other.tolist(), strict=True):
        if mistake == "random first":
            is_masked, is_random = 0.1 <= number < 0.9, number < 0.1
        else:
            is_masked, is_random = number < low, low <= number < high
        if mistake == "all masked" or is_masked:
            out[place] = mask_token
        elif is_random and mistake != "never random":
            out[place] = out[donor] if mistake == "donors corrupted" else tokens[donor]
    if mistake == "only the corrupted":
        return out[index]
    return out


_DRAWS = torch.tensor([0.05, 0.85, 0.95, 0.4, 0.89, 0.75, 0.82, 0.02])
CORRUPT_TOKENS = Exercise(
    name="corrupt_tokens",
    solution=_corrupt_tokens,
    cases=(
        (
            _uniform(10, 3),
            torch.tensor([4, 0, 7, 2, 9, 1, 5, 8]),
            _DRAWS,
            torch.tensor([3, 4, 1, 0, 2, 8, 1, 6]),
            torch.full((3,), 9.0),
        ),
        (
            _uniform(6, 2),
            torch.tensor([5, 1, 3]),
            torch.tensor([0.81, 0.99, 0.5]),
            torch.tensor([3, 5, 0]),
            torch.full((2,), -1.0),
        ),
    ),
    praise="80 % hidden, 10 % exchanged, 10 % as they were, and every donor gave what it held at the start.",
    mistakes={
        name: Mistake(lambda *case, name=name: _corrupt_tokens(*case, mistake=name), says)
        for name, says in {
            "all masked": "Every corrupted token became the mask token. Only those with a draw below 0.8 do.",
            "never random": (
                "No token was exchanged for another: those with a draw from 0.8 to 0.9 take the token at "
                "`other`. The shares add up: 0.8, then 0.8 + 0.1."
            ),
            "none kept": (
                "Every token from 0.8 on was exchanged. Those from 0.9 on stay as they are, so that the "
                "model cannot trust what it sees."
            ),
            "shares swapped": "The shares have changed places: 10 % masked and 80 % exchanged.",
            "random first": (
                "The shares are right, but the order is another: below 0.8 the mask token, from 0.8 to 0.9 "
                "the other token."
            ),
            "donors corrupted": (
                "A donor had been corrupted before it gave its token: you read from the tokens that you "
                "write to. Copy them first."
            ),
            "masked before exchanged": (
                "You masked tokens first and then took donors from what was left, so some donors are mask "
                "tokens. Write to a copy and read from the tokens as they came."
            ),
            "zeros": "Zeros stand where the mask token should: the network learns a vector for it.",
            "only the corrupted": (
                "You gave back the corrupted tokens only. The network needs all n of them, in their places."
            ),
        }.items()
    },
)


# ---- stretch: grid_labels ----------------------------------------------------------------------------------


def _cells(images: Tensor, patch_size: int, cells: int) -> Tensor:
    """Labels of all cells of the picture as (b, rows · cells, columns · cells)."""
    side = patch_size // cells
    means = reduce(images, "b c (y s1) (x s2) -> b y x c", "mean", s1=side, s2=side)
    return _pack((means * 8).floor().clamp(max=7))


def _regrouped(form: str) -> Callable:
    """A wrong answer that puts the cells into another order."""
    return lambda images, patch_size, cells: rearrange(
        _cells(images, patch_size, cells), f"b (rows y) (columns x) -> {form}", y=cells, x=cells
    )


def _grid_labels(images: Tensor, patch_size: int, cells: int) -> Tensor:
    return rearrange(
        _cells(images, patch_size, cells),
        "b (rows y) (columns x) -> b (rows columns) (y x)",
        y=cells,
        x=cells,
    )


GRID_LABELS = Exercise(
    name="grid_labels",
    solution=_grid_labels,
    cases=((_uniform(2, 3, 8, 12), 4, 2), (_uniform(1, 3, 16, 8), 8, 4), (_uniform(2, 3, 6, 12), 6, 3)),
    praise="One small picture for each patch: the second target that the paper tried.",
    mistakes={
        "reading order of the picture": Mistake(
            lambda images, patch_size, cells: _cells(images, patch_size, cells).reshape(
                images.shape[0], -1, cells * cells
            ),
            "You cut the reading order of the whole picture into pieces: the cells of one patch stand in "
            "several rows of it. Take the axes apart first: (rows y) and (columns x).",
        ),
        "cells transposed": Mistake(
            _regrouped("b (rows columns) (x y)"),
            "The patches are right; inside each the cells run down the columns. Reading order is (y x).",
        ),
        "patches transposed": Mistake(
            _regrouped("b (columns rows) (y x)"),
            "The cells are right; the patches run down the columns. Reading order is (rows columns).",
        ),
        "cells outside": Mistake(
            _regrouped("b (y x) (rows columns)"),
            "The axes have changed places: patches come first, their cells last.",
        ),
        "one label for all": Mistake(
            lambda images, patch_size, cells: (
                _cells(images, patch_size, 1).flatten(1)[..., None].expand(-1, -1, cells * cells)
            ),
            "Every cell has the label of its whole patch. Each has a mean colour of its own.",
        ),
        "cells as a grid": Mistake(
            _regrouped("b (rows columns) y x"),
            "The labels are right; flatten the last two axes to (y x).",
        ),
    },
)

EXERCISES = [COLOUR_LABEL, CORRUPT_TOKENS, GRID_LABELS]
