"""The one form of every image set: how it is indexed, batched and fed to a loader."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch.utils.data import DataLoader, Subset, random_split

from vit_course.lab.data import ImageSet, normalise


@pytest.fixture
def small() -> ImageSet:
    """Six images whose value is their number."""
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 4, 5) / 6
    masks = torch.ones(6, 4, 5, dtype=torch.bool)
    return ImageSet(images, torch.arange(6) % 2, ("even", "odd"), masks, torch.zeros(6, 4))


def test_image_set_is_indexed_like_its_tensors(small):
    for index in (slice(1, 4), torch.tensor([5, 0]), small.labels == 1):
        part = small[index]
        for name in ("images", "labels", "masks", "boxes"):
            assert torch.equal(getattr(part, name), getattr(small, name)[index])
        assert part.classes == small.classes and len(part) == len(part.images)
    image, label = small[3]
    assert torch.equal(image, small.images[3]) and label == 1
    assert len(list(small)) == 6  # plain iteration ends


@pytest.mark.parametrize(
    "index",
    [3, -3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(-3, dtype=torch.int16)],
    ids=repr,
)
def test_every_whole_number_gives_an_image_and_its_label(small, index):
    image, label = small[index]
    assert torch.equal(image, small.images[3]) and label == 1


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([4, 0], [4, 0]),
        ([], []),
        (np.array([4, -6]), [4, 0]),
        (np.array([4, 0], dtype=np.uint8), [4, 0]),
        (np.array([], dtype=int), []),
        (torch.tensor([4, 0], dtype=torch.uint8), [4, 0]),
        (torch.tensor([4], dtype=torch.int32), [4]),
        (np.arange(6) > 3, [4, 5]),
        ([False, True, False, False, False, False], [1]),
        (slice(np.int64(1), np.int64(3)), [1, 2]),
        (slice(-2, None), [4, 5]),
        (slice(None, None, -2), [5, 3, 1]),
    ],
    ids=repr,
)
def test_several_indices_of_every_kind_give_a_smaller_set(small, index, expected):
    part = small[index]
    assert isinstance(part, ImageSet) and part.images.is_contiguous()
    for name in ("images", "labels", "masks", "boxes"):
        assert torch.equal(
            getattr(part, name), getattr(small, name)[torch.tensor(expected, dtype=torch.long)]
        )


@pytest.mark.parametrize(
    ("index", "error", "sentence"),
    [
        (True, TypeError, "whole numbers, not by True"),
        (np.True_, TypeError, "whole numbers, not by True"),
        (torch.tensor(True), TypeError, "whole numbers, not by True"),
        (1.0, TypeError, "not by float"),
        (np.float64(1), TypeError, "not by float64"),
        (torch.tensor(1.0), TypeError, "not by Tensor"),
        (torch.tensor([1.0]), TypeError, "not by torch.float32"),
        (np.array([1.0, 2.0]), TypeError, "not by torch.float64"),
        (torch.tensor([[0, 1]]), ValueError, r"one axis, not the shape \(1, 2\)"),
        (None, TypeError, "not by NoneType"),
        (6, IndexError, "6"),
        (np.array([0, 6]), IndexError, "6"),
        (np.array([True, False]), IndexError, "mask"),
    ],
    ids=repr,
)
def test_other_indices_are_refused(small, index, error, sentence):
    with pytest.raises(error, match=sentence):
        small[index]


def test_image_set_serves_subsets_samplers_and_folds(small):
    subset = Subset(small, np.arange(4))
    images, labels = next(iter(DataLoader(subset, batch_size=3)))
    assert torch.equal(images, small.images[:3]) and torch.equal(labels, small.labels[:3])
    one, other = random_split(small, [4, 2], torch.Generator().manual_seed(0))
    assert (
        sorted(float(image[0, 0, 0]) for part in (one, other) for image, _ in part)
        == small.images[:, 0, 0, 0].tolist()
    )
    images, _ = next(iter(DataLoader(small, batch_size=2, sampler=torch.tensor([5, 1]))))
    assert torch.equal(images, small.images[[5, 1]])
    for folds in (KFold(3), StratifiedKFold(3)):
        for train, test in folds.split(np.zeros(len(small)), small.labels):
            assert torch.equal(small[test].images, small.images[torch.from_numpy(test)])
            assert len(small[train]) == 4 and small[train].labels.tolist() == small.labels[train].tolist()


def test_classes_come_from_any_sequence(small):
    named = ImageSet(small.images, small.labels, np.array(["even", "odd"]))
    assert named.classes == ("even", "odd") and all(type(name) is str for name in named.classes)
    assert ImageSet(small.images, small.labels, range(2)).classes == ("0", "1")


def test_sampling_does_not_depend_on_the_default_device(small):
    expected = small.sample(5, torch.Generator().manual_seed(0))
    torch.set_default_device("meta")
    try:
        images, labels = small.sample(5, torch.Generator("cpu").manual_seed(0))
        own, _ = small.sample(5)
    finally:
        torch.set_default_device(None)
    assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1]) and not own.is_meta


def test_image_set_feeds_a_data_loader(small):
    images, labels = next(iter(DataLoader(small, batch_size=4)))
    assert torch.equal(images, small.images[:4]) and torch.equal(labels, small.labels[:4])


def test_image_set_shows_itself(small):
    assert repr(small) == "ImageSet(6 images 3×4×5, with masks and boxes; 2 classes: even, odd)"


def test_sample_draws_with_replacement_from_a_generator(small):
    images, labels = small.sample(100, torch.Generator().manual_seed(0))
    again, _ = small.sample(100, torch.Generator().manual_seed(0))
    assert torch.equal(images, again) and len(images[:, 0, 0, 0].unique()) == 6
    assert torch.equal((images[:, 0, 0, 0] * 6).round().long() % 2, labels)


def test_batches_give_everything_once_in_order(small):
    batches = list(small.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), small.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), small.labels)


def test_normalise():
    assert torch.allclose(normalise(torch.tensor([0.5, 0.77, 0.23])), torch.tensor([0.0, 1.0, -1.0]))


IMAGES, LABELS = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((IMAGES.numpy(), LABELS, "ab"), TypeError, "ndarray"),
        ((IMAGES.byte(), LABELS, "ab"), TypeError, "uint8"),
        ((IMAGES[0], LABELS, "ab"), ValueError, r"\(1, 4, 4\)"),
        ((IMAGES, LABELS.float(), "ab"), TypeError, "float32"),
        ((IMAGES, None, "ab"), TypeError, "labels"),
        ((IMAGES, LABELS[:1], "ab"), ValueError, r"\(1,\).*\(2,\)"),
        ((IMAGES, LABELS, "a"), ValueError, "from 0 to 1.*1 classes"),
        ((IMAGES, LABELS, "ab", torch.zeros(2, 4, 4)), TypeError, "masks"),
        ((IMAGES, LABELS, "ab", torch.zeros(2, 3, 4).bool()), ValueError, r"\(2, 3, 4\)"),
        ((IMAGES, LABELS, "ab", None, torch.zeros(2, 3)), ValueError, "boxes"),
    ],
)
def test_image_set_refuses_parts_that_do_not_fit(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        ImageSet(*arguments)
