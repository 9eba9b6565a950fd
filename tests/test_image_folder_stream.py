"""Photographs read as they are needed: once for all their views, whoever reads, whatever is broken."""

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.photo_folder import BROKEN, write_broken, write_pictures
from torch import Tensor
from torch.utils.data import DataLoader

from vit_course.dino import DINO, DINOLoss, DINOSchedule, SelfDistillation
from vit_course.lab.data import ImageFolderStream, PhotoCrops, image_folder
from vit_course.lab.data.files import read_picture
from vit_course.training import fit
from vit_course.vit import ViT

COUNT = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """200 pictures of every kind and a broken file of each of ten kinds, half of all in sub-folders."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "below" / "deeper").mkdir(parents=True)
    write_pictures(folder, COUNT // 2, seed=0)
    write_pictures(folder / "below" / "deeper", COUNT // 2, seed=1)
    return folder, write_broken(folder, 1)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Five red pictures of class 'a', three blue ones of class 'b'."""
    for name, colour, count in (("a", "red", 5), ("b", "blue", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (12 + i, 10), colour).save(tmp_path / name / f"{i}.png")
    return tmp_path


def mean(picture: Tensor) -> Tensor:
    return picture.float().mean((1, 2))


def noisy(picture: Tensor) -> Tensor:
    """A transform that is random, as PyTorch's are."""
    return mean(picture)[:1] + torch.rand(3)


def test_every_picture_is_read_and_every_broken_file_named_once(many: tuple[Path, list[Path]]) -> None:
    folder, broken = many
    stream = ImageFolderStream(folder, mean)
    assert len(stream) == COUNT + len(BROKEN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            batches = list(stream.loader(8, shuffle=False))
    assert sum(map(len, batches)) == COUNT + len(BROKEN)
    named = [str(warning.message).partition(" cannot be read as a picture: ") for warning in caught]
    assert sorted(name for name, verb, _ in named if verb) == sorted(map(str, broken))
    assert set(stream.broken) == set(broken) and all(stream.broken.values())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_two_data_sets_name_a_broken_file_once_between_them(tmp_path: Path) -> None:
    """Of all pictures, and of those in class folders, which come first."""
    for name in ("barns", "ponds", ""):
        (tmp_path / name).mkdir(exist_ok=True)
        write_pictures(tmp_path / name, 4)
    broken = tmp_path / "ponds" / "broken.png"
    broken.touch()
    everything, labelled = ImageFolderStream(tmp_path), ImageFolderStream(tmp_path, labels=True)
    everything.share_broken(labelled)
    place = [everything._path(number) for number in range(len(everything))].index(broken)
    with pytest.warns(UserWarning, match=re.escape(str(broken))):
        labelled[place]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything[place]
    assert everything.broken.keys() == labelled.broken.keys() == {broken}
    for others in (ImageFolderStream(tmp_path / "barns"), ImageFolderStream(tmp_path, test_share=0.5)):
        with pytest.raises(ValueError, match="is not of the pictures of ImageFolderStream"):
            everything.share_broken(others)


def test_workers_name_a_broken_file_once_among_them(many: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """In a process of its own, whose workers print their warnings."""
    folder, broken = many
    program = (
        "from vit_course.lab.data import ImageFolderStream\n"
        "if __name__ == '__main__':\n"
        f"    stream = ImageFolderStream({str(folder)!r}, len)\n"
        "    loader = stream.loader(10, workers=2, multiprocessing_context='fork')\n"
        "    print(*[sum(map(len, loader)) for _ in range(3)], len(stream.broken))\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, encoding="utf-8", check=True
    )
    assert answer.stdout.split() == ["210", "210", "210", "10"]
    assert all(answer.stderr.count(f"{path} cannot be read as a picture") == 1 for path in broken)


def test_a_broken_picture_is_replaced_by_a_readable_one_the_same_for_the_same_seed(colours: Path) -> None:
    (colours / "a" / "0.png").write_bytes(b"")
    (colours / "a" / "1.png").write_bytes(b"")
    stream = ImageFolderStream(colours, mean, labels=True)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        first = [stream[0, seed] for seed in range(40)]
    assert len(caught) == 2
    for (colour, label), (again, _) in zip(first, [stream[0, seed] for seed in range(40)], strict=True):
        assert torch.equal(colour, again)
        assert colour.argmax() == 2 * label  # the label is that of the picture that came instead
    assert {label for _, label in first} == {0, 1}


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match="none of the 3 pictures of .* can be read"),
    ):
        ImageFolderStream(tmp_path)[0]


def test_an_error_of_the_transform_is_no_broken_picture(colours: Path) -> None:
    stream = ImageFolderStream(colours, lambda picture: picture.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        stream[0]
    assert not stream.broken


def test_kinds_of_pictures_look_as_in_image_folder(tmp_path: Path) -> None:
    """Grey, alpha, palettes, CMYK, 16 bits and EXIF turns: one reader for both."""
    write_pictures(tmp_path, 36)
    read = image_folder(tmp_path, size=16, test_share=0)
    stream = ImageFolderStream(tmp_path)
    assert len(stream) == len(read) == 36
    for picture, small in zip(stream, read.images, strict=True):
        assert picture.dtype == torch.uint8 and picture.ndim == 3
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        square = picture[:, top : top + side, left : left + side].float() / 255
        assert torch.allclose(square.mean((1, 2)), small.mean((1, 2)), atol=0.04)


def test_labels_and_splits_are_those_of_image_folder(colours: Path) -> None:
    def shares(split: str) -> list[tuple[int, int]]:
        """Width and label of every picture; the widths tell pictures of one class apart."""
        stream = ImageFolderStream(
            colours, lambda picture: picture.shape[2], labels=True, split=split, test_share=0.4, seed=3
        )
        assert stream.classes == ("a", "b")
        return [stream[i] for i in range(len(stream))]

    train, test = shares("train"), shares("test")
    everything = [(12 + i, label) for label, count in ((0, 5), (1, 3)) for i in range(count)]
    assert sorted(train + test) == sorted(everything)
    for name, pairs in (("train", train), ("test", test)):
        expected = image_folder(colours, name, 8, test_share=0.4, seed=3)
        assert [label for _, label in pairs] == expected.labels.tolist()
    unlabelled = ImageFolderStream(colours, split="test", test_share=0.4, seed=3)
    assert [picture.shape[2] for picture in unlabelled] == [width for width, _ in test]


def test_without_labels_all_pictures_count_wherever_they_lie(colours: Path) -> None:
    Image.new("RGB", (9, 9), "green").save(colours / "loose.png")
    (colours / "single").mkdir()
    Image.new("RGB", (9, 9), "green").save(colours / "single" / "one.png")
    assert len(ImageFolderStream(colours)) == 10 and len(ImageFolderStream(str(colours), labels=False)) == 10
    parts = [len(ImageFolderStream(colours, split=split, test_share=0.2)) for split in ("train", "test")]
    assert parts == [8, 2]  # a single picture of a folder is for training
    assert repr(ImageFolderStream(colours)).endswith("no labels)")


def test_folders_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*missing"):
        ImageFolderStream(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no pictures"):
        ImageFolderStream(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="holds 0 class folders; labels need at least two"):
        ImageFolderStream(tmp_path, labels=True)
    with pytest.raises(ValueError, match="too few pictures for a split with test_share 0.5"):
        ImageFolderStream(tmp_path, split="test", test_share=0.5)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "one.png")
    with pytest.raises(ValueError, match="holds 1 class folders; labels need at least two"):
        ImageFolderStream(tmp_path, labels=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="class 'b' has 0 pictures; it needs at least 1"):
        ImageFolderStream(tmp_path, labels=True)
    with pytest.raises(ValueError, match="has 2 pictures, too few for a batch of 3"):
        ImageFolderStream(tmp_path).loader(3)
    assert len(list(ImageFolderStream(tmp_path, mean).loader(3, shuffle=False))) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"path": 3}, "path must be a str or a Path, not 3"),
        ({"transform": 3}, "transform must be a function of a picture, not 3"),
        ({"labels": 1}, "labels must be True or False, not 1"),
        ({"split": "valid"}, "split 'valid' is unknown"),
        ({"split": "test"}, "with test_share 0 there are no test pictures"),
        ({"test_share": 1.0}, "test_share must be at least 0 and below 1, not 1.0"),
        ({"seed": -1}, "seed must be"),
        ({"least_side": 0}, "least_side must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(colours: Path, given: dict, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        ImageFolderStream(**{"path": colours} | given)


def test_positions_beyond_the_end_are_refused(colours: Path) -> None:
    stream = ImageFolderStream(colours)
    assert torch.equal(stream[-1], stream[7])
    for position in (8, -9):
        with pytest.raises(IndexError, match=f"no picture {position} among 8"):
            stream[position]


@pytest.mark.parametrize(
    ("least_side", "size"),
    [(None, (1200, 1600)), (1000, (1200, 1600)), (600, (600, 800)), (500, (600, 800)), (100, (150, 200))],
)
def test_large_jpegs_are_decoded_no_larger_than_needed(tmp_path: Path, least_side: int, size: tuple) -> None:
    few = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(few).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "0.jpg", quality=95)
    picture.save(tmp_path / "1.jpg", quality=95, exif=exif)
    picture.save(tmp_path / "2.png")
    plain, turned, whole = ImageFolderStream(tmp_path, least_side=least_side)
    assert plain.shape == (3, *size) and turned.shape == (3, *size[::-1]) and whole.shape == (3, 1200, 1600)
    reduced = torch.nn.functional.interpolate(whole[None].float(), size, mode="area")[0]
    assert (reduced - plain).abs().mean() < 2
    assert torch.equal(turned, plain.flip(1).transpose(1, 2))


def test_a_truncated_jpeg_is_broken_at_any_scale(tmp_path: Path) -> None:
    BROKEN["cut.jpg"](tmp_path / "cut.jpg")
    for least_side in (None, 100, 10):
        with pytest.raises(OSError, match="truncated"):
            read_picture(tmp_path / "cut.jpg", least_side)


# Random numbers


def test_passes_differ_and_repeat_with_the_seed_whoever_reads(colours: Path) -> None:
    """The same batches in the main process, in one worker, in two that stay, and in those of spawn."""

    def two_passes(seed: int = 0, **options: int | str) -> list[Tensor]:
        loader = ImageFolderStream(colours, noisy).loader(3, seed=seed, **options)
        return [torch.stack(list(loader)) for _ in range(2)]

    expected = two_passes()
    assert expected[0].shape == (2, 3, 3)  # what is left of a shuffled pass is dropped
    assert not torch.equal(*expected)
    for options in ({}, {"workers": 1}, {"workers": 2}, {"workers": 1, "multiprocessing_context": "spawn"}):
        for found, wanted in zip(two_passes(**options), expected, strict=True):
            assert torch.equal(found, wanted), options
    assert not torch.equal(two_passes(seed=1)[0], expected[0])


def test_every_picture_has_its_own_random_numbers(colours: Path) -> None:
    loader = ImageFolderStream(colours, lambda picture: torch.rand(()).item()).loader(8, shuffle=False)
    drawn = [number for _ in range(2) for batch in loader for number in batch.tolist()]
    assert len(set(drawn)) == 16  # and others in every pass


def test_reading_leaves_the_random_state_of_the_caller_alone(colours: Path) -> None:
    stream, loader = ImageFolderStream(colours, noisy), ImageFolderStream(colours, noisy).loader(2)
    sampler = loader.sampler
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream[0, 1]
    list(sampler)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_dataloader_takes_it(colours: Path, workers: int) -> None:
    loader = DataLoader(ImageFolderStream(colours, noisy, labels=True), 4, shuffle=True, num_workers=workers)

    def two_passes() -> list[list[list[Tensor]]]:
        torch.manual_seed(0)
        return [list(loader), list(loader)]

    first, again = two_passes(), two_passes()
    assert torch.equal(first[0][0][0], again[0][0][0]) and torch.equal(first[1][0][1], again[1][0][1])
    assert not torch.equal(first[0][0][0], first[1][0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_dino_trains_on_it_and_resumes_as_if_never_stopped(tmp_path: Path, workers: int) -> None:
    write_pictures(tmp_path, 12)
    crops = PhotoCrops(16, 8, 1)

    def train(**options: object) -> DINO:
        torch.manual_seed(0)
        vit = ViT(image_size=16, patch_size=4, num_classes=0, dim=16, depth=1, heads=2, mlp_dim=16)
        model = DINO(vit, out_dim=8, hidden_dim=8, bottleneck_dim=4)
        loader = ImageFolderStream(tmp_path, crops, least_side=crops.least_side).loader(4, workers=workers)
        loss = SelfDistillation(DINOLoss(8))
        fit(model, loader, loss, steps=7, callbacks=[DINOSchedule()], progress=False, **options)
        return model

    def stop(step: int) -> None:
        if step == 4:  # in the second pass of three batches
            raise KeyboardInterrupt

    straight, path = train(), tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=path, checkpoint_every=4, after_step=stop)
    resumed = train(checkpoint=path, resume=True)
    for (name, one), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


# Workers and the stop button

LOOP = """
import signal
import sys
import time
from vit_course.lab.data import ImageFolderStream

def small(picture):
    return picture.float().mean((1, 2))

if __name__ == "__main__":
    pressed = []
    loader = ImageFolderStream(sys.argv[1], small).loader(2, workers=2, multiprocessing_context=sys.argv[2])
    batches = list(loader)
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(True))  # held back, as `fit` does
    print("read", len(batches), flush=True)
    while not pressed:
        time.sleep(0.05)
    print("read", len(list(loader)), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="a terminal signals a process group")
@pytest.mark.parametrize(
    "method",
    ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))],
)
def test_workers_leave_the_stop_button_to_the_main_process(
    colours: Path, tmp_path: Path, method: str
) -> None:
    """Ctrl-C in a terminal goes to all processes: the workers go on until the main process ends them."""
    program = tmp_path / "loop.py"
    program.write_text(LOOP, encoding="utf-8")
    loop = subprocess.Popen(
        [sys.executable, program, colours, method],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        assert loop.stdout.readline() == "read 4\n"
        os.killpg(loop.pid, signal.SIGINT)
        assert loop.communicate(timeout=300)[0] == "read 4\n" and loop.returncode == 0
    finally:
        loop.kill()


@pytest.mark.soak
def test_ten_thousand_pictures_are_read_three_times_in_the_same_memory(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10_000)
    broken = write_broken(tmp_path, times=5)
    program = tmp_path / "program"
    program.write_text(SOAK, encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, program, tmp_path], capture_output=True, encoding="utf-8", check=True
    )
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["10048"] * 3  # whole batches of 32 out of 10,050
    assert all(answer.stderr.count(f"{path} cannot be read as a picture") == 1 for path in broken)
    first, *_, last = (int(line.split()[1]) for line in lines)
    assert last - first < 30_000, f"memory in kB after each pass: {lines}"


# Three passes of two workers: after each, the number of pictures and the memory of all processes in kB.
SOAK = """
import multiprocessing
import os
import sys
from pathlib import Path
from vit_course.lab.data import ImageFolderStream, PhotoCrops

def memory(process):
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

if __name__ == "__main__":
    crops = PhotoCrops(32, 16, 2)
    stream = ImageFolderStream(sys.argv[1], crops, least_side=crops.least_side)
    loader = stream.loader(32, workers=2)
    for _ in range(3):
        count = sum(len(batch[0]) for batch in loader)
        everyone = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        print(count, sum(map(memory, everyone)), len(stream.broken), flush=True)
"""
