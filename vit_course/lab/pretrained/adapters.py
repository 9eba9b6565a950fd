"""Models of timm and torchvision that speak the course's backbone protocol."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_course.attention import attention
from vit_course.patching import pair, patch_grid, require_images, require_tokens, resize_positions

from .comparison import is_identity


def adapt(model: nn.Module) -> nn.Module:
    """A model of timm or torchvision that speaks the course's backbone protocol and can be recorded.

    The model is shared, not copied: what trains or changes one changes the other, and it stays as it is. The adapter has forward_features
    (normalised tokens (b, n, d), class tokens first, or a map (b, d, h, w)), forward_head, num_features and, for a ViT,
    num_prefix_tokens, patch_size, patch_embed and forward_tokens; `record_attention(adapter)` reads every layer under its own name. Other
    image sizes that patches fill are welcome: a ViT's positions are resized.

    model: timm's or torchvision's VisionTransformer, or timm's Swin. A model of
    the course, and one adapted already, come back as they are.
    Raises TypeError for a model that it does not know.
    """
    origins = [f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__]
    if isinstance(model, TorchvisionViT):
        return _TorchvisionAdapter(model)
    if "timm.models.vision_transformer.VisionTransformer" in origins:
        return _TimmAdapter(model)
    if (
        any(origin.startswith("timm.models.swin_transformer") for origin in origins)
        and getattr(model, "output_fmt", None) == "NHWC"
    ):
        return _MapAdapter(model)
    is_timms = any(origin.startswith("timm.") for origin in origins)
    if (
        not is_timms
        and isinstance(model, nn.Module)
        and all(hasattr(model, name) for name in ("forward_features", "forward_head", "num_features"))
    ):
        return model
    raise TypeError(
        f"adapt knows the models of the course, the ViTs of timm and torchvision and timm's Swin; it does not know {origins[0]}"
    )


class _Tap(nn.Module):
    """Stands for one foreign attention layer where `record_attention` looks for ours: while it has a recorder, it listens to that layer."""

    kind = "global"

    def __init__(
        self, layer: nn.Module, listen: Callable[[nn.Module, Callable[[Tensor], None]], ExitStack]
    ) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, because it is a submodule of the foreign model already
        self._listen = listen
        self._listening = ExitStack()
        self._recorder: Callable[[Tensor], None] | None = None

    @property
    def attention_recorder(self) -> Callable[[Tensor], None] | None:
        return self._recorder

    @attention_recorder.setter
    def attention_recorder(self, recorder: Callable[[Tensor], None] | None) -> None:
        self._listening.close()
        self._recorder = recorder
        self._listening = ExitStack() if recorder is None else self._listen(*self._layer, recorder)


def _listen_to_timm(layer: nn.Module, recorder: Callable[[Tensor], None]) -> ExitStack:
    """Send timm's layer the explicit way; what it then drops out are its weights. The stack undoes it."""
    undo = ExitStack()
    undo.callback(setattr, layer, "fused_attn", layer.fused_attn)
    undo.callback(
        layer.attn_drop.register_forward_pre_hook(lambda module, inputs: recorder(inputs[0])).remove
    )
    layer.fused_attn = False
    return undo


def _listen_to_torch(layer: nn.MultiheadAttention, recorder: Callable[[Tensor], None]) -> ExitStack:
    """Let lesson 02's attention stand in for PyTorch's layer, which gives its weights away only after dropout. The stack undoes it."""

    def forward(tokens: Tensor, *the_same_tokens: Tensor, **options: object) -> tuple[Tensor, None]:
        parts = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "b n (h k) -> b h n k", h=layer.num_heads) for part in parts)
        out, weights = attention(q, k, v, layer.dropout if layer.training else 0.0)
        recorder(weights)
        return layer.out_proj(rearrange(out, "b h n k -> b n (h k)")), None

    undo = ExitStack()
    undo.callback(delattr, layer, "forward")
    layer.forward = forward
    return undo


class _Tokens(nn.Module):
    """The foreign patch embedding for images of any size that patches fill: (b, c, h, w) -> (b, n, d)."""

    def __init__(self, embed: nn.Module, norm: nn.Module, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self._layers = embed, norm  # in a tuple, because they are submodules of the foreign model already
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        require_images(images)
        patch_grid(tuple(images.shape[-2:]), self.patch_size)
        embed, norm = self._layers
        return norm(rearrange(embed(images), "b d rows columns -> b (rows columns) d"))


class _ViTAdapter(nn.Module):
    """What the adapters of timm's and torchvision's ViT share; each adds forward_tokens and forward_head."""

    def __init__(
        self,
        model: nn.Module,
        patch_embed: _Tokens,
        grid: tuple[int, int],
        num_features: int,
        num_prefix_tokens: int,
    ) -> None:
        super().__init__()
        self.model, self.patch_embed, self.patch_size, self.grid = (
            model,
            patch_embed,
            patch_embed.patch_size,
            grid,
        )
        self.num_features, self.num_prefix_tokens = num_features, num_prefix_tokens
        self.training = (
            model.training
        )  # train() would reach into the model, whose parts may be in modes of their own
        for name, layer, listen in self.attention_layers():
            *path, last = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.add_module(last, _Tap(layer, listen))

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Callable]]:
        """The name of every attention layer in the foreign model, the layer, and the way to listen to it."""
        raise NotImplementedError

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, num_prefix_tokens + n, d)."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> normalised tokens (b, num_prefix_tokens + n, d)."""
        return self.forward_tokens(
            self.patch_embed(images), patch_grid(tuple(images.shape[-2:]), self.patch_size)
        )

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens -> logits, or pooled features where the model has no classes."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def positions(
        self, positions: Tensor, tokens: Tensor, grid: tuple[int, int] | None, num_prefix_tokens: int
    ) -> Tensor:
        """The foreign position embedding (1, n, d), resized to the grid that the tokens have."""
        require_tokens(tokens, self.num_features)
        rows, columns = grid = pair(grid or self.grid, "grid")
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"a grid of {rows} by {columns} patches needs {rows * columns} tokens, got shape {tuple(tokens.shape)}"
            )
        return resize_positions(positions[0], self.grid, grid, num_prefix_tokens)


class _TorchvisionAdapter(_ViTAdapter):
    """torchvision's VisionTransformer: its encoder would refuse other image sizes, so its parts are called one by one."""

    def __init__(self, model: TorchvisionViT) -> None:
        patch_size = pair(model.patch_size)
        super().__init__(
            model,
            _Tokens(model.conv_proj, nn.Identity(), patch_size),
            patch_grid(model.image_size, patch_size),
            model.hidden_dim,
            1,
        )

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Callable]]:
        for name, layer in self.model.named_modules():
            if isinstance(layer, nn.MultiheadAttention):
                yield name, layer, _listen_to_torch

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        encoder = self.model.encoder
        positions = self.positions(encoder.pos_embedding, tokens, grid, 1)
        tokens = (
            torch.cat([self.model.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions
        )
        return encoder.ln(encoder.layers(encoder.dropout(tokens)))

    def forward_head(self, features: Tensor) -> Tensor:
        require_tokens(features, self.num_features)
        return self.model.heads(features[:, 0])


class _TimmAdapter(_ViTAdapter):
    """timm's VisionTransformer, in whatever variant: class, distillation and register tokens, LayerScale, norms before or after."""

    def __init__(self, model: nn.Module) -> None:
        embedding = model.patch_embed
        if not hasattr(embedding, "proj") or not hasattr(embedding, "grid_size"):
            raise TypeError(
                f"adapt does not know a ViT whose patch embedding is timm's {type(embedding).__name__}"
            )
        self._check_pooling(model)
        patch_size, grid = pair(tuple(embedding.patch_size)), tuple(embedding.grid_size)
        super().__init__(
            model,
            _Tokens(embedding.proj, embedding.norm, patch_size),
            grid,
            model.num_features,
            model.num_prefix_tokens,
        )

    @staticmethod
    def _check_pooling(model: nn.Module) -> None:
        if not is_identity(model.fc_norm) and model.global_pool != "avg":
            raise TypeError(
                f"adapt does not know a ViT that normalises after pooling with global_pool={model.global_pool!r}"
            )

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Callable]]:
        from timm.models.vision_transformer import Attention

        for name, layer in self.model.named_modules():
            if isinstance(layer, Attention):
                yield name, layer, _listen_to_timm

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        model = self.model
        prefix = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = [token.expand(tokens.shape[0], -1, -1) for token in prefix if token is not None]
        if model.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif model.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self.positions(model.pos_embed, tokens, grid, 0)], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1) + self.positions(
                model.pos_embed, tokens, grid, self.num_prefix_tokens
            )
        tokens = model.norm(model.blocks(model.norm_pre(model.patch_drop(model.pos_drop(tokens)))))
        return tokens if is_identity(model.fc_norm) else self._normalise(tokens)

    def _normalise(self, tokens: Tensor) -> Tensor:
        """Where timm normalises after pooling: every token with the spread of their mean, so that pooling and norm change places exactly.

        The mean of the patches that come out is timm's normalised mean, and `forward_head` gives its logits.
        """
        norm, pooled = self.model.fc_norm, self.model.pool(tokens)
        spread = (pooled.var(dim=-1, correction=0) + norm.eps).sqrt()[:, None, None]
        return (tokens - tokens.mean(dim=-1, keepdim=True)) / spread * norm.weight + norm.bias

    def forward_head(self, features: Tensor) -> Tensor:
        require_tokens(features, self.num_features)
        if is_identity(self.model.fc_norm):
            return self.model.forward_head(features)
        return self.model.head(self.model.head_drop(self.model.pool(features)))


class _MapAdapter(nn.Module):
    """timm's Swin, whose features are a map with channels last (b, rows, columns, d): the same with channels first."""

    def __init__(self, model: nn.Module) -> None:
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
