"""The correspondence test of lesson 11: does each region of a scene find its own place in a changed copy?

copies = make_copies(shapes("easy", "test")[:500])
copies.judge(best_match(describe(copies.upright), describe(copies.turned)))
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_course.dino import MultiCrop
from vit_course.patching import require_at_least

from .data import ImageSet, normalise

SHOWS = 0.3  # the smallest share of a region's area that the object covers where the region counts


@dataclass(frozen=True)
class Copies:
    """Scenes twice, in other colours each time, the second copy turned by a quarter: so the true place of
    every region is known, and nothing is cut off.

    Attributes:
        upright, turned: the two copies (b, c, h, w), normalised.
        on_object, on_turned_object: which regions show the object (b, n), booleans.
        true_place: where region j of the upright copy stands in the turned one, (n,).
        grid: regions along a side; n is its square.
    """

    upright: Tensor
    turned: Tensor
    on_object: Tensor
    on_turned_object: Tensor
    true_place: Tensor
    grid: int

    def judge(self, match: Tensor) -> dict[str, float]:
        """How good matches are, of all regions that show the object.

        Args:
            match: for each region of the upright copies, a region of the turned ones (b, n).

        Returns:
            "place", the share that find their own place, and "object", the share that find the object.

        Raises:
            ValueError: for matches of another shape.
        """
        if match.shape != self.on_object.shape:
            raise ValueError(
                f"matches must have shape {tuple(self.on_object.shape)}, got {tuple(match.shape)}"
            )
        place, hits = match == self.true_place, self.on_turned_object.gather(1, match)
        return {
            "place": place[self.on_object].float().mean().item(),
            "object": hits[self.on_object].float().mean().item(),
        }


def make_copies(scenes: ImageSet, grid: int = 4, seed: int = 0) -> Copies:
    """Two copies of each scene for the test.

    Args:
        scenes: square images with masks; regions fill them.
        grid: regions along a side.
        seed: of the colours.

    Raises:
        ValueError: for scenes without masks, and for sides that regions do not fill.
        TypeError: for a grid that is no int.
    """
    require_at_least(1, grid=grid)
    if scenes.masks is None:
        raise ValueError("the correspondence test needs scenes with masks, which say where the object is")
    height, width = scenes.images.shape[2:]
    if height != width or height % grid:
        raise ValueError(f"{grid} by {grid} regions do not fill images of {height} by {width} pixels")
    recolour = MultiCrop(height, local_crops=0, global_scale=(1.0, 1.0), flip=False)
    upright, other = recolour(normalise(scenes.images), torch.Generator().manual_seed(seed))

    def shows_object(masks: Tensor) -> Tensor:
        return F.avg_pool2d(masks[:, None].float(), height // grid).flatten(1) >= SHOWS

    return Copies(
        upright=upright,
        turned=other.rot90(dims=(2, 3)),
        on_object=shows_object(scenes.masks),
        on_turned_object=shows_object(scenes.masks.rot90(dims=(1, 2))),
        true_place=torch.arange(grid**2).view(grid, grid).rot90().flatten().argsort(),
        grid=grid,
    )
