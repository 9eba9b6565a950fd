"""The MaxViT is the published one: equal to torchvision's as a whole, and part by part to timm's and torchvision's."""

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from einops import rearrange
from support.parity import DIFFERENT, SAME, disagreement, heat, relative_error
from timm.models.maxxvit import (
    MaxxVitTransformerCfg,
    PartitionAttentionCl,
    grid_partition,
    window_partition,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import maxvit_t, swin_t
from torchvision.models.maxvit import MaxVit, _get_relative_position_index
from torchvision.models.maxvit import MBConv as TorchvisionMBConv
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from vit_course.attention import record_attention
from vit_course.lab.pretrained import from_torchvision
from vit_course.max_vit import (
    MaxViT,
    MaxViTBlock,
    MBConv,
    MBConvResidual,
    SqueezeExcitation,
    WindowAttention,
    WindowTransformerBlock,
    relative_position_index,
)

SMALL = {"num_classes": 5, "dim": 16, "depth": (1, 2), "window_size": 2, "dim_head": 8}


def small(**changes) -> MaxViT:
    return MaxViT(**SMALL | changes)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


# ---- equal to the published models -----------------------------------------------------------------------------------------------------

TORCHVISION = {
    "window 4": {},
    "window 7": {"input_size": (56, 56), "partition_size": 7},
    "one stage, window 3": {
        "input_size": (36, 36),
        "partition_size": 3,
        "block_channels": [24],
        "block_layers": [2],
    },
    "three stages": {
        "input_size": (32, 32),
        "partition_size": 2,
        "block_channels": [16, 32, 64],
        "block_layers": [1, 1, 2],
    },
    "wide heads, narrow stem": {"head_dim": 16, "stem_channels": 12},
    "window 1": {"input_size": (16, 16), "partition_size": 1},
}


def torchvision_max_vit(**config) -> MaxVit:
    torch.manual_seed(0)
    sizes = {
        "input_size": (64, 64),
        "stem_channels": 16,
        "partition_size": 4,
        "block_channels": [16, 32],
        "block_layers": [2, 2],
        "head_dim": 8,
        "stochastic_depth_prob": 0.2,
        "num_classes": 7,
    }
    return MaxVit(**sizes | config)


def suited(model: MaxVit, batch: int = 2) -> Tensor:
    """Images that a model of torchvision was made for: its first map is a quarter of them."""
    rows, columns = model.blocks[0].grid_size
    return images(batch, 3, 4 * rows, 4 * columns)


@pytest.mark.parametrize("config", TORCHVISION.values(), ids=TORCHVISION.keys())
def test_equal_to_torchvision(config: dict) -> None:
    theirs = heat(torchvision_max_vit(**config))
    assert disagreement(from_torchvision(theirs), theirs, suited(theirs)) < SAME


def test_maxvit_t_is_equal_to_torchvision() -> None:
    """Eleven hot blocks let the cells grow to hundreds, where float32 has no five digits left in either model: so once in float64, and
    once in float32 with less added to the cells by each block.
    """
    theirs = heat(maxvit_t())
    assert disagreement(from_torchvision(theirs.double()), theirs, suited(theirs, batch=1).double()) < SAME
    theirs = _adding(0.3, heat(maxvit_t()))
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs, batch=1)) < SAME
    assert sum(parameter.numel() for parameter in ours.parameters()) == 30_919_624
    assert ours.size_unit == 224


def _adding(share: float, model: MaxVit) -> MaxVit:
    """The model with everything that its layers add to the cells scaled down."""
    for name, tensor in model.state_dict().items():
        if any(part in name for part in ("stem.1.0.", "proj.", "conv_c.", "merge.", "mlp_layer.3.")):
            tensor.mul_(share)
    return model


def test_recorded_is_equal_to_torchvision_too() -> None:
    """The explicit path, with weights kept, as well as the fused one."""
    theirs = heat(torchvision_max_vit())
    ours = from_torchvision(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert len(record) == 2 * 4


def test_gradients_equal_to_torchvision() -> None:
    theirs = heat(torchvision_max_vit())
    ours = from_torchvision(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Keys meet every query with the same bias, which softmax does not see: both gradients of it are rounding.
        if not name.endswith("attn.qkv.bias"):
            assert relative_error(parameter.grad, other.grad) < 10 * SAME, name


def test_trains_like_torchvision() -> None:
    """Batch statistics, and the share of them that the running ones take over: eps and momentum of every norm."""
    theirs = heat(torchvision_max_vit(stochastic_depth_prob=0.0)).train()
    ours = from_torchvision(theirs)
    assert ours.training
    for _ in range(2):
        assert relative_error(ours(suited(theirs, 4)), theirs(suited(theirs, 4))) < SAME
    ours_after, theirs_after = (
        [tensor for name, tensor in model.state_dict().items() if "running" in name]
        for model in (ours, theirs)
    )
    assert len(ours_after) == len(theirs_after) == 2 * (1 + 3 * 4)
    for mine, yours in zip(ours_after, theirs_after, strict=True):
        assert relative_error(mine, yours) < SAME


# ---- mistakes that parity sees ---------------------------------------------------------------------------------------------------------


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
        conv.branch.se = heat(SqueezeExcitation(dim=4 * dim, hidden_dim=dim))


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
    grid_taken_for_block, block_taken_for_grid, axes_swapped, scale_of_the_paper, no_scale, transposed_bias_table, key_minus_query,
    no_bias_table, heads_first, no_pre_norm, batch_norm_without_affine, batch_norm_of_the_batch, activation_before_norm,
    no_shortcut_where_the_map_shrinks, shortcut_does_not_count_the_border, no_gate, gate_four_times_as_wide, gate_with_relu, no_tanh,
    norm_before_pooling, no_feed_forward,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[MaxViT], None]) -> None:
    theirs = heat(torchvision_max_vit())
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_the_epsilon_of_batch_norm_beside_small_variances() -> None:
    theirs = heat(torchvision_max_vit())
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_var"):
            tensor.mul_(1e-2)
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    for norm in _batch_norms(ours):
        norm.eps = 1e-5
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


def test_parity_sees_the_epsilon_of_layer_norm_in_faint_cells() -> None:
    theirs = _adding(1e-3, heat(torchvision_max_vit()))
    ours = from_torchvision(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


# ---- counts of the published sizes -----------------------------------------------------------------------------------------------------

VARIANTS = {  # width of the stem, of the first stage, blocks, parameters of timm's model with TensorFlow's weights
    "T": (64, 64, (2, 2, 5, 2), 30_916_528),
    "S": (64, 96, (2, 2, 5, 2), 68_927_956),
    "B": (64, 96, (2, 6, 14, 2), 119_467_708),
    "L": (128, 128, (2, 6, 14, 2), 211_785_560),
}


@pytest.mark.parametrize(("dim_stem", "dim", "depth", "timms"), VARIANTS.values(), ids=VARIANTS.keys())
def test_parameter_counts_are_the_published_ones(
    dim_stem: int, dim: int, depth: tuple[int, ...], timms: int
) -> None:
    """torchvision's; timm's gives a bias to the first convolution and to the logits, and no shortcut convolution where widths agree."""
    with torch.device("meta"):
        ours = MaxViT(num_classes=1000, dim=dim, depth=depth, dim_stem=dim_stem)
        theirs = torchvision_max_vit(
            input_size=(224, 224), stem_channels=dim_stem, partition_size=7, head_dim=32, num_classes=1000,
            block_channels=[dim * 2**stage for stage in range(4)], block_layers=list(depth),
        )  # fmt: skip
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    shortcut = (dim_stem * dim + dim) * (dim_stem == dim)
    assert count == timms - dim_stem - 1000 + shortcut
    assert dim_stem != 64 or dim != 64 or count == 30_919_624


def test_parameter_counts_of_mbconv() -> None:
    down, plain = MBConv(dim_in=64, dim_out=128, downsample=True), MBConv(dim_in=64, dim_out=64)
    assert sum(parameter.numel() for parameter in down.parameters()) == 146_848
    assert sum(parameter.numel() for parameter in plain.parameters()) == 44_752
    assert plain.branch.se.fc1.weight.shape == (16, 256, 1, 1)


# ---- the parts -------------------------------------------------------------------------------------------------------------------------


def test_squeeze_excitation_beside_torchvision() -> None:
    theirs = heat(TorchvisionSqueezeExcitation(12, 3, activation=nn.SiLU))
    ours = SqueezeExcitation(dim=12, hidden_dim=3).eval()
    ours.load_state_dict(theirs.state_dict())
    features = images(2, 12, 5, 6)
    assert disagreement(ours, theirs, features) < SAME
    gate = ours(features) / features
    assert (gate > 0).all() and (gate < 1).all()
    torch.testing.assert_close(gate, gate.mean(dim=(2, 3), keepdim=True).expand_as(gate))


@pytest.mark.parametrize(
    ("dim_in", "dim_out", "stride"), [(16, 32, 2), (16, 16, 1), (16, 24, 1), (16, 16, 2)]
)
@pytest.mark.parametrize("training", [False, True])
def test_mbconv_beside_torchvision(dim_in: int, dim_out: int, stride: int, training: bool) -> None:
    norm = torch.nn.BatchNorm2d
    theirs = heat(
        TorchvisionMBConv(
            dim_in, dim_out, 4, 0.25, stride, nn.GELU, lambda dim: norm(dim, eps=1e-3, momentum=0.01)
        )
    )
    ours = MBConv(dim_in=dim_in, dim_out=dim_out, downsample=stride == 2)
    state = dict(zip(_names(ours), _tensors(theirs), strict=True))
    ours.load_state_dict(state)
    assert disagreement(ours.train(training), theirs.train(training), images(3, dim_in, 8, 10)) < SAME


def _names(ours: MBConv) -> list[str]:
    return sorted(ours.state_dict(), key=lambda name: name.startswith("shortcut"))


def _tensors(theirs: nn.Module) -> list[Tensor]:
    state = theirs.state_dict()
    return [state[name] for name in sorted(state, key=lambda name: name.startswith("proj"))]


@pytest.mark.parametrize("axis", ["block", "grid"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("scale", ["head", "dim"])
def test_window_block_beside_timm(axis: str, recorded: bool, scale: str) -> None:
    """timm's scale is the paper's; torchvision's fails by more than one per cent."""
    config = MaxxVitTransformerCfg(
        window_size=(4, 4), dim_head=8, head_first=False, rel_pos_type="bias", norm_eps=1e-5
    )
    theirs = heat(PartitionAttentionCl(32, axis, config))
    ours = WindowTransformerBlock(dim=32, axis=axis, window_size=4, dim_head=8, attention_scale=scale).eval()
    state = {
        name.replace("rel_pos.", ""): tensor
        for name, tensor in theirs.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    ours.load_state_dict(state)
    features = images(2, 32, 8, 16)
    with torch.no_grad():
        expected = theirs(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if recorded:
            with record_attention(ours):
                error = relative_error(ours(features), expected)
        else:
            error = relative_error(ours(features), expected)
    assert error < SAME if scale == "head" else error > DIFFERENT


@pytest.mark.parametrize("window_size", [1, 2, 4, 7])
def test_relative_position_index_beside_torchvision(window_size: int) -> None:
    index = relative_position_index(window_size)
    assert torch.equal(index, _get_relative_position_index(window_size, window_size))
    assert len(index.unique()) == (2 * window_size - 1) ** 2 == index.max() + 1
    assert window_size != 7 or len(index.unique()) == 169


def test_bias_depends_on_the_offset_only() -> None:
    attention = heat(WindowAttention(dim=16, axis="block", window_size=3, dim_head=8))
    bias = rearrange(attention.bias()[0], "h (r c) (p q) -> h r c p q", r=3, p=3)
    assert torch.equal(bias[:, 1:, 1:, 1:, 1:], bias[:, :-1, :-1, :-1, :-1])
    assert not torch.equal(bias[:, 1, 1, 0, 1], bias[:, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("axis", "partition"), [("block", window_partition), ("grid", grid_partition)], ids=["block", "grid"]
)
@pytest.mark.parametrize(("rows", "columns", "window_size"), [(8, 8, 4), (12, 8, 4), (14, 14, 7), (4, 4, 4)])
def test_members_beside_timm(
    axis: str, partition: Callable, rows: int, columns: int, window_size: int
) -> None:
    attention = WindowAttention(dim=8, axis=axis, window_size=window_size, dim_head=8)
    members = attention.members(rows, columns)
    cells = torch.arange(rows * columns).view(1, rows, columns, 1)
    assert torch.equal(members, partition(cells, [window_size, window_size]).flatten(1))
    assert torch.equal(members.flatten().sort().values, torch.arange(rows * columns))  # every cell once


def test_block_and_grid_differ_unless_one_window_is_all() -> None:
    def members(axis: str, side: int) -> Tensor:
        return WindowAttention(dim=8, axis=axis, window_size=4, dim_head=8).members(side, side)

    assert torch.equal(members("block", 4), members("grid", 4))
    assert not torch.equal(members("block", 8), members("grid", 8))


@pytest.mark.parametrize("axis", ["block", "grid"])
def test_who_sees_a_changed_cell(axis: str) -> None:
    """One cell of a 14 by 14 map changes, in a random direction: 49 cells of the output do, and which ones tells block from grid."""
    block = heat(WindowTransformerBlock(dim=32, axis=axis, dim_head=8))
    before = images(1, 32, 14, 14)
    after = before.clone()
    after[0, :, 3, 4] += images(32, seed=1)
    with torch.no_grad():
        changed = (block(after) - block(before)).abs().amax(dim=1)[0] > 0
    expected = torch.zeros(14, 14, dtype=torch.bool)
    if axis == "block":
        expected[:7, :7] = True
    else:
        expected[1::2, 0::2] = True
    assert torch.equal(changed, expected) and changed.sum() == 49


def test_recorded_weights_fold_windows_image_by_image() -> None:
    attention = heat(WindowAttention(dim=16, axis="grid", window_size=2, dim_head=8))
    features = images(3, 16, 4, 6)
    with torch.no_grad(), record_attention(attention) as record:
        attention(features)
        (together,) = record
        assert together.weights.shape == (3 * 6, 2, 4, 4)
        attention(features[1:2])
        torch.testing.assert_close(record[0].weights, together.weights[6:12])
    assert together.kind == "window" and together.grid == (4, 6) and together.num_prefix_tokens == 0
    assert torch.equal(together.members, attention.members(4, 6))
    torch.testing.assert_close(together.weights.sum(-1), torch.ones(18, 2, 4))
    assert attention.attention_recorder is None


def test_record_of_a_model_says_where_each_layer_is() -> None:
    model = small().eval()
    with torch.no_grad(), record_attention(model) as record:
        model(images(2, 3, 32, 16))
    assert [layer.name for layer in record] == [
        f"stages.{stage}.{block}.{axis}.attn"
        for stage, block in [(0, 0), (1, 0), (1, 1)]
        for axis in ("block", "grid")
    ]
    assert [layer.grid for layer in record] == [(8, 4)] * 2 + [(4, 2)] * 4
    assert all(layer.weights.shape[0] == 2 * len(layer.members) for layer in record)


def test_cost_grows_with_the_map_and_no_faster() -> None:
    attention = WindowAttention(dim=16, axis="grid", window_size=4, dim_head=8)
    flops = []
    for side in (8, 16, 32):
        with FlopCounterMode(display=False) as counter, record_attention(attention), torch.no_grad():
            attention(images(1, 16, side, side))
        flops.append(counter.get_total_flops())
    cells, t, d = 64, 16, 16
    assert flops[0] == 8 * cells * d**2 + 4 * cells * t * d
    assert flops[1] == 4 * flops[0] and flops[2] == 16 * flops[0]


class Ones(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return torch.ones_like(features)


def test_residual_drops_its_branch_per_sample() -> None:
    torch.manual_seed(0)
    features = torch.zeros(4000, 2, 3, 3)
    block = MBConvResidual(Ones(), layer_dropout=0.25)
    out = block.train()(features)
    assert (out == out[:, :1, :1, :1]).all(), "one draw per sample"
    assert set(out.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert 0.95 < out.mean() < 1.05
    assert (block.eval()(features) == 1).all()
    assert (MBConvResidual(Ones(), layer_dropout=1.0).train()(features) == 0).all()
    assert (MBConvResidual(Ones(), shortcut=Ones()).train()(features) == 2).all()


def test_layer_dropout_rises_evenly() -> None:
    model = small(depth=(1, 2, 2), layer_dropout=0.4)
    rates = [
        {part.drop_path.rate for part in (block.conv, block.block, block.grid)}
        for stage in model.stages
        for block in stage
    ]
    torch.testing.assert_close([rate for (rate,) in rates], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert small(depth=(1,), layer_dropout=0.4).stages[0][0].conv.drop_path.rate == 0


def test_a_pyramid() -> None:
    model = small(depth=(1, 1, 1), dim_stem=12).eval()
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    features = model.forward_features(images(2, 3, 64, 32))
    assert shapes == [(16, 16, 8), (32, 8, 4), (64, 4, 2)]
    assert features.shape == (2, 64, 4, 2) and model.num_features == 64 and model.num_prefix_tokens == 0
    assert model.stem.conv1.out_channels == 12 and not hasattr(model, "patch_embed")


def test_the_norm_follows_the_pooling() -> None:
    model = heat(small(num_classes=0))
    with torch.no_grad():
        features = model.forward_features(images())
        assert torch.equal(model(images()), model.norm(features.mean(dim=(2, 3))))
        assert features.mean(dim=1).abs().max() > 0.1, "the map itself is not normalised"
        classes = heat(small())
        assert torch.equal(
            classes(images()), classes.head(classes.norm(classes.forward_features(images()).mean(dim=(2, 3))))
        )
    assert [type(part) for part in classes.head] == [nn.Linear, nn.Tanh, nn.Linear]
    assert classes.head[2].bias is None


# ---- what is refused -------------------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[MaxVit], None]) -> MaxVit:
    model = torchvision_max_vit()
    change(model)
    return model


REFUSED = {
    "widths": (
        lambda: torchvision_max_vit(block_channels=[16, 24]),
        r"widths of its stages, \[16, 24\], which do not double",
    ),
    "expansion": (lambda: torchvision_max_vit(expansion_ratio=2), "expansion_ratio"),
    "squeeze": (lambda: torchvision_max_vit(squeeze_ratio=0.5), "squeeze_ratio"),
    "mlp": (lambda: torchvision_max_vit(mlp_ratio=2), "mlp_ratio"),
    "eps": (lambda: torchvision_max_vit(norm_layer=nn.BatchNorm2d), "norm_layer"),
    "instance norm": (lambda: torchvision_max_vit(norm_layer=nn.InstanceNorm2d), "norm_layer"),
    "activation": (lambda: torchvision_max_vit(activation_layer=nn.ReLU), "activation_layer"),
    "two at once": (
        lambda: torchvision_max_vit(mlp_ratio=2, activation_layer=nn.ReLU),
        "mlp_ratio.*activation_layer",
    ),
    "no head": (
        lambda: _changed(lambda model: setattr(model, "classifier", nn.Identity())),
        "head .*Identity",
    ),
    "no last layer": (
        lambda: _changed(lambda model: model.classifier.__setitem__(5, nn.Identity())),
        "Tanh - Identity",
    ),
    "last layer with a bias": (
        lambda: _changed(lambda model: model.classifier.__setitem__(5, nn.Linear(32, 3))),
        "head .*Linear",
    ),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_converter_names_what_differs(build: Callable[[], MaxVit], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_torchvision(build())


def test_converter_takes_no_other_class() -> None:
    class Own(MaxVit):
        pass

    with pytest.raises(TypeError, match="Own"):
        from_torchvision(Own((64, 64), 16, 4, [16], [1], 8, 0.0))
    with pytest.raises(TypeError, match="SwinTransformer"):
        from_torchvision(swin_t())


def test_converter_copies() -> None:
    theirs = torchvision_max_vit().eval()
    ours = from_torchvision(theirs)
    assert not ours.training
    before = ours(suited(theirs))
    for parameter in theirs.parameters():
        parameter.data.zero_()
    assert torch.equal(ours(suited(theirs)), before)


BAD_CALLS = {
    "depth number": (lambda: small(depth=2), TypeError, "depth .* 2"),
    "depth empty": (lambda: small(depth=()), TypeError, r"depth .* \(\)"),
    "depth zero": (lambda: small(depth=(1, 0)), ValueError, "depth .* 0"),
    "depth float": (lambda: small(depth=(1, 1.5)), TypeError, "1.5"),
    "dim type": (lambda: small(dim="16"), TypeError, "'16'"),
    "dim and heads": (lambda: small(dim_head=5), ValueError, "16 .* 5"),
    "dim too small": (lambda: small(dim=2, dim_head=2), ValueError, "dim_out .* 2"),
    "dim_head": (lambda: small(dim_head=0), ValueError, "dim_head .* 0"),
    "dim_stem": (lambda: small(dim_stem=0), ValueError, "dim_stem .* 0"),
    "window_size": (lambda: small(window_size=0), ValueError, "window_size .* 0"),
    "window_size pair": (lambda: small(window_size=(7, 7)), TypeError, r"\(7, 7\)"),
    "num_classes": (lambda: small(num_classes=-1), ValueError, "-1"),
    "channels": (lambda: small(channels=0), ValueError, "channels .* 0"),
    "dropout": (lambda: small(dropout=1.5), ValueError, "1.5"),
    "layer_dropout": (lambda: small(layer_dropout=-0.1), ValueError, "-0.1"),
    "layer_dropout type": (lambda: small(layer_dropout="some"), TypeError, "'some'"),
    "attention_scale": (lambda: small(attention_scale="width"), ValueError, "'width'"),
    "axis": (
        lambda: WindowAttention(dim=32, axis="window"),
        ValueError,
        "'window'",
    ),
    "odd images": (
        lambda: small()(images(2, 3, 16, 20)),
        ValueError,
        r"\(16, 20\).* multiples of 16.* \(16, 16\)",
    ),
    "small images": (lambda: small()(images(2, 3, 4, 40)), ValueError, r"\(4, 40\).* \(16, 32\)"),
    "published size": (
        lambda: small(window_size=7, depth=(1, 1, 1, 1))(images(1, 3, 256, 256)),
        ValueError,
        r"\(256, 256\).*multiples of 224.* \(224, 224\)",
    ),
    "grey images": (lambda: small()(images(2, 1, 16, 16)), ValueError, "3 channels, got 1"),
    "bytes": (lambda: small()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), TypeError, "uint8"),
    "one image": (lambda: small()(images(3, 16, 16)), ValueError, r"\(3, 16, 16\)"),
    "no images": (lambda: small()([1, 2]), TypeError, r"\[1, 2\]"),
    "features": (lambda: small().forward_head(images(2, 31, 2, 2)), ValueError, r"\(2, 31, 2, 2\)"),
    "tokens as features": (lambda: small().forward_head(images(2, 4, 32)), ValueError, r"\(2, 4, 32\)"),
    "map and windows": (
        lambda: WindowAttention(dim=8, axis="grid", window_size=3, dim_head=8)(images(2, 8, 6, 8)),
        ValueError,
        "3 by 3 .* 6 by 8",
    ),
    "members": (
        lambda: WindowAttention(dim=8, axis="grid", window_size=3, dim_head=8).members(5, 6),
        ValueError,
        "3 by 3 .* 5 by 6",
    ),
    "map width": (lambda: WindowAttention(dim=32, axis="grid")(images(2, 8, 7, 7)), ValueError, "b, 32"),
    "block width": (
        lambda: MaxViTBlock(dim_in=8, dim_out=32, downsample=True)(images(2, 9, 14, 14)),
        ValueError,
        r"b, 8.*\(2, 9, 14, 14\)",
    ),
    "transformer width": (
        lambda: WindowTransformerBlock(dim=32, axis="grid")(images(2, 8, 7, 7)),
        ValueError,
        r"b, 32.*\(2, 8, 7, 7\)",
    ),
    "gate width": (
        lambda: SqueezeExcitation(dim=8, hidden_dim=2)(images(2, 7, 3, 3)),
        ValueError,
        r"b, 8.*\(2, 7, 3, 3\)",
    ),
    "gate hidden": (lambda: SqueezeExcitation(dim=8, hidden_dim=0), ValueError, "hidden_dim .* 0"),
    "index": (lambda: relative_position_index(0), ValueError, "window_size .* 0"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
