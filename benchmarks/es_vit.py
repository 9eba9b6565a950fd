"""The table of lesson 11: what regions buy on a pyramid, and what DINO is worth there (`make results`).

    python benchmarks/es_vit.py [--fresh] [--seeds 2 3 4]

Every row takes as many steps on the same views. The recipe is lesson 10's; what was chosen for the pyramid
was chosen on other test scenes than the table is measured on.
"""

import time
from dataclasses import dataclass
from statistics import mean

import torch
from tables import Table, command, image_sets
from torch import Tensor, nn

from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.es_vit import EsViT, EsViTLoss, best_match
from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.lab.correspondence import make_copies
from vit_course.lab.data import ImageSet, normalise
from vit_course.max_vit import MaxViT, Pyramid
from vit_course.patching import ConvStem
from vit_course.training import fit
from vit_course.vit import Backbone, ViT

SEEDS = (2, 3, 4)  # the recipe was tried on seed 1


def backbone_of(kind: str, momentum: float) -> Backbone | Pyramid:
    """A small network without classes whose features stand in 4 × 4 places of a scene.

    Args:
        kind: 'MaxViT', a pyramid of two stages, or 'ViT' behind the convolutional stem.
        momentum: of the running statistics of the pyramid's BatchNorms.
    """
    if kind == "ViT":
        sizes = dict(image_size=32, patch_size=8, num_classes=0, dim=64, depth=4, heads=2, mlp_dim=256)
        return ViT(**sizes, pool="mean", patch_embedding=ConvStem(patch_size=8, dim=64))
    model = MaxViT(num_classes=0, dim=32, depth=(1, 1), window_size=4, dim_head=16)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    return model


def judge(backbone: Backbone | Pyramid, train: ImageSet, test: ImageSet) -> dict[str, float]:
    """What frozen features are worth.

    Args:
        backbone: images -> features.
        train: the first 5,000 images lend their labels.
        test: what is measured on; the first 500 scenes serve the correspondence test.

    Returns:
        "accuracy" of the nearest neighbours, that of a "linear" layer, and "place" and "object" of the
        correspondence test.
    """
    labelled, copies = train[:5000], make_copies(test[:500])
    features = [extract_features(backbone, normalise(images.images)) for images in (labelled, test)]
    known_and_new = (features[0], labelled.labels, features[1], test.labels)
    regions = [extract_features(backbone, views, "patches") for views in (copies.upright, copies.turned)]
    scores = {"accuracy": knn_accuracy(*known_and_new), "linear": linear_probe(*known_and_new)}
    return scores | copies.judge(best_match(*regions))


@dataclass(frozen=True)
class Unlabelled:
    """One training of DINO or EsViT, spelled out; after 0 steps the network is the random one."""

    method: str
    backbone: str = "MaxViT"
    steps: int = 400
    data: str = "easy"
    batch: int = 32
    lr: float = 3e-3
    koleo: float = 0.1
    koleo_at: str = "bottleneck"
    centring: str = "sinkhorn"
    momentum: float = 0.9
    teacher_temp: float = 0.03
    global_scale: tuple[float, float] = (0.75, 1.0)
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 32
    batch_norm: bool = True
    statistics_momentum: float = 0.1
    precision: str = "medium"

    @property
    def name(self) -> str:
        return f"{self.method}, {self.backbone}" if self.steps else f"random, {self.backbone}"

    def run(self, seed: int) -> dict[str, float]:
        """Train from this seed and judge the teacher's backbone."""
        torch.set_float32_matmul_precision(self.precision)
        train, test = image_sets(self.data)
        torch.manual_seed(seed)
        backbone, numbers = backbone_of(self.backbone, self.statistics_momentum), {"core_s": 0.0}
        if self.steps:
            backbone, numbers = self.trained(backbone, train, seed)
        return judge(backbone, train, test) | numbers

    def trained(
        self, backbone: Backbone | Pyramid, train: ImageSet, seed: int
    ) -> tuple[Backbone | Pyramid, dict[str, float]]:
        """The teacher's backbone, and the numbers of the run."""
        model_type, loss_type = {"DINO": (DINO, DINOLoss), "EsViT": (EsViT, EsViTLoss)}[self.method]
        model = model_type(backbone, self.prototypes, self.hidden, self.bottleneck, self.batch_norm)
        loss = loss_type(self.prototypes, centring=self.centring)
        crop = MultiCrop(32, local_crops=0, global_scale=self.global_scale, rotation=180.0)
        schedule = DINOSchedule(
            lr=self.lr,
            weight_decay=(0.04, 0.04),
            momentum=self.momentum,
            teacher_temp=(self.teacher_temp, self.teacher_temp),
        )

        def batches(generator: torch.Generator) -> list[Tensor]:
            return crop(normalise(train.sample(self.batch, generator)[0]), generator)

        objective = SelfDistillation(loss, self.koleo, self.koleo_at)
        start = time.process_time()
        history = fit(model, batches, objective, self.steps, seed=seed, callbacks=[schedule], progress=False)
        core_s = time.process_time() - start
        watched = [key for key in history if key.endswith(("entropy", "kl"))]
        return model.backbone, {"core_s": core_s} | {key: mean(history[key][-20:]) for key in watched}


TABLE = Table(
    "Shapes in scenes, easy level, without labels: views alone, or views and regions",
    several=(
        Unlabelled("DINO"),
        Unlabelled("EsViT"),
        Unlabelled("DINO", "ViT"),
        Unlabelled("DINO", steps=0),
        Unlabelled("DINO", "ViT", steps=0),
    ),
)


if __name__ == "__main__":
    command(TABLE, "es_vit", SEEDS, "Compute the stored table of lesson 11.")
