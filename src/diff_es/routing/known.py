"""What a denoiser was like when weights were laid out for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..layers import Anatomy, base_parameters, submodule
from .changes import Likeness
from .guard import Guard


class Known:
    """A denoiser as it was then; says whether it still is, and moves what is in place where it went.

    Args:
        looked: called when anyone has looked at the parameters that are exchanged.
    """

    def __init__(self, denoiser: nn.Module, anatomy: Anatomy, looked: Callable[[], None]) -> None:
        self.likeness = Likeness(denoiser, anatomy)
        self.guard = Guard(self.likeness.owners.values(), looked)
        owners = self.likeness.owners
        # the first parameter that is never exchanged, adapters or not: where it lies, the denoiser lies; where all
        # are, the first of them
        names = [name for name, _ in base_parameters(denoiser)]
        name = next((name for name in names if name.rpartition(".")[0] not in owners), names[0])
        path, _, self._leaf = name.rpartition(".")
        self._witness = submodule(denoiser, path)
        self._home = self._where()
        # of the modules that are exchanged: some models keep parts in float32
        self._dtypes = {path: next(module.parameters()).dtype for path, module in owners.items()}

    def holds(self) -> bool:
        """Whether it is still so."""
        return not self.moved() and self.likeness.changed() is None

    def moved(self) -> bool:
        """Whether the denoiser lies elsewhere."""
        return self._where() != self._home

    def follow(self) -> None:
        """Move what is in place where the rest of the denoiser lies, and cast it if that was."""
        device, dtype = self._where()
        if device.type != "meta":
            for path, module in self.likeness.owners.items():
                module.to(device, self._dtypes[path] if dtype == self._home[1] else dtype)

    def _where(self) -> tuple[torch.device, torch.dtype]:
        parameter = self._witness.get_parameter(self._leaf)
        return parameter.device, parameter.dtype
