"""The stored table of lesson 07: its recipes run, each change changes the network, and no row is missing."""

from dataclasses import replace

import max_vit
import pytest
import torch
from max_vit import CHANGES, TABLE, Run
from tables import recipe

from vit_course.lab import results
from vit_course.lab.data import shapes

RUNS = [*TABLE.several, *TABLE.single]


@pytest.fixture
def few_scenes(monkeypatch):
    """Scenes that are soon validated on."""
    scenes = shapes("easy", "train", count=96)
    monkeypatch.setattr(max_vit, "scenes", lambda: (scenes[:64], scenes[64:]))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_recipe_runs(run: Run, few_scenes):
    numbers = replace(run, steps=1).run(seed=0)
    assert 0 <= numbers["accuracy"] <= 1 and numbers["parameters"] > 50_000


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_network(change: str):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for name in (None, change):
        torch.manual_seed(0)
        logits.append(Run("", name).build()(images))
    assert not torch.allclose(*logits, atol=1e-4)


def test_the_stored_table_is_complete_and_of_today_s_recipes():
    rows = results.load("max_vit")["rows"]
    wanted = [(recipe(task), seed) for task, seed in TABLE.jobs((0, 1, 2))]
    stored = [(row["recipe"], row["seed"]) for row in rows]
    assert len(stored) == len(wanted) and all(row in stored for row in wanted)
