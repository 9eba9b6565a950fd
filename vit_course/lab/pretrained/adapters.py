"""Models of timm and torchvision under the course's backbone protocol."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_course.attention import attention
from vit_course.patching import pair, patch_grid, require_images, require_tokens, resize_positions
from vit_course.vit import Backbone

from .comparison import head_of_torchvision, is_identity

Recorder = Callable[[Tensor], None]
# Makes a foreign attention layer hand its weights to a recorder, inside a `with` block.
Recording = Callable[[Any, Recorder], AbstractContextManager[None]]


def adapt(model: nn.Module) -> nn.Module:
    """A model of timm or torchvision under the course's backbone protocol, which can be recorded.

    The model is shared, not copied: what trains or changes one changes the other, and it stays as it is. A
    ViT becomes a `Backbone`: `record_attention(adapter)` reads every layer under its own name, and other
    image sizes that patches fill are welcome, since positions are resized. A Swin gives a map (b, d, h, w).

    Args:
        model: timm's or torchvision's VisionTransformer, or timm's Swin. A model of the course, and one
            adapted already, come back as they are.

    Raises:
        TypeError: for a model that it does not know.
    """
    origins = [f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__]
    if isinstance(model, TorchvisionViT):
        return _TorchvisionAdapter(model)
    if "timm.models.vision_transformer.VisionTransformer" in origins:
        return _TimmAdapter(model)
    is_swin = any(origin.startswith("timm.models.swin_transformer") for origin in origins)
    if is_swin and getattr(model, "output_fmt", None) == "NHWC":
        return _MapAdapter(model)
    is_of_timm = any(origin.startswith("timm.") for origin in origins)
    protocol = ("forward_features", "forward_head", "num_features")
    if not is_of_timm and isinstance(model, nn.Module) and all(hasattr(model, name) for name in protocol):
        return model
    raise TypeError(
        "adapt knows the models of the course, the ViTs of timm and torchvision and timm's Swin; it does not "
        f"know {origins[0]}"
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


class _Tap(nn.Module):
    """Stands for one foreign attention layer where `record_attention` looks for ours."""

    kind = "global"

    def __init__(self, layer: nn.Module, recording: Recording) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, because it is a submodule of the foreign model already
        self._recording = recording
        self.attention_recorder: Recorder | None = None  # set by record_attention

    def open(self) -> AbstractContextManager:
        """Record the layer inside a `with` block, if anybody wants its weights."""
        if self.attention_recorder is None:
            return nullcontext()
        return self._recording(self._layer[0], self.attention_recorder)


class _Step(nn.Module):
    """A step of the foreign model under a name of ours; its weights are listed under their own name only."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, given: Tensor) -> Tensor:
        return self.step(given)


class _ViTAdapter(Backbone):
    """What the adapters of timm's and torchvision's ViT share.

    The foreign layers are changed only while the adapter runs: a copy made at any other time, or the foreign
    model called by itself, is as if nobody recorded.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        *,
        grid: tuple[int, int],
        patch_size: tuple[int, int],
        num_classes: int,
        dim: int,
        num_prefix_tokens: int,
    ) -> None:
        super().__init__(
            image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            patch_embedding=_Step(self.embed),
        )
        self.model, self.num_prefix_tokens = model, num_prefix_tokens
        self.add_module("norm", _Step(self.normalise))
        self._taps = []
        for name, layer, recording in self.attention_layers():
            tap = _Tap(layer, recording)
            self._taps.append(tap)
            self._add_under(name, tap)
        foreign = set(model.modules())  # whose parts may be in modes of their own: train() would reach them
        for part in self.modules():
            if part not in foreign:
                part.training = model.training

    def _add_under(self, name: str, part: nn.Module) -> None:
        """Make `part` a submodule of this name, which may have dots."""
        *path, last = name.split(".")
        place: nn.Module = self
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        place.add_module(last, part)

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Recording]]:
        """The name of every attention layer in the foreign model, the layer, and the way to record it."""
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size that patches fill -> patch tokens (b, n, d) before positions."""
        require_images(images)
        patch_grid(images.shape[-2:], self.patch_size)
        return self.embed_patches(images)

    def embed_patches(self, images: Tensor) -> Tensor:
        """The foreign patch embedding: (b, c, h, w) -> (b, n, d)."""
        raise NotImplementedError

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class tokens, positions and blocks of the foreign model; see `encode`."""
        raise NotImplementedError

    def normalise(self, tokens: Tensor) -> Tensor:
        """The foreign model's last norm: (b, n, d) -> (b, n, d)."""
        raise NotImplementedError

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        with ExitStack() as recording:
            for tap in self._taps:
                recording.enter_context(tap.open())
            return self.run_blocks(tokens, grid)

    def resized(self, positions: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
        """The foreign position embedding (1, n, d), resized to the grid that the tokens have."""
        return resize_positions(positions[0], self.grid, grid, num_prefix_tokens)


class _TorchvisionAdapter(_ViTAdapter):
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


class _TimmAdapter(_ViTAdapter):
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
        from timm.models.vision_transformer import Attention

        for name, layer in self.model.named_modules():
            if isinstance(layer, Attention):
                yield name, layer, _recording_timm

    def embed_patches(self, images: Tensor) -> Tensor:
        embedding = self.model.patch_embed
        return embedding.norm(embedding.proj(images).flatten(2).mT)

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        model, (b, n, _) = self.model, tokens.shape
        before = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = [token.expand(b, -1, -1) for token in before if token is not None]
        if model.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif model.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self.resized(model.pos_embed, grid, 0)], dim=1)
        else:
            positions = self.resized(model.pos_embed, grid, self.num_prefix_tokens)
            tokens = torch.cat([*prefix, tokens], dim=1) + positions
        tokens = model.patch_drop(model.pos_drop(tokens))
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
