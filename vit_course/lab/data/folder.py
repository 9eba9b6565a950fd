"""A learner's own pictures in memory, one sub-folder per class or none."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vit_course.patching import pair, require_at_least, require_between

from ..defaults import cpu_float32
from .files import check_share, draw_split, pictures_by_folder, read_picture
from .image_set import ImageSet, check_choice, check_split

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
    """Read a folder of pictures, one sub-folder per class as for torchvision's ``ImageFolder``, into memory.

    A flat folder, whose pictures lie in no sub-folder, is a set without labels: it has no ``classes``, and
    every label is 0.

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
        An ImageSet of (b, 3, height, width) images; the classes are the names of the sub-folders, sorted, or
        () where there are none.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it or a class has no or too few pictures, everything together needs more than 4 GB, a
            picture cannot be read and ``on_error`` is ``'raise'``, or an argument is not among those named
            above.
        TypeError: for an argument of another type.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or a Path, not {path!r}")
    check_split(split)
    check_choice("on_error", on_error, ("skip", "raise"))
    require_at_least(0, seed=seed)
    require_between(0, 2**31, seed=seed)
    height, width = pair(size)
    check_share(test_share, split)

    found = pictures_by_folder(Path(path).expanduser())
    loose = found.pop("")
    by_class = {
        name: draw_split(paths, split, test_share, seed, name)
        for name, paths in (found if any(found.values()) else {"": loose}).items()
    }
    total = sum(map(len, by_class.values()))
    needed = total * 3 * height * width * 4  # four bytes for each number
    if needed > MAX_BYTES:
        raise ValueError(
            f"{total:,} pictures of {height} × {width} pixels need {needed / 2**30:.1f} GB of memory; "
            "choose a smaller size, or read them batch by batch with ImageFolderStream"
        )

    images, labels, broken = [], [], {}
    with tqdm(
        total=total, desc=f"reading {path}", unit="picture", delay=2
    ) as progress:  # only if it takes long
        for label, files in enumerate(by_class.values()):
            for file in files:
                try:
                    images.append(_read(file, height, width))
                    labels.append(label)
                except Exception as error:  # decoders raise whatever a broken file makes them stumble over
                    if on_error == "raise":
                        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
                    broken[file] = error
                progress.update()

    for name, files in by_class.items():
        if all(file in broken for file in files):
            of_class = f" of class {name!r}" if name else ""
            raise ValueError(
                f"none of the {len(files)} pictures{of_class} for split {split!r} can be read: "
                f"{broken[files[0]]}"
            )
    if broken:
        lines = [f"{len(broken)} of {total} pictures cannot be read and are left out:"]
        lines += [f"{file}: {error}" for file, error in list(broken.items())[:LISTED]]
        if len(broken) > LISTED:
            lines.append(f"… and {len(broken) - LISTED} more")
        warnings.warn("\n".join(lines), stacklevel=2)
    with cpu_float32():
        return ImageSet(torch.stack(images), torch.tensor(labels), tuple(filter(None, by_class)))


def _read(file: Path, height: int, width: int) -> Tensor:
    """One picture, scaled and cut around its centre: (3, height, width), values in 0..1."""
    picture = ImageOps.fit(read_picture(file), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
