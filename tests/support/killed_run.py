"""A training that can be killed at any moment, as a program of its own:

python killed_run.py FOLDER PROCESSES goes on from FOLDER/run.pt where it is there, writes it after every
step, and prints each step before it does. A step is short and the writing is not: most kills hit it.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.training import CentredLoss, run, small_vit  # noqa: E402
from vit_course.training import JSONLog  # noqa: E402

STEPS = 60


def train(folder: Path, accelerator: object = None) -> None:
    """The run, with dropout and a loss that has a state; without a folder nothing is written."""

    def say(step: int) -> None:
        if accelerator is None or accelerator.is_main_process:
            print("step", step, flush=True)

    model, loss = small_vit(dim=160), CentredLoss()
    run(
        model,
        loss=loss,
        steps=STEPS,
        after_step=say,
        callbacks=[JSONLog(folder / "log.jsonl")],
        checkpoint=folder / "run.pt",
        checkpoint_every=1,
        resume=True,
        accelerator=accelerator,
    )


def work(index: int, count: int, folder: str) -> None:
    """One of several processes. They meet at a file that each start makes anew."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    of_all = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(it) for name, it in ({"RANK": index, "LOCAL_RANK": index} | of_all).items()}
    meeting = (Path(folder).parent / f"meeting of {os.getppid()}").resolve().as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=index, world_size=count)
    train(Path(folder), Accelerator(cpu=True))
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder, count = sys.argv[1], int(sys.argv[2])
    if count == 1:
        train(Path(folder))
    else:
        multiprocessing.spawn(work, (count, folder), nprocs=count)
