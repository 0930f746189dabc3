"""Images of handwritten digits: those that ship with scikit-learn, or MNIST from a local file."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from dpg_robot.errors import DpgError

CLASSES = 10

_IDX_UNSIGNED_BYTE = 8  # the type code of MNIST's own files
_IDX_IMAGES = re.compile(r"images[.-]idx3-ubyte(\.gz)?$")
_EXPECTED = (
    "expected a folder with MNIST's files (train-images-idx3-ubyte and train-labels-idx1-ubyte, .gz or not, "
    "and t10k-... if you have them), one such images file with its labels beside it, or an .npz file with x_train and y_train"
)


class DigitFileError(DpgError, ValueError):
    """A file of digit images that is missing, unreadable, corrupt or of an unknown format."""


@dataclass(frozen=True)
class DigitImages:
    """Square grey images with their classes.

    Attributes:
        pixels: (N, side * side) float32 in [-1, 1], row by row; 1 is ink.
        label: (N,) int64 in 0 .. 9.
    """

    pixels: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    @property
    def side(self) -> int:
        """Height and width in pixels."""
        return math.isqrt(self.pixels.shape[1])

    def __getitem__(self, index: Tensor) -> DigitImages:
        return DigitImages(self.pixels[index], self.label[index])


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: half for the networks, and a quarter each for the judge and for testing."""

    networks: DigitImages
    judge: DigitImages
    test: DigitImages

    @property
    def held_out(self) -> DigitImages:
        """All that the networks did not see."""
        return DigitImages(torch.cat([self.judge.pixels, self.test.pixels]), torch.cat([self.judge.label, self.test.label]))


def load_scikit_digits() -> DigitImages:
    """Return the 1797 images of 8 by 8 pixels that ship with scikit-learn."""
    images, label = load_digits(return_X_y=True)
    return _to_digits(images.reshape(-1, 8, 8), label, full_scale=16)


def load_mnist(path: str | Path) -> DigitImages:
    """Read MNIST, or digits in its format, from a folder or file on this machine; all images found, test images included.

    Raises:
        DigitFileError: as its name says; the message tells what was found.
    """
    path = Path(path)
    if not path.exists():
        raise DigitFileError(f"{path} does not exist; {_EXPECTED}")
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if _IDX_IMAGES.search(item.name))
        if not files:
            raise DigitFileError(f"the folder {path} has no file like train-images-idx3-ubyte; {_EXPECTED}")
        parts = [_read_idx_pair(file) for file in files]
    elif path.suffix == ".npz":
        parts = _read_npz(path)
    elif _IDX_IMAGES.search(path.name):
        parts = [_read_idx_pair(path)]
    else:
        raise DigitFileError(f"{path} has a name of no known format; {_EXPECTED}")
    images, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _to_digits(images, label, full_scale=255)


def split_images(images: DigitImages, most: int, random: np.random.Generator) -> Split:
    """Split at random, class by class, into half, quarter and quarter; of more than ``most`` images a part is used.

    Raises:
        DigitFileError: a class is missing, or has fewer than four images.
    """
    parts: tuple[list[NDArray[Any]], ...] = ([], [], [])
    share = min(1.0, most / len(images))
    for digit in range(CLASSES):
        index = random.permutation(np.flatnonzero(images.label.numpy() == digit))
        index = index[: math.ceil(share * len(index))]
        if len(index) < 4:
            raise DigitFileError(f"class {digit} has {len(index)} images, expected 4 or more to split; use more images")
        half, quarter = len(index) // 2, len(index) // 4
        for part, chosen in zip(parts, np.split(index, [half, half + quarter]), strict=True):
            part.append(chosen)
    return Split(*(images[torch.as_tensor(np.concatenate(part))] for part in parts))


def _to_digits(images: NDArray[Any], label: NDArray[Any], full_scale: float) -> DigitImages:
    pixels = 2.0 * images.reshape(len(images), -1).astype(np.float32) / full_scale - 1.0
    return DigitImages(torch.from_numpy(pixels), torch.from_numpy(label.astype(np.int64)))


def _read_idx_pair(images_file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read an images file and the labels beside it, which may be compressed or not, whatever the images are."""
    plain = images_file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for labels_file in (images_file.with_name(plain), images_file.with_name(plain + ".gz")):
        if labels_file.exists():
            return _check(_read_idx(images_file, 3), _read_idx(labels_file, 1), str(images_file))
    raise DigitFileError(f"{images_file} has no labels beside it; expected {plain} or {plain}.gz in {images_file.parent}")


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file: two zeros, type code, number of dimensions, sizes as big-endian 32-bit integers, data."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DigitFileError(f"cannot read {path}: {error}; get the file again") from error
    magic = bytes([0, 0, _IDX_UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise DigitFileError(
            f"{path} begins with {content[:4].hex(' ')}, expected {magic.hex(' ')}: it is no IDX file of this kind"
        )
    header = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4"))
    if len(content) != header + math.prod(shape):
        raise DigitFileError(f"{path} has {len(content)} bytes, but its header says {header + math.prod(shape)}; get it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_npz(path: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [(f"x_{part}", f"y_{part}") for part in ("train", "test") if f"x_{part}" in file]
            if not names:
                raise DigitFileError(f"{path} has {', '.join(file.files) or 'nothing'} in it; {_EXPECTED}")
            return [_check(file[images], file[label], f"{path}, {images}") for images, label in names]
    except KeyError as error:
        raise DigitFileError(f"{path} has images but not their labels: {error.args[0]}") from error
    except DigitFileError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DigitFileError(f"cannot read {path}: {error}; get the file again") from error


def _check(images: NDArray[Any], label: NDArray[Any], source: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Refuse what is not square grey images of bytes with one class in 0 .. 9 each."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise DigitFileError(f"{source} holds {images.dtype} of shape {images.shape}, expected uint8 (images, side, side)")
    if label.shape != images.shape[:1] or not np.issubdtype(label.dtype, np.integer):
        raise DigitFileError(f"{source}: labels are {label.dtype} of shape {label.shape}, expected {len(images)} integers")
    if label.min() < 0 or label.max() >= CLASSES:
        raise DigitFileError(f"{source}: labels reach from {label.min()} to {label.max()}, expected 0 to {CLASSES - 1}")
    return images, label
