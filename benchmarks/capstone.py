"""The table of lesson 13: its own run with several seeds, and how its views of photographs were chosen.

    python benchmarks/capstone.py [--fresh] [--seeds 0 1 2]

The views were chosen by what neighbours say about crops of parts of the training photographs that no crop of
training touches; the lesson is measured on its test pictures. `make results` runs it.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import nbformat
import torch
from tables import Table, command
from torch import Tensor

from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.lab.data import PHOTO_CREDITS, ImageSet, PhotoCrops, PhotoView, normalise, photo
from vit_course.lab.data.photographs import TEST_SHARE, random_crop, regions
from vit_course.lab.yardsticks import grey_pixels
from vit_course.patching import ConvStem
from vit_course.training import fit
from vit_course.vit import ViT

LESSON = Path(__file__).parent.parent / "notebooks" / "13_capstone.ipynb"


@dataclass(frozen=True)
class Lesson:
    """The lesson, run from its first cell with other choices."""

    name: str
    data: str
    network: str = "ViT"
    objective: str = "DINO"
    steps: int = 400

    def run(self, seed: int) -> dict[str, float]:
        """Its scores and those of the baselines, each under its name and its measure."""
        choices = {"DATA": self.data, "NETWORK": self.network, "OBJECTIVE": self.objective}
        choices |= {"STEPS": self.steps, "SEED": seed}
        made = run_cells(choices)
        row = {"accuracy": made["scores"][made["me"]]["kNN"], "core_s": made["used"]}
        for name, scores in made["scores"].items():
            row |= {f"{name} · {measure}": value for measure, value in scores.items()}
        return row


def run_cells(choices: dict) -> dict:
    """Run the lesson in an empty folder, but for what it shows of this table; return what it defines."""
    cells = [
        cell.source
        for cell in nbformat.read(LESSON, as_version=4).cells
        if cell.cell_type == "code" and "results.load(" not in cell.source
    ]
    namespace: dict = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for source in cells:
                for name, value in choices.items():
                    source = re.sub(rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE)
                exec(source, namespace)
        finally:
            os.chdir(before)
    return namespace


@cache
def photographs() -> tuple[ImageSet, ImageSet]:
    """Crops to train on, and crops to choose by, from other parts of the training photographs."""
    parts: dict[str, list[list[Tensor]]] = {"train": [], "choose": []}
    for name in PHOTO_CREDITS:
        left, right = regions(photo(name), "train")
        border, end = round(TEST_SHARE * left.shape[2]), right.shape[2]
        parts["train"].append([left[:, :, border:], right[:, :, : end - border]])
        parts["choose"].append([left[:, :, :border], right[:, :, end - border :]])
    return _crops(parts["train"], 4000, seed=7), _crops(parts["choose"], 1000, seed=8)


def _crops(parts: list[list[Tensor]], count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(parts), (count,), generator=generator)
    halves = torch.randint(2, (count,), generator=generator)
    crops = [random_crop(parts[i][j], 32, generator) for i, j in zip(labels, halves, strict=True)]
    return ImageSet(torch.stack(crops), labels, tuple(PHOTO_CREDITS))


SMALL = 32
VIEWS: dict[str, Callable[[], MultiCrop | list[PhotoView]]] = {
    "any hue, as for scenes": lambda: MultiCrop(SMALL, local_crops=0, global_scale=(0.75, 1), rotation=15),
    "no other colours": lambda: MultiCrop(SMALL, local_crops=0, global_scale=(0.75, 1), recolour=False),
    "as published, without local crops": lambda: [
        *PhotoCrops(SMALL, local_crops=0, global_scale=(0.14, 1)).views
    ],
    "as published, larger crops": lambda: [*PhotoCrops(SMALL, local_crops=0, global_scale=(0.4, 1)).views],
    "jitter and grey, larger crops": lambda: [PhotoView(SMALL, (0.4, 1))] * 2,
    "jitter, larger crops": lambda: [PhotoView(SMALL, (0.4, 1), grey=0)] * 2,
}


@dataclass(frozen=True)
class Views:
    """DINO on photographs with some kind of views; 0 steps for the untrained network, or for its pixels."""

    name: str
    steps: int = 200
    batch: int = 64
    data: str = "photos, parts of the training photographs"

    def run(self, seed: int) -> dict[str, float]:
        """Train and judge by the crops that serve to choose."""
        train, choose = photographs()
        torch.manual_seed(seed)
        backbone = ViT(
            image_size=SMALL,
            patch_size=8,
            num_classes=0,
            dim=64,
            depth=4,
            heads=2,
            mlp_dim=256,
            pool="mean",
            patch_embedding=ConvStem(patch_size=8, dim=64),
        )
        numbers = {"core_s": 0.0}
        if self.steps:
            backbone, numbers = self.trained(backbone, train, seed)
        describe = (
            grey_pixels
            if self.name == "grey pixels"
            else (lambda images: extract_features(backbone, normalise(images)))
        )
        both = describe(train.images), train.labels, describe(choose.images), choose.labels
        return {"accuracy": knn_accuracy(*both), "linear": linear_probe(*both)} | numbers

    def trained(self, backbone: ViT, train: ImageSet, seed: int) -> tuple[ViT, dict[str, float]]:
        """The teacher's backbone, and the numbers of the run: lesson 13's recipe."""
        torch.set_float32_matmul_precision("medium")
        model = DINO(backbone, 512, hidden_dim=256, bottleneck_dim=32, batch_norm=True)
        constant = dict(weight_decay=(0.04, 0.04), teacher_temp=(0.03, 0.03))
        schedule = DINOSchedule(lr=3e-3, momentum=0.9, **constant)
        loss = SelfDistillation(DINOLoss(512, centring="sinkhorn"), koleo=0.05, koleo_at="bottleneck")
        views = VIEWS[self.name]()

        def draw(generator: torch.Generator) -> list[Tensor]:
            images = train.sample(self.batch, generator)[0]
            if isinstance(views, MultiCrop):
                return views(normalise(images), generator)
            return photo_views(views, images, generator)

        start = time.process_time()
        history = fit(model, draw, loss, self.steps, seed=seed, callbacks=[schedule], progress=False)
        core_s = time.process_time() - start
        torch.set_float32_matmul_precision("highest")
        return model.backbone, {"core_s": core_s, "kl": fmean(history["kl"][-20:])}


def photo_views(views: list[PhotoView], images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Each view of each picture: (b, 3, h, w) in 0..1 -> tensors (b, 3, size, size), normalised."""
    whole = (255 * images).round().byte()
    return [
        normalise(view.recolour(torch.stack([view.crop(image, generator) for image in whole]), generator))
        for view in views
    ]


TABLE = Table(
    "Lesson 13: its own runs, and views of photographs",
    several=(Lesson("as printed", "easy"), Lesson("photographs", "photos")),
    single=(Views("grey pixels", 0), Views("untrained", 0), *map(Views, VIEWS)),
)


if __name__ == "__main__":
    command(TABLE, "capstone", TABLE.seeds, "Compute the stored table of lesson 13.")
