"""What is no touch, and what is none any more: escapes, surfaces out of reach, noise that does not move them, bad functions."""

import numpy as np
import pytest
from passages import deviation, first, free, oscillator, receding, steady
from scipy import integrate, stats

import thermodiff as td
from thermodiff.integrate.passage import first_passage

N = 20_000


@td.drift
def escaping(x, t):
    return (x[0] ** 3,)


@td.stop_condition
def raised(x, t):
    return x[0] + 1.0


@pytest.mark.parametrize("ends", [{"low": -1.0}, {"stop": raised}])
@pytest.mark.filterwarnings("ignore:the step")
def test_paths_that_escape_are_lost_and_not_stopped(ends: dict) -> None:
    """dx = x^3 dt + dW from 0.9 reaches -1 before infinity with the chance that the scale function says."""
    process, x0 = td.Langevin(escaping, diffusivity=0.5, dim=1), np.full((4000, 1), 0.9)
    given = {"t_max": 50.0, "dt": 1e-3, "rng": 0}
    with pytest.raises(td.DivergenceError, match="paths left the finite numbers, the first by t = "):
        first_passage(process, x0, **ends, **given)
    found = first_passage(process, x0, **ends, **given, on_divergence="mark")
    np.testing.assert_array_equal(found.diverged, found.sides == 0)
    scale = [integrate.quad(lambda y: np.exp(-0.5 * y**4), a, np.inf)[0] for a in (0.9, -1.0)]
    chance = scale[0] / scale[1]
    assert abs(np.mean(found.sides == -1) - chance) < 4.0 * np.sqrt(chance * (1.0 - chance) / len(x0))
    np.testing.assert_allclose(found.states[found.sides == -1], -1.0, rtol=1e-12)


@td.drift
def sliding(x, t, v):
    return v, 0.0


@td.stop_condition
def bent(x, t):
    return x[0] - 1.0 + 0.1 * x[1] ** 2


@td.stop_condition
def energy(x, t):
    return 0.5 * np.log(0.5 * (x[0] ** 2 + x[1] ** 2))


@pytest.mark.parametrize("dt", [0.05, 0.005])
@pytest.mark.filterwarnings("ignore:the step .* is too large for the rotation")
def test_noise_along_one_coordinate_only(dt: float) -> None:
    """Where a surface bends away from the noise there may be none in its direction; x0 = v t is exact on the way."""
    process = td.Langevin(sliding, (0.3,), [0.0, 0.5], dim=2)
    found = first_passage(process, np.zeros((N, 2)), stop=bent, t_max=100.0, dt=dt, rng=1)
    np.testing.assert_allclose(found.states[:, 0] + 0.1 * found.states[:, 1] ** 2, 1.0, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(found.states[:, 0], 0.3 * found.times, rtol=1e-12)
    kicked = td.Langevin(oscillator, (), [0.0, 0.2], dim=2)
    found = first_passage(kicked, np.tile([0.1, 0.0], (N, 1)), stop=energy, t_max=100.0, dt=dt, rng=2)
    assert np.all(found.sides == 1)
    np.testing.assert_allclose(np.sum(found.states**2, axis=1), 2.0, rtol=1e-9)


@td.stop_condition
def steep(x, t):
    return np.exp(x[0] ** 2) - 1.2


def test_a_surface_out_of_reach_is_not_touched() -> None:
    """The plane that a steep function seems to have far away is no surface: nothing stops before it is there."""
    process = td.Langevin(steady, (-5.0,), 0.5, dim=1)
    found = first_passage(process, np.full((500, 1), 15.0), stop=steep, t_max=9.0, dt=0.01, rng=0)
    np.testing.assert_allclose(found.states, np.sqrt(np.log(1.2)), rtol=1e-9)
    assert found.times.min() > 1.5


@td.stop_condition
def kinked(x, t):
    return max(abs(x[0]), abs(x[1])) - 1.0


def test_out_of_a_square() -> None:
    """From the middle: the mean time by the series of Poisson's equation, and each side alike."""
    process = td.Langevin(free, diffusivity=0.5, dim=2)
    found = first_passage(process, np.zeros((N, 2)), stop=kinked, t_max=99.0, dt=1e-3, rng=9)
    k = np.arange(1, 60, 2)
    series = np.sum((-1.0) ** ((k - 1) // 2) / (k**3 * np.cosh(0.5 * np.pi * k)))
    assert deviation(found.times, 1.0 - 32.0 / np.pi**3 * series) < 4.0
    np.testing.assert_allclose(np.abs(found.states).max(axis=1), 1.0, rtol=1e-9)
    for column in found.states.T:
        assert deviation(column, 0.0) < 4.0


@td.diffusivity
def square(x, t):
    return (0.5 * x[0] ** 2,)


@td.stop_condition
def logarithmic(x, t):
    return abs(np.log(x[0])) - 1.0


@pytest.mark.parametrize(("meaning", "twist"), [("ito", 0.0), ("stratonovich", 0.5), ("isothermal", 1.0)])
def test_noise_that_depends_on_the_state(meaning: str, twist: float) -> None:
    """D = x^2 / 2: ln x has the drift twist - 1/2 and variance t, and leaves [-1, 1] as Wald's identity says."""
    process = td.Langevin(steady, (0.0,), square, dim=1, interpretation=meaning)
    found = first_passage(process, np.ones((N, 1)), stop=logarithmic, t_max=99.0, dt=1e-3, rng=4)
    v = twist - 0.5
    up = 0.5 if v == 0.0 else np.expm1(-2.0 * v) / np.expm1(-4.0 * v)
    assert deviation(found.states[:, 0] > 1.0, up) < 4.0
    assert deviation(found.times, 1.0 if v == 0.0 else (2.0 * up - 1.0) / v) < 4.0


@td.stop_condition
def jumping(x, t):
    return 1.0 if x[0] > 1.0 else -1.0


def test_a_function_that_jumps_is_warned_of() -> None:
    """It is met where it jumps, but only by steps that end beyond."""
    process = td.Langevin(steady, (0.8,), 0.1, dim=1)
    with pytest.warns(RuntimeWarning, match="stop: jumping has no gradient where paths stopped, so that touches between"):
        found = first_passage(process, np.zeros((300, 1)), stop=jumping, t_max=99.0, dt=0.01, rng=0)
    np.testing.assert_allclose(found.states, 1.0, rtol=1e-12)


@td.stop_condition
def at_times_nothing(x, t):
    if x[0] > -0.5:
        return x[0] - 1.0


@td.stop_condition
def comparing(x, t):
    return x[0] > 1.0


def test_functions_that_give_no_number() -> None:
    process = td.Langevin(steady, (0.0,), 0.5, dim=1)
    given = {"x0": np.zeros((3, 1)), "t_max": 1.0, "dt": 0.1}
    with pytest.raises(TypeError, match="at_times_nothing gives None in some branch; give a number in each, or nan"):
        first_passage(process, stop=at_times_nothing, **given)
    with pytest.raises(
        TypeError, match=r"must return one number, .*, got False; write the difference of what becomes equal"
    ):
        first_passage(process, stop=comparing, **given)


def test_a_function_that_jumps_where_a_ring_closes_is_refused() -> None:
    ring = td.Langevin(steady, (0.0,), 0.5, dim=1, boundaries={0: ("periodic", 0.0, 5.0)})
    with pytest.raises(
        ValueError, match="stop: first jumps from 4 to -1 where the ring of coordinate 0 closes, at 5; write"
    ):
        first_passage(ring, [[0.2]], stop=first, stop_params=(1.0,), t_max=1.0, dt=0.1)


def test_a_mirror_before_the_surface_costs_an_error_of_the_step() -> None:
    """From 0.05 between a mirror at 0 and 0.1; as a level it is exact, whatever the step."""
    process = td.Langevin(steady, (0.0,), 0.5, dim=1, boundaries={0: ("reflecting", 0.0, np.inf)})
    given = {"x0": np.full((N, 1), 0.05), "t_max": 9.0, "rng": 0}
    coarse, fine = (first_passage(process, stop=first, stop_params=(0.1,), dt=dt, **given).times for dt in (1e-2, 1e-4))
    assert deviation(coarse, 0.0075) > 4.0
    assert deviation(fine, 0.0075) < 4.0
    assert deviation(first_passage(process, high=0.1, dt=1e-2, **given).times, 0.0075) < 4.0


@pytest.mark.parametrize(("speed", "dt"), [(10.0, 0.15), (10.0, 0.02), (1.0, 0.25)])
def test_a_surface_that_is_much_faster_than_noise(speed: float, dt: float) -> None:
    """It passes many widths of a step's noise in one step, and is met as a level at rest is by paths of that speed."""
    process = td.Langevin(steady, (0.0,), 0.01, dim=1)
    found = first_passage(process, np.zeros((N, 1)), stop=receding, stop_params=(1.0, -speed), t_max=20.0, dt=dt, rng=6)
    assert np.all(found.sides == -1)
    assert stats.kstest(found.times, stats.invgauss(mu=0.02 / speed, scale=50.0).cdf).pvalue > 1e-4
    np.testing.assert_allclose(found.states[:, 0], 1.0 - speed * found.times, rtol=0.0, atol=1e-9)


@td.stop_condition
def inverse(x, t):
    return 1.0 / np.sqrt(x[0] ** 2 + x[1] ** 2) - 1.0


@td.stop_condition
def logarithm_of_length(x, t):
    return 0.5 * np.log(x[0] ** 2 + x[1] ** 2)


@pytest.mark.parametrize(("condition", "start"), [(inverse, 0.1), (logarithm_of_length, 0.1), (logarithm_of_length, 1e-9)])
@pytest.mark.parametrize("dt", [0.1, 0.01])
def test_no_path_gets_further_than_noise_can(condition: td.fields.StopCondition, start: float, dt: float) -> None:
    """However wrong the plane: |x - x0|^2 / 4 D t is exponential, and 18 is passed with chance 2e-8."""
    process, x0 = td.Langevin(free, diffusivity=0.5, dim=2), np.tile([start, 0.0], (N, 1))
    found = first_passage(process, x0, stop=condition, t_max=30.0, dt=dt, rng=1)
    assert np.all(found.sides != 0)
    assert np.max(np.sum((found.states - x0) ** 2, axis=1) / (2.0 * found.times)) < 18.0
    np.testing.assert_allclose(np.hypot(*found.states.T), 1.0, rtol=1e-9)


@td.drift
def coasting(x, t):
    return x[1], 0.0


@pytest.mark.parametrize("end", [{"high": 0.7}, {"stop": first, "stop_params": (0.7,)}])
def test_what_has_noise_is_drawn_where_the_function_has_none(end: dict) -> None:
    """The velocity where a position passes 0.7, in a single step: 1 + W(0.7)."""
    process = td.Langevin(coasting, (), [0.0, 0.5], dim=2)
    found = first_passage(process, np.tile([0.0, 1.0], (N, 1)), **end, t_max=1.0, dt=1.0, rng=2)
    np.testing.assert_allclose(found.times, 0.7, rtol=1e-12)
    np.testing.assert_allclose(found.states[:, 0], 0.7, rtol=1e-12)
    assert stats.kstest((found.states[:, 1] - 1.0) / np.sqrt(0.7), stats.norm.cdf).pvalue > 1e-4


@td.stop_condition
def late(x, t):
    return t - 0.55


def test_a_time_is_no_jump() -> None:
    found = first_passage(td.Langevin(steady, (0.0,), 0.5, dim=1), np.zeros((N, 1)), stop=late, t_max=1.0, dt=0.5, rng=0)
    np.testing.assert_allclose(found.times, 0.55, rtol=1e-12)
    assert stats.kstest(found.states[:, 0] / np.sqrt(0.55), stats.norm.cdf).pvalue > 1e-4


@td.stop_condition
def resting_behind(x, t):
    return max(1.0 - x[0], 0.0)


def test_a_function_that_rests_at_zero_behind_its_surface() -> None:
    """Steps that end there end on the level itself; what is left is an error of the step."""
    process, given = td.Langevin(steady, (0.0,), 0.5, dim=1), {"t_max": 3.0, "rng": 7}
    found = first_passage(process, np.zeros((N, 1)), stop=resting_behind, dt=0.5, **given)
    steps = found.times[found.sides != 0] / 0.5
    assert np.mean(steps == np.floor(steps)) < 0.01
