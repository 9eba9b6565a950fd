"""Photographs of known classes, which say what a backbone is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from vit_course.evaluation import extract_features, knn_accuracy, linear_probe
from vit_course.training import evaluate

from ..data import ImageFolderStream
from .views import CentreView


class LabelledPictures:
    """Photographs of known classes, to measure a backbone with: those of training, and those kept from it.

    Args:
        data: a folder whose sub-folders are classes.
        image_size: side in pixels.
        validation: share of each class that is kept from training.
        batch: photographs at a time.
        workers: processes that read them.
        known: the most photographs of training that lend their labels, spread over all classes.
        asked: the most photographs that are named by the others.
        progress: show bars while photographs are read.

    Attributes:
        classes: their names.
        count: photographs that are named by the others.

    Raises:
        FileNotFoundError, ValueError: for a folder without classes, or with too few pictures of one.
    """

    def __init__(
        self,
        data: str | Path,
        image_size: int,
        validation: float,
        *,
        batch: int = 64,
        workers: int = 0,
        known: int = 5000,
        asked: int = 2000,
        progress: bool = False,
    ) -> None:
        self.progress = progress
        self.loaders = []
        for split, most in {"train": known, "test": asked}.items():
            pictures = ImageFolderStream(
                data,
                CentreView(image_size),
                labels=True,
                split=split,
                test_share=validation,
                least_side=image_size,
            )
            places = torch.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().long().tolist()
            sampler: Any = [(place, place) for place in places]  # each with a seed, as the stream takes them
            self.loaders.append(DataLoader(pictures, batch, sampler=sampler, num_workers=workers))
        self.classes, self.count = pictures.classes, len(places)

    def share_broken(self, trained: ImageFolderStream) -> None:
        """Name no photograph again that cannot be read and that the data set of the training has named."""
        known: Any = self.loaders[0].dataset
        trained.share_broken(known)

    def features(self, backbone: Any, pool: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and labels of the known photographs, then of those that are named by the others."""
        found: list[Tensor] = []
        for loader in self.loaders:
            labels: list[Tensor] = []

            def images(loader: DataLoader = loader, labels: list = labels) -> Any:
                for batch, of_batch in tqdm(loader, disable=not self.progress):
                    labels.append(of_batch)
                    yield batch

            found += [extract_features(backbone, images(), pool), torch.cat(labels)]
        known, of_known, asked, of_asked = found
        return known, of_known, asked, of_asked

    def knn(self, backbone: Any, pool: str | None = None) -> float:
        """The share of photographs that their 20 nearest neighbours name right."""
        return knn_accuracy(*self.features(backbone, pool))

    def measure(self, model: Any, pool: str | None = None) -> dict[str, float]:
        """All that can be measured: neighbours, a linear layer, and the model's own answers if it has any."""
        features = self.features(model, pool)
        numbers = {"knn": knn_accuracy(*features), "linear": linear_probe(*features)}
        return numbers | ({"accuracy": evaluate(model, self.loaders[1])} if model.num_classes else {})
