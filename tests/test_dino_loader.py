"""A DataLoader of pictures, with labels or without, trains a DINO as it comes."""

import pytest
import torch
from support.experiments import difference
from support.unlabelled import crops_of, draw, small_dino
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vit_course.dino import DINOLoss, DINOSchedule, MultiCrop, SelfDistillation
from vit_course.training import fit

IMAGES, LABELS = draw(24, 3, 16, 16), torch.arange(24) % 3
CROP = MultiCrop(16, 8, 1, rotation=180.0)


class Pictures(Dataset):
    """Single pictures, as they are, or as the crops that a transform makes; with a label or without."""

    def __init__(self, labels: bool, transform: object = None) -> None:
        self.labels, self.transform = labels, transform

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> object:
        item = IMAGES[index] if self.transform is None else self.transform(IMAGES[index])
        return (item, int(LABELS[index])) if self.labels else item


def one_by_one(image: Tensor) -> list[Tensor]:
    return [crop[0] for crop in CROP(image[None])]


def loader(data: Dataset, **changes: object) -> DataLoader:
    return DataLoader(data, batch_size=8, shuffle=True, **changes)


def trained(batches: object, crop: object = None, **changes: object) -> dict:
    model, loss = small_dino(), SelfDistillation(DINOLoss(24), crop=crop)
    schedule = DINOSchedule(lr=3e-3, momentum=0.9, frozen=0.0)
    history = fit(model, batches, loss, 5, progress=False, callbacks=[schedule], **changes)
    return {"history": history, "state": model.state_dict()}


LOADERS = {
    "images": (lambda: loader(Pictures(labels=False)), CROP),
    "images and labels": (lambda: loader(Pictures(labels=True)), CROP),
    "images of a TensorDataset": (lambda: loader(TensorDataset(IMAGES)), CROP),
    "images and labels of a TensorDataset": (lambda: loader(TensorDataset(IMAGES, LABELS)), CROP),
    "crops": (lambda: loader(Pictures(False, one_by_one)), None),
    "crops and labels": (lambda: loader(Pictures(True, one_by_one)), None),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_trains_as_it_comes(kind: str) -> None:
    batches, crop = LOADERS[kind]
    history = trained(batches(), crop)["history"]
    assert len(history["loss"]) == 5 and set(history) == {"loss", "lr", "entropy", "kl"}


def test_labels_make_no_difference() -> None:
    for with_labels, without in (("images and labels", "images"), ("crops and labels", "crops")):
        runs = [trained(LOADERS[kind][0](), LOADERS[kind][1]) for kind in (with_labels, without)]
        assert difference(*runs) == 0.0


def test_crops_are_those_of_the_function() -> None:
    """Drawn from PyTorch's random state, and with all their digits under autocast."""
    seen = []

    class Look(torch.nn.Module):
        def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
            seen.append(crops)
            return draw(3, 4, 24), draw(2, 4, 24)

    torch.manual_seed(3)
    wanted = CROP(IMAGES[:4])
    for batch in (IMAGES[:4], [IMAGES[:4], LABELS[:4]], (IMAGES[:4],)):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            SelfDistillation(DINOLoss(24), crop=CROP)(Look(), batch)
    for crops in seen:
        assert all(torch.equal(one, other) for one, other in zip(crops, wanted, strict=True))


def test_each_step_draws_other_crops_and_a_resumed_run_the_same(tmp_path: object) -> None:
    path, fresh = tmp_path / "run.pt", LOADERS["images and labels"][0]
    straight = trained(fresh(), CROP)

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        trained(fresh(), CROP, checkpoint=path, checkpoint_every=1, after_step=stop)
    assert difference(trained(fresh(), CROP, checkpoint=path, resume=True), straight) == 0.0
    same_images = trained([IMAGES[:8]], CROP)["history"]["entropy"]
    assert len(set(same_images)) == 5


def test_crops_stay_crops() -> None:
    """Two views of one picture each are no picture with labels."""
    model = small_dino()
    for crops in (crops_of((16, 16)), tuple(crops_of((16, 16, 8)))):
        value, _ = SelfDistillation(DINOLoss(24))(model, crops)
        again, _ = SelfDistillation(DINOLoss(24))(model, [crops, LABELS[:4]])
        assert torch.equal(value, again)


@pytest.mark.parametrize("batch", [IMAGES[:8], [IMAGES[:8], LABELS[:8]], [IMAGES[:8], LABELS[:8, None]]])
def test_images_without_a_crop_say_what_to_write(batch: object) -> None:
    with pytest.raises(TypeError, match=r"crop=MultiCrop\(\.\.\.\)"):
        SelfDistillation(DINOLoss(24))(small_dino(), batch)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="crop must be a function.*got 5"):
        SelfDistillation(DINOLoss(24), crop=5)
    for batch, error in (([LABELS, IMAGES], ValueError), (5, TypeError), ([], TypeError)):
        with pytest.raises(error, match="images must"):
            SelfDistillation(DINOLoss(24), crop=CROP)(small_dino(), batch)
