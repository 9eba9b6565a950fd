"""A step of several micro-batches is the step of one large batch."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.experiments import BATCH, EXPERIMENTS, Experiment, difference
from support.training import BATCHES, CentredLoss, Stop, run, same, small_vit, stop_at
from torch import Tensor, nn

from vit_course import training
from vit_course.training import Run, fit

STEPS = 6
# Sinkhorn's sums are over what the teacher sees at once: micro-batches have targets of their own.
OF_ONE_BATCH = ["DINO", "EsViT", "MPP", "supervised"]


def in_parts(batches: Callable, parts: int) -> Callable:
    """A function that hands out the batches of another one in so many equal parts."""
    waiting: list[Any] = []

    def part(batch: Any, rows: slice) -> Any:
        if isinstance(batch, dict):
            return {name: tensor[rows] for name, tensor in batch.items()}
        return batch[rows] if isinstance(batch, Tensor) else [tensor[rows] for tensor in batch]

    def draw(generator: torch.Generator) -> Any:
        if not waiting:
            batch, rows = batches(generator), BATCH // parts
            waiting.extend(part(batch, slice(i * rows, (i + 1) * rows)) for i in range(parts))
        return waiting.pop(0)

    return draw


def accumulated(experiment: Experiment, parts: int, run: Callable = fit) -> dict[str, Any]:
    experiment.batches = in_parts(experiment.batches, parts)
    return experiment.train(STEPS, run, accumulate=parts)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", OF_ONE_BATCH)
def test_parts_are_the_whole(name: str, parts: int) -> None:
    """Losses, numbers, weights, teacher and centres."""
    whole = EXPERIMENTS[name]().train(STEPS)
    assert difference(accumulated(EXPERIMENTS[name](), parts), whole) < 1e-12
    assert len(whole["history"]["loss"]) == STEPS


def changed(old: str, new: str) -> Callable:
    """`fit` of a course whose lesson says something else in one place."""
    source = Path(training.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, old
    sys.modules["changed_training"] = module = ModuleType("changed_training")
    exec(compile(source.replace(old, new), "changed_training.py", "exec"), module.__dict__)
    return module.fit


MISTAKES = {
    "gradients are summed": ("backward(value / len(batches))", "backward(value)"),
    "the last part alone": (
        "value, of_batch = _loss_and_numbers(result)",
        "value, of_batch = _loss_and_numbers(result); run.optimizer.zero_grad()",
    ),
    "numbers of the last part": ("fmean(of_name)", "of_name[-1]"),
    "the centre moves with each part": ("if len(batches) > 1 or processes", "if processes"),
    "the centre moves by the sum": ("(processes.mean(together) / micro_batches)", "processes.mean(together)"),
    "the teacher moves with each part": (
        "numbers = _accumulate(run, call, drawn, processes)",
        "numbers = _accumulate(run, call, drawn, processes)\n"
        "                _notify(callbacks * (accumulate - 1) if step else [], 'after_step', run)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: str) -> None:
    whole = EXPERIMENTS["DINO"]().train(STEPS)
    right, wrong = (changed(*texts) for texts in (("fmean(of_name)", "fmean( of_name)"), MISTAKES[mistake]))
    assert difference(accumulated(EXPERIMENTS["DINO"](), 2, right), whole) < 1e-12
    assert difference(accumulated(EXPERIMENTS["DINO"](), 2, wrong), whole) > 1e-6


def test_steps_and_callbacks_count_optimiser_steps() -> None:
    events, drawn = [], []

    class Recorder:
        def before_step(self, run: Run) -> None:
            events.append(("before", run.step, len(drawn)))

        def after_step(self, run: Run) -> None:
            events.append(("after", run.step, len(drawn)))

    def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn.append(generator)
        return BATCHES["function"]()(generator)

    history = run(small_vit(), batches, steps=2, accumulate=3, callbacks=[Recorder()])
    assert events == [("before", 0, 3), ("after", 0, 3), ("before", 1, 6), ("after", 1, 6)]
    assert {name: len(row) for name, row in history.items()} == {"loss": 2, "lr": 2}


def test_what_a_loss_holds_still_stays_to_the_bit() -> None:
    """A third of three equal numbers is not always the number; a mask may be -inf; a counter counts on."""

    class Busy(CentredLoss):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("temperature", torch.tensor(0.07))
            self.register_buffer("mask", torch.full((3,), -torch.inf))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
            self.calls += 1
            return super().forward(model, batch)

    loss = Busy()
    run(small_vit(), loss=loss, accumulate=3, steps=5)
    assert torch.equal(loss.temperature, torch.tensor(0.07)) and loss.calls == 15
    assert torch.equal(loss.mask, torch.full((3,), -torch.inf))
    assert loss.center.isfinite().all() and loss.center.norm() > 0


@pytest.mark.parametrize("stop", [0, 7])
@pytest.mark.parametrize("kind", BATCHES)
def test_resumed_training_is_the_same(kind: str, stop: int, tmp_path: Path) -> None:
    straight, straight_loss, path = small_vit(), CentredLoss(), tmp_path / "run.pt"
    history = run(straight, BATCHES[kind](), straight_loss, accumulate=3)
    settings = {"accumulate": 3, "checkpoint": path, "checkpoint_every": 1}
    with pytest.raises(Stop):
        run(small_vit(), BATCHES[kind](), CentredLoss(), after_step=stop_at(stop + 1), **settings)
    resumed, resumed_loss = small_vit(seed=9), CentredLoss()
    torch.manual_seed(99)
    assert run(resumed, BATCHES[kind](), resumed_loss, resume=True, **settings) == history
    assert same(straight, resumed) and same(straight_loss, resumed_loss)
    with pytest.raises(ValueError, match="with accumulate=3; this one has accumulate=1"):
        run(small_vit(), BATCHES[kind](), CentredLoss(), checkpoint=path, resume=True)


@pytest.mark.parametrize(("accumulate", "error"), [(0, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_a_bad_number_is_named(accumulate: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"accumulate.*{accumulate}"):
        run(small_vit(), accumulate=accumulate)
