"""The figures of lesson 13 show the numbers that they are given, cover none, and say the same in words."""

import pytest
import torch
from matplotlib import pyplot

from vit_course.lab import pictures
from vit_course.lab.data import ImageSet

SCORES = {
    "ViT, DINO": {"kNN": 0.6, "linear": 0.7, "rank": 20.0, "IoU": 0.1},
    "grey pixels": {"kNN": 0.65, "linear": 0.2, "rank": 50.0},
    "a square": {"IoU": 0.4},
}


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_a_run_has_a_panel_for_each_number():
    history = {name: [4.0, 2.0, 0.0] for name in ("loss", "entropy", "kl", "koleo", "region_kl")}
    figure = pictures.capstone.run(history, smooth=2)
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in drawn] == list(history)
    assert drawn[0].lines[0].get_ydata().tolist() == [4.0, 3.0, 1.0]
    assert "loss from 4.00 to 1.00" in pictures.capstone.run_in_words(history, smooth=2)


def test_results_are_bars_in_their_order_and_nothing_covers_them():
    figure = pictures.capstone.results(SCORES, "ViT, DINO", guess=50)
    accuracies, overlaps = figure.axes
    assert [label.get_text() for label in accuracies.get_yticklabels()] == ["ViT, DINO", "grey pixels"]
    assert [label.get_fontweight() for label in accuracies.get_yticklabels()] == ["bold", "normal"]
    assert [bar.get_width() for bar in accuracies.patches] == [0.6, 0.65, 0.7, 0.2]
    assert [bar.get_width() for bar in overlaps.patches] == [0.1, 0.4]
    assert accuracies.lines[0].get_xdata() == [0.5, 0.5]
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert [text.get_text() for text in figure.legends[0].texts] == ["your guess", "kNN", "linear"]
    assert not any(legend.overlaps(axis.get_window_extent()) for axis in figure.axes)
    words = pictures.capstone.results_in_words(SCORES, guess=50)
    assert "grey pixels: kNN 65%, linear 20%" in words and "a square: IoU 0.40" in words and "50 %" in words


def test_without_masks_and_guess_there_is_one_panel():
    only = {name: scores for name, scores in SCORES.items() if "kNN" in scores}
    only = {name: {key: of[key] for key in ("kNN", "linear")} for name, of in only.items()}
    figure = pictures.capstone.results(only, "ViT, DINO")
    assert len(figure.axes) == 1 and not figure.axes[0].lines
    assert "guess" not in pictures.capstone.results_in_words(only)


def test_attention_and_components_have_a_row_for_each_network():
    images, rows = torch.rand(2, 3, 8, 8), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 2:5] = True
    figure = pictures.capstone.attention(images, {"untrained": rows, "DINO": rows}, (2, 2), masks)
    assert len(figure.axes) == 6 and figure.axes[4].get_ylabel() == "DINO"
    shown = figure.axes[4].images[1].get_array()
    assert shown.tolist() == [pytest.approx([0.25, 0.5]), pytest.approx([0.75, 1.0])]
    assert figure.axes[4].collections and not figure.axes[0].collections
    assert not pictures.capstone.attention(images, {"DINO": rows}, (2, 2)).axes[2].collections
    colours = torch.rand(2, 3, 2, 2)
    figure = pictures.capstone.components(images, {"DINO": colours})
    shown = torch.from_numpy(figure.axes[3].images[0].get_array().data)
    assert torch.allclose(shown.permute(2, 0, 1), colours[1]) and figure.axes[2].get_ylabel() == "DINO"


def test_a_photograph_shows_attention_where_there_is_any():
    image, colours = torch.rand(3, 8, 8), torch.rand(3, 2, 2)
    with_attention = pictures.capstone.photograph(image, colours, torch.rand(2, 2))
    assert [axis.get_title() for axis in with_attention.axes] == [
        "photograph",
        "attention",
        "components of the patches",
    ]
    assert len(pictures.capstone.photograph(image, colours).axes) == 2


def test_neighbours_are_counted_where_there_are_classes():
    labels = torch.tensor([0, 0, 1, 1])
    named = ImageSet(torch.rand(4, 3, 8, 8), labels, ("cat", "dog"))
    heap = ImageSet(named.images, torch.zeros_like(labels), ())
    places = {"DINO": torch.tensor([[0, 2]]), "pixels": torch.tensor([[2, 3]])}
    words = pictures.capstone.neighbours_in_words(named[:1], named, places)
    assert "Of 2 neighbours each these are of the right class: 1 by DINO, 0 by pixels." in words
    assert "class" not in pictures.capstone.neighbours_in_words(heap[:1], heap, places)
    figure = pictures.evaluation.nearest(heap[:1], heap, places)
    assert [axis.get_title() for axis in figure.axes] == ["this one", "", ""] * 2
