"""The one way to show a figure. That it passes a strict re-run is proved in test_notebooks.py."""

import pytest
from matplotlib import pyplot as plt

from vit_course.lab import pictures


def test_show_shows_one_picture_with_words_and_closes_the_figure(monkeypatch):
    shown = []
    monkeypatch.setattr(pictures, "display", lambda data, raw, metadata: shown.append((data, raw, metadata)))
    figure, _ = plt.subplots(figsize=(2, 1), dpi=72)
    pictures.show(figure, alt="two axes, nothing drawn")
    ((data, raw, metadata),) = shown
    assert data["image/png"].startswith(b"\x89PNG") and data["text/plain"] == "two axes, nothing drawn"
    assert raw and metadata == {"image/png": {"alt": "two axes, nothing drawn"}}
    assert not plt.fignum_exists(figure.number)


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
