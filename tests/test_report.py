"""The page of an experiment: one file that shows everything without a network, written whole or never."""

import os
import tempfile
from datetime import date
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from support.browser import launch

import vit_course
from vit_course.lab.explorer import AttentionExplorer
from vit_course.lab.report import Illustration, Table, check_page, write_page
from vit_course.vit import ViT

TABLE = Table(
    ("", "kNN", "IoU"),
    [("ViT, DINO", "45 %", "0.41"), ("<b>pixels</b> & more", "7 %", "")],
    "± 2",
    marked="ViT, DINO",
)


@pytest.fixture
def figure() -> Figure:
    figure, axis = pyplot.subplots(figsize=(3, 2))
    axis.plot([0, 1], [1, 0])
    pyplot.close(figure)
    return figure


@pytest.fixture
def explorer() -> AttentionExplorer:
    torch.manual_seed(0)
    model = ViT(image_size=16, patch_size=4, num_classes=0, dim=16, depth=2, heads=2, mlp_dim=32)
    return AttentionExplorer(model, torch.rand(2, 3, 16, 16))


def test_a_table_as_text_and_as_html() -> None:
    assert repr(TABLE).splitlines() == [
        "                       kNN   IoU",
        "ViT, DINO             45 %  0.41",
        "<b>pixels</b> & more   7 %",
        "± 2",
    ]
    shown = TABLE._repr_html_()
    assert '<tr class="marked"><th scope="row">ViT, DINO</th><td>45 %</td><td>0.41</td></tr>' in shown
    assert shown.count('class="marked"') == 1 and "&lt;b&gt;pixels&lt;/b&gt; &amp; more" in shown
    assert "<caption>± 2</caption>" in shown and "<caption>" not in Table(("a",), [("b",)])._repr_html_()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one for each column, got \('a', 'b', 'c'\)"):
        Table(("", "kNN"), [("a", "b"), ("a", "b", "c")])


@pytest.mark.slow
def test_the_page_shows_everything_from_disk_without_a_network(
    tmp_path: Path, figure: Figure, explorer: AttentionExplorer
) -> None:
    sections = {
        "The <table>": ["Less <b>is</b> more & more.", TABLE],
        "Figures": [(figure, 'A line that "falls" & stops'), (figure, "The same")],
        "Attention": [explorer],
    }
    path = write_page(tmp_path / "mine.html", "DINO on <my> pictures", sections)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.html"]
    complaints = []
    with launch() as browser:
        page = browser.new_page()
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: complaints.append(request.url) if request.url.startswith("http") else None,
        )
        page.goto(path.as_uri())
        page.frame_locator("iframe").locator(".vit-explorer[data-drawn]").wait_for()
        assert page.title() == page.locator("h1").inner_text() == "DINO on <my> pictures"
        assert page.locator("h2").all_inner_texts() == list(sections)
        assert page.locator("p").first.inner_text() == "Less <b>is</b> more & more."
        assert page.locator("tr.marked").inner_text().split("\t") == ["ViT, DINO", "45 %", "0.41"]
        pictures = page.locator("img").all()
        assert [picture.get_attribute("alt") for picture in pictures] == [
            'A line that "falls" & stops',
            "The same",
        ]
        assert all(picture.evaluate("picture => picture.naturalWidth") > 100 for picture in pictures)
    assert complaints == []


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert check_page("~/mine.html") == tmp_path / "mine.html"
    assert write_page("~/mine.html", "title", {}) == tmp_path / "mine.html"
    assert (tmp_path / "mine.html").is_file()


def test_a_folder_that_takes_nothing_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="nothing can be written into .*Permission denied"):
        check_page(tmp_path / "mine.html")
    assert list(tmp_path.iterdir()) == []


def test_a_cell_of_a_table_is_a_string() -> None:
    with pytest.raises(TypeError, match="a cell of a table is a string, got nan; write numbers as they"):
        Table(("", "kNN"), [("DINO", float("nan"))])


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path / "mine.html", "old", {"Words": ["first"]})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="section 'Second' can hold .*, got 3"):
        write_page(path, "new", {"First": ["words"], "Second": [3]})
    assert path.read_bytes() == before

    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_page(path, "new", {"First": ["words"]})
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_page(tmp_path / "other.html", "new", {"First": ["words"]})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("part", [None, ("figure", "words"), ("a", "b", "c")])
def test_other_parts_are_refused(part: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="section 'Here' can hold strings, Tables"):
        write_page(tmp_path / "mine.html", "title", {"Here": [part]})


def test_a_caption_stands_below_its_figure_and_the_versions_at_the_foot(
    tmp_path: Path, figure: Figure
) -> None:
    plate = Illustration(figure, "A line that falls", "Lower is <better>.")
    text = write_page(tmp_path / "mine.html", "title", {"Here": [plate]}).read_text(encoding="utf-8")
    assert text.index("A line that falls") < text.index("<figcaption>Lower is &lt;better&gt;.</figcaption>")
    made_with = f"vit_course {vit_course.__version__} and PyTorch {torch.__version__}"
    assert f"<footer>Made with {made_with} on {date.today().isoformat()}.</footer>" in text


@pytest.mark.parametrize("words", [{"alt": " "}, {"caption": ""}])
def test_an_illustration_needs_both_texts(words: dict, figure: Figure) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(words))} must say in words"):
        Illustration(figure, **{"alt": "words", "caption": "words"} | words)


def test_a_figure_needs_words(tmp_path: Path, figure: Figure) -> None:
    for part in (figure, (figure,), (figure, 3), (figure, " ")):
        with pytest.raises(TypeError, match="Illustrations and pairs of a figure and its words"):
            write_page(tmp_path / "mine.html", "title", {"Here": [part]})


def test_paths_that_do_not_fit_are_refused_beforehand(tmp_path: Path) -> None:
    assert check_page(tmp_path / "mine.html") == tmp_path / "mine.html"
    for refuse in (check_page, lambda path: write_page(path, "title", {})):
        with pytest.raises(ValueError, match="ends in .html, got 'mine.pdf'"):
            refuse("mine.pdf")
        with pytest.raises(FileNotFoundError, match="there is no folder .* to write mine.html into"):
            refuse(tmp_path / "nowhere" / "mine.html")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_page(tmp_path / "file" / "mine.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_page(tmp_path / "folder.html")
