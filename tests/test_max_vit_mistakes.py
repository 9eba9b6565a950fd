"""Parity sees the mistakes that people make with a MaxViT: each wrong version has all the right shapes."""

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from einops import rearrange
from support.max_vit import adding, suited, torchvision_max_vit
from torch import Tensor, nn

from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise
from vit_course.lab.pretrained import from_torchvision
from vit_course.max_vit import MaxViT, MBConv, SqueezeExcitation, WindowAttention, WindowTransformerBlock


def _attentions(model: nn.Module) -> list[WindowAttention]:
    return [module for module in model.modules() if isinstance(module, WindowAttention)]


def _convolutions(model: nn.Module) -> list[MBConv]:
    return [module for module in model.modules() if isinstance(module, MBConv)]


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def grid_taken_for_block(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.axis = "block"


def block_taken_for_grid(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.axis = "grid"


def axes_swapped(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.axis = {"block": "grid", "grid": "block"}[attention.axis]


def scale_of_the_paper(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.scale = (attention.qkv.in_features // attention.heads) ** -0.5


def no_scale(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.scale = 1.0


def transposed_bias_table(model: MaxViT) -> None:
    """Across first, then down."""
    for attention in _attentions(model):
        table = attention.relative_position_bias_table.data
        table.copy_(
            rearrange(table, "(down across) h -> (across down) h", down=2 * attention.window_size - 1).clone()
        )


def key_minus_query(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.relative_position_bias_table.data[:] = attention.relative_position_bias_table.flip(0)


def no_bias_table(model: MaxViT) -> None:
    for attention in _attentions(model):
        attention.relative_position_bias_table.data.zero_()


def heads_first(model: MaxViT) -> None:
    """Rows of the joint matrix read as (h qkv k), not as (qkv h k)."""
    for attention in _attentions(model):
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parameter.data.copy_(
                rearrange(parameter.data, "(h qkv k) ... -> (qkv h k) ...", h=attention.heads, qkv=3)
            )


def no_pre_norm(model: MaxViT) -> None:
    for conv in _convolutions(model):
        conv.branch.pre_norm.forward = MethodType(lambda norm, features: features, conv.branch.pre_norm)


def batch_norm_without_affine(model: MaxViT) -> None:
    for norm in _batch_norms(model):
        norm.weight.data.fill_(1)
        norm.bias.data.zero_()


def batch_norm_of_the_batch(model: MaxViT) -> None:
    for norm in _batch_norms(model):
        norm.train()


def activation_before_norm(model: MaxViT) -> None:
    for conv in _convolutions(model):
        for norm in (conv.branch.norm1, conv.branch.norm2):
            norm.forward = MethodType(
                lambda norm, features: nn.BatchNorm2d.forward(norm, nn.functional.gelu(features)), norm
            )
        conv.branch.act1 = conv.branch.act2 = nn.Identity()


class Nothing(nn.Module):
    def forward(self, features: Tensor) -> float:
        return 0.0


def no_shortcut_where_the_map_shrinks(model: MaxViT) -> None:
    for conv in _convolutions(model):
        if len(conv.shortcut):
            conv.shortcut = Nothing()


def shortcut_does_not_count_the_border(model: MaxViT) -> None:
    for conv in _convolutions(model):
        for part in conv.shortcut:
            if isinstance(part, nn.AvgPool2d):
                part.count_include_pad = False


def no_gate(model: MaxViT) -> None:
    for conv in _convolutions(model):
        conv.branch.se = nn.Identity()


def gate_four_times_as_wide(model: MaxViT) -> None:
    for conv in _convolutions(model):
        dim = conv.branch.project.out_channels
        conv.branch.se = randomise(SqueezeExcitation(dim=4 * dim, hidden_dim=dim))


def gate_with_relu(model: MaxViT) -> None:
    for conv in _convolutions(model):
        fc1 = conv.branch.se.fc1
        fc1.forward = MethodType(_inverse_silu_of_relu, fc1)


def _inverse_silu_of_relu(layer: nn.Conv2d, summary: Tensor) -> Tensor:
    """What the SiLU behind turns into the ReLU, for numbers that are not negative: found by bisection."""
    wanted = nn.functional.conv2d(summary, layer.weight, layer.bias).relu()
    low, high = torch.zeros_like(wanted), wanted + 1
    for _ in range(40):
        middle = (low + high) / 2
        too_low = nn.functional.silu(middle) < wanted
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return low


def no_tanh(model: MaxViT) -> None:
    model.head[1] = nn.Identity()


def norm_before_pooling(model: MaxViT) -> None:
    def forward_head(model: MaxViT, features: Tensor) -> Tensor:
        return model.head(model.norm(features.permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    model.forward_head = MethodType(forward_head, model)


def no_feed_forward(model: MaxViT) -> None:
    for module in model.modules():
        if isinstance(module, WindowTransformerBlock):
            module.mlp.forward = torch.zeros_like


MUTANTS = [
    grid_taken_for_block,
    block_taken_for_grid,
    axes_swapped,
    scale_of_the_paper,
    no_scale,
    transposed_bias_table,
    key_minus_query,
    no_bias_table,
    heads_first,
    no_pre_norm,
    batch_norm_without_affine,
    batch_norm_of_the_batch,
    activation_before_norm,
    no_shortcut_where_the_map_shrinks,
    shortcut_does_not_count_the_border,
    no_gate,
    gate_four_times_as_wide,
    gate_with_relu,
    no_tanh,
    norm_before_pooling,
    no_feed_forward,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[MaxViT], None]) -> None:
    theirs = randomise(torchvision_max_vit())
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_the_epsilon_of_batch_norm_beside_small_variances() -> None:
    theirs = randomise(torchvision_max_vit())
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_var"):
            tensor.mul_(1e-2)
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    for norm in _batch_norms(ours):
        norm.eps = 1e-5
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_the_epsilon_of_layer_norm_in_faint_cells() -> None:
    theirs = adding(1e-3, randomise(torchvision_max_vit()))
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT
