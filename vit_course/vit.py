"""Vision Transformer.

How do patches and attention become a model that names what is in a picture, and how can you be sure that
yours is the published one?

Made from notebooks/03_vit.ipynb by `make export`: read and edit the lesson, not this file.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, load_state_dict_from_file, snapshot_download
from torch import Tensor, nn

from vit_course.attention import MultiHeadAttention
from vit_course.patching import (
    ConvStem,
    PatchEmbedding,
    pair,
    patch_grid,
    require_at_least,
    require_between,
    require_tokens,
    resize_positions,
    sincos_positions,
    start_linear,
)

__all__ = [
    "FeedForward",
    "StochasticDepth",
    "residual",
    "TransformerBlock",
    "HubModel",
    "Backbone",
    "classifier",
    "require_backbone",
    "ViT",
    "SimpleViT",
    "fill_buffers_again",
]


class FeedForward(nn.Module):
    """The same two linear layers for every token, with a GELU between them.

    Args:
        dim: width d of a token.
        hidden_dim: width between the two layers.
        dropout: share dropped after each layer in training.

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: Vaswani et al. 2017, section 3.3; GELU as in the ViT.

    Built in lesson 03.
    """

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_at_least(1, dim=dim, hidden_dim=hidden_dim)
        require_between(0, 1, dropout=dropout)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)
        start_linear(self.fc1)
        start_linear(self.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))


class StochasticDepth(nn.Module):
    """Drop path: leave out a whole branch of a residual block, for each sample by itself, in training only.

    What is kept is divided by the share that is kept, so that the mean over many draws is the branch itself.
    Evaluation takes just that.

    Args:
        rate: share of the samples that lose the branch, 0 … 1; at 1 all do.

    Shape: branch (b, …) -> (b, …).

    Raises:
        ValueError: for another rate.

    Source: Huang et al. 2016.

    Built in lesson 03.
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
        share_kept = 1 - self.rate if self.rate < 1 else 1.0  # at rate 1 nothing is kept, nothing to divide
        return branch * kept / share_kept


def residual(tokens: Tensor, norm: nn.Module, branch: Callable, *steps: nn.Module) -> Tensor:
    """A residual (skip) connection around a branch that works on normalised tokens ("pre-norm").

    Args:
        tokens: (b, n, d), or any other shape that all parts keep.
        norm, branch: what is done first and second.
        steps: what follows, for example a scale and drop path.

    Returns:
        tokens + steps(branch(norm(tokens))).

    Source: He et al. 2016; the norm inside as in Dosovitskiy et al. 2020, equations 2 and 3.

    Built in lesson 03.
    """
    update = branch(norm(tokens))
    for step in steps:
        update = step(update)
    return tokens + update


class TransformerBlock(nn.Module):
    """Self-attention, then a feed-forward layer, each with a residual connection around it.

    Args:
        dim: width d of a token.
        heads: number of heads h.
        mlp_dim: hidden width of the feed-forward layer.
        dim_head: width of one head, dim // heads by default.
        dropout: share dropped in training.
        layer_dropout: share of the samples that lose a branch in training (drop path).

    Shape: tokens (b, n, d) -> (b, n, d).

    Source: Dosovitskiy et al. 2020, equations 2 and 3.

    Built in lesson 03.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_dim: int,
        dim_head: int | None = None,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiHeadAttention(dim=dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim=dim, hidden_dim=mlp_dim, dropout=dropout)
        self.drop_path = StochasticDepth(layer_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = residual(tokens, self.norm1, self.attn, self.drop_path)
        return residual(tokens, self.norm2, self.mlp, self.drop_path)


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A model that is saved as a folder, and loaded from one or from the Hugging Face hub.

    The folder holds `config.json`, the name of the class and the arguments of its constructor, and
    `model.safetensors`, the weights. No code is in it. An argument may be what JSON holds, a `PatchEmbedding`
    or a `ConvStem`.

    Source: huggingface_hub's PyTorchModelHubMixin, which also has `push_to_hub`.

    Built in lesson 03.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **arguments: Any) -> Self:
        model = super().__new__(cls, *args, **arguments)
        model._arguments = dict(zip(signature(cls).parameters, args, strict=False)) | arguments
        return model

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model into a folder, which is made if need be.

        Args:
            save_directory: the folder.
            options: those of huggingface_hub, such as `push_to_hub`.

        Raises:
            ValueError: for a model that its arguments would not bring back; then nothing is written.
        """
        return super().save_pretrained(save_directory, **options | {"config": _config_of(self)})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a model on the hub, "owner/name".
            revision, token, cache_dir, local_files_only: for the hub.
            changes: arguments of the constructor that are to differ, such as `dropout=0.1`.

        Returns:
            The model in evaluation mode, with weights of the type that was saved.

        Raises:
            ValueError: for a folder that holds no such model, saying what is wrong with it.
            ConnectionError: where neither a folder nor the hub has it.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = _folder(pretrained_model_name_or_path, local_files_only=local_files_only, **hub)
        return _loaded(cls, folder, changes)


class Backbone(HubModel):
    """Images to tokens to logits: what every model of patches shares, under timm's names.

    A model on top of it makes its layers, then calls `add_head`, and writes `encode`: tokens before positions
    and their grid -> tokens, not yet normalised. All input is checked here, so that no layer need check it
    again.

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        channels: c.
        emb_dropout: share dropped after the positions in training.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Attributes:
        patch_size, grid: (height, width) in pixels; (rows, columns) of an image of image_size.
        num_features: d, the width of the features.
        num_classes: length of the logits, 0 for none.
        num_prefix_tokens: class tokens that stand before the patches.
        patch_embed: images -> patch tokens before positions.

    Shape: images (b, c, h, w) -> logits (b, num_classes), or pooled features (b, d) for num_classes 0.

    Raises:
        TypeError, ValueError: for sizes, images and tokens that do not fit.

    Built in lesson 03.
    """

    num_prefix_tokens: int = 1
    norm: nn.Module
    head: nn.Module

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        channels: int = 3,
        emb_dropout: float = 0.0,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, dim=dim)
        require_at_least(0, num_classes=num_classes)
        require_between(0, 1, emb_dropout=emb_dropout)
        if not isinstance(patch_embedding, nn.Module | None):
            raise TypeError(f"patch_embedding must be a torch.nn.Module, got {patch_embedding!r}")
        if patch_embedding is None:
            patch_embedding = PatchEmbedding(patch_size=patch_size, dim=dim, channels=channels)
        self.patch_size, self.grid = pair(patch_size, "patch_size"), patch_grid(image_size, patch_size)
        self.num_features, self.num_classes = dim, num_classes
        self.grid_recorder: Callable[..., None] | None = None  # set by record_attention
        self.patch_embed = patch_embedding
        self.pos_drop = nn.Dropout(emb_dropout)

    def add_head(self) -> None:
        """Make the last norm and the classifier: after all other layers, as in the published models."""
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = classifier(self.num_features, self.num_classes)

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) before positions, on their grid (rows, columns) -> (b, num_prefix_tokens +
        n, d).
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def forward_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Patch tokens (b, n, d) before positions -> normalised tokens (b, num_prefix_tokens + n, d).

        Args:
            tokens: what `patch_embed` makes of images.
            grid: (rows, columns) of the patches, those of image_size by default.

        Raises:
            TypeError, ValueError: where the tokens have another width or do not fill the grid.
        """
        require_tokens(tokens, self.num_features)
        rows, columns = grid = pair(grid or self.grid, "grid")
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"a grid of {rows} by {columns} patches needs {rows * columns} tokens, got shape "
                f"{tuple(tokens.shape)}"
            )
        if self.grid_recorder is not None:
            self.grid_recorder(grid, self.num_prefix_tokens)
        tokens = self.encode(tokens, grid)
        return self.norm(tokens)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> normalised tokens (b, num_prefix_tokens + n, d), class tokens first."""
        tokens = self.patch_embed(images)
        return self.forward_tokens(tokens, patch_grid(images.shape[-2:], self.patch_size))

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens -> logits (b, num_classes), or pooled features (b, d) where there are no classes.

        The first class token is read; without one, the mean of the patches.
        """
        require_tokens(features, self.num_features)
        return self.head(features[:, 0] if self.num_prefix_tokens else features.mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def classifier(dim: int, num_classes: int) -> nn.Module:
    """A linear layer (…, dim) -> (…, num_classes), or one that changes nothing where there are no classes.

    Built in lesson 03.
    """
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    start_linear(head)
    return head


def require_backbone(name: str, model: object, *parts: str) -> None:
    """Raise a TypeError unless `model` has every one of these parts of a `Backbone`.

    Args:
        name: what the model is called in the error sentence.
        model: anything.
        parts: names of attributes and methods, such as 'forward_features' and 'num_features'.

    Built in lesson 03.
    """
    for part in parts:
        if not isinstance(model, nn.Module) or not hasattr(model, part):
            raise TypeError(
                f"{name} must be a model with {part}, got {type(model).__name__}; "
                "vit_course.lab.pretrained.adapt makes one of a model of timm or torchvision"
            )


class ViT(Backbone):
    """Vision Transformer.

    Args:
        image_size, patch_size: in pixels, an int or a (height, width) pair.
        num_classes: length of the logits; 0 gives pooled features.
        dim: width d of a token.
        depth: number of blocks.
        heads: number of heads h.
        mlp_dim: hidden width of a block's feed-forward layer.
        channels: c.
        dim_head: width of one head, dim // heads by default.
        dropout, emb_dropout: shares dropped in training, in the blocks and after the positions.
        layer_dropout: share of the samples that lose the branches of the last block in training; it rises
            evenly from 0 in the first block.
        pool: 'cls' reads a class token, 'mean' has none and averages the patches.
        patch_embedding: any module that turns images into one token for each patch of patch_size pixels, in
            the place of PatchEmbedding.

    Shape: images (b, c, h, w) -> logits (b, num_classes). Other image sizes that patches fill are welcome:
    the positions are resized. Submodules are named as in timm, whose weights load as they are.

    Raises:
        TypeError, ValueError: for sizes that do not fit.

    Source: Dosovitskiy et al. 2020, equations 1 to 4.

    Built in lesson 03.
    """

    cls_token: nn.Parameter | None
    pos_embed: Tensor

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
        channels: int = 3,
        dim_head: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        pool: str = "cls",
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
        require_at_least(1, depth=depth, mlp_dim=mlp_dim)
        require_between(0, 1, layer_dropout=layer_dropout)
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean', got {pool!r}")
        self.cls_token = None
        self.num_prefix_tokens = self.add_prefix() if pool == "cls" else 0
        self.add_positions()
        block = partial(
            TransformerBlock, dim=dim, heads=heads, mlp_dim=mlp_dim, dim_head=dim_head, dropout=dropout
        )
        rates = [layer_dropout * number / max(depth - 1, 1) for number in range(depth)]
        self.blocks = nn.Sequential(*(block(layer_dropout=rate) for rate in rates))
        self.add_head()

    def add_prefix(self) -> int:
        """Make the tokens that stand before the patches, and return how many they are."""
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.num_features))
        return 1

    def prefix(self) -> list[Tensor]:
        """The tokens (1, 1, d) that stand before the patches."""
        return [] if self.cls_token is None else [self.cls_token]

    def add_positions(self) -> None:
        """Make the position embeddings, learned here, of the prefix and the patches: (1, num_prefix_tokens +
        n, d).
        """
        tokens = self.num_prefix_tokens + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, self.num_features).normal_(std=0.02))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches, prefix first: (num_prefix_tokens + n,
        d).
        """
        return resize_positions(self.pos_embed[0], self.grid, grid, self.num_prefix_tokens)

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) before positions, on their grid (rows, columns) -> (b, num_prefix_tokens +
        n, d).
        """
        prefix = [token.expand(tokens.shape[0], -1, -1) for token in self.prefix()]
        tokens = torch.cat([*prefix, tokens], dim=1) + self.positions(grid)
        return self.blocks(self.pos_drop(tokens))


class SimpleViT(ViT):
    """ViT with fixed sine-cosine positions, the mean of the patches instead of a class token, and no dropout.

    Arguments, shapes and errors as for ViT; dim must be divisible by 4.

    Source: Beyer et al. 2022.

    Built in lesson 03.
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
        channels: int = 3,
        dim_head: int | None = None,
        patch_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            pool="mean",
            patch_embedding=patch_embedding,
        )

    def add_positions(self) -> None:
        """Make the table of positions: a buffer, which is neither trained nor saved."""
        self.register_buffer("pos_embed", torch.empty(0), persistent=False)
        self.fill_buffers()
        self.register_load_state_dict_post_hook(fill_buffers_again)

    def fill_buffers(self) -> None:
        """Compute the buffers that no file holds."""
        table = sincos_positions(self.grid, self.num_features)[None]
        self.pos_embed = table.to(next(self.parameters()))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Sine-cosine positions for any grid of (rows, columns) patches: (n, d)."""
        if grid == self.grid:
            return self.pos_embed[0]
        return sincos_positions(grid, self.num_features).to(self.pos_embed)


def fill_buffers_again(model: Any, incompatible_keys: object) -> None:
    """After weights were loaded, compute the buffers that no file holds.

    A model built on PyTorch's meta device has none until then. For `register_load_state_dict_post_hook`.

    Built in lesson 03.
    """
    model.fill_buffers()


_FILES = ["config.json", "model.safetensors"]
_EMBEDDINGS = {kind.__name__: kind for kind in (PatchEmbedding, ConvStem)}


def _to_json(name: str, value: Any) -> Any:
    """An argument of a constructor as JSON holds it; the patch embeddings of lesson 01 by name and sizes."""
    if type(value) in _EMBEDDINGS.values():
        convolutions = [part for part in value.modules() if isinstance(part, nn.Conv2d)]
        dim, channels = convolutions[-1].out_channels, convolutions[0].in_channels
        height, width = value.patch_size
        size = height if height == width else (height, width)
        return {type(value).__name__: {"patch_size": size, "dim": dim, "channels": channels}}
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(
            f"a model with {name}={type(value).__name__}(…) cannot be saved: its arguments must be such that "
            "JSON holds them; save its state_dict(), and keep the code that makes it"
        ) from error


def _from_json(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor from what `_to_json` made of them."""
    arguments = dict(config)
    if isinstance(embedding := arguments.get("patch_embedding"), dict):
        ((kind, sizes),) = embedding.items()
        if kind not in _EMBEDDINGS:
            raise ValueError(f"patch_embedding must be {' or '.join(_EMBEDDINGS)}, got {kind}")
        arguments["patch_embedding"] = _EMBEDDINGS[kind](**sizes)
    return arguments


def _folder(source: str | Path, **hub: Any) -> Path:
    """The folder itself, or the one into which the hub puts the files of that name."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=_FILES, **hub))
    except Exception as error:  # a wrong name, no network, no such model: each has a class of its own
        raise ConnectionError(
            f"there is no folder {source}, and the hub did not give a model of that name "
            f"({type(error).__name__})"
        ) from error


def _misfit(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What hinders weights from being those of a model: one clause, or nothing."""
    if missing := sorted(own.keys() - weights.keys()):
        return f"{len(missing)} missing, {missing[0]} for one"
    if unknown := sorted(weights.keys() - own.keys()):
        return f"{len(unknown)} too many, {unknown[0]} for one"
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
    return ""


def _config_of(model: HubModel) -> dict[str, Any]:
    """What config.json is to hold, once it is sure to bring the model back."""
    kind = type(model)
    config = {name: _to_json(name, value) for name, value in model._arguments.items()}
    with torch.device("meta"):  # what the arguments make, without memory for its weights
        made = kind(**_from_json(config))
    parts, parts_made = ([type(part) for part in whole.modules()] for whole in (model, made))
    if parts != parts_made or _misfit(model.state_dict(), made.state_dict()):
        raise ValueError(
            f"this {kind.__name__} cannot be saved: some of its parts are not those that its arguments make; "
            "save its state_dict(), and keep the code that changed it"
        )
    return {"class": kind.__name__} | config


def _loaded(kind: type, folder: Path, changes: dict[str, Any]) -> Any:
    """The model of a class that a folder holds, with some arguments changed."""
    try:
        config = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
        weights = load_state_dict_from_file(folder / _FILES[1])
    except Exception as error:  # there is no end to the ways in which foreign files fail
        raise ValueError(f"{folder} holds no model that can be read: {error}") from error
    name = config.pop("class", None) if isinstance(config, dict) else None
    if name != kind.__name__:
        found = f"a {name}" if name else "a model of another library"
        raise ValueError(f"{folder} holds {found}, not a {kind.__name__} of the course")
    if unknown := sorted(config.keys() - signature(kind).parameters.keys()):
        raise ValueError(f"{folder}: a {name} has no argument {', '.join(unknown)}")
    try:
        model = kind(**_from_json(config) | changes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: these arguments make no {name}: {error}") from error
    if misfit := _misfit(weights, model.state_dict()):
        raise ValueError(f"{folder}: the weights are not those of such a {name}: {misfit}")
    # Tensors that were read may still lie in the file; copies survive that it is written again.
    model.load_state_dict({key: tensor.clone() for key, tensor in weights.items()}, assign=True)
    return model.eval()
