"""kill -9 at random moments, also while a checkpoint is written: no file is unreadable, nothing is lost."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.killed_run import STEPS

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes")
PROGRAM = Path(__file__).parent / "support" / "killed_run.py"
SECONDS_OF_A_STEP = 0.06


def start(folder: Path, processes: int) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(folder), str(processes)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def kill_after(training: subprocess.Popen, steps: int, seconds: float) -> bool:
    """Kill it so long after it did so many steps of its own; whether it was still running."""
    lines = []
    for line in training.stdout:
        lines.append(line)
        if sum(line.startswith("step") for line in lines) == steps:
            time.sleep(seconds)
            break
    is_running = training.poll() is None
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    training.stdout.close()
    assert sum(line.startswith("step") for line in lines) == steps, lines
    return is_running


def finish(training: subprocess.Popen) -> None:
    output, _ = training.communicate(timeout=300)
    assert training.returncode == 0, output


def survive(folder: Path, processes: int, kills: int, seed: int) -> int:
    """Kill a run so often and let it end each time a little later; how many kills hit a half-written file."""
    draws, halves, done = random.Random(seed), 0, 0
    straight, killed = folder / "straight", folder / "killed"
    for kill in range(kills):
        steps = draws.randint(1, (STEPS - 10) // kills)
        assert kill_after(start(killed, processes), steps, draws.uniform(0, SECONDS_OF_A_STEP))
        halves += (killed / "run.pt.part").exists()
        saved = (
            torch.load(killed / "run.pt", weights_only=True)["step"] if (killed / "run.pt").exists() else 0
        )
        assert done + steps - 2 <= saved, f"kill {kill} lost more than the step that ran"
        done = saved
    finish(start(killed, processes))
    finish(start(straight, processes))
    one, other = (torch.load(path / "run.pt", weights_only=True) for path in (straight, killed))
    for part in ("model", "loss"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())
    assert one["history"] == other["history"] and one["step"] == STEPS
    lines = (killed / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    assert sorted(file.name for file in killed.iterdir()) == ["log.jsonl", "run.pt"]
    return halves


def test_two_kills(tmp_path: Path) -> None:
    survive(tmp_path, processes=1, kills=2, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ten_kills(processes: int, tmp_path: Path) -> None:
    if processes > 1 and importlib.util.find_spec("accelerate") is None:
        pytest.skip("several processes need accelerate")
    halves = survive(tmp_path, processes, kills=10, seed=processes)
    assert halves, "no kill hit the writing of a checkpoint"
