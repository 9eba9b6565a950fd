"""Published image sets, through torchvision, which fetches them only where `download` says so."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from ..defaults import cpu_float32
from .image_set import ImageSet, check_choice, check_split

PUBLISHED = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")


@cpu_float32()
def published(name: str, split: str = "train", root: str | Path = "data", download: bool = False) -> ImageSet:
    """One of the small published sets that torchvision knows.

    Args:
        name: ``'CIFAR10'``, ``'CIFAR100'``, ``'MNIST'``, ``'FashionMNIST'`` or ``'KMNIST'``.
        split: ``'train'`` or ``'test'``, as published.
        root: the folder where the files are or go; ``~`` is the home folder.
        download: whether to fetch files that are not there.

    Returns:
        An ImageSet of (b, c, h, w) images: 3 × 32 × 32 for CIFAR (614 MB for its 50,000 training images),
        1 × 28 × 28 for the others.

    Raises:
        FileNotFoundError: if the files are not there and ``download`` is False.
        NotADirectoryError: if ``root`` is a file, or below one.
        PermissionError: if ``root`` may not be written.
        ConnectionError: if they cannot be fetched.
        TypeError, ValueError: for an argument that is not among those named above.
    """
    check_choice("name", name, PUBLISHED)
    check_split(split)
    if not isinstance(download, bool):
        raise TypeError(f"download must be True or False, not {download!r}")
    root = Path(root).expanduser()
    file = next((place for place in (root, *root.parents) if place.is_file()), None)
    if file:
        raise NotADirectoryError(f"root must be a folder, but {str(file)!r} is a file")
    instead = "digits(), photos() and shapes() need no download"
    try:
        data = getattr(datasets, name)(str(root), train=split == "train", download=download)
    except PermissionError as error:
        raise PermissionError(f"{name} cannot be written into {str(root)!r}: {error}") from error
    except OSError as error:
        raise ConnectionError(
            f"{name} cannot be fetched into {str(root)!r} ({error}); is there a network? {instead}"
        ) from error
    except RuntimeError as error:  # torchvision's word for missing files
        if download:
            raise ConnectionError(
                f"{name} cannot be fetched into {str(root)!r} ({error}); is there a network? {instead}"
            ) from error
        raise FileNotFoundError(
            f"{name} is not in {str(root)!r}; fetch it with download=True, or note that {instead}"
        ) from error
    pixels = torch.as_tensor(data.data)
    pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    return ImageSet(pixels.float().div_(255).contiguous(), torch.as_tensor(data.targets), tuple(data.classes))


def cifar10(split: str = "train", root: str | Path = "data", download: bool = False) -> ImageSet:
    """CIFAR-10, 50,000 training and 10,000 test pictures of ten classes: `published` with that name.

    Args:
        split: ``'train'`` or ``'test'``, as published.
        root: the folder where the files are or go; ``~`` is the home folder.
        download: whether to fetch files that are not there.

    Returns:
        An ImageSet of (b, 3, 32, 32) images.

    Raises:
        OSError, TypeError, ValueError: as `published` does.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return published("CIFAR10", split, root, download)
