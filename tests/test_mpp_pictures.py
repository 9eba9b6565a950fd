"""The figures of lesson 12 draw what they are given."""

import pytest
import torch
from matplotlib.colors import to_hex
from support.masked import colours

from vit_course.lab import guessers, pictures
from vit_course.mpp import Corruption, mean_colour_labels


def test_painted_labels_have_their_own_colours() -> None:
    images = colours(1, 3, 8, 12)
    labels = mean_colour_labels(images, 4, 3)
    painted = pictures.mpp.paint(labels[0], 4, (2, 3))
    assert painted.shape == (3, 8, 12)
    assert torch.equal(mean_colour_labels(painted[None], 4, 3), labels)
    assert painted[:, 0, 0].tolist() == [(level + 0.5) / 8 for level in _levels(labels[0, 0].item())]


def _levels(label: int) -> list[int]:
    return [label % 8, label // 8 % 8, label // 64]


def test_by_hand_counts_the_corrupted_ones_only() -> None:
    patches = torch.rand(4, 3)
    figure = pictures.mpp.by_hand(patches, patches, torch.tensor([7, 39, 292, 5]), {1: "mask token"})
    asked = [text.get_text() for text in figure.axes[2].texts]
    assert asked == ["not counted", "colour 39?", "not counted", "not counted"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["", "mask token", "", ""]


def test_frames_tell_exchanged_patches_from_those_left_alone() -> None:
    draw = Corruption(
        torch.tensor([[0, 3, 5]]), torch.tensor([[2, 3, 5]]), torch.tensor([[False, False, True]])
    )
    image = colours(1, 3, 8, 12)[0]
    figure = pictures.mpp.corrupted(image, image, torch.zeros(6, dtype=torch.long), draw, 4)
    frames = [(patch.get_xy(), patch.get_linestyle()) for patch in figure.axes[1].patches]
    assert frames == [((0, 0), "--"), ((0, 4), "-")]


def test_the_ladder_carries_its_names_and_the_loss_stands_where_it_was_measured() -> None:
    rungs = {"no idea": guessers.Rung(6.2, 0.1), "the surroundings": guessers.Rung(2.5, 0.5)}
    axis = pictures.mpp.against_ladder([5.0] * 10 + [3.0] * 30, rungs, smooth=10).axes[0]
    assert [text.get_text() for text in axis.texts] == list(rungs)
    steps, losses = axis.lines[0].get_data()
    assert (steps[0], losses[0]) == (10, 5.0) and (steps[-1], losses[-1]) == (40, 3.0)


def test_a_whole_photograph_is_hidden_and_painted_tile_by_tile() -> None:
    tiles, draw = colours(2, 3, 8, 8), guessers.hide(2, 4, seed=0)
    labels = mean_colour_labels(tiles, 4, 3)
    named = labels.gather(1, draw.index)

    def join(parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(parts), dim=2)

    figure = pictures.mpp.whole_photo(join(tiles), tiles, draw, labels, named, 4, join)
    _, gets, paints, truth = (torch.tensor(axis.images[0].get_array()) for axis in figure.axes)
    assert torch.equal(paints, truth)  # every colour was named right
    grey = (gets == 0.5).all(dim=-1)
    assert grey.float().mean() == 0.5 and grey[0, 0] == (0 in draw.index[0].tolist())


ROWS = [
    {"name": name, "seed": seed, "accuracy": accuracy + seed / 100, "recipe": {"labels": labels}}
    for labels, ways in {30: (0.3, 0.5, 0.6), 60: (0.4, 0.7, 0.8)}.items()
    for name, accuracy in zip(pictures.mpp.WAYS, ways, strict=True)
    for seed in (8, 5)
]


def test_accuracies_are_said_and_drawn() -> None:
    words = pictures.mpp.by_labels_in_words(ROWS)
    assert "30 labels: from scratch 36.5, after MPP 56.5, nearest pixels 66.5" in words
    axis = pictures.mpp.by_labels(ROWS).axes[0]
    of_scratch = axis.lines[0]
    assert of_scratch.get_ydata() == pytest.approx([36.5, 46.5]) and list(of_scratch.get_xdata()) == [30, 60]
    assert to_hex(of_scratch.get_color()) == pictures.COLOURS[0].lower()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(pictures.mpp.WAYS)


def test_gains_are_those_of_pairs() -> None:
    uneven = [row | {"accuracy": row["accuracy"] + (0.02 if row["seed"] == 8 else 0)} for row in ROWS[2:4]]
    rows = [*ROWS[:2], *uneven]
    changes = {"as many steps": (("from scratch", 30), ("after MPP", 30))}
    assert pictures.mpp.gain(rows, *changes["as many steps"]) == pytest.approx([20, 22])
    assert "as many steps: +21.0 ± 12.7" in pictures.mpp.gains_in_words(rows, changes)
    axis = pictures.mpp.gains(rows, changes).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["as many steps"]
