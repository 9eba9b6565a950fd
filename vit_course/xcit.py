"""XCiT.

What if channels asked channels, instead of patches asking patches, so that twice the patches cost twice as
much and not four times?

Made from notebooks/06_xcit.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention
from vit_course.cait import ClassAttentionBlock, LayerScale, LayerScaleBlock
from vit_course.patching import (
    PatchEmbedding,
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_images,
    require_tokens,
)

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
    """Cross-covariance attention: channels ask channels, and the tokens are what they are compared on
    (El-Nouby et al. 2021, section 3.2).

    Within a head, every channel of the queries and of the keys is scaled to length one over the tokens; the
    softmax of their cosines, times a temperature that each head learns, says how much of which channel of the
    values a channel of the output takes. The weights (b, h, k, k) do not grow with the number of tokens.

    dim: width d of a token. heads: h. dim_head: width k of one head, dim // heads by default. dropout: share
    of the weights, and of the output, that is dropped in training.
    Tokens (b, n, d) -> (b, n, d).
    Raises ValueError where the heads do not divide the width or the tokens have another one.

    Built in lesson 06.
    """

    kind = "channel"

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.qkv.in_features)
        q, k, v = (
            rearrange(part, "b n (h k) -> b h n k", h=self.heads)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)  # each channel has length one over the tokens
        weights = (self.temperature * (q.transpose(-2, -1) @ k)).softmax(dim=-1)  # (b, h, k, k)
        if self.attention_recorder is not None:
            self.attention_recorder(weights)
        out = v @ self.attn_drop(weights).transpose(-2, -1)  # (b, h, n, k)
        return self.proj_drop(self.proj(rearrange(out, "b h n k -> b n (h k)")))


def _require_filled(tokens: Tensor, dim: int, grid: tuple[int, int]) -> None:
    """Raise a TypeError or ValueError unless `tokens` is a float tensor (b, rows · columns, dim)."""
    require_tokens(tokens, dim)
    rows, columns = grid
    if tokens.shape[1] != rows * columns:
        raise ValueError(
            f"a grid of {rows} by {columns} patches needs {rows * columns} tokens, got shape "
            f"{tuple(tokens.shape)}"
        )


class LocalPatchInteraction(nn.Module):
    """Neighbouring patches talk, each channel for itself: two depthwise 3 × 3 convolutions (El-Nouby et al.
    2021, section 3.3).

    Between the two stand GELU, then BatchNorm, as in the authors' code and weights; the paper's text names
    them the other way round. Together they see 5 × 5 patches.

    dim: width d of a token. Tokens (b, n, d) and their grid (rows, columns) -> (b, n, d).
    Raises ValueError where the tokens do not fill the grid.

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
        rows, columns = pair(grid, "grid")
        _require_filled(tokens, self.conv1.in_channels, (rows, columns))
        maps = rearrange(tokens, "b (rows columns) d -> b d rows columns", rows=rows)
        maps = self.conv2(self.bn(self.act(self.conv1(maps))))
        return rearrange(maps, "b d rows columns -> b (rows columns) d")


class ConvPatchEmbedding(nn.Module):
    """The patch stem of XCiT: 3 × 3 convolutions of stride 2, each with BatchNorm, GELU between them
    (El-Nouby et al. 2021, after Graham et al. 2021).

    The width doubles with every convolution and ends at dim. The paper uses patches of 16 pixels (four
    convolutions) and of 8 (three).

    patch_size: the overall stride in pixels, a power of two from 2 on. dim: width d of a token, divisible by
    half of patch_size. channels: c. Images (b, c, h, w) of any size that the stride divides -> tokens (b, n,
    d). Raises ValueError for other sizes.

    Built in lesson 06.
    """

    def __init__(self, *, patch_size: int, dim: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(1, patch_size=patch_size, dim=dim, channels=channels)
        self.patch_size, self.channels = pair(patch_size), channels
        halvings = patch_size.bit_length() - 1
        if halvings < 1 or patch_size != 2**halvings:
            raise ValueError(
                f"patch_size of a ConvPatchEmbedding must be a power of two from 2 on, got {patch_size}"
            )
        if dim % (patch_size // 2):
            raise ValueError(f"dim {dim} is not divisible by half of patch_size {patch_size}")
        widths = [channels] + [dim // 2**i for i in reversed(range(halvings))]
        layers = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            convolution = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(width_out)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])  # no GELU after the last

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, self.channels)
        patch_grid(tuple(images.shape[-2:]), self.patch_size)
        return rearrange(self.proj(images), "b d rows columns -> b (rows columns) d")


class FourierPositions(nn.Module):
    """Positions for a grid of any size: fixed sines and cosines of where a patch stands between the edges,
    and one learned linear layer (El-Nouby et al. 2021, after Vaswani et al. 2017).

    Row i of r stands at the angle 2π (i + 1) / r, whatever r is; its waves are the sine and the cosine of
    that angle times 10000^(-j / 16), j = 0 … 15. Columns likewise.

    dim: width d of a token. A grid (rows, columns) -> (n, d), in reading order.

    Built in lesson 06.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        self.token_projection = nn.Linear(64, dim)

    def waves(self, grid: tuple[int, int]) -> Tensor:
        """The sines and cosines of a grid (rows, columns) of patches: (n, 64), 32 for the row, then 32 for the
        column.
        """
        device = self.token_projection.weight.device
        frequencies = 10000.0 ** -(torch.arange(16, device=device) / 16)

        def along(length: int) -> Tensor:
            last = length + 1e-6  # as published, though nothing could divide by zero here
            angles = 2 * math.pi * torch.arange(1, length + 1, device=device)[:, None] / last * frequencies
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sine and cosine in turn

        rows, columns = pair(grid, "grid")
        return torch.cat(
            [
                repeat(along(rows), "rows f -> (rows columns) f", columns=columns),
                repeat(along(columns), "columns f -> (rows columns) f", rows=rows),
            ],
            dim=1,
        )

    def forward(self, grid: tuple[int, int]) -> Tensor:
        return self.token_projection(self.waves(grid).to(self.token_projection.weight))


class XCiTBlock(LayerScaleBlock):
    """Channels talk (XCAttention), neighbouring patches talk (LocalPatchInteraction), every patch thinks
    (feed-forward layer); each branch passes LayerScale and stochastic depth (El-Nouby et al. 2021, section
    3.3).

    dim: width d of a token. heads: h. mlp_dim: hidden width of the feed-forward layer. init: start of
    LayerScale. dim_head: width of one head, dim // heads by default. dropout: share dropped in training.
    layer_dropout: share of the samples that lose a branch in training.
    Tokens (b, n, d) and their grid (rows, columns) -> (b, n, d).

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
        attn = XCAttention(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        super().__init__(
            attn, dim=dim, mlp_dim=mlp_dim, init=init, dropout=dropout, layer_dropout=layer_dropout
        )
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim)
        self.ls3 = LayerScale(dim, init)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        require_tokens(tokens, self.norm1.normalized_shape[0])
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        tokens = tokens + self.drop_path(self.ls3(self.local_mp(self.norm3(tokens), grid)))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


class XCiTClassBlock(ClassAttentionBlock):
    """CaiT's class block as XCiT's authors compute it: the patches move too (El-Nouby et al. 2021, by
    their code).

    The patches get their own normalised values added, then are doubled, and the residual of the feed-forward
    layer starts behind the norm.

    tokens_norm: whether norm2 takes the patches too, as in all published models but nano. Other arguments as
    for ClassAttentionBlock. Tokens (b, 1 + n, d), the class token first -> (b, 1 + n, d).

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
        require_tokens(tokens, self.norm1.normalized_shape[0])
        normed = self.norm1(tokens)
        class_token = self.norm2(tokens[:, :1] + self.ls1(self.attn(normed)))
        patches = tokens[:, 1:] + self.ls1(normed[:, 1:])
        if self.tokens_norm:
            patches = self.norm2(patches)
        return torch.cat([class_token + self.ls2(self.mlp(class_token)), 2 * patches], dim=1)


class XCiT(nn.Module):
    """Cross-Covariance Image Transformer (El-Nouby et al. 2021).

    `depth` layers in which channels and neighbouring patches talk, then `cls_depth` layers in which a class
    token reads the patches.

    image_size, patch_size: in pixels, an int or a (height, width) pair. num_classes: length of the logits; 0
    gives pooled features. dim: width d of a token. heads: h. mlp_dim: hidden width of a block's feed-forward
    layer. channels: c. dim_head: width of one head, dim // heads by default. dropout, emb_dropout: shares
    dropped in training, in the first stage and after the positions. layer_dropout: share of the samples that
    lose a branch in training, the same in every layer of the first stage. tokens_norm: whether the class
    blocks normalise the patches too, as all published models but nano do. patch_embedding: any module that
    turns images into one token for each patch; by default the paper's ConvPatchEmbedding for patches of 8 and
    16 pixels, and the plain PatchEmbedding for others.

    Images (b, c, h, w) -> logits (b, num_classes). Any image size that patches fill is welcome; nothing is
    resized for it. LayerScale starts at 1 up to 12 layers and at 1e-5 beyond, as in the published models of
    12 and 24. Raises ValueError or TypeError for sizes that do not fit.

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
        super().__init__()
        require_at_least(1, dim=dim, depth=depth, cls_depth=cls_depth, mlp_dim=mlp_dim)
        require_at_least(0, num_classes=num_classes)
        require_between(0, 1, emb_dropout=emb_dropout)
        if patch_embedding is not None and not isinstance(patch_embedding, nn.Module):
            raise TypeError(f"patch_embedding must be a torch.nn.Module, got {patch_embedding!r}")
        self.patch_size = height, width = pair(patch_size, "patch_size")
        self.grid = patch_grid(image_size, patch_size)
        self.num_features = dim
        self.num_prefix_tokens = 1
        block = {"dim": dim, "heads": heads, "mlp_dim": mlp_dim, "dim_head": dim_head}
        block["init"] = 1.0 if depth <= 12 else 1e-5

        if patch_embedding is None and height == width in (8, 16):
            patch_embedding = ConvPatchEmbedding(patch_size=height, dim=dim, channels=channels)
        self.patch_embed = patch_embedding or PatchEmbedding(
            patch_size=patch_size, dim=dim, channels=channels
        )
        self.pos_embed = FourierPositions(dim)
        self.pos_drop = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            XCiTBlock(**block, dropout=dropout, layer_dropout=layer_dropout) for _ in range(depth)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.cls_attn_blocks = nn.Sequential(
            *(XCiTClassBlock(**block, tokens_norm=tokens_norm) for _ in range(cls_depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, 1 + n, d), the class token first.

        grid: (rows, columns) of the patches, the one of image_size by default. Raises ValueError where the
        tokens do not fill it.
        """
        grid = pair(grid or self.grid, "grid")
        _require_filled(tokens, self.num_features, grid)
        patches = self.pos_drop(tokens + self.pos_embed(grid))
        for block in self.blocks:
            patches = block(patches, grid)
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.norm(self.cls_attn_blocks(torch.cat([class_token, patches], dim=1)))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> normalised tokens (b, 1 + n, d), the class token first."""
        return self.forward_tokens(
            self.patch_embed(images), patch_grid(tuple(images.shape[-2:]), self.patch_size)
        )

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens -> logits (b, num_classes), or pooled features (b, d) where there are no classes."""
        require_tokens(features, self.num_features)
        return self.head(features[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
