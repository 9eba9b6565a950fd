"""What lesson 03 has beside its module: a ViT of plain functions, which its check stands on, and figures."""

import pytest
import timm
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from vit_course.lab import pictures
from vit_course.lab.checks.vit import my_vit
from vit_course.lab.parity import SAME, randomise, relative_error


@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["large", "faint"])
def test_the_solution_of_my_vit_is_timms_vit(input_scale: float) -> None:
    sizes = {
        "img_size": (16, 24),
        "patch_size": 8,
        "num_classes": 5,
        "embed_dim": 128,
        "depth": 2,
        "num_heads": 2,
    }
    theirs = randomise(timm.models.VisionTransformer(**sizes), input_scale=input_scale)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(my_vit(images, theirs.state_dict()), theirs(images)) < SAME


def drawn(figure: Figure) -> int:
    """How many panels a figure has, after it was drawn."""
    figure.canvas.draw()
    pyplot.close(figure)
    return len(figure.axes)


def test_figures_are_drawn() -> None:
    image, weights = torch.rand(3, 16, 24), torch.rand(2, 3)
    assert drawn(pictures.vit.pretraining()) == 1
    assert drawn(pictures.vit.sum_of_tables({"a": torch.rand(2, 2), "b": torch.rand(2, 2)}, ["x", "y"])) == 2
    assert drawn(pictures.vit.photograph(image, {"one": weights, "two": weights, "three": weights})) == 4
    masks = torch.zeros(2, 16, 24, dtype=torch.bool)
    masks[:, 4:8, 4:8] = True
    assert (
        drawn(pictures.vit.attention_on_scenes(torch.stack([image] * 2), masks, {"row": torch.rand(2, 2, 3)}))
        == 4
    )
    values = {"difference": [0.5, 0.0], "spread": [1.0, 2.0]}
    assert drawn(pictures.vit.through_depth({"ours": values, "other": values})) == 2


def test_published_accuracies_rise_with_the_pictures() -> None:
    sets = list(pictures.vit.PRETRAINING_SETS.values())
    assert sets == sorted(sets)
    for name, accuracies in pictures.vit.PRETRAINED.items():
        known = [accuracy for accuracy in accuracies if accuracy == accuracy]
        assert known == sorted(known) and len(accuracies) == len(sets), name
