"""What one choice of layer, head, token and direction shows, in full precision: maps, masks, their scores."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vit_course.attention import rollout
from vit_course.evaluation import attention_masks, jaccard

from .recording import CheckedLayer, Panel


@dataclass(frozen=True)
class View:
    """Attention from or to one token in one layer.

    Attributes:
        layer, number: where.
        head: the one shown, 'mean' or 'rollout' ('mean' where the layer has no such head).
        token: 'cls' or the number of the patch that is the query, or the key.
        direction: 'query' (what the token attends to) or 'key' (what attends to it).
        values: one weight for each patch, (rows * columns,), NaN outside the token's window.
        prefix: the weights of class tokens.
        pointed: the chosen patch where the class token is the only query.
        matrix: (k, k), instead of values, for channels.
    """

    layer: CheckedLayer
    number: int
    head: int | str
    token: int | str
    direction: str
    values: Tensor
    prefix: Tensor
    pointed: int | None = None
    matrix: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """All weights in one row: class tokens first, then the patches that take part."""
        return torch.cat([self.prefix, self.values[~self.values.isnan()]])

    @property
    def aside(self) -> int | None:
        """The patch that would outshine all others: in a rollout, the token itself."""
        if self.head != "rollout" or isinstance(self.token, str) or len(self.values) == 1:
            return None
        return self.token

    @property
    def others(self) -> Tensor:
        """The size of the values, with NaN for what is not to be compared: (rows * columns,)."""
        sizes = self.values.abs()
        if self.aside is not None:
            sizes[self.aside] = torch.nan
        return sizes

    @property
    def strongest(self) -> int:
        """The patch with the largest weight, whatever its sign."""
        return int(self.others.nan_to_num(nan=-1.0).argmax())

    def map(self) -> Tensor:
        """The values on the grid (rows, columns), or the matrix of channels (k, k)."""
        return self.values.unflatten(0, self.layer.grid) if self.matrix is None else self.matrix


def middle(grid: tuple[int, int]) -> int:
    """The patch in the middle of a grid, in reading order."""
    return grid[0] // 2 * grid[1] + grid[1] // 2


def moved(token: int, old: tuple[int, int], new: tuple[int, int]) -> int:
    """The patch of a `new` grid in which the centre of patch `token` of an `old` grid lies."""
    row, column = divmod(token, old[1])
    return (2 * row + 1) * new[0] // (2 * old[0]) * new[1] + (2 * column + 1) * new[1] // (2 * old[1])


def look(panel: Panel, number: int, image: int, head: int | str, token: int | str, direction: str) -> View:
    """What layer `number` shows of one picture.

    A class layer has one row, that of the class token; 'cls' in a layer without class token stands for the
    patch in the middle.

    Args:
        panel: the model.
        number: of the layer.
        image: number of the picture.
        head, token, direction: the choices; see `View`.
    """
    layer = panel.layers[number]
    heads = layer.weights.shape[1]
    if (head == "rollout" and not panel.rolls(number)) or (isinstance(head, int) and head >= heads):
        head = "mean"
    pointed = None
    if layer.kind == "class":
        pointed = None if isinstance(token, str) else token
        token, direction = "cls", "query"
    elif isinstance(token, str) and not layer.num_prefix_tokens:
        token = middle(layer.grid)

    if layer.kind == "window":
        window, slot = (layer.members == int(token)).nonzero()[0].tolist()
        matrix = _matrix(panel, number, image * layer.windows + window, head)
        values = matrix.new_full((layer.grid[0] * layer.grid[1],), torch.nan)
        values[layer.members[window]] = matrix[slot] if direction == "query" else matrix[:, slot]
        return View(layer, number, head, token, direction, values, matrix.new_empty(0))
    matrix = _matrix(panel, number, image, head)
    if layer.kind == "channel":
        nothing = matrix.new_empty(0)
        return View(layer, number, head, token, direction, nothing, nothing, matrix=matrix)
    prefix = layer.num_prefix_tokens
    place = 0 if isinstance(token, str) else prefix + token
    row = matrix[place] if direction == "query" else matrix[:, place]
    return View(layer, number, head, token, direction, row[prefix:], row[:prefix], pointed)


def _matrix(panel: Panel, number: int, image: int, head: int | str) -> Tensor:
    """The weights (q, k) of one head, of their mean, or of all layers up to `number`.

    image: its place in the first axis of the weights.
    """
    if head == "rollout":
        layers = [layer for layer in panel.layers[: number + 1] if layer.kind == "global"]
        return rollout(replace(layer, weights=layer.weights[image : image + 1]) for layer in layers)[0]
    weights = panel.layers[number].weights[image]
    return weights.mean(dim=0) if isinstance(head, str) else weights[head]


def positive(values: Tensor) -> Tensor:
    """The positive weights, zero in the place of negative ones and of NaN, which stands outside a window."""
    return values.nan_to_num(nan=0.0).clamp(min=0)


def keep_mass(values: Tensor, keep: float) -> Tensor:
    """The fewest patches that together hold a share of the positive weight, as `attention_masks` finds them.

    Args:
        values: (n,); NaN and negative weights are never kept.
        keep: the share, in 0..1.

    Returns:
        Booleans (n,); none is kept where there is no positive weight, or nothing is to be held.
    """
    weights = positive(values)
    if keep == 0 or not weights.any():
        return torch.zeros_like(weights, dtype=torch.bool)
    return attention_masks(weights[None, None], keep)[0, 0]


def cells_of_pixels(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The patch, in reading order, in which each pixel of a picture (h, w) lies: (h, w)."""
    rows, columns = (torch.arange(side) * cells // side for side, cells in zip(size, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def iou(kept: Tensor, truth: Tensor, grid: tuple[int, int]) -> float:
    """How well patches match a true mask: area in both over area in either, in pixels.

    Args:
        kept: booleans (n,), one for each patch.
        truth: booleans (h, w).
        grid: (rows, columns) of the patches.

    Returns:
        A share in 0..1; two empty masks agree: 1.
    """
    height, width = truth.shape
    return jaccard(kept[cells_of_pixels((height, width), grid)], truth).item()


def share_on(values: Tensor, truth: Tensor, grid: tuple[int, int]) -> float:
    """The share of the positive weight that falls on a true mask, a patch counting as far as it is covered.

    Args:
        values: (n,), one for each patch.
        truth: booleans (h, w).
        grid: (rows, columns) of the patches.
    """
    height, width = truth.shape
    cells = cells_of_pixels((height, width), grid).flatten()
    area = torch.bincount(cells, minlength=len(values))
    covered = torch.bincount(cells, truth.flatten().float(), minlength=len(values)) / area.clamp(min=1)
    weights = positive(values)
    return ((weights * covered).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)).item()


def spread(weights: Tensor) -> float:
    """The entropy, in bits, of absolute weights (n,) as shares: 0 for one token, log2(n) for equal ones."""
    shares = weights.abs() / weights.abs().sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.special.entr(shares).sum().item() / math.log(2)
