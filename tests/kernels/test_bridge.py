"""The touch of a bridge within one step, against bridges simulated on a fine grid."""

import numba
import numpy as np
from scipy import stats

from thermodiff.kernels.bridge import _touch_time, first_touch, near
from thermodiff.kernels.jit import FLAGS, LANES


@numba.njit(**{**FLAGS, "cache": False})
def touch_times(distance, beyond, variance, normals, uniforms, out):
    for i in range(out.size):
        out[i] = _touch_time(distance, beyond, variance, normals[i], uniforms[i])


def drawn(distance: float, beyond: float, variance: float, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.empty(n)
    touch_times(distance, beyond, variance, rng.standard_normal(n), rng.random(n), out)
    return out


def of_bridges(distance: float, end: float, variance: float, n: int, steps: int, seed: int) -> np.ndarray:
    """First time at which bridges from 0 to ``end`` on [0, 1] are seen at or above ``distance``; nan where never."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_normal((n, steps)), axis=1) * np.sqrt(variance / steps)
    t = np.arange(1, steps + 1) / steps
    above = walk - t * (walk[:, -1:] - end) >= distance
    return np.where(above.any(axis=1), t[above.argmax(axis=1)], np.nan)


def test_times_of_bridges_that_end_beyond_the_level() -> None:
    seen = of_bridges(0.5, 0.9, 1.0, 4000, 4000, 1)
    assert stats.ks_2samp(drawn(0.5, 0.4, 1.0, 4000), seen).pvalue > 1e-4


def test_times_and_chance_of_bridges_that_come_back() -> None:
    distance, end, variance, n = 0.5, 0.2, 1.0, 6000
    seen = of_bridges(distance, end, variance, n, 4000, 2)
    touched = np.isfinite(seen)
    chance = np.exp(-2.0 * distance * (distance - end) / variance)
    # A grid of 4,000 points misses touches near the level: it sees one 0.58 sqrt(v / steps) further away.
    shifted = distance + 0.5826 * np.sqrt(variance / 4000)
    assert abs(touched.mean() - np.exp(-2.0 * shifted * (shifted - end) / variance)) < 4.0 * np.sqrt(chance / n)
    assert stats.ks_2samp(drawn(distance, end - distance, variance, 4000), seen[touched]).pvalue > 1e-4


def test_extremes_give_fractions() -> None:
    """A path that ends at the level exactly, one far beyond it, one that starts next to it."""
    for distance, beyond, variance in (
        (0.5, 0.0, 1.0),
        (0.5, 1e9, 1.0),
        (1e-12, 0.3, 1.0),
        (1e-12, -1e-12, 1e-3),
        (3.0, -1.0, 1e-2),
    ):
        times = drawn(distance, beyond, variance, 1000)
        assert np.all((times >= 0.0) & (times <= 1.0)), (distance, beyond, variance)
    np.testing.assert_allclose(drawn(0.5, 1e9, 1.0, 100), 0.5 / 1e9, rtol=1e-3)


@numba.njit(**{**FLAGS, "cache": False})
def touched(x, y, low, high, variance):
    key, four = np.array([1, 2], dtype=np.uint32), np.full((4, LANES), 0.5)
    side, fraction = first_touch(x, y, low, high, variance, key, 0, 0, four)
    return near(x, y, low, high, variance), side, fraction


def test_a_step_without_noise() -> None:
    for x, y, side, fraction in (
        (0.0, 0.5, 0, 0.0),
        (0.0, 1.0, 1, 1.0),
        (0.0, 2.0, 1, 0.5),
        (0.0, -1.0, -1, 1.0),
        (0.5, -1.5, -1, 0.75),
    ):
        near, found, when = touched(x, y, -1.0, 1.0, 0.0)
        assert (found, when) == (side, fraction)
        assert near or side == 0
    assert touched(0.0, np.nan, -1.0, 1.0, 0.0)[1] == 0


def test_a_step_that_begins_on_a_level() -> None:
    for variance in (0.0, 1e-12, 1.0):
        for x, side in ((1.0, 1), (-1.0, -1)):
            for y in (0.0, x, 2.0 * x):
                assert touched(x, y, -1.0, 1.0, variance) == (True, side, 0.0)


def test_times_of_bridges_that_end_on_the_level() -> None:
    """Of no drift in the scaled time s: Levy's law."""
    for beyond in (0.0, 1e-300, 1e-20):
        times = drawn(0.5, beyond, 2.0, 4000, seed=3)
        assert stats.kstest(times / (1.0 - times), stats.levy(scale=0.125).cdf).pvalue > 1e-4
