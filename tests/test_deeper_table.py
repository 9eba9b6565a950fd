"""The stored table of lesson a1: its recipes run, and no row is missing."""

from dataclasses import replace

import deeper
import pytest
import torch
from deeper import TABLE, Run
from tables import recipe

from vit_course.atlas.deeper import DeepViT, ParallelViT
from vit_course.attention import MultiHeadAttention
from vit_course.lab import results


@pytest.mark.parametrize("run", TABLE.several, ids=lambda run: run.name)
def test_every_network_has_the_same_layers(run: Run):
    model = run.build()
    assert type(model) is (DeepViT if run.re_attention else ParallelViT)
    assert len(model.blocks) == run.depth
    assert sum(isinstance(part, MultiHeadAttention) for part in model.modules()) == 24


@pytest.fixture
def precision_as_it_was():
    """A run sets the precision of products for its own process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_recipe_runs(monkeypatch, precision_as_it_was):
    learning, testing = deeper.pictures()
    monkeypatch.setattr(deeper, "pictures", lambda: (learning[:64], testing[:64]))
    numbers = replace(TABLE.several[-1], steps=1).run(seed=0)
    assert 0 <= numbers["accuracy"] <= 1 and numbers["parameters"] > 400_000


def test_the_stored_table_is_complete_and_of_today_s_recipes():
    rows = results.load("deeper")["rows"]
    wanted = [(recipe(task), seed) for task, seed in TABLE.jobs(TABLE.seeds)]
    stored = [(row["recipe"], row["seed"]) for row in rows]
    assert len(stored) == len(wanted) and all(row in stored for row in wanted)
