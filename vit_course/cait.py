"""CaiT.

Why does a deeper ViT not simply learn more, and what must change so that it does?

Made from notebooks/05_cait.ipynb by `make export`: read and edit the lesson, not this file.
"""

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import HeadedAttention, MultiHeadAttention, attend
from vit_course.patching import require_at_least, require_between, resize_positions, start_linear
from vit_course.vit import Backbone, FeedForward, StochasticDepth, residual

__all__ = [
    "LayerScale",
    "layer_scale_init",
    "LayerScaleBlock",
    "mix_heads",
    "TalkingHeadsAttention",
    "ClassAttention",
    "ClassAttentionBlock",
    "CaiT",
]


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, small at the start.

    Args:
        dim: width d of a token.
        init: what every factor starts with; `layer_scale_init` gives the paper's.

    Shape: tokens (b, n, d) -> (b, n, d).

    Raises:
        TypeError, ValueError: for another width and for a negative init.

    Source: Touvron et al. 2021, section 2.

    Built in lesson 05.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        require_between(0, math.inf, init=init)
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gamma * tokens


def layer_scale_init(depth: int) -> float:
    """What LayerScale starts with, in every layer of a model: 0.1, 1e-5 or 1e-6.

    Args:
        depth: number of layers of the model; 0.1 is for up to 18, 1e-5 for up to 24, 1e-6 for more.

    Source: Touvron et al. 2021, section 2.

    Built in lesson 05.
    """
    require_at_least(1, depth=depth)
    if depth <= 18:
        return 0.1
    return 1e-5 if depth <= 24 else 1e-6


class LayerScaleBlock(nn.Module):
    """A transformer block whose branches pass LayerScale and drop path before they are added.

    Args:
        attn: any attention on tokens of width dim.
        dim: width d of a token.
        mlp_dim: hidden width of the feed-forward layer.
        init: start of LayerScale.
        dropout: share dropped in the feed-forward layer in training.
        layer_dropout: share of the samples that lose a branch in training.

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: Touvron et al. 2021, section 2.

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
        tokens = residual(tokens, self.norm1, self.attn, self.ls1, self.drop_path)
        return residual(tokens, self.norm2, self.mlp, self.ls2, self.drop_path)


def mix_heads(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Make every head a mixture of all heads, the same one for each query and key.

    Args:
        maps: (b, h, queries, keys).
        weight: (g, h), whose row g makes the new head g.
        bias: (g,).

    Returns:
        (b, g, queries, keys).

    Source: Shazeer et al. 2020.

    Built in lesson 05.
    """
    flat = rearrange(maps, "b h i j -> b h (i j)")
    # One product per sample that adds the bias on its way: no axis has to be moved, no map is copied.
    mixed = torch.baddbmm(bias[:, None], weight.expand(maps.shape[0], -1, -1), flat)
    return rearrange(mixed, "b g (i j) -> b g i j", i=maps.shape[2])


class TalkingHeadsAttention(MultiHeadAttention):
    """Multi-head attention whose heads are mixed before the softmax and once more after it.

    Rows of the weights that are really used no longer sum to one. Arguments, shapes and errors as for
    MultiHeadAttention.

    Source: Shazeer et al. 2020, as in CaiT (Touvron et al. 2021).

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
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (b, h, n, n)
        weights = mix_heads(scores, self.proj_l.weight, self.proj_l.bias).softmax(dim=-1)
        weights = mix_heads(weights, self.proj_w.weight, self.proj_w.bias)
        self.record(weights)
        return self.merge(self.attn_drop(weights) @ v)


class ClassAttention(HeadedAttention):
    """Attention in which only the class token attends, to the patches and to itself.

    One query per picture, so the cost grows with the number of patches, not with its square. Arguments and
    errors as for HeadedAttention.

    Shape: tokens (b, 1 + n, d), the class token first -> what the class token takes up (b, 1, d).

    Source: Touvron et al. 2021, section 3.

    Built in lesson 05.
    """

    kind = "class"

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.q, self.k, self.v = (nn.Linear(dim, self.inner) for _ in range(3))
        self.proj = nn.Linear(self.inner, dim)
        for layer in (self.q, self.k, self.v, self.proj):
            start_linear(layer)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens)))
        out, weights = attend(q, k, v, self.dropout)  # (b, h, 1, k), (b, h, 1, 1 + n)
        self.record(weights)
        return self.merge(out)


class ClassAttentionBlock(nn.Module):
    """The class token attends to all tokens and passes a feed-forward layer; the patches stay as they are.

    Args:
        dim: width d of a token.
        heads: number of heads h.
        mlp_dim: hidden width of the feed-forward layer.
        init: start of LayerScale.
        dim_head: width of one head, dim // heads by default.

    Shape: tokens (b, 1 + n, d), the class token first -> (b, 1 + n, d).

    Source: Touvron et al. 2021, section 3.

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
        class_token = tokens[:, :1] + self.ls1(self.attn(self.norm1(tokens)))
        class_token = residual(class_token, self.norm2, self.mlp, self.ls2)
        return torch.cat([class_token, tokens[:, 1:]], dim=1)


class CaiT(Backbone):
    """Class-Attention in Image Transformers.

    First `depth` layers in which patches attend to patches, then `cls_depth` layers in which a class token
    reads them.

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
            first stage; as in the paper's code, nothing is dropped in the second.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome:
    the positions are resized.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Touvron et al. 2021.

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
        require_at_least(1, depth=depth, cls_depth=cls_depth, mlp_dim=mlp_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), dim).normal_(std=0.02))
        attention = partial(TalkingHeadsAttention, dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        block = partial(
            LayerScaleBlock,
            dim=dim,
            mlp_dim=mlp_dim,
            init=layer_scale_init(depth),
            dropout=dropout,
            layer_dropout=layer_dropout,
        )
        self.blocks = nn.Sequential(*(block(attention()) for _ in range(depth)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        class_block = partial(
            ClassAttentionBlock,
            dim=dim,
            heads=heads,
            mlp_dim=mlp_dim,
            init=layer_scale_init(depth),
            dim_head=dim_head,
        )
        self.blocks_token_only = nn.Sequential(*(class_block() for _ in range(cls_depth)))
        self.add_head()

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (n, d). The class token has none."""
        return resize_positions(self.pos_embed[0], self.grid, grid)

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) before positions, on their grid -> (b, 1 + n, d), the class token first."""
        patches = self.blocks(self.pos_drop(tokens + self.positions(grid)))
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.blocks_token_only(torch.cat([class_token, patches], dim=1))
