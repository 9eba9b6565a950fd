"""DeepViT of its authors and the parallel ViT of timm as those of the course."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit_course.atlas.deeper import DeepViT, ParallelViT

from .comparison import filled, is_identity, is_our_gelu, is_our_norm, refuse, taken_over

# Arguments of the authors' constructor that change nothing in evaluation.
_IDLE = {
    "class",
    "attn_drop_rate",
    "cos_reg",
    "drop_path_rate",
    "drop_rate",
    "group",
}


def deep_vit_from_authors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> DeepViT:
    """The course's DeepViT for the `DeepVisionTransformer` of zhoudaquan/dvit_repo.

    Ours always has biases of queries, keys and values; where theirs has none, they are zero. Their `qk_scale`
    goes into the weights of the queries.

    Raises:
        ValueError: for arguments that ours does not know or compute, and for other weights.
    """
    given = dict(config)
    blocks = given.pop("depth")
    sizes = {
        "image_size": _sides(given.pop("img_size", 224)),
        "patch_size": _sides(given.pop("patch_size", 16)),
        "channels": given.pop("in_chans", 3),
        "num_classes": given.pop("num_classes", 1000),
        "dim": (dim := given.pop("embed_dim", 768)),
        "heads": (heads := given.pop("num_heads", 12)),
        "mlp_dim": int(dim * given.pop("mlp_ratio", 4.0)),
        "depth": len(blocks),
        "mixed": given.pop("apply_transform", None),
        "map_scaled": given.pop("transform_scale", False),
        "branch_scale": given.pop("scale_adjustment", 1.0),
        "conv_stem": given.pop("use_cnn_embed", False),
    }
    if not given.pop("re_atten", True):  # then their blocks are those of a ViT, whatever else is said
        sizes |= {"mixed": 0, "branch_scale": 1.0}
    given.pop("qkv_bias", False)
    qk_scale, norm_eps = given.pop("qk_scale", None), given.pop("norm_eps", 1e-5)
    hybrid = given.pop("hybrid_backbone", None)
    unknown = sorted(given.keys() - _IDLE)
    refuse(
        DeepViT,
        "its authors",
        {
            "a network before the patches (hybrid_backbone)": hybrid is not None,
            f"arguments that nobody here knows: {', '.join(unknown)}": bool(unknown),
        },
    )
    width = dim // heads
    state = dict(weights)
    for number in range(len(blocks)):
        name = f"blocks.{number}.attn."
        matrix = state[f"{name}qkv.weight"]
        bias = state.get(f"{name}qkv.bias", torch.zeros_like(matrix[:, 0]))
        if qk_scale:
            factor = torch.ones_like(bias)
            factor[:dim] = qk_scale * width**0.5
            matrix, bias = factor[:, None] * matrix, factor * bias
        state |= {f"{name}qkv.weight": matrix, f"{name}qkv.bias": bias}
    model = filled(DeepViT, state, dtype=weights["cls_token"].dtype, **sizes)
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = norm_eps
        elif hasattr(part, "map_scale") and sizes["map_scaled"] and qk_scale:
            part.map_scale = qk_scale
    return model


def _sides(size: int | list[int]) -> int | tuple[int, ...]:
    """A size as ours takes it: JSON makes lists of pairs."""
    return size if isinstance(size, int) else tuple(size)


def parallel_vit_from_timm(model: Any) -> ParallelViT:
    """The course's ParallelViT for a VisionTransformer of timm with ParallelThingsBlock.

    The submodules have the same names. timm's own `vit_small_patch16_18x2_224` gives the class token a
    position, as the authors' model does not: make it with `no_embed_class=True`.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import Attention

    embedding, blocks = model.patch_embed, list(model.blocks)
    attentions = [branch for block in blocks for branch in block.attns]
    mlps = [branch for block in blocks for branch in block.ffns]
    plain = all(type(branch.attn) is Attention for branch in attentions)
    plain &= all(type(branch.mlp) is Mlp for branch in mlps)
    norms = [branch.norm for branch in attentions + mlps]
    scales = [branch.ls for branch in attentions + mlps]
    refuse(
        ParallelViT,
        "timm",
        {
            f"its patch embedding, {type(embedding).__name__}": type(embedding) is not PatchEmbed
            or not is_identity(embedding.norm),
            "its branches": not plain,
            "normalised queries and keys, or norms inside its branches": plain
            and not all(
                is_identity(part)
                for branch in attentions + mlps
                for part in (
                    getattr(getattr(branch, "attn", None), "q_norm", None),
                    getattr(getattr(branch, "attn", None), "norm", None),
                    getattr(getattr(branch, "mlp", None), "norm", None),
                )
            ),
            "no bias for queries, keys and values (qkv_bias)": plain
            and any(branch.attn.qkv.bias is None for branch in attentions),
            "its activation (act_layer), which is not the exact GELU": plain
            and any(not is_our_gelu(branch.mlp.act) for branch in mlps),
            "its norms, which are not LayerNorm with eps 1e-6": not all(map(is_our_norm, norms))
            or not is_our_norm(model.norm),
            "register tokens (reg_tokens)": model.reg_token is not None,
            "a norm before the blocks (pre_norm)": not is_identity(model.norm_pre),
            "no learned positions (pos_embed)": model.pos_embed is None,
            "no class token (class_token)": model.cls_token is None,
            "a position for the class token (no_embed_class=False)": model.cls_token is not None
            and not model.no_embed_class,
            "a norm after pooling (fc_norm)": not is_identity(model.fc_norm),
            "attention pooling (attn_pool)": model.attn_pool is not None,
            f"its pooling (global_pool={model.global_pool!r})": model.global_pool != "token",
        },
    )
    attention = attentions[0].attn
    return taken_over(
        ParallelViT,
        model,
        {},
        image_size=embedding.img_size,
        patch_size=embedding.patch_size,
        num_classes=model.num_classes,
        dim=model.embed_dim,
        depth=len(blocks),
        branches=len(blocks[0].attns),
        heads=attention.num_heads,
        dim_head=attention.qkv.out_features // 3 // attention.num_heads,
        mlp_dim=mlps[0].mlp.fc1.out_features,
        channels=embedding.proj.in_channels,
        layer_scale=None if is_identity(scales[0]) else 1.0,
    )
