"""The layers of lesson 07, each beside one that nobody here wrote, and what block and grid windows hold."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from support.max_vit import images, small
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl, grid_partition, window_partition
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.maxvit import MBConv as TorchvisionMBConv
from torchvision.models.maxvit import _get_relative_position_index
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from vit_course.attention import record_attention
from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error
from vit_course.max_vit import (
    MBConv,
    MBConvResidual,
    SqueezeExcitation,
    WindowAttention,
    WindowTransformerBlock,
    relative_position_index,
)


def test_parameter_counts_of_mbconv() -> None:
    down, plain = MBConv(dim_in=64, dim_out=128, downsample=True), MBConv(dim_in=64, dim_out=64)
    assert sum(parameter.numel() for parameter in down.parameters()) == 146_848
    assert sum(parameter.numel() for parameter in plain.parameters()) == 44_752
    assert plain.branch.se.fc1.weight.shape == (16, 256, 1, 1)


def test_squeeze_excitation_beside_torchvision() -> None:
    theirs = randomise(TorchvisionSqueezeExcitation(12, 3, activation=nn.SiLU))
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
    theirs = randomise(
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
    theirs = randomise(PartitionAttentionCl(32, axis, config))
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
    attention = randomise(WindowAttention(dim=16, axis="block", window_size=3, dim_head=8))
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
    """One cell of 14 by 14 changes, in a random direction; 49 of the output do, and which tells the axis."""
    block = randomise(WindowTransformerBlock(dim=32, axis=axis, dim_head=8))
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
    attention = randomise(WindowAttention(dim=16, axis="grid", window_size=2, dim_head=8))
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
