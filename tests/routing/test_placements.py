"""Laws of placements: they agree, what they hold is what they say, and nothing of theirs stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.helpers.tiny import CALL, assert_same, images, opened, random_plan, settings, snapshot, stages_of, tiny
from torch import Tensor, nn

from diff_es import ArtefactError, Compact, Compressed, Resident, Run, Streamed, compress, load
from diff_es.layers import DENSE, Cut, Factor, Plan, discover
from diff_es.pruning.lowrank import factorise
from diff_es.routing.placements import Placement, Stitched, Store, StreamedStore, choose
from diff_es.routing.realise import fed_by, realise
from diff_es.routing.routing import routed


def ahead(denoiser: nn.Module, anatomy: Any, plans: Sequence[Plan], limit: float = 1.15) -> StreamedStore:
    """Streaming as a device with streams of its own does it."""
    return StreamedStore(denoiser, anatomy, plans, limit, ahead=True)


def factored(pipe: DiTPipeline, seed: int, skip: Sequence[int] = (), shared: dict[str, Factor] | None = None) -> Plan:
    """A random plan whose corrections are factors, one of them of another plan."""
    plan, generator = random_plan(pipe, seed, skip), torch.Generator().manual_seed(seed)
    cuts = dict[str, Cut]()
    for name, cut in plan.cuts.items():
        assert cut.weight is not None
        terms = [_factor(cut.weight, generator)]
        if shared is not None:
            terms.insert(0, shared.setdefault(f"{name} {len(cut.kept)}", _factor(cut.weight, generator)))
        cuts[name] = Cut(cut.kept, None, cut.bias, tuple(terms))
    return Plan(cuts, plan.bypasses)


def _factor(like: Tensor, generator: torch.Generator) -> Factor:
    def draw(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)

    scale = torch.rand(2, generator=generator) / 1000
    return Factor(draw(len(like), 2), scale, draw(2, like.shape[1]), scale.flip(0))


def plans_of(pipe: DiTPipeline) -> tuple[Plan, ...]:
    """Thinned, dense, and thinned with a skipped block; factored, so that every placement takes them."""
    shared = dict[str, Factor]()
    return (factored(pipe, 1, shared=shared), DENSE, factored(pipe, 2, skip=[1], shared=shared))


def open_with(pipe: DiTPipeline, placement: Placement | None) -> Callable[[], Store]:
    """None streams ahead."""
    if placement is not None:
        return opened(pipe, plans_of(pipe), placement)
    return partial(ahead, pipe.transformer, discover(pipe.transformer), plans_of(pipe))


ALL = [Resident(), Streamed(), None, Streamed(0.01), Compact(), Stitched()]
OURS = ALL[:-1]


@pytest.mark.parametrize("placement", ALL[1:])
@pytest.mark.parametrize(
    "changes", [{}, {"activation": "geglu"}, {"dtype": torch.bfloat16}, {"head_size": 24, "heads": 3}]
)
def test_all_placements_give_bitwise_the_same_images(placement: Placement | None, changes: dict[str, Any]) -> None:
    pipe = tiny(**changes)
    dense = images(pipe)
    with routed(pipe.transformer, stages_of(pipe, 3), open_with(pipe, Resident())):
        expected = images(pipe)
    assert not torch.equal(expected, dense)
    with routed(pipe.transformer, stages_of(pipe, 3), open_with(pipe, placement)):
        assert torch.equal(images(pipe), expected)
        assert torch.equal(images(pipe, steps=4), images(pipe, steps=4))
        assert torch.equal(images(pipe), expected)
    assert torch.equal(images(pipe), dense)


@pytest.mark.parametrize("placement", OURS)
def test_level_0_is_bitwise_dense_wherever_weights_wait(placement: Placement | None) -> None:
    pipe = tiny()
    dense, mixed = images(pipe), open_with(pipe, placement)
    with routed(pipe.transformer, stages_of(pipe, 3), mixed) as routing:
        pipe.transformer(torch.zeros(1, 4, 8, 8), torch.tensor([999]), torch.tensor([1]))  # a pruned stage first
        routing.store.to(1)
        moved = pipe.transformer.forward(torch.ones(1, 4, 8, 8), torch.tensor([1]), torch.tensor([1])).sample
    assert torch.equal(moved, pipe.transformer(torch.ones(1, 4, 8, 8), torch.tensor([1]), torch.tensor([1])).sample)
    assert torch.equal(images(pipe), dense)


def values(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in denoiser.state_dict().items()}


@pytest.mark.parametrize("placement", OURS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_however_routing_ends_nothing_stays(
    placement: Placement | None, error: type[BaseException] | None, step: int
) -> None:
    pipe = tiny()
    before, state, seen = snapshot(pipe.transformer), values(pipe.transformer), list[int]()

    def stop(*_: Any) -> None:
        seen.append(1)
        if error is not None and len(seen) > step:
            raise error

    opener = open_with(pipe, placement)
    with suppress(RuntimeError, KeyboardInterrupt), routed(pipe.transformer, stages_of(pipe, 3), opener):
        handle = pipe.transformer.pos_embed.register_forward_hook(stop)
        images(pipe)
    handle.remove()
    assert len(seen) == (6 if error is None else step + 1)
    assert_same(before, snapshot(pipe.transformer))
    after = pipe.transformer.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_a_switch_that_is_interrupted_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between any two reordered tensors of a compact switch."""
    pipe = tiny()
    state, real, calls = values(pipe.transformer), Tensor.argsort, list[int]()
    for moment in range(0, 24, 5):
        calls.clear()

        def interrupt(self: Tensor, *args: Any, moment: int = moment, **kwargs: Any) -> Tensor:
            calls.append(1)
            if len(calls) == moment + 1:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        def run() -> None:
            with (
                routed(pipe.transformer, stages_of(pipe, 3), open_with(pipe, Compact())),
                monkeypatch.context() as patch,
            ):
                patch.setattr(Tensor, "argsort", interrupt)
                images(pipe)

        with pytest.raises(KeyboardInterrupt):
            run()
        after = pipe.transformer.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in state.items()), f"moment {moment}"


def on_device(denoiser: nn.Module, extra: Sequence[Tensor]) -> int:
    """Bytes of distinct storages: counted without the code under test."""
    tensors = [*denoiser.parameters(), *extra]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def kept_on_device(plans: Sequence[Plan]) -> Iterator[Tensor]:
    for plan in plans:
        for cut in plan.cuts.values():
            yield from (t for factor in cut.factors for t in factor.tensors())
            assert cut.bias is not None
            yield cut.bias
        yield from (t for bypass in plan.bypasses.values() if bypass is not None for t in vars(bypass).values())


def test_streaming_holds_one_stage_and_no_dense_weight_that_a_stage_replaces() -> None:
    pipe = tiny(head_size=16, heads=8)
    plans = [random_plan(pipe, seed) for seed in range(3)]
    slim = [realise(pipe.transformer, discover(pipe.transformer), plan) for plan in plans]
    touched = {name for weights in slim for name in weights.tensors}
    rest = sum(p.nbytes for name, p in pipe.transformer.named_parameters() if name not in touched)
    dense = on_device(pipe.transformer, ())
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans, Streamed())) as routing:
        for stage, weights in enumerate(slim):
            routing.store.to(stage)
            padding = 64 * len(weights.tensors)
            assert rest + weights.bytes <= on_device(pipe.transformer, ()) <= rest + weights.bytes + padding
            assert routing.store.weight_bytes == on_device(pipe.transformer, ())
        assert routing.store.peak_bytes < 0.9 * dense


@pytest.mark.parametrize("limit", [0.7, 1.0, 1.15, 9.0])
def test_streaming_ahead_keeps_its_limit_and_two_stages(limit: float) -> None:
    pipe = tiny(head_size=16, heads=8)
    plans = [random_plan(pipe, seed) for seed in range(3)]
    slim = [realise(pipe.transformer, discover(pipe.transformer), plan) for plan in plans]
    touched = {name for weights in slim for name in weights.tensors}
    rest = sum(p.nbytes for name, p in pipe.transformer.named_parameters() if name not in touched)
    dense, most = on_device(pipe.transformer, ()), max(weights.bytes for weights in slim)
    padding = 64 * len(slim[0].tensors)
    with routed(
        pipe.transformer, stages_of(pipe, 3), partial(ahead, pipe.transformer, discover(pipe.transformer), plans, limit)
    ) as routing:
        images(pipe)
        images(pipe)
        least = rest + most + padding  # a single stage is never split
        assert routing.store.peak_bytes <= max(limit * dense, least)
        assert routing.store.peak_bytes <= rest + 2 * (most + padding)
        if limit == 9.0:
            assert routing.store.weight_bytes > rest + 1.9 * min(weights.bytes for weights in slim)


def test_compact_holds_the_dense_network_the_merged_projections_and_the_factors() -> None:
    pipe = tiny(head_size=16, heads=8)
    plans = [factored(pipe, seed) for seed in range(3)]
    dense = on_device(pipe.transformer, ())
    factors = sum(tensor.nbytes for tensor in kept_on_device(plans))
    rows = [p for layer in discover(pipe.transformer).layers for _, _, p in fed_by(pipe.transformer, layer)]
    spare = sum({p.shape: p.nbytes for p in rows}.values())  # a tensor of each shape exists in two orders
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans, Compact())) as routing:
        for stage, plan in enumerate(plans):
            routing.store.to(stage)
            outputs = {layer.name: layer.output for layer in discover(pipe.transformer).layers}
            merged = [f"{outputs[name]}.{leaf}" for name in plan.cuts for leaf in ("weight", "bias")]
            active = sum(pipe.transformer.get_parameter(name).nbytes for name in merged)
            waiting = spare if stage else 0  # what the rows lay in at first may be somebody's
            assert routing.store.weight_bytes == dense + factors + active + waiting
        assert routing.store.peak_bytes <= dense + factors + active * 1.2 + spare


def test_memory_at_ten_stages_and_half_of_the_groups() -> None:
    """The promise for the shapes of DiT-XL/2, in small: hidden 4 times the width, three quarters of it prunable."""
    pipe = tiny(head_size=16, heads=8, layers=4)
    stages, plans = stages_of(pipe, 10, replace(CALL, num_inference_steps=10)), list[Plan]()
    for seed in range(10):
        cuts = {}
        for name, cut in random_plan(pipe, seed).cuts.items():
            layer = next(layer for layer in discover(pipe.transformer).layers if layer.name == name)
            kept, outputs = torch.arange(layer.groups // 2), pipe.transformer.get_submodule(layer.output).out_features
            rank, generator = outputs // 12, torch.Generator().manual_seed(seed)
            left = torch.randint(-9, 9, (outputs, rank), dtype=torch.int8, generator=generator)
            right = torch.randint(-9, 9, (rank, len(kept) * layer.width), dtype=torch.int8, generator=generator)
            scale = torch.full((rank,), 1e-3)
            cuts[name] = Cut(kept, None, cut.bias, (Factor(left, scale, right, scale),))
        plans.append(Plan(cuts))
    dense, peaks = on_device(pipe.transformer, ()), dict[str, float]()
    for placement in (Resident(), Streamed(), Compact(), Stitched()):
        with routed(pipe.transformer, stages, opened(pipe, plans, placement)) as routing:
            images(pipe, steps=10)
            peaks[type(placement).__name__] = routing.store.peak_bytes / dense
    assert peaks["Streamed"] <= 1.15
    assert peaks["Compact"] <= 1.4
    assert peaks["Stitched"] > 3
    assert peaks["Streamed"] < peaks["Compact"] < peaks["Resident"] < peaks["Stitched"]


def test_compact_refuses_whole_weights_by_name_and_changes_nothing() -> None:
    pipe = tiny()
    before = snapshot(pipe.transformer)
    plans = [random_plan(pipe, 1)] * 3
    with (
        pytest.raises(ArtefactError, match=r"plan, transformer_blocks.0.attn1: .* found a whole weight"),
        routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans, Compact())),
    ):
        pass
    assert_same(before, snapshot(pipe.transformer))


def test_the_placement_follows_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny()
    anatomy, plans = discover(pipe.transformer), [random_plan(pipe, seed) for seed in range(3)]
    needed = sum(realise(pipe.transformer, anatomy, plan).bytes for plan in plans)
    for free, expected in ((2.1 * needed, Resident()), (1.5 * needed, Streamed())):
        monkeypatch.setattr("diff_es.routing.placements.free_memory", lambda device, free=free: int(free))
        assert choose(pipe.transformer, anatomy, plans) == expected
    assert choose(pipe.transformer, anatomy, plans_of(pipe)) == Compact()
    slices = [Plan({name: Cut(cut.kept) for name, cut in plan.cuts.items()}) for plan in plans]
    assert choose(pipe.transformer, anatomy, slices) == Compact()
    monkeypatch.setattr("diff_es.routing.placements.free_memory", lambda device: int(2.1 * needed))
    assert choose(pipe.transformer, anatomy, slices) == Resident()


@given(seed=st.integers(0, 10_000), allowed=st.floats(1e-3, 1.0))
@examples(max_examples=25, deadline=None)
def test_factors_keep_the_allowed_error_with_no_larger_rank_than_needed(seed: int, allowed: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(12, 9, dtype=torch.float64, generator=generator)
    inputs = torch.randn(40, 9, dtype=torch.float64, generator=generator) * torch.logspace(
        0, -2, 9, dtype=torch.float64
    )
    hessian = inputs.T @ inputs / 40 + 1e-9 * torch.eye(9, dtype=torch.float64)
    power = float((delta @ hessian * delta).sum())
    factors = factorise(delta, hessian, allowed * power)
    rest = delta - sum((factor.product().double() for factor in factors), torch.zeros_like(delta))
    assert float((rest @ hessian * rest).sum()) <= allowed * power * (1 + 1e-9)
    singular = torch.linalg.svdvals(delta @ torch.linalg.cholesky(hessian)).square()
    needed = int((singular.flip(0).cumsum(0).flip(0) > 0.9 * allowed * power).sum())
    assert not factors or len(factors[0].left_scale) == max(1, needed)


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    made = compress(tiny(), 0.6, settings(), run=Run(placement=Compact(0.3)))
    made.save(tmp_path_factory.mktemp("compact") / "out")
    again = load(tmp_path_factory.getbasetemp() / "compact0" / "out")
    assert again.placement == Compact(0.3)
    return again


def test_results_of_one_schedule_are_told_apart_when_saved(compact: Compressed, tmp_path: Path) -> None:
    """Two budgets may end in the same levels, with factors of their own."""
    twin = replace(compact, plans=tuple(Plan(dict(plan.cuts), plan.bypasses) for plan in compact.plans))
    copied = {name: replace(cut, kept=cut.kept.clone()) for name, cut in compact.plans[0].cuts.items()}
    twin = replace(twin, plans=(Plan(copied), *twin.plans[1:]), searched=replace(compact.report, macs_ratio=0.01))
    replace(compact, others=(twin,)).save(tmp_path / "out")
    assert load(tmp_path / "out").report.macs_ratio == compact.report.macs_ratio
    assert load(tmp_path / "out", 100).report.macs_ratio == 0.01


def test_a_compact_result_is_saved_and_runs_within_its_tolerance(compact: Compressed, fast: Compressed) -> None:
    """The same search as the whole result's: only the corrections differ, and their loss is in the artefact."""
    assert compact.schedule == fast.schedule
    pipe = tiny()
    anatomy = discover(pipe.transformer)
    for mine, whole in zip(compact.plans, fast.plans, strict=True):
        assert mine.cuts.keys() == whole.cuts.keys()
        for layer in anatomy.layers:
            if layer.name in mine.cuts:
                assert mine.cuts[layer.name].weight is None
                assert torch.equal(mine.cuts[layer.name].kept, whole.cuts[layer.name].kept)
    assert compact.report.compact_held_out_score is not None
    loss = compact.report.held_out_score - compact.report.compact_held_out_score
    assert abs(loss) < 2.0
    shown = list[Tensor]()
    for placement in (None, Resident(), Streamed()):
        with compact.routed(pipe, placement):
            shown.append(images(pipe))
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])
    with fast.routed(pipe, Resident()):
        assert not torch.equal(images(pipe), shown[0])
