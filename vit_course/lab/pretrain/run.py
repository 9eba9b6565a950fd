"""The training itself."""

from __future__ import annotations

import os
import warnings
from datetime import datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from vit_course.patching import require_at_least, require_between
from vit_course.training import JSONLog, Run, TensorBoard, Validation, fit

from ..data import ImageFolderStream
from .folder import RunFolder
from .form import Form, form
from .labelled import LabelledPictures
from .objectives import OBJECTIVES, Objective
from .settings import FREE, Pretraining
from .views import OnDevice


class _Keep:
    """A callback that makes the folder of the run, and writes the weights as often as the checkpoint."""

    def __init__(self, folder: RunFolder, config: dict[str, Any], kept: Any, every: int) -> None:
        self.folder, self.config, self.kept, self.every = folder, config, kept, every
        self.finished = 0

    def on_start(self, run: Run) -> None:
        if run.is_main:
            self.folder.start(self.config)

    def after_step(self, run: Run) -> None:
        self.finished = run.finished
        if run.is_main and (run.finished % self.every == 0 or run.finished == run.steps):
            self.folder.keep(self.kept)


def pretrain(settings: Pretraining) -> dict[str, list[float]]:
    """Run or resume a training.

    Args:
        settings: all of it.

    Returns:
        The history, as `fit` gives it; with labels "validation_knn" at the steps of "validation_step".

    Raises:
        FileNotFoundError, ValueError: for settings, pictures or a folder that do not fit, before anything is
            written.
        OSError: where nothing can be written; what was written before stays whole.
        KeyboardInterrupt: after Ctrl-C, when the step is done and checkpoint and weights are written.
    """
    _require_settings(settings)
    objective, wanted = OBJECTIVES[settings.objective], form(settings)
    reserved = wanted.row.reservations.get(objective.name)
    if reserved and reserved.is_refused:
        raise ValueError(reserved.sentence)
    folder = RunFolder(settings.output.expanduser())
    _require_same(folder, settings)
    labelled = _labelled(settings, objective, wanted.image_size)
    pictures = ImageFolderStream(
        settings.data, labels=objective.has_labels, test_share=settings.validation if labelled else 0.0
    )
    if labelled:
        labelled.share_broken(pictures)
    experiment = objective.prepare(settings, wanted, len(pictures.classes))
    loader = _loader(settings, pictures, experiment.views, _steps_done(folder, settings))
    accelerator = make_accelerator(settings.device)
    if accelerator:
        _require_shares(settings, accelerator.num_processes)
    device = accelerator.device if accelerator else find_device(settings.device)
    model, loss = experiment.model.to(device), experiment.loss
    if settings.augment_on_device:
        loss = OnDevice(loss, experiment.views, objective.has_labels)
    if isinstance(loss, nn.Module):
        loss.to(device)
    classes = labelled.classes if labelled else pictures.classes
    keep = _Keep(folder, _config(settings, wanted, classes), experiment.kept, settings.checkpoint_every)
    callbacks: list[Any] = [*experiment.callbacks, keep, JSONLog(folder.log)]
    if labelled:
        every = settings.evaluate_every or max(1, settings.steps // 10)
        callbacks.append(
            Validation(lambda model: {"knn": labelled.knn(experiment.kept, objective.pool)}, every)
        )
    if settings.tensorboard:
        callbacks.append(TensorBoard(folder.path / "tensorboard"))
    if accelerator:
        accelerator.wait_for_everyone()  # the main process is about to make the folder that all looked for
    try:
        return fit(
            model,
            loader,
            loss,
            settings.steps,
            lr=experiment.lr,
            weight_decay=settings.weight_decay,
            callbacks=callbacks,
            checkpoint=folder.checkpoint,
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            seed=settings.seed,
            progress=settings.progress,
            precision=settings.precision,
            accumulate=settings.accumulate,
            accelerator=accelerator,
        )
    except KeyboardInterrupt:
        if not keep.finished:
            raise
        if is_main():
            folder.keep(experiment.kept)
        raise KeyboardInterrupt(f"stopped after {keep.finished} of {settings.steps} steps") from None


def is_main() -> bool:
    """Whether this process is the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def find_device(name: str) -> torch.device:
    """The device of that name, for "auto" a GPU of CUDA where there is one.

    Raises:
        ValueError: for a name that PyTorch does not know here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error


def make_accelerator(device: str) -> Any:
    """An Accelerator, if `accelerate launch` or `torchrun` started this process, else None.

    It divides each batch among the processes.
    """
    if not {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        return None
    from accelerate import Accelerator, DataLoaderConfiguration

    accelerator = Accelerator(
        cpu=device == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    if "MASTER_ADDR" in os.environ and accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ:
        # accelerate launch sets an address for several processes; without GPUs it starts one all the same
        warnings.warn(
            "accelerate launch started one process only, as it does on CPUs; torchrun starts several",
            stacklevel=2,
        )
    return accelerator


def _require_settings(settings: Pretraining) -> None:
    """Refuse what no run can be made of.

    Raises:
        ValueError: naming the setting.
    """
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"objective {settings.objective!r} is none of {', '.join(OBJECTIVES)}")
    require_at_least(
        1,
        steps=settings.steps,
        batch=settings.batch,
        accumulate=settings.accumulate,
        checkpoint_every=settings.checkpoint_every,
    )
    require_at_least(0, seed=settings.seed, workers=settings.workers, local_crops=settings.local_crops)
    require_between(0, 1, validation=settings.validation)
    if settings.batch % settings.accumulate:
        raise ValueError(
            f"a batch of {settings.batch} cannot be divided into {settings.accumulate} micro-batches"
        )


def _require_shares(settings: Pretraining, processes: int) -> None:
    """Refuse a batch that processes cannot divide among them."""
    pictures = settings.batch // settings.accumulate
    if pictures % processes:
        batch = f"a {'micro-' if settings.accumulate > 1 else ''}batch of {pictures}"
        raise ValueError(f"{batch} cannot be divided among {processes} processes")


def _require_same(folder: RunFolder, settings: Pretraining) -> None:
    """Refuse a folder that holds another run, or this one if it is not to be resumed."""
    if folder.is_new():
        return
    if not settings.resume:
        raise ValueError(
            f"{folder.path} is not empty; give --resume to go on with its run, or another --output"
        )
    before, now = folder.config()["settings"], settings.as_json()
    others = [name for name in now if name not in FREE and before.get(name) != now[name]]
    if others:
        theirs, ours = (
            ", ".join(f"{name}={values.get(name)}" for name in others) for values in (before, now)
        )
        raise ValueError(f"the run in {folder.path} has {theirs}; it cannot go on with {ours}")


def _labelled(settings: Pretraining, objective: Objective, image_size: int) -> LabelledPictures | None:
    """The labelled photographs of the folder; None where it has no labels and the objective needs none."""
    if settings.validation == 0 or not (settings.labels or objective.has_labels):
        return None
    try:
        return LabelledPictures(
            settings.data, image_size, settings.validation, batch=settings.batch, workers=settings.workers
        )
    except ValueError as error:
        if objective.has_labels:
            raise
        ImageFolderStream(settings.data)  # refuses a folder without any pictures in its own words
        warnings.warn(f"without labels nothing is measured by nearest neighbours: {error}", stacklevel=2)
        return None


def _steps_done(folder: RunFolder, settings: Pretraining) -> int:
    """How many steps the checkpoint has behind it, if there is one to resume from that can be read."""
    if not settings.resume or not folder.checkpoint.exists():
        return 0
    try:
        return torch.load(folder.checkpoint, weights_only=True, mmap=True)["step"]
    except Exception:  # fit reads it too, and says what is wrong with it
        return 0


def _loader(settings: Pretraining, pictures: ImageFolderStream, views: Any, steps_done: int) -> DataLoader:
    pictures.transform = views.cut if settings.augment_on_device else views
    pictures.least_side = views.least_side
    return pictures.loader(
        settings.batch // settings.accumulate,
        workers=settings.workers,
        seed=settings.seed,
        skip_batches=steps_done * settings.accumulate,
    )


def _config(settings: Pretraining, form: Form, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("vit_course", "torch", "torchvision")},
        "settings": settings.as_json(),
        "model": form.row.kind.__name__,
        "arguments": form.arguments,
        "image_size": form.image_size,
        "classes": list(classes),
    }
