"""The flow by matrix products: its slope against plain formulas, its results against closed forms, and when it is taken."""

import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from systems import correlated

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.integrate import adaptive, dense
from thermodiff.kernels.jit import LANES

SMALL = correlated(16, 20, 1, centre=2.0)


def test_the_slope_is_that_of_the_score() -> None:
    part, x, lam = SMALL.parts(), SMALL.sample(5, rng=2), 1.3
    noise = np.exp(-lam)
    rho = np.sqrt(part.variances.min() + noise)
    slope = dense.Slopes(part, 5)(lam, np.concatenate([(x / rho).ravel(), np.zeros(5)]))
    score = SMALL.score(x, sigma=np.sqrt(noise))
    divergence = SMALL.score_divergence(x, sigma=np.sqrt(noise))
    rate = 0.5 * noise / rho**2
    np.testing.assert_allclose(slope[:-5].reshape(5, 16), rate * (x / rho + rho * score), rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(slope[-5:], rate * (16 + rho**2 * divergence), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("noise", [td.VP(), td.StraightLine(0.1), td.VE()], ids=lambda noise: noise.name)
@pytest.mark.parametrize(("dim", "components"), [(20, 30), (50, 3), (100, 3)])
def test_the_density_to_a_millionth(dim: int, components: int, noise: td.Schedule) -> None:
    data = correlated(dim, components, 3, centre=2.0)
    x = data.sample(4, rng=4)
    # One point ten widths away from the component that it came from, along one axis.
    x[0] += 10.0 * np.sqrt(np.linalg.eigvalsh(data.covariance())[-1]) * np.eye(dim)[0]
    assert dense.suits(data.parts(), 4)
    np.testing.assert_allclose(td.log_prob(td.Diffusion(data, noise), x), data.log_prob(x), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("t", [1e-3, 0.4, 1.0])
def test_the_density_at_later_times(t: float) -> None:
    system, x = td.Diffusion(SMALL, td.VP(scale=0.3)), SMALL.sample(6, rng=5)
    np.testing.assert_allclose(td.log_prob(system, x, t=t), system.log_prob(x, t), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10, 1e-13])
def test_every_point_keeps_the_tolerance(rtol: float) -> None:
    x = SMALL.sample(20, rng=6)
    value = td.log_prob(td.Diffusion(SMALL, td.VP()), x, rtol=rtol, atol=0.01 * rtol)
    np.testing.assert_allclose(value, SMALL.log_prob(x), rtol=0.0, atol=max(20.0 * rtol, 1e-11))


def test_one_error_among_many_is_seen() -> None:
    """SciPy limits a mean square: all of the error may be in one number, which must still be within its tolerance."""
    n, dim, rtol, atol = 32, 100, 1e-6, 1e-8
    _, absolute = dense._scales(n, dim, rtol, atol)
    for place, tolerance in ((7, rtol + atol), (n * dim + 3, rtol + atol)):
        error = np.zeros(n * (dim + 1))
        error[place] = 1.001 * tolerance
        assert np.sqrt(np.mean((error / absolute) ** 2)) > 1.0


def test_one_point_costs_no_block() -> None:
    """Fifty components in d = 60: the compiled flow takes seconds of processor time for the 256 points that it pads."""
    data = correlated(60, 50, 7, centre=2.0)
    system, x = td.Diffusion(data, td.VP()), data.sample(1, rng=8)
    td.log_prob(td.Diffusion(SMALL, td.VP()), SMALL.sample(1, rng=9))
    start = time.process_time()
    value = td.log_prob(system, x)
    assert time.process_time() - start < 3.0
    np.testing.assert_allclose(value, data.log_prob(x), rtol=0.0, atol=1e-6)


def test_when_it_is_taken() -> None:
    def suits(dim: int, components: int, n: int, isotropic: bool = False) -> bool:
        axes = None if isotropic else np.zeros((components, dim, dim))
        return dense.suits(td.PointCloud(np.zeros((components, dim))).parts()._replace(axes=axes), n)

    assert suits(100, 10, 1)
    assert suits(100, 30, 2000)
    assert not suits(100, 30, 1, isotropic=True)
    assert not suits(2, 300, 1)
    assert suits(16, 150, 100)
    assert not suits(16, 150, 256)
    assert suits(16, 150, 257)


@pytest.mark.parametrize(("dim", "components"), [(8, 70), (100, 30), (100, 300), (200, 1000), (1000, 100), (4000, 2000)])
def test_the_memory_of_a_group_is_bounded(dim: int, components: int) -> None:
    group = dense.group_size(components, dim)
    assert LANES % group == 0
    assert group == 1 or 2 * group * components * dim * 8 <= 64 * 2**20


def test_the_same_bits_for_any_executor_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = correlated(70, 2, 10, centre=2.0)
    monkeypatch.setattr(dense, "WORTHWHILE", 0)
    system, x = td.Diffusion(data, td.VP()), data.sample(280, rng=11)
    assert dense.suits(data.parts(), 280)
    seen: list[tuple[int, int]] = []
    reference = td.log_prob(system, x, rtol=1e-4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k + 1, 9) for k in range(9)]
    for chunk in (1, 2):
        with ThreadPoolExecutor(2) as executor:
            np.testing.assert_array_equal(td.log_prob(system, x, rtol=1e-4, executor=executor, chunk=chunk), reference)


def test_the_same_bits_from_processes() -> None:
    system, x = td.Diffusion(SMALL, td.VP()), SMALL.sample(5, rng=12)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        np.testing.assert_array_equal(td.log_prob(system, x, executor=executor), td.log_prob(system, x))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    system = td.Diffusion(SMALL, td.VP())
    with pytest.raises(DivergenceError, match="paths 0 to 2 left the finite numbers at log-SNR"):
        td.log_prob(system, np.full((3, 16), 1e200))
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        td.log_prob(system, np.zeros((3, 16)), chunk=0)
    monkeypatch.setattr(adaptive, "MOST_STEPS", 12)
    with pytest.raises(DivergenceError, match=r"paths 0 to 2 reached only log-SNR .* in 12 attempted steps .* far from the"):
        td.log_prob(system, SMALL.sample(3, rng=13))


@pytest.mark.slow
def test_a_hundred_dimensions_and_three_hundred_components() -> None:
    data = correlated(100, 300, 14, centre=2.0)
    x = data.sample(7, rng=15)
    np.testing.assert_allclose(td.log_prob(td.Diffusion(data, td.VP()), x), data.log_prob(x), rtol=0.0, atol=1e-6)
