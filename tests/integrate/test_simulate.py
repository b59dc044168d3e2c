"""`simulate`: what is kept, the same bits everywhere, and its complaints.  Running on and dying: test_simulate_runs."""

import math
import multiprocessing
import re
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats
from user_dynamics import closure, double_well, lengthening, swirl, warm

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.integrate.grid import Grid
from thermodiff.kernels import philox
from thermodiff.kernels.jit import LANES

WELL = td.Langevin(double_well, (1.0,), 0.5, dim=1)
VORTEX = td.Langevin(swirl, (1.0, 2.0), warm, diffusivity_params=(0.4,), dim=2, interpretation="isothermal")


def starts(n: int, dim: int = 1) -> np.ndarray:
    return 0.5 * np.random.default_rng(n).standard_normal((n, dim))


def still(dim: int):
    zeros = (0.0,) * dim
    return td.drift(lambda x, t: zeros)


def test_states_are_kept_at_the_asked_times_only() -> None:
    x0 = starts(300, 2)
    path = td.simulate(VORTEX, x0, [0.5, 0.6, 1.5], 0.1, rng=0)
    assert path.states.shape == (3, 300, 2)
    np.testing.assert_array_equal(path.times, [0.5, 0.6, 1.5])
    np.testing.assert_array_equal(path.states[0], x0)
    assert (path.heat, path.work, path.reduced, path.diverged, path.lam) == (None,) * 5
    assert path.key == tuple(np.random.SeedSequence(0).generate_state(2).tolist())


def test_a_number_is_the_end_of_an_interval_from_zero() -> None:
    one, two = (td.simulate(WELL, starts(10), times, 0.01, rng=1) for times in (0.3, [0.0, 0.3]))
    np.testing.assert_array_equal(one.states, two.states)
    np.testing.assert_array_equal(one.times, [0.0, 0.3])


@pytest.mark.parametrize(
    ("times", "dt", "counts"),
    [
        ([0.0, 1.0], 0.1, [10]),
        ([0.0, 0.3, 0.35, 1.0], 0.1, [3, 1, 7]),
        ([0.0, 1.0], 0.3, [4]),
        ([0.0, 1.0], 5.0, [1]),
        ([0.0, 1.0, 2.0], 1.0 / 3.0, [3, 3]),
        ([-1.0, 0.0], 1e-3, [1000]),
        ([0.0, 1.0 + 5e-10], 1.0, [1]),
        ([0.0, 1.0 + 5e-9], 1.0, [2]),
    ],
)
def test_each_interval_is_split_evenly(times, dt: float, counts: list[int]) -> None:
    """ceil(interval / dt - 1e-9) steps."""
    grid = Grid.of(times, dt, 1)
    assert grid.counts.tolist() == counts
    np.testing.assert_allclose(grid.widths * counts, np.diff(times), rtol=1e-15)
    first = times[0] + grid.widths[0] * (np.arange(counts[0]) + 0.5)
    np.testing.assert_allclose(grid.middles[: counts[0]], first, rtol=1e-15, atol=1e-15)
    assert grid.middles.size == sum(counts)


def test_steps_are_taken_as_counted() -> None:
    """Without drift: the sum of the documented normals, with the width of each step."""
    x0 = np.zeros((LANES, 2))
    path = td.simulate(td.Langevin(still(2), diffusivity=0.5, dim=2), x0, [0.0, 0.25, 1.0], 0.1, rng=3)
    key, position, normal = np.array(path.key, dtype=np.uint32), np.zeros((2, LANES)), np.empty((2, LANES))
    for step, width in enumerate([0.25 / 3.0] * 3 + [0.75 / 8.0] * 8):
        philox.noise(key, 0, 1, step, philox.PATH, normal)
        position += np.sqrt(width) * normal
        if step == 2:
            np.testing.assert_allclose(path.states[1].T, position, rtol=0.0, atol=1e-14)
    np.testing.assert_allclose(path.states[2].T, position, rtol=0.0, atol=1e-14)


def same(one: td.Path, two: td.Path) -> None:
    assert one.key == two.key
    np.testing.assert_array_equal(one.states, two.states)
    if one.heat is not None:
        np.testing.assert_array_equal(one.heat, two.heat)


@pytest.mark.filterwarnings("ignore:heat=True integrates the drift:RuntimeWarning")
@pytest.mark.parametrize("process", [WELL, VORTEX], ids=["additive", "state"])
def test_the_same_bits_for_any_threads_and_chunk(process) -> None:
    given = {"times": [0.0, 0.1, 0.5], "dt": 0.02, "rng": 5, "heat": True}
    x0 = starts(10 * LANES + 17, process.dim)
    reference = td.simulate(process, x0, **given)
    for chunk in (1, 3, 11, 1000):
        same(reference, td.simulate(process, x0, chunk=chunk, **given))
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as executor:
            same(reference, td.simulate(process, x0, chunk=2, executor=executor, **given))


def test_a_path_does_not_depend_on_the_others() -> None:
    x0 = starts(1000)
    many, few = (td.simulate(WELL, x0[:n], 0.5, 0.02, rng=6) for n in (1000, 300))
    np.testing.assert_array_equal(many.states[:, :300], few.states)


def test_the_rng_fixes_the_noise() -> None:
    x0 = starts(20)
    one = td.simulate(WELL, x0, 0.5, 0.05, rng=7)
    same(one, td.simulate(WELL, x0, 0.5, 0.05, rng=np.random.SeedSequence(7)))
    other = td.simulate(WELL, x0, 0.5, 0.05, rng=8)
    assert not np.any(one.states[1] == other.states[1])


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_same_bits_in_processes(how: str) -> None:
    """Drifts and diffusivities of an importable module, of a function, and of this file."""
    if how not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {how} here")
    local = closure(0.5)
    shift = 2.0
    processes = [
        VORTEX,
        td.Langevin(local, dim=2, diffusivity=lengthening),
        td.Langevin(local, dim=2, diffusivity=lambda t: shift + math.sin(t)),
    ]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(how)) as executor:
        for process in processes:
            given = {"times": [0.0, 0.1, 0.2], "dt": 0.02, "rng": 9, "chunk": 1}
            x0 = starts(4 * LANES + 5, 2)
            same(td.simulate(process, x0, **given), td.simulate(process, x0, executor=executor, **given))


def test_heat_is_kept_at_the_asked_times() -> None:
    trap = td.Langevin(td.potential(lambda x, t: x[0] ** 2), dim=1)
    path = td.simulate(trap, starts(300), [0.0, 0.5, 1.0], 0.1, rng=1, heat=True)
    np.testing.assert_allclose(path.heat, path.states[0, :, 0] ** 2 - path.states[:, :, 0] ** 2, rtol=1e-12, atol=1e-12)
    assert np.any(path.heat[1] != path.heat[2])


def test_the_default_rules() -> None:
    x0 = starts(10)
    same(td.simulate(WELL, x0, 0.5, 0.1, rng=1), td.simulate(WELL, x0, 0.5, 0.1, rng=1, method="euler"))
    calm = td.Langevin(double_well, (1.0,), 0.0, dim=1)
    found = td.simulate(calm, x0, 0.5, 0.1)
    assert found.key is None
    np.testing.assert_array_equal(found.states, td.simulate(calm, x0, 0.5, 0.1, method="rk4").states)
    for method, same_as in (("milstein", "euler"), ("weak2", "heun")):
        one, two = (td.simulate(WELL, x0, 0.5, 0.1, rng=1, method=name) for name in (method, same_as))
        same(one, two)


def exploding(at: float):
    """x' = 1 / (at - t) leaves the finite numbers at the first step that begins after ``at``, for x > 0."""

    @td.drift
    def explosive(x, t, after):
        return (math.inf if t > after and x[0] > 0.0 else 0.0,)

    return td.Langevin(explosive, (at,), 0.0, dim=1)


@pytest.mark.parametrize(("after", "first"), [(0.305, 0.32), (0.0, 0.02), (2.985, 3.0), (2.705, 2.72)])
def test_the_first_time_of_a_divergence_is_exact_to_a_step(after: float, first: float) -> None:
    """Across asked times; a step that begins after ``after`` is the first to be lost."""
    x0 = np.where(np.arange(700) % 100 == 50, 1.0, -1.0)[:, None]
    with pytest.raises(DivergenceError) as caught:
        td.simulate(exploding(after), x0, [0.0, 0.5, 3.0], 0.01, method="euler")
    message = re.fullmatch(
        r"7 of 700 paths left the finite numbers, the first at t = (\S+) \(key \d+, \d+\); use a smaller dt, or "
        r'on_divergence="mark" to go on without them\.',
        str(caught.value),
    )
    assert message is not None
    assert float(message.group(1)) == pytest.approx(first, abs=1e-9)


def test_the_first_time_of_a_divergence_with_noise() -> None:
    """Found again from the key, also beyond 256 steps and not from the lanes that only fill a block."""

    @td.drift
    def cliff(x, t):
        return (math.inf if x[0] > 4.0 else 0.0,)

    process = td.Langevin(cliff, dim=1, diffusivity=0.5)
    times = 0.01 * np.arange(1001)
    dense = td.simulate(process, np.zeros((3, 1)), times, 0.01, rng=4, on_divergence="mark")
    bad = ~np.isfinite(dense.states).all(axis=(1, 2))
    assert 257 < np.argmax(bad) < 1001
    with pytest.raises(DivergenceError, match=f"first at t = {times[np.argmax(bad)]:.6g} "):
        td.simulate(process, np.zeros((3, 1)), 10.0, 0.01, rng=4)


def test_lost_paths_are_marked_and_left_out_of_statistics() -> None:
    x0 = np.where(np.arange(700) % 100 == 50, 1.0, -1.0)[:, None]
    path = td.simulate(exploding(0.5), x0, 1.0, 0.01, method="euler", on_divergence="mark")
    np.testing.assert_array_equal(path.diverged, x0[:, 0] > 0.0)
    np.testing.assert_array_equal(path.states[-1, ~path.diverged], x0[~path.diverged])
    kept = td.simulate(exploding(0.5), x0, 1.0, 0.01, method="euler", on_divergence="mark", reduce=td.Moments()).reduced
    assert kept["n"] == 693
    np.testing.assert_array_equal(kept["mean"], [[-1.0], [-1.0]])
    none = td.simulate(exploding(0.5), abs(x0), 1.0, 0.01, method="euler", on_divergence="mark", reduce=td.Moments())
    assert none.reduced is None


@pytest.mark.parametrize("start", [1.0, 0.0], ids=["moving", "resting at first"])
def test_a_step_that_is_too_large_is_warned_about(start: float) -> None:
    @td.drift
    def stiff(x, t, k):
        return (-k * x[0],)

    x0 = np.full((1000, 1), start)
    process = td.Langevin(stiff, (100.0,), dim=1)
    with pytest.warns(RuntimeWarning, match="the step 0.015 is too large for this drift: two half steps differ") as caught:
        td.simulate(process, x0, 0.15, 0.015, rng=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        td.simulate(process, x0, 0.1, 0.005, rng=0)
        td.simulate(process.with_params(0.0), x0, 0.1, 0.1, rng=0)


class Full:
    shape, dtype = (2, 3, 1), np.dtype(np.int64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"process": 3.0}, TypeError, "it needs a Langevin process, got float"),
        ({"x0": [1.0]}, ValueError, "x0 must have shape (n, d), got (1,)"),
        ({"x0": [[1.0, 2.0]]}, ValueError, "x0 must have shape (n, 1), got (1, 2)"),
        ({"x0": [[math.nan]]}, ValueError, "x0 holds 1 values that are nan or infinite"),
        ({"x0": np.zeros((0, 1))}, ValueError, "x0 is empty"),
        ({"times": [0.0]}, ValueError, "times must be at least two finite, increasing numbers, got [0.0]"),
        ({"times": [0.0, 0.0]}, ValueError, "times must be at least two finite, increasing"),
        ({"times": [1.0, 0.0]}, ValueError, "times must be at least two finite, increasing"),
        ({"times": -1.0}, ValueError, "times: a number t means [0, t] and must be positive, got -1.0"),
        ({"times": [0.0, math.inf]}, ValueError, "times must be at least two finite, increasing"),
        ({"times": "soon"}, ValueError, "times must be at least two finite, increasing numbers, got 'soon'"),
        ({"times": [[0.0, 1.0]]}, ValueError, "times must be at least two finite, increasing"),
        ({"dt": 0.0}, ValueError, "dt must be positive, got 0; it is the longest step"),
        ({"dt": math.nan}, ValueError, "dt must be finite"),
        ({"dt": "x"}, TypeError, "dt must be a number"),
        ({"method": "rk5"}, ValueError, "method='rk5' is unknown; choose one of 'euler', 'heun'"),
        ({"method": "rk4"}, ValueError, 'method="rk4" is for dynamics without noise'),
        ({"on_divergence": "stop"}, ValueError, "on_divergence='stop' is unknown; choose one of 'raise', 'mark'"),
        (
            {"work": True},
            ValueError,
            "Langevin(Drift(double_well(x, t, height)), dim=1) has no energy: write its force as a",
        ),
        ({"process": td.Linear([[-1.0]]), "work": True}, ValueError, "Linear(d = 1) has no energy: write its force as a po"),
        ({"progress": True}, TypeError, "progress must be a function (done, total), False or None, got True"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"rng": -1}, TypeError, "rng must be a non-negative integer"),
        (
            {"out": "states.txt"},
            ValueError,
            "out must be a .npy file, a .zarr store or an array that takes slices, got 'states.txt'",
        ),
        ({"out": np.zeros((2, 3))}, ValueError, "out must have shape (2, 3, 1), got (2, 3)"),
        ({"out": Full()}, TypeError, "out must hold floating-point numbers, got int64"),
        ({"out": 5}, ValueError, "out must have shape (2, 3, 1), got None"),
        ({"out": "x.npy", "reduce": td.Moments()}, ValueError, "out= keeps the states and reduce= does not"),
    ],
)
def test_refusals(changes: dict, error, message: str) -> None:
    given = {"process": WELL, "x0": np.zeros((3, 1)), "times": 1.0, "dt": 0.1, "rng": 0} | changes
    with pytest.raises(error, match=re.escape(message)):
        td.simulate(given.pop("process"), given.pop("x0"), given.pop("times"), given.pop("dt"), **given)


def normals_as_used(n: int) -> np.ndarray:
    """One step without drift, D = 1/2, dt = 1: the final state is the normal itself."""
    return td.simulate(td.Langevin(still(1), diffusivity=0.5, dim=1), np.zeros((n, 1)), 1.0, 1.0, rng=10).states[1, :, 0]


def normality_failures(z: np.ndarray) -> list[str]:
    failures = [] if np.count_nonzero(z == 0.0) == 0 else ["zeros"]
    if stats.kstest(z, "norm").pvalue < 1e-4:
        failures.append("ks")
    for name, power, mean, variance in (
        ("mean", 1, 0.0, 1.0), ("variance", 2, 1.0, 2.0), ("skewness", 3, 0.0, 15.0), ("kurtosis", 4, 3.0, 96.0),
    ):  # fmt: skip
        if abs(np.mean(z**power) - mean) > 4.0 * np.sqrt(variance / z.size):
            failures.append(name)
    return failures


@pytest.mark.parametrize("n", [10**6, pytest.param(10**7, marks=pytest.mark.slow)])
def test_normals_as_used(n: int) -> None:
    z = normals_as_used(n)
    assert normality_failures(z) == []
    assert np.abs(z).max() < 6.8
    z[::2] = 0.0
    assert {"zeros", "ks", "kurtosis"} <= set(normality_failures(np.sqrt(2.0) * z))


@td.drift
def tumbling(x, t):
    return x[1], -x[0] - x[1]


@td.diffusivity
def crossed(x, t):
    return 1.0, 1.0 + x[0] ** 2


@td.diffusivity
def separate(x, t):
    return 1.0 + x[0] ** 2, 1.0 + x[1] ** 2


@pytest.mark.parametrize("method", ["milstein", "weak2"])
def test_rules_for_noise_of_each_coordinate_refuse_other_noise(method: str) -> None:
    given = {"x0": np.zeros((4, 2)), "times": 0.1, "dt": 0.05, "rng": 0, "method": method}
    with pytest.raises(ValueError, match=f'method="{method}" is for a .* here D_1 changes with x_0; use "heun" or "euler"'):
        td.simulate(td.Langevin(tumbling, diffusivity=crossed, dim=2), **given)
    assert np.isfinite(td.simulate(td.Langevin(tumbling, diffusivity=separate, dim=2), **given).final).all()


def test_heat_without_a_bath_is_warned_of() -> None:
    """Underdamped dynamics: the integral of f . dx is not what the bath gets."""
    given = {"x0": np.zeros((4, 2)), "times": 0.1, "dt": 0.05, "rng": 0, "heat": True}
    with pytest.warns(RuntimeWarning, match=r"overdamped particle \(mobility 1\), and coordinates 0 have no noise"):
        td.simulate(td.Langevin(tumbling, diffusivity=(0.0, 1.0), dim=2), **given)
    for level in (1.0, 0.0, np.eye(2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            td.simulate(td.Langevin(tumbling, diffusivity=level, dim=2), **given)


def test_heat_of_a_mobility_is_warned_of() -> None:
    given = {"x0": np.zeros((4, 2)), "times": 0.1, "dt": 0.05, "rng": 0, "heat": True}
    meant = {way: td.Langevin(tumbling, diffusivity=separate, dim=2, interpretation=way) for way in ("isothermal", "ito")}
    with pytest.warns(RuntimeWarning, match=r"an isothermal D\(x\) is a mobility"):
        td.simulate(meant["isothermal"], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        td.simulate(meant["ito"], **given)


def test_where_exact_steps_end_no_smaller_step_is_advised() -> None:
    with pytest.raises(DivergenceError, match=r"ask for earlier times"):
        td.simulate(td.Linear([[600.0]], diffusivity=0.0), [[1e200]], [0.0, 0.5, 1.0, 1.5], 0.5)


def test_late_times_take_no_more_steps() -> None:
    """The differences of late times are off by the rounding of the times."""
    for start in (1e7, 1e9, -1e9):
        assert Grid.of(start + 0.1 * np.arange(11), 0.1, 1).counts.tolist() == [1] * 10
    assert Grid.of([0.0, 0.1, 0.25], 0.1, 1).counts.tolist() == [1, 2]


TABLE = np.linspace(1.0, 2.0, 10)


@td.potential
def scheduled(x, t):
    return 0.5 * TABLE[int(10.0 * t + 1e-9)] * x[0] ** 2


def test_work_without_a_value_marks_its_path() -> None:
    """At the end of the last step the table has no entry."""
    given = {"x0": np.zeros((300, 1)), "times": 1.0, "dt": 0.1, "rng": 0, "method": "euler", "work": True}
    path = td.simulate(td.Langevin(scheduled, dim=1, diffusivity=0.5), on_divergence="mark", **given)
    assert np.isnan(path.work[-1]).all()
    assert path.diverged.all()
