"""The long table of lesson 14: a folder of photographs, without labels, and what its network is worth.

    python benchmarks/for_real.py [--fresh] [--seeds 5 6 7]

The recipe was chosen on crops of the test strips that `CHOSEN` draws; the table is measured on others.
"""

import argparse
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tables import UNSEEN, Table, make, summary
from torch import Tensor

from vit_course.dino import DINO, DINOLoss, DINOSchedule, SelfDistillation
from vit_course.evaluation import extract_features, knn_accuracy
from vit_course.lab import results
from vit_course.lab.colours import colour_histogram
from vit_course.lab.data import ImageFolderStream, PhotoCrops, save_photos
from vit_course.lab.pretrain.views import CentreView
from vit_course.training import fit
from vit_course.vit import ViT

SEEDS = (5, 6, 7)  # which no choice has seen
PICTURES, ASKED = 450, 300
SIZES = dict(image_size=48, patch_size=8, num_classes=0, dim=64, depth=4, heads=2, mlp_dim=256)

_folder = TemporaryDirectory()


@cache
def photographs() -> Path:
    """A folder with the photographs to train on, and those that are asked about."""
    root = Path(_folder.name)
    save_photos(root / "train", "train", PICTURES)
    save_photos(root / "test", "test", ASKED, seed=UNSEEN)
    return root


@cache
def labelled(split: str) -> tuple[Tensor, Tensor]:
    """The middles of all photographs of a split (b, 3, 48, 48), normalised, and their labels (b,)."""
    stream = ImageFolderStream(photographs() / split, CentreView(SIZES["image_size"]), labels=True)
    images, labels = zip(*(stream[place] for place in range(len(stream))), strict=True)
    return torch.stack(images), torch.tensor(labels)


def network(seed: int) -> ViT:
    """The network with first weights from a seed."""
    torch.manual_seed(seed)
    return ViT(**SIZES)


def accuracy(known: Tensor, asked: Tensor) -> float:
    """The share of the test photographs that the neighbours of their features name right."""
    return knn_accuracy(known, labelled("train")[1], asked, labelled("test")[1])


@dataclass(frozen=True)
class Pretrained:
    """A network that learned from the folder without labels, in so many steps; 0 for none.

    With `crops_only` its views differ in place, size and side only.
    """

    name: str
    steps: int = 150
    centring: str = "sinkhorn"
    koleo: float = 0.1
    momentum: float = 0.9
    batch: int = 32
    lr: float = 2e-3
    teacher_temp: float = 0.04
    crops_only: bool = False
    data: str = "photos, files"

    def run(self, seed: int) -> dict[str, float]:
        """Train and ask."""
        backbone = network(seed)
        if not self.steps:
            return {"accuracy": self.ask(backbone), "core_s": 0.0}
        model = DINO(backbone, 512, hidden_dim=256, bottleneck_dim=32)
        loss = DINOLoss(512, centring=self.centring, teacher_temp=self.teacher_temp)
        crops = PhotoCrops(48, 24, 2)
        if self.crops_only:
            plain = dict(jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
            crops.views = tuple(replace(view, **plain) for view in crops.views)
        stream = ImageFolderStream(photographs() / "train", crops, least_side=crops.least_side)
        schedule = DINOSchedule(
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=(0.04, 0.04),
            teacher_temp=(self.teacher_temp, self.teacher_temp),
        )
        start = time.process_time()
        history = fit(
            model,
            stream.loader(self.batch, seed=seed),
            SelfDistillation(loss, koleo=self.koleo),
            self.steps,
            callbacks=[schedule],
            seed=seed,
            progress=False,
        )
        core_s = time.process_time() - start
        return {
            "accuracy": self.ask(model.backbone),
            "core_s": core_s,
            "kl": history["kl"][-1],
            "entropy": history["entropy"][-1],
        }

    def ask(self, backbone: ViT) -> float:
        """The accuracy of the backbone's class token."""
        return accuracy(*(extract_features(backbone, labelled(split)[0]) for split in ("train", "test")))


@dataclass(frozen=True)
class Histogram:
    """No network: neighbours by 64 counted colours."""

    name: str = "colour histogram"
    data: str = "photos, files"

    def run(self, seed: int) -> dict[str, float]:
        """Count and ask."""
        start = time.process_time()
        found = accuracy(*(colour_histogram(labelled(split)[0]) for split in ("train", "test")))
        return {"accuracy": found, "core_s": time.process_time() - start}


TABLE = Table(
    f"{PICTURES} photographs without labels: which of nine pictures are {ASKED} others cut from?",
    single=(Histogram(),),
    several=(
        Pretrained("untrained", steps=0),
        Pretrained("DINO's centre, 150 steps", centring="mean", koleo=0.0),
        Pretrained("Sinkhorn and KoLeo, 150 steps"),
        Pretrained("the same, crops only, 150 steps", crops_only=True),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute the stored table of lesson 14.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(TABLE, results.FOLDER / "for_real.json", options.seeds, options.fresh)
    print(summary("for_real"))


if __name__ == "__main__":
    main()
