"""The longer figures of lesson 14 show the numbers that they are given, and say the same in words."""

import pytest
import torch
from matplotlib import pyplot as plt

from vit_course.lab import pictures

ROWS = [
    {"name": name, "seed": seed, "accuracy": value + 0.02 * seed}
    for name, value in {"colour histogram": 0.7, "Sinkhorn, 150 steps": 0.8}.items()
    for seed in range(2)
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_seed_has_a_dot_and_a_number():
    (axis,) = pictures.for_real.accuracies(ROWS).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "colour histogram",
        "Sinkhorn, 150 steps",
    ]
    dots = [list(line.get_xdata()) for line in axis.lines if line.get_marker() in ("o", "s")]
    assert dots == [pytest.approx([70, 72]), pytest.approx([80, 82])]
    words = pictures.for_real.accuracies_in_words(ROWS)
    assert "colour histogram 70, 72; Sinkhorn, 150 steps 80, 82." in words


def test_half_of_the_teacher_is_left_after_its_half_life():
    (axis,) = pictures.for_real.half_lives([32, 1024]).axes
    for line, batch in zip(axis.lines, (32, 1024), strict=False):
        after = 172.9 * batch  # ln 2 / -ln .996 steps
        nearest = min(zip(*line.get_data(), strict=True), key=lambda point: abs(point[0] - after))
        assert nearest[1] == pytest.approx(0.5, abs=0.02)


def test_views_keep_their_relative_size():
    crops = [[torch.rand(3, 8, 8), torch.rand(3, 4, 4)]] * 2
    figure = pictures.for_real.views(torch.rand(3, 10, 15), crops, ["global", "local"])
    assert len(figure.axes) == 5
    assert [axis.get_title() for axis in figure.axes[1:3]] == ["global", "local"]
    assert figure.axes[1].get_xlim() == (-0.5, 7.5) and figure.axes[2].get_xlim() == (-2.5, 5.5)


def test_a_curve_stands_beside_named_baselines():
    figure = pictures.for_real.knn_curve([30, 60], [0.6, 0.7], {"untrained": 0.5})
    (axis,), (legend,) = figure.axes, figure.legends
    assert list(axis.lines[0].get_ydata()) == pytest.approx([60, 70])
    assert list(axis.lines[1].get_ydata()) == pytest.approx([50, 50])
    assert [text.get_text() for text in legend.get_texts()] == ["trained", "untrained"]
    figure.canvas.draw()
    assert legend.get_window_extent().y0 >= axis.get_window_extent().y1 - 1  # above the curve, never on it


def test_principal_colours_part_what_differs():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(2, 6, generator=generator).repeat_interleave(10, dim=0)
    tokens = 5 * groups + 0.01 * torch.randn(20, 6, generator=generator)
    colours = pictures.for_real.principal_colours(tokens)
    assert colours.shape == (20, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (colours[:10, 0].mean() - colours[10:, 0].mean()).abs() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_token_that_stands_out_is_bright(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(12, 6, generator=generator)
    tokens[seed] *= 20
    for signed in (tokens, -tokens):
        first = pictures.for_real.principal_colours(signed)[:, 0]
        assert first[seed] == 1 and first.median() < 0.5


def test_maps_stand_right_of_the_photograph():
    maps = {"colours": torch.rand(4, 6, 3), "head": torch.rand(4, 6), "other": torch.rand(4, 6)}
    figure = pictures.for_real.patch_maps(torch.rand(3, 8, 12), maps, columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["photograph", "colours", "head", "", "other", ""]
