"""A training with DataLoader workers, run as a process of its own so that a test can stop it:

python stopped_run.py METHOD CHECKPOINT, where METHOD starts the workers: "spawn", "forkserver" or "fork".
Prints "reading" when a worker reads an image, each step when it is done, and how the training ended.
"""

import sys
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vit_course.training import fit


class SlowImages(Dataset):
    """Eight numbers that take their time, so that a button can be pressed while a worker reads."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        print("reading", flush=True)
        time.sleep(0.2)
        return torch.full((1,), float(index))


def main(method: str, checkpoint: str) -> None:
    """Train for longer than anybody waits."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    batches = DataLoader(
        SlowImages(), batch_size=2, num_workers=1, multiprocessing_context=method, prefetch_factor=1
    )
    try:
        fit(
            model,
            batches,
            lambda model, batch: model(batch).square().mean(),
            200,
            checkpoint=checkpoint,
            checkpoint_every=1000,
            progress=False,
            after_step=lambda step: print("step", step, flush=True),
        )
    except KeyboardInterrupt as stop:
        print("ended by KeyboardInterrupt:", stop, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
