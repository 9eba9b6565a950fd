"""The ViTs of Hugging Face transformers under the course's backbone protocol."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_course.patching import pair, patch_grid, require_tokens

from .foreign import Recorder, Recording, ViTAdapter


@dataclass(frozen=True)
class Layout:
    """Where the parts of a transformers ViT are.

    Args:
        blocks: name of the list of blocks.
        norm: name of the last norm.
        attention: name of the attention layer in a block.
        patches: name of the patch embedding in `embeddings`.
        prefix: names, in `embeddings`, of the tokens before the patches, in their order.
        first_norm: name of a norm before the blocks.
    """

    blocks: str
    norm: str
    attention: str = "attention"
    patches: str = "patch_embeddings"
    prefix: tuple[str, ...] = ("cls_token",)
    first_norm: str | None = None


# By the class of the backbone.
LAYOUTS = {
    "ViTModel": Layout("layers", "layernorm"),
    "DeiTModel": Layout("layers", "layernorm", prefix=("cls_token", "distillation_token")),
    "Dinov2Model": Layout("encoder.layer", "layernorm"),
    "Dinov2WithRegistersModel": Layout("encoder.layer", "layernorm", prefix=("cls_token", "register_tokens")),
    "DINOv3ViTModel": Layout("model.layer", "norm", prefix=("cls_token", "register_tokens")),
    "CLIPVisionModel": Layout(
        "encoder.layers",
        "post_layernorm",
        attention="self_attn",
        patches="patch_embedding",
        prefix=("class_embedding",),
        first_norm="pre_layrnorm",
    ),
}
# A model with a head: where its backbone is.
WITH_HEAD = {
    "ViTForImageClassification": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "CLIPVisionModelWithProjection": "vision_model",
}


def backbone_of(model: Any) -> Any:
    """The part of a transformers model that makes features of images; the model itself if it has no head."""
    return getattr(model, WITH_HEAD.get(type(model).__name__, ""), model)


def layout_of(model: Any) -> Layout | None:
    """Where its parts are, or None for anything but a ViT of transformers that is known here."""
    if not type(model).__module__.startswith("transformers.models."):
        return None
    return LAYOUTS.get(type(backbone_of(model)).__name__)


@contextmanager
def _recording(layer: Any, recorder: Recorder) -> Iterator[None]:
    """Explicit weights in the place of whatever attention function the layer's configuration names.

    Their own explicit function gives weights after dropout only.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: None,
        *,
        scaling: float,
        dropout: float = 0.0,
        **more: object,
    ) -> tuple[Tensor, Tensor]:
        weights = (q @ k.transpose(-2, -1) * scaling).softmax(dim=-1)
        recorder(weights)
        return (F.dropout(weights, dropout) @ v).transpose(1, 2), weights  # (b, n, h, k)

    name, own = f"recorded by vit_course: {id(layer)}", layer.config
    ALL_ATTENTION_FUNCTIONS[name] = attend
    layer.config = copy.copy(own)  # one configuration serves all layers of the model
    layer.config._attn_implementation = name
    try:
        yield
    finally:
        layer.config = own
        del ALL_ATTENTION_FUNCTIONS[name]


class TransformersAdapter(ViTAdapter):
    """A ViT of transformers, part by part.

    The head of a classifier stays. A model without one gives the class token, normalised; CLIP's vision tower
    with projection gives its picture features.
    """

    def __init__(self, model: Any) -> None:
        layout, config = layout_of(model), backbone_of(model).config
        if layout is None:
            raise TypeError(f"not a ViT of transformers that is known here: {type(model).__name__}")
        self._layout = layout
        patch_size = pair(config.patch_size)
        embeddings = backbone_of(model).embeddings
        super().__init__(
            model,
            grid=patch_grid(config.image_size, patch_size),
            patch_size=patch_size,
            num_classes=_width_of_head(model),
            dim=config.hidden_size,
            num_prefix_tokens=sum(
                getattr(embeddings, name).numel() // config.hidden_size for name in layout.prefix
            ),
        )

    def attention_layers(self) -> Iterator[tuple[str, nn.Module, Recording]]:
        blocks, attention = self._layout.blocks.removeprefix("model."), self._layout.attention
        for number, block in enumerate(backbone_of(self.model).get_submodule(self._layout.blocks)):
            yield f"{blocks}.{number}.{attention}", getattr(block, attention), _recording

    def embed_patches(self, images: Tensor) -> Tensor:
        patches = getattr(backbone_of(self.model).embeddings, self._layout.patches)
        return getattr(patches, "projection", patches)(images).flatten(2).mT

    def run_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        backbone, layout = backbone_of(self.model), self._layout
        tokens = self.with_prefix(tokens, grid)
        if layout.first_norm is not None:
            tokens = getattr(backbone, layout.first_norm)(tokens)
        rotary = {}
        if hasattr(backbone, "rope_embeddings"):  # it asks pictures for nothing but their size and type
            height, width = (side * p for side, p in zip(grid, self.patch_size, strict=True))
            pictures = tokens.new_empty(()).expand(1, 1, height, width)
            rotary["position_embeddings"] = backbone.rope_embeddings(pictures)
        for block in backbone.get_submodule(layout.blocks):
            tokens = block(tokens, attention_mask=None, **rotary)
        return tokens

    def with_prefix(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (b, n, d) with what stands before them and learned positions, if there are any.

        Registers have none.
        """
        embeddings = backbone_of(self.model).embeddings
        before = {
            name: getattr(embeddings, name).reshape(1, -1, self.num_features).expand(len(tokens), -1, -1)
            for name in self._layout.prefix
        }
        registers = [before.pop(name) for name in list(before) if name == "register_tokens"]
        tokens = torch.cat([*before.values(), tokens], dim=1)
        positions = self.positions(tokens, grid)
        if positions is not None:
            tokens = tokens + positions
        first, patches = tokens[:, : len(before)], tokens[:, len(before) :]
        tokens = torch.cat([first, *registers, patches], dim=1)
        return embeddings.dropout(tokens) if hasattr(embeddings, "dropout") else tokens

    def positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """The learned positions (1, n, d) of these tokens, resized by transformers' own function."""
        embeddings = backbone_of(self.model).embeddings
        table = getattr(embeddings, "position_embeddings", None)
        if table is None and hasattr(embeddings, "position_embedding"):  # CLIP's
            table = embeddings.position_embedding.weight[None]
        if table is None or grid == self.grid:
            return table
        height, width = (side * p for side, p in zip(grid, self.patch_size, strict=True))
        return embeddings.interpolate_pos_encoding(tokens, height, width)

    def normalise(self, tokens: Tensor) -> Tensor:
        return getattr(backbone_of(self.model), self._layout.norm)(tokens)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens -> logits as transformers computes them, or without a head the class token."""
        require_tokens(features, self.num_features)
        model, kind = self.model, type(self.model).__name__
        if kind not in WITH_HEAD:
            return features[:, 0]
        if kind.startswith("CLIP"):
            return model.visual_projection(features[:, 0])
        if kind.endswith("WithTeacher"):
            return (model.cls_classifier(features[:, 0]) + model.distillation_classifier(features[:, 1])) / 2
        if kind.startswith("Dinov2"):
            patches = features[:, self.num_prefix_tokens :].mean(dim=1)
            return model.classifier(torch.cat([features[:, 0], patches], dim=1))
        return model.classifier(features[:, 0])


def _width_of_head(model: Any) -> int:
    """How long the logits are; 0 where there is no head."""
    for name in ("classifier", "cls_classifier", "visual_projection"):
        if isinstance(head := getattr(model, name, None), nn.Linear):
            return head.out_features
    return 0
