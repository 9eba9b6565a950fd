"""Published weights in the course's models, and published models on the course's benches.

`from_timm`, `from_torchvision` and `from_dino` copy weights into a model of the course that gives the same logits. `adapt` leaves a model
of timm or torchvision what it is and only makes it speak the course's backbone protocol, so that `record_attention`, the explorer and the
later lessons can use it. Nothing is downloaded unless published weights are asked for by name.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_course.attention import attention
from vit_course.patching import pair, patch_grid, require_images, require_tokens, resize_positions
from vit_course.vit import ViT

# ---- weights ---------------------------------------------------------------------------------------------------------------------------


def from_timm(model: nn.Module | str, pretrained: bool = False) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of timm.

    model: a model of timm, or the name of one. pretrained: for a name, download its published weights.
    Returns a model of its own, with copied weights, on the same device; dropout, which only training has, is left off.
    Raises ValueError for a name or a variant that the course's models do not compute, naming what differs; TypeError for anything else;
    ConnectionError where published weights cannot be had; ImportError without timm.
    """
    timm = _import_timm("from_timm")
    if isinstance(model, str):
        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}")
        model = _download(model, lambda: timm.create_model(model, pretrained=pretrained), wanted=pretrained)
    return _convert(model, "timm", {"VisionTransformer": _vit_from_timm})


def from_torchvision(model: nn.Module | str, weights: object = None) -> nn.Module:
    """The course's model with the weights, and so the logits, of one of torchvision.

    model: a model of torchvision, or the name of one. weights: for a name, the published weights to download, "DEFAULT" for example.
    Returns, and raises, as `from_timm` does.
    """
    if isinstance(model, str):
        if model not in torchvision.models.list_models():
            raise ValueError(f"torchvision has no model {model!r}")
        if (
            isinstance(weights, str)
            and weights not in torchvision.models.get_model_weights(model).__members__
        ):
            raise ValueError(f"torchvision has no weights {weights!r} for {model}")
        model = _download(
            model, lambda: torchvision.models.get_model(model, weights=weights), wanted=weights is not None
        )
    return _convert(model, "torchvision", {"VisionTransformer": _vit_from_torchvision})


def from_dino(checkpoint: dict[str, Tensor] | str | Path) -> ViT:
    """The backbone that Caron et al. 2021 published for DINO, as the course's ViT without classes.

    checkpoint: one of their files, or what it holds: a backbone alone, or a full checkpoint, of which the teacher is taken.
    Returns a ViT that gives class token features (b, d). All their ViTs have square images and heads of width 64.
    Raises ValueError for a file or dictionary that holds no such backbone. DINO is the subject of lesson 10.
    """
    if not isinstance(checkpoint, dict):
        checkpoint = torch.load(Path(checkpoint), map_location="cpu", weights_only=True)
    teacher = checkpoint.get("teacher", checkpoint)
    state = {
        re.sub(r"^(module\.)?(backbone\.)?", "", name): tensor
        for name, tensor in teacher.items()
        if "head." not in name
    }
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"} <= state.keys():
        raise ValueError(
            f"this is not a checkpoint of a DINO ViT; it holds {', '.join(list(checkpoint)[:5])} …"
        )
    dim, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch_size
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    mlp_dim = len(state["blocks.0.mlp.fc1.weight"])
    return _filled(
        state, image_size=side, patch_size=patch_size, num_classes=0, dim=dim, depth=depth, heads=max(1, dim // 64), mlp_dim=mlp_dim,
        channels=channels,
    )  # fmt: skip


def _import_timm(caller: str):
    """timm, which only those need who want its models."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{caller} needs timm: pip install timm") from error
    return timm


def _download(name: str, create: Callable[[], nn.Module], wanted: bool) -> nn.Module:
    """The created model; where its weights were wanted from the network, any failure becomes one sentence."""
    try:
        return create()
    except Exception as error:  # every library on the way to a hub has errors of its own
        if not wanted:
            raise
        raise ConnectionError(
            f"the published weights of {name} could not be had; is there a network? ({error})"
        ) from error


def _convert(
    model: nn.Module, library: str, converters: dict[str, Callable[[nn.Module], nn.Module]]
) -> nn.Module:
    """Our model for a foreign one, by the converter for exactly its class: a subclass may compute something else."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"from_{library} needs a model of {library} or its name, got {model!r}")
    kind = type(model)
    if not kind.__module__.startswith(f"{library}.") or kind.__name__ not in converters:
        raise TypeError(
            f"from_{library} takes {library}'s {', '.join(converters)}, got {kind.__module__}.{kind.__name__}"
        )
    ours = converters[kind.__name__](model)
    return ours.to(next(model.parameters())).train(model.training)


def _filled(state: dict[str, Tensor], **config) -> ViT:
    """A ViT of this configuration, with these weights and no others."""
    model = ViT(**config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"these weights are not those of a ViT with {config}: {error}") from error
    return model


def _refuse(library: str, findings: dict[str, bool]) -> None:
    """One ValueError that names everything a foreign model does and ours does not."""
    found = [name for name, is_there in findings.items() if is_there]
    if found:
        raise ValueError(
            f"the course's ViT cannot take over this model of {library}; it differs in: {', '.join(found)}"
        )


def _is_our_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) and layer.eps == 1e-6


def _is_our_gelu(layer: nn.Module) -> bool:
    return type(layer).__name__ == "GELU" and getattr(layer, "approximate", "none") == "none"


def _is_identity(layer: nn.Module | None) -> bool:
    return layer is None or isinstance(layer, nn.Identity)


def _vit_from_timm(model: nn.Module) -> ViT:
    """Our ViT for timm's VisionTransformer; the submodules have the same names."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Attention, Block

    embedding, blocks = model.patch_embed, list(model.blocks)
    has_class, pool = model.cls_token is not None, model.global_pool
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    _refuse(
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not PatchEmbed
            or not _is_identity(embedding.norm),
            "its blocks": not plain,
            "LayerScale (init_values)": any(
                not _is_identity(getattr(block, "ls1", None)) for block in blocks
            ),
            "normalised queries and keys (qk_norm)": plain
            and any(not _is_identity(block.attn.q_norm) for block in blocks),
            "a norm inside attention (scale_attn_norm)": plain
            and any(not _is_identity(getattr(block.attn, "norm", None)) for block in blocks),
            "a norm inside the feed-forward layer (scale_mlp_norm)": plain
            and any(not _is_identity(getattr(block.mlp, "norm", None)) for block in blocks),
            "gated attention": plain
            and any(getattr(block.attn, "gate", None) is not None for block in blocks),
            "no bias for queries, keys and values (qkv_bias)": plain
            and any(block.attn.qkv.bias is None for block in blocks),
            "its activation (act_layer), which is not the exact GELU": plain
            and any(not _is_our_gelu(block.mlp.act) for block in blocks),
            "its norms, which are not LayerNorm with eps 1e-6": plain
            and any(not _is_our_norm(norm) for block in blocks for norm in (block.norm1, block.norm2)),
            "register tokens (reg_tokens)": getattr(model, "reg_token", None) is not None,
            "a norm before the blocks (pre_norm)": not _is_identity(model.norm_pre),
            "no learned positions (pos_embed)": model.pos_embed is None,
            "no position for the class token (no_embed_class)": has_class and model.no_embed_class,
            "a norm after pooling (fc_norm)": not _is_identity(model.fc_norm),
            "its final norm (final_norm)": _is_identity(model.fc_norm) and not _is_our_norm(model.norm),
            "attention pooling (attn_pool)": getattr(model, "attn_pool", None) is not None,
            f"its pooling (global_pool={pool!r}{' with' if has_class else ' without'} a class token)": (
                has_class,
                pool,
            )
            not in ((True, "token"), (False, "avg")),
        },
    )
    attention = blocks[0].attn
    return _filled(
        model.state_dict(), image_size=embedding.img_size, patch_size=embedding.patch_size, num_classes=model.num_classes,
        dim=model.embed_dim, depth=len(blocks), heads=attention.num_heads, dim_head=attention.qkv.out_features // 3 // attention.num_heads,
        mlp_dim=blocks[0].mlp.fc1.out_features, channels=embedding.proj.in_channels, pool="cls" if has_class else "mean",
    )  # fmt: skip


# torchvision's names and ours. Queries, keys and values lie in one matrix in the same order in both.
_TORCHVISION_NAMES = {
    r"^class_token": "cls_token",
    r"^conv_proj": "patch_embed.proj",
    r"^encoder\.pos_embedding": "pos_embed",
    r"^encoder\.ln": "norm",
    r"^encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
    r"\.ln_([12])\.": r".norm\1.",
    r"\.self_attention\.in_proj_": ".attn.qkv.",
    r"\.self_attention\.out_proj\.": ".attn.proj.",
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.3\.": ".mlp.fc2.",
    r"^heads\.head\.": "head.",
}


def _vit_from_torchvision(model: TorchvisionViT) -> ViT:
    """Our ViT for torchvision's VisionTransformer."""
    blocks = list(model.encoder.layers)
    head = getattr(
        model.heads, "head", model.heads
    )  # people who want features put an Identity in the place of `heads` or of `head`
    _refuse(
        "torchvision",
        {
            "its convolutional stem (conv_stem_configs)": not isinstance(model.conv_proj, nn.Conv2d),
            "a hidden layer in its head (representation_size)": not _is_identity(model.heads)
            and len(model.heads) > 1,
            "its head": not _is_identity(head) and not isinstance(head, nn.Linear),
            "its norms, which are not LayerNorm with eps 1e-6": any(
                not _is_our_norm(norm)
                for norm in (
                    model.encoder.ln,
                    *(norm for block in blocks for norm in (block.ln_1, block.ln_2)),
                )
            ),
            "its activation, which is not the exact GELU": any(
                not _is_our_gelu(block.mlp[1]) for block in blocks
            ),
        },
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, ours in _TORCHVISION_NAMES.items():
            name = re.sub(theirs, ours, name)
        state[name] = tensor
    return _filled(
        state, image_size=model.image_size, patch_size=model.patch_size, num_classes=getattr(head, "out_features", 0),
        dim=model.hidden_dim, depth=len(blocks), heads=blocks[0].num_heads, mlp_dim=model.mlp_dim, channels=model.conv_proj.in_channels,
    )  # fmt: skip


# ---- adapters --------------------------------------------------------------------------------------------------------------------------


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
        if not _is_identity(model.fc_norm) and model.global_pool != "avg":
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
        return tokens if _is_identity(model.fc_norm) else self._normalise(tokens)

    def _normalise(self, tokens: Tensor) -> Tensor:
        """Where timm normalises after pooling: every token with the spread of their mean, so that pooling and norm change places exactly.

        The mean of the patches that come out is timm's normalised mean, and `forward_head` gives its logits.
        """
        norm, pooled = self.model.fc_norm, self.model.pool(tokens)
        spread = (pooled.var(dim=-1, correction=0) + norm.eps).sqrt()[:, None, None]
        return (tokens - tokens.mean(dim=-1, keepdim=True)) / spread * norm.weight + norm.bias

    def forward_head(self, features: Tensor) -> Tensor:
        require_tokens(features, self.num_features)
        if _is_identity(self.model.fc_norm):
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
