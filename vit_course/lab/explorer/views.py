"""What one choice of layer, head, token and direction shows, in full precision: maps, masks and their scores."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vit_course.attention import AttentionLayer, rollout

from .recording import Panel


@dataclass(frozen=True)
class View:
    """Attention from or to one token in one layer.

    layer, number: where. head: the one shown, 'mean' or 'rollout' ('mean' where the layer has no such head). token: 'cls' or the number
    of the patch that asks, or is asked. direction: 'query' (what the token looks at) or 'key' (what looks at it). values: one weight for
    each patch, (rows * columns,), NaN outside the token's window. prefix: the weights of class tokens. pointed: the chosen patch where
    only the class token asks. matrix: (k, k), instead of values, for channels.
    """

    layer: AttentionLayer
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
        return self.token if self.head == "rollout" and self.token != "cls" and len(self.values) > 1 else None

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
    """What layer `number` shows of one picture; see View.

    A class layer has one row, that of the class token; 'cls' in a layer without class token stands for the patch in the middle.
    """
    layer = panel.layers[number]
    if (
        head == "rollout"
        and not panel.rolls(number)
        or isinstance(head, int)
        and head >= layer.weights.shape[1]
    ):
        head = "mean"
    pointed = None
    if layer.kind == "class":
        pointed = None if token == "cls" else token
        token, direction = "cls", "query"
    elif token == "cls" and not layer.num_prefix_tokens:
        token = middle(layer.grid)

    if layer.kind == "window":
        window, slot = (layer.members == token).nonzero()[0].tolist()
        image = image * len(layer.members) + window
        matrix = _matrix(panel, number, image, head)
        values = torch.full((layer.grid[0] * layer.grid[1],), torch.nan)
        values[layer.members[window]] = matrix[slot] if direction == "query" else matrix[:, slot]
        return View(layer, number, head, token, direction, values, matrix.new_empty(0))
    matrix = _matrix(panel, number, image, head)
    if layer.kind == "channel":
        nothing = matrix.new_empty(0)
        return View(layer, number, head, token, direction, nothing, nothing, matrix=matrix)
    prefix = layer.num_prefix_tokens
    place = 0 if token == "cls" else prefix + token
    row = matrix[place] if direction == "query" else matrix[:, place]
    return View(layer, number, head, token, direction, row[prefix:], row[:prefix], pointed)


def _matrix(panel: Panel, number: int, image: int, head: int | str) -> Tensor:
    """The weights (q, k) of one head, of their mean, or of all layers up to `number`. image: its place in the first axis of the weights."""
    if head == "rollout":
        layers = [
            replace(layer, weights=layer.weights[image : image + 1]) for layer in panel.layers[: number + 1]
        ]
        return rollout(layer for layer in layers if layer.kind == "global")[0]
    weights = panel.layers[number].weights[image]
    return weights.mean(dim=0) if head == "mean" else weights[head]


def keep_mass(values: Tensor, keep: float) -> Tensor:
    """The fewest patches that together hold the share `keep` of the positive weight: (n,) -> booleans (n,).

    As DINO's figures show attention (Caron et al. 2021), who keep 60 %. NaN, outside a window, and negative weights are never kept.
    """
    values = values.nan_to_num(nan=0.0).clamp(min=0)
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(dim=0) - ordered
    kept = (before < keep * values.sum()) & (ordered > 0)
    return torch.zeros_like(values, dtype=torch.bool).scatter(0, order, kept)


def cells_of_pixels(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The patch, in reading order, in which each pixel of a picture (h, w) lies: (h, w)."""
    rows, columns = (torch.arange(side) * cells // side for side, cells in zip(size, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def iou(kept: Tensor, truth: Tensor, grid: tuple[int, int]) -> float:
    """Area in both over area in either, in pixels, of patches `kept` (n,) and a true mask (h, w); 0 where both are empty."""
    found = kept[cells_of_pixels(tuple(truth.shape), grid)]
    return (found & truth).sum().item() / max((found | truth).sum().item(), 1)


def share_on(values: Tensor, truth: Tensor, grid: tuple[int, int]) -> float:
    """The share of the positive weight (n,) that falls on a true mask (h, w), a patch counting as far as it is covered."""
    cells = cells_of_pixels(tuple(truth.shape), grid).flatten()
    area = torch.bincount(cells, minlength=len(values))
    covered = torch.bincount(cells, truth.flatten().float(), minlength=len(values)) / area.clamp(min=1)
    values = values.nan_to_num(nan=0.0).clamp(min=0)
    return ((values * covered).sum() / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).item()


def spread(weights: Tensor) -> float:
    """The entropy, in bits, of the absolute weights (n,) as shares: 0 for one token, log2(n) for equal weights."""
    shares = weights.abs() / weights.abs().sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.special.entr(shares).sum().item() / torch.log(torch.tensor(2.0)).item()
