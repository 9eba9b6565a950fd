"""The image sets: what they hold, that they need no network, and what they answer to bad input."""

import re
import socket

import numpy as np
import pytest
import torch
from support.neighbours import knn
from torch import Tensor

from vit_course.lab import data
from vit_course.lab.data import digits, image_folder, normalise, photo, photographs, photos, shapes


def test_digits_are_split_once_and_for_all():
    train, test = digits(), digits("test")
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.images.min() == 0 and train.images.max() == 1
    assert len(set(train.classes)) == 10 and (test.labels.bincount() >= 35).all()
    together = torch.cat([train.images, test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 1797  # scikit-learn's digits all differ: none is in both parts
    # training.md measured 97.5 % on its 1437 / 360 split: this is that one
    assert knn(train.images.flatten(1), train.labels, test.images.flatten(1), test.labels) == pytest.approx(
        0.975, abs=0.002
    )


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*arguments, **options):
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", data.PHOTO_CREDITS)
def test_every_photograph_is_there_without_a_network(name, no_network):
    picture = photo(name)
    assert picture.shape[0] == 3 and min(picture.shape[1:]) >= 300 and picture.dtype == torch.float32
    assert 0 <= picture.min() < 0.2 and 0.8 < picture.max() <= 1
    assert (picture[0] - picture[2]).abs().mean() > 0.01  # in colour
    assert all(vars(data.PHOTO_CREDITS[name]).values())


def test_a_photograph_that_a_package_lost_is_named(monkeypatch):
    lost = data.Credit("gone", "no one", "CC0", "nowhere", "skimage", "data/gone.png")
    monkeypatch.setitem(data.PHOTO_CREDITS, "gone", lost)
    with pytest.raises(FileNotFoundError, match="skimage does not carry data/gone.png"):
        photo("gone")


def test_training_and_test_crops_share_no_pixel(monkeypatch):
    h, w = 300, 450
    row, column = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    monkeypatch.setattr(
        photographs, "photo", lambda name: torch.stack([row, column, row])
    )  # each pixel tells where it is

    def covered(split: str) -> Tensor:
        """Which pixels of the photograph some crop may have seen: what lies between the extremes of that
        crop.
        """
        seen = torch.zeros(h, w, dtype=torch.bool)
        for crop in photos(split, count=600).images:
            (top, left), (bottom, right) = (
                (extreme(1).values * torch.tensor([h, w])).tolist()
                for extreme in (crop[:2].flatten(1).min, crop[:2].flatten(1).max)
            )
            seen[int(top) : round(bottom) + 1, int(left) : round(right) + 1] = True
        return seen

    train, test = covered("train"), covered("test")
    assert not (train & test).any()
    assert train.float().mean() > 0.6 and test.float().mean() > 0.2  # and nearly everything is used


def test_photo_crops_are_alike_for_equal_arguments():
    first, again, other = photos(count=20), photos(count=20), photos(count=20, seed=1)
    assert first.images.shape == (20, 3, 32, 32) and torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert photos("test", count=3, size=48).images.shape == (3, 3, 48, 48)


def test_published_sets_that_are_not_there_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR10 is not in .*download=True"):
        data.cifar10(root=tmp_path)
    with pytest.raises(ConnectionError, match="FashionMNIST cannot be fetched(.|\n)*is there a network"):
        data.published("FashionMNIST", root=tmp_path, download=True)  # conftest.py cuts the network


def test_a_folder_that_may_not_be_written_is_no_fault_of_the_network(tmp_path, monkeypatch):
    def refuse(root: str, train: bool, download: bool) -> None:
        raise PermissionError(13, "Permission denied", root)

    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)
    with pytest.raises(PermissionError, match="MNIST cannot be written into .*Permission denied"):
        data.published("MNIST", root=tmp_path, download=True)


@pytest.mark.parametrize(("name", "pixels"), [("CIFAR10", (3, 3, 2, 2)), ("MNIST", (3, 1, 2, 2))])
def test_published_sets_take_the_course_form(monkeypatch, name, pixels):
    class Published:
        """What torchvision's sets look like: bytes, (b, h, w, c) in NumPy for CIFAR, (b, h, w) in a tensor
        for MNIST.
        """

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, train, download) == ("there", False, False)
            self.data = (
                np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
                if name == "CIFAR10"
                else torch.arange(12).byte().view(3, 2, 2)
            )
            self.targets, self.classes = [1, 0, 1], ["cat", "dog"]

    monkeypatch.setattr(f"torchvision.datasets.{name}", Published)
    found = data.published(name, "test", "there")
    assert (
        found.images.shape == pixels
        and found.labels.tolist() == [1, 0, 1]
        and found.classes == ("cat", "dog")
    )
    assert found.images[0, 0, 0, 1] == (3 if name == "CIFAR10" else 1) / 255


def test_folders_for_published_sets_are_looked_at_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(f"CIFAR10 is not in {str(tmp_path / 'sets')!r}")):
        data.cifar10(root="~/sets")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    for root in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        for download in (False, True):
            with pytest.raises(NotADirectoryError, match=re.escape(f"{str(tmp_path / 'file')!r} is a file")):
                data.cifar10(root=root, download=download)


@pytest.mark.parametrize(
    "make",
    [
        lambda split: digits(split),
        lambda split: photos(split, count=9),
        *(lambda split, level=level: shapes(level, split, count=30) for level in data.LEVELS),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_image_sets_do_not_depend_on_the_defaults_of_the_user(make, split):
    expected = make(split)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = make(split)
        whole = photo("coffee")
        assert torch.get_default_dtype() == torch.float64 and torch.empty(1).is_meta
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name in ("images", "labels", "masks", "boxes"):
        part, other = getattr(found, name), getattr(expected, name)
        assert (part is None and other is None) or torch.equal(part, other)
    assert whole.dtype == torch.float32 and torch.equal(whole, photo("coffee"))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: shapes("medium"), ValueError, "level 'medium' .* 'easy', 'default', 'hard'"),
        (lambda: shapes(3), TypeError, "level must be one of .* not 3"),
        (lambda: shapes(split="val"), ValueError, "split 'val' .* 'train', 'test'"),
        (lambda: shapes(count=0), ValueError, "count must be at least 1, got 0"),
        (lambda: shapes(count=10.0), TypeError, "count must be an int, got 10.0"),
        (lambda: shapes(count=True), TypeError, "count must be an int, got True"),
        (lambda: shapes(size=8), ValueError, "size must be at least 16, got 8"),
        (lambda: shapes(count=10**6 + 1), ValueError, "count must be in 1 … 1000000, got 1000001"),
        (lambda: shapes(size=513), ValueError, "size must be in 16 … 512, got 513"),
        (lambda: shapes(seed=500_001), ValueError, "seed must be in 0 … 500000, got 500001"),
        (lambda: shapes(size=(32, 32)), TypeError, "size must be an int"),
        (lambda: shapes(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: shapes(seed=None), TypeError, "seed must be an int, got None"),
        (lambda: digits("valid"), ValueError, "split 'valid'"),
        (lambda: digits(True), TypeError, "split"),
        (lambda: photo("dog"), ValueError, "name 'dog' is unknown; it can be 'astronaut', 'chelsea'"),
        (lambda: photos(split=None), TypeError, "split must be one of 'train', 'test', not None"),
        (lambda: photos(count=-5), ValueError, "count must be at least 1, got -5"),
        (lambda: photos(size="32"), TypeError, "size must be an int, got '32'"),
        (lambda: photos(seed=1.5), TypeError, "seed must be an int, got 1.5"),
        (lambda: image_folder(".", size=(1, 2, 3)), TypeError, r"\(1, 2, 3\)"),
        (lambda: image_folder(".", size=0), ValueError, "size must be at least 1, got 0"),
        (lambda: image_folder(".", size=(8, 2.5)), TypeError, r"got \(8, 2.5\)"),
        (lambda: image_folder(".", "all"), ValueError, "split 'all'"),
        (lambda: image_folder(".", test_share=1), ValueError, "below 1, not 1"),
        (lambda: image_folder(".", test_share="half"), TypeError, "not 'half'"),
        (lambda: image_folder(".", "test", test_share=0), ValueError, "there are no test pictures"),
        (lambda: image_folder(".", on_error="ignore"), ValueError, "on_error 'ignore' .* 'skip', 'raise'"),
        (lambda: image_folder(5), TypeError, "path must be a str or a Path, not 5"),
        (lambda: data.published("ImageNet"), ValueError, "name 'ImageNet'"),
        (lambda: data.cifar10("val"), ValueError, "split 'val'"),
        (lambda: data.cifar10(download="yes"), TypeError, "not 'yes'"),
        (lambda: digits().sample(0), ValueError, "count must be at least 1, got 0"),
        (lambda: digits()[:0].sample(3), ValueError, "empty"),
        (lambda: digits().batches(0), ValueError, "size must be at least 1, got 0"),
        (lambda: digits()["all"], TypeError, "not by str"),
        (lambda: normalise(torch.zeros(2, dtype=torch.uint8)), TypeError, "uint8"),
        (lambda: normalise([0.5]), TypeError, "list"),
        (lambda: data.boxes_around(torch.zeros(2, 4, 4)), TypeError, "masks must be"),
        (lambda: data.boxes_around(torch.zeros(2, 4, 4).bool()), ValueError, "mask 0 is empty"),
        (lambda: data.boxes_around(torch.zeros(4, 4).bool()), ValueError, r"\(4, 4\)"),
    ],
)
def test_bad_arguments_are_named(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
