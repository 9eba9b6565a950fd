"""The figures of lesson 11 draw the matches that they are given."""

import pytest
import torch
from matplotlib.colors import to_hex

from vit_course.lab import pictures
from vit_course.lab.correspondence import Copies, make_copies
from vit_course.lab.data import shapes


@pytest.fixture(scope="module")
def copies() -> Copies:
    return make_copies(shapes("easy", "test")[:3])


def test_arrows_carry_their_names_and_are_scaled_once() -> None:
    student, teacher = torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([[8.0, 6.0]])
    figure = pictures.es_vit.arrows(student, teacher)
    for axis, lengths in zip(figure.axes, ([2, 5, 10], [1, 1, 1]), strict=True):
        assert [text.get_text() for text in axis.texts] == ["a", "b", "0"]
        ends = [torch.tensor(text.xy).norm().item() for text in axis.texts]
        assert ends == pytest.approx(lengths)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["the student's", "the teacher's"]


def test_solid_lines_lead_to_their_own_place(copies: Copies) -> None:
    perfect = copies.true_place.expand(3, -1)
    wrong = (perfect + 1) % 16
    figure = pictures.es_vit.copies_and_matches(copies, {"right": perfect, "wrong": wrong}, range(3))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["right", "wrong"]
    for number, axis in enumerate(figure.axes):
        scene, is_right = number // 2, number % 2 == 0
        assert len(axis.lines) == int(copies.on_object[scene].sum())
        assert {line.get_linestyle() for line in axis.lines} == {"-" if is_right else ":"}
    place = int(copies.on_object[0].nonzero()[0, 0])
    row, column = divmod(int(copies.true_place[place]), 4)
    x, y = (values[1] for values in figure.axes[0].lines[0].get_data())
    assert (x, y) == (36 + 8 * column + 3.5, 8 * row + 3.5)


def test_letters_of_a_photograph_stand_at_their_matches() -> None:
    image, match = torch.rand(3, 16, 24), torch.tensor([5, 4, 3, 2, 1, 0])
    figure = pictures.es_vit.photograph_and_matches(image, image, match, [0, 4], torch.arange(6), 3)
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["A", "B"]
    assert [text.get_position() for text in first.texts] == [(3.5, 3.5), (11.5, 11.5)]
    assert [text.get_position() for text in second.texts] == [(19.5, 11.5), (11.5, 3.5)]
    rings = [tuple(values.item() for values in line.get_xydata()[0]) for line in second.lines]
    assert rings == [(3.5, 3.5), (11.5, 11.5)]
    assert to_hex(second.lines[0].get_markeredgecolor()) == "#ffffff"
