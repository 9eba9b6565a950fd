"""How fast photographs become DINO's views, beside the PIL transforms that its authors train with.

Both decode JPEG files and draw 2 × 224 + 8 × 96 pixels of each: RandomResizedCrop, flip, colour jitter, grey,
blur, solarisation, normalisation. One thread; the clock is the process's own time.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from vit_course.lab.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PHOTO_CREDITS,
    ImageFolderStream,
    PhotoCrops,
    photo,
)

SIZES = {"500 × 375": (500, 375), "3000 × 2250": (3000, 2250)}  # as in ImageNet; as from a camera


@dataclass
class Row:
    """What was measured of photographs of one size.

    Args:
        pictures: their width × height.
        ours, theirs: pictures a core-second.
        ours_is_faster: how many times as fast ours is, the median over the rounds.
    """

    pictures: str
    ours: float
    theirs: float
    ours_is_faster: float


def write_photographs(folder: Path, width: int, height: int) -> None:
    """The middle of each of the lab's photographs as a JPEG file."""
    for name in PHOTO_CREDITS:
        picture = ImageOps.fit(to_pil_image(photo(name)), (width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{name}.jpg", quality=92)


def ours(folder: Path) -> Callable[[int], list[Tensor]]:
    """The course's data set."""
    crops = PhotoCrops(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return ImageFolderStream(folder, crops, least_side=crops.least_side).__getitem__


def theirs(folder: Path) -> Callable[[int], list[Tensor]]:
    """Torchvision's first transforms on Pillow's pictures, put together as the paper describes."""

    def blurred(picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def view(size: int, scale: tuple[float, float], blur: float, solarise: float) -> transforms.Compose:
        def sometimes(change: Callable, probability: float) -> transforms.RandomApply:
            return transforms.RandomApply([change], p=probability)

        bicubic = transforms.InterpolationMode.BICUBIC
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
                sometimes(transforms.ColorJitter(0.4, 0.4, 0.2, 0.1), 0.8),
                transforms.RandomGrayscale(0.2),
                sometimes(blurred, blur),
                sometimes(ImageOps.solarize, solarise),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    views = [
        view(224, (0.4, 1), 1.0, 0.0),
        view(224, (0.4, 1), 0.1, 0.2),
        *[view(96, (0.05, 0.4), 0.5, 0.0)] * 8,
    ]
    files = sorted(folder.iterdir())

    def read(index: int) -> list[Tensor]:
        with Image.open(files[index]) as opened:
            picture = opened.convert("RGB")
        return [change(picture) for change in views]

    return read


def measure(rounds: int) -> list[Row]:
    """All rows: in every round all photographs by the one pipeline, then by the other.

    Args:
        rounds: how many are kept.
    """
    rows = []
    for name, (width, height) in SIZES.items():
        with TemporaryDirectory() as place:
            folder = Path(place)
            write_photographs(folder, width, height)
            pipelines = {"ours": ours(folder), "theirs": theirs(folder)}
            times: dict[str, list[float]] = {pipeline: [] for pipeline in pipelines}
            for round_ in tqdm(range(-1, rounds), desc=f"photographs of {name}"):
                for pipeline, read in pipelines.items():
                    start = time.process_time()
                    for index in range(len(PHOTO_CREDITS)):
                        read(index)
                    if round_ >= 0:  # the first round warms up
                        times[pipeline].append((time.process_time() - start) / len(PHOTO_CREDITS))
            faster = [slow / fast for fast, slow in zip(times["ours"], times["theirs"], strict=True)]
            rows.append(Row(name, 1 / median(times["ours"]), 1 / median(times["theirs"]), median(faster)))
    return rows


def report(rows: list[Row]) -> str:
    """The rows as a Markdown table, with what a reader needs to judge it."""
    lines = [
        "| JPEG, pixels | ours, pictures/core-s | PIL transforms, pictures/core-s | ours × |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.pictures} | {row.ours:.0f} | {row.theirs:.0f} | {row.ours_is_faster:.2f} |" for row in rows
    ]
    return f"""## Photographs to 2 × 224 + 8 × 96 views

{chr(10).join(lines)}

Decoding and all of DINO's augmentation, by `ImageFolderStream` with `PhotoCrops`, and by torchvision's
transforms on Pillow's pictures, with which the authors train. One thread, process time.
"""
