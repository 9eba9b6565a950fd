"""MaxViT.

How can attention reach across a whole large map at a cost that grows only as fast as the map does?

Made from notebooks/07_max_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.attention import HeadedAttention, fused_is_faster
from vit_course.patching import (
    require_at_least,
    require_between,
    require_floats,
    require_images,
    start_linear,
)
from vit_course.vit import FeedForward, HubModel, StochasticDepth, fill_buffers_again, residual

__all__ = [
    "window_members",
    "relative_position_index",
    "WindowAttention",
    "WindowTransformerBlock",
    "SqueezeExcitation",
    "MBConvResidual",
    "MBConv",
    "Pyramid",
    "MaxViTBlock",
    "MaxViT",
]

# The published numbers: a large eps, and statistics that forget slowly.
_batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)

# All that tells block from grid. y and x count windows, r and c count cells inside a window: in a block the
# cells of a window lie side by side, in a grid they lie as far apart as there are windows.
_CELLS = {"block": "(y r) (x c)", "grid": "(r y) (c x)"}


def window_members(rows: int, columns: int, window_size: int, axis: str) -> Tensor:
    """Which cells of a map share a window.

    Args:
        rows, columns: sides of the map in cells.
        window_size: w, cells along one side of a window.
        axis: 'block', windows of neighbours, or 'grid', windows of cells that are spread over the whole map.

    Returns:
        (windows, t) cells, numbered in reading order, t = w².

    Raises:
        ValueError: where windows do not fill the map.

    Source: Tu et al. 2022, section 3.

    Built in lesson 07.
    """
    w = window_size
    if rows % w or columns % w:
        raise ValueError(f"windows of {w} by {w} do not fill a map of {rows} by {columns} cells")
    cells = torch.arange(rows * columns).view(rows, columns)
    return rearrange(cells, f"{_CELLS[axis]} -> (y x) (r c)", r=w, c=w)


def relative_position_index(window_size: int) -> Tensor:
    """Which row of the bias table belongs to a query and a key of one window.

    Offsets, query minus key, run from 1 - w to w - 1 both ways; shifted to start at 0 they count like a
    number of two digits to the base 2w - 1: down first, then across.

    Args:
        window_size: w, cells along one side of a window.

    Returns:
        (t, t) whole numbers below (2w - 1)², t = w².

    Raises:
        TypeError, ValueError: for another size.

    Source: Liu et al. 2021, section 3.2.

    Built in lesson 07.
    """
    require_at_least(1, window_size=window_size)
    places = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))  # (t, 2): row, column
    down, across = (places[:, None] - places + window_size - 1).unbind(dim=-1)  # (t, t) each
    return down * (2 * window_size - 1) + across


class WindowAttention(HeadedAttention):
    """Attention inside windows of w by w cells, with a learned bias for each offset.

    A record holds it with kind 'window' and weights ((b windows), h, t, t), t = w².

    Args:
        dim: width d of a cell.
        axis: 'block', windows of neighbours, or 'grid', windows of cells that are spread over the whole map.
        window_size: w.
        dim_head: width k of a head; d / k is the number of heads h.
        dropout: share of the weights, and of the output, that is dropped in training.
        attention_scale: 'head' divides the scores by √k, as the paper; 'dim' by √d, as torchvision.

    Shape: map (b, d, rows, columns) that windows fill -> the same shape.

    Raises:
        TypeError, ValueError: for sizes and names that do not fit.

    Source: Tu et al. 2022, section 3.

    Built in lesson 07.
    """

    kind = "window"
    relative_position_index: Tensor

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
        require_at_least(1, dim=dim, window_size=window_size, dim_head=dim_head)
        if axis not in _CELLS:
            raise ValueError(f"axis must be 'block' or 'grid', got {axis!r}")
        if attention_scale not in ("head", "dim"):
            raise ValueError(f"attention_scale must be 'head' or 'dim', got {attention_scale!r}")
        if dim % dim_head:
            raise ValueError(f"dim {dim} is not divisible by dim_head {dim_head}")
        super().__init__(dim=dim, heads=dim // dim_head, dim_head=dim_head, dropout=dropout)
        self.axis, self.window_size = axis, window_size
        self.scale = (dim_head if attention_scale == "head" else dim) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, self.heads))
        self.register_buffer("relative_position_index", torch.empty(0), persistent=False)
        self.fill_buffers()
        self.register_load_state_dict_post_hook(fill_buffers_again)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        start_linear(self.qkv, parts=3)
        start_linear(self.proj)

    def fill_buffers(self) -> None:
        """Compute the buffers that no file holds."""
        index = relative_position_index(self.window_size)
        self.relative_position_index = index.to(self.relative_position_bias_table.device)

    def members(self, rows: int, columns: int) -> Tensor:
        """Which cells of a map share a window: `window_members` for this layer."""
        return window_members(rows, columns, self.window_size, self.axis)

    def bias(self) -> Tensor:
        """What each offset adds to the scores: (1, h, t, t)."""
        return rearrange(self.relative_position_bias_table[self.relative_position_index], "i j h -> 1 h i j")

    def split(self, tokens: Tensor) -> Tensor:
        """Sort cells into windows and channels into heads.

        (b, rows, columns, h·k) -> ((b windows), h, t, k), image by image.
        """
        w = self.window_size
        return rearrange(tokens, f"b {_CELLS[self.axis]} (h k) -> (b y x) h (r c) k", r=w, c=w, h=self.heads)

    def merge(self, out: Tensor, down: int = 1, across: int = 1) -> Tensor:
        """Put windows, so many down and across, back into maps, and mix the heads.

        ((b windows), h, t, k) -> (b, rows, columns, d).
        """
        pattern = f"(b y x) h (r c) k -> b {_CELLS[self.axis]} (h k)"
        cells = rearrange(out, pattern, r=self.window_size, y=down, x=across)
        return self.proj_drop(self.proj(cells))

    def forward(self, features: Tensor) -> Tensor:
        w, (rows, columns) = self.window_size, features.shape[2:]
        cells = rearrange(features, "b d rows columns -> b rows columns d")
        q, k, v = (self.split(part) for part in self.qkv(cells).chunk(3, dim=-1))
        bias = self.bias().to(q.dtype)
        if self.attention_recorder is None and fused_is_faster(q):
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=self.dropout, scale=self.scale)
        else:
            weights = (q * self.scale @ k.transpose(-2, -1) + bias).softmax(dim=-1)
            self.record(weights, grid=(rows, columns), members=self.members(rows, columns))
            out = self.attn_drop(weights) @ v
        return rearrange(self.merge(out, rows // w, columns // w), "b rows columns d -> b d rows columns")


class WindowTransformerBlock(nn.Module):
    """Window attention, then a feed-forward layer, each with a residual connection around it.

    Arguments and errors as for `WindowAttention`.

    Args:
        layer_dropout: share of the samples that lose a branch in training (drop path).

    Shape: map (b, d, rows, columns) -> the same shape.

    Source: Tu et al. 2022, figure 2.

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
            dim=dim,
            axis=axis,
            window_size=window_size,
            dim_head=dim_head,
            dropout=dropout,
            attention_scale=attention_scale,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim=dim, hidden_dim=4 * dim, dropout=dropout)
        self.drop_path = StochasticDepth(layer_dropout)

    def attend(self, cells: Tensor) -> Tensor:
        """Window attention for cells (b, rows, columns, d), which it takes and gives as a map."""
        out = self.attn(rearrange(cells, "b rows columns d -> b d rows columns"))
        return rearrange(out, "b d rows columns -> b rows columns d")

    def forward(self, features: Tensor) -> Tensor:
        cells = rearrange(features, "b d rows columns -> b rows columns d")
        cells = residual(cells, self.norm1, self.attend, self.drop_path)
        cells = residual(cells, self.norm2, self.mlp, self.drop_path)
        return rearrange(cells, "b rows columns d -> b d rows columns")


class SqueezeExcitation(nn.Module):
    """A gate for every channel, the same at every place.

    Args:
        dim: channels d.
        hidden_dim: width of the narrow layer in between.

    Shape: map (b, d, rows, columns) -> the same map, each channel multiplied by a number in 0 … 1.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Hu et al. 2018, equations 2 to 4; SiLU as in EfficientNet.

    Built in lesson 07.
    """

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        require_at_least(1, dim=dim, hidden_dim=hidden_dim)
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        summary = features.mean(dim=(2, 3), keepdim=True)  # (b, d, 1, 1): squeeze
        return features * self.fc2(F.silu(self.fc1(summary))).sigmoid()  # excite


class MBConvResidual(nn.Module):
    """A branch of convolutions beside a shortcut; training drops the branch, for each sample by itself.

    Args:
        branch: a module from a map to a map.
        shortcut: a module with the same shapes, the identity by default.
        layer_dropout: share of the samples that lose the branch in training (drop path).

    Shape: map -> shortcut(map) + branch(map).

    Source: He et al. 2016, section 3.2; Huang et al. 2016.

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
    """Inverted bottleneck: widen, convolve channel by channel, gate, narrow.

    The width inside is 4 · dim_out, that of the gate dim_out / 4, as published.

    Args:
        dim_in, dim_out: channels of the map before and after.
        downsample: halve the sides of the map; the shortcut then averages and projects.
        layer_dropout: share of the samples that lose the branch in training (drop path).

    Shape: map (b, dim_in, rows, columns) -> (b, dim_out, rows, columns), or half the rows and columns.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Tu et al. 2022, figure 2; Sandler et al. 2018.

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
        shortcut: list[nn.Module] = []
        if downsample:
            shortcut.append(nn.AvgPool2d(3, stride, padding=1))
        if downsample or dim_in != dim_out:
            shortcut.append(nn.Conv2d(dim_in, dim_out, 1))
        super().__init__(
            nn.Sequential(branch), shortcut=nn.Sequential(*shortcut), layer_dropout=layer_dropout
        )


class Pyramid(HubModel):
    """Images to a map to logits: for maps what `Backbone` is for tokens, under timm's names.

    A model on top of it makes its layers, `norm` and `head` among them, and writes `encode`: images -> the
    last map. All input is checked here, so that no layer need check it again.

    Args:
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of the last map.
        size_unit: what both sides of an image must be multiples of, in pixels.
        channels: c.

    Attributes:
        num_features: d, the width of the features.
        num_classes: length of the logits, 0 for none.
        num_prefix_tokens: 0, there are no class tokens.
        size_unit, channels: as above.
        norm, head: what follows the pooling, (b, d) -> (b, d) -> (b, num_classes).

    Shape: images (b, c, h, w) -> logits (b, num_classes), or pooled, normalised features (b, d) for
    num_classes 0.

    Raises:
        TypeError, ValueError: for sizes, images and maps that do not fit.

    Built in lesson 07.
    """

    num_prefix_tokens = 0
    norm: nn.Module
    head: nn.Module

    def __init__(self, *, num_classes: int, dim: int, size_unit: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(0, num_classes=num_classes)
        require_at_least(1, dim=dim, size_unit=size_unit, channels=channels)
        self.num_features, self.num_classes = dim, num_classes
        self.size_unit, self.channels = size_unit, channels

    def encode(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w), checked before -> the last map (b, d, rows, columns)."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> the last map (b, d, rows, columns), not normalised: pooling comes first."""
        require_images(images, self.channels)
        (height, width), unit = images.shape[2:], self.size_unit
        if height % unit or width % unit:
            nearest = tuple(max(1, round(side / unit)) * unit for side in (height, width))
            raise ValueError(
                f"image size {(height, width)} does not fit: both sides must be multiples of {unit} pixels; "
                f"the nearest size is {nearest}"
            )
        return self.encode(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """A map (b, d, rows, columns), pooled, then normalised -> logits (b, num_classes).

        Where there are no classes, these features (b, d).
        """
        require_floats("features", features, "b d rows columns")
        if features.shape[1] != self.num_features:
            shape = tuple(features.shape)
            raise ValueError(f"features must have shape (b, {self.num_features}, rows, columns), got {shape}")
        return self.head(self.norm(features.mean(dim=(2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class MaxViTBlock(nn.Sequential):
    """MBConv, block attention, grid attention.

    Args:
        dim_in, dim_out, downsample: as for `MBConv`.
        window_size, dim_head, dropout, layer_dropout, attention_scale: as for `WindowTransformerBlock`.

    Shape: map (b, dim_in, rows, columns) -> (b, dim_out, rows, columns), or half the rows and columns.

    Source: Tu et al. 2022, figure 2.

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
        transformer = partial(
            WindowTransformerBlock,
            dim=dim_out,
            window_size=window_size,
            dim_head=dim_head,
            dropout=dropout,
            layer_dropout=layer_dropout,
            attention_scale=attention_scale,
        )
        conv = MBConv(dim_in=dim_in, dim_out=dim_out, downsample=downsample, layer_dropout=layer_dropout)
        block, grid = transformer(axis="block"), transformer(axis="grid")
        super().__init__(OrderedDict[str, nn.Module](conv=conv, block=block, grid=grid))


class MaxViT(Pyramid):
    """Multi-axis Vision Transformer, a pyramid.

    Args:
        num_classes: length of the logits; 0 gives pooled, normalised features.
        dim: width of the first stage; each stage doubles it.
        depth: blocks of every stage, (2, 2, 5, 2) for MaxViT-T.
        window_size: cells along one side of a window.
        dim_head: width of one head.
        channels: c.
        dim_stem: width of the stem, dim by default.
        dropout: share dropped after attention and feed-forward layers in training.
        layer_dropout: share of the samples that lose the branches of the last block in training; it rises
            evenly from 0 in the first block.
        attention_scale: 'head' as the paper, 'dim' as torchvision (see `WindowAttention`).

    Shape: images (b, c, h, w) -> logits (b, num_classes). Both sides must be multiples of `size_unit`,
    window_size · 2^(stages + 1) pixels, so that windows fill the map of every stage: 224 for the published
    models. The last map is (b, d, h / 2^(stages + 1), w / 2^(stages + 1)).

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Tu et al. 2022, figure 2 and table 1.

    Built in lesson 07.
    """

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
        if not isinstance(depth, tuple | list) or not depth:
            raise TypeError(f"depth must be a tuple, the number of blocks of every stage, got {depth!r}")
        for blocks in depth:
            require_at_least(1, depth=blocks)
        dim_stem = dim if dim_stem is None else dim_stem
        require_at_least(1, dim=dim, dim_stem=dim_stem, window_size=window_size)
        require_between(0, 1, layer_dropout=layer_dropout)
        stages = len(depth)
        widths = [dim_stem, *(dim * 2**stage for stage in range(stages))]
        size_unit = window_size * 2 ** (stages + 1)
        super().__init__(num_classes=num_classes, dim=widths[-1], size_unit=size_unit, channels=channels)

        stem = OrderedDict(
            conv1=nn.Conv2d(channels, dim_stem, 3, stride=2, padding=1, bias=False),
            norm1=_batch_norm(dim_stem),
            act1=nn.GELU(),
            conv2=nn.Conv2d(dim_stem, dim_stem, 3, padding=1),
        )
        self.stem = nn.Sequential(stem)
        block = partial(
            MaxViTBlock,
            window_size=window_size,
            dim_head=dim_head,
            dropout=dropout,
            attention_scale=attention_scale,
        )
        rates = iter([layer_dropout * number / max(sum(depth) - 1, 1) for number in range(sum(depth))])
        self.stages = nn.Sequential()
        for before, width, blocks in zip(widths[:-1], widths[1:], depth, strict=True):
            first = block(dim_in=before, dim_out=width, downsample=True, layer_dropout=next(rates))
            rest = [
                block(dim_in=width, dim_out=width, downsample=False, layer_dropout=next(rates))
                for _ in range(blocks - 1)
            ]
            self.stages.append(nn.Sequential(first, *rest))

        last = self.num_features
        self.norm, self.head = nn.LayerNorm(last), nn.Identity()
        if num_classes:
            hidden, logits = nn.Linear(last, last), nn.Linear(last, num_classes, bias=False)
            self.head = nn.Sequential(hidden, nn.Tanh(), logits)

    def encode(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w), checked before -> the map of the last stage (b, d, rows, columns)."""
        # With the channels of a pixel side by side in memory, maps and tokens are two views of one table.
        return self.stages(self.stem(images.contiguous(memory_format=torch.channels_last)))
