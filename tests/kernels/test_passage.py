"""Calls of the kernel: cut anywhere, with lanes that rest, and paths that are lost."""

import numpy as np

import thermodiff as td
from thermodiff.kernels import langevin
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.passage import LOST_EVERY, passage


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
            made.walls, np.zeros((0, 3)), made.field, made.params, states, times, sides, alive,
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
    np.testing.assert_allclose(times[[5, 77]], 0.01 * LOST_EVERY)
    assert not sides[[5, 77]].any()
    np.testing.assert_array_equal(np.delete(alive, [5, 77]), np.delete(sides, [5, 77]) == 0)
