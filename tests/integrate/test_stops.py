"""First passages through surfaces, and where paths are at their touch, against closed forms."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from passages import deviation, first, free, oscillator, receding, steady
from scipy import integrate, stats

import thermodiff as td
from thermodiff.integrate.passage import first_passage

N = 20_000


@td.drift
def swinging(x, t):
    return (0.3 + np.sin(t) - 0.1 * x[0], -x[1])


@td.drift(fills=True)
def nowhere(x, t, out):
    out[:] = 0.0


@td.diffusivity
def soft(x, t):
    return (0.5 + 0.2 * np.sin(x[0]), 0.3 + 0.1 * np.cos(x[1]))


@td.stop_condition
def plane(x, t, a, b, c):
    return a * x[0] + b * x[1] - c


@td.stop_condition
def disc(x, t):
    return x[0] ** 2 + x[1] ** 2 - 1.0


@td.stop_condition
def circle(x, t):
    return np.hypot(x[0], x[1]) - 1.0


@td.stop_condition
def ball(x, t, r):
    total = 0.0
    for v in x:
        total += v * v
    return np.sqrt(total) - r


@td.stop_condition
def turned(x, t, c):
    return np.cos(x[0]) - c


@td.stop_condition
def near_origin(x, t):
    return np.log(x[0] + 1.0)


MATRIX = np.array([[0.5, 0.3], [0.3, 0.4]])


@pytest.mark.parametrize("dt", [0.02, 0.7])
@pytest.mark.parametrize("drift", [0.0, 0.8])
def test_where_and_when_a_plane_is_met_whatever_the_step(dt: float, drift: float) -> None:
    """Of oblique noise.  Whitened, the place along the plane is normal at a given time, which has the law of Levy or Wald."""
    normal, b, end = np.array([1.0, -0.5]), 1.2, 60.0
    process = td.Langevin(both, (drift, -drift), MATRIX, dim=2)
    found = first_passage(process, np.zeros((N, 2)), stop=plane, stop_params=(*normal, b), t_max=end, dt=dt, rng=3)
    met = found.sides == 1
    v, variance = drift * normal @ [1.0, -1.0], 2.0 * normal @ MATRIX @ normal
    law = stats.invgauss(mu=variance / (v * b), scale=b * b / variance) if drift else stats.levy(scale=b * b / variance)
    times, share = found.times[met], law.cdf(end)
    assert stats.kstest(times, lambda t: law.cdf(t) / share).pvalue > 1e-4
    np.testing.assert_allclose(found.states[met] @ normal, b, rtol=1e-12)
    # The part of the noise that does not move n x, in units of its own width.
    along = np.array([[1.0, 0.0]]) - (MATRIX @ normal)[0] / (normal @ MATRIX @ normal) * normal
    width = np.sqrt(2.0 * (along @ MATRIX @ along.T)[0, 0])
    place = (found.states[met] - np.outer(times, [drift, -drift])) @ along[0]
    assert stats.kstest(place / (width * np.sqrt(times)), stats.norm.cdf).pvalue > 1e-4


@td.drift
def both(x, t, v, w):
    return v, w


@pytest.mark.parametrize("dt", [0.05, 2.0])
def test_the_other_coordinate_at_a_level_is_spread_by_the_time(dt: float) -> None:
    """Whatever the step; integrated over Levy's law of the time.  For ever it would be Cauchy's law."""
    end = 20.0
    found = first_passage(td.Langevin(free, diffusivity=0.5, dim=2), np.zeros((N, 2)), high=1.0, t_max=end, dt=dt, rng=5)
    met = found.sides == 1
    np.testing.assert_array_equal(found.states[met, 0], 1.0)
    for bound in (0.3, 1.0, 3.0):

        def seen(t: float, bound: float = bound) -> float:
            return stats.levy.pdf(t) * (2.0 * stats.norm.cdf(bound / np.sqrt(t)) - 1.0)

        exact = integrate.quad(seen, 0.0, 1.0)[0] + integrate.quad(seen, 1.0, end)[0]
        share = np.count_nonzero(np.abs(found.states[met, 1]) < bound) / N
        assert abs(share - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / N)


PROCESSES = {
    "line": td.Langevin(steady, (0.3,), 0.5, dim=1),
    "D(t)": td.Langevin(swinging, (), lambda t: 0.3 + 0.1 * t, dim=2),
    "D(x)": td.Langevin(swinging, (), soft, dim=2, interpretation="isothermal"),
    "matrix": td.Langevin(swinging, (), MATRIX, dim=2, boundaries={1: ("periodic", -0.5, 0.5)}),
    "mirror": td.Langevin(swinging, (), [0.5, 0.2], dim=2, boundaries={1: ("reflecting", -0.3, 0.5)}),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_plane_across_a_coordinate_is_a_level(process: td.Langevin) -> None:
    """The same draws: times and places are the same but for rounding."""
    given = {"x0": np.zeros((1000, process.dim)), "t0": 0.5, "t_max": 3.5, "dt": 0.1, "rng": 3}
    one = first_passage(process, high=1.0, **given)
    two = first_passage(process, stop=first, stop_params={"level": 1.0}, **given)
    assert 100 < np.count_nonzero(one.sides) < 1000
    np.testing.assert_array_equal(two.sides, one.sides)
    np.testing.assert_allclose(two.times, one.times, rtol=1e-9)
    np.testing.assert_allclose(two.states, one.states, atol=1e-9)


@pytest.mark.parametrize("dt", [0.05, 1.0])
def test_a_surface_that_moves(dt: float) -> None:
    """A level that runs away at the speed 0.5 is one that rests, for a path that is slower by as much."""
    v, speed, b = 1.3, 0.5, 1.0
    process = td.Langevin(steady, (v,), 0.3, dim=1)
    found = first_passage(
        process, np.zeros((N, 1)), stop=receding, stop_params=(b - speed, speed), t0=1.0, t_max=80.0, dt=dt, rng=1
    )
    assert np.all(found.sides == -1)
    shape = b * b / 0.6
    assert stats.kstest(found.times - 1.0, stats.invgauss(mu=b / (v - speed) / shape, scale=shape).cdf).pvalue > 1e-4
    np.testing.assert_allclose(found.states[:, 0], b + speed * (found.times - 1.0), rtol=1e-12)


def left_the_disc(condition: td.fields.StopCondition, dt: float, n: int) -> td.Passage:
    process, x0 = td.Langevin(free, diffusivity=0.5, dim=2), np.tile([0.5, 0.0], (n, 1))
    return first_passage(process, x0, stop=condition, t_max=100.0, dt=dt, rng=int(1000 * dt))


@pytest.mark.parametrize("condition", [disc, circle])
def test_out_of_a_disc(condition: td.fields.StopCondition) -> None:
    """The mean time is (1 - r^2) / 2 d D, and the place has Poisson's kernel: the mean of cos(m phi) is r^m."""
    found = left_the_disc(condition, 1e-3, N)
    assert np.all(found.sides == 1)
    assert deviation(found.times, 0.375) < 4.0
    np.testing.assert_allclose(np.hypot(*found.states.T), 1.0, rtol=1e-9)
    phi = np.arctan2(*found.states.T[::-1])
    for m in (1, 2, 3):
        assert deviation(np.cos(m * phi), 0.5**m) < 4.0
        assert deviation(np.sin(m * phi), 0.0) < 4.0


def test_the_error_of_the_step_is_of_first_order_at_a_curved_surface() -> None:
    """It is large of a function that does not grow as the distance does; looking at ends only it would be a root."""

    def bias(dt: float) -> tuple[float, float]:
        times = left_the_disc(disc, dt, 200_000).times
        return times.mean() - 0.375, times.std() / np.sqrt(times.size)

    (coarse, error), (fine, other) = bias(0.08), bias(0.02)
    assert abs(coarse) > 8.0 * error
    assert abs(coarse - 4.0 * fine) < 4.0 * np.hypot(error, 4.0 * other) + 0.25 * abs(coarse)


@pytest.mark.parametrize("dim", [3, 10, 20])
def test_out_of_a_ball(dim: int) -> None:
    """From the centre, where the root has no slope: r^2 / 2 d D."""
    process = td.Langevin(nowhere, diffusivity=0.5, dim=dim)
    found = first_passage(process, np.zeros((N, dim)), stop=ball, stop_params=(1.0,), t_max=100.0, dt=0.01 / dim, rng=dim)
    assert deviation(found.times, 1.0 / dim) < 4.0
    np.testing.assert_allclose(np.linalg.norm(found.states, axis=1), 1.0, rtol=1e-12)
    assert deviation(found.states[:, -1], 0.0) < 4.0


def test_mirrors_and_rings_beside_the_surface() -> None:
    """Half of a disc before a mirror is the disc; on a ring the function is met on either side."""
    half = td.Langevin(free, diffusivity=0.5, dim=2, boundaries={1: ("reflecting", 0.0, np.inf)})
    found = first_passage(half, np.tile([0.5, 0.0], (N, 1)), stop=circle, t_max=100.0, dt=1e-3, rng=2)
    assert deviation(found.times, 0.375) < 4.0
    assert found.states[:, 1].min() >= 0.0
    ring = td.Langevin(steady, (0.0,), 0.5, dim=1, boundaries={0: ("periodic", 0.0, 2.0 * np.pi)})
    c = np.cos(1.0)
    found = first_passage(ring, np.full((N, 1), 4.0 * np.pi), stop=turned, stop_params=(c,), t_max=100.0, dt=1e-3, rng=2)
    assert np.all(found.sides == -1)
    assert deviation(found.times, 1.0) < 4.0
    np.testing.assert_allclose(np.cos(found.states), c, rtol=1e-9)
    assert abs(np.mean(found.states < np.pi) - 0.5) < 2.0 / np.sqrt(N)


def test_paths_on_either_side() -> None:
    """Each runs until it is on the other."""
    x0 = np.linspace(-1.95, 1.95, 40)[:, None]
    found = first_passage(
        td.Langevin(steady, (0.0,), 0.5, dim=1), x0, stop=first, stop_params=(0.0,), t_max=1e4, dt=0.5, rng=0
    )
    met = found.sides != 0
    assert met.mean() > 0.8
    np.testing.assert_array_equal(found.sides[met], -np.sign(x0[met, 0]))


def test_without_noise_a_straight_line_is_met() -> None:
    found = first_passage(
        td.Langevin(steady, (0.8,), 0.0, dim=1), [[0.0]], stop=first, stop_params=(1.0,), t_max=9.0, dt=0.3
    )
    np.testing.assert_allclose(found.times, 1.25, rtol=1e-12)
    np.testing.assert_allclose(found.states, 1.0, rtol=1e-12)
    quarter = td.Langevin(oscillator, (), [0.0, 1e-12], dim=2)
    found = first_passage(quarter, [[1.0, 0.0]], stop=first, stop_params=(0.0,), t_max=5.0, dt=1e-4, rng=0)
    np.testing.assert_allclose(found.times, 0.5 * np.pi, atol=1e-3)


def test_same_bits_in_processes_and_for_any_chunk() -> None:
    process, x0 = td.Langevin(swinging, (), MATRIX, dim=2), np.zeros((1500, 2))
    given = {"stop": plane, "stop_params": (1.0, 0.4, 0.8), "t_max": 2.0, "dt": 0.05, "rng": 5}
    whole = first_passage(process, x0, **given)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as executor:
        again = first_passage(process, x0, **given, executor=executor, chunk=2)
    few = first_passage(process, x0[:300], **given)
    for name in ("times", "sides", "states"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(few, name), getattr(whole, name)[:300])
    assert pickle.loads(pickle.dumps(plane)) is plane


def test_a_function_without_a_value_is_told() -> None:
    """At a start, or on the way; it is never taken for a path that goes on."""
    process = td.Langevin(steady, (0.0,), 0.5, dim=1)
    given = {"stop": near_origin, "t_max": 10.0, "dt": 0.5, "rng": 0}
    with pytest.raises(ValueError, match="stop: near_origin has no finite value at 2 of 3 starts"):
        first_passage(process, [[0.5], [-2.0], [-1.0]], **given)
    with pytest.raises(
        td.DivergenceError,
        match=r"the first by t = 0\.5 \(key \d+, \d+\), or stop has no finite value or gradient where they went; use",
    ):
        first_passage(process, np.full((500, 1), -0.5), **given)
    found = first_passage(process, np.full((500, 1), -0.5), **given, on_divergence="mark")
    assert found.diverged.any()
    assert (found.sides == 1).any()
    assert np.isnan(found.times[found.diverged]).all()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"stop": lambda x, t: x[0]},
            TypeError,
            r"stop must be made by @td.stop_condition, got function; put the decorator",
        ),
        (
            {"stop": first, "stop_params": (1.0,), "high": 1.0},
            ValueError,
            "give stop=, or low, high and coordinate, not both",
        ),
        ({"stop": first, "stop_params": (0.0,)}, ValueError, "3 of 3 paths start where first is zero"),
        ({"stop": first, "stop_params": ("a",)}, TypeError, r"stop_params\[0\] must be a number, got 'a'"),
        ({"stop": first, "stop_params": (1.0,), "low": np.zeros(2)}, ValueError, "give stop=, or low, high and coordinate"),
        ({}, ValueError, r"low and high must leave an interval with at least one end, got .*; give one, or stop="),
        ({"stop": first}, ValueError, r"first takes 1 parameters \(level\), got 0"),
        ({"high": 1.0, "stop_params": (0.0,)}, ValueError, r"stop_params belong to stop=, which is missing; got \(0.0,\)"),
    ],
)
def test_bad_arguments_get_a_sentence(keywords: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        first_passage(td.Langevin(steady, (0.0,), 0.5, dim=1), np.zeros((3, 1)), t_max=1.0, dt=0.1, **keywords)


def test_a_condition_in_place_of_something_else() -> None:
    with pytest.raises(TypeError, match="first was made by @td.stop_condition; put @td.diffusivity above the function"):
        td.Langevin(steady, (0.0,), first, dim=1)
    with pytest.raises(TypeError, match="stop_condition: it decorates a plain Python function"):
        td.stop_condition(first)


def test_a_condition_returns_one_number() -> None:
    with pytest.raises(TypeError, match="pair must return one number, which is zero where paths stop, got"):
        pair.at([[0.0]])


@td.stop_condition
def pair(x, t):
    return x[0], 1.0
