"""A learner's own pictures: every one is read, or named."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from support.links import link
from support.photo_folder import BROKEN
from torch import Tensor
from torchvision.datasets import ImageFolder

from vit_course.lab.data import image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten red pictures of class 'a', five blue ones of class 'b', in several formats, and things that are no
    pictures.
    """
    for name, colour, count in (("a", "red", 10), ("b", "blue", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (40 + i, 30), colour).save(
                tmp_path / name / f"{i}.{('png', 'JPG', 'webp')[i % 3]}"
            )
    (tmp_path / "a" / "notes.txt").write_text("not a picture", encoding="utf-8")
    (tmp_path / "a" / "._0.png").write_bytes(b"left by a Mac")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "loose.png").write_bytes(b"belongs to no class")
    return tmp_path


def test_image_folder_reads_and_splits_by_class(folder):
    train, test = image_folder(folder, size=(16, 24)), image_folder(folder, "test", size=(16, 24))
    assert train.images.shape == (12, 3, 16, 24) and test.images.shape == (3, 3, 16, 24)
    assert train.classes == test.classes == ("a", "b")
    assert train.labels.bincount().tolist() == [8, 4] and test.labels.bincount().tolist() == [2, 1]
    for scene in (train, test):
        strongest = scene.images.mean((2, 3)).argmax(1)  # red is channel 0, blue channel 2
        assert torch.equal(strongest, 2 * scene.labels)
    assert len(image_folder(folder, test_share=0)) == 15
    assert image_folder(str(folder), size=8).images.shape[2:] == (8, 8)


def test_splits_of_a_folder_are_fixed_by_the_seed_and_share_nothing(tmp_path, monkeypatch):
    (tmp_path / "greys").mkdir()
    for i in range(20):
        Image.new("L", (9, 9), i * 10).save(tmp_path / "greys" / f"{i:02}.png")

    def greys(split: str, seed: int = 0) -> set[int]:
        return set(
            (image_folder(tmp_path, split, 4, seed=seed).images[:, 0, 0, 0] * 25.5).round().int().tolist()
        )

    assert greys("train") | greys("test") == set(range(20)) and not greys("train") & greys("test")
    assert greys("test") == greys("test") and len(greys("test")) == 4
    assert any(greys("test", seed) != greys("test") for seed in (1, 2, 3))

    expected, walk = greys("test"), os.walk

    def backwards(top, **options):
        for place, folders, files in walk(top, **options):
            yield place, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert greys("test") == expected  # whatever order the file system lists them in


def test_splits_of_a_folder_are_those_of_the_first_edition(tmp_path):
    """The files that every edition read, some in sub-folders, in the order of their sorted paths."""
    names = [
        "1.png",
        "10.png",
        "2.png",
        "B/0.png",
        "a-b/0.png",
        "a/0.png",
        "a/1.png",
        "a.png",
        "z.JPG",
        "ä.png",
    ]
    for number, name in enumerate(names):
        (tmp_path / "class" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), number * 20).save(tmp_path / "class" / name, quality=95)
    in_order = sorted((tmp_path / "class" / name for name in names), key=lambda path: path.parts)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(7)).tolist()
    for split, chosen in (("test", order[:3]), ("train", order[3:])):
        expected = [
            names.index(in_order[i].relative_to(tmp_path / "class").as_posix()) for i in sorted(chosen)
        ]
        images = image_folder(tmp_path, split, 4, test_share=0.3, seed=7).images
        assert (images[:, 0, 0, 0] * 255 / 20).round().int().tolist() == expected


def one_picture(folder: Path, picture: Image.Image, name: str, **options) -> Tensor:
    """What becomes of one picture: (3, 8, 8)."""
    (folder / "class").mkdir(exist_ok=True)
    picture.save(folder / "class" / name, **options)
    return image_folder(folder, size=8, test_share=0).images[0]


def test_pictures_are_turned_upright_as_their_camera_says(tmp_path):
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste("white", (0, 0, 32, 16))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    image = one_picture(tmp_path, picture, "turned.jpg", exif=exif, quality=95)
    assert image[:, :, 5:].min() > 0.9 and image[:, :, :3].max() < 0.1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1, 1, 1)),
        ("I;16", 65535 // 5, (0.2, 0.2, 0.2)),
        ("LA", (51, 255), (0.2, 0.2, 0.2)),
        ("RGBA", (0, 0, 0, 0), (1, 1, 1)),
        ("RGBA", (255, 0, 0, 255), (1, 0, 0)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, colour, expected):
    image = one_picture(tmp_path, Image.new(mode, (10, 10), colour), "picture.png")
    assert torch.allclose(image, torch.tensor(expected)[:, None, None].expand(3, 8, 8).float(), atol=0.005)


def test_palettes_with_and_without_transparency_become_rgb(tmp_path):
    palette = Image.new("RGB", (10, 10), "red").quantize(4)
    assert torch.allclose(
        one_picture(tmp_path, palette, "p.png")[:, 0, 0], torch.tensor([1.0, 0, 0]), atol=0.01
    )
    assert one_picture(tmp_path, palette, "p.png", transparency=int(np.array(palette)[0, 0])).min() == 1


def test_a_transparent_colour_becomes_white(tmp_path):
    picture = Image.new("RGB", (10, 10), "red")
    assert one_picture(tmp_path, picture, "p.png", transparency=(255, 0, 0)).min() == 1


def test_long_pictures_are_cut_around_their_centre(tmp_path):
    picture = Image.new("RGB", (90, 30), "black")
    picture.paste("white", (30, 0, 60, 30))
    assert one_picture(tmp_path, picture, "wide.png").mean() > 0.98


def test_broken_pictures_are_named_and_skipped(folder):
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "empty.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 of 17 pictures cannot be read") as caught:
        read = image_folder(folder, test_share=0)
    assert read.labels.bincount().tolist() == [10, 5]
    assert len(caught) == 1 and "cut.png" in str(caught[0].message) and "empty.jpg" in str(caught[0].message)
    assert caught[0].filename == __file__  # the warning points at the learner's line
    with pytest.raises(ValueError, match="(cut.png|empty.jpg) cannot be read"):
        image_folder(folder, test_share=0, on_error="raise")


def test_a_long_list_of_broken_pictures_is_shortened(folder):
    for i in range(30):
        (folder / "a" / f"broken_{i}.png").write_bytes(b"no")
    with pytest.warns(UserWarning, match="30 of 45 pictures(.|\n)*and 10 more"):
        image_folder(folder, test_share=0)


def test_whole_folders_are_read_without_a_warning(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(folder)


def test_folders_that_cannot_be_used_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*missing"):
        image_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="no class folders"):
        image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="1 class folders .* hold no pictures"):
        image_folder(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="class 'a' has 1 pictures; it needs at least 2"):
        image_folder(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="class 'b' has 0 pictures; it needs at least 1"):
        image_folder(tmp_path, test_share=0)
    (tmp_path / "b" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 1 pictures of class 'b' for split 'train' can be read"):
        image_folder(tmp_path, test_share=0)
    with pytest.raises(ValueError, match="2 pictures of 20000 × 20000 pixels need 8.9 GB"):
        image_folder(tmp_path, test_share=0, size=20_000)


def test_a_flat_folder_is_a_set_without_labels(tmp_path):
    for i in range(10):
        Image.new("L", (9, 9), i * 20).save(tmp_path / f"{i}.png")
    (tmp_path / "empty").mkdir()
    train, test = image_folder(tmp_path, size=4), image_folder(tmp_path, "test", size=4)
    assert train.classes == test.classes == () and repr(train).endswith("no classes)")
    assert train.labels.tolist() == [0] * 8 and test.labels.tolist() == [0] * 2
    greys = [(part.images[:, 0, 0, 0] * 255 / 20).round().int().tolist() for part in (train, test)]
    assert sorted(greys[0] + greys[1]) == list(range(10))
    images, labels = train[:3].sample(5)
    assert images.shape == (5, 3, 4, 4) and labels.tolist() == [0] * 5


def test_class_folders_leave_loose_pictures_out(folder):
    Image.new("RGB", (9, 9), "green").save(folder / "green.png")
    assert image_folder(folder, test_share=0).classes == ("a", "b")


def test_flat_folders_that_cannot_be_used_are_explained(tmp_path):
    (tmp_path / "0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="the folder has 1 pictures; it needs at least 2 for a split"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="none of the 1 pictures for split 'train' can be read"):
        image_folder(tmp_path, test_share=0)


@pytest.mark.parametrize("name", BROKEN)
def test_every_kind_of_broken_file_is_named(folder, name):
    for place in (folder / "a", folder / "a" / "deeper"):
        place.mkdir(exist_ok=True)
        try:
            BROKEN[name](place / name)
        except (OSError, AttributeError):
            pytest.skip("this system lets nobody make such files")
    with pytest.warns(UserWarning, match=f"2 of 17 pictures cannot be read(.|\n)*{name}(.|\n)*{name}"):
        assert len(image_folder(folder, test_share=0)) == 15


# Every kind of file beside pictures: what is read, what is reported, what is left alone.


def class_folder(path: Path, name: str = "class") -> Path:
    """A class folder with one plain red picture."""
    (path / name).mkdir()
    Image.new("RGB", (10, 10), "red").save(path / name / "plain.png")
    return path / name


def read_all(path: Path) -> list[tuple[float, ...]]:
    """The mean colours of all pictures of a folder, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [
            tuple(image.mean((1, 2)).tolist()) for image in image_folder(path, size=8, test_share=0).images
        ]


@pytest.mark.parametrize(
    ("name", "file_format"),
    [
        ("x.gif", "GIF"),
        ("x.avif", "AVIF"),
        ("x.jfif", "JPEG"),
        ("x.jp2", "JPEG2000"),
        ("x.tiff", "TIFF"),
        ("nameless", "PNG"),
        ("photo.orig", "JPEG"),
        ("wrong.txt", "PNG"),
        ("wrong.png", "JPEG"),
        ("sub/sub/x.png", "PNG"),
    ],
)
def test_pictures_of_every_name_and_format_are_read(tmp_path, name, file_format):
    if not features.check("avif") and file_format == "AVIF":
        pytest.skip("this Pillow was built without AVIF")
    path = class_folder(tmp_path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 10), "blue").save(path, format=file_format)
    colours = read_all(tmp_path)
    assert len(colours) == 2 and sorted(colour[2] > 0.9 > 0.2 > colour[0] for colour in colours) == [
        False,
        True,
    ]


@pytest.mark.parametrize("name", ["x.heic", "x.SVG", "x.jxl", "x.png", "x.jpg"])
def test_files_called_like_pictures_are_named_where_they_cannot_be_read(tmp_path, name):
    (class_folder(tmp_path) / name).write_bytes(b"\0\0\0\x18ftypheic of which Pillow knows nothing")
    with pytest.warns(UserWarning, match=f"1 of 2 pictures cannot be read(.|\n)*{name}"):
        assert len(image_folder(tmp_path, test_share=0)) == 1


@pytest.mark.parametrize(
    "name",
    [".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini", "notes.txt", "labels.csv", "empty", "table.h5"],
)
def test_what_is_no_picture_is_left_alone(tmp_path, name):
    content = {"empty": b"", "table.h5": b"\x89HDF\r\n\x1a\n" + bytes(100)}.get(name, b"no picture at all")
    (class_folder(tmp_path) / name).write_bytes(content)
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (10, 10)).save(tmp_path / folder / "x.png")
        (tmp_path / "class" / folder).mkdir()
        Image.new("RGB", (10, 10)).save(tmp_path / "class" / folder / "x.png")
    assert len(read_all(tmp_path)) == 1


FLOATS = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (FLOATS, "its pixels are floating-point numbers"),
        (np.where(FLOATS > 0.5, np.nan, FLOATS).astype(np.float32), "its pixels are floating-point numbers"),
        (np.full((10, 10), 200, np.int32), "its pixels are 32-bit numbers"),
        (
            np.full((10, 10), 200, np.uint16),
            "its 16-bit numbers end at 200 of 65535, so it would come out black",
        ),
    ],
    ids=["float", "nan", "32 bits", "8 bits in 16"],
)
def test_pictures_that_would_become_black_are_named(tmp_path, values, sentence):
    Image.fromarray(values).save(class_folder(tmp_path) / "x.tif")
    with pytest.warns(UserWarning, match=f"x.tif: {sentence}"):
        assert len(image_folder(tmp_path, test_share=0)) == 1
    with pytest.raises(ValueError, match=f"x.tif cannot be read as a picture: {sentence}"):
        image_folder(tmp_path, test_share=0, on_error="raise")


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_grey_of_sixteen_bits_keeps_its_range(tmp_path, name):
    Image.fromarray(np.full((10, 10), 65535 // 5, np.uint16)).save(class_folder(tmp_path) / name)
    (tmp_path / "class" / "plain.png").unlink()
    ((red, green, blue),) = read_all(tmp_path)
    assert red == green == blue == pytest.approx(0.2, abs=0.003)
    Image.fromarray(np.zeros((10, 10), np.uint16)).save(tmp_path / "class" / name)
    assert read_all(tmp_path) == [(0, 0, 0)]  # black is a picture too


def test_ink_and_animations_become_rgb(tmp_path):
    folder = class_folder(tmp_path)
    Image.new("CMYK", (10, 10), (255, 0, 0, 0)).save(folder / "cyan.jpg", quality=95)
    first, second = Image.new("RGB", (10, 10), "blue"), Image.new("RGB", (10, 10), "white")
    first.save(folder / "moving.gif", save_all=True, append_images=[second])
    cyan, moving, _ = read_all(tmp_path)
    assert cyan[0] < 0.1 and min(cyan[1:]) > 0.6 and moving == pytest.approx((0, 0, 1), abs=0.05)


def test_links_are_followed_as_torchvision_does(tmp_path):
    store = class_folder(tmp_path, "store")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    link(root / "a" / "more", store)
    link(root / "a" / "one.png", store / "plain.png")
    link(root / "b", store)
    found = image_folder(root, test_share=0)
    assert found.classes == ("a", "b") and found.labels.tolist() == [0, 0, 1]
    assert len(found) == len(ImageFolder(str(root)))


def test_links_in_a_circle_end_and_count_once(tmp_path):
    folder = class_folder(tmp_path)
    (folder / "sub").mkdir()
    Image.new("RGB", (10, 10), "blue").save(folder / "sub" / "x.png")
    link(folder / "sub" / "round", folder)
    link(folder / "again", folder / "sub")
    assert len(read_all(tmp_path)) == 2


def test_a_link_to_nowhere_is_named(tmp_path):
    link(class_folder(tmp_path) / "lost.png", tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="1 of 2 pictures cannot be read(.|\n)*lost.png"):
        image_folder(tmp_path, test_share=0)


def test_a_folder_that_cannot_be_opened_does_not_vanish(tmp_path, monkeypatch):
    class_folder(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="class"):
        image_folder(tmp_path, test_share=0)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    class_folder(tmp_path / "pictures")
    assert (
        len(image_folder("~/pictures", test_share=0))
        == len(image_folder(Path("~/pictures"), test_share=0))
        == 1
    )


def test_folders_are_read_alike_under_other_defaults(folder):
    expected = image_folder(folder, size=8)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = image_folder(folder, size=8)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)
