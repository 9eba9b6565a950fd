"""Folders of generated pictures of every kind, and files of ten kinds that are no pictures."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ORIENTATION = 0x0112  # of EXIF


def _scene(random: np.random.Generator) -> Image.Image:
    """A smooth picture of random size: a few colours, blown up."""
    height, width = random.integers(20, 90, 2).tolist()
    few = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def _turned(picture: Image.Image, path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture.save(path.with_suffix(".jpg"), exif=exif)


def _sixteen_bits(picture: Image.Image, path: Path) -> None:
    values = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    values[0, 0] = 65535
    Image.fromarray(values).save(path.with_suffix(".png"))


KINDS: list[Callable[[Image.Image, Path], object]] = [
    lambda picture, path: picture.save(path.with_suffix(".jpg"), quality=90),
    lambda picture, path: picture.save(path.with_suffix(".png")),
    lambda picture, path: picture.save(path.with_suffix(".webp")),
    lambda picture, path: picture.convert("L").save(path.with_suffix(".jpeg")),
    lambda picture, path: picture.convert("LA").save(path.with_suffix(".png")),
    lambda picture, path: picture.convert("RGBA").rotate(30, expand=True).save(path.with_suffix(".png")),
    lambda picture, path: picture.quantize(16).save(path.with_suffix(".png")),
    lambda picture, path: picture.quantize(16).save(path.with_suffix(".png"), transparency=0),
    lambda picture, path: picture.convert("CMYK").save(path.with_suffix(".jpg")),
    lambda picture, path: picture.convert("1").save(path.with_suffix(".gif")),
    _sixteen_bits,
    lambda picture, path: _turned(picture, path, 1 + len(path.name) % 8),
]


def write_pictures(folder: Path, count: int, seed: int = 0) -> None:
    """Pictures of mixed sizes and kinds: one of each of `KINDS` in turn."""
    random = np.random.default_rng(seed)
    for number in range(count):
        KINDS[number % len(KINDS)](_scene(random), folder / f"{'x' * (number % 8)}{number:05}")


def _png(width: int, height: int) -> bytes:
    """A PNG file without pixels: its header says how large it is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    end = bytes(4) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + end


def _cut(path: Path) -> None:
    _scene(np.random.default_rng(0)).resize((200, 200)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _wrong_checksum(path: Path) -> None:
    """A whole picture but for one bit of the checksum in its header."""
    _scene(np.random.default_rng(0)).save(path)
    whole = bytearray(path.read_bytes())
    whole[29] ^= 1
    path.write_bytes(whole)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "cut.jpg": _cut,
    "text.jpg": lambda path: path.write_text("not a picture", encoding="utf-8"),
    "no_size.png": lambda path: path.write_bytes(_png(0, 10)),
    "bomb.png": lambda path: path.write_bytes(_png(30_000, 30_000)),
    "folder.jpg": lambda path: path.mkdir(),
    "nowhere.jpg": lambda path: path.symlink_to(path.with_name("nothing")),
    "noise.jpg": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(3000)),
    "checksum.png": _wrong_checksum,
    "pipe.jpg": lambda path: os.mkfifo(path),
}


def write_broken(folder: Path, times: int = 1) -> list[Path]:
    """A file of each broken kind, so many times; skips the test where nobody may make links or pipes."""
    paths = []
    for time in range(times):
        for name, write in BROKEN.items():
            paths.append(folder / f"broken_{time}_{name}")
            try:
                write(paths[-1])
            except (OSError, AttributeError):
                pytest.skip(f"this system lets nobody make {name}")
    return paths
