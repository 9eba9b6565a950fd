"""Picture files: which there are in a folder, and what is in one of them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..defaults import cpu_float32

# A file with one of these names is meant as a picture, and is reported where Pillow cannot read it.
PICTURE_NAMES = frozenset(IMG_EXTENSIONS) | frozenset(
    ".apng .avif .gif .heic .heif .ico .jfif .jp2 .jpe .jxl .svg".split()
)
# Beside the names that begin with a dot: what Windows and macOS put into folders and archives.
HIDDEN = frozenset(("thumbs.db", "desktop.ini", "__macosx"))


def pictures_by_folder(root: Path) -> dict[str, list[Path]]:
    """The picture files of a folder, by the sub-folder that they lie in.

    Args:
        root: the folder.

    Returns:
        The names of the sub-folders, sorted, each with its pictures, `pictures_below` it; a sub-folder may
        have none. Last, under the name ``''``, the pictures that lie in no sub-folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no pictures at all.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}")
    places = sorted((place for place in root.iterdir() if not _is_hidden(place.name)), key=lambda p: p.name)
    found = {place.name: pictures_below(place) for place in places if _is_folder(place)}
    found[""] = [place for place in places if place.name not in found and _is_picture(place)]
    if not any(found.values()):
        kinds = f"({', '.join(IMG_EXTENSIONS)} …)"
        if found.keys() == {""}:
            raise ValueError(f"{str(root)!r} holds no pictures {kinds} and no class folders with pictures")
        raise ValueError(f"the {len(found) - 1} class folders of {str(root)!r} hold no pictures {kinds}")
    return found


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its sub-folders, links included, sorted the same way on every system."""
    found, seen = [], set()
    for place, inside, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder that was here before, perhaps one around it
            inside.clear()
            continue
        seen.add(real)
        folders = [name for name in inside if _is_folder(Path(place, name))]
        files += set(inside) - set(folders)
        inside[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(place, name) for name in files if _is_picture(Path(place, name))]
    return sorted(found, key=lambda path: path.parts)


def _refuse(error: OSError) -> None:
    """A folder that cannot be opened must not vanish."""
    raise error


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is one that its system does not show."""
    return name.startswith(".") or name.lower() in HIDDEN


def _is_named_like_a_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_NAMES


def _is_folder(path: Path) -> bool:
    """Whether this is a folder, but no empty one that is called like a picture, which is reported as one."""
    return path.is_dir() and (not _is_named_like_a_picture(path) or any(path.iterdir()))


def _is_picture(path: Path) -> bool:
    """Whether this is called like a picture, even as a link to nowhere, or holds one by another name."""
    if _is_hidden(path.name):
        return False
    if _is_named_like_a_picture(path):
        return True
    if not path.is_file():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are no pictures after all
            with Image.open(path) as opened:
                return not isinstance(opened, ImageFile.StubImageFile)  # known by name only
    except Exception:
        return False


def draw_split(paths: list[Path], split: str, test_share: float, seed: int, name: str) -> list[Path]:
    """The pictures of one class, or of a folder without classes, that belong to a split.

    Each split gets at least one.

    Args:
        paths: all of them, sorted.
        split: ``'train'`` or ``'test'``.
        test_share: the share of them that is for testing; at 0 all are for training.
        seed: another number draws another split.
        name: of the class, ``''`` for a folder without classes.

    Raises:
        ValueError: if there are too few.
    """
    least = 1 if test_share == 0 else 2
    if len(paths) < least:
        holder = f"class {name!r}" if name else "the folder"
        parts = "" if least == 1 else f" for a split into training and testing with test_share {test_share}"
        raise ValueError(f"{holder} has {len(paths)} pictures; it needs at least {least}{parts}")
    with cpu_float32():
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    for_testing = min(max(round(test_share * len(paths)), least - 1), len(paths) - 1)
    chosen = order[:for_testing] if split == "test" else order[for_testing:]
    return [paths[i] for i in sorted(chosen)]


def check_share(test_share: float, split: str) -> None:
    """Raise unless a share of 0..1 is kept for testing, and some of it if the test pictures are wanted."""
    if not isinstance(test_share, int | float) or isinstance(test_share, bool):
        raise TypeError(f"test_share must be a number from 0 to 1, not {test_share!r}")
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share must be at least 0 and below 1, not {test_share}")
    if test_share == 0 and split == "test":
        raise ValueError("with test_share 0 there are no test pictures")


def read_picture(file: Path, least_side: int | None = None) -> Image.Image:
    """One picture, upright (EXIF), RGB, its transparent parts white; of an animation the first frame.

    Args:
        file: any file that Pillow can read.
        least_side: a JPEG is decoded at a half, a quarter or an eighth of its size (libjpeg's scaled
            decoding, several times as fast) where both its sides keep so many pixels; None for the whole.

    Raises:
        Exception: whatever a broken file makes its decoder stumble over.
    """
    if not file.is_file():  # to open a pipe would wait for ever
        raise ValueError("it is no file" if file.exists() else "it leads to no file")
    with Image.open(file) as picture:
        if least_side is not None:
            picture.draft(None, (least_side, least_side))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode == "RGB" and not picture.has_transparency_data:
            return picture
        converted: Image.Image = picture
        if picture.mode == "F" or picture.mode.startswith("I"):
            converted = _eight_bits(picture, picture.format)
        if converted.has_transparency_data:
            converted = converted.convert("RGBA")
            converted = Image.alpha_composite(Image.new("RGBA", converted.size, "white"), converted)
        return converted.convert("RGB")


def _eight_bits(picture: Image.Image, file_format: str | None) -> Image.Image:
    """Grey of 16 bits, 0..65535, in 8 bits: Pillow's own conversion would clip it to white.

    Raises:
        ValueError: for numbers of which the file does not say what is white.
    """
    # Pillow opens some files of 16 bits as 32 bits.
    if picture.mode == "F" or picture.mode == "I" and file_format not in ("PNG", "PPM"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise ValueError(
            f"its pixels are {kind} numbers, which do not say what is white; store it in 8 or 16 bits"
        )
    values = np.asarray(picture)
    if 0 < values.max() < 256:
        raise ValueError(
            f"its 16-bit numbers end at {values.max()} of 65535, so it would come out black; store it in 8 "
            "bits"
        )
    return Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
