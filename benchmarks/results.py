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
from dataclasses import dataclass, replace
from statistics import mean

import torch
import torch.nn.functional as F
from leaderboard import BOARD
from tables import Table, image_sets, make, summary
from torch import Tensor

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
from vit_course.lab.data import ImageSet, normalise
from vit_course.lab.pictures.dino import grey_without_mean
from vit_course.patching import ConvStem
from vit_course.training import eval_mode, fit
from vit_course.vit import ViT

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
    """One training of DINO or EsViT, spelled out, and what it is called in its table.

    The defaults are DINOv2's targets and regulariser, the latter moved to the head's bottleneck. Its accuracy
    is that of the nearest neighbours among the pooled features.
    """

    data: str
    steps: int
    name: str
    method: str = "DINO"
    patch_size: int = 8
    pool: str = "cls"
    crop_size: int = 32
    local_crops: int = 0
    recolour: bool = True
    global_scale: tuple[float, float] = (0.75, 1.0)
    batch: int = 64
    lr: float = 2e-3
    weight_decay: tuple[float, float] = (0.04, 0.04)
    momentum: float = 0.9
    teacher_temp: tuple[float, float] = (0.03, 0.03)
    frozen: float = 0.01
    centring: str = "sinkhorn"
    koleo: float = 0.05
    koleo_at: str = "bottleneck"
    batch_norm: bool = False
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 32
    precision: str = "medium"

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed. The numbers of the same network before training are called random_…"""
        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data)
        crop = MultiCrop(
            self.crop_size,
            self.crop_size // 2,
            self.local_crops,
            global_scale=self.global_scale,
            local_scale=(0.2, 0.6),
            rotation=180.0,
            recolour=self.recolour,
        )
        torch.manual_seed(seed)
        backbone = unlabelled_vit(self.patch_size, self.pool)
        before = judge(backbone, train, test)
        model_type, loss_type = {"DINO": (DINO, DINOLoss), "EsViT": (EsViT, EsViTLoss)}[self.method]
        model = model_type(backbone, self.prototypes, self.hidden, self.bottleneck, self.batch_norm)
        distances = loss_type(self.prototypes, centring=self.centring)
        loss = SelfDistillation(distances, self.koleo, self.koleo_at)
        schedule = DINOSchedule(
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            teacher_temp=self.teacher_temp,
            frozen=self.frozen,
        )

        def batches(generator: torch.Generator) -> list[Tensor]:
            return crop(normalise(train.sample(self.batch, generator)[0]), generator)

        start = time.process_time()
        history = fit(model, batches, loss, self.steps, seed=seed, callbacks=[schedule])
        core_s = time.process_time() - start
        last = {name: mean(history[name][-50:]) for name in ("loss", "entropy", "kl")}
        return with_random(before, judge(model.backbone, train, test) | {"core_s": core_s} | last)


@dataclass(frozen=True)
class GreyPixels:
    """The strongest baseline on pixels: grey ones without their mean, judged as features are."""

    data: str
    name: str = "grey pixels"

    def run(self, seed: int) -> dict[str, float]:
        """Nothing is drawn at random here: the seed changes nothing."""
        train, test = image_sets(self.data)
        known, new = train[:5000], test
        features = [grey_without_mean(images.images) for images in (known, new)]
        start = time.process_time()
        scores = {
            name: method(features[0], known.labels, features[1], new.labels)
            for name, method in {"accuracy": knn_accuracy, "linear": linear_probe}.items()
        }
        return scores | {"core_s": time.process_time() - start}


@dataclass(frozen=True)
class VitPytorchDino:
    """vit-pytorch's `Dino` as its README sets it up, but for fewer prototypes, on our backbone.

    Its rate is the README's; the steps are worth about as many core-seconds as ours.
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


# --- The tables ---------------------------------------------------------------------------------------------

# 400 steps of 64 scenes are worth 45 core-seconds. Rates, momentum, temperature and, without BatchNorm, what
# stands for a picture were chosen on the last training scenes.
DINO_V2 = SelfSupervised("easy", 400, "without BatchNorm")
WITH_BATCH_NORM = replace(DINO_V2, name="with BatchNorm", batch_norm=True, lr=3e-3)
ON_DEFAULT = replace(
    WITH_BATCH_NORM,
    data="default",
    steps=3400,
    batch=32,
    lr=2e-3,
    pool="mean",
    global_scale=(0.5, 1.0),
)
# The numbers of Caron et al. 2021 but for those that the size of pictures and data decide: K, the widths of
# the head, the views; lr by their rule, 5e-4 · batch / 256.
PAPER = replace(
    DINO_V2,
    name="the paper's",
    centring="mean",
    koleo=0.0,
    lr=1.25e-4,
    momentum=0.996,
    weight_decay=(0.04, 0.4),
    teacher_temp=(0.04, 0.07),
)

TABLES: dict[str, Table] = {
    "leaderboard": BOARD,
    "dino_easy": Table(
        "DINO on shapes in scenes, easy level: five seeds that no choice has seen",
        several=(WITH_BATCH_NORM, DINO_V2),
        single=(GreyPixels("easy"),),
        seeds=(10, 11, 12, 13, 14),
    ),
    "dino_mean": Table(
        "DINO on shapes in scenes, easy level, without BatchNorm: the mean of the patches for a picture",
        several=(replace(DINO_V2, name="without BatchNorm, mean of patches", pool="mean"),),
        seeds=(20, 21, 22, 23, 24),
    ),
    "dino_default": Table(
        "DINO on shapes in scenes, default level",
        several=(ON_DEFAULT,),
        single=(GreyPixels("default"),),
        seeds=(10, 11, 12),
    ),
    "dino_parts": Table(
        "DINO on shapes in scenes, easy level, part by part",
        several=(
            replace(DINO_V2, name="centring", centring="mean", koleo=0.0),
            replace(DINO_V2, name="centring, KoLeo", centring="mean"),
            replace(DINO_V2, name="Sinkhorn-Knopp", koleo=0.0),
            replace(WITH_BATCH_NORM, name="with BatchNorm, longer", steps=700),
        ),
        single=(
            PAPER,
            replace(PAPER, name="the paper's, larger steps, a quicker teacher", lr=2e-3, momentum=0.9),
            replace(DINO_V2, name="KoLeo at the class token", koleo_at="features"),
            replace(DINO_V2, name="KoLeo with DINOv2's weight", koleo=0.1),
            replace(DINO_V2, name="four local crops", local_crops=4),
            replace(DINO_V2, name="temperature rises", teacher_temp=(0.03, 0.05)),
            replace(DINO_V2, name="weight decay rises", weight_decay=(0.04, 0.4)),
            replace(DINO_V2, name="prototypes rest longer", frozen=0.1),
            VitPytorchDino("easy", 600),
        ),
        seeds=(10, 11, 12),
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
        help="seeds of the rows that have several (default: those of the table)",
    )
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else TABLES:
        table = TABLES[name]
        make(table, results.FOLDER / f"{name}.json", options.seeds or table.seeds, options.fresh)
        print(summary(name), flush=True)


if __name__ == "__main__":
    main()
