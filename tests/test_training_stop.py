"""The stop button ends a step, writes the checkpoint and only then stops, workers or no workers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.training import STEPS, drawn, run, same, small_vit
from torch import Tensor, nn

from vit_course.training import Run


@pytest.mark.parametrize("step", [2, STEPS - 1])
def test_ctrl_c_waits_for_the_step_and_leaves_a_checkpoint(step: int, tmp_path: Path) -> None:
    straight, path = small_vit(), tmp_path / "run.pt"
    run(straight)
    handler, model, finished = signal.getsignal(signal.SIGINT), small_vit().eval(), []

    def interrupt(now: int) -> None:
        if now == step:
            signal.raise_signal(signal.SIGINT)
        finished.append(now)

    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        run(model, checkpoint=path, checkpoint_every=100, after_step=interrupt)
    assert finished[-1] == step, "the step was cut short"
    assert signal.getsignal(signal.SIGINT) is handler and not model.training
    assert torch.load(path, weights_only=True)["step"] == step + 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    resumed = small_vit(seed=3)
    run(resumed, checkpoint=path, resume=True)
    assert same(straight, resumed)


def test_ctrl_c_without_a_checkpoint_and_twice() -> None:
    with pytest.raises(KeyboardInterrupt, match="after step 1"):
        run(small_vit(), after_step=lambda step: step == 1 and signal.raise_signal(signal.SIGINT))
    finished = []

    def impatient(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished.append(step)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(small_vit(), after_step=impatient)
    assert not finished and signal.getsignal(signal.SIGINT) is handler


def test_a_draw_cut_off_by_the_button_is_drawn_again(tmp_path: Path) -> None:
    """A worker that dies of Ctrl-C looks like an error of the batches, half-way through a draw."""
    path, straight, resumed = tmp_path / "run.pt", small_vit(), small_vit(seed=3)
    run(straight)
    draws = []

    def cut_off(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draws.append(torch.rand((), generator=generator) if len(draws) == 5 else None)
        if len(draws) == 6:
            torch.rand(3)
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")
        return drawn(generator)

    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        run(small_vit(), cut_off, checkpoint=path)
    run(resumed, checkpoint=path, resume=True)
    assert same(straight, resumed)


def test_an_error_of_the_batches_is_no_stop() -> None:
    def failing(generator: torch.Generator) -> None:
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        run(small_vit(), failing)


def test_pressed_before_the_first_step(tmp_path: Path) -> None:
    class Early:
        def on_start(self, run: Run) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="before the first step"):
        run(small_vit(), callbacks=[Early()], checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="a terminal signals a process group")
@pytest.mark.parametrize(("method", "moment"), [("spawn", "reading"), ("forkserver", "step 1")])
def test_the_button_reaches_workers_too(method: str, moment: str, tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to all processes; the checkpoint is written all the same."""
    path, program = tmp_path / "run.pt", Path(__file__).parent / "support" / "stopped_run.py"
    training = subprocess.Popen(
        [sys.executable, program, method, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    lines, pressed = [], False
    for line in training.stdout:
        lines.append(line.strip())
        if lines[-1] == moment and not pressed:
            os.killpg(training.pid, signal.SIGINT)
            pressed = True
    assert training.wait() == 0, lines
    steps = torch.load(path, weights_only=True)["step"]
    assert f"stopped after step {steps - 1}" in lines[-1] or f"stopped after step {steps - 1}" in lines[-2], (
        lines
    )

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    batches = list(torch.arange(8.0).reshape(4, 2, 1))
    torch.manual_seed(0)
    straight, resumed = nn.Linear(1, 1), nn.Linear(1, 1)
    run(straight, batches, loss, steps=200)
    run(resumed, batches, loss, steps=200, checkpoint=path, resume=True)
    assert same(straight, resumed)
