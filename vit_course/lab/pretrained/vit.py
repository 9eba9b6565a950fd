"""The ViTs of timm, of torchvision and of DINO as the course's ViT."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_course.vit import ViT

from .comparison import filled, is_identity, is_our_gelu, is_our_norm, refuse


def vit_from_timm(model: nn.Module) -> ViT:
    """Our ViT for timm's VisionTransformer; the submodules have the same names."""
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
            f"its pooling (global_pool={pool!r}{' with' if has_class else ' without'} a class token)": (
                has_class,
                pool,
            )
            not in ((True, "token"), (False, "avg")),
        },
    )
    attention = blocks[0].attn
    return filled(
        ViT, model.state_dict(), image_size=embedding.img_size, patch_size=embedding.patch_size, num_classes=model.num_classes,
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


def vit_from_torchvision(model: TorchvisionViT) -> ViT:
    """Our ViT for torchvision's VisionTransformer."""
    blocks = list(model.encoder.layers)
    head = getattr(
        model.heads, "head", model.heads
    )  # people who want features put an Identity in the place of `heads` or of `head`
    refuse(
        ViT,
        "torchvision",
        {
            "its convolutional stem (conv_stem_configs)": not isinstance(model.conv_proj, nn.Conv2d),
            "a hidden layer in its head (representation_size)": not is_identity(model.heads)
            and len(model.heads) > 1,
            "its head": not is_identity(head) and not isinstance(head, nn.Linear),
            "its norms, which are not LayerNorm with eps 1e-6": any(
                not is_our_norm(norm)
                for norm in (
                    model.encoder.ln,
                    *(norm for block in blocks for norm in (block.ln_1, block.ln_2)),
                )
            ),
            "its activation, which is not the exact GELU": any(
                not is_our_gelu(block.mlp[1]) for block in blocks
            ),
        },
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, ours in _TORCHVISION_NAMES.items():
            name = re.sub(theirs, ours, name)
        state[name] = tensor
    return filled(
        ViT, state, image_size=model.image_size, patch_size=model.patch_size, num_classes=getattr(head, "out_features", 0),
        dim=model.hidden_dim, depth=len(blocks), heads=blocks[0].num_heads, mlp_dim=model.mlp_dim, channels=model.conv_proj.in_channels,
    )  # fmt: skip


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
    return filled(
        ViT, state, image_size=side, patch_size=patch_size, num_classes=0, dim=dim, depth=depth, heads=max(1, dim // 64), mlp_dim=mlp_dim,
        channels=channels,
    )  # fmt: skip
