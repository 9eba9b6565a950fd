"""Deeper and wider.

What keeps a deep or a wide ViT alive?

Made from notebooks/atlas/a1_deeper.ipynb by `make export`: read and edit the lesson, not this file.
"""

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention
from vit_course.cait import LayerScale, mix_heads
from vit_course.patching import (
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_images,
    resize_positions,
)
from vit_course.vit import Backbone, FeedForward, StochasticDepth, ViT

__all__ = [
    "ReAttention",
    "ParallelBlock",
    "AnyBlock",
    "BlockViT",
    "DeepViTStem",
    "which_mix",
    "DeepViT",
    "ParallelViT",
    "side_by_side",
    "linear_attention",
    "LinearAttention",
]


class ReAttention(MultiHeadAttention):
    """Self-attention whose maps are mixed across heads after the softmax, and then batch-normalised.

    With the maps A of all heads h, new head g attends with s · BatchNorm(Σ_h W[g, h] A_h + b_g). The norm has
    one mean and one spread for each head, over pictures, queries and keys: rows of the maps that are really
    used sum to anything and hold negative weights.

    Args:
        dim: width d of a token.
        heads: number of heads h.
        dim_head: width k of one head, dim // heads by default.
        dropout: share of the weights, before they are mixed, and of the output that is dropped in training.
        map_scale: s, a constant on the new maps.

    Shape: tokens (b, n, d) -> (b, n, d).

    Raises:
        TypeError, ValueError: for sizes and numbers that do not fit.

    Source: Zhou et al. 2021 (DeepViT), equation 3; bias, norm and s as in the authors' code.

    Built in lesson a1.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        dim_head: int | None = None,
        dropout: float = 0.0,
        map_scale: float = 1.0,
    ) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        require_between(0, math.inf, map_scale=map_scale)
        self.reatten_matrix = nn.Linear(heads, heads)
        self.var_norm = nn.BatchNorm2d(heads)
        self.map_scale = map_scale

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        maps = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)  # (b, h, n, n)
        maps = mix_heads(self.attn_drop(maps), self.reatten_matrix.weight, self.reatten_matrix.bias)
        maps = self.map_scale * self.var_norm(maps)
        self.record(maps)
        return self.merge(maps @ v)


class ParallelBlock(nn.Module):
    """A transformer block with several attentions side by side, then several feed-forward layers.

    All branches of a pair read the same tokens, each through a norm of its own, and their *sum* is added.

    Args:
        dim: width d of a token.
        heads: number of heads h of each attention.
        mlp_dim: hidden width of each feed-forward layer.
        branches: how many of each there are.
        dim_head: width of one head, dim // heads by default.
        dropout: share dropped inside the branches in training.
        layer_scale: start of LayerScale on each branch; None for none.
        layer_dropout: share of the samples that lose a branch in training (drop path).

    Shape: tokens (b, n, d) -> (b, n, d).

    Raises:
        TypeError, ValueError: for sizes and shares that do not fit.

    Source: Touvron et al. 2022, section 3, equation 4.

    Built in lesson a1.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_dim: int,
        branches: int = 2,
        dim_head: int | None = None,
        dropout: float = 0.0,
        layer_scale: float | None = None,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_at_least(1, branches=branches)

        def branch(name: str, layer: nn.Module) -> nn.Sequential:
            norm = nn.LayerNorm(dim, eps=1e-6)
            scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
            steps = {"norm": norm, name: layer, "ls": scale, "drop_path": StochasticDepth(layer_dropout)}
            return nn.Sequential(OrderedDict(steps))

        attention = partial(MultiHeadAttention, dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        mlp = partial(FeedForward, dim=dim, hidden_dim=mlp_dim, dropout=dropout)
        self.attns = nn.ModuleList(branch("attn", attention()) for _ in range(branches))
        self.ffns = nn.ModuleList(branch("mlp", mlp()) for _ in range(branches))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = sum((branch(tokens) for branch in self.attns), start=tokens)
        return sum((branch(tokens) for branch in self.ffns), start=tokens)


class AnyBlock(nn.Module):
    """A transformer block made of any attention and any feed-forward layer.

    Args:
        attn, mlp: modules, tokens (b, n, d) -> (b, n, d).
        dim: width d of a token.
        scale: a; each branch reads a · tokens, and what it adds is divided by a.
        layer_dropout: share of the samples that lose a branch in training (drop path).

    Shape: tokens (b, n, d) -> (b, n, d).

    Raises:
        TypeError, ValueError: for anything but modules, and for numbers that do not fit.

    Source: pre-norm as in Dosovitskiy et al. 2020; a as in DeepViT's code.

    Built in lesson a1.
    """

    def __init__(
        self, attn: nn.Module, mlp: nn.Module, *, dim: int, scale: float = 1.0, layer_dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, part in {"attn": attn, "mlp": mlp}.items():
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {part!r}")
        require_between(0, math.inf, scale=scale)
        if scale in (0, math.inf):
            raise ValueError(f"scale must be above 0 and finite, got {scale}")
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), attn
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), mlp
        self.scale, self.drop_path = scale, StochasticDepth(layer_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(self.scale * tokens)) / self.scale)
        return tokens + self.drop_path(self.mlp(self.norm2(self.scale * tokens)) / self.scale)


class BlockViT(Backbone):
    """A ViT made of the blocks that you bring.

    Args:
        blocks: modules, tokens (b, n, d) -> (b, n, d), class token first; they run in this order.
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        channels: c.
        emb_dropout: share dropped after the positions in training.
        class_position: whether the class token has a position as well; without, it joins after them.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome:
    the positions are resized.

    Raises:
        TypeError, ValueError: for blocks and sizes that do not fit.

    Source: Dosovitskiy et al. 2020, equations 1 and 4.

    Built in lesson a1.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        channels: int = 3,
        emb_dropout: float = 0.0,
        class_position: bool = True,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            channels=channels,
            emb_dropout=emb_dropout,
            patch_embedding=patch_embedding,
        )
        self.class_position = class_position
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        positions = math.prod(self.grid) + class_position
        self.pos_embed = nn.Parameter(torch.empty(1, positions, dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*blocks)
        if not self.blocks:
            raise ValueError("a BlockViT needs at least one block, got none")
        self.add_head()

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) before positions, on their grid -> (b, 1 + n, d), the class token first."""
        positions = resize_positions(self.pos_embed[0], self.grid, grid, int(self.class_position))
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        if self.class_position:
            tokens = torch.cat([class_token, tokens], dim=1) + positions
        else:
            tokens = torch.cat([class_token, tokens + positions], dim=1)
        return self.blocks(self.pos_drop(tokens))


class DeepViTStem(nn.Module):
    """DeepViT's convolutional stem: two convolutions with batch norm, and one that makes the tokens.

    Args:
        patch_size: p in pixels, even.
        dim: width d of a token.
        channels: c.

    Shape: images (b, c, h, w) of any size that patches fill -> tokens (b, n, d).

    Raises:
        TypeError, ValueError: for sizes and images that do not fit.

    Source: the authors' code (Zhou et al. 2021), after T2T-ViT's comparison.

    Built in lesson a1.
    """

    def __init__(self, *, patch_size: int | tuple[int, int], dim: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(1, dim=dim, channels=channels)
        self.patch_size, self.channels = pair(patch_size, "patch_size"), channels
        height, width = self.patch_size
        if height % 2 or width % 2:
            raise ValueError(f"patch_size of a DeepViTStem must be even, got {patch_size}")
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        halved = (height // 2, width // 2)
        self.proj = nn.Conv2d(64, dim, halved, stride=halved)

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, self.channels)
        patch_grid(images.shape[-2:], self.patch_size)
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = F.relu(self.bn2(self.conv2(maps)))
        return rearrange(self.proj(maps), "b d rows columns -> b (rows columns) d")


def which_mix(mixed: int | Sequence[bool] | None, depth: int) -> list[bool]:
    """For each block of a DeepViT whether it mixes its heads.

    Args:
        mixed: how many of the last blocks do, or the answer for each block; None for all.
        depth: number of blocks.

    Raises:
        TypeError, ValueError: for another number of answers, and for more blocks than there are.

    Built in lesson a1.
    """
    require_at_least(1, depth=depth)
    if mixed is None or isinstance(mixed, int):
        last = depth if mixed is None else mixed
        require_at_least(0, mixed=last)
        if last > depth:
            raise ValueError(f"mixed must be at most the depth {depth}, got {last}")
        return [number >= depth - last for number in range(depth)]
    if not isinstance(mixed, list | tuple):
        raise TypeError(f"mixed must be an int, or yes or no for each block, got {mixed!r}")
    if len(mixed) != depth:
        raise ValueError(f"mixed must say yes or no for each of {depth} blocks, got {len(mixed)}")
    return [bool(answer) for answer in mixed]


class DeepViT(BlockViT):
    """DeepViT: a deep ViT in whose blocks the heads are mixed, so that deep maps stay different.

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        depth: number of blocks.
        heads: number of heads h.
        mlp_dim: hidden width of a block's feed-forward layer.
        mixed: how many of the last blocks use ReAttention, or yes or no for each; None for all. The others
            have ordinary attention.
        map_scaled: whether ReAttention divides its maps by the square root of the width of a head.
        branch_scale: a of `AnyBlock`; the published S and L have 0.5.
        conv_stem: whether DeepViTStem makes the tokens.
        channels: c.
        dim_head: width of one head, dim // heads by default.
        dropout, emb_dropout: shares dropped in training, in the blocks and after the positions.
        layer_dropout: share of the samples that lose the branches of the last block in training; it rises
            evenly from 0 in the first block.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome:
    the positions are resized. Submodules are named as in the authors' code.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Zhou et al. 2021.

    Built in lesson a1.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        mixed: int | Sequence[bool] | None = None,
        map_scaled: bool = False,
        branch_scale: float = 1.0,
        conv_stem: bool = False,
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        require_at_least(1, dim=dim, heads=heads)
        require_between(0, 1, layer_dropout=layer_dropout)
        if conv_stem and patch_embedding is not None:
            raise ValueError("a DeepViT takes conv_stem or patch_embedding, got both")
        if conv_stem:
            patch_embedding = DeepViTStem(patch_size=patch_size, dim=dim, channels=channels)
        plain = partial(MultiHeadAttention, dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        map_scale = (dim_head or dim // heads) ** -0.5 if map_scaled else 1.0
        mixing = partial(
            ReAttention, dim=dim, heads=heads, dim_head=dim_head, dropout=dropout, map_scale=map_scale
        )
        blocks = [
            AnyBlock(
                mixing() if mixes else plain(),
                FeedForward(dim=dim, hidden_dim=mlp_dim, dropout=dropout),
                dim=dim,
                scale=branch_scale,
                layer_dropout=layer_dropout * number / max(depth - 1, 1),
            )
            for number, mixes in enumerate(which_mix(mixed, depth))
        ]
        super().__init__(
            blocks,
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            channels=channels,
            emb_dropout=emb_dropout,
            patch_embedding=patch_embedding,
        )


class ParallelViT(BlockViT):
    """A ViT of `depth` blocks, each with `branches` attentions, then feed-forward layers, side by side.

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        depth: number of blocks.
        heads: number of heads h of each attention.
        mlp_dim: hidden width of each feed-forward layer.
        branches: how many of each a block has.
        layer_scale: start of LayerScale on every branch, 1e-4 in the paper; None for none.
        channels: c.
        dim_head: width of one head, dim // heads by default.
        dropout, emb_dropout: shares dropped in training, in the branches and after the positions.
        layer_dropout: share of the samples that lose a branch in training, the same in every block.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome:
    the positions are resized; the class token has none. Submodules are named as in timm.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Touvron et al. 2022, section 3.

    Built in lesson a1.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        branches: int = 2,
        layer_scale: float | None = None,
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        require_at_least(1, depth=depth)
        block = partial(
            ParallelBlock,
            dim=dim,
            heads=heads,
            mlp_dim=mlp_dim,
            branches=branches,
            dim_head=dim_head,
            dropout=dropout,
            layer_scale=layer_scale,
            layer_dropout=layer_dropout,
        )
        super().__init__(
            (block() for _ in range(depth)),
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            channels=channels,
            emb_dropout=emb_dropout,
            class_position=False,
            patch_embedding=patch_embedding,
        )


def side_by_side(model: ViT, branches: int = 2) -> ParallelViT:
    """A ViT whose blocks, taken in pairs, stand side by side instead of behind each other.

    Args:
        model: a ViT with a class token; it stays as it is.
        branches: how many blocks become one; they divide its depth.

    Returns:
        A ParallelViT with copies of all weights. It computes nearly the same where branches add little.

    Raises:
        TypeError, ValueError: for another model, and where the branches do not divide its depth.

    Source: Touvron et al. 2022, section 3.

    Built in lesson a1.
    """
    if type(model) is not ViT or model.cls_token is None:
        raise TypeError(f"model must be a ViT with a class token, got {type(model).__name__}")
    require_at_least(1, branches=branches)
    depth = len(model.blocks)
    if depth % branches:
        raise ValueError(f"branches {branches} do not divide the depth {depth}")
    arguments = copy.deepcopy(model._arguments) | {"depth": depth // branches, "branches": branches}
    arguments.pop("pool", None)
    merged = ParallelViT(**arguments)
    merged.to(next(model.parameters()))
    state = model.state_dict()
    positions = state.pop("pos_embed")
    state["cls_token"] = state["cls_token"] + positions[:, :1]  # where it joins, nothing else is added
    state["pos_embed"] = positions[:, 1:]
    merged.load_state_dict({_side_by_side_name(name, branches): tensor for name, tensor in state.items()})
    return merged.train(model.training)


def _side_by_side_name(name: str, branches: int) -> str:
    """The name that a parameter of a ViT has once its blocks stand side by side."""
    for first, second, branch in (("norm1", "attn", "attns"), ("norm2", "mlp", "ffns")):
        found = re.fullmatch(rf"blocks\.(\d+)\.({first}|{second})\.(.+)", name)
        if found:
            block, place = divmod(int(found[1]), branches)
            part = "norm" if found[2] == first else found[2]
            return f"blocks.{block}.{branch}.{place}.{part}.{found[3]}"
    return name


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose cost grows with the number of keys, not with its square.

    A weight is φ(q) · φ(k) with φ(x) = elu(x) + 1 > 0, divided by the sum over the keys. With no softmax in
    between, the products may be bracketed anew: φ(Q) (φ(K)ᵀ V), without a map of n × n weights.

    Args:
        q, k, v: queries, keys and values (b, h, n, k).

    Returns:
        (b, h, n, k).

    Source: Katharopoulos et al. 2020, equations 5 to 7.

    Built in lesson a1.
    """
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(dim=-2).unsqueeze(-1))


class LinearAttention(MultiHeadAttention):
    """Multi-head self-attention by `linear_attention`.

    Arguments and errors as for `MultiHeadAttention`.

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: Katharopoulos et al. 2020.

    Built in lesson a1.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        if self.attention_recorder is not None:
            weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)
            self.record(weights / weights.sum(dim=-1, keepdim=True))
        return self.merge(linear_attention(q, k, v))
