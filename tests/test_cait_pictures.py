"""The longer figures of lesson 05 show the numbers that they are given."""

import numpy as np
import torch
from matplotlib import pyplot as plt

from vit_course.lab import pictures


def test_tables_of_heads_carry_numbers_and_sums():
    figure = pictures.cait.head_tables({"used": torch.tensor([[0.25, -0.25], [0.5, 0.5]])})
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["0.250", "-0.250", "0.500", "0.500"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["head 0\nsum 0.00", "head 1\nsum 1.00"]
    plt.close(figure)


def test_growth_shows_every_layer_and_the_mean():
    scales = [[[1e-5, 1e-5], [1e-5, 1e-5]], [[1e-2, 1e-3], [3e-2, 1e-3]]]
    figure = pictures.cait.growth(scales)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array(), [[1e-5, 1e-2], [1e-5, 3e-2]])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [1e-5, 2e-2])
    plt.close(figure)


def test_losses_are_means_of_the_seeds():
    figure = pictures.cait.losses({"a": [[1.0, 3.0, 5.0], [3.0, 5.0, 7.0]]}, smooth=2)
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [3.0, 5.0])
    assert list(axis.lines[0].get_xdata()) == [2, 3]
    plt.close(figure)


def test_maps_are_scaled_to_their_own_largest_value():
    images, masks = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 2:5] = True
    maps = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.4, 0.0], [0.0, 0.0]]])
    figure = pictures.cait.maps_on_scenes(images, masks, {"model": maps})
    shown = [axis.images[0].get_array() for axis in figure.axes[2:]]
    np.testing.assert_allclose(shown, [[[0.25, 0.5], [0.75, 1]], [[1, 0], [0, 0]]])
    plt.close(figure)
    figure = pictures.cait.maps_on_photo(images[0], {"model": maps[0]})
    assert [axis.get_title() for axis in figure.axes] == ["photograph", "model"]
    np.testing.assert_allclose(figure.axes[1].images[1].get_array(), [[0.25, 0.5], [0.75, 1]])
    plt.close(figure)
