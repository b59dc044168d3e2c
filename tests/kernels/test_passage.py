"""The touch of a bridge within one step, against bridges simulated on a fine grid."""

import numba
import numpy as np
from scipy import stats

import thermodiff as td
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import FLAGS, LANES
from thermodiff.kernels.passage import LOST_EVERY, _first_touch, _near, _touch_time, passage


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
    side, fraction = _first_touch(x, y, low, high, variance, key, 0, 0, four)
    return _near(x, y, low, high, variance), side, fraction


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


@td.drift
def beyond(x, t):
    return (0.1 if x[0] > -5.0 else np.nan,)


def ran(cuts: list[int], x0: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, ...]:
    process = td.Langevin(beyond, diffusivity=0.5, dim=1)
    made, states, times, sides = process.compiled(), x0[None].copy(), np.full(x0.size, np.inf), np.zeros(x0.size, np.int64)
    alive = alive.copy()
    for first, last in zip([0, *cuts[:-1]], cuts, strict=True):
        passage(
            made.field, made.params, made.noise, made.noise_params, langevin.ADDITIVE, process.mix(np.zeros(1)), 0.0,
            np.array([1, 2], dtype=np.uint32), 0, x0.size // LANES, 0.0, 0.01, first, last - first, 0, -1e150, 1.0,
            made.walls, np.zeros((0, 3)), states, times, sides, alive,
        )  # fmt: skip
    return states, times, sides, alive


def test_calls_of_some_steps_are_one_of_all() -> None:
    x0, alive = np.zeros(2 * LANES), np.ones(2 * LANES)
    x0[[3, 400]], alive[300:] = -9.0, 0.0
    whole = ran([200], x0, alive)
    assert 20 < np.count_nonzero(whole[2]) < 250
    for cuts in ([1, 2, 200], [63, 64, 65, 130, 200], list(range(1, 201))):
        for one, two in zip(ran(cuts, x0, alive), whole, strict=True):
            np.testing.assert_array_equal(one, two)


def test_lanes_without_a_path_rest() -> None:
    x0, alive = np.linspace(-2.0, 0.9, LANES), np.ones(LANES)
    alive[100:] = 0.0
    states, times, sides, left = ran([50], x0, alive)
    np.testing.assert_array_equal(states[0, 100:], x0[100:])
    assert np.isinf(times[100:]).all()
    assert not sides[100:].any()
    np.testing.assert_array_equal(left[:100], sides[:100] == 0)
    np.testing.assert_array_equal(times[:100], ran([50], x0, np.ones(LANES))[1][:100])


def test_lost_paths_are_given_up() -> None:
    x0 = np.zeros(LANES)
    x0[[5, 77]] = -9.0
    assert ran([LOST_EVERY - 1], x0, np.ones(LANES))[3][[5, 77]].all()
    states, times, sides, alive = ran([LOST_EVERY], x0, np.ones(LANES))
    assert np.isnan(states[0, [5, 77]]).all()
    assert not alive[[5, 77]].any()
    assert np.isinf(times[[5, 77]]).all()
    assert not sides[[5, 77]].any()
    np.testing.assert_array_equal(np.delete(alive, [5, 77]), np.delete(sides, [5, 77]) == 0)
