"""Every objective trains every backbone and resumes it exactly, or says in one sentence why it does not."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from support.models import CASES
from support.objectives import RECIPES, Experiment, Pair, pairs, prepare, reservation
from torch import Tensor, nn

from vit_course.lab.catalogue import FOREIGN, MODELS, OBJECTIVES
from vit_course.training import fit

PAIRS = pairs()
RESERVED = {pair: reserved for pair in PAIRS if (reserved := reservation(pair))}
REFUSED = [pair for pair, reserved in RESERVED.items() if reserved.is_refused]
# MPP hides patches, and would see them in the tokens of their neighbours.
LEAKING = [
    ("MPP", name) for name, case in CASES.items() if not case.plain_patches and ("MPP", name) not in REFUSED
]
WORKING = [pair for pair in PAIRS if pair not in REFUSED + LEAKING]
RESUMED = [(objective, name) for objective, name in WORKING if name in [*MODELS, *FOREIGN]]


def named(pair: Pair) -> str:
    return " × ".join(pair)


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def train(experiment: Experiment, steps: int, batches: object, **changes) -> dict[str, list[float]]:
    return fit(
        experiment.model, batches, experiment.loss, steps, progress=False, **experiment.schedules | changes
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.mark.parametrize("pair", WORKING, ids=named)
def test_it_trains(pair: Pair) -> None:
    """On one batch the loss falls; every weight of the student moves, the teacher gets no gradient."""
    experiment = prepare(*pair, steps=12)
    untrained = RESERVED[pair].untrained if pair in RESERVED else ""
    batch = experiment.views(images(), torch.Generator().manual_seed(0))
    before = copy.deepcopy(experiment)
    history = train(experiment, 12, lambda generator: batch)
    assert all(math.isfinite(value) for value in history["loss"])
    # The entropy of the targets is a part of the loss that is not the student's to lower.
    falling = history["kl" if "kl" in history else "loss"]
    assert min(falling[-3:]) < 0.9 * falling[0]
    for (name, parameter), old in zip(
        experiment.student.named_parameters(), before.student.parameters(), strict=True
    ):
        is_reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert is_reached != bool(re.fullmatch(untrained, name)), name
        assert not is_reached or not torch.equal(parameter, old), name
    if experiment.teacher:
        for parameter in experiment.teacher.parameters():
            assert parameter.grad is None and not parameter.requires_grad
        assert not experiment.teacher.training
        follows = pair[0] != "distillation"
        assert same(experiment.teacher, before.teacher) != follows


@pytest.mark.parametrize("pair", RESUMED, ids=named)
def test_stopped_and_resumed_is_the_same(pair: Pair, tmp_path: Path) -> None:
    """Weights, centres, optimiser, schedules and random state come back from a checkpoint of any step."""

    class Stop(Exception):
        pass

    def run(experiment: Experiment, stop: int | None = None, **changes) -> dict[str, list[float]]:
        def after_step(step: int) -> None:
            if step == stop:
                raise Stop

        pool = images(24)

        def batches(generator: torch.Generator) -> object:
            return experiment.views(pool[torch.randint(24, (6,), generator=generator)], generator)

        return train(experiment, 4, batches, after_step=after_step, checkpoint_every=1, **changes)

    straight = prepare(*pair, steps=4, dropout=0.2)
    history = run(straight)
    for stop in (1, 2, 3):
        path = tmp_path / f"{stop}.pt"
        with pytest.raises(Stop):
            run(prepare(*pair, steps=4, dropout=0.2), stop, checkpoint=path)
        resumed = prepare(*pair, steps=4, dropout=0.2, seed=7)
        torch.manual_seed(99)
        assert run(resumed, checkpoint=path, resume=True) == history
        assert same(resumed.model, straight.model)
        if isinstance(straight.loss, nn.Module):
            assert same(resumed.loss, straight.loss)


@pytest.mark.parametrize("pair", REFUSED, ids=named)
def test_it_is_refused_in_one_sentence(pair: Pair) -> None:
    with pytest.raises((TypeError, ValueError)) as refusal:
        experiment = prepare(*pair, steps=1)
        train(experiment, 1, lambda generator: experiment.views(images(), generator))
    assert str(refusal.value) == RESERVED[pair].sentence


@pytest.mark.parametrize("pair", LEAKING, ids=named)
def test_patches_that_their_neighbours_see_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="see pixels of neighbouring patches"):
        prepare(*pair, steps=1)


CROPS = [pair for pair, reserved in RESERVED.items() if "crops" in reserved.sentence]


@pytest.mark.parametrize("pair", CROPS, ids=named)
def test_crops_that_windows_do_not_fill_are_refused(pair: Pair) -> None:
    experiment = prepare(*pair, steps=1)
    unit = experiment.model.backbone.size_unit
    crops = [images()] * 2 + [images()[..., : unit // 2, : unit // 2]]
    with pytest.raises(ValueError, match=f"refuses crops of {unit // 2} × {unit // 2}.*multiples of {unit}"):
        experiment.model(crops)
    experiment.model([images()] * 3)


def test_every_objective_has_a_recipe() -> None:
    assert RECIPES.keys() == OBJECTIVES.keys()
