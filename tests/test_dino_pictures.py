"""The figures of lesson 10 draw the numbers that they are given."""

import math

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from support.unlabelled import small_vit

from vit_course.dino import DINOSchedule
from vit_course.lab import pictures

ROWS = [
    {"name": "a", "seed": 1, "accuracy": 0.5, "linear": 0.6, "random_accuracy": 0.1, "random_linear": 0.2},
    {"name": "a", "seed": 2, "accuracy": 0.7, "linear": 0.8, "random_accuracy": 0.1, "random_linear": 0.2},
    {"name": "b", "seed": 1, "accuracy": 0.3, "linear": 0.4, "random_accuracy": 0.1, "random_linear": 0.2},
    {"name": "grey pixels", "seed": 0, "accuracy": 0.44, "linear": 0.17},
]


@pytest.fixture(autouse=True)
def closed_figures() -> object:
    yield
    pyplot.close("all")


def test_stages_end_in_the_targets() -> None:
    logits, center = torch.tensor([[0.8, 0.4], [0.6, 0.4]]), torch.tensor([0.5, 0.3])
    figure = pictures.dino.stages(logits, center, 0.1, ["view 1", "view 2"])
    heights = [[bar.get_height() for bar in axis.patches] for axis in figure.axes]
    assert heights[0] == pytest.approx([0.8, 0.4]) and heights[1] == pytest.approx([0.3, 0.1])
    assert heights[3] == pytest.approx([0.8808, 0.1192], abs=1e-4) and heights[7] == pytest.approx([0.5, 0.5])


def test_every_seed_is_drawn_beside_its_mean_and_the_pixels() -> None:
    pixels = pictures.dino.pixels_of(ROWS)
    assert pixels == pytest.approx({"accuracy": 44.0, "linear": 17.0})
    figure = pictures.dino.worth(ROWS, ["a", "b"], pixels)
    dots = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(values) for values in dots] == [pytest.approx([50, 70]), pytest.approx([30])]
    words = pictures.dino.worth_in_words(ROWS, ["a", "b"], pixels)
    assert "a: neighbours 60 ± 127, linear layer 70 ± 127; b: neighbours 30, linear layer 40." in words
    assert words.endswith("Dashed, grey pixels: neighbours 44, linear layer 17.")


def test_networks_before_training_stand_beside_those_after() -> None:
    rows = pictures.dino.with_untrained(ROWS, "a")
    assert pictures.dino.points_of(rows, "not trained") == pytest.approx([10, 10])
    assert pictures.dino.points_of(rows, "DINO, no labels", "linear") == pytest.approx([60, 80])


def test_cells_are_of_the_seeds_that_all_have() -> None:
    rows = [
        {"name": name, "seed": seed, "accuracy": 0.1 * number + 0.01 * seed}
        for number, name in enumerate(pictures.dino.CELLS.values())
        for seed in (2, 1, 3)
        if (number, seed) != (0, 3)
    ]
    cells = pictures.dino.cells_of(rows)
    assert cells["centring", "KoLeo"] == pytest.approx([11, 12])
    figure = pictures.dino.two_by_two(cells)
    assert [text.get_text() for text in figure.axes[0].texts][1] == "12 %\n(11, 12)"
    assert "centring, KoLeo: 12 (11, 12)" in pictures.dino.two_by_two_in_words(cells)


def test_entropy_is_drawn_beside_its_largest_value() -> None:
    histories = {"run": {"entropy": [3.0] * 8, "kl": [1.0] * 8}}
    figure = pictures.dino.entropy_and_kl(histories, 512)
    lines = figure.axes[0].lines
    assert list(lines[0].get_ydata()) == [3.0] * 4
    assert lines[1].get_ydata()[0] == pytest.approx(math.log(512))


def test_likeness_is_one_at_the_marked_patch_and_knows_rows_from_columns() -> None:
    backbone = small_vit()
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    cosines = pictures.dino.likeness(backbone, image, (1, 4))
    assert cosines.shape == (4, 6) and cosines[1, 4].item() == pytest.approx(1, abs=1e-5)
    assert cosines.max() <= 1 + 1e-5 and (cosines > 0.999).sum() == 1


def test_the_other_figures() -> None:
    schedule, backbone = DINOSchedule(), small_vit()
    picture = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    scenes = torch.zeros(2, 3, 16, 16)
    for figure in (
        pictures.dino.views(scenes, [scenes, scenes, scenes[..., :8, :8]]),
        pictures.dino.schedules([schedule.values(step, 20) for step in range(20)], 0.1),
        pictures.dino.on_a_circle(torch.rand(4, 2), torch.rand(4, 2)),
        pictures.dino.likenesses({"one": backbone, "two": backbone}, picture, (16, 24), [(0, 0), (1, 2)]),
    ):
        assert isinstance(figure, Figure)
