"""The benchmark scripts: what they store can be read, taken up again and trusted. Nothing here is timed."""

import json
from dataclasses import replace
from pathlib import Path

import bench
import leaderboard
import loading
import pytest
import results
import tables
import torch

from vit_course.lab import results as stored
from vit_course.lab.data import shapes


@pytest.fixture
def two_rows() -> tables.Table:
    short = leaderboard.Training(
        "digits", "ViT", steps=2, crop=0.7, rotation=15.0, flip=False, precision="highest"
    )
    return tables.Table(
        "Short", several=(short,), single=(leaderboard.Baseline("digits", leaderboard.PIXELS),)
    )


def test_a_stopped_run_goes_on_where_it_was(two_rows, tmp_path, monkeypatch):
    path = tmp_path / "short.json"
    tables.make(two_rows, path, seeds=[0])
    first = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["name"], row["seed"]) for row in first] == [(leaderboard.PIXELS, 0), ("ViT", 0)]

    computed = []
    train = leaderboard.Training.run
    monkeypatch.setattr(
        leaderboard.Training, "run", lambda self, seed: computed.append(seed) or train(self, seed)
    )
    tables.make(two_rows, path, seeds=[0, 1])
    assert computed == [1]  # seed 0 and the baseline were stored
    assert json.loads(path.read_text(encoding="utf-8"))["rows"][:2] == first
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_a_row_of_another_recipe_is_computed_again(two_rows, tmp_path):
    path = tmp_path / "short.json"
    tables.make(two_rows, path, seeds=[0])
    longer = tables.Table("Short", several=(replace(two_rows.several[0], steps=3),))
    tables.make(longer, path, seeds=[0])
    assert [row["recipe"]["steps"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]] == [3]


@pytest.fixture
def few_scenes(monkeypatch):
    scenes = shapes("easy", "train", 300)
    monkeypatch.setattr(results, "image_sets", lambda data: (scenes[:200], scenes[200:]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DINO", "EsViT"])
def test_a_run_without_labels_gives_a_whole_row(few_scenes, method):
    task = results.SelfSupervised("easy", 2, "short", method)
    one, again, other = (task.run(seed) for seed in (0, 0, 1))
    assert one.keys() >= {"accuracy", "linear", "jaccard", "random_accuracy", "random_jaccard", "entropy"}
    assert one.pop("core_s") > 0 and again.pop("core_s") > 0
    assert one == again and one["loss"] != other["loss"]


@pytest.mark.parametrize("name", results.TABLES)
def test_stored_tables_belong_to_today_s_recipes(name):
    table = stored.load(name)
    jobs = results.TABLES[name].jobs(results.TABLES[name].seeds)
    wanted = [(tables.recipe(task), seed) for task, seed in jobs]
    rows = [(row["recipe"], row["seed"]) for row in table["rows"]]
    missing = [row for row in wanted if row not in rows]
    assert not missing, f"run `make results`: {name} lacks {len(missing)} rows"
    assert all(row in wanted for row in rows), f"{name} holds rows of another recipe"
    assert table["title"] and table["date"] and table["machine"]["cpu"]
    trained = [row for row in table["rows"] if row["recipe"].get("task") != "cost"]
    assert all(0 <= row["accuracy"] <= 1 and row["core_s"] > 0 for row in trained)
    assert str(Path.home()) not in json.dumps(table)


def test_load_names_the_tables_there_are():
    with pytest.raises(ValueError, match="no table 'nonsense'; there are "):
        stored.load("nonsense")


@pytest.mark.parametrize("do", bench.WORK.values(), ids=bench.WORK)
@pytest.mark.parametrize("precision", bench.PRECISIONS)
def test_a_switch_holds_for_its_row_only(precision, do):
    family = bench.Family({bench.OURS: leaderboard.MODELS[leaderboard.VIT]}, batch=2, image_size=32)
    with bench.PRECISIONS[precision]():
        do(family.build(bench.OURS), family.images())
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_autocast_enabled("cpu")


def test_a_dino_step_is_timed_whole():
    """The views repeat, so that its error can be measured; in training the teacher moves."""
    family = replace(bench.FAMILIES["DINO step"], batch=2)
    step, images = family.build(bench.OURS), family.images()
    assert bench.forward(step, images) == bench.forward(step, images)
    before = [parameter.clone() for parameter in step.parameters()]
    bench.forward_backward(step, images)
    changed = [not torch.equal(a, b) for a, b in zip(before, step.parameters(), strict=True)]
    trained = [parameter.requires_grad for parameter in step.parameters()]
    assert all(parameter.grad is not None for parameter in step.parameters() if parameter.requires_grad)
    assert any(changed) and not any(a and b for a, b in zip(changed, trained, strict=True))


def test_the_speed_table_is_whole(monkeypatch):
    monkeypatch.setattr(bench, "is_installed", lambda library: True)
    monkeypatch.setattr(bench, "version", lambda package: "1.0")  # vit-pytorch is there for `make bench` only
    numbers = dict.fromkeys(bench.WORK, 10.0)
    rows = [
        bench.Row("ViT-Ti/16", library, "float32", numbers, numbers, error=0.0)
        for library in bench.FAMILIES["ViT-Ti/16"].libraries
    ]
    lines = bench.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert all(f"{name} 1.0" in bench.report(rows, rounds=1, threads=1) for name in bench.PACKAGES)


def test_both_ways_of_loading_photographs_give_the_same_views(monkeypatch, tmp_path):
    loading.write_photographs(tmp_path, 80, 60)
    views = [[tuple(view.shape) for view in read(tmp_path)(0)] for read in (loading.ours, loading.theirs)]
    assert views[0] == views[1] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 8
    monkeypatch.setattr(loading, "SIZES", {"80 × 60": (80, 60)})
    (row,) = loading.measure(rounds=1)
    assert row.ours_is_faster == pytest.approx(row.ours / row.theirs)
    assert f"| 80 × 60 | {row.ours:.0f} | {row.theirs:.0f} |" in loading.report([row])


def test_a_library_that_is_not_there_gets_a_row_that_says_so(monkeypatch):
    def is_not_built():
        raise AssertionError("what is not installed cannot be built")

    both = {bench.OURS: leaderboard.MODELS[leaderboard.VIT], "no-such-library": is_not_built}
    monkeypatch.setitem(bench.FAMILIES, "small", bench.Family(both, batch=2, image_size=32))
    rows = bench.measure("small", rounds=1, threads=1, memory=False)
    assert [row.library for row in rows] == [bench.OURS] * len(bench.PRECISIONS) + ["no-such-library"]
    words = [cell.strip() for cell in bench.table(rows).splitlines()[-1].strip("|").split("|")]
    assert words == ["small", "no-such-library", "not installed", *["–"] * 7]
    monkeypatch.setattr(bench, "PACKAGES", ("torch", "no-such-library"))
    assert "no-such-library not installed" in bench.report(rows, rounds=1, threads=1)
