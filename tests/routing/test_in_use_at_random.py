"""One property: in whatever order things are done to a pipeline that runs a result, it then gives what a pipeline gives
to which they were done before it was routed, or refuses what that one refuses; and leaving gives back the dense model.

That the latter is right, a smaller network of its own, is what the other tests of routing say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, PyramidAttentionBroadcastConfig
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from peft import LoraConfig
from tests.helpers.in_use import image_of, in_threads, load_ip_adapter, made_of, result_of
from torch import Tensor
from torch.nn import GroupNorm, LayerNorm

from diff_es import Compact, Compressed, DiffESError, Resident, Streamed
from diff_es.layers import Plan
from diff_es.pipelines.sampling import denoiser_of

NAMES, SEEDS, LENGTH = ("DiT", "SD", "SD3", "FLUX", "PixArt-Sigma"), range(3), 12


@dataclass(frozen=True)
class State:
    """What was done to a pipeline and not undone."""

    dtype: torch.dtype = torch.float32
    fused: bool = False
    lora: bool = False
    image_adapter: bool = False
    cached: bool = False
    sampler: bool = False

    @property
    def plain(self) -> bool:
        return not (self.fused or self.lora or self.image_adapter or self.cached)


def cast(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)


def fuse(pipe: Any, on: bool) -> None:
    denoiser = denoiser_of(pipe)
    (denoiser.fuse_qkv_projections if on else denoiser.unfuse_qkv_projections)()


def adapt(pipe: Any, on: bool) -> None:
    denoiser = denoiser_of(pipe)
    if not on:
        denoiser.unload_lora()
        return
    torch.manual_seed(0)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    denoiser.requires_grad_(False)


def adapt_images(pipe: Any, on: bool) -> None:
    (load_ip_adapter if on else lambda one: one.unload_ip_adapter())(pipe)


def cache(pipe: Any, on: bool) -> None:
    if not on:
        denoiser_of(pipe).disable_cache()
        return
    spatial = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 1001)}
    now = {"current_timestep_callback": lambda: pipe._current_timestep}
    denoiser_of(pipe).enable_cache(PyramidAttentionBroadcastConfig(**spatial, **now))


def swap(pipe: Any, on: bool) -> None:
    config = pipe.scheduler.config
    if on:
        vars(pipe)["own_scheduler"] = pipe.scheduler
        flow = "shift" in config
        other = FlowMatchHeunDiscreteScheduler() if flow else EulerDiscreteScheduler.from_config(config)
        pipe.scheduler = other
    else:
        pipe.scheduler = vars(pipe).pop("own_scheduler")


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "dtype": cast,
    "fused": fuse,
    "lora": adapt,
    "image_adapter": adapt_images,
    "cached": cache,
    "sampler": swap,
}


def possible(name: str, pipe: Any, state: State) -> list[State]:
    """Where one change leads."""
    denoiser = denoiser_of(pipe)
    can = {
        "dtype": state.plain,
        "fused": name != "DiT" and not (state.lora or state.image_adapter),  # which diffusers does not combine
        "lora": isinstance(denoiser, PeftAdapterMixin) and not state.fused,
        "image_adapter": name == "SD" and not state.fused,
        "cached": isinstance(denoiser, CacheMixin),
        "sampler": name != "FLUX",
    }
    found = list[State]()
    for part in fields(State):
        if not can[part.name]:
            continue
        if part.name == "dtype":
            found.append(replace(state, dtype=torch.float64 if state.dtype is torch.float32 else torch.float32))
        else:
            change: dict[str, Any] = {part.name: not getattr(state, part.name)}
            found.append(replace(state, **change))
    return found


def go(pipe: Any, before: State, after: State) -> None:
    """Do what leads from one state to the next."""
    for part in fields(State):
        if getattr(before, part.name) != getattr(after, part.name):
            CHANGES[part.name](pipe, getattr(after, part.name))


class Oracle:
    """What pipelines give, dense and routed, to which everything was done beforehand."""

    def __init__(self, name: str) -> None:
        self.name, self._known = name, dict[tuple[State, bool], Tensor | None]()
        fast = result_of(name, made_of(name))
        bare = [
            Plan({key: replace(cut, weight=None, bias=None) for key, cut in plan.cuts.items()}) for plan in fast.plans
        ]
        self.fast: Compressed = replace(fast, plans=tuple(bare))

    def image(self, pipe: Any, state: State) -> Tensor:
        given: dict[str, Any] = {}
        if state.image_adapter:
            picture = torch.rand(2, 1, 16, generator=torch.Generator().manual_seed(3)).to(state.dtype)
            given = {"ip_adapter_image_embeds": [picture]}
        return image_of(self.name, pipe, **given)

    def dense(self, state: State) -> Tensor:
        found = self(state, routed=False)
        assert found is not None
        return found

    def __call__(self, state: State, *, routed: bool) -> Tensor | None:
        """None: it is refused."""
        if (state, routed) not in self._known:
            pipe = made_of(self.name)
            go(pipe, State(), state)
            if not routed:
                self._known[state, False] = self.image(pipe, state)
            else:
                self._known[state, True] = None
                with suppress(DiffESError), self.fast.routed(pipe):
                    self._known[state, True] = self.image(pipe, state)
        return self._known[state, routed]


@pytest.fixture(scope="module")
def oracles() -> dict[str, Oracle]:
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "seed"),  # two placements of the three with each family
    [(name, seed) for i, name in enumerate(NAMES) for seed in SEEDS if (i + seed) % 3],
)
def test_what_is_done_inside_is_as_if_it_had_been_done_before(name: str, seed: int, oracles: dict[str, Oracle]) -> None:
    if name not in oracles:
        oracles[name] = Oracle(name)
    oracle = oracles[name]
    random, pipe, state, story = Random(f"{name} {seed}"), made_of(name), State(), list[str]()
    base = {key: value.clone() for key, value in denoiser_of(pipe).state_dict().items()}
    placement = (Resident(), Streamed(), Compact())[seed % 3]
    oracle.fast.apply(pipe, placement)
    routed, refused, right = True, 0, 0
    for _ in range(LENGTH):
        kind = random.choice(["change"] * 6 + ["thread", "copy", "share", "stop", "state", "load", "leave", "forget"])
        story.append(kind)
        if kind == "change":
            after = random.choice(possible(name, pipe, state))
            story[-1] = next(f.name for f in fields(State) if getattr(after, f.name) != getattr(state, f.name))
            go(pipe, state, after)
            state = after
        elif kind == "copy" and not state.cached:  # whose configuration holds the pipeline
            twin = deepcopy(pipe)
            assert torch.equal(oracle.image(twin, state), oracle.dense(state)), story
        elif kind == "share" and state.dtype is torch.float32:  # to which from_pipe casts what it shares
            pipe.to("cpu")
            twin = type(pipe).from_pipe(pipe)
            twin.set_progress_bar_config(disable=True)
            if (expected := oracle(state, routed=routed)) is not None and not state.cached:
                assert torch.equal(oracle.image(twin, state), expected), story
        elif kind == "stop":
            norms = [part for part in denoiser_of(pipe).modules() if isinstance(part, LayerNorm | GroupNorm)]
            handle = random.choice(norms).register_forward_hook(_stop)
            with suppress(KeyboardInterrupt, DiffESError):
                oracle.image(pipe, state)
            handle.remove()
            if state.cached:  # diffusers itself does so at the end of a call alone
                denoiser_of(pipe)._reset_stateful_cache()
        elif kind == "state":
            saved = denoiser_of(pipe).state_dict()
            assert all(torch.equal(saved[key], value.to(state.dtype)) for key, value in base.items() if key in saved)
        elif kind == "load":
            own = {key: value.clone() for key, value in denoiser_of(pipe).state_dict().items()}
            denoiser_of(pipe).load_state_dict(own)
        elif kind == "leave":
            if routed:
                oracle.fast.remove(pipe)
            routed = False
        elif kind == "forget" and not routed:
            with suppress(DiffESError):
                oracle.fast.apply(pipe, placement)
                routed = True
        expected = oracle(state, routed=routed)
        if expected is None:
            refused += 1
            with pytest.raises(DiffESError):
                oracle.image(pipe, state)
            continue
        right += 1
        draw = partial(oracle.image, pipe, state)
        found = in_threads([draw])[0] if kind == "thread" else draw()
        assert torch.equal(found, expected), story
    if routed:
        oracle.fast.remove(pipe)
    assert torch.equal(oracle.image(pipe, state), oracle.dense(state)), story
    go(pipe, state, State())
    assert torch.equal(oracle.image(pipe, State()), oracle.dense(State())), story
    left = denoiser_of(pipe).state_dict()
    assert all(torch.equal(left[key], value) for key, value in base.items()), story
    assert right > 2


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt
