"""timm's CaiT as the course's CaiT."""

from typing import Any

from torch import nn

from vit_course.cait import CaiT

from .comparison import is_identity, is_our_gelu, is_our_norm, refuse, taken_over

# Only the factors of LayerScale have other names.
_NAMES = {r"\.gamma_([12])$": r".ls\1.gamma"}


def cait_from_timm(model: Any) -> CaiT:
    """The course's CaiT for timm's Cait.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    from timm.layers import Mlp, PatchEmbed
    from timm.models.cait import ClassAttn, LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn

    embedding, blocks, class_blocks = model.patch_embed, list(model.blocks), list(model.blocks_token_only)
    plain = all(_made_of(block, LayerScaleBlock, TalkingHeadAttn, Mlp) for block in blocks)
    class_plain = all(_made_of(block, LayerScaleBlockClassAttn, ClassAttn, Mlp) for block in class_blocks)
    mlps = [block.mlp for block in blocks + class_blocks] if plain and class_plain else []
    class_widths = {mlp.fc1.out_features for mlp in mlps}
    norms = [model.norm, *(norm for block in blocks + class_blocks for norm in (block.norm1, block.norm2))]
    refuse(
        CaiT,
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not PatchEmbed
            or not is_identity(embedding.norm),
            "its blocks": not plain,
            "its class attention blocks": not class_plain,
            "no class attention blocks (depth_token_only)": not class_blocks,
            "no bias for queries, keys and values (qkv_bias)": plain and blocks[0].attn.qkv.bias is None,
            "its activation (act_layer), which is not the exact GELU": any(
                not is_our_gelu(mlp.act) for mlp in mlps
            ),
            "another width of the class attention blocks (mlp_ratio_token_only)": len(class_widths) > 1,
            "its norms, which are not LayerNorm with eps 1e-6": not all(map(is_our_norm, norms)),
            f"its pooling (global_pool={model.global_pool!r})": model.global_pool != "token",
        },
    )
    return taken_over(
        CaiT,
        model,
        _NAMES,
        image_size=embedding.img_size,
        patch_size=embedding.patch_size,
        num_classes=model.num_classes,
        dim=model.embed_dim,
        depth=len(blocks),
        cls_depth=len(class_blocks),
        heads=blocks[0].attn.num_heads,
        mlp_dim=blocks[0].mlp.fc1.out_features,
        channels=embedding.proj.in_channels,
    )


def _made_of(block: nn.Module, kind: type, attention: type, mlp: type) -> bool:
    """Whether a block and its parts are exactly of these classes: a subclass may compute something else."""
    return type(block) is kind and type(block.attn) is attention and type(block.mlp) is mlp
