"""The long accuracy tables of the course, stored where the lessons find them (`make results`).

    python benchmarks/results.py [--only TABLE] [--fresh] [--seeds 0 1 2]

Every row is one training of a fixed number of steps, or one baseline, with its accuracy on the test images
and its price: the process time of one thread. A row is stored as soon as it is there, and a row that is
stored is not computed again unless its recipe has changed.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import mean

import torch
import torch.nn.functional as F
from leaderboard import BOARD, COLOURS, PIXELS, Baseline
from tables import Table, image_sets, make, summary
from torch import Tensor, nn

from vit_course.attention import record_attention
from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.evaluation import (
    attention_masks,
    extract_features,
    jaccard,
    knn_accuracy,
    linear_probe,
    masks_to_pixels,
)
from vit_course.lab import results
from vit_course.lab.data import MEAN, STD, ImageSet, normalise
from vit_course.mpp import MPP
from vit_course.patching import ConvStem
from vit_course.training import augment, eval_mode, evaluate, fit
from vit_course.vit import SimpleViT, ViT

# --- What is trained without labels -------------------------------------------------------------------------


def unlabelled_vit(patch_size: int, pool: str) -> ViT:
    """For shapes: a ViT without classes behind the convolutional stem.

    Args:
        patch_size: in pixels.
        pool: what stands for the picture, the 'mean' of the patches or the class token, 'cls'.
    """
    sizes = dict(image_size=32, patch_size=patch_size, num_classes=0, dim=64, depth=4, heads=2, mlp_dim=256)
    return ViT(**sizes, pool=pool, patch_embedding=ConvStem(patch_size=patch_size, dim=64))


@torch.no_grad()
def attention_on_object(backbone: ViT, images: ImageSet) -> float:
    """Mean Jaccard index of the true masks and the patches that hold 60 % of the attention in the last block.

    The attention is the mean over heads, of the class token or, where there is none, of all patches. The
    network sees 8 × 8 patches, of images at twice their size if need be; nothing is chosen by looking at
    masks.
    """
    found = []
    for batch in images.images.split(250):
        with eval_mode(backbone), record_attention(backbone) as record:
            backbone(F.interpolate(normalise(batch), size=8 * backbone.patch_size[0], mode="bilinear"))
        prefix = backbone.num_prefix_tokens
        rows = record[-1].weights[:, :, : prefix or None, prefix:].mean(dim=(1, 2))[:, None]
        found.append(masks_to_pixels(attention_masks(rows), record[-1].grid, (4, 4))[:, 0])
    return jaccard(torch.cat(found), images.masks).mean().item()


def judge(
    backbone: ViT, train: ImageSet, test: ImageSet, prepare: Callable[[Tensor], Tensor] = normalise
) -> dict[str, float]:
    """What frozen features are worth, and where there are masks what the attention is.

    Args:
        backbone: images -> features.
        train: the first 5,000 images lend their labels.
        test: what is measured on.
        prepare: from pixels to the backbone's input.

    Returns:
        "accuracy" of the nearest neighbours, that of a "linear" layer and, with masks, the "jaccard" index.
    """
    labelled = train[:5000]
    features = [extract_features(backbone, prepare(images.images)) for images in (labelled, test)]
    known_and_new = (features[0], labelled.labels, features[1], test.labels)
    scores = {"accuracy": knn_accuracy(*known_and_new), "linear": linear_probe(*known_and_new)}
    return scores if test.masks is None else scores | {"jaccard": attention_on_object(backbone, test)}


def with_random(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The numbers of a trained network, and those of the same network before, called random_…"""
    return after | {f"random_{name}": value for name, value in before.items()}


@dataclass(frozen=True)
class SelfSupervised:
    """One training of DINO or EsViT, spelled out.

    Its accuracy is that of the nearest neighbours among the pooled features.
    """

    data: str
    steps: int
    method: str = "DINO"
    patch_size: int = 8
    pool: str = "mean"
    crop_size: int = 32
    recolour: bool = True
    global_scale: tuple[float, float] = (0.75, 1.0)
    batch: int = 32
    lr: float = 3e-3
    weight_decay: tuple[float, float] = (0.04, 0.04)
    momentum: float = 0.9
    teacher_temp: tuple[float, float] = (0.03, 0.03)
    spread: float = 1.0
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 32
    precision: str = "medium"

    @property
    def name(self) -> str:
        without = {"spread": not self.spread, "recolouring": not self.recolour}
        return " ".join([self.method, *(f"without {part}" for part, is_off in without.items() if is_off)])

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed. The numbers of the same network before training are called random_…"""
        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data)
        crop = MultiCrop(
            self.crop_size,
            local_crops=0,
            global_scale=self.global_scale,
            rotation=180.0,
            recolour=self.recolour,
        )
        torch.manual_seed(seed)
        backbone = unlabelled_vit(self.patch_size, self.pool)
        before = judge(backbone, train, test)
        model_type, loss_type = {"DINO": (DINO, DINOLoss), "EsViT": (EsViT, EsViTLoss)}[self.method]
        model = model_type(backbone, self.prototypes, self.hidden, self.bottleneck, batch_norm=True)
        loss = SelfDistillation(loss_type(self.prototypes), self.spread)
        schedule = DINOSchedule(
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            teacher_temp=self.teacher_temp,
        )

        def batches(generator: torch.Generator) -> list[Tensor]:
            return crop(normalise(train.sample(self.batch, generator)[0]), generator)

        start = time.process_time()
        history = fit(model, batches, loss, self.steps, seed=seed, callbacks=[schedule])
        core_s = time.process_time() - start
        last = {name: mean(history[name][-50:]) for name in ("loss", "entropy")}
        return with_random(before, judge(model.backbone, train, test) | {"core_s": core_s} | last)


@dataclass(frozen=True)
class VitPytorchDino:
    """vit-pytorch's `Dino` as its README sets it up, but for fewer prototypes, on our backbone.

    It takes as many steps, images and views as ours.
    """

    data: str
    steps: int
    batch: int = 32
    lr: float = 3e-4
    prototypes: int = 1024
    precision: str = "medium"

    @property
    def name(self) -> str:
        return "vit-pytorch's Dino"

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed. The numbers of the same network before training are called random_…"""
        from torchvision.transforms import Normalize
        from vit_pytorch import Dino

        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data)
        imagenet = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as their augmentation does
        torch.manual_seed(seed)
        random.seed(seed)  # their augmentation draws from it
        backbone = unlabelled_vit(8, "mean")
        before = judge(backbone, train, test, imagenet)
        model = Dino(backbone, image_size=32, hidden_layer="head", num_classes_K=self.prototypes)
        start = time.process_time()
        history = fit(
            model,
            lambda generator: train.sample(self.batch, generator)[0],
            lambda model, images: model(images),
            self.steps,
            lr=self.lr,
            seed=seed,
            after_step=lambda step: model.update_moving_average(),
        )
        core_s = time.process_time() - start
        after = judge(model.teacher_encoder.net, train, test, imagenet)
        return with_random(before, after | {"core_s": core_s, "loss": mean(history["loss"][-50:])})


# --- Masked patches, then labels ----------------------------------------------------------------------------


def plain_vit() -> SimpleViT:
    """For shapes: plain patches of 4 pixels, and fixed positions, which tell a masked patch where it is."""
    return SimpleViT(image_size=32, patch_size=4, num_classes=10, dim=64, depth=4, heads=2, mlp_dim=256)


@cache
def masked_patches(
    data: str, steps: int, batch: int, lr: float, crop: float, seed: int
) -> tuple[SimpleViT, dict[str, float]]:
    """A network that learned to predict the colours of hidden patches, and what that took.

    Args:
        data: as for `image_sets`.
        steps, batch, lr: of the training.
        crop: smallest share of the area that `augment` keeps.
        seed: decides weights, images and masks.

    Returns:
        The network; the process time, "core_s", and the last "loss".
    """
    train, _ = image_sets(data)

    def batches(generator: torch.Generator) -> Tensor:
        return augment(normalise(train.sample(batch, generator)[0]), scale=(crop, 1.0), generator=generator)

    torch.manual_seed(seed)
    model = MPP(plain_vit(), mean=MEAN, std=STD)
    start = time.process_time()
    history = fit(model, batches, lambda model, images: model(images), steps, lr=lr, seed=seed)
    return model.backbone, {"core_s": time.process_time() - start, "loss": mean(history["loss"][-50:])}


@dataclass(frozen=True)
class FineTuning:
    """A network trained with few labels, after so many steps of masked patch prediction on all training
    images without them; 0 for none.

    The labelled images are drawn by the seed, the same for every `pretraining`.
    """

    data: str
    labels: int
    pretraining: int
    steps: int = 400
    batch: int = 32
    lr: float = 2e-3
    pretraining_lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop: float = 0.6
    precision: str = "medium"

    @property
    def name(self) -> str:
        return "masked patch prediction, then labels" if self.pretraining else "labels alone"

    def run(self, seed: int) -> dict[str, float]:
        """Pre-train, fine-tune and test; the numbers of the pre-training are called pretraining_…"""
        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data)
        torch.manual_seed(seed)
        model, before = plain_vit(), {}
        if self.pretraining:
            pretrained, cost = masked_patches(
                self.data, self.pretraining, self.batch, self.pretraining_lr, self.crop, seed
            )
            model.load_state_dict(pretrained.state_dict())
            before = {f"pretraining_{key}": value for key, value in cost.items()}
        few = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: self.labels]]

        def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            images, labels = few.sample(self.batch, generator)
            return augment(normalise(images), scale=(self.crop, 1.0), generator=generator), labels

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=self.label_smoothing)

        start = time.process_time()
        history = fit(model, batches, loss, self.steps, lr=self.lr, weight_decay=self.weight_decay, seed=seed)
        core_s = time.process_time() - start
        accuracy = evaluate(model, ((normalise(images), labels) for images, labels in test.batches()))
        return {"accuracy": accuracy, "core_s": core_s, "loss": mean(history["loss"][-50:])} | before


# --- The tables ---------------------------------------------------------------------------------------------

TABLES: dict[str, Table] = {
    "leaderboard": BOARD,
    "self_supervised_easy": Table(
        "Shapes in scenes, easy level, without labels",
        several=(
            SelfSupervised("easy", 600),
            SelfSupervised("easy", 600, spread=0.0),
            SelfSupervised("easy", 1200),
            SelfSupervised("easy", 1200, "EsViT"),
        ),
        single=(VitPytorchDino("easy", 600),),
    ),
    "self_supervised_default": Table(
        "Shapes in scenes, default level, without labels",
        several=(SelfSupervised("default", 3400, global_scale=(0.5, 1.0)),),
    ),
    "self_supervised_hard": Table(
        "Shapes in scenes, hard level, without labels",
        several=(SelfSupervised("hard", 1500, patch_size=4, pool="cls", crop_size=20),),
    ),
    "self_supervised_photos": Table(
        "Crops of photographs, without labels",
        several=tuple(SelfSupervised("photos", 600, recolour=recolour) for recolour in (True, False)),
        single=(Baseline("photos", PIXELS), Baseline("photos", COLOURS)),
    ),
    "masked_patches": Table(
        "Shapes in scenes, easy level: masked patch prediction, then few labels",
        several=tuple(
            FineTuning("easy", labels, pretraining) for labels in (300, 1000) for pretraining in (0, 800)
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compute the stored accuracy tables of the course; what is stored already is kept."
    )
    parser.add_argument("--only", choices=TABLES, metavar="TABLE", help=f"one table: {', '.join(TABLES)}")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds of the rows that have several (default 0 1 2)",
    )
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else TABLES:
        make(TABLES[name], results.FOLDER / f"{name}.json", options.seeds, options.fresh)
        print(summary(name), flush=True)


if __name__ == "__main__":
    main()
