"""Attention.

How can every patch of a picture decide for itself which other patches to listen to?

Made from notebooks/02_attention.ipynb by `make export`: read and edit the lesson, not this file.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_course.patching import patch_grid, require_at_least, require_between, require_floats, require_tokens

__all__ = [
    "attention",
    "matmul_precision",
    "fused_is_faster",
    "MultiHeadAttention",
    "AttentionLayer",
    "AttentionRecord",
    "record_attention",
    "rollout",
]


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Every query takes a weighted mean of the values; the weights are the softmax, over the keys, of its dot
    products with them, divided by the square root of their length so that their spread does not grow with it.

    q: queries (b, h, i, k). k: keys (b, h, j, k). v: values (b, h, j, d). dropout: share of the weights
    dropped, for training. Returns the output (b, h, i, d) and the weights before dropout (b, h, i, j); each
    of their rows sums to one.
    Raises ValueError where the shapes do not fit.

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
    # Scaling the queries instead of the scores is the same product with fewer numbers to multiply.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    # Without gradients nobody needs the scores again, so the weights take their memory: that is faster.
    weights = scores.softmax(dim=-1) if torch.is_grad_enabled() else torch.softmax(scores, dim=-1, out=scores)
    return (F.dropout(weights, dropout) if dropout else weights) @ v, weights


# torch.compile and torch.export cannot look at the setting, and would stop here
@torch.compiler.assume_constant_result
def matmul_precision() -> str:
    """The `torch.set_float32_matmul_precision` in force.

    Built in lesson 02.
    """
    return torch.get_float32_matmul_precision()


def fused_is_faster(q: Tensor) -> bool:
    """Whether PyTorch's fused attention was measured faster than matmul and softmax for queries (b, h, i, k).

    It is on accelerators and for long sequences. On a CPU with few tokens it is as good only in plain
    float32: in bfloat16, or after `torch.set_float32_matmul_precision("medium")`, the separate products are
    two to five times as fast.

    Built in lesson 02.
    """
    if q.device.type != "cpu" or q.shape[-2] >= 768:
        return True
    return q.dtype == torch.float32 and matmul_precision() == "highest"


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own slice of the width (Vaswani et al. 2017, section
    3.2.2).

    dim: width d of a token. heads: h. dim_head: width k of one head, dim // heads by default. dropout: share
    of the weights, and of the output, that is dropped in training.
    Tokens (b, n, d) -> (b, n, d).
    Raises ValueError where the heads do not divide the width or the tokens have another one.

    Built in lesson 02.
    """

    kind = "global"

    def __init__(self, *, dim: int, heads: int, dim_head: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, dim=dim, heads=heads, dim_head=dim if dim_head is None else dim_head)
        require_between(0, 1, dropout=dropout)
        if dim_head is None and dim % heads:
            raise ValueError(
                f"dim {dim} is not divisible by heads {heads}; give dim_head to choose the width of a head "
                f"freely"
            )
        inner = heads * (dim_head or dim // heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * inner)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.attention_recorder = None  # set by record_attention
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):  # q, k and v start each for itself
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        require_tokens(tokens, self.qkv.in_features)
        q, k, v = (
            rearrange(part, "b n (h k) -> b h n k", h=self.heads)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        dropout = self.attn_drop.p if self.training else 0.0
        if self.attention_recorder is None and fused_is_faster(q):
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            out, weights = attention(q, k, v, dropout)
            if self.attention_recorder is not None:
                self.attention_recorder(weights)
        return self.proj_drop(self.proj(rearrange(out, "b h n k -> b n (h k)")))


@dataclass(frozen=True)
class AttentionLayer:
    """What one attention layer did in the last recorded forward pass.

    weights: (b, h, queries, keys), the ones really used, before dropout; windows are folded into b.
    kind: 'global' (every token asks every token), 'class' (only the class token asks), 'window' or 'channel'
    (the keys are channels). grid: (rows, columns) of the patches, None where the layer was called without a
    picture.
    num_prefix_tokens: class tokens that stand before the patches among the keys.
    name: the layer's name in the model. members: for windows, (window, token) -> cell of the grid in reading
    order.

    Built in lesson 02.
    """

    weights: Tensor
    kind: str
    grid: tuple[int, int] | None
    num_prefix_tokens: int
    name: str
    members: Tensor | None = None


class AttentionRecord:
    """The layers of one recorded forward pass, in the order in which they ran: iterate, index by number or
    name.

    After several forward passes it holds the last. Raises ValueError as long as there was none.

    Built in lesson 02.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int] | None = None
        self._layers: dict[str, AttentionLayer] = {}

    def add(
        self,
        name: str,
        kind: str,
        weights: Tensor,
        grid: tuple[int, int] | None = None,
        members: Tensor | None = None,
    ) -> None:
        """Keep the weights of one layer. Layers that know their own grid (windows on a map) give it; for the
        others it is the patches'.
        """
        grid = grid or self.grid
        prefix = weights.shape[-1] - grid[0] * grid[1] if grid and kind in ("global", "class") else 0
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


@contextmanager
def record_attention(model: nn.Module) -> Iterator[AttentionRecord]:
    """Keep the attention weights of every layer of `model` while the `with` block runs.

    The modules compute the same output with explicit weights, gradients flow as before (through the weights
    too), and nothing is left behind afterwards. A layer takes part if it has the attributes `kind` and
    `attention_recorder` and, where the latter is set, calls it with its weights (b, h, queries, keys).

    model: any model of the course; one of timm or torchvision through `vit_course.lab.pretrained.adapt`.
    Yields an AttentionRecord.
    Raises ValueError for a model without such a layer, or one that is being recorded already.

    Built in lesson 02.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "attention_recorder")}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no attention layer that can be recorded; "
            "for a model of timm or torchvision, record vit_course.lab.pretrained.adapt(model)"
        )
    if any(layer.attention_recorder is not None for layer in layers.values()):
        raise ValueError(f"{type(model).__name__} is being recorded already; leave that `with` block first")
    record, hooks = AttentionRecord(), []

    def note_grid(patch_size: tuple[int, int]) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            record.grid = patch_grid(tuple(inputs[0].shape[-2:]), patch_size)

        return hook

    try:
        for backbone in model.modules():
            if isinstance(getattr(backbone, "patch_embed", None), nn.Module) and hasattr(
                backbone, "patch_size"
            ):
                hooks.append(backbone.patch_embed.register_forward_pre_hook(note_grid(backbone.patch_size)))
        for name, layer in layers.items():
            layer.attention_recorder = partial(record.add, name, layer.kind)
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.attention_recorder = None


def rollout(record: Iterable[AttentionLayer]) -> Tensor:
    """How much of each input token reaches each output token through all layers (Abnar and Zuidema 2020,
    "Quantifying attention flow").

    Each layer passes on half of what it got (the residual) and half through its attention, averaged over
    heads: A' = (A + 1) / 2, with rows that sum to one; the layers multiply, the last on the left.

    record: a record, or its layers. Returns (b, n, n), rows summing to one: row i says where token i comes
    from.
    Raises ValueError unless there are 'global' layers, all with the same number of tokens.

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
