"""The stored table of lesson 11: its recipes run, and it holds what the lesson claims to show."""

from dataclasses import replace

import es_vit
import pytest
from es_vit import SEEDS, TABLE, Unlabelled
from torch import nn

from vit_course.lab import results
from vit_course.lab.data import ImageSet
from vit_course.max_vit import MaxViT


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred scenes to learn from and to judge by."""
    image_sets = es_vit.image_sets

    def short(data: str) -> tuple[ImageSet, ...]:
        return tuple(images[:200] for images in image_sets(data))

    monkeypatch.setattr(es_vit, "image_sets", short)


@pytest.mark.parametrize("task", TABLE.several, ids=lambda task: task.name)
def test_every_recipe_runs(task: Unlabelled) -> None:
    numbers = replace(task, steps=min(task.steps, 1), batch=4).run(seed=0)
    assert all(0 <= numbers[key] <= 1 for key in ("accuracy", "linear", "place", "object"))
    assert ("region_kl" in numbers) == (task.method == "EsViT" and task.steps > 0)
    assert (numbers["core_s"] > 0) == (task.steps > 0)


def test_the_pyramid_s_statistics_follow_a_short_run() -> None:
    model = es_vit.backbone_of("MaxViT", 0.1)
    assert isinstance(model, MaxViT)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and all(layer.momentum == 0.1 for layer in norms)


def test_all_rows_take_as_many_steps_on_the_same_views() -> None:
    trained = [task for task in TABLE.several if task.steps]
    assert len({replace(task, method="DINO", backbone="MaxViT") for task in trained}) == 1


def test_the_stored_table_is_complete() -> None:
    rows = results.load("es_vit")["rows"]
    assert sorted((row["name"], row["seed"]) for row in rows) == sorted(
        (task.name, seed) for task in TABLE.several for seed in SEEDS
    )
