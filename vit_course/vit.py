"""Vision Transformer.

How do patches and attention become a model that names what is in a picture, and how can you be sure that
yours is the one in the paper?

Made from notebooks/03_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

import torch
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention
from vit_course.patching import (
    PatchEmbedding,
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_tokens,
    resize_positions,
    sincos_positions,
)

__all__ = ["FeedForward", "TransformerBlock", "ViT", "SimpleViT"]


class FeedForward(nn.Module):
    """The same two linear layers for every token, with a GELU between them (Vaswani et al. 2017, section 3.3;
    GELU as in the ViT).

    dim: width d of a token. hidden_dim: width between the two layers. dropout: share dropped after each layer
    in training. Tokens (b, n, d) -> (b, n, d).

    Built in lesson 03.
    """

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, dim=dim, hidden_dim=hidden_dim)
        require_between(0, 1, dropout=dropout)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.fc1.in_features)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer, each on normalised tokens and added to what was there
    (Dosovitskiy et al. 2020, eq. 2 and 3).

    dim: width d of a token. heads: h. mlp_dim: hidden width of the feed-forward layer. dim_head: width of one
    head, dim // heads by default. dropout: share dropped in training.
    Tokens (b, n, d) -> (b, n, d).

    Built in lesson 03.
    """

    def __init__(
        self, *, dim: int, heads: int, mlp_dim: int, dim_head: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiHeadAttention(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim=dim, hidden_dim=mlp_dim, dropout=dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.attn.qkv.in_features)
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2020, equations 1 to 4).

    image_size, patch_size: in pixels, an int or a (height, width) pair. num_classes: length of the logits; 0
    gives pooled features. dim: width d of a token. depth: number of blocks. heads: h. mlp_dim: hidden width
    of a block's feed-forward layer. channels: c. dim_head: width of one head, dim // heads by default.
    dropout, emb_dropout: shares dropped in training, in the blocks and after the positions. pool: 'cls' reads
    a class token, 'mean' has none and averages the patches. patch_embedding: any module that turns images
    into one token for each patch of patch_size pixels, in the place of PatchEmbedding.

    Images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome: the
    positions are resized. Submodules are named as in timm, whose weights load as they are. Raises ValueError
    or TypeError for sizes that do not fit.

    Built in lesson 03.
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
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: str = "cls",
        patch_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, dim=dim, depth=depth, mlp_dim=mlp_dim)
        require_at_least(0, num_classes=num_classes)
        require_between(0, 1, emb_dropout=emb_dropout)
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean', got {pool!r}")
        if patch_embedding is not None and not isinstance(patch_embedding, nn.Module):
            raise TypeError(f"patch_embedding must be a torch.nn.Module, got {patch_embedding!r}")
        self.patch_size = pair(patch_size, "patch_size")
        self.grid = patch_grid(image_size, patch_size)
        self.num_features = dim
        self.num_prefix_tokens = 1 if pool == "cls" else 0

        self.patch_embed = patch_embedding or PatchEmbedding(
            patch_size=patch_size, dim=dim, channels=channels
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "cls" else None
        self.pos_embed = nn.Parameter(
            torch.empty(1, self.num_prefix_tokens + self.grid[0] * self.grid[1], dim).normal_(std=0.02)
        )
        self.pos_drop = nn.Dropout(emb_dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim=dim, heads=heads, mlp_dim=mlp_dim, dim_head=dim_head, dropout=dropout)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches, class token first: (num_prefix_tokens +
        n, d).
        """
        return resize_positions(self.pos_embed[0], self.grid, grid, self.num_prefix_tokens)

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, num_prefix_tokens + n, d).

        grid: (rows, columns) of the patches, the one of image_size by default. Raises ValueError where the
        tokens do not fill it.
        """
        require_tokens(tokens, self.num_features)
        rows, columns = grid = pair(grid or self.grid, "grid")
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"a grid of {rows} by {columns} patches needs {rows * columns} tokens, got shape "
                f"{tuple(tokens.shape)}"
            )
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.norm(self.blocks(self.pos_drop(tokens + self.positions(grid))))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> normalised tokens (b, num_prefix_tokens + n, d), class token first."""
        return self.forward_tokens(
            self.patch_embed(images), patch_grid(tuple(images.shape[-2:]), self.patch_size)
        )

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens -> logits (b, num_classes), or pooled features (b, d) where there are no classes."""
        require_tokens(features, self.num_features)
        return self.head(features.mean(dim=1) if self.cls_token is None else features[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class SimpleViT(ViT):
    """ViT with fixed sine-cosine positions, the mean of the patches instead of a class token, and no dropout
    (Beyer et al. 2022).

    Arguments, shapes and errors as for ViT; dim must be divisible by 4.

    Built in lesson 03.
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
        channels: int = 3,
        dim_head: int | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size, patch_size=patch_size, num_classes=num_classes, dim=dim, depth=depth, heads=heads, mlp_dim=mlp_dim,
            channels=channels, dim_head=dim_head, pool="mean",
        )  # fmt: skip
        del self.pos_embed
        self.register_buffer("pos_embed", sincos_positions(self.grid, dim)[None], persistent=False)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Sine-cosine positions for any grid of (rows, columns) patches: (n, d)."""
        if grid == self.grid:
            return self.pos_embed[0]
        return sincos_positions(grid, self.num_features).to(self.pos_embed)
