"""The stored table of lesson 12: its recipes run, start where they say, and it is whole."""

from dataclasses import replace

import masked_patches
import pytest
import torch
from masked_patches import LABELS, SEEDS, TABLE, FineTuning, Neighbour

from vit_course.lab import results
from vit_course.lab.data import digits


def test_few_digits_are_the_first_of_more_and_another_seed_draws_others():
    few, more, other = (masked_patches.few_digits(*of) for of in ((30, 3), (60, 3), (30, 4)))
    assert torch.equal(few.images, more.images[:30]) and torch.equal(few.labels, more.labels[:30])
    assert not torch.equal(few.images, other.images)


def test_fine_tuning_starts_from_the_pretrained_network(monkeypatch):
    """With the same labels; and what one row does to the network, the next does not find."""
    started = []
    fit = masked_patches.fit

    def recording(model, *arguments, **options):
        started.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return fit(model, *arguments, **options)

    monkeypatch.setattr(masked_patches, "fit", recording)
    masked_patches.pretrained.cache_clear()
    scratch, after = (
        FineTuning("from scratch", 30, steps=1),
        FineTuning("after MPP", 30, pretraining=2, steps=1),
    )
    rows = [task.run(0) for task in (scratch, after, after)]
    masked_patches.pretrained.cache_clear()
    assert "pretraining_core_s" not in rows[0] and rows[1]["pretraining_core_s"] > 0
    of_scratch, of_pretraining, first, second = started  # pre-trained once, fine-tuned twice
    assert all(torch.equal(of_scratch[name], of_pretraining[f"backbone.{name}"]) for name in of_scratch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], of_scratch["blocks.0.attn.qkv.weight"])
    assert rows[1]["accuracy"] == rows[2]["accuracy"] and rows[0]["frozen"] != rows[1]["frozen"]


def test_one_step_changes_the_network():
    row = replace(TABLE.several[0], steps=1).run(seed=0)
    assert 0 <= row["accuracy"] <= 1 and row["core_s"] > 0


def test_the_nearest_neighbour_is_that_of_a_slow_search():
    few, test = masked_patches.few_digits(30, 0), digits("test")
    known, queries = (
        of.images.flatten(1) / of.images.flatten(1).norm(dim=1, keepdim=True) for of in (few, test)
    )
    right = few.labels[(queries @ known.T).argmax(dim=1)] == test.labels
    assert Neighbour(30).run(0)["accuracy"] == pytest.approx(right.float().mean().item())


def test_the_stored_table_is_complete():
    rows = results.load("masked_patches")["rows"]
    found = {(row["name"], row["recipe"]["labels"], row["seed"]) for row in rows}
    assert found == {(task.name, task.labels, seed) for task in TABLE.several for seed in SEEDS}
    assert len(rows) == len(TABLE.several) * len(SEEDS) and {labels for _, labels, _ in found} == set(LABELS)


def test_as_much_time_is_as_much_time():
    """The row from scratch took what pre-training and fine-tuning took together, within a tenth."""
    rows = results.load("masked_patches")["rows"]
    of = {
        name: [row for row in rows if (row["name"], row["recipe"]["labels"]) == (name, 60)]
        for name in ("from scratch, equal time", "after MPP")
    }
    alone = sum(row["core_s"] for row in of["from scratch, equal time"])
    together = sum(row["core_s"] + row["pretraining_core_s"] for row in of["after MPP"])
    assert alone == pytest.approx(together, rel=0.1)
