"""XCiT.

What if channels attended to channels, instead of patches to patches, so that twice the patches cost twice as
much and not four times?

Made from notebooks/06_xcit.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention
from vit_course.cait import ClassAttentionBlock, LayerScale
from vit_course.patching import halvings, pair, patch_grid, require_at_least, require_images
from vit_course.vit import Backbone, FeedForward, StochasticDepth, residual

__all__ = [
    "XCAttention",
    "LocalPatchInteraction",
    "ConvPatchEmbedding",
    "FourierPositions",
    "XCiTBlock",
    "XCiTClassBlock",
    "XCiT",
]


class XCAttention(MultiHeadAttention):
    """Cross-covariance attention: channels attend to channels, and are compared over the tokens.

    Within a head, every channel of the queries and of the keys is scaled to length one over the tokens; the
    softmax of their cosines, times a temperature that each head learns, says how much of which channel of the
    values a channel of the output takes. The weights (b, h, k, k) do not grow with the number of tokens.

    Arguments and errors as for MultiHeadAttention.

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: El-Nouby et al. 2021, section 3.2.

    Built in lesson 06.
    """

    kind = "channel"

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))  # (b, h, n, k) each
        q, k = _unit_channels(q), _unit_channels(k)
        weights = (self.temperature * (q.transpose(-2, -1) @ k)).softmax(dim=-1)  # (b, h, k, k)
        self.record(weights)
        return self.merge(v @ self.attn_drop(weights).transpose(-2, -1))


def _unit_channels(part: Tensor) -> Tensor:
    """Each channel of (b, h, n, k) scaled to length one over the tokens, in float32 or better.

    In half precision the eps that keeps a channel of zeros from being divided by zero would itself be zero.
    """
    precise = part.to(torch.promote_types(part.dtype, torch.float32))
    return F.normalize(precise, dim=-2).to(part.dtype)


class LocalPatchInteraction(nn.Module):
    """Neighbouring patches are mixed, each channel for itself, by two depthwise 3 × 3 convolutions.

    Between the two stand GELU, then BatchNorm, as in the authors' code and weights; the paper's text names
    them the other way round. Together they see 5 × 5 patches.

    Args:
        dim: width d of a token.

    Shape: tokens (b, n, d) and their grid (rows, columns) -> (b, n, d).

    Source: El-Nouby et al. 2021, section 3.3.

    Built in lesson 06.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns = grid
        maps = rearrange(tokens, "b (rows columns) d -> b d rows columns", rows=rows, columns=columns)
        maps = self.conv2(self.bn(self.act(self.conv1(maps))))
        return rearrange(maps, "b d rows columns -> b (rows columns) d")


class ConvPatchEmbedding(nn.Module):
    """The patch stem of XCiT: 3 × 3 convolutions of stride 2, each with BatchNorm, GELU between them.

    The width doubles with every convolution and ends at dim. The paper uses patches of 16 pixels (four
    convolutions) and of 8 (three).

    Args:
        patch_size: the overall stride in pixels, a power of two from 2 on.
        dim: width d of a token, divisible by half of patch_size.
        channels: c.

    Shape: images (b, c, h, w) of any size that the stride divides -> tokens (b, n, d).

    Raises:
        TypeError, ValueError: for sizes and images that do not fit.

    Source: El-Nouby et al. 2021, after Graham et al. 2021.

    Built in lesson 06.
    """

    def __init__(self, *, patch_size: int, dim: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(1, dim=dim, channels=channels)
        steps = halvings(patch_size)
        if dim % (patch_size // 2):
            raise ValueError(f"dim {dim} is not divisible by half of patch_size {patch_size}")
        widths = [channels] + [dim // 2**step for step in reversed(range(steps))]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            convolution = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(width_out)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])  # no GELU after the last
        self.patch_size, self.channels = pair(patch_size), channels

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, self.channels)
        patch_grid(images.shape[-2:], self.patch_size)
        return rearrange(self.proj(images), "b d rows columns -> b (rows columns) d")


class FourierPositions(nn.Module):
    """Positions for a grid of any size: fixed sines and cosines of the place between the edges, and a learned
    layer.

    Row i of r stands at the angle 2π (i + 1) / r, whatever r is; its waves are the sine and the cosine of
    that angle times 10000^(-j / 16), j = 0 … 15. Columns likewise.

    Args:
        dim: width d of a token.

    Shape: a grid (rows, columns) -> (n, d), in reading order.

    Source: El-Nouby et al. 2021, after Vaswani et al. 2017.

    Built in lesson 06.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        self.token_projection = nn.Linear(64, dim)

    def waves(self, grid: tuple[int, int]) -> Tensor:
        """The sines and cosines of a grid (rows, columns): (n, 64), 32 of the row, then 32 of the column."""
        device = self.token_projection.weight.device
        frequencies = 10000.0 ** -(torch.arange(16, device=device) / 16)

        def along(length: int) -> Tensor:
            last = length + 1e-6  # as published, though nothing could divide by zero here
            angles = 2 * math.pi * torch.arange(1, length + 1, device=device)[:, None] / last * frequencies
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sine and cosine in turn

        rows, columns = grid
        of_rows = repeat(along(rows), "rows f -> (rows columns) f", columns=columns)
        of_columns = repeat(along(columns), "columns f -> (rows columns) f", rows=rows)
        return torch.cat([of_rows, of_columns], dim=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        return self.token_projection(self.waves(grid).to(self.token_projection.weight))


class XCiTBlock(nn.Module):
    """Channels attend to channels, neighbouring patches are mixed, every patch passes a feed-forward layer.

    Each of the three branches passes LayerScale and drop path before it is added.

    Args:
        dim: width d of a token.
        heads: number of heads h.
        mlp_dim: hidden width of the feed-forward layer.
        init: start of LayerScale.
        dim_head: width of one head, dim // heads by default.
        dropout: share dropped in training.
        layer_dropout: share of the samples that lose a branch in training.

    Shape: tokens (b, n, d) and their grid (rows, columns) -> (b, n, d).

    Source: El-Nouby et al. 2021, section 3.3.

    Built in lesson 06.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_dim: int,
        init: float,
        dim_head: int | None = None,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = XCAttention(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.ls1 = LayerScale(dim, init)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim=dim, hidden_dim=mlp_dim, dropout=dropout)
        self.ls2 = LayerScale(dim, init)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim)
        self.ls3 = LayerScale(dim, init)
        self.drop_path = StochasticDepth(layer_dropout)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = residual(tokens, self.norm1, self.attn, self.ls1, self.drop_path)
        tokens = residual(tokens, self.norm3, partial(self.local_mp, grid=grid), self.ls3, self.drop_path)
        return residual(tokens, self.norm2, self.mlp, self.ls2, self.drop_path)


class XCiTClassBlock(ClassAttentionBlock):
    """CaiT's class block as XCiT's authors compute it: the patches move too.

    The patches get their own normalised values added, then are doubled, and the residual of the feed-forward
    layer starts behind the norm.

    Args:
        tokens_norm: whether norm2 takes the patches too, as in all published models but nano.
        dim, heads, mlp_dim, init, dim_head: as for ClassAttentionBlock.

    Shape: tokens (b, 1 + n, d), the class token first -> (b, 1 + n, d).

    Source: El-Nouby et al. 2021, by their code.

    Built in lesson 06.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_dim: int,
        init: float,
        dim_head: int | None = None,
        tokens_norm: bool = True,
    ) -> None:
        super().__init__(dim=dim, heads=heads, mlp_dim=mlp_dim, init=init, dim_head=dim_head)
        self.tokens_norm = tokens_norm

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        class_token = self.norm2(tokens[:, :1] + self.ls1(self.attn(normed)))
        patches = tokens[:, 1:] + self.ls1(normed[:, 1:])
        if self.tokens_norm:
            patches = self.norm2(patches)
        return torch.cat([class_token + self.ls2(self.mlp(class_token)), 2 * patches], dim=1)


class XCiT(Backbone):
    """Cross-Covariance Image Transformer.

    `depth` layers of channel attention and local patch interaction, then `cls_depth` layers in which a class
    token reads the patches.

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        depth, cls_depth: number of layers of the first and of the second stage.
        heads: number of heads h.
        mlp_dim: hidden width of a block's feed-forward layer.
        channels: c.
        dim_head: width of one head, dim // heads by default.
        dropout, emb_dropout: shares dropped in training, in the first stage and after the positions.
        layer_dropout: share of the samples that lose a branch in training, the same in every layer of the
            first stage.
        tokens_norm: whether the class blocks normalise the patches too, as all published models but nano do.
        patch_embedding: any module that turns images into one token for each patch; by default the paper's
            ConvPatchEmbedding for patches of 8 and 16 pixels, and the plain PatchEmbedding for others.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Any image size that patches fill is welcome;
    nothing is resized for it. LayerScale starts at 1 up to 12 layers and at 1e-5 beyond, as in the published
    models of 12 and 24.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: El-Nouby et al. 2021.

    Built in lesson 06.
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
        cls_depth: int = 2,
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        tokens_norm: bool = True,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        height, width = pair(patch_size, "patch_size")
        if patch_embedding is None and height == width and height in (8, 16):
            patch_embedding = ConvPatchEmbedding(patch_size=height, dim=dim, channels=channels)
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            channels=channels,
            emb_dropout=emb_dropout,
            patch_embedding=patch_embedding,
        )
        require_at_least(1, depth=depth, cls_depth=cls_depth, mlp_dim=mlp_dim)
        init = 1.0 if depth <= 12 else 1e-5
        block = partial(XCiTBlock, dim=dim, heads=heads, mlp_dim=mlp_dim, dim_head=dim_head, init=init)
        class_block = partial(
            XCiTClassBlock, dim=dim, heads=heads, mlp_dim=mlp_dim, dim_head=dim_head, init=init
        )
        self.pos_embed = FourierPositions(dim)
        self.blocks = nn.ModuleList(block(dropout=dropout, layer_dropout=layer_dropout) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.cls_attn_blocks = nn.Sequential(
            *(class_block(tokens_norm=tokens_norm) for _ in range(cls_depth))
        )
        self.add_head()

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) before positions, on their grid -> (b, 1 + n, d), the class token first."""
        patches = self.pos_drop(tokens + self.pos_embed(grid))
        for block in self.blocks:
            patches = block(patches, grid)
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.cls_attn_blocks(torch.cat([class_token, patches], dim=1))
