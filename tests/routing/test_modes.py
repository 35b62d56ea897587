"""A routed pipeline in whichever mode of PyTorch it is called, and what others hold of its dense weights meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.helpers.in_use import halves, image_of, made_of, result_of, slim_of, stages_of

from diff_es import Compact, Compressed, Resident, Streamed
from diff_es.layers import DENSE, Cut, Plan
from diff_es.pipelines.sampling import denoiser_of
from diff_es.routing.placements import Placed

FAMILIES = pytest.mark.parametrize("name", ["DiT", "SD"])


def slices(name: str, pipe: Any) -> Compressed:
    """Whose stages keep other halves of all groups, and the dense weights of these, so that any placement takes it."""
    plans = [Plan({layer: Cut(cut.kept) for layer, cut in plan.cuts.items()}) for plan in halves(name, pipe)]
    return result_of(name, pipe, plans)


def values_of(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in denoiser_of(pipe).state_dict().items()}


def assert_equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert [name for name, value in some.items() if not torch.equal(value, others[name])] == []


@pytest.mark.parametrize("placement", [Resident(), Streamed(), Compact()], ids=lambda one: type(one).__name__)
@FAMILIES
def test_calls_may_come_in_inference_mode_and_out_of_it(name: str, placement: Placed) -> None:
    pipe = made_of(name)
    fast, before, dense = slices(name, pipe), values_of(pipe), image_of(name, pipe)
    with fast.routed(made_of(name), Resident()) as other:
        wanted = image_of(name, other)
    for order in ((True,), (True, False, True, False), (False, True)):
        with fast.routed(pipe, placement):
            for inference in order:
                with torch.inference_mode(inference):
                    assert torch.equal(image_of(name, pipe), wanted)
            assert_equal(before, denoiser_of(pipe).state_dict())
        assert_equal(before, denoiser_of(pipe).state_dict())
        assert torch.equal(image_of(name, pipe), dense)


@pytest.mark.parametrize("placement", [Resident(), Streamed(), Compact()], ids=lambda one: type(one).__name__)
@FAMILIES
def test_what_others_hold_of_the_weights_stays_as_it_was(name: str, placement: Placed) -> None:
    """A state dict of before and one of between two calls, and a module with the same memory."""
    pipe, other = made_of(name), made_of(name)
    denoiser_of(other).load_state_dict(denoiser_of(pipe).state_dict(), assign=True)
    fast, dense, before = slices(name, pipe), image_of(name, other), denoiser_of(pipe).state_dict()
    values = values_of(pipe)
    with fast.routed(pipe, placement):
        image_of(name, pipe)
        between = denoiser_of(pipe).state_dict()
        image_of(name, pipe)
        assert_equal(values, between)
        assert_equal(values, before)
    assert_equal(values, before)
    assert torch.equal(image_of(name, other), dense)


@pytest.mark.parametrize("order", [(0, 0), (0, 1), (0, 1, 2, 0), (1, 2, 1, 0)], ids=str)
@pytest.mark.parametrize("placement", [Resident(), Streamed(), Compact()], ids=lambda one: type(one).__name__)
def test_a_gradient_through_several_stages_is_right_or_refused(placement: Placed, order: tuple[int, ...]) -> None:
    """The first and the last stage are pruned, the one between them is not; PyTorch says which weights are gone."""
    pipe = made_of("DiT")
    first, _, last = slices("DiT", pipe).plans
    plans = [first, DENSE, last]
    fast, times = result_of("DiT", pipe, plans), [999.0, *stages_of("DiT").boundaries]
    wanted = gradient([slim_of(pipe, plans[stage]) for stage in order], [times[stage] for stage in order])
    with fast.routed(pipe, placement):
        try:
            found = gradient([pipe] * len(order), [times[stage] for stage in order])
        except RuntimeError as refused:
            if isinstance(placement, Resident) or len(set(order)) == 1 or "by an inplace operation" not in str(refused):
                raise
        else:
            assert torch.equal(found, wanted)


def gradient(pipes: Sequence[Any], times: Sequence[float]) -> torch.Tensor:
    """Of a sample that goes through the denoisers one after the other."""
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sample, labels = start, torch.tensor([0, 1])
    for pipe, time in zip(pipes, times, strict=True):
        sample = sample + denoiser_of(pipe)(sample, torch.tensor([time] * 2), labels).sample[:, :4]
    sample.square().sum().backward()
    assert start.grad is not None
    return start.grad


def test_a_store_that_cannot_close_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next who looks, or leaves: nobody is told that weights are dense which are not."""
    pipe = made_of("DiT")
    fast, before = slices("DiT", pipe), values_of(pipe)
    fast.apply(pipe, Compact())
    image_of("DiT", pipe)
    with monkeypatch.context() as patch:
        patch.setattr("diff_es.routing.placements.compact.CompactStore.settle", fail)
        for act in (denoiser_of(pipe).state_dict, denoiser_of(pipe).state_dict, lambda: fast.remove(pipe)):
            with pytest.raises(RuntimeError, match="by chance"):
                act()
    fast.remove(pipe)
    assert_equal(before, denoiser_of(pipe).state_dict())


def fail(store: object) -> None:
    raise RuntimeError("by chance")
