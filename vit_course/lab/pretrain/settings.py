"""All that decides a training, as one dataclass: the options of `vit-course pretrain`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

# What may differ when a run is resumed: it changes no weight.
FREE = {
    "output",
    "resume",
    "workers",
    "checkpoint_every",
    "evaluate_every",
    "device",
    "tensorboard",
    "progress",
}


@dataclass(frozen=True)
class Pretraining:
    """Train a backbone on a folder of photographs, with or without labels.

    Args:
        data: folder of photographs; where it has sub-folders, these are the classes.
        output: folder that the run is written to: settings, log, checkpoint and weights.
        objective: dino, es_vit, mpp or supervised.
        backbone: a published size, such as ViT-S/16, CaiT-XXS24, XCiT-T12/16, MaxViT-T or "DeiT-Ti/16
            distilled"; or the name of a model alone, such as ViT, for one that learns small pictures in
            minutes.
        sizes: other arguments of the backbone, as dim=64 depth=2 layer_dropout=0.1 pool=cls.
        image_size: side of the pictures in pixels; that of the published size, or 64, by default.
        patch_size: side of a patch in pixels; that of the published size, or an eighth of the picture, by
            default.
        steps: length of the run.
        batch: photographs of one step, of all processes and micro-batches together.
        accumulate: micro-batches into which each step's batch is divided, to save memory.
        lr: highest learning rate; by default the objective's rule for the batch, which for dino and es_vit is
            the authors': 5e-4 · batch / 256.
        weight_decay: of mpp and supervised; dino and es_vit have a schedule from 0.04 to 0.4.
        precision: bf16 computes products of matrices in bfloat16.
        local_crops: small views beside the two global ones, of dino and es_vit.
        local_size: side of these in pixels; by default three sevenths of the picture's, as 96 of 224.
        prototypes: width of the head's output, of dino and es_vit; 65536 for published sizes, else 512.
        momentum: of the teacher, at the beginning; the authors advise .9995 for batches of 256.
        teacher_temp: temperatures of the teacher, first and last.
        centring: mean, as DINO, or sinkhorn, as DINOv2.
        koleo: weight of KoLeo, which DINOv2 has at 0.1.
        head_batch_norm: whether the heads have BatchNorm, of dino and es_vit.
        labels: whether sub-folders are classes, by whose names the backbone is measured.
        validation: share of each class that is kept from training, for measuring.
        evaluate_every: steps between two measurements; a tenth of the run by default.
        checkpoint_every: steps between two checkpoints, which is what a kill can cost.
        seed: of weights, order and augmentation.
        workers: processes that read photographs ahead.
        device: auto, cpu, cuda …
        augment_on_device: whether colours, blur and solarisation are computed on the device.
        tensorboard: whether to write for TensorBoard too.
        progress: whether to show a bar; the command shows it in a terminal only.
        resume: go on with the run in `output`, if there is one.
    """

    data: Path
    output: Path
    objective: str = "dino"
    backbone: str = "ViT"
    sizes: tuple[str, ...] = ()
    image_size: int | None = None
    patch_size: int | None = None
    steps: int = 1000
    batch: int = 64
    accumulate: int = 1
    lr: float | None = None
    weight_decay: float = 0.05
    precision: Literal["bf16"] | None = None
    local_crops: int = 8
    local_size: int | None = None
    prototypes: int | None = None
    momentum: float = 0.996
    teacher_temp: tuple[float, float] = (0.04, 0.07)
    centring: Literal["mean", "sinkhorn"] = "mean"
    koleo: float = 0.0
    head_batch_norm: bool = False
    labels: bool = True
    validation: float = 0.1
    evaluate_every: int | None = None
    checkpoint_every: int = 200
    seed: int = 0
    workers: int = 2
    device: str = "auto"
    augment_on_device: bool = False
    tensorboard: bool = False
    progress: bool = True
    resume: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, with absolute paths."""
        paths = {name: str(getattr(self, name).expanduser().absolute()) for name in ("data", "output")}
        return asdict(self) | paths | {"sizes": list(self.sizes), "teacher_temp": list(self.teacher_temp)}
