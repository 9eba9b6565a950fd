"""What runs inside a training: functions of the step, callbacks, validation, clipping and the bar."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.training import LABELS, PIXELS, STEPS, CentredLoss, Stop, run, same, small_vit, stop_at
from torch import nn

from vit_course.training import Run, Validation, evaluate


def test_callbacks_come_before_and_after_the_weights_move() -> None:
    model, events = small_vit(), []
    weight = model.head.weight

    def before_step(step: int) -> None:
        events.append(("before", step, weight.grad is not None, weight.detach().clone()))

    def after_step(step: int) -> None:
        events.append(("after", step, weight.grad is not None, weight.detach().clone()))

    run(model, before_step=before_step, after_step=after_step, steps=2, lr=lambda step: 0.01)
    assert [event[:3] for event in events] == [
        ("before", 0, True),
        ("after", 0, True),
        ("before", 1, True),
        ("after", 1, True),
    ]
    assert not torch.equal(events[0][3], events[1][3]) and torch.equal(events[1][3], events[2][3])


class Recorder:
    """Notes what it was called for, and at which step."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def on_start(self, run: Run) -> None:
        self.events.append(("start", run.step, run.finished))

    def before_step(self, run: Run) -> None:
        assert all(parameter.grad is not None for parameter in run.model.parameters())
        self.events.append(("before", run.step, run.finished))

    def after_step(self, run: Run) -> None:
        assert len(run.history["loss"]) == len(run.history["lr"]) == run.finished
        self.events.append(("after", run.step, run.finished))

    def on_end(self, run: Run) -> None:
        self.events.append(("end", run.step, run.finished))


def test_callbacks_are_called_at_their_moments() -> None:
    recorder, model, loss = Recorder(), small_vit(), CentredLoss()
    seen = []

    class AtTheEnd:
        def on_end(self, run: Run) -> None:
            seen.append(run)

    history = run(model, loss=loss, steps=2, callbacks=[recorder, AtTheEnd()])
    steps = [("before", 0, 0), ("after", 0, 1), ("before", 1, 1), ("after", 1, 2)]
    assert recorder.events == [("start", 0, 0), *steps, ("end", 1, 2)]
    assert (
        seen[0].model is model and seen[0].loss is loss and seen[0].steps == 2 and seen[0].history is history
    )
    assert [group["is_decayed"] for group in seen[0].optimizer.param_groups] == [True, False]


def test_on_end_comes_after_a_failed_run_too() -> None:
    recorder = Recorder()
    with pytest.raises(Stop):
        run(small_vit(), callbacks=(recorder,), after_step=stop_at(1))
    assert recorder.events[-1] == ("end", 1, 2)


def test_a_callback_may_set_the_rates() -> None:
    class Halved:
        def before_step(self, run: Run) -> None:
            for group in run.optimizer.param_groups:
                group["lr"] = np.float64(0.5 * group["lr"])

    one, other = small_vit(), small_vit()
    history = run(one, lr=lambda step: 0.01, callbacks=[Halved()], steps=3)
    assert history["lr"] == [0.005] * 3 and all(type(rate) is float for rate in history["lr"])
    run(other, lr=lambda step: 0.005, steps=3)
    assert same(one, other)


def accuracy(model: nn.Module) -> dict[str, object]:
    """Numbers of three kinds, taken the way that a careless function would."""
    assert not any(part.training for part in model.modules()) and not torch.is_grad_enabled()
    torch.rand(7)
    share = evaluate(model, [(PIXELS, LABELS)])
    return {"accuracy": share, "as_numpy": np.float64(share), "as_tensor": torch.tensor(share)}


def test_validation_is_recorded_and_leaves_no_trace() -> None:
    plain, validated = small_vit(), small_vit()
    validated.blocks[0].eval()
    plain.blocks[0].eval()
    straight = run(plain)
    history = run(validated, callbacks=[Validation(accuracy, every=5)])
    assert same(plain, validated) and not validated.blocks[0].training and validated.training
    assert history["validation_step"] == [5, 10, STEPS]
    assert len(history["validation_accuracy"]) == 3
    assert history["validation_accuracy"][-1] == evaluate(validated, [(PIXELS, LABELS)])
    assert history["validation_as_numpy"] == history["validation_accuracy"]
    assert all(type(number) is float for numbers in history.values() for number in numbers)
    assert {name: history[name] for name in straight} == straight


def test_two_validations_need_two_names() -> None:
    two = [Validation(accuracy, 5), Validation(accuracy, 13)]
    with pytest.raises(ValueError, match="two validations.*'validation'"):
        run(small_vit(), callbacks=two)
    history = run(small_vit(), callbacks=[two[0], Validation(accuracy, 13, name="late")])
    assert history["late_step"] == [STEPS] and history["validation_step"] == [5, 10, STEPS]


def test_clip_limits_the_norm_of_all_gradients_together() -> None:
    norms = []

    def note(step: int) -> None:
        norms.append(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item())

    model, unclipped = small_vit(), small_vit()
    run(model, steps=4, clip=0.5, after_step=note)
    assert norms == pytest.approx([0.5] * 4, rel=1e-4)
    run(model, steps=1, clip=1e6, after_step=note)
    assert 0.5 < norms[-1] < 1e6
    one, other = small_vit(), small_vit()
    run(one), run(other, clip=1e6)
    assert same(one, other) and not same(one, unclipped)


def test_tqdm_is_needed_for_a_bar_only() -> None:
    program = """
import sys
sys.modules["tqdm"] = None
import torch, vit_course.training
loss = lambda model, batch: model(batch).square().mean()
vit_course.training.fit(torch.nn.Linear(1, 1), [torch.ones(1, 1)], loss, 2, progress=False)
try:
    vit_course.training.fit(torch.nn.Linear(1, 1), [torch.ones(1, 1)], loss, 2)
except ImportError:
    print("trained")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert result.stdout == "trained\n", result.stderr


def test_the_bar_shows_what_is_recorded_at_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    run(small_vit(), loss=CentredLoss(), progress=True, callbacks=[Validation(accuracy, every=5)])
    shown = capsys.readouterr().err
    assert f"{STEPS}/{STEPS}" in shown and "loss=" in shown and "center=" in shown
    assert "lr=" not in shown and "validation" not in shown
