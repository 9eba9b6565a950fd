"""timm's XCiT as the course's XCiT."""

from typing import Any

from torch import nn

from vit_course.xcit import XCiT

from .comparison import is_our_gelu, is_our_norm, refuse, taken_over

# Only the factors of LayerScale have other names.
_NAMES = {r"\.gamma([123])$": r".ls\1.gamma"}


def xcit_from_timm(model: Any) -> XCiT:
    """The course's XCiT for timm's Xcit, with and without `tokens_norm`.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    from timm.models.xcit import XCA, ClassAttentionBlock, ConvPatchEmbed, XCABlock

    embedding, blocks, class_blocks = model.patch_embed, list(model.blocks), list(model.cls_attn_blocks or ())
    plain = all(type(block) is XCABlock and type(block.attn) is XCA for block in blocks)
    classes_plain = all(type(block) is ClassAttentionBlock for block in class_blocks)
    activations = [act for block in blocks if plain for act in (block.mlp.act, block.local_mp.act)]
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    refuse(
        XCiT,
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not ConvPatchEmbed,
            "its blocks": not plain,
            "its class blocks": not classes_plain or not class_blocks,
            "no bias for queries, keys and values (qkv_bias)": plain
            and any(block.attn.qkv.bias is None for block in blocks),
            "its activation (act_layer), which is not the exact GELU": not all(map(is_our_gelu, activations)),
            "its norms, which are not LayerNorm with eps 1e-6": not all(map(is_our_norm, norms))
            or len(norms) != 3 * len(blocks) + 2 * len(class_blocks) + 1,
            "its BatchNorms, whose eps is not 1e-5": any(norm.eps != 1e-5 for norm in batch_norms),
            "no positions (use_pos_embed)": model.pos_embed is None,
            f"its pooling (global_pool={model.global_pool!r})": model.global_pool != "token",
        },
    )
    attention = blocks[0].attn
    return taken_over(
        XCiT,
        model,
        _NAMES,
        image_size=embedding.img_size,
        patch_size=embedding.patch_size,
        num_classes=model.num_classes,
        dim=model.embed_dim,
        depth=len(blocks),
        heads=attention.num_heads,
        dim_head=attention.qkv.out_features // 3 // attention.num_heads,
        mlp_dim=blocks[0].mlp.fc1.out_features,
        cls_depth=len(class_blocks),
        channels=model.in_chans,
        tokens_norm=class_blocks[0].tokens_norm,
    )
