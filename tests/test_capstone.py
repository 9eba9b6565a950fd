"""The capstone runs with every choice on its menus, and writes its page.

Its own run, with the choices as printed, is a notebook test like any other; here its cells run with other
ones, on few pictures.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from layout import ROOT
from support.toy import Toy, add_toy
from torchvision.utils import save_image

from vit_course.lab import catalogue, choices, data, pictures

NOTEBOOK = ROOT / "notebooks" / "13_capstone.ipynb"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Gives a function that runs the lesson's code in an empty folder with other choices.

    It returns what the code defines.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures.shared, "display", lambda content, raw: shown.append(content["text/plain"]))
    for name in ("shapes", "photos"):
        monkeypatch.setattr(choices, name, partial(getattr(data, name), count=60))
    shown: list[str] = []

    def run(**chosen: object) -> dict:
        cells = nbformat.read(NOTEBOOK, as_version=4).cells
        namespace: dict = {"words_shown": shown}
        left = {"STEPS": 2} | chosen
        for number, source in enumerate(cell.source for cell in cells if cell.cell_type == "code"):
            if "your experiment: change this cell" in source:
                for name, value in left.items():
                    source, found = re.subn(
                        rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE
                    )
                    assert found == 1, f"there is no choice {name}"
                left = {}
            exec(compile(source, f"code cell {number + 1}", "exec"), namespace)
        assert not left, "no cell holds the choices"
        return namespace

    return run


@pytest.fixture
def folders(tmp_path: Path) -> None:
    """Makes a folder of pictures in two classes, and one of as many without."""
    generator = torch.Generator().manual_seed(0)
    for place in ("mine/cats & <dogs>", "mine/else", "heap"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(15):
            save_image(torch.rand(3, 40, 50, generator=generator), tmp_path / place / f"{number}.png")


CHOICES = [
    dict(DATA="easy", NETWORK="SimpleViT", OBJECTIVE="supervised", SIZE=16),
    dict(DATA="hard", NETWORK="CaiT", OBJECTIVE="MPP", PATCH=4),
    dict(DATA="hard", NETWORK="MaxViT", OBJECTIVE="EsViT"),
    dict(DATA="digits", NETWORK="ViT", OBJECTIVE="DINO", GUESS=20),
    dict(DATA="digits", NETWORK="XCiT", OBJECTIVE="distillation"),
    dict(DATA="photos", NETWORK="ViT", OBJECTIVE="DINO", SIZE=16),
    dict(DATA="mine", NETWORK="CaiT", OBJECTIVE="distillation", SIZE=16),
    dict(DATA="heap", NETWORK="ViT", OBJECTIVE="DINO", SIZE=16),
    dict(DATA="heap", NETWORK="MaxViT", OBJECTIVE="EsViT", GUESS=50),
]


@pytest.mark.slow
@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: " ".join(map(str, chosen.values())))
def test_every_choice_ends_in_a_table_and_a_page(chosen: dict, run: Callable, folders: None) -> None:
    made = run(**chosen)
    table, has_masks, has_classes = made["table"], chosen["DATA"] in data.LEVELS, chosen["DATA"] != "heap"
    attends = catalogue.MODELS[chosen["NETWORK"]].sees_everything
    columns = (["kNN", "linear"] if has_classes else []) + ["rank"]
    assert table.header == ["", *columns, *(["IoU", "mAP", "AP50"] if has_masks else [])]
    assert table.rows[0][0] == table.marked == f"{chosen['NETWORK']}, {chosen['OBJECTIVE']}"
    assert all(table.rows[0][1 : 1 + len(columns)])
    assert ("nothing to compare attention with" in table.caption) == (not has_masks)
    assert ("no layer that attends to the whole picture" in table.caption) == (has_masks and not attends)
    if has_masks:
        assert bool(table.rows[0][-1]) == attends
        assert {"a square in the middle", "brighter than Otsu's threshold"} <= {row[0] for row in table.rows}
    assert ("results" in made["plates"]) == has_classes and ("attention" in made["plates"]) == attends
    if not has_classes:
        assert made["verdict"].startswith("Nobody has named these pictures")
    else:
        assert ("The guess was 20" in made["verdict"]) == ("GUESS" in chosen)
    assert all(words.strip() and "nan" not in words for words in made["words_shown"])


@pytest.mark.slow
def test_the_page_says_how_it_came_about(run: Callable, folders: None) -> None:
    made = run(DATA="mine", OBJECTIVE="DINO", SIZE=16, SEED=3)
    page = Path("capstone.html").read_text(encoding="utf-8")
    assert page.count("<img alt=") == page.count("<figcaption>") == len(made["plates"])
    assert page.count("<iframe") == 1 and page.count("<footer>Made with vit_course") == 1
    assert all(word in page for row in made["table"].rows for word in row[1:])
    for fact in (
        "mine: 24 to train on, 6 to test with, 16 × 16 pixels",
        "two crops of 75 to 100 % of the area, never turned, mirrored half of the time; colours as they are",
        "2 steps of 64 pictures, learning rate up to 0.003, seed 3",
        "patches of 4 × 4 pixels",
        "DINO on mine",
    ):
        assert fact in page


@pytest.mark.slow
def test_photographs_are_never_turned_and_scenes_are(run: Callable) -> None:
    """A picture that is darker below stays so in every view of a photograph."""
    made = run(DATA="photos", OBJECTIVE="MPP", SIZE=16)
    gradient = torch.linspace(1, 0, 16).view(1, 1, 16, 1).expand(8, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    assert made["turns"] == {"rotation": 0.0, "flip": True}
    views = [made["varied"](gradient, generator)]
    object.__setattr__(made["train"], "images", gradient[:1].expand(60, -1, -1, -1))
    views += made["draw_views"](generator)
    for batch in views:
        assert (batch[:, :, :8].mean(dim=(1, 2, 3)) > batch[:, :, 8:].mean(dim=(1, 2, 3))).all()


REFUSED = {
    "small pictures": (
        dict(DATA="digits", NETWORK="MaxViT"),
        r"image size \(8, 8\) does not fit: both sides must be multiples of 32",
    ),
    "MPP on a pyramid": (dict(NETWORK="MaxViT", OBJECTIVE="MPP"), "MPP hides single patches"),
    "labels of a heap": (dict(DATA="heap", OBJECTIVE="supervised"), "needs labels, but 'heap' has no two"),
}


@pytest.mark.parametrize(("chosen", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_before_pictures_are_loaded(
    chosen: dict, words: str, run: Callable, folders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices.Choices, "load", lambda self: pytest.fail("pictures were loaded"))
    with pytest.raises(ValueError, match=words):
        run(**chosen)
    assert not Path("capstone.html").exists()


@pytest.mark.slow
def test_a_new_row_of_the_catalogue_can_be_chosen(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    add_toy(monkeypatch)
    made = run(NETWORK="Toy", OBJECTIVE="supervised", SIZE=16)
    assert type(made["trained"]) is Toy and made["table"].marked == "Toy, supervised"
