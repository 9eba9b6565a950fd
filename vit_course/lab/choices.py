"""The choices of an experiment, refused in a sentence before anything is computed, and its pictures.

    mine = Choices("easy", None, None, "ViT", "DINO", steps=400, seed=0, guess=..., page="capstone.html")
    train, test = mine.load()

Lesson 13 reads its first cell with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch

from vit_course.patching import halvings, patch_grid, require_at_least, require_between

from . import catalogue
from .data import LEVELS, ImageSet, digits, image_folder, photos, shapes
from .data.files import pictures_by_folder
from .report import check_page

OBJECTIVES = ("supervised", *catalogue.OBJECTIVES)
NEED_LABELS = ("supervised", "distillation")
SIDE, SIDE_OF_DIGITS = 32, 8
PATCHES_A_SIDE = 4


@dataclass(frozen=True)
class Choices:
    """What is trained on what, by what, and how long.

    Args:
        data: a level of scenes, "digits", "photos", or the path of a folder of pictures: one sub-folder for
            each class, or none.
        size: side of the pictures in pixels; None for 32, of digits 8.
        patch: side of a patch in pixels, a power of two; None for a quarter of the picture.
        network: the name of a model of the catalogue that has a small form.
        objective: one of OBJECTIVES.
        steps: of the training.
        seed: of weights, batches and augmentation.
        guess: right answers of the nearest neighbours, of 100; None or ... where nobody guesses.
        page: the file that the report is written to.

    Attributes:
        side, patch_side: `size` and `patch`, or what stands for None.

    Raises:
        ValueError, TypeError, FileNotFoundError: for a choice that cannot be, or for two that do not go
            together, naming them.
    """

    data: str
    size: int | None
    patch: int | None
    network: str
    objective: str
    steps: int
    seed: int
    guess: float | EllipsisType | None
    page: str

    def __post_init__(self) -> None:
        if not self.is_generated and not self.is_folder:
            raise ValueError(
                f"DATA is {self.data!r}, which is no folder and none of {', '.join(LEVELS)}, digits, photos"
            )
        for name, menu in {"network": networks(), "objective": OBJECTIVES}.items():
            if getattr(self, name) not in menu:
                raise ValueError(
                    f"{name.upper()} is {getattr(self, name)!r}, which is none of {', '.join(menu)}"
                )
        require_at_least(1, STEPS=self.steps)
        require_at_least(0, SEED=self.seed)
        if self.percent is not None:
            require_between(0, 100, GUESS=self.percent)
        self._check_sizes()
        self._check_objective()
        check_page(self.page)

    def _check_sizes(self) -> None:
        require_at_least(1, SIZE=self.side, PATCH=self.patch_side)
        if self.data == "digits" and self.side != SIDE_OF_DIGITS:
            raise ValueError(
                f"SIZE is {self.size}, but digits are {SIDE_OF_DIGITS} × {SIDE_OF_DIGITS}: leave it None"
            )
        if not self.has_patches:
            if self.patch is not None:
                raise ValueError(
                    f"PATCH is {self.patch}, but {self.network} makes its own cells: leave it None"
                )
            return
        try:
            halvings(self.patch_side)
            patch_grid((self.side, self.side), self.patch_side)
        except ValueError as error:
            raise ValueError(
                f"PATCH is {self.patch_side} and SIZE {self.side}: PATCH must be a power of two from 2 on "
                "that divides SIZE"
            ) from error

    def _check_objective(self) -> None:
        reservation = catalogue.MODELS[self.network].reservations.get(self.objective)
        if reservation is not None and reservation.is_refused:
            raise ValueError(f"OBJECTIVE is {self.objective!r}: {reservation.sentence}")
        if self.objective in NEED_LABELS and self.is_folder and not self._folder_has_classes():
            raise ValueError(
                f"OBJECTIVE is {self.objective!r}, which needs labels, but {self.data!r} has no two "
                "sub-folders that could name classes: choose DINO, EsViT or MPP"
            )

    def _folder_has_classes(self) -> bool:
        return sum(bool(name and files) for name, files in pictures_by_folder(self._folder).items()) > 1

    @property
    def _folder(self) -> Path:
        return Path(self.data).expanduser()

    @property
    def is_generated(self) -> bool:
        """Whether the pictures come with the course."""
        return self.data in (*LEVELS, "digits", "photos")

    @property
    def is_folder(self) -> bool:
        """Whether the pictures are the reader's own."""
        return not self.is_generated and bool(self.data) and self._folder.is_dir()

    @property
    def pictures_name(self) -> str:
        """What to call the pictures: a folder without the path to it."""
        return self._folder.resolve().name if self.is_folder else self.data

    @property
    def is_photographic(self) -> bool:
        """Whether the pictures have an upright, and colours that mean something."""
        return self.data == "photos" or self.is_folder

    @property
    def percent(self) -> float | None:
        """The guess, or None where the reader wrote none down."""
        return None if isinstance(self.guess, EllipsisType) else self.guess

    @property
    def has_patches(self) -> bool:
        """Whether the network cuts its pictures into patches, whose size can be chosen."""
        return catalogue.MODELS[self.network].features == "tokens"

    @property
    def attends_everywhere(self) -> bool:
        """Whether some layer of the network attends to the whole picture."""
        return catalogue.MODELS[self.network].sees_everything

    @property
    def channels(self) -> int:
        """Of a picture."""
        return 1 if self.data == "digits" else 3

    @property
    def side(self) -> int:
        """Of a picture, in pixels."""
        return self.size if self.size is not None else SIDE_OF_DIGITS if self.data == "digits" else SIDE

    @property
    def patch_side(self) -> int:
        """Of a patch, in pixels."""
        return self.patch if self.patch is not None else max(1, self.side // PATCHES_A_SIDE)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """The pictures to train on, in an order drawn by chance, and those that nothing learns from."""
        return self._load("train"), self._load("test")

    def _load(self, split: str) -> ImageSet:
        seed = int(split == "test")  # test pictures by which nobody chose the recipes
        if self.data in LEVELS:
            return shapes(self.data, split, size=self.side, seed=seed)
        if self.data == "digits":
            return digits(split)
        if self.data == "photos":
            return photos(split, size=self.side, seed=seed)
        mine = image_folder(self._folder, split, size=self.side)
        return mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(0))]  # else by class

    def __str__(self) -> str:
        patches = f" in patches of {self.patch_side}" if self.has_patches else ""
        return (
            f"{self.network}, {self.objective}, on {self.data}, {self.side} × {self.side} pixels{patches}: "
            f"{self.steps} steps, seed {self.seed}."
        )


def networks() -> tuple[str, ...]:
    """The models of the catalogue that have a small form."""
    return tuple(name for name, row in catalogue.MODELS.items() if row.small)
