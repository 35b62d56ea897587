"""Ranking and compensation against their definitions, by loops, by plain solves and on the actual inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diff_es.pruning.accumulator import Accumulator
from diff_es.pruning.compensation import Ridge, output_error, regress
from diff_es.pruning.importance import Activation, Magnitude, Obs, Ranking, Wanda
from diff_es.pruning.moments import Moments, damped
from diff_es.utils.errors import DiffESError

laws = settings(max_examples=40, deadline=None)
RANKINGS = (Magnitude(), Activation(), Wanda(), Obs(), Obs(rounds=2), Obs(damping=1e-3, rounds=10_000))


@dataclass
class Case:
    """A layer y = W x + b, the inputs it received, and a choice of kept columns."""

    weight: Tensor
    bias: Tensor
    inputs: Tensor

    @property
    def moments(self) -> Moments:
        return moments_of(self.inputs)


def moments_of(x: Tensor) -> Moments:
    x = x.double()
    return Moments(x.T @ x, x.sum(0), len(x))


def case(seed: int, size: int = 6, outputs: int = 4, count: int = 50) -> Case:
    """Correlated inputs with a mean, of uneven power."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inputs = (randn(count, size) @ randn(size, size) + randn(size)) * torch.rand(size, generator=g).mul(2).exp()
    return Case(randn(outputs, size), randn(outputs), inputs)


def brute_error(c: Case, kept: Tensor, weight: Tensor, bias: Tensor) -> float:
    dense = c.inputs @ c.weight.T + c.bias
    slim = c.inputs[:, kept] @ weight.T + bias
    return float((dense - slim).square().sum(1).mean())


cases = st.builds(case, st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 4), st.sampled_from([3, 50]))


# ----------------------------------------------------------------------------------------------------------- moments


@laws
@given(cases, st.data())
def test_moments_add_up_over_batches(c: Case, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(c.inputs) - 1))
    total, whole = moments_of(c.inputs[:cut]) + moments_of(c.inputs[cut:]), c.moments
    assert total.count == whole.count
    torch.testing.assert_close(total.second, whole.second)
    torch.testing.assert_close(total.first, whole.first)


def test_moments_are_means_powers_and_covariances() -> None:
    x = case(0).inputs
    torch.testing.assert_close(moments_of(x).mean(), x.mean(0))
    torch.testing.assert_close(moments_of(x).power(), x.square().mean(0))
    torch.testing.assert_close(moments_of(x).hessian(centred=True), torch.cov(x.T, correction=0))
    torch.testing.assert_close(
        moments_of(x).hessian(centred=False), torch.cov(x.T, correction=0) + x.mean(0).outer(x.mean(0))
    )


def test_damping_is_relative_to_the_mean_diagonal_from_the_start() -> None:
    hessian = torch.tensor([[1.0, 0.5], [0.5, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(damped(hessian, 0.1), hessian + 0.2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(damped(1000 * hessian, 0.1), 1000 * damped(hessian, 0.1))
    assert damped(0 * hessian, 0.1).equal(torch.eye(2, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------ compensation


@pytest.mark.parametrize("intercept", [False, True])
def test_independent_inputs_leave_the_kept_weights_alone(intercept: bool) -> None:
    c, mean = case(1), torch.arange(6.0, dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)
    moments = Moments(10 * (eye + intercept * mean.outer(mean)), 10 * intercept * mean, 10)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    for kept, weight, bias, _ in Ridge(0.1, intercept).solve(c.weight, c.bias, moments, order, [1, 4, 6]):
        torch.testing.assert_close(weight, c.weight[:, kept])
        gone = [i for i in range(6) if i not in kept.tolist()]
        torch.testing.assert_close(bias, c.bias + intercept * c.weight[:, gone] @ mean[gone])


@laws
@given(cases, st.data(), st.booleans(), st.sampled_from([0.0001, 0.01, 1.0]))
def test_all_counts_at_once_equal_a_plain_solve_of_each(
    c: Case, data: st.DataObject, intercept: bool, damping: float
) -> None:
    size = c.weight.shape[1]
    order = torch.tensor(data.draw(st.permutations(range(size))))
    hessian = c.moments.hessian(centred=intercept)
    ridge = damping * hessian.diagonal().mean()
    mean = c.inputs.mean(0) if intercept else torch.zeros(size, dtype=torch.float64)
    counts = list(range(1, size + 1))
    for count, (kept, weight, bias, left_over) in zip(
        counts, Ridge(damping, intercept).solve(c.weight, c.bias, c.moments, order, counts), strict=True
    ):
        K, R = sorted(order[size - count :].tolist()), order[: size - count].tolist()
        assert kept.tolist() == K
        left = hessian[K][:, K] + ridge * torch.eye(count, dtype=torch.float64)
        expected = c.weight[:, K] + torch.linalg.solve(left, hessian[K][:, R] @ c.weight[:, R].T).T
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(bias, c.bias + c.weight @ mean - expected @ mean[K], rtol=1e-6, atol=1e-7)
        whole = hessian + ridge * torch.eye(size, dtype=torch.float64)
        schur = whole[R][:, R] - whole[R][:, K] @ torch.linalg.solve(whole[K][:, K], whole[K][:, R])
        lost, power = (torch.trace(w @ h @ w.T) for w, h in ((c.weight[:, R], schur), (c.weight, whole)))
        assert left_over == pytest.approx(float(lost / power), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_bias_makes_up_for_weights_as_half_precision_holds_them(kind: torch.dtype) -> None:
    c = case(3, size=8)
    inputs, given = c.inputs + 30, c.weight.to(kind)
    dense = inputs @ given.double().T
    for kept, weight, bias, _ in Ridge().solve(given, None, moments_of(inputs), torch.arange(8), [3, 6]):
        assert torch.equal(weight.to(kind).double(), weight)
        slim = inputs[:, kept] @ weight.T + bias
        torch.testing.assert_close(slim.mean(0), dense.mean(0), rtol=1e-9, atol=1e-9)


@laws
@given(cases, st.data(), st.booleans(), st.sampled_from([1e-6, 0.01, 1.0, 100.0]))
def test_compensation_is_never_worse_than_none_on_the_calibration_inputs(
    c: Case, data: st.DataObject, intercept: bool, damping: float
) -> None:
    size = c.weight.shape[1]
    order = torch.tensor(data.draw(st.permutations(range(size))))
    for kept, weight, bias, _ in Ridge(damping, intercept).solve(
        c.weight, c.bias, c.moments, order, range(1, size + 1)
    ):
        before, after = brute_error(c, kept, c.weight[:, kept], c.bias), brute_error(c, kept, weight, bias)
        assert after <= before * (1 + 1e-9) + 1e-12
        if intercept:
            slim = c.inputs[:, kept] @ weight.T + bias
            torch.testing.assert_close(slim.mean(0), (c.inputs @ c.weight.T + c.bias).mean(0))


@laws
@given(cases, st.data(), st.booleans())
def test_output_error_is_the_mean_over_the_actual_inputs(c: Case, data: st.DataObject, biased: bool) -> None:
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, c.weight.shape[1] - 1), min_size=1))))
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(len(c.weight), len(kept), generator=g, dtype=torch.float64)
    bias = torch.randn(len(c.weight), generator=g, dtype=torch.float64)
    found = output_error(c.weight, c.bias if biased else None, c.moments, kept, (weight, bias))
    if not biased:
        c.bias = torch.zeros_like(c.bias)
    assert found == pytest.approx(brute_error(c, kept, weight, bias), rel=1e-9)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("inputs", ["zero", "constant", "one sample", "rank one", "a dead channel", "huge", "tiny"])
def test_singular_statistics_stay_finite(inputs: str, intercept: bool) -> None:
    # constant inputs: rounding of the float32 sums leaves a covariance with negative eigenvalues
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        base, noise = torch.randn(8, generator=g), torch.randn(40, 8, generator=g)
        x = {
            "zero": torch.zeros(40, 8),
            "constant": base.expand(40, 8),
            "one sample": base[None],
            "rank one": noise[:, :1] * base,
            "a dead channel": noise * (torch.arange(8) > 0),
            "huge": 1e15 * noise,
            "tiny": 1e-15 * noise,
        }[inputs]
        moments = Moments(x.T @ x, x.sum(0), len(x))  # float32, as calibration sums them up
        weight, bias = torch.randn(3, 8, generator=g), torch.randn(3, generator=g)
        for ranking in RANKINGS:
            assert sorted(ranking.order(weight, moments, 2).tolist()) == [0, 1, 2, 3]
        columns, dense = torch.randperm(8, generator=g), x.double() @ weight.double().T + bias
        for kept, solved, offset, _ in Ridge(intercept=intercept).solve(weight, bias, moments, columns, [1, 5, 8]):
            sliced = (dense - (x.double()[:, kept] @ weight.double()[:, kept].T + bias)).square().mean()
            compensated = (dense - (x.double()[:, kept] @ solved.T + offset)).square().mean()
            assert torch.isfinite(compensated)
            assert compensated <= sliced + 1e-5 * dense.square().mean()


# ----------------------------------------------------------------------------------------------------------- ranking


def greedy(c: Case, width: int, damping: float) -> list[int]:
    """Textbook OBS: each time invert what is left of H anew, and re-solve the kept weights from the dense ones."""
    size = c.weight.shape[1]
    hessian = torch.cov(c.inputs.T, correction=0)
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    alive, order = list(range(size // width)), list[int]()
    while alive:
        K = [g * width + i for g in alive for i in range(width)]
        R = [i for i in range(size) if i not in K]
        inverse = torch.linalg.inv(hessian[K][:, K])
        weight = c.weight[:, K] + c.weight[:, R] @ hessian[R][:, K] @ inverse
        scores = []
        for position in range(len(alive)):
            own = slice(position * width, (position + 1) * width)
            block = torch.linalg.inv(inverse[own, own])
            scores.append(float((weight[:, own] @ block @ weight[:, own].T).trace()))
        order.append(alive.pop(scores.index(min(scores))))
    return order


@pytest.mark.parametrize(("groups", "width"), [(10, 1), (5, 2), (4, 4), (1, 3)])
@pytest.mark.parametrize("seed", range(8))
def test_obs_equals_a_textbook_greedy_removal(groups: int, width: int, seed: int) -> None:
    c = case(seed, groups * width, 6)
    for rounds in (groups, 1000):
        order = Obs(damping=0.01, rounds=rounds).order(c.weight.float(), c.moments, width)
        assert order.tolist() == greedy(c, width, 0.01)


@pytest.mark.parametrize("seed", range(5))
def test_obs_first_removes_what_others_can_replace(seed: int) -> None:
    c = case(seed, 6)
    g = torch.Generator().manual_seed(seed)
    c.inputs = torch.randn(200, 6, generator=g, dtype=torch.float64)
    c.inputs[:, 4] = -2 * c.inputs[:, 1]
    c.weight *= 3 / c.weight.norm(dim=0)
    assert int(Obs(damping=1e-4).order(c.weight, c.moments, 1)[0]) in (1, 4)
    c.inputs[:, 4:] = c.inputs[:, :2]  # group 2 of width 2 repeats group 0
    assert int(Obs(damping=1e-4).order(c.weight, c.moments, 2)[0]) in (0, 2)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_magnitude_activation_and_wanda_by_loops(width: int) -> None:
    c = case(7, 12)
    scores: dict[Ranking, list[float]] = {Magnitude(): [], Activation(): [], Wanda(): []}
    for group in range(12 // width):
        magnitude = activation = wanda = 0.0
        for j in range(group * width, (group + 1) * width):
            power = sum(float(x[j]) ** 2 for x in c.inputs) / len(c.inputs)
            activation += power
            for i in range(len(c.weight)):
                magnitude += float(c.weight[i, j]) ** 2
                wanda += abs(float(c.weight[i, j])) * power**0.5
        for ranking, score in zip(scores, (magnitude, activation, wanda), strict=True):
            scores[ranking].append(score)
    for ranking, by_group in scores.items():
        order = ranking.order(c.weight, c.moments, width)
        assert order.tolist() == sorted(range(12 // width), key=by_group.__getitem__)


@laws
@given(cases, st.sampled_from(RANKINGS), st.integers(1, 3), st.booleans())
def test_every_order_is_a_permutation_that_leaves_its_arguments_alone(
    c: Case, ranking: Ranking, width: int, half: bool
) -> None:
    weight = c.weight.repeat(1, width).bfloat16() if half else c.weight.repeat(1, width).float()
    c.inputs = c.inputs.repeat(1, width)
    before, moments = weight.clone(), c.moments
    order = ranking.order(weight, moments, width)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(c.weight.shape[1]))
    assert weight.equal(before)
    assert moments.second.equal(c.moments.second)


# -------------------------------------------------------------------------------------------------------- regression


@laws
@given(st.integers(0, 10_000), st.sampled_from([1e-12, 0.01, 1.0]))
def test_regress_is_least_squares_and_tells_its_own_residual(seed: int, damping: float) -> None:
    x = case(seed, 7, count=60).inputs
    known, wanted = x[:, :4], x[:, 4:]
    weight, bias, error = regress(moments_of(x), 4, damping)
    residual = float((known @ weight.T + bias - wanted).square().sum(1).mean())
    assert error == pytest.approx(residual, rel=1e-5, abs=1e-9)
    torch.testing.assert_close((known @ weight.T + bias).mean(0), wanted.mean(0))
    if damping == 1e-12:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        solution = torch.linalg.lstsq(torch.cat([known, ones], 1), wanted, driver="gelsd").solution
        best = float((torch.cat([known, ones], 1) @ solution - wanted).square().sum(1).mean())
        assert residual == pytest.approx(best, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(weight, solution[:4].T, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------- shifted sums


def test_moments_do_not_depend_on_where_they_are_taken_around() -> None:
    x = case(3, 6, count=40).inputs
    shift = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, moved = moments_of(x), Moments((x - shift).T @ (x - shift), (x - shift).sum(0), len(x), shift)
    for one in (moved, plain.around(shift), moved.around(None), moved + plain, plain + moved):
        torch.testing.assert_close(one.mean(), plain.mean())
        torch.testing.assert_close(one.power(), plain.power())
        for centred in (True, False):
            torch.testing.assert_close(one.hessian(centred=centred), plain.hessian(centred=centred))


def test_a_small_spread_around_a_large_mean_survives_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(500, 12, generator=generator)
    accumulator = Accumulator()
    for part in x.split(100):
        accumulator.add(part)
    found = accumulator.moments().hessian(centred=True)
    torch.testing.assert_close(found, torch.cov(x.double().T, correction=0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wrong", [lambda: Obs(rounds=0), lambda: Obs(damping=0), lambda: Ridge(damping=-1)])
def test_settings_that_cannot_work_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(DiffESError, match=r"expected a (number above 0|whole number from 1)"):
        wrong()
