"""Train the models of the zoo and store them beside their cards (`make results`).

    python benchmarks/zoo.py [--only MODEL] [--fresh]

A model that is stored, and whose recipe has not changed, is not trained again. It is written whole or not at
all: the old card goes first, the new one comes last.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from vit_course.attention import AttentionRecord, record_attention
from vit_course.dino import DINO, DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.evaluation import (
    attention_masks,
    extract_features,
    jaccard,
    knn_accuracy,
    masks_to_pixels,
)
from vit_course.lab import results, zoo
from vit_course.lab.data import LEVELS, ImageSet, normalise, photo, photos, shapes
from vit_course.training import augment, eval_mode, evaluate, fit

# Recipes are chosen on pictures of VALIDATION, cards are measured on pictures of UNSEEN: other scenes; of the
# photographs other crops, from the same parts, which no training crop touches.
VALIDATION, UNSEEN = 0, 1
SIZE = 64  # of the pictures, in pixels; of those of the hard level half as much
LEVEL_OF = {"scenes": "default", "hard scenes": "hard"}
SAMPLE = 200  # pictures that the tests measure again
WHOLE = (128, 192)  # the cup of coffee in one piece, in pixels


@dataclass(frozen=True)
class Stage:
    """A part of the training, at one size of picture."""

    steps: int
    size: int = SIZE
    batch: int = 64
    lr: float = 2e-3


@dataclass(frozen=True)
class Recipe:
    """A model of the zoo, spelled out: all that decides its weights.

    Attributes:
        model, sizes, stem: as on a `zoo.Card`.
        data: 'scenes', of the default level, 'hard scenes', or 'photos', crops of photographs.
        images: how many there are to train on.
        stages: one after the other.
        crop: smallest share of the area that `augment` keeps.
        rotation: largest turn, in degrees.
        weight_decay, label_smoothing: of the training.
        precision: of float32 products.
        seed: of weights, batches and augmentation.
    """

    model: str
    sizes: dict[str, Any]
    data: str
    stages: tuple[Stage, ...]
    images: int
    crop: float
    rotation: float
    stem: bool = False
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    precision: str = "highest"
    seed: int = 0

    def build(self) -> nn.Module:
        """Make the network, with the weights of the seed."""
        torch.manual_seed(self.seed)
        return zoo.build(self.model, self.sizes, self.stem)

    def as_json(self) -> dict[str, Any]:
        """All of it, as it comes back from a file, with the numbers of the scenes' level."""
        level = {"level": asdict(LEVELS[LEVEL_OF[self.data]])} if self.data in LEVEL_OF else {}
        return json.loads(json.dumps(asdict(self) | level))

    def objective(self, network: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
        """What is trained, and the loss of it on a batch of `draw`."""

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = batch
            return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)

        return network, loss

    def draw(self, pictures: ImageSet, count: int, generator: torch.Generator) -> Any:
        """A batch: views of so many pictures, and their labels."""
        images, labels = pictures.sample(count, generator)
        scale = (self.crop, 1.0)
        images = augment(normalise(images), scale=scale, rotation=self.rotation, generator=generator)
        return images, labels

    def callbacks(self, stage: Stage) -> list[Any]:
        """What `fit` calls at each step of a stage."""
        return []

    def trained(self, model: nn.Module) -> nn.Module:
        """The network of `build` after training, out of what `objective` made of it."""
        return model


@dataclass(frozen=True)
class WithoutLabels(Recipe):
    """A recipe of lesson 10: DINO with the targets and the regulariser of DINOv2, the latter at the head's
    bottleneck.

    Attributes:
        head: the arguments of its `DINOHead` behind `in_dim`.
        koleo: the weight of KoLeo.
        momentum: of the teacher.
        teacher_temp: its temperature.
    """

    head: dict[str, Any] = field(
        default_factory=lambda: dict(out_dim=512, hidden_dim=256, bottleneck_dim=32, batch_norm=True)
    )
    koleo: float = 0.05
    momentum: float = 0.9
    teacher_temp: float = 0.03

    def objective(self, network: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
        """A student and a teacher, and the loss of both on crops."""
        loss = DINOLoss(self.head["out_dim"], centring="sinkhorn")
        return DINO(network, **self.head), SelfDistillation(loss, self.koleo, "bottleneck")

    def draw(self, pictures: ImageSet, count: int, generator: torch.Generator) -> Any:
        """Two views of so many pictures."""
        size = pictures.images.shape[-1]
        crop = MultiCrop(size, local_crops=0, global_scale=(self.crop, 1.0), rotation=self.rotation)
        return crop(normalise(pictures.sample(count, generator)[0]), generator)

    def callbacks(self, stage: Stage) -> list[Any]:
        """The schedule, without a rise of weight decay or temperature."""
        constant = dict(weight_decay=(self.weight_decay,) * 2, teacher_temp=(self.teacher_temp,) * 2)
        return [DINOSchedule(lr=stage.lr, momentum=self.momentum, **constant)]

    def trained(self, model: nn.Module) -> nn.Module:
        """The teacher's backbone."""
        return model.backbone


def _photos(model: str, images: int = 5_000, more: tuple[Stage, ...] = (), **sizes: Any) -> Recipe:
    stages = (Stage(600), *more)
    return Recipe(model, sizes, "photos", stages, images=images, crop=0.6, rotation=20.0)


def _scenes(model: str, **sizes: Any) -> Recipe:
    """Half the size first: that is eight times as quick, and what was learned there carries over."""
    stages = (Stage(1600, size=32), Stage(400, batch=32, lr=1e-3))
    return Recipe(model, sizes, "scenes", stages, images=8_000, crop=1.0, rotation=180.0, stem=True)


_TOKENS = dict(image_size=SIZE, dim=64, heads=2, mlp_dim=256)
_SCENES = _TOKENS | dict(patch_size=4, num_classes=10)
_PHOTOS = _TOKENS | dict(patch_size=8, num_classes=9)
RECIPES: dict[str, Recipe] = {
    "photos-vit": _photos("ViT", **_PHOTOS, depth=4),
    "scenes-vit": _scenes("ViT", **_SCENES, depth=4),
    # Without the second stage it takes a whole picture, of many more patches, for another one.
    "photos-cait": _photos("CaiT", 5_000, (Stage(200, 128, 16, 1e-3),), **_PHOTOS, depth=3, cls_depth=1),
    "photos-xcit": _photos("XCiT", **_PHOTOS, depth=3, cls_depth=1),
    "photos-maxvit": _photos("MaxViT", num_classes=9, dim=32, depth=(1, 1), window_size=4, dim_head=16),
    "scenes-cait": _scenes("CaiT", **_SCENES, depth=3, cls_depth=1),
    "scenes-dino": WithoutLabels(
        "ViT",
        dict(image_size=32, patch_size=4, num_classes=0, dim=64, depth=4, heads=4, mlp_dim=256),
        "hard scenes",
        (Stage(1_500, size=32, lr=3e-3),),
        images=20_000,
        crop=0.75,
        rotation=180.0,
        stem=True,
        weight_decay=0.04,
        precision="medium",
    ),
}


# --- Training -----------------------------------------------------------------------------------------------


def images_of(data: str, split: str, count: int, size: int | None = None, seed: int = 0) -> ImageSet:
    """Pictures for a recipe."""
    if data == "photos":
        return photos(split, count, size or SIZE, seed=seed)
    return shapes(LEVEL_OF[data], split, count, size or (SIZE if data == "scenes" else SIZE // 2), seed=seed)


@cache
def training_images(data: str, size: int, count: int) -> ImageSet:
    """The pictures that a stage is trained on."""
    return images_of(data, "train", count, size)


@cache
def unseen_images(data: str) -> ImageSet:
    """The pictures that a card is measured on."""
    return images_of(data, "test", 1_000, seed=UNSEEN)


@cache
def validation_images(data: str) -> ImageSet:
    """The pictures that a recipe is chosen on."""
    return images_of(data, "test", 1_000, seed=VALIDATION)


def train(recipe: Recipe, progress: bool = True) -> nn.Module:
    """Make the model that a recipe describes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(recipe.precision)
    model, loss = recipe.objective(recipe.build())
    for number, stage in enumerate(recipe.stages):
        pictures = training_images(recipe.data, stage.size, recipe.images)
        fit(
            model,
            lambda generator, pictures=pictures, count=stage.batch: recipe.draw(pictures, count, generator),
            loss,
            stage.steps,
            lr=stage.lr,
            weight_decay=recipe.weight_decay,
            seed=recipe.seed + number,
            callbacks=recipe.callbacks(stage),
            progress=progress,
        )
    torch.set_float32_matmul_precision(before)
    return recipe.trained(model).eval()


# --- What it is worth ---------------------------------------------------------------------------------------


def accuracy(model: nn.Module, pictures: ImageSet, data: str) -> float:
    """The share of pictures that the model names right, or, where it has learned no names, the neighbours of
    its features among 2,000 scenes.
    """
    if data == "hard scenes":
        known = training_images(data, pictures.images.shape[-1], 2_000)
        features = [extract_features(model, normalise(images.images)) for images in (known, pictures)]
        return knn_accuracy(features[0], known.labels, features[1], pictures.labels)
    return evaluate(model, ((normalise(images), labels) for images, labels in pictures.batches(100)))


def class_token_weights(record: AttentionRecord, layer: int) -> Tensor:
    """What the class token takes from each patch, mean of the heads, in a layer that has one: (b, n).

    Of the layers in which patches attend to patches and no class token stands among them, it is the mean over
    the patches that attend.
    """
    weights = record[layer].weights.mean(dim=1)
    if record[layer].kind == "class":
        return weights[:, 0, 1:]
    prefix = record[layer].num_prefix_tokens
    return weights[:, : prefix or None, prefix:].mean(dim=1)


@torch.no_grad()
def attention_on_objects(model: nn.Module, pictures: ImageSet) -> dict[str, float]:
    """Where the attention of scenes lies, in the last layer that has a class token and in the middle block.

    Returns:
        For "last" and "middle": the share of scenes whose most attended patch is more than half on the object
        (…_top_patch), the share of attention on the object (…_attention), and of the patches that hold 60 %
        of the attention the Jaccard index with the object (…_jaccard) and the share of their pixels that
        belong to it (…_precision); means over scenes.
    """
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(pictures), 50):
        images, truth = pictures.images[start : start + 50], pictures.masks[start : start + 50]
        with eval_mode(model), record_attention(model) as record:
            model(normalise(images))
        covered = F.adaptive_avg_pool2d(truth[:, None].float(), record[0].grid).flatten(1)
        patch = images.shape[-1] // record[0].grid[0]
        blocks = sum("blocks." in layer.name and layer.kind == "global" for layer in record)
        for where, layer in {"last": len(record) - 1, "middle": blocks // 2}.items():
            weights = class_token_weights(record, layer)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            kept = masks_to_pixels(attention_masks(weights[:, None]), record[0].grid, patch)[:, 0]
            hit = (kept & truth).sum(dim=(1, 2)) / kept.sum(dim=(1, 2))
            top = covered.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0]
            numbers = {
                "top_patch": (top > 0.5).float(),
                "attention": (weights * covered).sum(dim=1),
                "jaccard": jaccard(kept, truth),
                "precision": hit,
            }
            for name, values in numbers.items():
                found.setdefault(f"{where}_{name}", []).append(values)
    return {name: torch.cat(values).mean().item() for name, values in found.items()}


@torch.no_grad()
def attention_by_brightness(model: nn.Module, pictures: ImageSet) -> dict[str, float]:
    """What the class token attends to in the last layer, where the object is lighter and where it is darker.

    Returns:
        For "light" and "dark" objects: the mean Jaccard index of the object and the patches that hold 60 % of
        the attention, of each head (…_head_0, …), of their mean (…_mean), and of the head that fits
        each picture best (…_best): that looks at the mask, as figure 4 of Caron et al. 2021 does.
    """
    rows = []
    for images in pictures.images.split(250):
        with eval_mode(model), record_attention(model) as record:
            model(normalise(images))
        rows.append(record[-1].weights[:, :, 0, record[-1].num_prefix_tokens :])
    heads = torch.cat(rows)  # (b, h, n)
    maps = torch.cat([heads, heads.mean(dim=1, keepdim=True)], dim=1)
    maps = maps / maps.sum(dim=-1, keepdim=True)
    patch = pictures.images.shape[-1] // record[-1].grid[0]
    masks = masks_to_pixels(attention_masks(maps), record[-1].grid, patch)  # (b, h + 1, height, width)
    truth, grey = pictures.masks, pictures.images.mean(dim=1)
    overlap = torch.stack([jaccard(mask, truth) for mask in masks.unbind(dim=1)], dim=1)  # (b, h + 1)
    overlap = torch.cat([overlap, overlap[:, :-1].amax(dim=1, keepdim=True)], dim=1)

    object_, ground = ((grey * part).sum((1, 2)) / part.sum((1, 2)) for part in (truth, ~truth))
    names = [*(f"head_{number}" for number in range(heads.shape[1])), "mean", "best"]
    return {
        f"{kind}_{name}": overlap[which, place].mean().item()
        for kind, which in {"light": object_ > ground, "dark": object_ <= ground}.items()
        for place, name in enumerate(names)
    }


@torch.no_grad()
def chance_of_coffee(model: nn.Module) -> float:
    """The probability that the model gives to its class on the whole cup of coffee."""
    whole = resize(photo("coffee"), list(WHOLE), antialias=True)
    classes = unseen_images("photos").classes
    with eval_mode(model):
        return model(normalise(whole)[None]).softmax(dim=1)[0, classes.index("coffee")].item()


def measure(model: nn.Module, twin: nn.Module, data: str, count: int | None = None) -> dict[str, float]:
    """All numbers of a card.

    Args:
        model, twin: trained, and the same network with fresh weights.
        data: as on the recipe.
        count: of the unseen pictures, the first so many; all by default.
    """
    pictures = unseen_images(data)[:count]
    numbers = {"pictures": float(len(pictures)), "accuracy": accuracy(model, pictures, data)}
    if data == "photos":
        numbers["whole_coffee"] = chance_of_coffee(model)
    else:
        attention = attention_by_brightness if data == "hard scenes" else attention_on_objects
        numbers |= attention(model, pictures)
        before = attention(twin, pictures)
        numbers |= {f"untrained_{name}": number for name, number in before.items()}
    return {name: round(number, 4) for name, number in numbers.items()}


# --- Storing ------------------------------------------------------------------------------------------------


def is_stored(name: str, recipe: Recipe) -> bool:
    """Whether the model is there, whole, and made by this recipe."""
    try:
        zoo.load(name)
    except (ValueError, OSError):
        return False
    return zoo.card(name).recipe == recipe.as_json()


def write(name: str, model: nn.Module, card: zoo.Card) -> None:
    """Store the weights and then the card; without a card there is no model of that name."""
    weights, text = zoo.FOLDER / f"{name}.safetensors", zoo.FOLDER / f"{name}.json"
    parts = [Path(f"{path}.part") for path in (weights, text)]
    parts[0].write_bytes(as_bytes(model))
    parts[1].write_text(card.as_json(), encoding="utf-8")
    text.unlink(missing_ok=True)
    os.replace(parts[0], weights)
    os.replace(parts[1], text)


def as_bytes(model: nn.Module) -> bytes:
    """The weights as the content of a safetensors file."""
    return safetensors_save({name: weight.contiguous() for name, weight in model.state_dict().items()})


def make(name: str, recipe: Recipe, progress: bool = True) -> None:
    """Train a model, measure it and store it."""
    start = time.process_time()
    model = train(recipe, progress)
    seconds = time.process_time() - start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = zoo.build(recipe.model, recipe.sizes, recipe.stem).eval()
    card = zoo.Card(
        model=recipe.model,
        sizes=recipe.as_json()["sizes"],
        stem=recipe.stem,
        classes=list(unseen_images(recipe.data).classes),
        recipe=recipe.as_json(),
        seed=recipe.seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        core_s=round(seconds, 1),
        validation_accuracy=round(accuracy(model, validation_images(recipe.data), recipe.data), 4),
        measured=measure(model, twin, recipe.data),
        sample=measure(model, twin, recipe.data, SAMPLE),
        date=date.today().isoformat(),
        machine=results.describe_machine(),
        sha256=hashlib.sha256(as_bytes(model)).hexdigest(),
    )
    write(name, model, card)


def summary(name: str) -> str:
    """A card in a line."""
    card = zoo.card(name)
    numbers = ", ".join(f"{key} {number:g}" for key, number in card.measured.items())
    return f"{name}: {card.parameters:,} parameters, {card.core_s} core-s; {numbers}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the models of the zoo; what is stored is kept.")
    parser.add_argument("--only", choices=RECIPES, metavar="MODEL", help=f"one model: {', '.join(RECIPES)}")
    parser.add_argument("--fresh", action="store_true", help="train again what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else RECIPES:
        if options.fresh or not is_stored(name, RECIPES[name]):
            make(name, RECIPES[name])
        print(summary(name), flush=True)


if __name__ == "__main__":
    main()
