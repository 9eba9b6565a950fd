"""What several processes do together in the tests: each trains the experiments and more, and writes what it
saw to a file.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from support.experiments import EXPERIMENTS
from support.training import (
    LABELS,
    PIXELS,
    CentredLoss,
    Stop,
    cross_entropy,
    drawn,
    run,
    small_vit,
    stop_at,
)
from vit_course import dino, training
from vit_course.training import JSONLog, Run

STEPS = 10


def launch(count: int, folder: Path, tasks: list[str]) -> list[dict[str, Any]]:
    """Start so many processes that meet in a folder, and return what each did, by the names of the tasks."""
    multiprocessing.spawn(work, (count, str(folder), tasks), nprocs=count)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(count)]


def work(index: int, count: int, folder: str, tasks: list[str]) -> None:
    """What one of the processes does."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    of_all = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(it) for name, it in ({"RANK": index, "LOCAL_RANK": index} | of_all).items()}
    meeting = (Path(folder) / "meeting").resolve().as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=index, world_size=count)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count and accelerator.process_index == index
    did = {task: TASKS[task](accelerator, Path(folder)) for task in tasks}
    torch.save(did, Path(folder) / f"{index}.pt")
    distributed.destroy_process_group()


def train(name: str, **changes: Any) -> Callable[[Any, Path], dict[str, Any]]:
    def task(accelerator: Any, folder: Path) -> dict[str, Any]:
        return EXPERIMENTS[name]().train(STEPS, accelerator=accelerator, **changes)

    return task


def apart(name: str) -> Callable[[Any, Path], dict[str, Any]]:
    """A training in which each process keeps centre, sums and numbers for itself; gradients are averaged."""

    def task(accelerator: Any, folder: Path) -> dict[str, Any]:
        with (
            patch.object(dino, "_all_reduce", lambda values, operation: values),
            patch.object(training._Processes, "mean", lambda self, own: own),
        ):
            return EXPERIMENTS[name]().train(STEPS, accelerator=accelerator)

    return task


def parts(accelerator: Any, folder: Path) -> dict[str, list]:
    """The rows that this process is given: of a function, a list and two loaders, over two passes."""
    rows = torch.arange(24)
    seen: dict[str, list] = {}

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        seen[name].append(batch[0].tolist())
        return model(batch[0][:, None].float()).square().mean()

    loader = DataLoader(TensorDataset(rows), batch_size=3, shuffle=True)
    weighted = DataLoader(
        TensorDataset(rows), batch_size=3, sampler=WeightedRandomSampler([1.0] * 24, 24, replacement=False)
    )
    batches: dict[str, Any] = {
        "function": lambda generator: [torch.randperm(24, generator=generator)],
        "list": [[rows], [rows.flip(0)]],
        "loader": loader,
        "loader again": loader,
        "weighted": weighted,
    }
    for name, given in batches.items():
        seen[name] = []
        run(nn.Linear(1, 1), given, loss, steps=8, accelerator=accelerator)
    assert loader.sampler.generator is None, "the loader was not given back as it was"
    return seen


class NoisyPixels(TensorDataset):
    """Noise from the global random state."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, label = super().__getitem__(index)
        return pixels + 0.1 * torch.randn(pixels.shape), label


RESUMED: dict[str, Callable] = {
    "function": lambda: drawn,
    "loader": lambda: DataLoader(NoisyPixels(PIXELS, LABELS), batch_size=4, shuffle=True),
}


def resumed(kind: str) -> Callable[[Any, Path], dict[str, Any]]:
    """A training with dropout, straight through; stopped by an error; and stopped by the button in the last
    process alone. The file of another run of one process lies beside them.
    """

    def task(accelerator: Any, folder: Path) -> dict[str, Any]:
        is_last = accelerator.process_index == accelerator.num_processes - 1

        def press(step: int) -> None:
            if step == 5 and is_last:
                signal.raise_signal(signal.SIGINT)

        def state(**changes: Any) -> dict[str, Any]:
            model, loss = small_vit(seed=changes.pop("seed", 0)), CentredLoss()
            stopped = ""
            try:
                history = run(
                    model, RESUMED[kind](), loss, accelerator=accelerator, accumulate=2, steps=9, **changes
                )
            except (Stop, KeyboardInterrupt) as stop:
                history, stopped = {}, f"{type(stop).__name__}: {stop}"
            random = torch.rand(3)
            return {
                "state": model.state_dict() | loss.state_dict(),
                "history": history,
                "stopped": stopped,
                "random": random,
            }

        torch.manual_seed(5)
        paths = [folder / f"{kind} {way}.pt" for way in ("error", "button")]
        return {
            "straight": state(),
            "error": state(checkpoint=paths[0], checkpoint_every=1, after_step=stop_at(4)),
            "after error": state(checkpoint=paths[0], resume=True, seed=9),
            "button": state(checkpoint=paths[1], checkpoint_every=100, after_step=press),
            "after button": state(checkpoint=paths[1], resume=True, seed=9),
        }

    return task


def files(accelerator: Any, folder: Path) -> dict[str, Any]:
    """Who writes: the log, the checkpoint, and the sentence where it cannot be written."""
    writers = []

    class Who:
        def on_start(self, run: Run) -> None:
            writers.append(run.is_main)

    def log_and_fill(step: int) -> None:
        if step == 2 and accelerator.is_main_process:
            (folder / "full.pt.part").symlink_to("/dev/full")

    settings = {"steps": 6, "accelerator": accelerator}
    run(small_vit(), callbacks=[JSONLog(folder / "log.jsonl"), Who()], **settings)
    sentences = []
    for path, changes in (
        (folder / "log.jsonl" / "run.pt", {}),
        (folder / "full.pt", {"checkpoint_every": 1, "after_step": log_and_fill}),
    ):
        try:
            run(small_vit(), checkpoint=path, **changes, **settings)
        except (ValueError, OSError) as error:
            sentences.append(f"{type(error).__name__}: {error}")
    return {"writers": writers, "sentences": sentences}


def refused(accelerator: Any, folder: Path) -> list[str]:
    """Batches that cannot be shared out, and a loss that is not finite in one process."""
    sentences = []

    def spoilt(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model, batch) * (torch.nan if accelerator.process_index else 1.0)

    for batches, loss in (([(PIXELS[:7], LABELS[:7])], cross_entropy), (drawn, spoilt)):
        model = small_vit()
        try:
            run(model, batches, loss, accelerator=accelerator)
        except ValueError as error:
            sentences.append(str(error))
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    return sentences


TASKS: dict[str, Callable[[Any, Path], Any]] = {
    **{name: train(name) for name in EXPERIMENTS},
    "DINO in parts": train("DINO", accumulate=2),
    "DINO apart": apart("DINO"),
    "DINO, Sinkhorn apart": apart("DINO, Sinkhorn"),
    "parts": parts,
    "function resumed": resumed("function"),
    "loader resumed": resumed("loader"),
    "files": files,
    "refused": refused,
}
