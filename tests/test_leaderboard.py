"""The leaderboard: its recipes run, its rows are of its recipes, and lessons show it in words."""

import copy
import json
from dataclasses import replace

import leaderboard as board
import pytest
import tables
import torch

from vit_course.lab import leaderboard, results
from vit_course.lab.data import shapes

STORED = results.load("leaderboard")["rows"] if "leaderboard" in results.names() else []


@pytest.fixture
def few_scenes(monkeypatch):
    scenes = shapes("easy", "train", 140)
    monkeypatch.setattr(board, "image_sets", lambda data, validation=False: (scenes[:100], scenes[100:]))
    board._trained.cache_clear()
    yield
    board._trained.cache_clear()


@pytest.fixture
def made_up(monkeypatch):
    """A table with all seeds of two models, one of which lacks a column."""
    rows = [
        {"name": name, "seed": seed, "accuracy": accuracy, "core_s": 10.0 + seed}
        | {"recipe": {"task": task, "steps": 800}}
        for task in leaderboard.TASKS
        for name in ("ViT", "XCiT")
        if (task, name) != ("digits", "ViT")
        for seed, accuracy in ((1, 0.52), (0, 0.5), (2, 0.54))
    ]
    rows.append(
        {"name": "neighbours", "seed": 0, "accuracy": 0.6, "core_s": 1.0, "recipe": {"task": "shapes"}}
    )
    costs = {"parameters": 240_000, "flops": 8_000_000, "ms": 0.2, "megabytes": 70.0}
    rows.append({"name": "XCiT", "seed": 0, **costs, "recipe": {"task": "cost"}})
    monkeypatch.setattr(leaderboard.results, "load", lambda name: {"rows": copy.deepcopy(rows)})


@pytest.mark.parametrize("name", board.MODELS)
def test_networks_have_about_as_many_parameters(name):
    model = board.MODELS[name]()
    assert 230_000 <= board.count_parameters(model) <= 250_000
    logits = model.eval()(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", board.MODELS)
def test_every_recipe_runs(few_scenes, name):
    entry = replace(board.entry("shapes", name, **board.SHAPES), steps=1)
    if entry.teacher:
        entry = replace(entry, teacher=replace(entry.teacher, steps=1))
    row = entry.run(0)
    assert 0 <= row["accuracy"] <= 1 and row["loss"] > 0 and row["parameters"] > 0
    assert ("teacher_core_s" in row) == (name == board.DEIT)


def test_all_models_have_the_same_budget():
    entries = [task for task in board.BOARD.several if task.task != "shapes, equal time"]
    for column in board.COLUMNS:
        of_column = [replace(e, model="", lr=0, teacher=None) for e in entries if e.task == column]
        assert len(set(of_column)) <= 1
    equal_time = [task for task in board.BOARD.several if task.task == "shapes, equal time"]
    assert {task.model: task.steps for task in equal_time} == board.EQUAL_TIME
    assert {task.teacher.steps for task in equal_time if task.teacher} == {board.EQUAL_TIME[board.CNN]}


def test_the_first_seed_comes_first():
    seeds = [seed for _, seed in board.BOARD.jobs((0, 1, 2))]
    assert seeds == sorted(seeds)


def test_learning_rates_are_chosen_on_other_scenes_than_the_table_is_measured_on():
    swept = [task for task in board.BOARD.single if getattr(task, "task", "") == "learning rate"]
    assert len(swept) == 18 and all(task.validation for task in swept)
    assert not any(task.validation for task in board.BOARD.several)


@pytest.mark.parametrize("model", ["XCiT", board.CNN])
def test_what_a_network_takes(model):
    numbers = replace(board.Cost(model), rounds=1).run(0)
    assert numbers["parameters"] == board.count_parameters(board.MODELS[model]())
    assert numbers["flops"] > 2e6 and numbers["ms"] > 0


@pytest.mark.skipif(not STORED, reason="the table is not made yet")
def test_stored_rows_are_of_the_recipes_of_today():
    wanted = [json.dumps(tables.recipe(task), sort_keys=True) for task, _ in board.BOARD.jobs((0, 1, 2))]
    for row in STORED:
        assert json.dumps(row["recipe"], sort_keys=True) in wanted, row["name"]


def test_rows_come_in_order_with_every_seed_and_an_interval(made_up):
    vit, xcit, neighbours = leaderboard.rows("shapes")
    assert [vit["name"], xcit["name"], neighbours["name"]] == ["ViT", "XCiT", "neighbours"]
    assert xcit["accuracy"] == [0.5, 0.52, 0.54] and xcit["mean"] == pytest.approx(0.52)
    assert xcit["mean"] - xcit["half"] < 0.5 and xcit["mean"] + xcit["half"] > 0.54
    assert neighbours["half"] is None
    assert xcit["core_s"] == 11 and xcit["steps"] == 800
    assert [row["name"] for row in leaderboard.rows("digits")] == ["XCiT"]
    assert [row["name"] for row in leaderboard.rows("shapes, equal time")][-1] == "neighbours"
    assert leaderboard.costs() == {
        "XCiT": {"parameters": 240_000, "flops": 8_000_000, "ms": 0.2, "megabytes": 70.0}
    }
    with pytest.raises(ValueError, match="no task 'photos'; there are 'shapes'"):
        leaderboard.rows("photos")


def test_the_words_say_the_numbers_and_the_marked_row_first(made_up):
    words = leaderboard.alt("XCiT")
    assert "the row of XCiT is marked" in words
    assert "Shapes (chance 10): XCiT 52.0 (50.0, 52.0, 54.0); ViT 52.0" in words
    assert "neighbours 60.0." in words and "Reach (chance 25)" in words
    assert "marked" not in leaderboard.alt()
    for use in (leaderboard.alt, leaderboard.figure):
        with pytest.raises(ValueError, match="no row 'Swin'"):
            use("Swin")


def test_the_figure_marks_the_row(made_up):
    figure = leaderboard.figure("XCiT")
    (label,) = [text for text in figure.axes[0].get_yticklabels() if text.get_fontweight() == "bold"]
    assert label.get_text() == "XCiT" and len(figure.axes) == len(leaderboard.TASKS)


def test_a_table_that_is_not_whole_is_shown_as_far_as_it_goes(monkeypatch):
    monkeypatch.setattr(leaderboard.results, "load", lambda name: {"rows": []})
    assert "Shapes (chance 10): not measured." in leaderboard.alt()
    assert leaderboard.figure() is not None


def test_reach_with_more_steps_is_no_column():
    longer = leaderboard.rows(leaderboard.LONGER)
    assert leaderboard.LONGER not in leaderboard.TASKS
    assert [(row["name"], row["steps"]) for row in longer] == [
        (name, 4000) for name in (board.VIT, "CaiT", board.CNN)
    ]
