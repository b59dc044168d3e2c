"""Steps that are too large, and drifts that have no value: what is said, and when nothing is."""

import math
import re
import warnings

import numpy as np
import pytest

import thermodiff as td
from thermodiff._check import DivergenceError, seed_words
from thermodiff.integrate.grid import Grid
from thermodiff.integrate.run import Run
from thermodiff.integrate.simulate import RULES
from thermodiff.integrate.stability import _spectral_radius, growth, step_rate


@td.drift
def stiff_later(x, t):
    return (-(1.0 + 3000.0 * (t > 0.5)) * x[0],)


@td.drift
def stiff_beside_a_large_one(x, t):
    return -1000.0 * x[0], -x[1]


@td.drift
def oscillator(x, t):
    return x[1], -x[0] - 0.1 * x[1]


@td.drift
def root(x, t):
    return (-np.sign(x[0]) * math.sqrt(abs(x[0])),)


@td.potential
def kink(x, t):
    return abs(x[0])


@td.potential
def cone(x, t):
    return 1.0 / math.sqrt(x[0] ** 2 + x[1] ** 2)


@td.drift
def cube(x, t):
    return (x[0] ** 3,)


@td.diffusivity
def negative(x, t):
    return (x[0] - 1.0,)


CASES = [
    (td.Langevin(stiff_later, dim=1), [0.0], 0.9e-3, r"by 67 % of its length at t = 1"),
    (td.Langevin(stiff_beside_a_large_one, diffusivity=1e-3, dim=2), [1e-3, 1e4], 2.5e-3, r"by 62 % of its length at t = 0"),
    (td.Langevin(oscillator, diffusivity=[0.0, 0.1], dim=2), [0.0, 0.0], 1.5, r"by 3[78] % of its length at t = 0"),
]
QUIET = [
    (td.Langevin(kink, dim=1), [0.0], 1e-2),
    (td.Langevin(root, diffusivity=1e-6, dim=1), [1e-9], 1e-3),
    (td.Langevin(oscillator, diffusivity=[0.0, 0.1], dim=2), [0.0, 0.0], 1e-2),
    (td.Langevin(oscillator, diffusivity=0.0, dim=2), [0.0, 0.0], 1e-2),
]


@pytest.mark.parametrize(("process", "start", "dt", "message"), CASES, ids=["later", "hidden", "rotating"])
def test_a_step_is_judged_by_the_fastest_rate(process: td.Langevin, start: list[float], dt: float, message: str) -> None:
    with pytest.warns(RuntimeWarning, match=message) as caught:
        td.simulate(process, np.tile(start, (100, 1)), max(1.0, 4.0 * dt), dt, rng=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("process", "start", "dt"), QUIET, ids=["kink", "root", "at rest", "without noise"])
def test_no_false_alarm(process: td.Langevin, start: list[float], dt: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        td.simulate(process, np.tile(start, (100, 1)), 1.0, dt, rng=0)


@td.drift
def turning(x, t, a, omega):
    return -a * x[0] + omega * x[1], -a * x[1] - omega * x[0]


@td.drift
def position_and_velocity(x, t, k, g):
    return x[1], -k * x[0] - g * x[1]


@pytest.mark.parametrize(
    ("process", "dt"),
    [
        (td.Langevin(turning, (1.0, 20.0), 0.1, dim=2), 0.02),
        (td.Langevin(turning, (1.0, 20.0), 0.1, dim=2), 0.004),
        (td.Langevin(position_and_velocity, (100.0, 0.5), [0.0, 0.5], dim=2), 0.01),
        (td.Langevin(position_and_velocity, (100.0, 0.5), [0.0, 0.5], dim=2), 0.002),
        (td.Langevin(position_and_velocity, (100.0, 0.0), [0.0, 1e-9], dim=2), 0.002),
    ],
)
def test_a_spiral_that_a_rule_turns_outwards(process: td.Langevin, dt: float) -> None:
    """Euler's rule, by factors of 1.6 to 1e23 in the variance; Heun's is fine with the smaller ones."""
    with pytest.warns(RuntimeWarning, match=r'too large for the rotation in this drift: .* or method="heun"'):
        td.simulate(process, np.zeros((300, 2)), [0.0, 5.0, 20.0], dt, rng=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        td.simulate(process, np.zeros((300, 2)), [0.0, 5.0, 20.0], min(dt, 0.004), rng=0, method="heun")
        td.simulate(process, np.zeros((300, 2)), [0.0, 0.01], dt / 20.0, rng=0)


def test_the_growth_of_a_rotation_is_that_of_the_rule() -> None:
    process, x = td.Langevin(turning, (1.0, 20.0), 0.1, dim=2), np.ones((3, 2))
    for h in (0.004, 0.02):
        factor = abs(1.0 + h * (-1.0 + 20.0j))
        assert growth(process, x, 0.0, h, "euler", np.inf) == pytest.approx(np.log(factor) / h + 1.0, rel=1e-6)
    assert abs(growth(process, x, 0.0, 0.004, "heun", np.inf)) < 0.1
    assert growth(td.Langevin(turning, (-1.0, 20.0), 0.1, dim=2), x, 0.0, 0.004, "euler", np.inf) == 0.0
    assert growth(td.Langevin(turning, (1.0, 0.0), 0.1, dim=2), x, 0.0, 0.1, "euler", np.inf) == 0.0


@td.drift
def pulsed(x, t):
    return (-(5.0 + 95.0 * math.sin(math.pi * t) ** 2) * x[0],)


@td.drift
def burst(x, t):
    return (-(1.0 + 200.0 * (0.5 < t < 0.6)) * x[0],)


@pytest.mark.parametrize(
    ("field", "times"), [(pulsed, [0.0, 1.0, 2.0, 3.0]), (burst, 1.0), (pulsed, np.arange(200.0)[:100])], ids=str
)
def test_stiffness_between_the_asked_times_is_seen(field, times) -> None:
    with pytest.warns(RuntimeWarning, match=r"the step 0\.05 is too large for this drift") as caught:
        td.simulate(td.Langevin(field, dim=1), np.zeros((600, 1)), times, 0.05, rng=0, on_divergence="mark")
    assert len(caught) == 1


def test_where_paths_are_looked_at_changes_nothing() -> None:
    """The first block has stops on its way; it comes to the same bits, heat and all, as when it is another block."""
    process = td.Langevin(pulsed, diffusivity=lambda t: 1.0 + t, dim=1)
    given = {"times": [0.0, 0.37, 1.0], "dt": 1e-3, "rng": 0, "heat": True, "method": "heun"}
    runs = [td.simulate(process, np.zeros((600, 1)), chunk=chunk, **given) for chunk in (1, 3)]
    grid = Grid.of(given["times"], given["dt"], 1)
    task = Run(process, grid, process.mix(grid.middles), seed_words(0), RULES["heun"], True, False, None)
    plain, heats, _ = task.states(0, np.zeros((600, 1)), grid, task.mix)
    for path in runs:
        np.testing.assert_array_equal(path.states[:, :, 0], plain[:, 0, :600])
        np.testing.assert_array_equal(path.heat, heats[:, :600])


def test_whether_a_function_looks_at_the_time() -> None:
    for function, timed in (
        (lambda x, t: (-x[0],), False),
        (lambda x, t: (-x[0] * t,), True),
        (lambda x, s, t: (-x[0] * t,), False),
        (lambda x, s: (sum([v * s for v in x]),), True),
    ):
        assert td.drift(function).timed is timed
    assert td.drift(lambda x, t, out: None, fills=True).timed is False


def test_the_rate_of_a_linear_drift_is_that_of_its_fastest_mode() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(20, 5, 5))
    radii = np.abs(np.linalg.eigvals(matrices)).max(axis=1)
    assert np.all(_spectral_radius(matrices) >= radii)
    np.testing.assert_allclose(_spectral_radius(matrices), radii, rtol=0.15)
    process = td.Linear(matrices[0], diffusivity=0.3)
    assert step_rate(process, rng.normal(size=(8, 5)), 0.0, 0.01) == pytest.approx(0.01 * radii[0], rel=0.15)


def test_points_without_a_value_do_not_hide_the_others() -> None:
    process = td.Langevin(stiff_beside_a_large_one, dim=2)
    x = np.array([[np.nan, 0.0], [1.0, 1.0], [np.inf, 0.0]])
    assert step_rate(process, x, 0.0, 1e-2) == pytest.approx(10.0, rel=1e-6)
    assert step_rate(process, x[:1], 0.0, 1e-2) == 0.0


@pytest.mark.filterwarnings("ignore:the step")
def test_all_lost_paths_are_counted_whatever_the_tasks() -> None:
    process = td.Langevin(cube, diffusivity=0.5, dim=1)
    x0 = np.where(np.arange(3000) < 2000, 0.0, 3.0)[:, None]
    messages = set()
    for chunk in (None, 1, 5):
        with pytest.raises(DivergenceError) as caught:
            td.simulate(process, x0, 2.0, 0.01, rng=3, chunk=chunk)
        messages.add(str(caught.value))
    marked = td.simulate(process, x0, np.linspace(0.0, 2.0, 201), 0.01, rng=3, on_divergence="mark")
    lost = ~np.isfinite(marked.states).all(axis=(1, 2))
    first = marked.times[np.argmax(lost)]
    assert messages == {
        f"{marked.diverged.sum()} of 3000 paths left the finite numbers, the first at t = {first:.6g} "
        f'(key {marked.key[0]}, {marked.key[1]}); use a smaller dt, or on_divergence="mark" to go on without them.'
    }


@pytest.mark.filterwarnings("ignore:the step")
def test_the_first_time_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermodiff.integrate.simulate.MOST_RERUN", 2)
    x0 = np.where(np.arange(2000) < 1000, 2.0, 3.0)[:, None]
    with pytest.raises(DivergenceError, match=r"2000 of 2000 paths left .*, the first among paths 0 \.\.\. 511 at t = "):
        td.simulate(td.Langevin(cube, diffusivity=0.1, dim=1), x0, 2.0, 0.01, rng=3)


@pytest.mark.filterwarnings("ignore:the step")
@pytest.mark.parametrize(
    ("process", "message"),
    [
        (
            td.Langevin(cone, dim=2),
            r"the drift is not finite at the start of 3 of 5 paths, first of path 2, at x = \[0\. 0\.\]",
        ),
        (
            td.Langevin(cube, diffusivity=negative, dim=1),
            r"the diffusivity is negative at the start of 3 of 5 paths, first of",
        ),
    ],
)
def test_a_start_without_a_value_is_named(process: td.Langevin, message: str) -> None:
    x0 = np.where(np.arange(5)[:, None] < 2, 2.0, np.zeros(process.dim))
    with pytest.raises(DivergenceError, match=message):
        td.simulate(process, x0, 0.1, 0.01, rng=0)


def test_more_steps_than_can_be_counted() -> None:
    with pytest.raises(
        ValueError,
        match=r"dt = 1e-30 makes 1e\+30 steps of these times, more than the 17179869184 for which a path in d = 1",
    ):
        td.simulate(td.Langevin(cube, dim=1), np.zeros((1, 1)), 1.0, 1e-30)


@td.drift
def logarithm(x, t):
    return (-math.log(x[0]),)


@td.drift
def resting(x, t):
    return (0.0,)


@td.diffusivity
def within_one(x, t):
    return (1.0 - x[0] ** 2,)


@td.diffusivity
def proportional(x, t):
    return (x[0],)


LEVELS = np.array([1.0, 2.0])


@td.drift
def stairs(x, t):
    return (LEVELS[int(x[0])],)


@pytest.mark.parametrize(
    ("process", "what", "where"),
    [
        (td.Langevin(logarithm, diffusivity=0.5, dim=1), "the drift is not finite", lambda x: x < 0.0),
        (td.Langevin(stairs, diffusivity=0.1, dim=1), "the drift is not finite", lambda x: x >= 2.0),
        (td.Langevin(resting, diffusivity=within_one, dim=1), "the diffusivity is negative", lambda x: abs(x) > 1.0),
    ],
)
def test_a_function_without_a_value_on_the_way_is_named(process: td.Langevin, what: str, where) -> None:
    """With the place before the first loss: one where the function has none."""
    with pytest.raises(DivergenceError) as caught:
        td.simulate(process, np.full((300, 1), 0.5), 5.0, 0.01, rng=0)
    found = re.search(
        r't = (\S+) \(key .*; use a smaller dt, or on_divergence="mark" to go on without them\. Before, at '
        rf"x = \[(.*)\], t = (\S+), {what}: correct the function if paths may go there\.$",
        str(caught.value),
    )
    assert found is not None
    assert where(float(found.group(2)))
    assert float(found.group(1)) - float(found.group(3)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "process",
    [td.Langevin(logarithm, diffusivity=0.5, dim=1), td.Langevin(resting, diffusivity=proportional, dim=1)],
)
def test_a_stage_of_a_step_without_a_value_is_supposed(process: td.Langevin) -> None:
    """Heun's predictor goes where the states before and after it do not."""
    with pytest.raises(DivergenceError, match=r"See whether drift and diffusivity have values near x = \[0\.\d+\]: the log"):
        td.simulate(process, np.full((300, 1), 0.5), 5.0, 0.01, method="heun", rng=0)


@pytest.mark.filterwarnings("ignore:the step")
def test_paths_that_run_away_are_no_sign_of_a_function_without_a_value() -> None:
    """By Heun's rule an infinite slope less another is nan, as is a difference of two powers."""

    @td.drift
    def powers(x, t):
        return (x[0] ** 5 - x[0] ** 3,)

    for drift in (cube, powers):
        for method in ("euler", "heun"):
            with pytest.raises(DivergenceError, match=r"use a smaller dt, or on_divergence=.mark. to go on without them\.$"):
                td.simulate(
                    td.Langevin(drift, diffusivity=0.1, dim=1), np.full((3, 1), 2.0), 5.0, 0.01, method=method, rng=0
                )


@td.drift(fills=True)
def pushed(x, t, out):
    out[:] = 1.0


@td.drift(fills=True)
def coasting(x, t, out):
    half = out.size // 2
    out[:] = 0.0
    for i in range(half):
        out[i] = x[half + i]


@pytest.mark.parametrize("drift", [pushed, coasting])
def test_many_coordinates_whose_slope_is_constant(drift: td.fields.Drift) -> None:
    """The powers of their Jacobian end at zero, which is a rate too."""
    process = td.Langevin(drift, diffusivity=0.5, dim=80)
    assert step_rate(process, np.zeros((20, 80)), 0.0, 0.01) == 0.0
    assert np.isfinite(td.simulate(process, np.zeros((20, 80)), 0.1, 0.01, rng=0).final).all()
