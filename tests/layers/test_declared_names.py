"""Denoisers of others whose modules have names and homes that diffusers' own have not: they are like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.own import WORK
from torch import Tensor, nn

from diff_es import ArtefactError, Levers, Method, OwnSampler, Width, compress
from diff_es.compression.result import load
from diff_es.layers import Channels, Residual, fingerprint
from diff_es.pipelines.supported import check
from diff_es.pruning.declare import declare
from diff_es.utils.errors import DiffESError

TIMES = (1.0, 0.7, 0.4, 0.2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Weather(nn.Module):
    """An encoder, a processor and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.processor, self.decoder = nn.Linear(6, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.decoder(self.processor(self.encoder(x) + t[:, None]))
        return found


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Weather()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.net(x, t)
        return found


class Named(nn.Module):
    """Layers in a dictionary, under names with a slash."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"6/up": nn.Linear(6, 24), "6/down": nn.Linear(24, 6)})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.parts["6/down"]((self.parts["6/up"](x) + t[:, None]).relu())
        return x + found


class Iterated(nn.Module):
    """A sequence that is gone through by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = x + t[:, None]
        for layer in self.net:
            hidden = layer(hidden)
        return hidden


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.down(self.up(x).relu())
        return x


def made(make: Callable[[], nn.Module], *parts: Channels | Residual, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = make().eval().requires_grad_(False)
    declare(model, parts, lambda: model(torch.randn(2, 6), torch.ones(2)), timestep="t")
    return model


def loop(denoiser: nn.Module, x: Tensor, times: Sequence[float]) -> Tensor:
    for t in times:
        x = x - 0.1 * denoiser(x, torch.full((len(x),), t))
    return x


def sampler(model: nn.Module) -> OwnSampler:
    return OwnSampler(model, loop, noise=(6,), times=TIMES)


def test_a_module_that_is_called_processor_is_a_part_of_the_model() -> None:
    own, other = (made(Weather, Channels("processor.*", ("up",), "down")) for _ in range(2))
    assert fingerprint(own) == fingerprint(other)
    other.get_submodule("processor.1.down").get_parameter("weight").add_(1)
    assert fingerprint(own) != fingerprint(other)
    found = compress(sampler(own), 0.7, replace(WORK, levers=Levers.PRUNE))
    with pytest.raises(ArtefactError, match="hash of the base model"), found.routed(sampler(other)):
        pass
    check(sampler(made(Inside, Channels("net.processor.*", ("up",), "down"))))


@pytest.mark.parametrize(
    ("make", "part"),
    [(Named, Channels("parts", ("6/up",), "6/down")), (Iterated, Channels("net", ("0",), "2"))],
    ids=["dictionary", "sequence"],
)
def test_layers_whose_home_is_never_called_are_timed_compressed_saved_and_loaded(
    make: Callable[[], nn.Module], part: Channels, tmp_path: Path
) -> None:
    asked = replace(WORK, levers=Levers.PRUNE, method=Method(Width(4, multiple=1)))
    model, noise = made(make, part), torch.randn(2, 6)
    found = compress(sampler(model), 0.7, asked)
    assert any(plan.cuts for plan in found.plans)
    found.save(tmp_path / "found")
    with found.routed(sampler(model)):
        wanted = loop(model, noise, TIMES)
    with load(tmp_path / "found").routed(sampler(model)):
        assert torch.equal(loop(model, noise, TIMES), wanted)


class TwoStreams(nn.Module):
    """The time comes between the streams."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor, temb: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.up(x) + temb, encoder_hidden_states + x


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module, named: bool = False) -> None:
        super().__init__()
        self.blocks, self.named = nn.ModuleList(blocks), named

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = x[:, None] + t[:, None, None]
        other = hidden.clone()
        for block in self.blocks:
            if isinstance(block, InPlace):
                hidden = block(hidden)
            elif self.named:
                hidden, other = block(hidden, temb=hidden, encoder_hidden_states=other)
            else:
                hidden, other = block(hidden, hidden, other)
        return (hidden + other)[:, 0]


def test_a_second_stream_is_second_or_named() -> None:
    """Its stand-in would take what is second for it."""
    returns = ("hidden_states", "encoder_hidden_states")
    with pytest.raises(DiffESError, match=r"blocks\.0: expected to take encoder_hidden_states second, or by name"):
        made(lambda: Blocks(TwoStreams()), Residual("blocks.*", returns=returns))
    made(lambda: Blocks(TwoStreams(), named=True), Residual("blocks.*", returns=returns))


def test_a_block_that_writes_to_what_it_is_given_is_refused() -> None:
    """Its input could not be told from its output."""
    with pytest.raises(DiffESError, match=r"blocks\.0: expected to leave the hidden states .* x = x \+ y in place"):
        made(lambda: Blocks(InPlace()), Residual("blocks.*"))
