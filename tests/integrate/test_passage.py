"""First-passage times against closed forms, at steps so coarse that uncorrected ones would be far off."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import integrate, stats

import thermodiff as td
from thermodiff.integrate.passage import first_passage


@td.drift
def constant(x, t, v):
    return (v,)


@td.drift
def relax(x, t, k):
    return (-k * x[0], -x[1])


@td.drift
def away(x, t):
    return (np.log(x[0] - 2.0),)


@td.drift
def stiff_above(x, t, k):
    return (-k * x[0] if x[0] < 0.9 else 1000.0 * (1.2 - x[0]),)


def drifted(v: float, diffusivity: float) -> td.Langevin:
    return td.Langevin(constant, params=(v,), diffusivity=diffusivity, dim=1)


@pytest.mark.parametrize("dt", [0.02, 0.5])
def test_drifted_motion_has_inverse_gaussian_times_whatever_the_step(dt: float) -> None:
    """Level b ahead, drift v, variance 2 D t: inverse Gaussian with mean b / v and shape b^2 / 2 D."""
    b, v, diffusivity = 1.0, 0.8, 0.3
    found = first_passage(drifted(v, diffusivity), np.zeros((20_000, 1)), t_max=40.0, dt=dt, high=b, rng=1)
    assert np.all(found.sides == 1)
    shape = b * b / (2.0 * diffusivity)
    law = stats.invgauss(mu=b / v / shape, scale=shape)
    assert stats.kstest(found.times, law.cdf).pvalue > 1e-4
    np.testing.assert_array_equal(found.states[:, 0], b)


def test_without_drift_one_side_is_levys_law() -> None:
    found = first_passage(drifted(0.0, 0.5), np.zeros((20_000, 1)), t_max=10.0, dt=0.25, low=-1.0, rng=2)
    touched = np.isfinite(found.times)
    assert np.all(found.sides[touched] == -1)
    assert np.all(found.sides[~touched] == 0)
    law = stats.levy(scale=1.0)
    share, n = law.cdf(10.0), touched.size
    assert abs(touched.mean() - share) < 4.0 * np.sqrt(share * (1.0 - share) / n)
    assert stats.kstest(found.times[touched], lambda t: law.cdf(t) / share).pvalue > 1e-4


def test_exit_from_an_interval_has_the_mean_time_and_the_chances_of_theory() -> None:
    """Without drift: (b - x)(x - a) / 2 D on average, and the upper end with chance (x - a) / (b - a)."""
    a, b, x, diffusivity, n = -1.0, 2.0, 0.5, 0.4, 40_000
    found = first_passage(drifted(0.0, diffusivity), np.full((n, 1), x), t_max=60.0, dt=0.05, low=a, high=b, rng=3)
    mean = (b - x) * (x - a) / (2.0 * diffusivity)
    assert abs(found.times.mean() - mean) < 4.0 * found.times.std() / np.sqrt(n)
    chance = (x - a) / (b - a)
    assert abs((found.sides == 1).mean() - chance) < 4.0 * np.sqrt(chance * (1.0 - chance) / n)


@pytest.mark.parametrize("dt", [0.1, 0.5, 1.0, 5.0, 1e4])
@pytest.mark.parametrize(("v", "x"), [(1.0, -0.5), (0.0, 0.0), (-3.0, 0.9), (20.0, -0.9)])
def test_two_levels_and_steps_of_any_length(v: float, x: float, dt: float) -> None:
    """Levels at -1 and 1, variance t: the chance of the upper one by the scale function, the mean time by Wald's identity.

    exp(q X - (q v + q^2 / 2) t) is a martingale, which tests times and sides together.
    """
    n = 20_000
    found = first_passage(drifted(v, 0.5), np.full((n, 1), x), t_max=1e4, dt=dt, low=-1.0, high=1.0, rng=int(10 * dt))
    up = found.sides == 1
    assert np.all(up | (found.sides == -1))

    def deviation(values: np.ndarray, mean: float) -> float:
        return abs(values.mean() - mean) / (values.std() / np.sqrt(n))

    chance = (x + 1.0) / 2.0 if v == 0.0 else np.expm1(-2.0 * v * (x + 1.0)) / np.expm1(-4.0 * v)
    assert deviation(up, chance) < 4.0
    assert deviation(found.times, 1.0 - x * x if v == 0.0 else (2.0 * chance - 1.0 - x) / v) < 4.0
    q = 0.7
    assert deviation(np.exp(q * (np.where(up, 1.0, -1.0) - x) - (q * v + 0.5 * q * q) * found.times), 1.0) < 4.0


@pytest.mark.parametrize("dt", [0.05, 2.0])
def test_the_law_of_the_time_with_two_levels(dt: float) -> None:
    """Without drift from the middle, by the eigenfunctions; some paths are still on their way at the end."""
    found = first_passage(drifted(0.0, 0.5), np.zeros((20_000, 1)), t_max=2.0, dt=dt, low=-1.0, high=1.0, rng=8)
    odd = 2.0 * np.arange(60) + 1.0

    def left(t: np.ndarray) -> np.ndarray:
        terms = (-1.0) ** np.arange(60) / odd * np.exp(-(odd**2) * np.pi**2 * np.maximum(t, 1e-3)[..., None] / 8.0)
        return 4.0 / np.pi * terms.sum(axis=-1)

    touched, share = found.sides != 0, 1.0 - float(left(np.array(2.0)))
    assert abs(touched.mean() - share) < 4.0 * np.sqrt(share * (1.0 - share) / touched.size)
    assert stats.kstest(found.times[touched], lambda t: (1.0 - left(t)) / share).pvalue > 1e-4
    # Those on their way are spread as the first eigenfunctions say, nearly as a cosine.
    assert stats.kstest(found.states[~touched, 0], lambda x: 0.5 * (1.0 + np.sin(0.5 * np.pi * x))).pvalue > 1e-4


def test_the_mean_time_of_a_relaxing_coordinate() -> None:
    """Mean first passage of an Ornstein-Uhlenbeck coordinate by the double integral; another coordinate runs along."""
    k, diffusivity, b, n = 1.0, 0.5, 0.8, 20_000
    process = td.Langevin(relax, params=(k,), diffusivity=diffusivity, dim=2)
    found = first_passage(process, np.zeros((n, 2)), t_max=60.0, dt=2e-3, high=b, rng=4)

    def inner(y: float) -> float:
        return integrate.quad(lambda z: np.exp(-0.5 * k * z * z / diffusivity), -np.inf, y)[0]

    mean = integrate.quad(lambda y: np.exp(0.5 * k * y * y / diffusivity) * inner(y), 0.0, b)[0] / diffusivity
    assert abs(found.times.mean() - mean) < 4.0 * found.times.std() / np.sqrt(n)


@pytest.mark.parametrize(("dt", "low"), [(0.1, -np.inf), (3.0, -0.2)])
def test_same_bits_for_any_executor_and_chunk(dt: float, low: float) -> None:
    process, x0 = drifted(0.3, 0.5), np.zeros((3000, 1))
    whole = first_passage(process, x0, t_max=3.0, dt=dt, low=low, high=1.0, rng=5)
    for workers, chunk in ((1, 1), (2, 3), (3, None)):
        with ThreadPoolExecutor(workers) as executor:
            again = first_passage(process, x0, t_max=3.0, dt=dt, low=low, high=1.0, rng=5, executor=executor, chunk=chunk)
        np.testing.assert_array_equal(again.times, whole.times)
        np.testing.assert_array_equal(again.states, whole.states)
    assert repr(whole) == f"Passage({np.count_nonzero(whole.sides)} of 3000 paths stopped)"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "at least one end"),
        ({"low": 1.0, "high": -1.0}, "must leave an interval"),
        ({"high": 0.0}, "3 of 3 paths start at or beyond a level"),
        ({"high": 1.0, "coordinate": 1}, "coordinate must be below dim = 1"),
        ({"high": 1.0, "dt": 0.0}, "dt must be positive"),
        ({"high": 1.0, "t_max": -1.0}, "t_max must be later than the start at t0 = 0, got -1"),
        ({"high": 1.0, "t0": 1.0}, "t_max must be later than the start at t0 = 1, got 1"),
        ({"high": 1.0, "on_divergence": "x"}, "on_divergence"),
        (
            {"high": 1.0, "dt": 1e-30},
            r"\(t_max - t0\) / dt asks for 1e\+30 steps, and .* enough for 4294967296; use a larger dt",
        ),
        ({"low": -1e-200, "high": 1e-200}, "low and high are 2e-200 apart, which float64 cannot square"),
        ({"high": np.nan}, "high must be finite, got nan"),
    ],
)
def test_bad_arguments_get_a_sentence(keywords: dict, message: str) -> None:
    given = {"t_max": 1.0, "dt": 0.1} | keywords
    with pytest.raises(ValueError, match=message):
        first_passage(drifted(0.0, 0.5), np.zeros((3, 1)), **given)


def test_what_is_no_process_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a Langevin process, got str"):
        first_passage("x", np.zeros((3, 1)), t_max=1.0, dt=0.1, high=1.0)


def test_levels_that_are_no_numbers() -> None:
    for keywords, message in (
        ({"high": "a"}, "high must be a number, got 'a'"),
        ({"low": None}, "low must be a number, got None"),
    ):
        with pytest.raises(TypeError, match=message):
            first_passage(drifted(0.0, 0.5), np.zeros((3, 1)), t_max=1.0, dt=0.1, **keywords)


def test_a_path_that_leaves_the_numbers_ends() -> None:
    """Though its step is long beside the distance between the levels."""
    process = td.Langevin(away, diffusivity=0.5, dim=1)
    given = {"t_max": 100.0, "dt": 50.0, "low": 0.0, "high": 1.0, "rng": 0}
    with pytest.raises(
        td.DivergenceError,
        match=r'3 of 3 paths left the finite numbers, the first by t = 100 \(key \d+, \d+\); .* on_divergence="mark"',
    ):
        first_passage(process, np.full((3, 1), 0.5), **given)
    found = first_passage(process, np.full((3, 1), 0.5), on_divergence="mark", **given)
    assert found.diverged is not None
    assert found.diverged.all()
    assert np.isnan(found.times).all()
    assert not found.sides.any()


def test_a_step_that_is_too_large_is_noticed() -> None:
    """At the start, or where the paths end."""
    for rate, x in ((1000.0, 0.5), (1.0, 0.01)):
        process = td.Langevin(stiff_above, params=(rate,), diffusivity=0.1, dim=1)
        with pytest.warns(RuntimeWarning, match=r"the step 0\.01 is too large for this drift"):
            first_passage(process, np.full((300, 1), x), t_max=20.0, dt=0.01, high=1.0, rng=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_passage(drifted(1.0, 0.5), np.zeros((300, 1)), t_max=20.0, dt=10.0, high=1.0, low=-1.0, rng=1)


@td.drift
def below_the_level(x, t):
    return np.sqrt(1.0 - x[0]), np.sqrt(1.0 - x[0]) - x[1]


def test_a_drift_without_values_behind_the_level_is_no_divergence() -> None:
    """A path stops at the level, though the step that took it there ends beyond."""
    process = td.Langevin(below_the_level, diffusivity=0.5, dim=2)
    found = first_passage(process, np.zeros((1000, 2)), high=1.0, t_max=50.0, dt=1e-2, rng=0)
    assert np.isfinite(found.times).all()
    assert np.isfinite(found.states).all()
