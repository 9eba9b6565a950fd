"""torchvision's MaxViT as the course's."""

from typing import Any

from torch import nn

from vit_course.max_vit import MaxViT

from .comparison import is_our_gelu, refuse, taken_over

# torchvision's names and ours. Queries, keys and values lie in one matrix in the same order in both.
_NAMES = {
    r"^stem\.0\.0\.": "stem.conv1.",
    r"^stem\.0\.1\.": "stem.norm1.",
    r"^stem\.1\.0\.": "stem.conv2.",
    r"^blocks\.(\d+)\.layers\.(\d+)\.layers\.": r"stages.\1.\2.",
    r"\.MBconv\.proj\.": ".conv.shortcut.",
    r"\.MBconv\.layers\.": ".conv.branch.",
    r"\.conv_a\.0\.": ".expand.",
    r"\.conv_a\.1\.": ".norm1.",
    r"\.conv_b\.0\.": ".depthwise.",
    r"\.conv_b\.1\.": ".norm2.",
    r"\.squeeze_excitation\.": ".se.",
    r"\.conv_c\.": ".project.",
    r"\.window_attention\.": ".block.",
    r"\.grid_attention\.": ".grid.",
    r"\.attn_layer\.0\.": ".norm1.",
    r"\.attn_layer\.1\.to_qkv\.": ".attn.qkv.",
    r"\.attn_layer\.1\.merge\.": ".attn.proj.",
    r"\.attn_layer\.1\.": ".attn.",
    r"\.mlp_layer\.0\.": ".norm2.",
    r"\.mlp_layer\.1\.": ".mlp.fc1.",
    r"\.mlp_layer\.3\.": ".mlp.fc2.",
    r"^classifier\.2\.": "norm.",
    r"^classifier\.3\.": "head.0.",
    r"^classifier\.5\.": "head.2.",
    r".*\.relative_position_index$": "",  # ours is made anew, not stored
}


def max_vit_from_torchvision(model: Any) -> MaxViT:
    """The course's MaxViT for torchvision's, whose attention divides by the square root of the whole width.

    Raises:
        ValueError: for a variant that ours does not compute, naming what differs.
    """
    stages = [[layer.layers for layer in stage.layers] for stage in model.blocks]
    layers = [layer for stage in stages for layer in stage]
    convolutions = [layer.MBconv.layers for layer in layers]
    halves = [half for layer in layers for half in (layer.window_attention, layer.grid_attention)]
    norms = [norm for conv in convolutions for norm in (conv.pre_norm, conv.conv_a[1], conv.conv_b[1])]
    activations = [conv_act for conv in convolutions for conv_act in (conv.conv_a[2], conv.conv_b[2])]
    activations += [half.mlp_layer[2] for half in halves]
    widths = [stage[0].MBconv.layers.conv_c.out_channels for stage in stages]
    _refuse_other_heads(model.classifier)
    refuse(
        MaxViT,
        "torchvision",
        {
            f"the widths of its stages, {widths}, which do not double (block_channels)": any(
                width != widths[0] * 2**stage for stage, width in enumerate(widths)
            ),
            "the width inside its MBConv, which is not 4 times that after it (expansion_ratio)": any(
                conv.conv_a[0].out_channels != 4 * conv.conv_c.out_channels for conv in convolutions
            ),
            "the width of its squeeze-and-excitation, not a quarter of the block's (squeeze_ratio)": any(
                conv.squeeze_excitation.fc1.out_channels != conv.conv_c.out_channels // 4
                for conv in convolutions
            ),
            "its feed-forward layers, which are not 4 times as wide inside (mlp_ratio)": any(
                half.mlp_layer[1].out_features != 4 * half.mlp_layer[1].in_features for half in halves
            ),
            "its norms, which are not BatchNorm with eps 1e-3 (norm_layer)": not all(
                map(_is_our_batch_norm, [model.stem[0][1], *norms])
            ),
            "its activation, which is not the exact GELU (activation_layer)": not all(
                map(is_our_gelu, [model.stem[0][2], *activations])
            ),
        },
    )
    return taken_over(
        MaxViT,
        model,
        _NAMES,
        num_classes=model.classifier[5].out_features,
        dim=widths[0],
        depth=tuple(len(stage) for stage in stages),
        window_size=model.partition_size,
        dim_head=layers[0].window_attention.head_dim,
        dim_stem=model.stem[1][0].out_channels,
        attention_scale="dim",
    )


def _refuse_other_heads(head: Any) -> None:
    """Refuse other heads; ours is pooling, norm, hidden layer, tanh and a last layer without bias."""
    kinds = [type(part) for part in head] if isinstance(head, nn.Sequential) else [type(head)]
    published = [nn.AdaptiveAvgPool2d, nn.Flatten, nn.LayerNorm, nn.Linear, nn.Tanh, nn.Linear]
    refuse(
        MaxViT,
        "torchvision",
        {
            f"its head (classifier), {' - '.join(kind.__name__ for kind in kinds)}": kinds != published
            or head[2].eps != 1e-5
            or head[5].bias is not None
        },
    )


def _is_our_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer is the BatchNorm of torchvision's MaxViT, and of ours."""
    return (
        isinstance(layer, nn.BatchNorm2d) and layer.eps == 1e-3 and layer.track_running_stats and layer.affine
    )
