"""The ViTs of timm and of torchvision as the course's ViT."""

from typing import Any

from torch import nn

from vit_course.vit import ViT

from .comparison import head_of_torchvision, is_identity, is_our_gelu, is_our_norm, refuse, taken_over


def vit_from_timm(model: Any) -> ViT:
    """The course's ViT for timm's VisionTransformer; the submodules have the same names.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Attention, Block

    embedding, blocks = model.patch_embed, list(model.blocks)
    has_class, pool = model.cls_token is not None, model.global_pool
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    refuse(
        ViT,
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not PatchEmbed
            or not is_identity(embedding.norm),
            "its blocks": not plain,
            "LayerScale (init_values)": any(not is_identity(getattr(block, "ls1", None)) for block in blocks),
            "normalised queries and keys (qk_norm)": plain
            and any(not is_identity(block.attn.q_norm) for block in blocks),
            "a norm inside attention (scale_attn_norm)": plain
            and any(not is_identity(getattr(block.attn, "norm", None)) for block in blocks),
            "a norm inside the feed-forward layer (scale_mlp_norm)": plain
            and any(not is_identity(getattr(block.mlp, "norm", None)) for block in blocks),
            "gated attention": plain
            and any(getattr(block.attn, "gate", None) is not None for block in blocks),
            "no bias for queries, keys and values (qkv_bias)": plain
            and any(block.attn.qkv.bias is None for block in blocks),
            "its activation (act_layer), which is not the exact GELU": plain
            and any(not is_our_gelu(block.mlp.act) for block in blocks),
            "its norms, which are not LayerNorm with eps 1e-6": plain
            and any(not is_our_norm(norm) for block in blocks for norm in (block.norm1, block.norm2)),
            "register tokens (reg_tokens)": getattr(model, "reg_token", None) is not None,
            "a norm before the blocks (pre_norm)": not is_identity(model.norm_pre),
            "no learned positions (pos_embed)": model.pos_embed is None,
            "no position for the class token (no_embed_class)": has_class and model.no_embed_class,
            "a norm after pooling (fc_norm)": not is_identity(model.fc_norm),
            "its final norm (final_norm)": is_identity(model.fc_norm) and not is_our_norm(model.norm),
            "attention pooling (attn_pool)": getattr(model, "attn_pool", None) is not None,
            f"its pooling (global_pool={pool!r} {'with' if has_class else 'without'} a class token)": (
                has_class,
                pool,
            )
            not in ((True, "token"), (False, "avg")),
        },
    )
    attention = blocks[0].attn
    return taken_over(
        ViT,
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
        pool="cls" if has_class else "mean",
    )


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


def vit_from_torchvision(model: Any) -> ViT:
    """The course's ViT for torchvision's VisionTransformer.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    blocks = list(model.encoder.layers)
    norms = [model.encoder.ln, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    head = head_of_torchvision(model)
    refuse(
        ViT,
        "torchvision",
        {
            "its convolutional stem (conv_stem_configs)": not isinstance(model.conv_proj, nn.Conv2d),
            "a hidden layer in its head (representation_size)": not is_identity(model.heads)
            and len(model.heads) > 1,
            "its head": not is_identity(head) and not isinstance(head, nn.Linear),
            "its norms, which are not LayerNorm with eps 1e-6": not all(map(is_our_norm, norms)),
            "its activation, which is not the exact GELU": any(
                not is_our_gelu(block.mlp[1]) for block in blocks
            ),
        },
    )
    return taken_over(
        ViT,
        model,
        _TORCHVISION_NAMES,
        image_size=model.image_size,
        patch_size=model.patch_size,
        num_classes=getattr(head, "out_features", 0),
        dim=model.hidden_dim,
        depth=len(blocks),
        heads=blocks[0].num_heads,
        mlp_dim=model.mlp_dim,
        channels=model.conv_proj.in_channels,
    )
