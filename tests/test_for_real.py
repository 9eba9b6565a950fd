"""What lesson 14 stands on: a folder to practise on, a baseline, and commands that the program knows."""

import re
import shlex

import nbformat
import pytest
import torch
from layout import ROOT
from PIL import Image

from vit_course.cli import Evaluate, Explore, Export, parse
from vit_course.lab import results
from vit_course.lab.colours import colour_histogram
from vit_course.lab.data import ImageFolderStream, normalise, photos, save_photos
from vit_course.lab.pretrain import Pretraining

LESSON = ROOT / "notebooks" / "14_for_real.ipynb"


def test_photographs_are_saved_in_class_folders_as_they_are(tmp_path):
    folder = save_photos(tmp_path / "a" / "b", "test", 20, size=32, seed=3)
    crops = photos("test", 20, size=32, seed=3)
    files = sorted(folder.rglob("*.jpg"), key=lambda file: file.name)
    assert [file.parent.name for file in files] == [crops.classes[label] for label in crops.labels]
    for file, image in zip(files, crops.images, strict=True):
        with Image.open(file) as picture:
            assert picture.size == (32, 32)
        stored = torch.frombuffer(bytearray(Image.open(file).convert("RGB").tobytes()), dtype=torch.uint8)
        difference = stored.view(32, 32, 3).permute(2, 0, 1) / 255 - image
        assert difference.abs().mean() < 0.03
    assert len(ImageFolderStream(folder)) == 20


def test_a_histogram_counts_colours_wherever_they_are():
    red, blue = torch.tensor([0.99, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.3])
    image = torch.zeros(3, 2, 2)
    image[:, 0, 0], image[:, 0, 1], image[:, 1, 0], image[:, 1, 1] = red, blue, blue, blue
    batch = torch.stack([image, image.flip(-1)])
    histogram = colour_histogram(normalise(batch))
    assert histogram.shape == (2, 64)
    assert histogram[0].square().nonzero().flatten().tolist() == [1, 48]
    assert histogram[0, [48, 1]].square().tolist() == pytest.approx([0.25, 0.75])
    assert torch.equal(*histogram)


def test_a_histogram_refuses_other_images():
    with pytest.raises(ValueError, match="channels"):
        colour_histogram(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="levels"):
        colour_histogram(torch.zeros(2, 3, 4, 4), levels=0)


def commands() -> list[str]:
    """The command lines that the lesson shows, each without what starts it."""
    cells = nbformat.read(LESSON, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"(?:-m vit_course|vit-course) ((?:pretrain|evaluate|explore|export) [^`\n]+)", text)


def test_the_commands_of_the_lesson_are_known():
    kinds = {type(parse(shlex.split(command))) for command in commands()}
    assert kinds == {Pretraining, Evaluate, Explore, Export}


def test_the_stored_table_has_every_row_for_every_seed():
    import for_real

    rows = results.load("for_real")["rows"]
    found = {(row["name"], row["seed"]) for row in rows}
    assert found == {(task.name, seed) for task, seed in for_real.TABLE.jobs(for_real.SEEDS)}
