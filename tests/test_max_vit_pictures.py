"""The figures of lesson 07 draw what they are given and refuse what they cannot draw."""

import pytest
import torch
from matplotlib.figure import Figure
from support.max_vit import images, small

from vit_course.attention import MultiHeadAttention, record_attention
from vit_course.lab import pictures
from vit_course.max_vit import relative_position_index, window_members


def test_windows_carry_their_letters() -> None:
    figure = pictures.max_vit.windows({axis: window_members(4, 4, 2, axis) for axis in ("block", "grid")}, 4)
    block, grid = ([text.get_text() for text in axis.texts] for axis in figure.axes)
    assert block[:4] == ["A0", "A1", "B0", "B1"] and grid[:4] == ["A0", "B0", "A1", "B1"]


def test_window_attention_frames_the_members_of_one_window() -> None:
    model, batch = small().eval(), images(1, 3, 16, 16)
    with torch.no_grad(), record_attention(model) as record:
        model(batch)
    layers = {layer.name: layer for layer in record}
    figure = pictures.max_vit.window_attention(batch[0].clamp(0, 1), layers, row=0, column=1)
    assert [len(axis.patches) for axis in figure.axes] == [4] * len(layers)


def test_window_attention_wants_windows() -> None:
    layer = MultiHeadAttention(dim=4, heads=1)
    with torch.no_grad(), record_attention(layer) as record:
        layer(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="no window layer"):
        pictures.max_vit.window_attention(images()[0], {"global": record[0]}, row=0, column=0)


def test_seeds_are_compared_in_pairs() -> None:
    rows = {"a": [0.1, 0.2, 0.3], "b": [0.3, 0.4, 0.5]}
    words = [text.get_text() for text in pictures.max_vit.seeds(rows, "right", "a").axes[0].texts]
    assert words == ["20.0%", "40.0%  (+20.0 ± 0.0)"]


def test_the_other_figures() -> None:
    maps = {"all": torch.ones(4, 4, dtype=torch.bool)}
    table = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    for figure in (
        pictures.max_vit.reached(maps, row=0, column=0),
        pictures.max_vit.bias_table(table, relative_position_index(2), {"first": 0, "last": 3}),
    ):
        assert isinstance(figure, Figure)


def test_windows_that_do_not_fill_a_map_are_named() -> None:
    with pytest.raises(ValueError, match="windows of 3 by 3 do not fill a map of 6 by 8 cells"):
        window_members(6, 8, 3, "grid")
