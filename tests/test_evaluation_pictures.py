"""The longer figures of lesson 09 show the numbers that they are given, and say the same in words."""

import pytest
import torch
from matplotlib import pyplot as plt

from vit_course.lab import pictures
from vit_course.lab.data import photos

ROWS = [
    {
        "name": f"{name}, {labels} labels",
        "seed": seed,
        "accuracy": value + 0.02 * seed,
        "recipe": {"labels": labels},
    }
    for name, labels, value in [
        ("neighbours", 50, 0.3),
        ("probe, four blocks", 50, 0.4),
        ("neighbours", 1000, 0.5),
        ("from scratch", 1000, 0.1),
    ]
    for seed in range(3)
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_protocols_have_a_panel_for_each_budget_and_a_line_for_each_name():
    few, many = pictures.evaluation.protocols(ROWS).axes
    assert [axis.get_title() for axis in (few, many)] == ["50 labels", "1,000 labels"]
    names = [label.get_text() for label in few.get_yticklabels()]
    assert names == ["neighbours", "probe, four blocks", "from scratch"]
    dots = {line.get_ydata()[0]: list(line.get_xdata()) for line in many.lines if len(line.get_xdata()) == 3}
    assert dots == {0: pytest.approx([50, 52, 54]), 2: pytest.approx([10, 12, 14])}
    bars = [bar.get_segments()[0][:, 0] for bar in many.collections]
    assert bars[0].tolist() == pytest.approx([52 - 4.97, 52 + 4.97], abs=0.01)
    words = pictures.evaluation.protocols_in_words(ROWS)
    assert "With 50 labels: neighbours 32.0 ± 5.0, probe, four blocks 42.0 ± 5.0." in words
    assert "With 1,000 labels: neighbours 52.0 ± 5.0, from scratch 12.0 ± 5.0." in words


def test_pencil_examples_carry_their_numbers():
    directions = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    weights, truth = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([True, False, True, False])
    figure = pictures.evaluation.by_hand(
        directions, ["cat", "cat", "dog"], weights, truth, torch.tensor([0.5, 0.25, 0.25])
    )
    circle, patches, bars = figure.axes
    assert [text.get_text() for text in circle.texts] == ["cat 0.8", "cat 0.6", "dog 1.0"]
    assert [text.get_text() for text in patches.texts] == ["0.4", "0.3", "0.2", "0.1"]
    assert bars.get_title() == "effective rank 2.83 of 3"


def test_neighbours_are_drawn_with_their_classes_and_counted_in_words():
    crops = photos("train", 20, 16)
    places = torch.stack([torch.arange(3), torch.arange(3, 6)])
    figure = pictures.evaluation.nearest(crops[6:8], crops, {"pixels": places})
    titles = [axis.get_title() for axis in figure.axes]
    first = crops.classes[crops.labels[6]]
    assert len(titles) == 8 and titles[0] == first
    same = int((crops.labels[:3] == crops.labels[6]).sum())
    assert sum(title.endswith("✓") for title in titles[:4]) == same
    assert f"of {first}: {same} by pixels" in pictures.evaluation.nearest_in_words(
        crops[6:8], crops, {"pixels": places}
    )


def test_masks_fade_what_they_do_not_keep():
    images, truth = torch.ones(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[:, 2:5, 2:5] = True
    figure = pictures.evaluation.masks(images, truth, {"found": truth})
    shown = figure.axes[2].images[0].get_array()
    assert shown[3, 3].tolist() == [1, 1, 1] and shown[0, 0].tolist() == [0.25] * 3
    assert figure.axes[2].get_ylabel() == "found"


def test_photograph_stands_beside_mask_and_components_of_each_network():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4] = True
    kept = {"untrained": (~mask, torch.randn(3, 2, 3)), "trained": (mask, torch.randn(3, 2, 3))}
    image = torch.ones(3, 8, 12) * torch.tensor([0.5, 0.0, 0.1])[:, None, None]
    figure = pictures.evaluation.photograph(image, kept)
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "photograph",
        "60 % of the attention",
        "components of the patches",
    ]
    assert [axis.get_ylabel() for axis in figure.axes[1::3]] == ["untrained", "trained"]
    shown = figure.axes[4].images[0].get_array()
    assert shown[0, 0].tolist() == pytest.approx([0.5, 0, 0.1])
    assert shown[7, 0].tolist() == pytest.approx([0.76] * 3)  # grey, and paler than the picture
    assert figure.axes[1].images[0].get_array()[7, 0].tolist() == pytest.approx([0.5, 0, 0.1])
    assert not figure.axes[3].get_visible()  # the photograph stands there once
    components = figure.axes[5].images[0].get_array()
    assert components.shape == (2, 3, 3) and components.min() == 0 and components.max() == 1


def test_labels_of_directions_stand_outside_the_circle():
    directions = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    halves = torch.tensor([True, False, True, False])
    circle, *_ = pictures.evaluation.by_hand(
        directions, ["cat", "cat", "dog"], torch.tensor([0.4, 0.3, 0.2, 0.1]), halves, torch.ones(3) / 3
    ).axes
    for text in circle.texts:
        x, y = text.get_position()
        assert x**2 + y**2 > 1.05
