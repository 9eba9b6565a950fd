"""A folder of photographs read picture by picture, for sets that no memory holds."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2.functional import pil_to_tensor

from vit_course.patching import require_at_least, require_between

from .files import check_share, draw_split, pictures_by_folder, read_picture
from .image_set import check_split


class ImageFolderStream(Dataset):
    """A data set of the pictures in a folder, each decoded when it is asked for, once for all its views.

    Which files are pictures, how they are split, and that they come upright and in RGB is as in
    `image_folder`. A file that cannot be read is named in one warning and replaced by another picture, drawn
    at random; `broken` lists them all, whichever worker met them.

    The random numbers of the `transform` depend on nothing but a seed and the position of the picture: they
    are the same with any number of workers or processes.

    Args:
        path: the folder; ``~`` is the home folder. Hidden files and folders in it are left alone.
        transform: what becomes of a picture, (3, h, w) uint8: a `PhotoCrops`, or any function that draws its
            random numbers from PyTorch. None leaves it as it is.
        labels: whether sub-folders are classes, and an item is the pair of picture and label. Otherwise all
            pictures below the folder count alike, and an item is the picture.
        split: ``'train'`` or ``'test'``.
        test_share: share of the pictures of each sub-folder that is kept for testing; at 0 none.
        seed: another number draws another split.
        least_side: JPEGs are decoded at a half, a quarter or an eighth of their size where both sides keep so
            many pixels, such as a PhotoCrops' `least_side`; None for the whole.

    Attributes:
        classes: the names of the sub-folders, sorted; () without labels.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no pictures; with labels, if there are fewer than two classes or one has too
            few pictures.
        TypeError: for an argument of another type.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable[[Tensor], Any] | None = None,
        *,
        labels: bool = False,
        split: str = "train",
        test_share: float = 0.0,
        seed: int = 0,
        least_side: int | None = None,
    ) -> None:
        if not isinstance(path, str | Path):
            raise TypeError(f"path must be a str or a Path, not {path!r}")
        if not callable(transform) and transform is not None:
            raise TypeError(f"transform must be a function of a picture, not {transform!r}")
        if not isinstance(labels, bool):
            raise TypeError(f"labels must be True or False, not {labels!r}")
        check_split(split)
        check_share(test_share, split)
        require_between(0, 2**31, seed=seed)
        require_at_least(0, seed=seed)
        require_at_least(1, least_side=1 if least_side is None else least_side)
        self.root, self.transform, self.least_side = Path(path).expanduser(), transform, least_side
        found = pictures_by_folder(self.root)
        if labels:
            found.pop("")
            if len(found) < 2:
                raise ValueError(
                    f"{str(self.root)!r} holds {len(found)} class folders; labels need at least two"
                )
        chosen = {}
        for name, paths in found.items():
            if labels or len(paths) > 1:
                chosen[name] = draw_split(paths, split, test_share, seed, name)
            else:  # one picture of a folder that is no class cannot be split
                chosen[name] = paths if split == "train" else []
        if not any(chosen.values()):
            raise ValueError(
                f"{str(self.root)!r} holds too few pictures for a split with test_share {test_share}"
            )
        self.classes = tuple(chosen) if labels else ()
        counts = torch.tensor([len(paths) for paths in chosen.values()], device="cpu")
        self._labels = torch.arange(len(chosen), device="cpu").repeat_interleave(counts) if labels else None
        everything = [path for paths in chosen.values() for path in paths]
        self._names = _Names([str(path.relative_to(self.root)) for path in everything])
        # One flag for each picture, in memory that the workers share.
        self._is_broken = torch.zeros(len(self._names), dtype=torch.bool, device="cpu").share_memory_()
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int | tuple[int, int] | None) -> Any:
        """One picture, transformed, or the pair of it and its label.

        Args:
            index: 0 … len - 1, or a pair of this and the seed of its random numbers, as `loader` gives;
                without it the seed is drawn from PyTorch. None is for a picture that is skipped: an empty
                tensor comes in its place.

        Raises:
            IndexError: for an index out of range.
            ValueError: if no picture of all can be read.
        """
        if index is None:
            return torch.empty(0)
        position, seed = index if isinstance(index, tuple) else (index, _draw_seed())
        if not -len(self) <= position < len(self):
            raise IndexError(f"there is no picture {position} among {len(self)}")
        position %= len(self)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            picture = self._read(position)
            while picture is None:
                if self._is_broken.all():
                    raise ValueError(f"none of the {len(self)} pictures of {str(self.root)!r} can be read")
                position = int(torch.randint(len(self), (), device="cpu"))
                picture = self._read(position)
            item = picture if self.transform is None else self.transform(picture)
        return item if self._labels is None else (item, int(self._labels[position]))

    def __repr__(self) -> str:
        classes = f"{len(self.classes)} classes" if self.classes else "no labels"
        return f"ImageFolderStream({len(self):,} pictures in {str(self.root)!r}; {classes})"

    @property
    def broken(self) -> dict[Path, str]:
        """The files met so far that cannot be read, each with the reason."""
        for position in self._is_broken.nonzero().flatten().tolist():
            if position not in self._reasons:  # a worker met it: here it is tried again for the reason
                _, self._reasons[position] = self._try(position)
        return {self._path(position): self._reasons[position] for position in sorted(self._reasons)}

    def share_broken(self, other: ImageFolderStream) -> None:
        """Let another data set know which pictures cannot be read, and know it from there: it is said once.

        Args:
            other: of the same pictures, or of the first of them, as those in class folders are.

        Raises:
            ValueError: for a data set of other pictures.
        """
        if self.root != other.root or not self._names.begin_with(other._names):
            raise ValueError(f"{other!r} is not of the pictures of {self!r}")
        other._is_broken = self._is_broken[: len(other)]

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        workers: int = 0,
        seed: int = 0,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
        skip_batches: int = 0,
    ) -> DataLoader:
        """Batches for `fit`, or for evaluation with `shuffle=False`.

        Args:
            batch_size: pictures in a batch. Shuffled, a last batch that is smaller is left out.
            shuffle: draw another order in every pass.
            workers: processes that read ahead; they leave Ctrl-C to the process that trains.
            seed: of the order and of the random numbers of the pictures, both drawn anew in every pass.
            multiprocessing_context: ``'fork'``, ``'spawn'`` or ``'forkserver'``; the system's by default.
            pin_memory: whether batches come in page-locked memory, from where a GPU copies them faster.
            skip_batches: how many batches are empty at first, counted over all passes. `fit` draws those of a
                resumed run again, to go on behind them: they need not be read.

        Returns:
            A DataLoader of what the transform gives, stacked.

        Raises:
            ValueError: if there are fewer pictures than one batch.
            TypeError: for an argument of another type.
        """
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, workers=workers, seed=seed, skip_batches=skip_batches)
        if shuffle and len(self) < batch_size:
            raise ValueError(
                f"{str(self.root)!r} has {len(self)} pictures, too few for a batch of {batch_size}"
            )
        batches_in_a_pass = len(self) // batch_size if shuffle else -(-len(self) // batch_size)
        passes, batches = divmod(skip_batches, batches_in_a_pass)
        return DataLoader(
            self,
            batch_size,
            sampler=SeededSampler(len(self), shuffle, seed, skip=(passes, batches * batch_size)),
            drop_last=shuffle,
            num_workers=workers,
            worker_init_fn=_leave_interrupts,
            persistent_workers=workers > 0,
            multiprocessing_context=multiprocessing_context if workers else None,
            pin_memory=pin_memory,
        )

    def _path(self, position: int) -> Path:
        return self.root / self._names[position]

    def _try(self, position: int) -> tuple[Tensor | None, str]:
        """The picture (3, h, w) uint8, or None and the reason why it cannot be read."""
        try:
            return pil_to_tensor(read_picture(self._path(position), self.least_side)), ""
        except Exception as error:  # decoders raise whatever a broken file makes them stumble over
            return None, str(error) or type(error).__name__

    def _read(self, position: int) -> Tensor | None:
        """The picture, or None if it cannot be read, which is said once."""
        if self._is_broken[position]:
            return None
        picture, reason = self._try(position)
        if picture is None:
            self._is_broken[position] = True
            self._reasons[position] = reason
            warnings.warn(f"{self._path(position)} cannot be read as a picture: {reason}", stacklevel=2)
        return picture


class SeededSampler(Sampler):
    """The positions of a data set in order or shuffled, each with the seed of its random numbers.

    All is drawn in the process that trains, at the start of a pass: no worker draws a seed of its own.

    Args:
        length: of the data set.
        shuffle: draw another order in every pass.
        seed: of the first pass; the next ones go on from it.
        skip: how many passes, and then how many pictures of the next one, are skipped: they are drawn, and
            None comes in their place.

    Attributes:
        generator: source of the draws. `fit` keeps its state in a checkpoint, Accelerate keeps it the same in
            all processes.
    """

    def __init__(
        self, length: int, shuffle: bool = True, seed: int = 0, skip: tuple[int, int] = (0, 0)
    ) -> None:
        self.length, self.shuffle, self.skip, self.passes = length, shuffle, skip, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int] | None]:
        """Pairs of a position and a seed; None for what is skipped."""
        seed = _draw_seed(self.generator)
        order = torch.randperm(self.length, generator=self.generator, device="cpu").tolist()
        passes, pictures = self.skip
        skipped = self.length if self.passes < passes else pictures if self.passes == passes else 0
        self.passes += 1
        for number, position in enumerate(order if self.shuffle else range(self.length)):
            yield None if number < skipped else (position, seed + position)


def _draw_seed(generator: torch.Generator | None = None) -> int:
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


class _Names(Sequence[str]):
    """Strings in one block of bytes.

    A list of a million would be copied to every forked worker bit by bit: who reads a Python object writes
    its reference count.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.block = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def begin_with(self, others: _Names) -> bool:
        """Whether the first of these strings are all of the others."""
        return np.array_equal(self.ends[: len(others.ends)], others.ends) and np.array_equal(
            self.block[: len(others.block)], others.block
        )

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        return os.fsdecode(self.block[self.ends[index] : self.ends[index + 1]].tobytes())


def _leave_interrupts(worker: int) -> None:
    """In a worker: the stop button is for the process that trains, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
