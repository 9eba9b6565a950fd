"""A view in plain sentences. explorer.js has the same ones in the browser; a test holds the two together."""

import math

from torch import Tensor

from .views import View, iou, keep_mass, share_on, spread


def describe(view: View, mass: float, truth: Tensor | None) -> str:
    """What a view shows, in sentences with numbers.

    Args:
        view: what is shown.
        mass: the share that the mask keeps, 0 for no mask.
        truth: the true mask (h, w) of the picture, booleans, or None.
    """
    if view.matrix is not None:
        return _channels(view, view.matrix)
    sentences = [_strongest(view), _others(view), _sums(view)]
    if mass:
        sentences.append(_mask(view, mass, truth))
    if truth is not None and (view.values > 0).any():
        share, area = share_on(view.values, truth, view.layer.grid), truth.float().mean().item()
        sentences.append(
            f"The true object gets {percent(share)} of the {_positive(view)} on patches and covers "
            f"{percent(area)} of the picture."
        )
    return " ".join(sentence for sentence in sentences if sentence)


def percent(share: float) -> str:
    """A share as people read it, with a minus sign where it is negative."""
    text = f"{100 * share:.{2 if abs(share) < 0.01 else 1}f}"
    return f"{'0' if float(text) == 0 else text.replace('-', '−')} %"


def place(token: int | str, grid: tuple[int, int]) -> str:
    """A token's name: its number, row and column, all counted from 0."""
    if isinstance(token, str):
        return "the class token"
    row, column = divmod(token, grid[1])
    return f"patch {token} (row {row}, column {column})"


def _strongest(view: View) -> str:
    grid, weights, best = view.layer.grid, view.weights, view.strongest
    who, whom = place(view.token, grid), "itself" if best == view.token else place(best, grid)
    value = view.values[best].item()
    times = abs(value) / max(weights.abs().mean().item(), 1e-30)
    mean = "the mean size" if (weights < 0).any() else "the mean"
    how_much = f"{percent(value)}, {times:.1f} times {mean}."
    if view.layer.kind == "class":
        sentence = f"The class token is the only query in this layer. It looks most at {whom}: {how_much}"
        if view.pointed is None:
            return sentence
        pointed = _capital(place(view.pointed, grid))
        return f"{sentence} {pointed} gets {percent(view.values[view.pointed].item())}."
    if view.head == "rollout":
        verb = "takes most from" if view.direction == "query" else "gives most to"
        apart = "" if view.aside is None else ", apart from itself"
        return f"Through layers 0 to {view.number}, {who} {verb} {whom}{apart}: {how_much}"
    if view.layer.kind == "window":
        who = f"among the {len(weights)} patches of its window (outlined), {who}"
    if view.direction == "query":
        return f"{_capital(who)} looks most at {whom}: {how_much}"
    return f"{_capital(who)} is looked at most by {whom}, with {how_much}"


def _others(view: View) -> str:
    """What the other tokens have: class token, the token itself, and how the rest is spread."""
    weights, prefix, parts = view.weights, view.prefix.tolist(), []
    if prefix:
        parts.append(f"{'itself' if view.token == 'cls' else 'class token'} {percent(prefix[0])}")
    if len(prefix) > 1:
        more = len(prefix) - 1
        parts.append(f"{more} more prefix token{'s' if more > 1 else ''} {percent(sum(prefix[1:]))}")
    if not isinstance(view.token, str) and view.strongest != view.token:
        parts.append(f"itself {percent(view.values[view.token].item())}")
    if view.direction == "query":
        parts.append(f"spread {spread(weights):.1f} of {math.log2(len(weights)):.1f} bits")
    else:
        parts.append(f"mean {percent(weights.mean().item())}")
    return _capital("; ".join(parts)) + "."


def _sums(view: View) -> str:
    """Talking heads mix several heads' weights: rows need not add up to one, some may be negative."""
    weights, sentences = view.weights, []
    if view.direction == "query" and abs(weights.sum().item() - 1) > 0.005:
        sentences.append(f"The weights add up to {percent(weights.sum().item())}.")
    negative = weights[weights < 0]
    if len(negative):
        sentences.append(
            f"Negative weights (orange, with a dash) add up to {percent(negative.sum().item())}."
        )
    return " ".join(sentences)


def _mask(view: View, mass: float, truth: Tensor | None) -> str:
    kept = keep_mass(view.values, mass)
    sentence = (
        f"The mask keeps the {int(kept.sum())} of {len(kept)} patches that hold {100 * mass:.0f} % of the "
        f"{_positive(view)}"
    )
    if truth is None:
        return f"{sentence}."
    return f"{sentence}; IoU with the true mask {iou(kept, truth, view.layer.grid):.2f}."


def _positive(view: View) -> str:
    return "positive weight" if (view.weights < 0).any() else "weight"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _channels(view: View, matrix: Tensor) -> str:
    size = len(matrix)
    row, column = divmod(int(matrix.abs().argmax()), size)
    whose = f"the mean of {view.layer.weights.shape[1]} heads" if view.head == "mean" else f"head {view.head}"
    return (
        "This layer compares channels, not patches, so there is no map on the picture. The matrix shows, for "
        f"{whose}, what each of {size} channels (rows) takes from each (columns): most is "
        f"{percent(matrix[row, column].item())}, channel {row} from channel {column}."
    )
