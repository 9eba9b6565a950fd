"""Which objective trains which backbone: the one table behind tests/test_objectives.py and the README.

python tests/objectives.py    prints the table into the README
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from test_models import CASES
from timm.models import VisionTransformer
from torch import Tensor, nn

from vit_course.dino import DINO, DINOLoss, MultiCrop, SelfDistillation, dino_schedules
from vit_course.distillation import DistillationLoss
from vit_course.es_vit import EsViT, EsViTLoss
from vit_course.lab.data import MEAN, STD, normalise
from vit_course.lab.pretrained import adapt
from vit_course.mpp import MPP

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- objectives: python tests/objectives.py -->\n", "<!-- end of objectives -->\n"
HEADS = {"out_dim": 24, "hidden_dim": 20, "bottleneck_dim": 12}


def timm_vit(num_classes: int = 5, dropout: float = 0.0) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return adapt(VisionTransformer(**sizes, num_classes=num_classes, proj_drop_rate=dropout))


# Small models for images (b, 3, 16, 16); they take num_classes and, where they have any, dropout.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: CASES[name].build for name in ("ViT", "SimpleViT", "CaiT", "XCiT", "MaxViT")},
    "a ViT of timm": timm_vit,
}
NO_DROPOUT = {"SimpleViT"}
# MaxViT's windows do not fill a map of 8 × 8 pixels.
LOCAL_SIZE = {"MaxViT": 16}
# Self-distillation of these adds `uniformity` with this weight; of the others it is the papers'.
SPREAD = {"ViT": 1.0}


@dataclass
class Experiment:
    """What `fit` needs to train one backbone by one objective.

    model: with `backbone`, the part that is trained, somewhere in it. loss: of a model and a batch. views: makes a batch of images and a
    generator. schedules: more arguments of `fit`. student, teacher: what learns, and what is not trained but may follow.
    """

    model: nn.Module
    loss: Callable
    views: Callable[[Tensor, torch.Generator], object]
    student: nn.Module
    teacher: nn.Module | None = None
    schedules: dict = field(default_factory=dict)


def self_distillation(name: str, model: DINO, loss: SelfDistillation, steps: int) -> Experiment:
    schedules = dino_schedules(model, loss, steps, lr=3e-3, momentum=0.9, frozen=0.0)
    crop = MultiCrop(16, LOCAL_SIZE.get(name, 8), 1, rotation=180.0)
    return Experiment(model, loss, crop, model.student, model.teacher, schedules)


def dino(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    model = DINO(build(0), **HEADS, batch_norm=True)
    return self_distillation(name, model, SelfDistillation(DINOLoss(24), SPREAD.get(name, 0.0)), steps)


def es_vit(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    model = EsViT(build(0), **HEADS, batch_norm=True)
    return self_distillation(name, model, SelfDistillation(EsViTLoss(24), SPREAD.get(name, 0.0)), steps)


def distillation(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    teacher = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5))
    model, loss = build(5), DistillationLoss(teacher, "soft", alpha=0.5)

    def views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images, torch.arange(len(images)) % 5

    return Experiment(model, loss, views, model, loss.teacher, {"lr": 3e-3})


def mpp(name: str, build: Callable[[int], nn.Module], steps: int) -> Experiment:
    model = MPP(build(0), mean=MEAN, std=STD)

    def views(images: Tensor, generator: torch.Generator) -> Tensor:
        return normalise(images.sigmoid())

    return Experiment(model, lambda model, images: model(images), views, model, schedules={"lr": 3e-3})


OBJECTIVES: dict[str, Callable[..., Experiment]] = {
    "DINO": dino,
    "EsViT": es_vit,
    "MPP": mpp,
    "distillation": distillation,
}

# Pairs that are refused, in these words.
REFUSED: dict[tuple[str, str], str] = {
    ("MPP", "MaxViT"): (
        "MPP hides single patches, so its backbone needs patch_embed; MaxViT has none. (Pyramids have no token for each patch; a ViT of "
        "timm or torchvision comes in through vit_course.lab.pretrained.adapt.)"
    ),
}

# Pairs that train with a reservation.
FIXED_SIZES = (
    "Local crops must have a size that the windows fill, as global ones: a multiple of `MaxViT.size_unit`."
)
PATCHES_ONLY = (
    "The class token and its layers learn nothing, because they change no patch and MPP asks patches only: take the mean of the "
    "patches as the feature."
)
REMARKS: dict[tuple[str, str], str] = {
    ("DINO", "MaxViT"): FIXED_SIZES,
    ("EsViT", "MaxViT"): FIXED_SIZES,
    ("MPP", "CaiT"): PATCHES_ONLY,
    ("MPP", "XCiT"): PATCHES_ONLY,
}
# The parameters that then get no gradient; everywhere else all of them do.
UNTRAINED: dict[tuple[str, str], str] = {
    ("MPP", "CaiT"): r"backbone\.(cls_token|blocks_token_only\..*)",
    ("MPP", "XCiT"): r"backbone\.(cls_token|cls_attn_blocks\.\d\.(attn|mlp|ls2)\..*)",
}


def prepare(objective: str, backbone: str, steps: int, dropout: float = 0.0, seed: int = 0) -> Experiment:
    """A small experiment, its weights drawn from the seed."""
    torch.manual_seed(seed)
    dropouts = {} if backbone in NO_DROPOUT else {"dropout": dropout}

    def build(num_classes: int) -> nn.Module:
        return BACKBONES[backbone](num_classes=num_classes, **dropouts)

    return OBJECTIVES[objective](backbone, build, steps)


def table() -> str:
    """The table as Markdown, and below it in sentences what is refused and what has a reservation."""
    sentences = list(dict.fromkeys([*REMARKS.values(), *REFUSED.values()]))

    def cell(pair: tuple[str, str]) -> str:
        sentence = REFUSED.get(pair) or REMARKS.get(pair)
        note = f" ({1 + sentences.index(sentence)})" if sentence else ""
        return ("no" if pair in REFUSED else "yes") + note

    lines = [["", *BACKBONES], ["---"] * (1 + len(BACKBONES))]
    lines += [
        [objective, *(cell((objective, backbone)) for backbone in BACKBONES)] for objective in OBJECTIVES
    ]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    notes = [f"\n({number}) {sentence}" for number, sentence in enumerate(sentences, start=1)]
    return "\n".join([*rows, *notes]) + "\n"


def printed_into(readme: str) -> str:
    """The README's text with the table in its place. Raises ValueError where there is no such place."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + "\n" + table() + "\n" + end + after


if __name__ == "__main__":
    README.write_text(printed_into(README.read_text(encoding="utf-8")), encoding="utf-8")
    print("README.md holds the table of objectives and backbones.")
