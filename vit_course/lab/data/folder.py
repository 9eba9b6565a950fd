"""A learner's own pictures, one sub-folder per class."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from .image_set import ImageSet, check_choice, check_int, check_split

MAX_BYTES = 4 * 2**30  # a laptop with 8 GB still has room for the model beside this
LISTED = 20  # broken pictures that a warning names one by one


def image_folder(
    path: str | Path,
    split: str = "train",
    size: int | tuple[int, int] = 32,
    *,
    test_share: float = 0.2,
    seed: int = 0,
    on_error: str = "skip",
) -> ImageSet:
    """Read a folder of pictures into memory: ``path/cat/*.jpg``, ``path/dog/*.png``, … as for torchvision's ``ImageFolder``.

    Pictures are turned upright (EXIF), made RGB (transparent parts become white), scaled to cover ``size`` and cut around their centre.
    Which pictures are for testing is drawn for each class by itself, from the sorted file names and ``seed`` alone.

    Args:
        path: the folder. Hidden files and folders in it are left alone.
        split: ``'train'`` or ``'test'``.
        size: height and width in pixels, an int or a (height, width) pair.
        test_share: share of each class that is kept for testing, in 0..1; at 0 everything is for training.
        seed: another number draws another split.
        on_error: ``'skip'`` leaves out pictures that cannot be read and warns with their number and names; ``'raise'`` stops at
            the first one.

    Returns:
        An ImageSet of (b, 3, height, width) images; the classes are the names of the sub-folders, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders, a class has no or too few pictures, everything together needs more than 4 GB, a
            picture cannot be read and ``on_error`` is ``'raise'``, or an argument is not among those named above.
        TypeError: for an argument of another type.

    Used in lesson 13.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or a Path, not {path!r}")
    check_split(split)
    check_choice("on_error", on_error, ("skip", "raise"))
    check_int("seed", seed, 0, 2**31)
    height, width = _check_size(size)
    _check_share(test_share, split)

    by_class = {
        name: _draw_split(name, paths, split, test_share, seed)
        for name, paths in _find_pictures(Path(path)).items()
    }
    total = sum(map(len, by_class.values()))
    needed = total * 3 * height * width * 4  # four bytes for each number
    if needed > MAX_BYTES:
        raise ValueError(
            f"{total:,} pictures of {height} × {width} pixels need {needed / 2**30:.1f} GB of memory; choose a smaller size, "
            "or read them batch by batch with torchvision.datasets.ImageFolder and a DataLoader"
        )

    images, labels, broken = [], [], {}
    progress = tqdm(
        total=total, desc=f"reading {path}", unit="picture", delay=2
    )  # shows itself after two seconds
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
    progress.close()

    for name, files in by_class.items():
        if all(file in broken for file in files):
            raise ValueError(
                f"none of the {len(files)} pictures of class {name!r} for split {split!r} can be read: {broken[files[0]]}"
            )
    if broken:
        lines = [f"{len(broken)} of {total} pictures cannot be read and are left out:"]
        lines += [f"{file}: {error}" for file, error in list(broken.items())[:LISTED]]
        lines += [f"… and {len(broken) - LISTED} more"] * (len(broken) > LISTED)
        warnings.warn("\n".join(lines), stacklevel=2)
    return ImageSet(torch.stack(images), torch.tensor(labels), tuple(by_class))


def _check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an int or a pair."""
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"size must be an int or a (height, width) pair, not {size!r}")
    for side in pair:
        check_int("size", side, 1)
    return tuple(pair)


def _check_share(test_share: float, split: str) -> None:
    """Raise unless a share of 0..1 is kept for testing, and some of it if the test pictures are asked for."""
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
        folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    if not folders:
        raise ValueError(
            f"{str(root)!r} holds no class folders; put the pictures of each class into a folder of its own, such as {str(root / 'cat')!r}"
        )
    found = {
        folder.name: sorted(path for path in folder.rglob("*") if _is_picture(path, folder))
        for folder in folders
    }
    if not any(found.values()):
        raise ValueError(
            f"the {len(folders)} class folders of {str(root)!r} hold no pictures ({', '.join(IMG_EXTENSIONS)})"
        )
    return found


def _is_picture(path: Path, folder: Path) -> bool:
    """Whether this looks like a picture file and neither it nor a folder around it is hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMG_EXTENSIONS and not hidden and path.is_file()


def _draw_split(name: str, paths: list[Path], split: str, test_share: float, seed: int) -> list[Path]:
    """The pictures of one class that belong to a split; each split gets at least one."""
    least = 1 if test_share == 0 else 2
    if len(paths) < least:
        parts = "" if least == 1 else f" for a split into training and testing with test_share {test_share}"
        raise ValueError(f"class {name!r} has {len(paths)} pictures; it needs at least {least}{parts}")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    for_testing = min(max(round(test_share * len(paths)), least - 1), len(paths) - 1)
    chosen = order[:for_testing] if split == "test" else order[for_testing:]
    return [paths[i] for i in sorted(chosen)]


def _read_picture(file: Path, height: int, width: int) -> Tensor:
    """One picture, upright, RGB, scaled and cut: (3, height, width), values in 0..1."""
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith(
            "I"
        ):  # grey of 16 bits, 0..65535, which Pillow's own conversion would clip to white
            picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
