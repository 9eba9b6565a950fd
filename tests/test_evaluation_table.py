"""The stored table of lesson 09: its protocols run, and it holds what the lesson claims to show."""

from dataclasses import replace

import evaluation
import pytest
from evaluation import SEEDS, TABLE, Protocol

from vit_course.lab import results, zoo


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """Tens of scenes, and training of one step."""
    train, test = evaluation.labelled(0)[:60], evaluation.unseen()[:40]
    monkeypatch.setattr(evaluation, "labelled", lambda seed: train)
    monkeypatch.setattr(evaluation, "unseen", lambda: test)
    monkeypatch.setattr(evaluation, "features", evaluation.features.__wrapped__)


@pytest.mark.parametrize("protocol", TABLE.several, ids=lambda protocol: protocol.name)
def test_every_protocol_runs(protocol: Protocol):
    numbers = replace(protocol, labels=60, steps=min(protocol.steps, 1)).run(seed=0)
    assert 0 <= numbers["accuracy"] <= 1 and numbers["core_s"] >= 0


@pytest.mark.parametrize(("how", "moves"), [("head", False), ("all", True)])
def test_the_head_alone_leaves_the_network_as_it_was(how: str, moves: bool, monkeypatch):
    networks = []
    trained_on = evaluation.trained_on

    def watched(network, *arguments):
        networks.append(network)
        return trained_on(network, *arguments)

    monkeypatch.setattr(evaluation, "trained_on", watched)
    Protocol("tried", 60, how, steps=2, lr=1e-3).run(seed=0)
    before, after = (model.blocks[0].mlp.fc1.weight for model in (zoo.load(evaluation.NETWORK), networks[0]))
    assert (before - after).abs().max().item() > 0 if moves else before.equal(after)
    assert networks[0].head.weight.shape == (10, 64)


def test_the_stored_table_is_complete():
    rows = results.load("evaluation")["rows"]
    assert {(row["name"], row["seed"]) for row in rows} == {
        (protocol.name, seed) for protocol in TABLE.several for seed in SEEDS
    }
