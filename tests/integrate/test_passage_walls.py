"""First passages between walls, on rings, and with noise that depends on time or state, against closed forms."""

import numpy as np
import pytest
from scipy import stats

import thermodiff as td
from thermodiff.integrate.passage import first_passage

N = 20_000


@td.drift
def constant(x, t, v):
    return (v,)


@td.drift
def rotating(x, t, v):
    return (v + np.sin(x[0]),)


@td.drift
def growing(x, t, v):
    return (v * x[0],)


@td.diffusivity
def of_square(x, t, s):
    return (0.5 * s * s * x[0] * x[0],)


@td.drift
def underdamped(x, t, k, g):
    return (x[1], -k * x[0] - g * x[1])


@td.drift
def in_time(x, t):
    return (t,)


@td.drift
def free_and_held(x, t, k):
    return (0.0, -k * x[1])


def deviation(values: np.ndarray, mean: float) -> float:
    return abs(values.mean() - mean) / (values.std() / np.sqrt(values.size))


def walled(kind: str, low: float, high: float, v: float = 0.0, field=constant) -> td.Langevin:
    return td.Langevin(field, (v,), 0.5, dim=1, boundaries={0: (kind, low, high)})


@pytest.mark.parametrize("dt", [0.02, 0.5, 20.0])
@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_a_mirror_behind_the_path(dt: float, turn: float) -> None:
    """Variance t, mirror at 0, level at 2: E exp(-q T) = cosh(x r) / cosh(2 r) with r = sqrt(2 q), whatever the step."""
    level = {"high": 2.0} if turn > 0.0 else {"low": -2.0}
    process = walled("reflecting", *sorted((0.0, turn * 3.0)))
    found = first_passage(process, np.full((N, 1), 0.4 * turn), t_max=400.0, dt=dt, rng=3, **level)
    assert np.all(found.sides == turn)
    np.testing.assert_array_equal(found.states[:, 0], 2.0 * turn)
    assert deviation(found.times, 4.0 - 0.16) < 4.0
    for q in (0.1, 1.0):
        r = np.sqrt(2.0 * q)
        assert deviation(np.exp(-q * found.times), np.cosh(0.4 * r) / np.cosh(2.0 * r)) < 4.0


def test_those_on_their_way_are_between_mirror_and_level() -> None:
    """As the first eigenfunction, a quarter of a cosine."""
    process = walled("reflecting", 0.0, np.inf)
    found = first_passage(process, np.full((N, 1), 0.5), t_max=3.0, dt=0.5, high=1.0, rng=3)
    left = found.states[found.sides == 0, 0]
    assert 0.0 <= left.min() < left.max() < 1.0
    assert stats.kstest(left, lambda x: np.sin(0.5 * np.pi * x)).pvalue > 1e-4


def test_a_mirror_and_a_drift_converge() -> None:
    """Drift v to the mirror at 0, level 1: E T = (exp(2 v) - 1) / (2 v^2) - 1 / v at variance t, from 0."""
    v, exact = 1.0, (np.exp(2.0) - 1.0) / 2.0 - 1.0
    found = first_passage(walled("reflecting", 0.0, 1.0, -v), np.zeros((N, 1)), t_max=100.0, dt=1e-3, high=1.0, rng=1)
    assert deviation(found.times, exact) < 4.0


def test_both_levels_between_mirrors_are_as_without() -> None:
    process, x0 = walled("reflecting", -1.0, 1.0, 0.3), np.zeros((1000, 1))
    given = {"t_max": 50.0, "dt": 0.3, "low": -1.0, "high": 0.9, "rng": 2}
    found = first_passage(process, x0, **given)
    np.testing.assert_array_equal(found.times, first_passage(td.Langevin(constant, (0.3,), 0.5, dim=1), x0, **given).times)


@pytest.mark.parametrize(
    ("level", "ends"), [({"high": 2.0}, (2.0 - 2.0 * np.pi, 2.0)), ({"low": -1.0}, (-1.0, 2.0 * np.pi - 1.0))]
)
@pytest.mark.parametrize("start", [0.3, 0.3 + 2.0 * np.pi])
def test_a_ring_is_the_line_with_the_level_once_more(level: dict, ends: tuple[float, float], start: float) -> None:
    x0 = np.full((2000, 1), start)
    given = {"t_max": 4.0, "dt": 0.02, "rng": 5}
    on_ring = first_passage(walled("periodic", -np.pi, np.pi, 0.4, rotating), x0, **given, **level)
    on_line = first_passage(
        td.Langevin(rotating, (0.4,), 0.5, dim=1), np.full((2000, 1), 0.3), low=ends[0], high=ends[1], **given
    )
    np.testing.assert_array_equal(on_ring.sides, on_line.sides)
    np.testing.assert_allclose(on_ring.times, on_line.times, rtol=1e-9)
    touched = on_ring.sides != 0
    assert set(on_ring.sides[touched]) == {-1, 1}
    assert not touched.all()
    np.testing.assert_array_equal(on_ring.states[touched, 0], next(iter(level.values())))
    np.testing.assert_allclose(np.exp(1j * on_ring.states[~touched]), np.exp(1j * on_line.states[~touched]), atol=1e-9)
    assert np.abs(on_ring.states).max() <= np.pi


def test_an_arc_of_a_ring() -> None:
    process = walled("periodic", 0.0, 2.0 * np.pi)
    found = first_passage(process, np.full((N, 1), 1.0), low=0.5, high=2.0, t_max=50.0, dt=0.5, rng=1)
    assert deviation(found.times, 0.5 * 1.0) < 4.0
    with pytest.raises(ValueError, match="3 of 3 paths start at or beyond a level"):
        first_passage(process, np.full((3, 1), 2.5), low=0.5, high=2.0, t_max=50.0, dt=0.5, rng=1)


@pytest.mark.parametrize("start", [-0.9, 0.9, 1.1])
def test_an_arc_through_the_seam(start: float) -> None:
    """From 0.5 up through 1 = -1 to -0.7: 0.8 long."""
    x = (start - 0.5) % 2.0
    found = first_passage(
        walled("periodic", -1.0, 1.0), np.full((N, 1), start), low=0.5, high=-0.7, t_max=50.0, dt=0.1, rng=1
    )
    assert deviation(found.times, x * (0.8 - x)) < 4.0
    assert deviation(found.sides == 1, x / 0.8) < 4.0
    np.testing.assert_allclose(found.states[:, 0], np.where(found.sides == 1, -0.7, 0.5), rtol=1e-14)
    with pytest.raises(ValueError, match="give low above high for the arc through the seam"):
        first_passage(walled("periodic", -1.0, 1.0), np.full((3, 1), 0.9), low=-0.7, high=0.5, t_max=50.0, dt=0.1)


def test_other_coordinates_stay_between_their_walls() -> None:
    """Beside the watched one, whose times they do not touch."""
    walls = {1: ("reflecting", -0.2, 0.3)}
    given = {"t_max": 2.0, "dt": 1e-2, "high": 1.0, "rng": 4}
    x0 = np.zeros((5000, 2))
    walled_in = first_passage(td.Langevin(free_and_held, (1.0,), 0.5, dim=2, boundaries=walls), x0, **given)
    free = first_passage(td.Langevin(free_and_held, (1.0,), 0.5, dim=2), x0, **given)
    np.testing.assert_array_equal(walled_in.times, free.times)
    y = walled_in.states[:, 1]
    assert -0.2 <= y.min() < y.max() <= 0.3
    # exp(-k y^2 / 2 D) between the walls, soon.
    law = stats.truncnorm(-0.2 / np.sqrt(0.5), 0.3 / np.sqrt(0.5), scale=np.sqrt(0.5))
    late = y[walled_in.times > 1.0]
    assert deviation(late, law.mean()) < 4.0


def test_noise_that_grows_in_time_is_a_change_of_clock() -> None:
    """D = 1/2 + t from t0 = 1: the variance at t is t^2 + t - 2, and Levy's law holds in it."""
    process = td.Langevin(constant, (0.0,), lambda t: 0.5 + t, dim=1)
    found = first_passage(process, np.zeros((N, 1)), t0=1.0, t_max=4.0, dt=0.02, high=1.0, rng=2)
    touched, law = np.isfinite(found.times), stats.levy(scale=1.0)
    assert found.times.min() > 1.0
    share = law.cdf(18.0)
    assert abs(touched.mean() - share) < 4.0 * np.sqrt(share * (1.0 - share) / N)
    clock = found.times[touched] ** 2 + found.times[touched] - 2.0
    assert stats.kstest(clock, lambda t: law.cdf(t) / share).pvalue > 1e-4


@pytest.mark.parametrize(("interpretation", "twist"), [("ito", 0.0), ("stratonovich", 0.5), ("isothermal", 1.0)])
def test_noise_in_proportion_to_the_state(interpretation: str, twist: float) -> None:
    """The logarithm has drift v + (twist - 1/2) s^2 and variance s^2 t: inverse Gaussian times."""
    v, s, level = 0.5, 0.4, 2.0
    process = td.Langevin(growing, (v,), of_square, diffusivity_params=(s,), dim=1, interpretation=interpretation)
    found = first_passage(process, np.ones((N, 1)), t_max=60.0, dt=2e-3, high=level, rng=6)
    assert np.all(found.sides == 1)
    drift, b = v + (twist - 0.5) * s * s, np.log(level)
    shape = b * b / (s * s)
    law = stats.invgauss(mu=b / drift / shape, scale=shape)
    assert deviation(found.times, law.mean()) < 4.0
    assert stats.kstest(found.times, law.cdf).pvalue > 1e-4


def test_the_error_of_the_step_is_of_first_order_for_such_noise() -> None:
    v, s, level, n = 0.5, 0.3, 2.0, 100_000
    process = td.Langevin(growing, (v,), of_square, diffusivity_params=(s,), dim=1)
    exact = np.log(level) / (v - 0.5 * s * s)

    def bias(dt: float) -> tuple[float, float]:
        found = first_passage(process, np.ones((n, 1)), t_max=200.0, dt=dt, high=level, rng=int(1000 * dt))
        return found.times.mean() - exact, found.times.std() / np.sqrt(n)

    (coarse, error), (fine, other) = bias(0.4), bias(0.1)
    assert abs(coarse) > 8.0 * error
    assert abs(coarse - 4.0 * fine) < 4.0 * np.hypot(error, 4.0 * other) + 0.25 * abs(coarse)


def test_a_coordinate_without_noise_moves_on_straight_lines() -> None:
    still = td.Langevin(constant, (0.8,), 0.0, dim=1)
    for keywords, side in (({"high": 1.0}, 1), ({"low": -9.0, "high": 1.0}, 1)):
        found = first_passage(still, np.zeros((3, 1)), t_max=10.0, dt=0.3, **keywords)
        np.testing.assert_allclose(found.times, 1.25, rtol=1e-12)
        np.testing.assert_array_equal(found.sides, side)
    found = first_passage(td.Langevin(constant, (-0.8,), 0.0, dim=1), np.zeros((3, 1)), t_max=10.0, dt=0.3, low=-1.0)
    np.testing.assert_allclose(found.times, 1.25, rtol=1e-12)
    np.testing.assert_array_equal(found.sides, -1)


def test_the_position_of_underdamped_dynamics() -> None:
    """An undamped oscillator from rest at 1 passes 0 at a quarter of its period; Euler's error is of first order."""
    process = td.Langevin(underdamped, (1.0, 0.0), [0.0, 1e-12], dim=2)
    found = first_passage(process, np.tile([1.0, 0.0], (5, 1)), t_max=5.0, dt=1e-4, low=0.0, rng=0)
    np.testing.assert_allclose(found.times, 0.5 * np.pi, atol=1e-3)


def test_the_start_has_a_time() -> None:
    """dx = t dt from t0 = 1 is at 3/2 when t = 2."""
    process = td.Langevin(in_time, (), 0.0, dim=1)
    found = first_passage(process, np.zeros((3, 1)), t0=1.0, t_max=5.0, dt=1e-4, high=1.5)
    np.testing.assert_allclose(found.times, 2.0, atol=2e-4)


@pytest.mark.parametrize(
    ("wall", "levels", "message"),
    [
        (("reflecting", 0.0, 1.0), {"high": 1.5}, "high = 1.5 lies outside the walls, 0 and 1; no path"),
        (("periodic", 0.0, 1.0), {"low": -0.5}, "low = -0.5 lies outside the walls"),
        (("reflecting", 0.0, 1.0), {"low": 0.5}, "3 of 3 paths start at or beyond a level"),
        (("reflecting", 0.4, 1.0), {"high": 0.9}, "3 of 3 paths start outside the reflecting walls"),
    ],
)
def test_levels_and_starts_where_no_path_gets(wall: tuple, levels: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_passage(walled(*wall), np.full((3, 1), 0.3), t_max=1.0, dt=0.1, **levels)


@td.drift
def to_and_fro(x, t, v, turn):
    return (v if t < turn else -v,)


@td.drift
def to_the_mirror(x, t, v):
    return (-v if t < 0.5 else 0.5 * v,)


@pytest.mark.parametrize("dt", [0.125, 0.25, 0.5, 1.0])
def test_a_step_that_ends_on_the_level_ends_the_path(dt: float) -> None:
    """Also of a path that turns back there; nothing is rounded here."""
    back = {"t_max": 8.0, "dt": dt, "rng": 0}
    for v, side in ((1.0, 1), (-1.0, -1)):
        for process in (
            td.Langevin(constant, (v,), 0.0, dim=1),
            td.Langevin(to_and_fro, (v, 1.0), 0.0, dim=1),
            td.Langevin(to_and_fro, (v, 1.0), lambda t: 0.0 if t < 2.0 else 0.5, dim=1),
            td.Langevin(to_and_fro, (v, 1.0), 0.0, dim=1, boundaries={0: ("periodic", -4.0, 4.0)}),
        ):
            for levels in ({"low": -1.0, "high": 1.0}, {"high": 1.0} if v > 0.0 else {"low": -1.0}):
                found = first_passage(process, np.zeros((3, 1)), **levels, **back)
                np.testing.assert_array_equal(found.times, 1.0)
                np.testing.assert_array_equal(found.sides, side)
                np.testing.assert_array_equal(found.states[:, 0], v)


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_a_level_met_behind_the_mirror(turn: float) -> None:
    """From 1 to the mirror at 0 and back to 2 within one step."""
    still = td.Langevin(constant, (-3.0 * turn,), 0.0, dim=1, boundaries={0: ("reflecting", *sorted((0.0, turn * 9.0)))})
    found = first_passage(still, [[turn]], t_max=4.0, dt=1.0, rng=0, **{"high" if turn > 0.0 else "low": 2.0 * turn})
    np.testing.assert_array_equal(found.times, 1.0)
    np.testing.assert_array_equal(found.sides, turn)


def test_a_mirror_that_rounds_to_the_level() -> None:
    """0.65 - 0.45 is a little above the image of 1 in a mirror at 0.6, and what that turns it back to is 1 itself."""
    walls = {0: ("reflecting", 0.6, np.inf)}
    for diffusivity in (0.0, lambda t: 0.0 if t < 1.0 else 1e-6):
        process = td.Langevin(to_the_mirror, (0.45,), diffusivity, dim=1, boundaries=walls)
        found = first_passage(process, [[0.65]], high=1.0, t_max=3.0, dt=1.0, rng=0)
        np.testing.assert_array_equal(found.times, 1.0)
        np.testing.assert_array_equal(found.sides, 1)


def test_a_start_on_a_level_is_refused() -> None:
    for levels in ({"low": 0.0}, {"high": 0.0}):
        with pytest.raises(ValueError, match="1 of 1 paths start at or beyond a level"):
            first_passage(td.Langevin(constant, (1.0,), 0.0, dim=1), [[0.0]], t_max=1.0, dt=0.1, **levels)
