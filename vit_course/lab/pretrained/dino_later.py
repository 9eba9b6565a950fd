"""The ViTs of DINOv2 and DINOv3, which timm computes, from weights under timm's names or the authors'."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from vit_course.vit import Backbone

from .adapters import adapt
from .comparison import filled

# The authors' names, and timm's. DINOv2's training code puts blocks into chunks, without counting them anew.
_NAMES = {
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",
    r"^(register|storage)_tokens$": "reg_token",
}
_NAMES_OF_DINOV2 = {r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."}
_NAMES_OF_DINOV3 = {
    r"\.ls([12])\.gamma$": r".gamma_\1",
    r"\.mlp\.w1\.": ".mlp.fc1_g.",
    r"\.mlp\.w2\.": ".mlp.fc1_x.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
# What only training needs, or what is computed anew: hidden patches, rotary periods, which biases are masked.
_NOT_NEEDED = re.compile(r"^mask_token$|^rope_embed\.periods$|\.bias_mask$|^local_cls_norm\.")


def with_names_of_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a backbone under timm's names; weights that have them already are left as they are."""
    is_dinov3 = "storage_tokens" in weights or "rope_embed.periods" in weights
    names = _NAMES | (_NAMES_OF_DINOV3 if is_dinov3 else _NAMES_OF_DINOV2)
    state = {}
    for name, tensor in weights.items():
        for pattern, timms in names.items():
            name = re.sub(pattern, timms, name)
        state[name] = tensor
    if "register_tokens" in weights and "pos_embed" in weights:  # timm adds the class token's position to it
        state["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        state["pos_embed"] = weights["pos_embed"][:, 1:]
    if is_dinov3:
        _split_biases(state)
    return {name: tensor for name, tensor in state.items() if not _NOT_NEEDED.search(name)}


def _split_biases(state: dict[str, Tensor]) -> None:
    """The biases of queries and values alone, as timm has them, in place: the authors mask those of the keys.

    Raises:
        ValueError: where keys have biases all the same.
    """
    for name in [name for name in state if name.endswith(".qkv.bias")]:
        bias, mask = state.pop(name), state.get(f"{name}_mask")
        q, k, v = (bias if mask is None else bias * mask).chunk(3)
        if k.any():
            raise ValueError(f"the keys have biases ({name}), which DINOv3's have not")
        if q.any() or v.any():  # those of the distilled models are all zero
            state[name.replace("qkv.bias", "q_bias")], state[name.replace("qkv.bias", "v_bias")] = q, v


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """timm's arguments that both families share, read from the weights."""
    dim, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    return {
        "patch_size": patch_size,
        "in_chans": channels,
        "num_classes": 0,
        "embed_dim": dim,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "init_values": 1e-5,
    }


def _adapted(model: nn.Module) -> Backbone:
    """A ViT of timm as a backbone."""
    backbone = adapt(model)
    assert isinstance(backbone, Backbone)
    return backbone


def dinov2(state: Mapping[str, Tensor]) -> Backbone:
    """DINOv2's ViT: LayerScale, with or without registers, heads of width 64, square images.

    Args:
        state: weights by timm's names.

    Raises:
        ValueError: where they are not those of such a model.
    """
    from timm.layers import SwiGLUPacked
    from timm.models import VisionTransformer

    sizes = _sizes(state)
    dim, has_registers = sizes["embed_dim"], "reg_token" in state
    hidden, width_back = len(state["blocks.0.mlp.fc1.weight"]), state["blocks.0.mlp.fc2.weight"].shape[1]
    gated: dict[str, Any] = (
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if hidden == 2 * width_back else {}
    )
    patches = state["pos_embed"].shape[1] - (not has_registers)
    model = filled(
        VisionTransformer,
        state,
        **sizes,
        **gated,
        img_size=round(patches**0.5) * sizes["patch_size"],
        num_heads=max(1, dim // 64),
        mlp_ratio=(hidden + 0.5) / dim,  # timm rounds the product down
        reg_tokens=state["reg_token"].shape[1] if has_registers else 0,
        no_embed_class=has_registers,
    )
    return _adapted(model)


def dinov3(state: Mapping[str, Tensor]) -> Backbone:
    """DINOv3's ViT: LayerScale, registers, rotary positions for any grid; the class token is the feature.

    Args:
        state: weights by timm's names.

    Raises:
        ValueError: where they are not those of such a model.
    """
    from timm.models import Eva

    sizes = _sizes(state)
    dim, is_gated = sizes["embed_dim"], "blocks.0.mlp.fc1_g.weight" in state
    hidden = len(state["blocks.0.mlp.fc1_g.weight" if is_gated else "blocks.0.mlp.fc1.weight"])
    model = filled(
        Eva,
        state,
        **sizes,
        img_size=16 * sizes["patch_size"],
        dynamic_img_size=True,
        num_heads=max(1, dim // (128 if dim == 4096 else 64)),  # 4096: the model of 7 billion parameters
        mlp_ratio=(hidden + 0.5) / dim,
        swiglu_mlp=is_gated,
        swiglu_align_to=1 if is_gated else 0,  # which makes gate and value layers of their own
        qkv_bias="blocks.0.attn.q_bias" in state,
        global_pool="token",
        use_fc_norm=False,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        num_reg_tokens=state["reg_token"].shape[1] if "reg_token" in state else 0,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    return _adapted(model)
