"""MaxViT.

How can attention reach across a whole large map and still cost no more than the map is large?

Made from notebooks/07_max_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import fused_is_faster
from vit_course.cait import StochasticDepth
from vit_course.patching import require_at_least, require_between, require_floats, require_images
from vit_course.vit import FeedForward

__all__ = [
    "SqueezeExcitation",
    "MBConvResidual",
    "MBConv",
    "relative_position_index",
    "WindowAttention",
    "WindowTransformerBlock",
    "MaxViTBlock",
    "MaxViT",
]

# The published numbers: a large eps, and statistics that forget slowly.
_batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def _require_map(features: Tensor, dim: int) -> None:
    """Raise a TypeError or ValueError unless `features` is a float map (b, dim, rows, columns)."""
    require_floats("features", features, "b d rows columns")
    if features.shape[1] != dim:
        raise ValueError(f"features must have shape (b, {dim}, rows, columns), got {tuple(features.shape)}")


class SqueezeExcitation(nn.Module):
    """A gate for every channel, the same at every place (Hu et al. 2018, eq. 2 to 4; SiLU as in EfficientNet).

    dim: channels d. hidden_dim: width of the narrow layer in between.
    Map (b, d, rows, columns) -> the same map, each channel multiplied by a number in 0 … 1. Raises ValueError
    for a map of another width.

    Built in lesson 07.
    """

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        require_at_least(1, dim=dim, hidden_dim=hidden_dim)
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        _require_map(features, self.fc1.in_channels)
        summary = features.mean(dim=(2, 3), keepdim=True)  # (b, d, 1, 1): squeeze
        return features * self.fc2(F.silu(self.fc1(summary))).sigmoid()  # excite


class MBConvResidual(nn.Module):
    """A branch of convolutions beside a shortcut; in training the branch is dropped for each sample by itself
    (He et al. 2016, section 3.2; Huang et al. 2016).

    branch: a module from a map to a map. shortcut: a module with the same shapes, the identity by default.
    layer_dropout: share of the samples that lose the branch.
    Map -> shortcut(map) + branch(map).

    Built in lesson 07.
    """

    def __init__(
        self, branch: nn.Module, *, shortcut: nn.Module | None = None, layer_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.branch = branch
        self.drop_path = StochasticDepth(layer_dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut(features) + self.drop_path(self.branch(features))


class MBConv(MBConvResidual):
    """Inverted bottleneck: widen, look around channel by channel, gate, narrow (Tu et al. 2022, figure 2;
    Sandler et al. 2018).

    The width inside is 4 · dim_out, that of the gate dim_out / 4, as published. dim_in, dim_out: channels of
    the map before and after. downsample: halve its sides; the shortcut then averages and projects.
    layer_dropout: share of the samples that lose the branch in training.
    Map (b, dim_in, rows, columns) -> (b, dim_out, rows, columns), or half the rows and columns. Built in
    lesson 07.

    Built in lesson 07.
    """

    def __init__(
        self, *, dim_in: int, dim_out: int, downsample: bool = False, layer_dropout: float = 0.0
    ) -> None:
        require_at_least(1, dim_in=dim_in)
        require_at_least(4, dim_out=dim_out)  # narrower ones would leave nothing for the gate
        hidden, stride = 4 * dim_out, 2 if downsample else 1
        branch = OrderedDict(
            pre_norm=_batch_norm(dim_in),
            expand=nn.Conv2d(dim_in, hidden, 1, bias=False),
            norm1=_batch_norm(hidden),
            act1=nn.GELU(),
            depthwise=nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            norm2=_batch_norm(hidden),
            act2=nn.GELU(),
            se=SqueezeExcitation(dim=hidden, hidden_dim=dim_out // 4),
            project=nn.Conv2d(hidden, dim_out, 1),
        )
        shortcut = [nn.AvgPool2d(3, stride, padding=1)] if downsample else []
        if downsample or dim_in != dim_out:
            shortcut.append(nn.Conv2d(dim_in, dim_out, 1))
        super().__init__(
            nn.Sequential(branch), shortcut=nn.Sequential(*shortcut), layer_dropout=layer_dropout
        )

    def forward(self, features: Tensor) -> Tensor:
        _require_map(features, self.branch.expand.in_channels)
        return super().forward(features)


def relative_position_index(window_size: int) -> Tensor:
    """Which row of the bias table belongs to a query and a key of one window (Liu et al. 2021, section 3.2).

    Offsets, query minus key, run from 1 - w to w - 1 both ways; shifted to start at 0 they count like a number
    of two digits to the base 2w - 1: down first, then across.
    window_size: w. Returns (t, t) whole numbers below (2w - 1)², t = w².

    Built in lesson 07.
    """
    require_at_least(1, window_size=window_size)
    places = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))  # (t, 2): row, column
    down, across = (places[:, None] - places + window_size - 1).unbind(dim=-1)  # (t, t) each
    return down * (2 * window_size - 1) + across


# All that tells block from grid. y and x count windows, r and c count cells inside a window: in a block the
# cells of a window lie side by side, in a grid they lie as far apart as there are windows.
_CELLS = {"block": "(y r) (x c)", "grid": "(r y) (c x)"}


class WindowAttention(nn.Module):
    """Attention inside windows of w by w cells, with a learned bias for each offset (Tu et al. 2022,
    section 3).

    dim: width d of a cell. axis: 'block', windows of neighbours, or 'grid', windows of cells that are spread
    over the whole map. window_size: w. dim_head: width k of a head; d / k is the number of heads h. dropout:
    share of the weights, and of the output, dropped in training. attention_scale: 'head' divides the scores by
    √k, as the paper; 'dim' by √d, as torchvision.
    Map (b, d, rows, columns) -> the same shape. It is recorded with kind 'window', weights ((b windows), h, t,
    t), t = w². Raises ValueError for a map that windows do not fill.

    Built in lesson 07.
    """

    kind = "window"

    def __init__(
        self,
        *,
        dim: int,
        axis: str,
        window_size: int = 7,
        dim_head: int = 32,
        dropout: float = 0.0,
        attention_scale: str = "head",
    ) -> None:
        super().__init__()
        require_at_least(1, dim=dim, window_size=window_size, dim_head=dim_head)
        require_between(0, 1, dropout=dropout)
        if axis not in _CELLS:
            raise ValueError(f"axis must be 'block' or 'grid', got {axis!r}")
        if attention_scale not in ("head", "dim"):
            raise ValueError(f"attention_scale must be 'head' or 'dim', got {attention_scale!r}")
        if dim % dim_head:
            raise ValueError(f"dim {dim} is not divisible by dim_head {dim_head}")
        self.axis, self.window_size, self.heads = axis, window_size, dim // dim_head
        self.scale = (dim_head if attention_scale == "head" else dim) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, self.heads))
        self.register_buffer(
            "relative_position_index", relative_position_index(window_size), persistent=False
        )
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.attention_recorder = None  # set by record_attention
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):  # q, k and v start each for itself
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def members(self, rows: int, columns: int) -> Tensor:
        """Which cells of a map share a window: (windows, t), cells numbered in reading order. Raises ValueError
        where windows do not fill the map.
        """
        w = self.window_size
        if rows % w or columns % w:
            raise ValueError(f"windows of {w} by {w} do not fill a map of {rows} by {columns} cells")
        cells = torch.arange(rows * columns).view(rows, columns)
        return rearrange(cells, f"{_CELLS[self.axis]} -> (y x) (r c)", r=w, c=w)

    def bias(self) -> Tensor:
        """What each offset adds to the scores: (1, h, t, t)."""
        return rearrange(self.relative_position_bias_table[self.relative_position_index], "i j h -> 1 h i j")

    def forward(self, features: Tensor) -> Tensor:
        _require_map(features, self.qkv.in_features)
        w, (rows, columns) = self.window_size, features.shape[2:]
        members = self.members(rows, columns)
        parts = self.qkv(rearrange(features, "b d rows columns -> b rows columns d")).chunk(3, dim=-1)
        windows = f"b {_CELLS[self.axis]} (h k) -> (b y x) h (r c) k"
        q, k, v = (rearrange(part, windows, r=w, c=w, h=self.heads) for part in parts)
        bias, dropout = self.bias().to(q.dtype), self.attn_drop.p if self.training else 0.0
        if self.attention_recorder is None and fused_is_faster(q):
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=self.scale)
        else:
            weights = (q * self.scale @ k.transpose(-2, -1) + bias).softmax(dim=-1)
            if self.attention_recorder is not None:
                self.attention_recorder(weights, (rows, columns), members)
            out = self.attn_drop(weights) @ v
        back = f"(b y x) h (r c) k -> b {_CELLS[self.axis]} (h k)"
        out = self.proj(rearrange(out, back, r=w, y=rows // w, x=columns // w))
        return rearrange(self.proj_drop(out), "b rows columns d -> b d rows columns")


class WindowTransformerBlock(nn.Module):
    """Window attention, then a feed-forward layer, each on normalised cells and added to what was there (Tu
    et al. 2022, figure 2).

    Arguments as for WindowAttention; layer_dropout: share of the samples that lose a branch in training.
    Map (b, d, rows, columns) -> the same shape.

    Built in lesson 07.
    """

    def __init__(
        self,
        *,
        dim: int,
        axis: str,
        window_size: int = 7,
        dim_head: int = 32,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
        attention_scale: str = "head",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim=dim, axis=axis, window_size=window_size, dim_head=dim_head, dropout=dropout,
            attention_scale=attention_scale,
        )  # fmt: skip
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim=dim, hidden_dim=4 * dim, dropout=dropout)
        self.drop_path = StochasticDepth(layer_dropout)

    def forward(self, features: Tensor) -> Tensor:
        _require_map(features, self.mlp.fc1.in_features)
        cells = self.norm1(rearrange(features, "b d rows columns -> b rows columns d"))
        features = features + self.drop_path(
            self.attn(rearrange(cells, "b rows columns d -> b d rows columns"))
        )
        tokens = rearrange(features, "b d rows columns -> b (rows columns) d")
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return rearrange(tokens, "b (rows columns) d -> b d rows columns", rows=features.shape[2])


class MaxViTBlock(nn.Sequential):
    """MBConv, block attention, grid attention (Tu et al. 2022, figure 2).

    dim_in, dim_out, downsample: as for MBConv; the others as for WindowTransformerBlock.
    Map (b, dim_in, rows, columns) -> (b, dim_out, rows, columns), or half the rows and columns. Built in
    lesson 07.

    Built in lesson 07.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim_out: int,
        downsample: bool,
        window_size: int = 7,
        dim_head: int = 32,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
        attention_scale: str = "head",
    ) -> None:
        shared = dict(
            dim=dim_out, window_size=window_size, dim_head=dim_head, dropout=dropout, layer_dropout=layer_dropout,
            attention_scale=attention_scale,
        )  # fmt: skip
        parts = OrderedDict(
            conv=MBConv(dim_in=dim_in, dim_out=dim_out, downsample=downsample, layer_dropout=layer_dropout),
            block=WindowTransformerBlock(axis="block", **shared),
            grid=WindowTransformerBlock(axis="grid", **shared),
        )
        super().__init__(parts)


class MaxViT(nn.Module):
    """Multi-axis Vision Transformer, a pyramid (Tu et al. 2022, figure 2 and table 1).

    num_classes: length of the logits; 0 gives pooled, normalised features. dim: width of the first stage; each
    stage doubles it. depth: blocks of every stage, (2, 2, 5, 2) for MaxViT-T. window_size: cells along a window.
    dim_head: width of one head. channels: c. dim_stem: width of the stem, dim by default. dropout: share
    dropped after attention and feed-forward layers in training. layer_dropout: share of the samples that the
    last block's branches are dropped for in training; it rises evenly from 0 in the first block.
    attention_scale: 'head' as the paper, 'dim' as torchvision (see WindowAttention).

    Images (b, c, h, w) -> logits (b, num_classes). Sides must be multiples of `size_unit`, window_size ·
    2^(stages + 1) pixels, so that windows fill the map of every stage: 224 for the published models. Raises
    ValueError or TypeError for sizes that do not fit.

    Built in lesson 07.
    """

    num_prefix_tokens = 0

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: tuple[int, ...],
        window_size: int = 7,
        dim_head: int = 32,
        channels: int = 3,
        dim_stem: int | None = None,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
        attention_scale: str = "head",
    ) -> None:
        super().__init__()
        if not isinstance(depth, tuple | list) or not depth:
            raise TypeError(f"depth must be a tuple, the number of blocks of every stage, got {depth!r}")
        for blocks in depth:
            require_at_least(1, depth=blocks)
        dim_stem = dim if dim_stem is None else dim_stem
        require_at_least(0, num_classes=num_classes)
        require_at_least(1, dim=dim, channels=channels, dim_stem=dim_stem, window_size=window_size)
        require_between(0, 1, layer_dropout=layer_dropout)
        widths = [dim * 2**stage for stage in range(len(depth))]
        self.num_features = widths[-1]
        self.size_unit = window_size * 2 ** (len(depth) + 1)
        shared = dict(
            window_size=window_size, dim_head=dim_head, dropout=dropout, attention_scale=attention_scale
        )

        stem = OrderedDict(
            conv1=nn.Conv2d(channels, dim_stem, 3, stride=2, padding=1, bias=False),
            norm1=_batch_norm(dim_stem),
            act1=nn.GELU(),
            conv2=nn.Conv2d(dim_stem, dim_stem, 3, padding=1),
        )
        self.stem = nn.Sequential(stem)
        self.stages = nn.Sequential(*(nn.Sequential() for _ in depth))
        before, built, last = dim_stem, 0, max(sum(depth) - 1, 1)
        for stage, width, blocks in zip(self.stages, widths, depth, strict=True):
            for number in range(blocks):
                rate = layer_dropout * built / last
                stage.append(
                    MaxViTBlock(dim_in=before, dim_out=width, downsample=number == 0, layer_dropout=rate, **shared)
                )  # fmt: skip
                before, built = width, built + 1
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Identity()
        if num_classes:
            hidden, logits = (
                nn.Linear(self.num_features, self.num_features),
                nn.Linear(self.num_features, num_classes, bias=False),
            )
            self.head = nn.Sequential(hidden, nn.Tanh(), logits)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> the map of the last stage (b, d, h / 2^(stages + 1), w / 2^(stages + 1)), not
        normalised: the norm follows the pooling.
        """
        require_images(images, self.stem.conv1.in_channels)
        size, unit = tuple(images.shape[2:]), self.size_unit
        if size[0] % unit or size[1] % unit:
            nearest = tuple(max(1, round(side / unit)) * unit for side in size)
            raise ValueError(
                f"image size {size} does not fit: both sides must be multiples of {unit}, so that windows fill "
                f"the map of every stage; the nearest size is {nearest}"
            )
        # With the channels of a pixel side by side in memory, maps and tokens are two views of one table.
        return self.stages(self.stem(images.contiguous(memory_format=torch.channels_last)))

    def forward_head(self, features: Tensor) -> Tensor:
        """A map (b, d, rows, columns), pooled, then normalised -> logits (b, num_classes), or these features (b, d)
        where there are no classes.
        """
        _require_map(features, self.num_features)
        return self.head(self.norm(features.mean(dim=(2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
