"""A learner's own pictures, one sub-folder per class."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from vit_course.patching import pair, require_at_least, require_between

from ..defaults import cpu_float32
from .image_set import ImageSet, check_choice, check_split

MAX_BYTES = 4 * 2**30  # a laptop with 8 GB still has room for the model beside this
LISTED = 20  # broken pictures that a warning names one by one

# A file with one of these names is meant as a picture, and is reported where Pillow cannot read it.
PICTURE_NAMES = frozenset(IMG_EXTENSIONS) | frozenset(
    ".apng .avif .gif .heic .heif .ico .jfif .jp2 .jpe .jxl .svg".split()
)
# Beside the names that begin with a dot: what Windows and macOS put into folders and archives.
HIDDEN = frozenset(("thumbs.db", "desktop.ini", "__macosx"))


def image_folder(
    path: str | Path,
    split: str = "train",
    size: int | tuple[int, int] = 32,
    *,
    test_share: float = 0.2,
    seed: int = 0,
    on_error: str = "skip",
) -> ImageSet:
    """Read a folder of pictures, one sub-folder per class as for torchvision's ``ImageFolder``, into memory.

    A picture is a file of any kind that Pillow can read, whatever its name; files that are called like a
    picture and cannot be read are reported. Of an animation the first frame is taken. Links are followed; a
    folder that a class reaches on several ways counts once.

    Pictures are turned upright (EXIF), made RGB (transparent parts become white), scaled to cover ``size``
    and cut around their centre. Which pictures are for testing is drawn for each class by itself, from the
    sorted file names and ``seed`` alone.

    Args:
        path: the folder; ``~`` is the home folder. Hidden files and folders in it are left alone.
        split: ``'train'`` or ``'test'``.
        size: height and width in pixels, an int or a (height, width) pair.
        test_share: share of each class that is kept for testing, in 0..1; at 0 everything is for training.
        seed: another number draws another split.
        on_error: ``'skip'`` leaves out pictures that cannot be read and warns with their number and names;
            ``'raise'`` stops at the first one.

    Returns:
        An ImageSet of (b, 3, height, width) images; the classes are the names of the sub-folders, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders, a class has no or too few pictures, everything together needs
            more than 4 GB, a picture cannot be read and ``on_error`` is ``'raise'``, or an argument is not
            among those named above.
        TypeError: for an argument of another type.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or a Path, not {path!r}")
    check_split(split)
    check_choice("on_error", on_error, ("skip", "raise"))
    require_at_least(0, seed=seed)
    require_between(0, 2**31, seed=seed)
    height, width = pair(size)
    _check_share(test_share, split)

    by_class = {
        name: _draw_split(name, paths, split, test_share, seed)
        for name, paths in _find_pictures(Path(path).expanduser()).items()
    }
    total = sum(map(len, by_class.values()))
    needed = total * 3 * height * width * 4  # four bytes for each number
    if needed > MAX_BYTES:
        raise ValueError(
            f"{total:,} pictures of {height} × {width} pixels need {needed / 2**30:.1f} GB of memory; "
            "choose a smaller size, or read them batch by batch with torchvision.datasets.ImageFolder and "
            "a DataLoader"
        )

    images, labels, broken = [], [], {}
    with tqdm(
        total=total, desc=f"reading {path}", unit="picture", delay=2
    ) as progress:  # only if it takes long
        for label, files in enumerate(by_class.values()):
            for file in files:
                try:
                    images.append(_read_picture(file, height, width))
                    labels.append(label)
                except Exception as error:  # decoders raise whatever a broken file makes them stumble over
                    if on_error == "raise":
                        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
                    broken[file] = error
                progress.update()

    for name, files in by_class.items():
        if all(file in broken for file in files):
            raise ValueError(
                f"none of the {len(files)} pictures of class {name!r} for split {split!r} can be read: "
                f"{broken[files[0]]}"
            )
    if broken:
        lines = [f"{len(broken)} of {total} pictures cannot be read and are left out:"]
        lines += [f"{file}: {error}" for file, error in list(broken.items())[:LISTED]]
        if len(broken) > LISTED:
            lines.append(f"… and {len(broken) - LISTED} more")
        warnings.warn("\n".join(lines), stacklevel=2)
    with cpu_float32():
        return ImageSet(torch.stack(images), torch.tensor(labels), tuple(by_class))


def _check_share(test_share: float, split: str) -> None:
    """Raise unless a share of 0..1 is kept for testing, and some of it if the test pictures are wanted."""
    if not isinstance(test_share, int | float) or isinstance(test_share, bool):
        raise TypeError(f"test_share must be a number from 0 to 1, not {test_share!r}")
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share must be at least 0 and below 1, not {test_share}")
    if test_share == 0 and split == "test":
        raise ValueError("with test_share 0 there are no test pictures")


def _find_pictures(root: Path) -> dict[str, list[Path]]:
    """The picture files of each class folder, sorted by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}")
    folders = sorted(
        (folder for folder in root.iterdir() if folder.is_dir() and not _is_hidden(folder.name)),
        key=lambda folder: folder.name,
    )
    if not folders:
        raise ValueError(
            f"{str(root)!r} holds no class folders; put the pictures of each class into a folder of its "
            f"own, such as {str(root / 'cat')!r}"
        )
    found = {folder.name: _pictures_below(folder) for folder in folders}
    if not any(found.values()):
        raise ValueError(
            f"the {len(folders)} class folders of {str(root)!r} hold no pictures "
            f"({', '.join(IMG_EXTENSIONS)} …)"
        )
    return found


def _pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its sub-folders, links included, sorted the same way on every system."""
    found, seen = [], set()
    for place, inside, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder that was here before, perhaps one around it
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not _is_hidden(name))
        found += [Path(place, name) for name in files if _is_picture(Path(place, name))]
    return sorted(found, key=lambda path: path.parts)


def _refuse(error: OSError) -> None:
    """A folder that cannot be opened must not vanish."""
    raise error


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is one that its system does not show."""
    return name.startswith(".") or name.lower() in HIDDEN


def _is_picture(path: Path) -> bool:
    """Whether this is called like a picture, even as a link to nowhere, or holds one by another name."""
    if _is_hidden(path.name):
        return False
    if path.suffix.lower() in PICTURE_NAMES:
        return path.is_file() or not path.exists()
    if not path.is_file():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are no pictures after all
            with Image.open(path) as opened:
                return not isinstance(opened, ImageFile.StubImageFile)  # known by name only
    except Exception:
        return False


def _draw_split(name: str, paths: list[Path], split: str, test_share: float, seed: int) -> list[Path]:
    """The pictures of one class that belong to a split; each split gets at least one."""
    least = 1 if test_share == 0 else 2
    if len(paths) < least:
        parts = "" if least == 1 else f" for a split into training and testing with test_share {test_share}"
        raise ValueError(f"class {name!r} has {len(paths)} pictures; it needs at least {least}{parts}")
    with cpu_float32():
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    for_testing = min(max(round(test_share * len(paths)), least - 1), len(paths) - 1)
    chosen = order[:for_testing] if split == "test" else order[for_testing:]
    return [paths[i] for i in sorted(chosen)]


def _read_picture(file: Path, height: int, width: int) -> Tensor:
    """One picture, upright, RGB, scaled and cut: (3, height, width), values in 0..1."""
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture = _eight_bits(picture, opened.format)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


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
