"""Whether a loop of the user's own can go to other processes."""

from __future__ import annotations

import io
import pickle

from torch import Tensor

from ..utils.errors import DiffESError
from .own_sampler import OwnSampler


class _Weightless(pickle.Pickler):
    """Pickles everything but tensors."""

    def persistent_id(self, value: object) -> object:
        return "tensor" if isinstance(value, Tensor) else None


def check_portable(own: OwnSampler) -> None:
    """Whether other processes can have a copy of a denoiser and its loop.

    Raises:
        DiffESError: they cannot.
    """
    for where, part in (("sample", own.sample), ("decode", own.decode), ("denoiser", own.denoiser)):
        try:
            _Weightless(io.BytesIO()).dump(part)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            remedy = "Define it by name in a module, not inside of a function; or take one worker."
            expected, found = "one that other processes can have a copy of, for workers", str(error)
            raise DiffESError(f"OwnSampler.{where}", expected=expected, found=found, remedy=remedy) from error
