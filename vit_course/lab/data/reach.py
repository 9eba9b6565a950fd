"""Two tasks that take bringing together two places that lie far apart.

`reach` has one label for each picture. Every cell of a grid has one of four colours and one cell carries a
mark; the label is the colour of the cell opposite, mirrored through the centre of the picture:

    . . . .        the mark at row 0, column 1
    . . . .        makes the colour at row 3, column 2, the label
    . . . .
    . . B .        with A = (0, 1) marked, B = (3, 2)

Every picture holds each colour equally often and the colour at B does not depend on that at A, so that
neither the colours of a picture nor what stands at the mark tells anything: a model that sees single places,
and forgets where they were, stays at chance.

`reach_dense` is the same task for a map of features: say at cell A which colour stands at cell B. All
other cells are empty, so B is found by what it holds and not by where it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vit_course.patching import require_at_least, require_between

from ..defaults import cpu_float32
from .image_set import ImageSet, check_split
from .scenes import boxes_around

COLOURS = {
    "red": (0.85, 0.25, 0.2),
    "green": (0.25, 0.65, 0.3),
    "blue": (0.2, 0.4, 0.85),
    "yellow": (0.9, 0.8, 0.25),
}
MARK = (0.0, 0.0, 0.0)  # the middle of the marked cell, half as wide as the cell
NOISE = 0.03  # standard deviation on each pixel

CHUNK = 1000  # pictures drawn at a time
MAX_CHUNKS = 1000
DEFAULT_COUNT = {"train": 20_000, "test": 2_000}


@cpu_float32()
def reach(
    split: str = "train", count: int | None = None, cells: int = 4, cell_size: int = 8, seed: int = 0
) -> ImageSet:
    """Grids of coloured cells, one of them marked; the label is the colour opposite the mark.

    Args:
        split: ``'train'`` or ``'test'``: other pictures of the same kind.
        count: number of pictures b; None means 20,000 for training and 2,000 for testing.
        cells: rows and columns of the grid, an even number from 4 to 32.
        cell_size: height and width of a cell in pixels, at least 2.
        seed: another number gives other pictures.

    Returns:
        An ImageSet of (b, 3, cells · cell_size, cells · cell_size) images. Its masks and boxes are those of
        the cell opposite the mark. Same arguments give the same pictures bit for bit on one machine, and a
        smaller ``count`` gives the first pictures of a larger one.

    Raises:
        TypeError, ValueError: for an argument that is not among those named above.
    """
    check_split(split)
    count = DEFAULT_COUNT[split] if count is None else count
    require_at_least(1, count=count)
    require_at_least(2, cell_size=cell_size)
    require_at_least(0, seed=seed)
    _check_cells(cells)
    require_between(1, CHUNK * MAX_CHUNKS, count=count)
    require_between(2, 64, cell_size=cell_size)
    require_between(0, 1_000_000, seed=seed)

    images, labels, masks = [], [], []
    for chunk in range(-(-count // CHUNK)):
        # PyTorch's CPU generator looks at 32 bits of its seed: this number fits and belongs to one chunk only
        generator = torch.Generator().manual_seed((seed * MAX_CHUNKS + chunk) * 2 + (split == "test"))
        colours, marked = _draw_grids(cells, generator)
        opposite = cells**2 - 1 - marked
        images.append(_paint(colours, marked, cells, cell_size, generator)[: count - chunk * CHUNK])
        labels.append(colours[torch.arange(CHUNK), opposite])
        masks.append(_enlarge(torch.arange(cells**2) == opposite[:, None], cells, cell_size))
    where = torch.cat(masks)[:count]
    return ImageSet(torch.cat(images), torch.cat(labels)[:count], tuple(COLOURS), where, boxes_around(where))


def _check_cells(cells: int) -> None:
    """Raise unless a grid has a cell opposite each, and four times as many cells as four colours need."""
    require_at_least(4, cells=cells)
    require_between(4, 32, cells=cells)
    if cells % 2:
        raise ValueError(f"cells must be even, or the middle would lie opposite itself, got {cells}")


def _draw_grids(cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CHUNK grids: the colours of their cells (b, cells²), each equally often, and the marked cell (b,)."""
    n, b = cells**2, CHUNK
    every = torch.arange(b)
    # A bag with each colour equally often, from which two are drawn: the first of any colour, the second
    # independent of it. What is left fills the other cells in random order.
    bag = torch.arange(n).repeat(b, 1) % len(COLOURS)
    at_mark = torch.randint(len(COLOURS), (b,), generator=generator)
    at_opposite = torch.randint(len(COLOURS), (b,), generator=generator)
    bag[every, at_mark] = -1  # the first of its colour leaves the bag, the second of the other's
    bag[every, len(COLOURS) + at_opposite] = -1
    rest = bag[bag >= 0].reshape(b, n - 2)
    order = torch.rand(b, n - 2, generator=generator).argsort(dim=1)
    rest = rest.gather(1, order)
    marked = torch.randint(n, (b,), generator=generator)
    opposite = n - 1 - marked
    colours = torch.empty(b, n, dtype=torch.int64)
    colours[every, marked], colours[every, opposite] = at_mark, at_opposite
    others = torch.ones(b, n, dtype=torch.bool)
    others[every, marked] = others[every, opposite] = False
    colours[others] = rest.flatten()
    return colours, marked


def _enlarge(of_cells: Tensor, cells: int, cell_size: int) -> Tensor:
    """(b, cells²) -> (b, h, w): each cell as a square of pixels."""
    grid = of_cells.reshape(-1, cells, cells)
    return grid.repeat_interleave(cell_size, dim=1).repeat_interleave(cell_size, dim=2)


def _paint(colours: Tensor, marked: Tensor, cells: int, cell_size: int, generator: torch.Generator) -> Tensor:
    """Grids as pictures (b, 3, h, w)."""
    palette = torch.tensor(list(COLOURS.values()))
    images = palette[_enlarge(colours, cells, cell_size)].movedim(-1, 1).contiguous()
    edge = cell_size // 4
    place = torch.arange(cell_size * cells) % cell_size
    middle = (edge <= place) & (place < cell_size - edge)
    is_mark = _enlarge(torch.arange(cells**2) == marked[:, None], cells, cell_size)
    is_mark = (is_mark & middle & middle[:, None])[:, None]
    images = torch.where(is_mark, torch.tensor(MARK)[:, None, None], images)
    return (images + NOISE * torch.randn(images.shape, generator=generator)).clamp_(0, 1)


def reach_dense(
    count: int,
    cells: int = 8,
    colours: int = 4,
    distance: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with a mark at one cell A and a colour at another, B: say at A which colour stands at B.

    A and B are drawn evenly from all pairs in different quarters of the map that lie `distance` apart.

    Args:
        count: number of maps b.
        cells: rows and columns s, an even number from 4 to 32.
        colours: how many there are, at least 2.
        distance: the least number of rows or of columns, whichever is larger, from A to B.
        generator: where the randomness comes from; None takes PyTorch's own.

    Returns:
        Maps (b, colours + 1, s, s) of zeros, with a one in channel k at B, where k is its colour, and a one
        in the last channel at A; the colours k (b,); and the places of A (b,), counted in reading order. A
        model answers at its token or cell of that number.

    Raises:
        TypeError, ValueError: for sizes that do not fit.
    """
    require_at_least(1, count=count)
    require_at_least(2, colours=colours)
    require_at_least(1, distance=distance)
    _check_cells(cells)
    require_between(1, cells - 1, distance=distance)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    with cpu_float32():
        rows, columns = torch.arange(cells**2) // cells, torch.arange(cells**2) % cells
        quarters = rows // (cells // 2) * 2 + columns // (cells // 2)
        apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
        pairs = ((apart >= distance) & (quarters[:, None] != quarters)).nonzero()  # (pairs, 2)
        a, b = pairs[torch.randint(len(pairs), (count,), generator=generator)].unbind(1)
        answers = torch.randint(colours, (count,), generator=generator)
        maps = torch.zeros(count, colours + 1, cells**2)
        maps[torch.arange(count), answers, b] = 1
        maps[torch.arange(count), -1, a] = 1
    return maps.unflatten(2, (cells, cells)), answers, a
