"""Attention.

How can every patch of a picture choose, by what it shows, which other patches it takes information from?

Made from notebooks/02_attention.ipynb by `make export`: read and edit the lesson, not this file.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.patching import patch_grid, require_at_least, require_between, require_floats, start_linear

__all__ = [
    "attention",
    "attend",
    "HeadedAttention",
    "matmul_precision",
    "fused_is_faster",
    "MultiHeadAttention",
    "AttentionLayer",
    "AttentionRecord",
    "record_attention",
    "rollout",
]


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention: every query takes a weighted mean of the values.

    The weights are the softmax, over the keys, of the query's dot products with them, divided by the square
    root of their length so that their spread does not grow with it.

    Args:
        q: queries (b, h, i, k).
        k: keys (b, h, j, k).
        v: values (b, h, j, d).
        dropout: share of the weights that is dropped, for training.

    Returns:
        The output (b, h, i, d), and the weights before dropout (b, h, i, j); each of their rows sums to one.

    Raises:
        TypeError: for anything but float tensors of one type.
        ValueError: where the shapes do not fit.

    Source: Vaswani et al. 2017, equation 1.

    Built in lesson 02.
    """
    for name, tensor, axes in (("q", q, "b h i k"), ("k", k, "b h j k"), ("v", v, "b h j d")):
        require_floats(name, tensor, axes)
    require_between(0, 1, dropout=dropout)
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"attention needs q (b, h, i, k), k (b, h, j, k), v (b, h, j, d); got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention needs q, k and v of one type, got {q.dtype}, {k.dtype}, {v.dtype}")
    return attend(q, k, v, dropout)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """What `attention` computes, without its checks: for layers inside a model that has checked its input.

    Args, Returns and Source as for `attention`.

    Built in lesson 02.
    """
    # Scaling the queries instead of the scores is the same product with fewer numbers to multiply.
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v, weights


class HeadedAttention(nn.Module):
    """What all attention layers share: the heads, dropout, and the way into a record.

    A layer on top of it makes `proj`, its output layer, from `inner` numbers back to d.

    Args:
        dim: width d of a token.
        heads: number of heads h.
        dim_head: width k of one head, dim // heads by default.
        dropout: share of the weights, and of the output, that is dropped in training.

    Raises:
        TypeError: for sizes that are no whole numbers.
        ValueError: for sizes below one, and where the heads do not divide the width.

    Built in lesson 02.
    """

    kind = "global"
    proj: nn.Linear

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, dim=dim, heads=heads, dim_head=dim if dim_head is None else dim_head)
        require_between(0, 1, dropout=dropout)
        if dim_head is None and dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}; give dim_head to choose freely")
        self.heads, self.inner = heads, heads * (dim_head or dim // heads)
        self.attn_drop, self.proj_drop = nn.Dropout(dropout), nn.Dropout(dropout)
        self.attention_recorder: Callable[..., None] | None = None  # set by record_attention

    @property
    def dropout(self) -> float:
        """The share of the weights to drop now: none in evaluation."""
        return self.attn_drop.p if self.training else 0.0

    def split(self, tokens: Tensor) -> Tensor:
        """Give the heads an axis of their own: (b, n, h·k) -> (b, h, n, k)."""
        return rearrange(tokens, "b n (h k) -> b h n k", h=self.heads)

    def merge(self, out: Tensor) -> Tensor:
        """Put the heads side by side, (b, h, n, k) -> (b, n, h·k), and mix them: -> (b, n, d)."""
        return self.proj_drop(self.proj(rearrange(out, "b h n k -> b n (h k)")))

    def record(self, weights: Tensor, **more: object) -> None:
        """Hand the weights (b, h, queries, keys) to the record, where there is one."""
        if self.attention_recorder is not None:
            self.attention_recorder(weights, **more)


# torch.compile and torch.export cannot look at the setting, and would stop here
@torch.compiler.assume_constant_result
def matmul_precision() -> str:
    """The `torch.set_float32_matmul_precision` in force.

    Built in lesson 02.
    """
    return torch.get_float32_matmul_precision()


def fused_is_faster(q: Tensor) -> bool:
    """Whether PyTorch's fused attention was measured faster than matmul and softmax.

    It is on accelerators and for long sequences. On a CPU with few tokens it is as good only in plain
    float32: in bfloat16, or after `torch.set_float32_matmul_precision("medium")`, the separate products are
    two to five times as fast.

    Args:
        q: queries (b, h, i, k).

    Built in lesson 02.
    """
    if q.device.type != "cpu" or q.shape[-2] >= 768:
        return True
    return q.dtype == torch.float32 and matmul_precision() == "highest"


class MultiHeadAttention(HeadedAttention):
    """Self-attention with several heads, each on its own slice of the width.

    Arguments and errors as for `HeadedAttention`.

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: Vaswani et al. 2017, section 3.2.2.

    Built in lesson 02.
    """

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.proj = nn.Linear(self.inner, dim)
        start_linear(self.qkv, parts=3)
        start_linear(self.proj)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, dim=-1))  # (b, h, n, k) each
        if self.attention_recorder is None and fused_is_faster(q):
            return self.merge(F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout))
        out, weights = attend(q, k, v, self.dropout)
        self.record(weights)
        return self.merge(out)


@dataclass(frozen=True)
class AttentionLayer:
    """What one attention layer did in the last recorded forward pass.

    Attributes:
        weights: (b, h, queries, keys), the ones really used, before dropout; windows are folded into b.
        kind: 'global' (all tokens attend to all tokens), 'class' (only the class token attends), 'window' or
            'channel' (the keys are channels).
        grid: (rows, columns) of the patches; None where the layer was called without a picture.
        num_prefix_tokens: class tokens that stand before the patches among the keys.
        name: the layer's name in the model.
        members: for windows, (window, token) -> cell of the grid in reading order.

    Built in lesson 02.
    """

    weights: Tensor
    kind: str
    grid: tuple[int, int] | None
    num_prefix_tokens: int
    name: str
    members: Tensor | None = None


class AttentionRecord:
    """The layers of one recorded forward pass, in the order in which they ran.

    Iterate over it, or index it by number or name. After several forward passes it holds the last.

    Raises:
        ValueError: as long as there was no forward pass.

    Built in lesson 02.
    """

    def __init__(self) -> None:
        self._layers: dict[str, AttentionLayer] = {}
        self._grid: tuple[int, int] | None = None
        self._num_prefix_tokens: int | None = None

    def set_grid(self, grid: tuple[int, int], num_prefix_tokens: int | None = None) -> None:
        """Take note of the patches that are on their way through the model.

        Args:
            grid: (rows, columns).
            num_prefix_tokens: class tokens that layers may put before them, None where nobody knows.
        """
        self._grid, self._num_prefix_tokens = grid, num_prefix_tokens

    def add(
        self,
        name: str,
        kind: str,
        weights: Tensor,
        grid: tuple[int, int] | None = None,
        members: Tensor | None = None,
    ) -> None:
        """Keep the weights of one layer.

        Args:
            name: the layer's name in the model.
            kind: see `AttentionLayer`, as for weights and members.
            weights: (b, h, queries, keys).
            grid: of layers that know their own (windows on a map); the others have that of the patches.
            members: of windows.

        Raises:
            ValueError: where the tokens are not the class tokens and the patches of the grid, so that nobody
                can say which patch a token is.
        """
        grid, tokens, prefix = grid or self._grid, weights.shape[-1], 0
        if grid and kind in ("global", "class"):
            prefix = tokens - grid[0] * grid[1]
            known = self._num_prefix_tokens
            if prefix < 0 or known is not None and prefix not in (0, known):
                raise ValueError(
                    f"{name} attends to {tokens} tokens, which are not {known or 0} class tokens and a grid "
                    f"of {grid[0]} by {grid[1]} patches: a record cannot tell which patches they are (does "
                    "the model drop some?)"
                )
        self._layers.pop(name, None)
        self._layers[name] = AttentionLayer(weights, kind, grid, prefix, name, members)

    def _recorded(self) -> dict[str, AttentionLayer]:
        if not self._layers:
            raise ValueError(
                "nothing was recorded yet: call the model inside `with record_attention(model) as record:`"
            )
        return self._layers

    def __len__(self) -> int:
        return len(self._recorded())

    def __iter__(self) -> Iterator[AttentionLayer]:
        return iter(self._recorded().values())

    def __getitem__(self, which: int | str) -> AttentionLayer:
        return self._recorded()[which] if isinstance(which, str) else list(self)[which]


class _Recorder:
    """The way into a record. Copies and files of a recorded model hold None instead."""

    def __init__(self, keep: Callable[..., None]) -> None:
        self.keep = keep

    def __call__(self, *given: object, **more: object) -> None:
        self.keep(*given, **more)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(None), ()


def _note_grid(backbone: Any, record: AttentionRecord) -> Callable[..., None]:
    """A hook for the patch embedding of a backbone that works out the grid from the images that come in."""
    size, prefix = backbone.patch_size, getattr(backbone, "num_prefix_tokens", None)
    return lambda embed, images: record.set_grid(patch_grid(images[0].shape[-2:], size), prefix)


@contextmanager
def record_attention(model: nn.Module) -> Iterator[AttentionRecord]:
    """Keep the attention weights of every layer of `model` while the `with` block runs.

    The modules compute the same output with explicit weights, gradients flow as before (through the weights
    too), and nothing is left behind afterwards, not even in a copy that was made meanwhile. A layer takes
    part if it has the attributes `kind` and `attention_recorder` and, where the latter is set, calls it with
    its weights (b, h, queries, keys). The grid of the patches comes from modules with the attribute
    `grid_recorder`, which they call with (rows, columns) and the number of class tokens, else from those with
    `patch_embed` and `patch_size`.

    Args:
        model: any model of the course; one of timm or torchvision through `vit_course.lab.pretrained.adapt`.

    Yields:
        An AttentionRecord.

    Raises:
        TypeError: for anything but a module.
        ValueError: for a model without such a layer, or one that is being recorded already.

    Built in lesson 02.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    parts = dict(model.named_modules())
    layers = {name: part for name, part in parts.items() if hasattr(part, "attention_recorder")}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no attention layer that can be recorded; "
            "for a model of timm or torchvision, record vit_course.lab.pretrained.adapt(model)"
        )
    if any(layer.attention_recorder is not None for layer in layers.values()):
        raise ValueError(f"{type(model).__name__} is being recorded already; leave that `with` block first")
    record, hooks = AttentionRecord(), []
    backbones = [part for part in parts.values() if hasattr(part, "grid_recorder")]
    try:
        for part in backbones:
            part.grid_recorder = _Recorder(record.set_grid)
        for part in parts.values():
            embed = getattr(part, "patch_embed", None)
            if part not in backbones and isinstance(embed, nn.Module) and hasattr(part, "patch_size"):
                hooks.append(embed.register_forward_pre_hook(_note_grid(part, record)))
        for name, layer in layers.items():
            layer.attention_recorder = _Recorder(partial(record.add, name, layer.kind))
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for part in backbones:
            part.grid_recorder = None
        for layer in layers.values():
            layer.attention_recorder = None


def rollout(record: Iterable[AttentionLayer]) -> Tensor:
    """How much of each input token reaches each output token through all layers.

    Each layer passes on half of what it got (the residual) and half through its attention, averaged over
    heads: A' = (A + 1) / 2, with rows that sum to one; the layers multiply, the last on the left.

    Args:
        record: a record, or its layers.

    Returns:
        (b, n, n), rows summing to one: row i says where token i comes from.

    Raises:
        TypeError: for anything but a record or its layers.
        ValueError: unless there are 'global' layers, all with the same number of tokens.

    Source: Abnar and Zuidema 2020, "Quantifying attention flow".

    Built in lesson 02.
    """
    record = list(record)
    if not all(hasattr(layer, "weights") and hasattr(layer, "kind") for layer in record):
        raise TypeError(f"rollout needs a record of record_attention or its layers, got {record!r}"[:200])
    layers = [layer.weights.mean(dim=1) for layer in record if layer.kind == "global"]
    sizes = sorted({weights.shape[-1] for weights in layers})
    if len(sizes) != 1:
        raise ValueError(
            f"rollout needs 'global' attention layers of one number of tokens, got {sizes or 'none'}"
        )
    result = identity = torch.eye(sizes[0], dtype=layers[0].dtype, device=layers[0].device)
    for weights in layers:
        mixed = (weights + identity) / 2
        result = mixed / mixed.sum(dim=-1, keepdim=True) @ result
    return result
