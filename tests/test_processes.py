"""Langevin processes: noise, meanings, walls, and their complaints."""

import math
import pickle
import re

import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov
from user_dynamics import closure, double_well, dragged, lengthening, swirl, warm

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.processes import TWISTS, Linear, noise_factor

FULL = np.array([[1.0, 0.6], [0.6, 0.5]])


@pytest.mark.parametrize(
    ("level", "dim", "shape"),
    [
        (0.7, 3, (3, 1)),
        (0, 2, (2, 1)),
        ([0.1, 0.0, 0.3], 3, (3, 1)),
        (FULL, 2, (2, 2)),
        ([[1.0, 1.0], [1.0, 1.0]], 2, (2, 2)),
        ([0.5], 1, (1, 1)),
    ],
    ids=["number", "zero", "diagonal", "matrix", "singular matrix", "one"],
)
def test_the_factor_squares_to_twice_the_diffusivity(level, dim: int, shape: tuple[int, int]) -> None:
    factor = noise_factor(level, dim)
    assert factor.shape == shape
    full = np.diag(factor[:, 0]) if factor.shape[1] == 1 else factor
    expected = np.asarray(level) if np.ndim(level) == 2 else np.diag(np.broadcast_to(level, dim))
    np.testing.assert_allclose(full @ full.T, 2.0 * expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("level", "error", "message"),
    [
        (-1.0, ValueError, "diffusivity must not be negative, got -1."),
        ([1.0, -0.5], ValueError, "diffusivity must not be negative, got -0.5."),
        ([1.0, 2.0, 3.0], ValueError, "diffusivity must be a number, (2,) or (2, 2), got shape (3,)."),
        (np.ones((2, 3)), ValueError, "got shape (2, 3)"),
        ([[1.0, 0.2], [0.3, 1.0]], ValueError, "the matrix must be symmetric; pass (D + D.T) / 2"),
        ([[1.0, 2.0], [2.0, 1.0]], ValueError, "the matrix has the negative eigenvalue -1"),
        (math.nan, ValueError, "diffusivity holds 1 values that are nan or infinite"),
        ("warm", TypeError, "diffusivity must be an array of numbers"),
        (None, TypeError, "diffusivity must be a number, (2,) or (2, 2), got None; pass 0 for dynamics without noise."),
        (
            lambda x, t: (1.0,),
            TypeError,
            "called as D(t), got <lambda>(x, t); for one that depends on x, put @td.diffusivity",
        ),
        (lambda: 1.0, TypeError, "diffusivity: a plain function is called as D(t), got <lambda>();"),
        (swirl, TypeError, "diffusivity: swirl was made by @td.drift; put @td.diffusivity above the function instead."),
        (dragged, TypeError, "diffusivity: dragged was made by @td.potential; put"),
    ],
)
def test_diffusivities_that_are_refused(level, error, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        td.Langevin(swirl, (1.0, 2.0), level, dim=2)


def test_noise_of_a_diffusivity_that_depends_on_time() -> None:
    times = np.array([0.0, 0.5, 2.0])
    process = td.Langevin(swirl, (1.0, 2.0), lambda t: (1.0 + t) * FULL, dim=2)
    found = process.mix(times)
    assert found.shape == (3, 2, 2)
    for factor, t in zip(found, times, strict=True):
        np.testing.assert_allclose(factor @ factor.T, 2.0 * (1.0 + t) * FULL, rtol=1e-14)
    np.testing.assert_allclose(
        td.Langevin(swirl, (1.0, 2.0), lengthening, dim=2).mix(times)[:, 1, 0] ** 2, 1.0 + 2.0 * times
    )
    changing = td.Langevin(swirl, (1.0, 2.0), lambda t: 1.0 if t < 1.0 else FULL, dim=2)
    with pytest.raises(ValueError, match=r"diffusivity\(t\) must keep its shape; it changes at t = 2"):
        changing.mix(times)
    falling = td.Langevin(swirl, (1.0, 2.0), lambda t: 1.0 - t, dim=2)
    with pytest.raises(ValueError, match="diffusivity at t = 2 must not be negative, got -1"):
        falling.mix(times)
    with pytest.raises(TypeError, match=r"diffusivity at t = 0 must be a number, \(2,\) or \(2, 2\), got None"):
        td.Langevin(swirl, (1.0, 2.0), lambda t: None, dim=2).mix(times)
    # NumPy's functions have no signature to look at.
    assert td.Langevin(swirl, (1.0, 2.0), np.exp, dim=2).mix(times).shape == (3, 2, 1)


@pytest.mark.parametrize(
    "diffusivity",
    [lambda t: 1.0 + t, lambda t: [1.0, 0.5 * t], lambda t: np.array([t, 0.1]), lambda t: np.diag([1.0, t]) + 0.01],
)
def test_noise_in_time_is_that_of_each_time(diffusivity) -> None:
    process, times = td.Langevin(closure(0.5), (), diffusivity, dim=2), np.array([0.1, 0.5, 2.0])
    mix = process.mix(times)
    for k, t in enumerate(times):
        np.testing.assert_array_equal(mix[k], noise_factor(diffusivity(t), 2))


@pytest.mark.parametrize(
    ("diffusivity", "message"),
    [
        (lambda t: 1.0 - t, "diffusivity at t = 2 must not be negative"),
        (lambda t: np.inf if t == 0.5 else 1.0, "diffusivity at t = 0.5"),
        (lambda t: "x" if t == 0.5 else 1.0, "diffusivity at t = 0.5"),
        (lambda t: [1.0] * (2 if t < 1.0 else 3), "diffusivity at t = 2"),
    ],
)
def test_the_time_of_bad_noise_is_told(diffusivity, message: str) -> None:
    process = td.Langevin(closure(0.5), (), diffusivity, dim=2)
    with pytest.raises((TypeError, ValueError), match=message):
        process.mix(np.array([0.1, 0.5, 2.0]))


def test_what_is_noiseless() -> None:
    def process(level):
        return td.Langevin(swirl, (1.0, 2.0), level, dim=2)

    assert [process(level).noiseless for level in (0.0, [0, 0], np.zeros((2, 2)))] == [True] * 3
    assert [process(level).noiseless for level in (0.1, [0, 1], FULL, lambda t: 0.0)] == [False] * 4
    assert not td.Langevin(swirl, (1.0, 2.0), warm, diffusivity_params=(0.0,), dim=2).noiseless


def test_meanings_shift_the_drift_only_where_the_noise_depends_on_the_state() -> None:
    assert TWISTS == {"ito": 0.0, "stratonovich": 0.5, "isothermal": 1.0}
    for name, twist in TWISTS.items():
        made = td.Langevin(swirl, (1.0, 2.0), warm, diffusivity_params=(0.4,), dim=2, interpretation=name).compiled()
        assert made.twist == twist
        assert td.Langevin(swirl, (1.0, 2.0), dim=2, interpretation=name).compiled().twist == 0.0


def test_force_and_other_parameters() -> None:
    x, process = np.array([[1.0, 2.0], [0.5, -1.0]]), td.Langevin(swirl, (1.0, 2.0), dim=2)
    for made, (kappa, omega) in ((process, (1.0, 2.0)), (process.with_params(0.5, -1.0), (0.5, -1.0))):
        a, b = x.T
        expected = np.stack([-kappa * a + omega * b + math.sin(0.3), -kappa * b - omega * a], axis=1)
        np.testing.assert_allclose(made.force(x, 0.3), expected, rtol=1e-14)
    with pytest.raises(ValueError, match="swirl takes 2 parameters"):
        process.with_params(1.0)
    assert repr(process) == "Langevin(Drift(swirl(x, t, kappa, omega)), dim=2)"


def test_a_potential_has_an_energy_beside_its_force() -> None:
    process = td.Langevin(dragged, (2.0, 3.0), dim=1)
    energy = process.energy()
    assert energy is process.with_params(5.0, 1.0).energy()
    assert energy is not process.compiled().field
    x, out = np.random.default_rng(0).standard_normal((1, 256)), np.empty((1, 256))
    energy.dispatcher(x, np.array([0.25, 0.0, 0.0, 0.0]), process.params, out)
    np.testing.assert_allclose(out, (x - 0.75) ** 2, rtol=1e-14)
    for other in (td.Langevin(swirl, (1.0, 2.0), dim=2), Linear([[-1.0]])):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(repr(other))} has no energy: write its force as a potential, with"
        ):
            other.energy()


def test_walls_become_a_table() -> None:
    walls = {np.int64(0): ("periodic", -1, 1), 2: ("reflecting", 0.0, 2.5)}
    process = td.Langevin(td.drift(lambda x, t: (0.0, 0.0, 0.0)), dim=3, boundaries=walls)
    assert process.walls.tolist() == [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 0.0, 2.5]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"drift": lambda x, t: (0.0, 0.0)},
            TypeError,
            "drift must be made by @td.drift or @td.potential, got function; put",
        ),
        ({"drift": warm}, TypeError, "drift must be made by @td.drift or @td.potential, got Diffusivity"),
        ({"params": (1.0,)}, ValueError, "swirl takes 2 parameters (kappa, omega), got 1."),
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 65}, ValueError, "dim must be at most 64, got 65"),
        (
            {"interpretation": "itô"},
            ValueError,
            "interpretation='itô' is unknown; choose one of 'ito', 'stratonovich', 'iso",
        ),
        ({"diffusivity_params": (1.0,)}, ValueError, "diffusivity_params belong to a diffusivity made by @td.diffusivity"),
        ({"diffusivity_params": None}, ValueError, "made by @td.diffusivity, got None; leave them out."),
        ({"diffusivity": warm}, ValueError, "warm takes 1 parameters (level), got 0."),
        ({"boundaries": [("periodic", 0, 1)]}, TypeError, 'boundaries must be a mapping {coordinate: ("periodic" or'),
        ({"boundaries": {2: ("periodic", 0, 1)}}, ValueError, "boundaries: coordinate 2 does not exist; use 0 ... 1."),
        ({"boundaries": {"x": ("periodic", 0, 1)}}, ValueError, "boundaries: coordinate 'x' does not exist"),
        ({"boundaries": {0: ("sticky", 0, 1)}}, ValueError, "boundaries[0]='sticky' is unknown; choose one of 'periodic'"),
        ({"boundaries": {0: ("periodic", 1, 0)}}, ValueError, "boundaries[0]: low must be below high, got 1 and 0."),
        ({"boundaries": {0: ("periodic", 0, math.inf)}}, ValueError, "boundaries[0]: high must be finite, got inf."),
        ({"boundaries": {0: ("periodic", "a", "b")}}, TypeError, "boundaries[0]: low must be a number, got 'a'."),
        ({"boundaries": {0: 5}}, ValueError, 'boundaries[0] must be ("periodic" or "reflecting", low, high), got 5.'),
    ],
)
def test_refusals(changes: dict, error, message: str) -> None:
    given = {"drift": swirl, "params": (1.0, 2.0), "dim": 2} | changes
    with pytest.raises(error, match=re.escape(message)):
        td.Langevin(given.pop("drift"), **given)


def test_processes_travel() -> None:
    """With a drift and a D(t) that no module holds; the original keeps its own."""
    base = 2.0
    level = lambda t: base + t  # noqa: E731
    process = td.Langevin(closure(0.5), (), level, dim=2, boundaries={1: ("periodic", -1.0, 1.0)})
    arrived = pickle.loads(pickle.dumps(process))
    assert process.diffusivity is level
    times = np.array([0.0, 1.0])
    np.testing.assert_array_equal(arrived.mix(times), process.mix(times))
    np.testing.assert_array_equal(arrived.walls, process.walls)
    np.testing.assert_array_equal(arrived.force([[1.0, 2.0]]), process.force([[1.0, 2.0]]))
    named = pickle.loads(pickle.dumps(td.Langevin(double_well, (1.0,), 0.5, dim=1)))
    assert named.drift is double_well
    assert (named.params.tolist(), named.diffusivity) == ([1.0], 0.5)


MATRIX, OFFSET = np.array([[-1.0, 2.0], [-0.5, -0.7]]), np.array([0.3, -1.0])


@pytest.mark.parametrize(
    "matrix", [[[-1.0, 0.5], [0.3, -3.0]], [[-1.0, 2.0], [-2.0, -1.0]], [[-1.0, 0.5], [0.3, -40.0]], [[-1e3]]]
)
@pytest.mark.parametrize("h", [1e-3, 1.0, 10.0, 800.0])
def test_the_transition_over_any_time(matrix: list[list[float]], h: float) -> None:
    a, d = np.array(matrix), len(matrix)
    process = td.Linear(a, offset=np.ones(d), diffusivity=np.arange(1.0, d + 1.0))
    step, shift, covariance = process.transition(h)
    rest = solve_continuous_lyapunov(a, -2.0 * np.diag(np.arange(1.0, d + 1.0)))
    exact = expm(a * h)
    np.testing.assert_allclose(step, exact, atol=1e-13)
    np.testing.assert_allclose(shift, (exact - np.eye(d)) @ np.linalg.solve(a, np.ones(d)), rtol=1e-12)
    # The reference itself is a difference of covariances at rest.
    np.testing.assert_allclose(covariance, rest - exact @ rest @ exact.T, atol=1e-14 * np.abs(rest).max())


def test_a_linear_process_that_grows_beyond_all_numbers() -> None:
    with pytest.raises(DivergenceError, match="within a time of 800 the state grows beyond float64"):
        td.Linear([[1.0]]).transition(800.0)


def test_the_transition_of_a_linear_process() -> None:
    """Against quadrature of the variation of constants."""
    process, h = Linear(MATRIX, OFFSET, FULL), 0.8
    step, shift, covariance = process.transition(h)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    flows = [expm(MATRIX * 0.5 * h * (node + 1.0)) for node in nodes]
    np.testing.assert_allclose(step, expm(MATRIX * h), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(shift, sum(0.5 * h * w * e @ OFFSET for w, e in zip(weights, flows, strict=True)), rtol=1e-12)
    expected = sum(h * w * e @ FULL @ e.T for w, e in zip(weights, flows, strict=True))
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)


def test_one_step_of_a_linear_process_is_exact() -> None:
    process, n = Linear(MATRIX, OFFSET, FULL), 51_200
    start = np.tile([1.0, -2.0], (n, 1))
    final = td.simulate(process, start, [0.0, 0.3, 3.0], 10.0, rng=0).states[2]
    step, shift, covariance = process.transition(3.0)
    mean = step @ start[0] + shift
    assert np.abs((final.mean(axis=0) - mean) / np.sqrt(np.diag(covariance) / n)).max() < 4.0
    scale = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
    assert np.abs((np.cov(final.T) - covariance) / scale).max() < 4.0


def test_the_force_of_a_linear_process() -> None:
    x = np.array([[1.0, -2.0], [0.0, 3.0]])
    np.testing.assert_allclose(Linear(MATRIX, OFFSET).force(x), x @ MATRIX.T + OFFSET)
    np.testing.assert_allclose(Linear(MATRIX).force(x), x @ MATRIX.T)
    with pytest.raises(ValueError, match=r"matrix must be square, got shape \(1, 2\)"):
        Linear([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"offset must have shape \(2,\), got \(3,\)"):
        Linear(MATRIX, [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="diffusivity must be constant"):
        Linear(MATRIX, diffusivity=lambda t: 1.0)


def test_a_linear_process_has_no_parameters_to_change() -> None:
    with pytest.raises(TypeError, match="make another Linear"):
        Linear([[-1.0]]).with_params(2.0)
