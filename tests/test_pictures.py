"""The one way to show a figure: its words reach every page that is made from a notebook, and the plots tell
the truth.

That a shown figure passes a strict re-run is proved in test_notebooks.py.
"""

import re

import nbformat
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib import pyplot as plt
from nbconvert import HTMLExporter, SlidesExporter
from nbconvert.exporters.exporter import Exporter

from vit_course.lab import pictures

WORDS = 'A "line" that climbs <from 1 to 2> & a second one'


@pytest.fixture
def shown(monkeypatch) -> list[tuple[dict, dict]]:
    """What was displayed: the data and the options of each call."""
    calls: list[tuple[dict, dict]] = []
    monkeypatch.setattr(pictures.shared, "display", lambda data, **options: calls.append((data, options)))
    return calls


def test_show_shows_one_picture_with_words_and_closes_the_figure(shown):
    figure, _ = plt.subplots(figsize=(2, 1), dpi=72)
    pictures.show(figure, alt=WORDS)
    ((data, options),) = shown
    assert (
        set(data) == {"text/html", "text/plain"} and data["text/plain"] == WORDS and options == {"raw": True}
    )
    (picture,) = BeautifulSoup(data["text/html"], "html.parser").find_all("img")
    assert picture["alt"] == WORDS and picture["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize(
    "exporter",
    [
        HTMLExporter(template_name="lab"),
        HTMLExporter(template_name="classic"),
        HTMLExporter(template_name="basic"),
        SlidesExporter(),
    ],
    ids=["lab", "classic", "basic", "slides"],
)
def test_words_reach_converted_pages(shown, exporter: Exporter):
    for words in (WORDS, "two\nlines"):
        pictures.show(plt.figure(figsize=(2, 1)), alt=words)
    outputs = [nbformat.v4.new_output("display_data", data) for data, _ in shown]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("draw()", outputs=outputs)])
    page, _ = exporter.from_notebook_node(notebook)
    assert [picture["alt"] for picture in BeautifulSoup(page, "html.parser").find_all("img")] == [
        WORDS,
        "two\nlines",
    ]


def test_a_stored_picture_and_a_shown_one_are_the_same_element(shown):
    pictures.show(plt.figure(figsize=(2, 1)), alt=WORDS)
    element = shown[0][0]["text/html"]
    data = re.search('base64,([^"]*)', element)[1]
    in_lines = "\n".join(data[start : start + 76] for start in range(0, len(data), 76)) + "\n"
    assert pictures.image_element(in_lines, WORDS) == element


def test_equal_figures_make_equal_elements():
    def draw() -> str:
        figure, axis = plt.subplots(figsize=(2, 1))
        axis.plot([1, 2])
        plt.close(figure)
        return pictures.as_html(figure, WORDS)

    assert draw() == draw()


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_a_picture_without_words(alt):
    with pytest.raises(ValueError, match="must say in words"):
        pictures.show(plt.figure(), alt=alt)


def test_show_refuses_what_is_no_figure_and_what_is_no_text():
    figure, axes = plt.subplots()
    with pytest.raises(TypeError, match="got Axes"):
        pictures.show(axes, alt="a line")
    with pytest.raises(TypeError, match="got int"):
        pictures.show(figure, alt=3)
    plt.close(figure)


def line_of(figure) -> list[float]:
    plt.close(figure)
    return figure.axes[0].lines[0].get_ydata().tolist()


def test_smooth_curves_are_means_of_the_values_so_far():
    values = [4.0, 2.0, 6.0, 0.0]
    assert line_of(pictures.curves({"loss": values}, "step", "loss", smooth=1)) == values
    assert line_of(pictures.curves({"loss": values}, "step", "loss", smooth=3)) == pytest.approx(
        [4, 3, 4, 8 / 3]
    )


def test_one_value_that_is_no_number_leaves_a_gap_and_no_more():
    values = [1.0, float("nan"), 3.0, 5.0, 7.0]
    line = line_of(pictures.curves({"loss": values}, "step", "loss", smooth=2))
    assert line[0] == 1 and np.isnan(line[1:3]).all() and line[3:] == [4, 6]


@pytest.mark.parametrize("smooth", [0, -1])
def test_smoothing_over_nothing_is_refused(smooth):
    with pytest.raises(ValueError, match=f"smooth must be at least 1, got {smooth}"):
        pictures.curves({"loss": [1.0]}, "step", "loss", smooth=smooth)


def test_maps_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        pictures.attention_maps(torch.zeros(3, 4, 4), torch.full((1, 2, 2), float("nan")))


def test_names_may_be_arrays():
    names = np.array(["a", "b"])
    for figure in (
        pictures.gallery(torch.zeros(2, 3, 4, 4), names),
        pictures.attention_maps(torch.zeros(3, 4, 4), torch.ones(2, 2, 2), names),
        pictures.heatmap(torch.eye(2), labels=names),
    ):
        plt.close(figure)
