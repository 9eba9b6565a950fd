"""Models of timm, torchvision and transformers under the course's backbone protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_course.attention import attention
from vit_course.patching import pair, patch_grid, require_tokens

from .comparison import head_of_torchvision, is_identity
from .foreign import Recorder, Recording, ViTAdapter
from .hugging_face import TransformersAdapter, layout_of


def adapt(model: nn.Module) -> nn.Module:
    """A foreign model under the course's backbone protocol, which can be recorded.

    The model is shared, not copied: what trains or changes one changes the other, and it stays as it is. A
    ViT becomes a `Backbone`: `record_attention(adapter)` reads every layer under its own name, and other
    image sizes that patches fill are welcome, since positions are resized. A Swin gives a map (b, d, h, w).

    Args:
        model: timm's or torchvision's VisionTransformer, timm's Eva (DINOv3 and others with rotary
            positions) or Swin, or a ViT, DeiT, DINOv2 with or without registers, DINOv3 or vision tower of
            CLIP of transformers. A model of the course, and one adapted already, come back as they are.

    Raises:
        TypeError: for a model that it does not know.
    """
    origins = [f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__]
    if isinstance(model, TorchvisionViT):
        return _TorchvisionAdapter(model)
    if "timm.models.vision_transformer.VisionTransformer" in origins:
        return _TimmAdapter(model)
    if "timm.models.eva.Eva" in origins:
        return _EvaAdapter(model)
    if layout_of(model) is not None:
        return TransformersAdapter(model)
    is_swin = any(origin.startswith("timm.models.swin_transformer") for origin in origins)
    if is_swin and getattr(model, "output_fmt", None) == "NHWC":
        return _MapAdapter(model)
    is_foreign = any(origin.startswith(("timm.", "transformers.")) for origin in origins)
    protocol = ("forward_features", "forward_head", "num_features")
    if not is_foreign and isinstance(model, nn.Module) and all(hasattr(model, name) for name in protocol):
        return model
    raise TypeError(
        "adapt knows the models of the course, the ViTs of timm, torchvision and transformers and timm's "
        f"Swin; it does not know {origins[0]}"
    )


@contextmanager
def _recording_timm(layer: Any, recorder: Recorder) -> Iterator[None]:
    """timm's layer without its fused kernel: what it then drops out are its weights."""
    fused, layer.fused_attn = layer.fused_attn, False
    hook = layer.attn_drop.register_forward_pre_hook(lambda module, inputs: recorder(inputs[0]))
    try:
        yield
    finally:
        hook.remove()
        layer.fused_attn = fused


@contextmanager
def _recording_torch(layer: Any, recorder: Recorder) -> Iterator[None]:
    """Lesson 02's attention in the place of PyTorch's layer, which gives its weights only after dropout."""

    def forward(tokens: Tensor, *the_same_tokens: Tensor, **options: object) -> tuple[Tensor, None]:
        parts = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "b n (h k) -> b h n k", h=layer.num_heads) for part in parts)
        out, weights = attention(q, k, v, layer.dropout if layer.training else 0.0)
        recorder(weights)
        return layer.out_proj(rearrange(out, "b h n k -> b n (h k)")), None

    own = {name: value for name, value in vars(layer).items() if name == "forward"}  # of a user, if any
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        vars(layer).update(own)


class _TorchvisionAdapter(ViTAdapter):
    """torchvision's VisionTransformer, part by part: its encoder would refuse other image sizes."""

    def __init__(self, model: Any) -> None:
        super().__init__(
            model,
            grid=patch_grid(model.image_size, model.patch_size),
            patch_size=pair(model.patch_size),
            num_classes=getattr(head_of_torchvision(model), "out_features", 0),
            dim=model.hidden_dim,
            num_prefix_tokens=1,
        )

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Recording]]:
        for name, layer in self.model.named_modules():
            if isinstance(layer, nn.MultiheadAttention):
                yield name, layer, _recording_torch

    def embed_patches(self, images: Tensor) -> Tensor:
        return self.model.conv_proj(images).flatten(2).mT

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        encoder = self.model.encoder
        tokens = torch.cat([self.model.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return encoder.layers(encoder.dropout(tokens + self.resized(encoder.pos_embedding, grid, 1)))

    def normalise(self, tokens: Tensor) -> Tensor:
        return self.model.encoder.ln(tokens)

    def forward_head(self, features: Tensor) -> Tensor:
        require_tokens(features, self.num_features)
        return self.model.heads(features[:, 0])


class _TimmAdapter(ViTAdapter):
    """timm's VisionTransformer: class, distillation, register tokens, LayerScale, norms before or after."""

    def __init__(self, model: Any) -> None:
        embedding = model.patch_embed
        if not hasattr(embedding, "proj") or not hasattr(embedding, "grid_size"):
            raise TypeError(
                f"adapt does not know a ViT whose patch embedding is timm's {type(embedding).__name__}"
            )
        if not is_identity(model.fc_norm) and model.global_pool != "avg":
            raise TypeError(
                "adapt does not know a ViT that normalises after pooling with "
                f"global_pool={model.global_pool!r}"
            )
        super().__init__(
            model,
            grid=pair(tuple(embedding.grid_size)),
            patch_size=pair(tuple(embedding.patch_size)),
            num_classes=getattr(model.head, "out_features", 0),
            dim=model.num_features,
            num_prefix_tokens=model.num_prefix_tokens,
        )

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Recording]]:
        for name, layer in self.model.named_modules():
            if isinstance(layer, self.attention_kinds()):
                yield name, layer, _recording_timm

    def attention_kinds(self) -> tuple[type[nn.Module], ...]:
        """The classes of the attention layers."""
        from timm.models.vision_transformer import Attention

        return (Attention,)

    def embed_patches(self, images: Tensor) -> Tensor:
        embedding = self.model.patch_embed
        return embedding.norm(embedding.proj(images).flatten(2).mT)

    def with_positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) with what stands before them and timm's learned positions, if it has any."""
        model = self.model
        before = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = [token.expand(len(tokens), -1, -1) for token in before if token is not None]
        if model.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif model.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self.resized(model.pos_embed, grid, 0)], dim=1)
        else:
            positions = self.resized(model.pos_embed, grid, self.num_prefix_tokens)
            tokens = torch.cat([*prefix, tokens], dim=1) + positions
        return model.pos_drop(tokens)

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        model, n = self.model, tokens.shape[1]
        tokens = model.patch_drop(self.with_positions(tokens, grid))
        if self.grid_recorder is not None and tokens.shape[1] != self.num_prefix_tokens + n:
            raise ValueError(
                f"{type(model).__name__} drops patches in training: of {n} there are "
                f"{tokens.shape[1] - self.num_prefix_tokens} left, and a record cannot tell which; record it "
                "in eval mode"
            )
        return model.blocks(model.norm_pre(tokens))

    def normalise(self, tokens: Tensor) -> Tensor:
        """timm's last norm, or, where timm normalises after pooling, the same before it.

        Every token gets the spread of their mean, so that pooling and norm change places exactly: the mean of
        the patches that come out is timm's normalised mean, and `forward_head` gives its logits.
        """
        tokens, norm = self.model.norm(tokens), self.model.fc_norm
        if is_identity(norm):
            return tokens
        spread = (self.model.pool(tokens).var(dim=-1, correction=0) + norm.eps).sqrt()[:, None, None]
        return (tokens - tokens.mean(dim=-1, keepdim=True)) / spread * norm.weight + norm.bias

    def forward_head(self, features: Tensor) -> Tensor:
        require_tokens(features, self.num_features)
        if is_identity(self.model.fc_norm):
            return self.model.forward_head(features)
        return self.model.head(self.model.head_drop(self.model.pool(features)))


class _EvaAdapter(_TimmAdapter):
    """timm's Eva, which DINOv3 is: rotary positions, which turn queries and keys in every block."""

    def __init__(self, model: Any) -> None:
        if model.patch_drop is not None:
            raise TypeError("adapt does not know an Eva that drops patches in training (patch_drop_rate)")
        super().__init__(model)

    def attention_kinds(self) -> tuple[type[nn.Module], ...]:
        from timm.layers.attention import AttentionRope
        from timm.models.eva import EvaAttention

        return EvaAttention, AttentionRope

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        model = self.model
        rotary: Any = None
        if model.rope is not None:
            if grid != self.grid and not model.dynamic_img_size:
                raise ValueError(
                    f"this {type(model).__name__} has rotary positions for a grid of {self.grid} patches "
                    f"only, got {grid}; build it with dynamic_img_size=True"
                )
            rotary = model.rope.get_embed(shape=list(grid))
        tokens = model.norm_pre(self.with_positions(tokens, grid))
        # Learned ones differ from block to block.
        by_block = rotary if model.rope_mixed else [rotary] * len(model.blocks)
        for block, turns in zip(model.blocks, by_block, strict=True):
            tokens = block(tokens, rope=turns)
        return tokens


class _MapAdapter(nn.Module):
    """timm's Swin, whose features are a map with channels last: the same with channels first."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.num_features = model, model.num_features
        self.num_prefix_tokens = 0
        self.training = model.training

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> a map (b, d, rows, columns)."""
        return rearrange(self.model.forward_features(images), "b rows columns d -> b d rows columns")

    def forward_head(self, features: Tensor) -> Tensor:
        """A map (b, d, rows, columns) -> logits."""
        return self.model.forward_head(rearrange(features, "b d rows columns -> b rows columns d"))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
