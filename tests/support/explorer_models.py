"""Small models of every kind for the tests of the explorer, and what Python sees in a view."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.lab.explorer import AttentionExplorer
from vit_course.lab.parity import randomise
from vit_course.patching import PatchEmbedding
from vit_course.vit import ViT

SIZES = {
    "image_size": (24, 32),
    "patch_size": 4,
    "num_classes": 3,
    "dim": 16,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 32,
}
GRID = (6, 8)


def pictures(count: int = 2, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 24, 32, generator=torch.Generator().manual_seed(3))


def true_masks(count: int = 2) -> Tensor:
    masks = torch.zeros(count, 24, 32, dtype=torch.bool)
    masks[:, 5:18, 9:23] = True
    return masks


def vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    return randomise(ViT(**SIZES | changes))


class FixedLayer(nn.Module):
    """A layer with these weights, or those that a function makes of the images, when it is recorded."""

    def __init__(self, kind: str, weights: object, *more: object) -> None:
        super().__init__()
        self.kind, self.weights, self.more, self.attention_recorder = kind, weights, more, None

    def forward(self, images: Tensor) -> None:
        if self.attention_recorder is not None:
            weights = self.weights(images) if callable(self.weights) else self.weights
            self.attention_recorder(weights, *self.more)


class FixedModel(nn.Module):
    """A model of such layers, on images cut into patches."""

    def __init__(self, *layers: nn.Module, patch_size: int = 4, num_prefix_tokens: int = 1) -> None:
        super().__init__()
        self.patch_size, self.num_prefix_tokens = (patch_size, patch_size), num_prefix_tokens
        self.patch_embed = PatchEmbedding(patch_size=patch_size, dim=8)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> None:
        self.patch_embed(images)
        for layer in self.layers:
            layer(images)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def windows(axis: str, grid: tuple[int, int], side: int, heads: int) -> FixedLayer:
    """Attention inside windows, as MaxViT's: each patch attends to patches of its own colour."""
    pattern = {"block": "(y r) (x c) -> (y x) (r c)", "grid": "(r y) (c x) -> (y x) (r c)"}[axis]
    members = rearrange(torch.arange(grid[0] * grid[1]).view(grid), pattern, r=side, c=side)

    def weights(images: Tensor) -> Tensor:
        colours = F.adaptive_avg_pool2d(images, grid).flatten(2).mT[:, members]  # (b, windows, t, c)
        distance = torch.cdist(colours, colours)
        return torch.stack([(-9 * (head + 1) * distance).softmax(-1) for head in range(heads)], 2).flatten(
            0, 1
        )

    return FixedLayer("window", weights, grid, members)


def talking_heads() -> FixedModel:
    """Weights after a mix of the heads: rows that do not add up to one, some weights negative."""
    weights = noise(2, 3, 48, 48).softmax(-1)
    mix = torch.tensor([[0.9, -0.4, 0.1], [0.2, 0.7, 0.0], [0.3, 0.2, -0.8]])
    return FixedModel(FixedLayer("global", torch.einsum("gh,bhij->bgij", mix, weights)))


def ragged() -> FixedModel:
    """Two global layers, then one in which the class token is the only query, as in CaiT."""
    layers = [FixedLayer("global", noise(2, 2, 48, 48, seed=seed).softmax(-1)) for seed in range(2)]
    return FixedModel(*layers, FixedLayer("class", noise(2, 3, 1, 49).softmax(-1)))


def pyramid() -> FixedModel:
    """Windows on two grids, as in MaxViT."""
    fine, coarse = ((12, 16), 4, 2), ((6, 8), 2, 3)
    return FixedModel(*(windows(axis, *size) for size in (fine, coarse) for axis in ("block", "grid")))


def channels() -> FixedModel:
    """Channels that attend to channels, as in XCiT."""
    return FixedModel(
        FixedLayer("channel", noise(2, 2, 8, 8).softmax(-1)),
        FixedLayer("class", noise(2, 2, 1, 49).softmax(-1)),
    )


# An explorer for each kind of layer and each way to use it.
EVERY_KIND: dict[str, Callable[[], AttentionExplorer]] = {
    "vit": lambda: AttentionExplorer(vit(), pictures(), masks=true_masks(), token=11),
    "no class token": lambda: AttentionExplorer(vit(pool="mean"), pictures()),
    "grey": lambda: AttentionExplorer(vit(channels=1), pictures()[0, :1]),
    "two models": lambda: AttentionExplorer(
        vit(), pictures(), compare=ragged(), masks=true_masks(), model_names=("ViT", "ragged")
    ),
    "class": lambda: AttentionExplorer(ragged(), pictures(), masks=true_masks(), mass=0.6),
    "window": lambda: AttentionExplorer(pyramid(), pictures(), masks=true_masks(), layer=0),
    "channel": lambda: AttentionExplorer(channels(), pictures(), layer=0),
    "talking heads": lambda: AttentionExplorer(talking_heads(), pictures(), masks=true_masks(), token=11),
}


def choices_of(explorer: AttentionExplorer) -> list[dict]:
    """Choices that together visit every layer, head, direction, mask and several tokens."""
    panel, found = explorer._panels[0], []
    for number, layer in enumerate(panel.layers):
        heads = ["mean", *range(layer.weights.shape[1]), *(["rollout"] if panel.rolls(number) else [])]
        for turn, head in enumerate(heads):
            cells = layer.grid[0] * layer.grid[1]
            same = {
                "image": turn % len(explorer._images),
                "layer": number,
                "head": head,
                "mass": (0.0, 0.6)[turn % 2],
            }
            for token in ((17 * turn + 5) % cells, cells - 1, *(["cls"] if layer.num_prefix_tokens else [])):
                found += [same | {"token": token, "direction": direction} for direction in ("query", "key")]
    return found


def choose(explorer: AttentionExplorer, choice: dict) -> None:
    """Make all choices, the layer first: what heads and patches there are depends on it."""
    for name in sorted(choice, key=lambda name: name != "layer"):
        setattr(explorer, name, choice[name])


def write_case(explorer: AttentionExplorer, folder: Path, name: str) -> None:
    """Write the payload, and for many choices what Python sees, for node to compare."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.bin").write_bytes(explorer._data)
    views = []
    for choice in choices_of(explorer):
        choose(explorer, choice)
        for model in range(len(explorer._panels)):
            view = explorer._view(model)
            values = view.values if view.matrix is None else view.matrix.flatten()
            kept = (
                []
                if view.matrix is not None
                else explorer.mask(choice["mass"], model).flatten().int().tolist()
            )
            shown = [None if value != value else value for value in values.tolist()]
            views.append(
                {
                    "choice": choice,
                    "model": model,
                    "values": shown,
                    "prefix": view.prefix.tolist(),
                    "kept": kept,
                }
            )
        views[-1]["words"] = explorer.words
    (folder / f"{name}.json").write_text(
        json.dumps({"meta": explorer._meta, "views": views}), encoding="utf-8"
    )
