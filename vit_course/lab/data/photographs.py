"""Real colour photographs that come with scikit-image and scikit-learn, whole or in small crops."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from vit_course.patching import require_at_least, require_between

from ..defaults import cpu_float32
from .image_set import ImageSet, check_choice, check_split


@dataclass(frozen=True)
class Credit:
    """Where a photograph comes from.

    Attributes:
        title: what it shows.
        author: who made it.
        licence: as stated by the package that carries it.
        source: where that package got it.
        package: the package.
        file: the file in it.
    """

    title: str
    author: str
    licence: str
    source: str
    package: str
    file: str


PHOTO_CREDITS = {
    "astronaut": Credit(
        "Eileen Collins, astronaut",
        "NASA",
        "public domain",
        "https://flic.kr/p/r9qvLn",
        "skimage",
        "data/astronaut.png",
    ),
    "chelsea": Credit(
        "Chelsea the cat", "Stéfan van der Walt", "CC0", "scikit-image", "skimage", "data/chelsea.png"
    ),
    "china": Credit(
        "A Chinese temple",
        "danielbuechele",
        "CC BY 2.0",
        "https://www.flickr.com/photos/danielbuechele/6061409035",
        "sklearn",
        "datasets/images/china.jpg",
    ),
    "coffee": Credit(
        "A cup of coffee",
        "Rachel Michetti, Pikolo Espresso Bar",
        "CC0",
        "scikit-image",
        "skimage",
        "data/coffee.png",
    ),
    "flower": Credit(
        "A flower",
        "vultilion",
        "CC BY 2.0",
        "https://www.flickr.com/photos/vultilion/6056698931",
        "sklearn",
        "datasets/images/flower.jpg",
    ),
    "hubble": Credit(
        "Hubble eXtreme Deep Field",
        "NASA",
        "public domain",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "skimage",
        "data/hubble_deep_field.jpg",
    ),
    "retina": Credit(
        "A human retina",
        "Mikael Häggström",
        "CC0",
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        "skimage",
        "data/retina.jpg",
    ),
    "rocket": Credit(
        "Launch of a Falcon 9",
        "SpaceX",
        "public domain",
        "https://www.flickr.com/photos/spacexphotos/16511594820",
        "skimage",
        "data/rocket.jpg",
    ),
    "tissue": Credit(
        "Colonic glands, stained",
        "Center for Microscopy and Molecular Imaging (CMMI)",
        "no known copyright restrictions",
        "scikit-image",
        "skimage",
        "data/ihc.png",
    ),
}

TEST_SHARE = 0.3  # of every photograph, in two places
CROP_SIDE = (0.15, 0.29)  # smallest and largest side of a crop, as a share of the photograph's height
DEFAULT_COUNT = {"train": 5_000, "test": 1_000}


def photo(name: str) -> Tensor:
    """One whole photograph. `PHOTO_CREDITS` tells whose it is.

    Args:
        name: one of the names in `PHOTO_CREDITS`, such as ``'chelsea'``.

    Returns:
        (3, h, w) float32, values in 0..1, in the size in which the package carries it.

    Raises:
        TypeError, ValueError: for another name.
        FileNotFoundError: if the installed scikit-image or scikit-learn does not carry the file; nothing is
            ever downloaded.
    """
    check_choice("name", name, tuple(PHOTO_CREDITS))
    credit = PHOTO_CREDITS[name]
    path = files(credit.package) / credit.file  # scikit-image's own functions may go to the network
    if not path.is_file():
        raise FileNotFoundError(
            f"the installed {credit.package} does not carry {credit.file}, the photograph {name!r}"
        )
    with path.open("rb") as file, Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@cpu_float32()
def photos(split: str = "train", count: int | None = None, size: int = 32, seed: int = 0) -> ImageSet:
    """Square crops of random place and size, labelled with the photograph they were cut from.

    In the upper half of each photograph the right 30 % are for testing, in the lower half the left 30 %; the
    rest is for training. No crop crosses a border, so training and test crops never share a pixel. The two
    corners make the test about more than one place.

    Args:
        split: ``'train'`` or ``'test'``.
        count: number of crops b; None means 5,000 for training and 1,000 for testing.
        size: height and width to which each crop is resized, in pixels.
        seed: another number cuts elsewhere.

    Returns:
        An ImageSet of (b, 3, size, size) images; the classes are the names of the photographs. Same
        arguments, same crops.

    Raises:
        TypeError, ValueError: for an argument that is not among those named above.
    """
    check_split(split)
    count = DEFAULT_COUNT[split] if count is None else count
    require_at_least(1, count=count)
    require_at_least(4, size=size)
    require_at_least(0, seed=seed)
    require_between(1, 1_000_000, count=count)
    require_between(4, 512, size=size)
    require_between(0, 2**30, seed=seed)

    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    parts = [regions(photo(name), split) for name in PHOTO_CREDITS]
    labels = torch.randint(len(parts), (count,), generator=generator)
    upper = torch.randint(2, (count,), generator=generator)
    images = torch.stack(
        [random_crop(parts[i][j], size, generator) for i, j in zip(labels, upper, strict=True)]
    )
    return ImageSet(images, labels, tuple(PHOTO_CREDITS))


def save_photos(
    folder: str | Path, split: str = "train", count: int | None = None, size: int = 96, seed: int = 0
) -> Path:
    """Write crops of `photos` as JPEG files, a sub-folder for each photograph: a folder to practise on.

    Args:
        folder: is made, with what leads to it; files of the same names in it are replaced.
        split, count, size, seed: as of `photos`.

    Returns:
        The folder.

    Raises:
        TypeError, ValueError: as `photos`.
        OSError: where the files cannot be written.
    """
    crops, folder = photos(split, count, size, seed), Path(folder).expanduser()
    for number, (image, label) in enumerate(zip(crops.images, crops.labels.tolist(), strict=True)):
        file = folder / crops.classes[label] / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(file, quality=92)
    return folder


def regions(picture: Tensor, split: str) -> tuple[Tensor, Tensor]:
    """The two parts of a photograph (3, h, w) that belong to a split, of its lower and of its upper half."""
    _, h, w = picture.shape
    upper, lower = picture[:, : h // 2], picture[:, h // 2 :]
    border = round(TEST_SHARE * w)
    if split == "test":
        return lower[:, :, :border], upper[:, :, w - border :]
    return lower[:, :, border:], upper[:, :, : w - border]


def random_crop(picture: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random square of one half of a photograph (3, h / 2, w), resized to (3, size, size)."""
    _, h, w = picture.shape
    share, down, right = torch.rand(3, generator=generator).tolist()
    side = round(2 * h * (CROP_SIDE[0] + (CROP_SIDE[1] - CROP_SIDE[0]) * share))
    top, left = int(down * (h - side + 1)), int(right * (w - side + 1))
    return resize(picture[:, top : top + side, left : left + side], [size, size], antialias=True).clamp(0, 1)
