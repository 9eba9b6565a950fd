"""The longer figures of lesson a1 show the numbers that they are given."""

import numpy as np
import torch
from matplotlib import pyplot as plt

from vit_course.lab import pictures


def test_maps_share_the_colours_of_their_row():
    rows = {
        "one": torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 0.5]]]),
        "two": -torch.ones(2, 2, 2),
    }
    figure = pictures.deeper.maps_of_heads(rows)
    assert [axis.get_title() for axis in figure.axes] == ["head 0", "head 1", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["one", "", "two", ""]
    assert [axis.images[0].get_clim() for axis in figure.axes] == [(-2, 2)] * 2 + [(-1, 1)] * 2
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), rows["one"][1])
    plt.close(figure)


def test_networks_of_other_depths_end_at_the_same_place():
    figure = pictures.deeper.by_depth({"deep": [0.1, 0.2, 0.3, 0.4], "wide": [0.5, 0.6]}, "likeness")
    deep, wide = figure.axes[0].lines
    assert list(deep.get_xdata()) == [0.25, 0.5, 0.75, 1] and list(wide.get_xdata()) == [0.5, 1]
    assert list(wide.get_ydata()) == [0.5, 0.6] and figure.axes[0].get_ylabel() == "likeness"
    plt.close(figure)


def test_the_dotted_line_has_slope_two():
    figure = pictures.deeper.square_law([1, 0.1], {"measured": [0.3, 0.005]})
    measured, square = figure.axes[0].lines
    np.testing.assert_allclose(measured.get_ydata(), [0.3, 0.005])
    np.testing.assert_allclose(square.get_ydata(), [0.5, 0.005])
    plt.close(figure)


def test_a_bar_is_the_mean_and_a_point_is_a_seed():
    figure = pictures.deeper.accuracies({"a": [0.5, 0.7], "b": [0.2, 0.4]}, chance=0.1)
    (axis,) = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [60, 30])
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [50, 70])
    np.testing.assert_allclose(axis.lines[-1].get_xdata(), [10, 10])
    plt.close(figure)
