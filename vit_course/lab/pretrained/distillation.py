"""timm's distilled DeiTs as the course's DistilledViT."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from vit_course.distillation import DistilledViT

from .comparison import is_our_gelu, is_our_norm, refuse, taken_over

# The layers that both models have, under the same names, and what each must be.
_SHARED: dict[str, Callable[[Any], bool]] = {
    r"norm|blocks\.\d+\.norm[12]": is_our_norm,
    r"blocks\.\d+\.mlp\.act": is_our_gelu,
    r"patch_embed\.proj|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])": lambda layer: layer.bias is not None,
    r"head|head_dist": lambda layer: isinstance(layer, nn.Linear | nn.Identity),
}
_IDLE = ("Identity", "Dropout", "DropPath", "PatchDropout")  # what does nothing, or nothing in evaluation


def distilled_vit_from_timm(model: Any) -> DistilledViT:
    """The course's DistilledViT for timm's VisionTransformerDistilled; the submodules have the same names.

    In training ours gives both logits, as timm's does after `set_distilled_training()`.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import Attention, Block

    embedding, blocks = model.patch_embed, list(model.blocks)
    kinds = {(type(block), type(block.attn), type(block.mlp)) for block in blocks if type(block) is Block}
    refuse(
        DistilledViT,
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not PatchEmbed,
            "its blocks": kinds != {(Block, Attention, Mlp)}
            or any(type(block) is not Block for block in blocks),
            "register tokens (reg_tokens)": getattr(model, "reg_token", None) is not None,
            "no positions for its two tokens (no_embed_class)": model.no_embed_class,
        }
        | {f"its {name}, {layer}": True for name, layer in _strange_layers(model)},
    )
    attention = blocks[0].attn
    return taken_over(
        DistilledViT,
        model,
        {},
        image_size=embedding.img_size,
        patch_size=embedding.patch_size,
        num_classes=model.num_classes,
        dim=model.embed_dim,
        depth=len(blocks),
        heads=attention.num_heads,
        dim_head=attention.qkv.out_features // 3 // attention.num_heads,
        mlp_dim=blocks[0].mlp.fc1.out_features,
        channels=embedding.proj.in_channels,
    )


def _strange_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name, with a star for the block's number, and layer, where ours lacks it or computes otherwise."""
    for name, layer in model.named_modules():
        if next(layer.children(), None) is None:
            is_ours = next((check for names, check in _SHARED.items() if re.fullmatch(names, name)), None)
            if not (is_ours(layer) if is_ours else type(layer).__name__ in _IDLE):
                yield re.sub(r"^blocks\.\d+", "blocks.*", name), layer
