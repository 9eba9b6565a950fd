"""The last lesson runs with every choice on its menus, writes its page, and says in a sentence what it cannot
do.

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
from skimage.filters import threshold_otsu
from support.toy import Toy, add_toy
from torchvision.utils import save_image

from vit_course.lab import catalogue, data, pictures

NOTEBOOK = ROOT / "notebooks" / "13_capstone.ipynb"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Gives a function that runs the lesson's code in an empty folder with other choices.

    It returns what the code defines.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures.shared, "display", lambda content, raw: shown.append(content["text/plain"]))
    for name, count in {"shapes": 120, "photos": 120}.items():
        monkeypatch.setattr(data, name, partial(getattr(data, name), count=count))
    shown: list[str] = []

    def run(**choices: object) -> dict:
        cells = nbformat.read(NOTEBOOK, as_version=4).cells
        namespace: dict = {"shown": shown}
        for number, source in enumerate(cell.source for cell in cells if cell.cell_type == "code"):
            if number == 0:
                for name, value in ({"STEPS": 2} | choices).items():
                    source, found = re.subn(
                        rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE
                    )
                    assert found == 1, f"there is no choice {name}"
            exec(compile(source, f"code cell {number + 1}", "exec"), namespace)
        return namespace

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Gives a folder of pictures, two classes of twenty."""
    generator = torch.Generator().manual_seed(0)
    for name in ("cats & <dogs>", "else"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(20):
            picture = torch.rand(3, 40, 50, generator=generator)
            save_image(picture, tmp_path / "mine" / name / f"{number}.png")
    return Path("mine")


NETWORKS = [name for name, row in catalogue.MODELS.items() if row.small]
CHOICES = [
    ("easy", "SimpleViT", "supervised"),
    ("hard", "CaiT", "MPP"),
    ("hard", "MaxViT", "EsViT"),
    ("digits", "ViT", "DINO"),
    ("digits", "XCiT", "distillation"),
    ("photos", "ViT", "EsViT"),
    ("mine", "CaiT", "DINO"),
]
CHOICES += [("easy", name, "supervised") for name in NETWORKS if name not in {name for _, name, _ in CHOICES}]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_every_choice_ends_in_a_table_and_a_page(
    choice: tuple[str, str, str], run: Callable, folder: Path
) -> None:
    pictures_of, network, objective = choice
    made = run(DATA=pictures_of, NETWORK=network, OBJECTIVE=objective)
    table, has_masks = made["table"], pictures_of in data.LEVELS
    attends = catalogue.MODELS[network].sees_everything
    assert table.header == ["", "kNN", "linear", *(["IoU", "mAP", "AP50"] if has_masks else [])]
    assert table.rows[0][0] == table.marked == f"{network}, {objective}"
    assert [word.endswith(" %") for word in table.rows[0][1:3]] == [True, True]
    assert ("nothing to compare attention with" in table.caption) == (not has_masks)
    assert ("no layer that looks at the whole picture" in table.caption) == (not attends)
    if has_masks:
        assert all(table.rows[0][3:]) == attends
        assert {"a square in the middle", "brighter than Otsu's threshold"} <= {row[0] for row in table.rows}
    for labels in (made["labelled"].labels, made["test"].labels):
        assert labels.diff().min() < 0, (
            "the pictures stand class by class, and the first would be of one class"
        )
    assert f"You guessed {made['GUESS']}" in made["verdict"]
    assert all(words.strip() and "nan" not in words for words in made["shown"])
    page = Path("capstone.html").read_text(encoding="utf-8")
    assert page.count("<img alt=") == len(made["figures"]) and page.count("<iframe") == 1
    assert all(word in page for row in table.rows for word in row[1:])


@pytest.mark.slow
def test_its_threshold_is_otsu_s(run: Callable) -> None:
    """The cut with the largest variance between its sides, and nearly the mask of scikit-image, which tries
    256 cuts.
    """
    made = run(DATA="hard", NETWORK="MaxViT", OBJECTIVE="supervised")
    images = made["test"].images
    masks, scores = made["otsu"](images)
    for image, mask, score in zip(images.mean(dim=1), masks, scores.tolist(), strict=True):
        theirs = image > threshold_otsu(image.numpy())
        assert (mask == theirs).float().mean() > 0.95
        share = theirs.float().mean()
        between = share * (1 - share) * (image[theirs].mean() - image[~theirs].mean()) ** 2
        explained = (between / image.var(correction=0)).item()
        assert explained - 1e-5 < score < explained + 0.01


REFUSED = {
    "network": (dict(NETWORK="Vit"), f"NETWORK is 'Vit', which is none of {', '.join(NETWORKS)}"),
    "a network off the menu": (dict(NETWORK="DistilledViT"), "NETWORK is 'DistilledViT', which is none of"),
    "objective": (
        dict(OBJECTIVE="dino"),
        f"OBJECTIVE is 'dino', which is none of supervised, {', '.join(catalogue.OBJECTIVES)}",
    ),
    "data": (
        dict(DATA="cats"),
        "DATA is 'cats', which is no folder and none of easy, default, hard, digits, photos",
    ),
    "guess": (dict(GUESS=101), "GUESS must be in 0 … 100"),
    "steps": (dict(STEPS=0), "STEPS must be at least 1"),
    "seed": (dict(SEED=-1), "SEED must be at least 0"),
    "small pictures": (
        dict(DATA="digits", NETWORK="MaxViT"),
        r"image size \(8, 8\) does not fit: both sides must be multiples of 32",
    ),
    "page": (dict(PAGE="capstone.pdf"), "a page is a file that ends in .html, got 'capstone.pdf'"),
}


@pytest.mark.parametrize(("choices", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_choice_gets_a_sentence(choices: dict, words: str, run: Callable) -> None:
    with pytest.raises(ValueError, match=words):
        run(**choices)
    assert not list(Path().iterdir())


def test_a_new_row_of_the_catalogue_is_on_the_menu(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    add_toy(monkeypatch)
    made = run(NETWORK="Toy", OBJECTIVE="supervised")
    assert type(made["trained"]) is Toy and made["table"].marked == "Toy, supervised"


def test_a_pyramid_has_no_patches_to_hide(run: Callable) -> None:
    with pytest.raises(TypeError, match="MPP hides single patches"):
        run(NETWORK="MaxViT", OBJECTIVE="MPP")


def test_a_page_goes_into_a_folder_that_is_there(run: Callable) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder 'results' to write mine.html into"):
        run(PAGE="results/mine.html")
