"""CaiT.

Why does a deeper ViT not simply learn more, and what must change so that it does?

Made from notebooks/05_cait.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention, attention
from vit_course.patching import (
    PatchEmbedding,
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_tokens,
    resize_positions,
)
from vit_course.vit import FeedForward

__all__ = [
    "LayerScale",
    "layer_scale_init",
    "StochasticDepth",
    "mix_heads",
    "TalkingHeadsAttention",
    "ClassAttention",
    "LayerScaleBlock",
    "ClassAttentionBlock",
    "CaiT",
]


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, small at the start (Touvron et al. 2021, section 2).

    dim: width d of a token. init: what every factor starts with; `layer_scale_init` gives the paper's.
    Tokens (b, n, d) -> (b, n, d). Raises ValueError for a negative init and for tokens of another width.

    Built in lesson 05.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        require_between(0, math.inf, init=init)
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.gamma.shape[0])
        return self.gamma * tokens


def layer_scale_init(depth: int) -> float:
    """What LayerScale starts with, in every layer of a model that is `depth` layers deep: 0.1 up to 18, 1e-5
    up to 24, 1e-6 beyond (Touvron et al. 2021, section 2).

    Built in lesson 05.
    """
    require_at_least(1, depth=depth)
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


class StochasticDepth(nn.Module):
    """Drop a whole branch of a residual block, for each sample by itself and in training only (Huang et al.
    2016).

    What is kept is divided by the share that is kept, so that the mean over many draws is the branch itself.
    Evaluation takes just that.

    rate: share of the samples that lose the branch, 0 … 1; at 1 all do.
    Branch (b, …) -> (b, …). Raises ValueError for another rate.

    Built in lesson 05.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        require_between(0, 1, rate=rate)
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        one_draw_per_sample = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = torch.rand(one_draw_per_sample, device=branch.device) >= self.rate
        return branch * kept / ((1 - self.rate) or 1)  # at rate 1 nothing is kept, and nothing divided


def mix_heads(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Make every head a mixture of all heads, the same one for each query and key (Shazeer et al. 2020).

    maps: (b, h, queries, keys). weight: (g, h), whose row g makes the new head g. bias: (g,).
    Returns (b, g, queries, keys).

    Built in lesson 05.
    """
    flat = rearrange(maps, "b h i j -> b h (i j)")
    # One product per sample that adds the bias on its way: no axis has to be moved, no map is copied.
    mixed = torch.baddbmm(bias[:, None], weight.expand(maps.shape[0], -1, -1), flat)
    return rearrange(mixed, "b g (i j) -> b g i j", i=maps.shape[2])


class TalkingHeadsAttention(MultiHeadAttention):
    """Multi-head attention whose heads are mixed before the softmax and once more after it (Shazeer et al.
    2020, as in CaiT).

    Rows of the weights that are really used no longer sum to one. Arguments, shapes and errors as for
    MultiHeadAttention.

    Built in lesson 05.
    """

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.proj_l = nn.Linear(heads, heads)  # mixes the scores, which the paper calls logits
        self.proj_w = nn.Linear(heads, heads)  # mixes the weights
        for mixer in (self.proj_l, self.proj_w):
            nn.init.trunc_normal_(mixer.weight, std=0.02)
            nn.init.zeros_(mixer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.qkv.in_features)
        q, k, v = (
            rearrange(part, "b n (h k) -> b h n k", h=self.heads)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (b, h, n, n)
        weights = mix_heads(scores, self.proj_l.weight, self.proj_l.bias).softmax(dim=-1)
        weights = mix_heads(weights, self.proj_w.weight, self.proj_w.bias)
        if self.attention_recorder is not None:
            self.attention_recorder(weights)
        out = self.attn_drop(weights) @ v  # (b, h, n, k)
        return self.proj_drop(self.proj(rearrange(out, "b h n k -> b n (h k)")))


class ClassAttention(nn.Module):
    """Attention in which only the class token asks; it may ask itself too (Touvron et al. 2021, section
    3).

    One query per picture, so the cost grows with the number of patches, not with its square.

    dim: width d of a token. heads: h. dim_head: width k of one head, dim // heads by default. dropout: share
    of the weights, and of the output, that is dropped in training.
    Tokens (b, 1 + n, d), the class token first -> what it heard (b, 1, d).
    Raises ValueError where the heads do not divide the width or the tokens have another one.

    Built in lesson 05.
    """

    kind = "class"

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, dim=dim, heads=heads, dim_head=dim if dim_head is None else dim_head)
        require_between(0, 1, dropout=dropout)
        if dim_head is None and dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}; give dim_head")
        inner = heads * (dim_head or dim // heads)
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, inner) for _ in range(3))
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.attention_recorder = None  # set by record_attention
        for layer in (self.q, self.k, self.v, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.q.in_features)
        q, k, v = (
            rearrange(part, "b n (h k) -> b h n k", h=self.heads)
            for part in (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens))
        )
        out, weights = attention(q, k, v, self.attn_drop.p if self.training else 0.0)
        if self.attention_recorder is not None:
            self.attention_recorder(weights)  # (b, h, 1, 1 + n)
        return self.proj_drop(self.proj(rearrange(out, "b h 1 k -> b 1 (h k)")))


class LayerScaleBlock(nn.Module):
    """A transformer block whose branches pass LayerScale and stochastic depth before they are added (Touvron
    et al. 2021, section 2).

    attn: any attention on tokens of width dim. dim: d. mlp_dim: hidden width of the feed-forward layer. init:
    start of LayerScale. dropout: share dropped in the feed-forward layer in training. layer_dropout: share of
    the samples that lose a branch in training. Tokens (b, n, d) -> (b, n, d).

    Built in lesson 05.
    """

    def __init__(
        self,
        attn: nn.Module,
        *,
        dim: int,
        mlp_dim: int,
        init: float,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.ls1 = LayerScale(dim, init)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim=dim, hidden_dim=mlp_dim, dropout=dropout)
        self.ls2 = LayerScale(dim, init)
        self.drop_path = StochasticDepth(layer_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.norm1.normalized_shape[0])
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


class ClassAttentionBlock(nn.Module):
    """The class token asks all tokens, then thinks; the patches stay as they are (Touvron et al. 2021,
    section 3).

    dim: width d of a token. heads: h. mlp_dim: hidden width of the feed-forward layer. init: start of
    LayerScale. dim_head: width of one head, dim // heads by default.
    Tokens (b, 1 + n, d), the class token first -> (b, 1 + n, d).

    Built in lesson 05.
    """

    def __init__(
        self, *, dim: int, heads: int, mlp_dim: int, init: float, dim_head: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim=dim, heads=heads, dim_head=dim_head)
        self.ls1 = LayerScale(dim, init)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim=dim, hidden_dim=mlp_dim)
        self.ls2 = LayerScale(dim, init)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.norm1.normalized_shape[0])
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        class_token = class_token + self.ls1(self.attn(self.norm1(tokens)))
        class_token = class_token + self.ls2(self.mlp(self.norm2(class_token)))
        return torch.cat([class_token, patches], dim=1)


class CaiT(nn.Module):
    """Class-Attention in Image Transformers (Touvron et al. 2021).

    First `depth` layers in which the patches talk, then `cls_depth` layers in which a class token reads them.

    image_size, patch_size: in pixels, an int or a (height, width) pair. num_classes: length of the logits; 0
    gives pooled features. dim: width d of a token. heads: h. mlp_dim: hidden width of a block's feed-forward
    layer. channels: c. dim_head: width of one head, dim // heads by default. dropout, emb_dropout: shares
    dropped in training, in the first stage and after the positions. layer_dropout: share of the samples that
    lose a branch in training, the same in every layer of the first stage; as in the paper's code, nothing is
    dropped in the second.

    Images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome: the
    positions are resized. Raises ValueError or TypeError for sizes that do not fit.

    Built in lesson 05.
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
    ) -> None:
        super().__init__()
        require_at_least(1, dim=dim, depth=depth, cls_depth=cls_depth, mlp_dim=mlp_dim)
        require_at_least(0, num_classes=num_classes)
        require_between(0, 1, emb_dropout=emb_dropout)
        self.patch_size = pair(patch_size, "patch_size")
        self.grid = patch_grid(image_size, patch_size)
        self.num_features = dim
        self.num_prefix_tokens = 1
        heads_of = {"dim": dim, "heads": heads, "dim_head": dim_head}
        width = {"dim": dim, "mlp_dim": mlp_dim, "init": layer_scale_init(depth)}

        self.patch_embed = PatchEmbedding(patch_size=patch_size, dim=dim, channels=channels)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim).normal_(std=0.02))
        self.pos_drop = nn.Dropout(emb_dropout)
        self.blocks = nn.Sequential(
            *(
                LayerScaleBlock(
                    TalkingHeadsAttention(**heads_of, dropout=dropout),
                    **width,
                    dropout=dropout,
                    layer_dropout=layer_dropout,
                )
                for _ in range(depth)
            )
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.blocks_token_only = nn.Sequential(
            *(ClassAttentionBlock(**width, heads=heads, dim_head=dim_head) for _ in range(cls_depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (n, d). The class token has none."""
        return resize_positions(self.pos_embed[0], self.grid, grid)

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, 1 + n, d), the class token first.

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
        patches = self.blocks(self.pos_drop(tokens + self.positions(grid)))
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.norm(self.blocks_token_only(torch.cat([class_token, patches], dim=1)))

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
