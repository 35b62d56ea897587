"""Reference batches of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), such as VIRTUAL_imagenet256_labeled.npz: the
mean ``mu`` and covariance ``sigma`` of Inception's features over real images, and some of these as ``arr_0``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ...utils.errors import DiffESError, said
from .moments import Gaussian

_IMAGES = "arr_0"


def reference_moments(path: Path) -> Gaussian:
    """Of all the real images; files of pytorch-fid, with the same two arrays, will do.

    Raises:
        DiffESError: there is no such file, or it holds no such arrays.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise _foreign(path, "a mean `mu` and a covariance `sigma`", said(error)) from error
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        found = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise _foreign(path, "`mu` (F,) and `sigma` (F, F)", found)
    return Gaussian(mean, covariance)


def reference_images(path: Path, batch: int) -> Iterator[Tensor]:
    """The real images that it holds, (batch, 3, H, W) in [0, 1] each; the last has what is left. Memory is that of one
    batch: the array is read as it unpacks.

    Raises:
        DiffESError: there is no such file, it is damaged, or it holds no images of 8 bits.
    """
    expected = f"images `{_IMAGES}` of 8 bits, (N, H, W, 3)"
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{_IMAGES}.npy") as stream:
            shape = _shape(stream, path, expected)
            for start in range(0, shape[0], batch):
                part = (min(batch, shape[0] - start), *shape[1:])
                data = bytearray(_exactly(stream, int(np.prod(part))))
                yield torch.frombuffer(data, dtype=torch.uint8).reshape(part).permute(0, 3, 1, 2).float() / 255
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _foreign(path, expected, said(error)) from error


def _shape(stream: IO[bytes], path: Path, expected: str) -> tuple[int, ...]:
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(stream)
    except ValueError as error:
        raise _foreign(path, expected, said(error)) from error
    if dtype != np.uint8 or by_columns or len(shape) != 4 or shape[3] != 3:
        raise _foreign(path, expected, f"{shape} of {dtype}")
    return tuple(shape)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError(f"the array ends {count - len(data)} bytes early")
    return data


def _foreign(path: Path, expected: str, found: str) -> DiffESError:
    remedy = "Take a reference batch of https://github.com/openai/guided-diffusion/tree/main/evaluations, whole."
    return DiffESError(str(path), expected=expected, found=found, remedy=remedy)
