"""Dormand and Prince's pair: its coefficients, the error it keeps, states within a step, and how a block ends."""

import numpy as np
import pytest
from packed_laws import LAWS, isotropic
from truths import flow_position

from thermodiff.integrate.adaptive import table
from thermodiff.kernels import adaptive
from thermodiff.kernels.jit import LANES
from thermodiff.schedules import VE, VP, CondOT

MEAN, STD = 1.5, 0.5
LAW = isotropic([1.0], [[MEAN]], [STD])
NOISE = VP()
LOW, HIGH = -8.0, 12.0
X = np.linspace(-3.0, 3.0, LANES)[None, :]


def kernel_of(lam: float, noise=NOISE) -> tuple[float, float]:
    row = noise.at(lam)
    return float(row.alpha), float(row.sigma)


def run(start, asked, rtol=1e-8, atol=None, law=LAW, noise=NOISE, dim=1, narrow=-1.0, most=100_000, blocks=1):
    """States (T, rows, n) at the asked lam, and the status of each block."""
    asked = np.asarray(asked, dtype=float)
    low, high = float(asked.min()), float(asked.max())
    states, status = np.empty((asked.size, *start.shape)), np.empty((blocks, 3))
    states[0] = start
    adaptive.flow(
        law.score, law.params, table(noise, low, high), low, high, dim, 0, blocks, asked,
        rtol, rtol if atol is None else atol, narrow, most, states, status,
    )  # fmt: skip
    return states, status


def exact(start: np.ndarray, here: float, there: float, std: float = STD, noise=NOISE) -> np.ndarray:
    return flow_position(start, MEAN, std, kernel_of(here, noise), kernel_of(there, noise))


def stretch(here: float, there: float, std: float = STD, noise=NOISE) -> float:
    """Logarithm of the change of volume of the flow of N(MEAN, std**2)."""
    widths = [np.hypot(alpha * std, sigma) for alpha, sigma in (kernel_of(here, noise), kernel_of(there, noise))]
    return float(np.log(widths[1] / widths[0]))


def test_coefficients_satisfy_the_conditions_of_order() -> None:
    """All seventeen conditions of order five for the solution, and the eight of order four for its companion."""
    a, c = np.zeros((7, 7)), adaptive.NODES
    a[:, :6] = adaptive.WEIGHTS
    np.testing.assert_allclose(a.sum(axis=1), c, atol=1e-14)
    b = np.append(adaptive.WEIGHTS[6], 0.0)
    ac, ac2, aac = a @ c, a @ c**2, a @ a @ c
    four = [
        (np.ones(7), 1), (c, 2), (c**2, 3), (ac, 6), (c**3, 4), (c * ac, 8), (ac2, 12), (aac, 24),
    ]  # fmt: skip
    five = [
        (c**4, 5), (c**2 * ac, 10), (c * ac2, 15), (c * aac, 30), (ac * ac, 20), (a @ c**3, 20), (a @ (c * ac), 40),
        (a @ a @ c**2, 60), (a @ a @ a @ c, 120),
    ]  # fmt: skip
    for tree, density in four + five:
        assert abs(b @ tree - 1.0 / density) < 1e-14
    for tree, density in four:
        assert abs((b - adaptive.ERROR) @ tree - 1.0 / density) < 1e-14
    # Its companion is of order four only, else there would be nothing to estimate.
    assert max(abs((b - adaptive.ERROR) @ tree - 1.0 / density) for tree, density in five) > 1e-4


def test_the_quintic_goes_through_states_and_slopes() -> None:
    share = np.array([0.0, *adaptive.INSIDE, 1.0])
    slopes, end = np.array([0.3, -1.0, 2.0, 0.7]), 0.45
    polynomial = np.polynomial.Polynomial(np.array([*slopes, end]) @ adaptive.QUINTIC)
    np.testing.assert_allclose(polynomial.deriv()(share), slopes, atol=1e-12)
    np.testing.assert_allclose([polynomial(0.0), polynomial(1.0)], [0.0, end], atol=1e-12)


@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), VE(), CondOT()], ids=lambda noise: noise.name)
@pytest.mark.parametrize("towards", ["noise", "data"])
def test_the_error_follows_the_tolerance(noise, towards: str) -> None:
    """On the linear flow of a Gaussian: proportional to rtol over eight decades, and a small multiple of it."""
    ends = (HIGH, LOW) if towards == "noise" else (LOW, HIGH)
    start = X if towards == "noise" else exact(X, HIGH, LOW, noise=noise)
    truth = exact(start, *ends, noise=noise)
    tolerances = 10.0 ** -np.arange(4, 13)
    steps = []
    for rtol in tolerances:
        states, status = run(start, ends, rtol, noise=noise)
        assert status[0, 0] == adaptive.DONE
        steps.append(status[0, 2])
        # Towards noise the flow stretches: what a step loses grows with it.
        factor = max(1.0, np.exp(stretch(*ends, noise=noise)))
        assert np.max(np.abs(states[1] - truth) / (1.0 + np.abs(truth))) < 12.0 * factor * rtol
    # Order five: ten times as many steps for five decades.
    assert abs(np.log10(steps[-1] / steps[-6]) - 1.0) < 0.1


def test_the_worst_path_keeps_the_tolerance() -> None:
    """One path beside the saddle between two narrow components, 255 far away: the steps are those that it needs."""
    law = isotropic([0.5, 0.5], [[-2.0], [2.0]], [0.05, 0.05])
    crowd, hard, asked = np.full((1, LANES), 8.0), np.full((1, LANES), 0.03), [4.0, -6.0]
    mixed = crowd.copy()
    mixed[0, 100] = 0.03
    (_, easy), (alone, needed), (together, taken) = (run(x, asked, 1e-6, law=law) for x in (crowd, hard, mixed))
    assert easy[0, 2] < 0.8 * needed[0, 2] <= 0.8 * taken[0, 2]
    fine = run(hard, asked, 1e-12, law=law)[0][1, 0, 0]
    assert abs(together[1, 0, 100] - fine) < 3.0 * abs(alone[1, 0, 100] - fine) + 1e-7


def test_states_within_a_step_are_as_accurate_as_its_end() -> None:
    """For the nonlinear flow of a mixture, at 99 values of lam; the reference is the end of a finer integration."""
    law = isotropic([0.4, 0.6], [[-1.5], [1.0]], [0.3, 0.5])
    asked = np.linspace(HIGH, LOW, 100)
    reference, _ = run(X, asked, 1e-13, law=law)
    worst = []
    for rtol in (1e-6, 1e-8, 1e-10):
        states, status = run(X, asked, rtol, law=law)
        assert status[0, 2] < 200
        error = np.abs(states - reference).max(axis=(1, 2))
        worst.append(error.max() / rtol)
    assert max(worst) < 10.0


def test_steps_do_not_depend_on_what_is_asked_for() -> None:
    few, one = run(X, [HIGH, LOW])
    many, two = run(X, np.linspace(HIGH, LOW, 41))
    np.testing.assert_array_equal(few[-1], many[-1])
    np.testing.assert_array_equal(one, two)


def test_there_and_back() -> None:
    law = LAWS["full, two components, d = 2"]
    x = np.array([[2.0], [1.0]]) + np.random.default_rng(0).normal(size=(2, LANES)) / 2.0
    there, _ = run(x, [6.0, -7.0], 1e-11, law=law, dim=2)
    back, _ = run(there[1], [-7.0, 6.0], 1e-11, law=law, dim=2)
    assert np.abs(there[1] - x).max() > 0.3
    np.testing.assert_allclose(back[1], x, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("std", [0.5, 0.01])
@pytest.mark.parametrize("narrow", [False, True])
def test_the_last_row_is_the_logarithm_of_the_volume(std: float, narrow: bool) -> None:
    law = isotropic([1.0], [[MEAN]], [std])
    start = np.concatenate([X, np.zeros((1, LANES))])
    asked = np.array([HIGH, 3.0, -1.0, LOW])
    states, _ = run(start, asked, 1e-10, law=law, narrow=std**2 if narrow else -1.0)
    truth = [stretch(HIGH, lam, std) for lam in asked]
    np.testing.assert_allclose(states[:, 1], np.repeat(np.array(truth)[:, None], LANES, axis=1), rtol=0.0, atol=1e-8)


def test_a_narrow_law_is_measured_by_its_width() -> None:
    """With a width a thousand times below the state, an error of rtol |x| would be one of 1000 rtol in a log-density."""
    std, rtol = 1e-3, 1e-9
    law, high = isotropic([1.0], [[MEAN]], [std]), 40.0
    z = np.linspace(-3.0, 3.0, LANES)[None, :]
    alpha, sigma = kernel_of(high)
    start = np.concatenate([alpha * MEAN + np.hypot(alpha * std, sigma) * z, np.zeros((1, LANES))])
    error = []
    for narrow in (-1.0, std**2):
        end = run(start, [high, LOW], rtol, law=law, narrow=narrow)[0][1]
        alpha_low, sigma_low = kernel_of(LOW)
        reached = (end[0] - alpha_low * MEAN) / np.hypot(alpha_low * std, sigma_low)
        error.append(np.abs(reached - z[0]).max())
    assert error[0] > 100.0 * rtol
    assert error[1] < 3.0 * rtol


def test_a_block_depends_on_itself_alone() -> None:
    x = np.random.default_rng(1).normal(size=(1, 3 * LANES)) * np.repeat([0.5, 1.0, 3.0], LANES)
    together, status = run(x, [HIGH, 0.0, LOW], blocks=3)
    for block in range(3):
        part = np.ascontiguousarray(x[:, block * LANES : (block + 1) * LANES])
        alone, own = run(part, [HIGH, 0.0, LOW])
        np.testing.assert_array_equal(together[:, :, block * LANES : (block + 1) * LANES], alone)
        np.testing.assert_array_equal(status[block], own[0])


def test_the_limit_of_steps() -> None:
    _, status = run(X, [HIGH, LOW], 1e-10, most=10)
    assert status[0, 0] == adaptive.EXHAUSTED
    assert LOW < status[0, 1] < HIGH
    assert 0 < status[0, 2] <= 10


def test_a_slope_that_is_not_finite() -> None:
    x = X.copy()
    x[0, 7] = 1e200
    _, status = run(x, [HIGH, LOW])
    np.testing.assert_array_equal(status[0], [adaptive.LOST, HIGH, 0.0])


def test_one_compilation_serves_every_law_and_schedule() -> None:
    for noise in (VP(), CondOT()):
        run(np.zeros((3, LANES)), [0.0, 1.0], law=LAWS["cloud, 65 points, d = 3"], dim=3, noise=noise)
    assert len(adaptive.flow.dispatcher.signatures) == 1
