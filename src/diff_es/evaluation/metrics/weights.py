"""Weights that others published, from a file that the user has: nothing is fetched here."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...utils.errors import DiffESError, said


@dataclass(frozen=True)
class Published:
    """A file of weights, and where its makers put it."""

    file: str
    url: str

    def place(self, given: Path | None) -> Path:
        """The file: the one given, or the one of that name in a folder given, or by default where ``torch.hub``, and so
        torchvision and pytorch-fid, keep what they fetch (in ``$TORCH_HOME/hub/checkpoints``).

        Raises:
            DiffESError: there is none.
        """
        place = Path(torch.hub.get_dir()) / "checkpoints" if given is None else given
        path = place / self.file if given is None or place.is_dir() else place
        if not path.is_file():
            remedy = f"Fetch {self.url} and save it there, or give its place as the metric's weights."
            raise DiffESError(str(path), expected=f"the weights {self.file}", found="no such file", remedy=remedy)
        return path

    def read(self, given: Path | None) -> Mapping[str, Tensor]:
        """Its tensors by name, of a ``.safetensors`` file or of PyTorch's own, of which nothing but tensors is read.

        Raises:
            DiffESError: there is no such file, or it holds anything else.
        """
        path = self.place(given)
        try:
            safe = path.suffix == ".safetensors"
            tensors = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
            raise self._foreign(path, said(error)) from error
        if not isinstance(tensors, Mapping) or not all(isinstance(one, Tensor) for one in tensors.values()):
            raise self._foreign(path, "no dictionary of tensors")
        return tensors

    def fill(self, network: nn.Module, tensors: Mapping[str, Tensor], given: Path | None) -> None:
        """Put tensors into a network that has exactly these.

        Raises:
            DiffESError: names or shapes differ.
        """
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise self._foreign(self.place(given), (lines[1] if len(lines) > 1 else lines[0]).strip()) from error

    def _foreign(self, path: Path, found: str) -> DiffESError:
        expected, remedy = f"the weights {self.file}", f"Fetch {self.url} again."
        return DiffESError(str(path), expected=expected, found=found, remedy=remedy)
