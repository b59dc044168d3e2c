"""Work of a protocol: closed laws, Jarzynski's equality, and the same bits however a run is made."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats
from user_dynamics import dragged

import thermodiff as td
from thermodiff.kernels.jit import LANES

K, U, D, END = 2.0, 0.5, 0.5, 2.0
DRAGGED = td.Langevin(dragged, (K, U), D, dim=1)
MEAN = U**2 * (END - (1.0 - np.exp(-K * END)) / K)
"""Mean work on the dragged trap; the law is normal with variance 2 D MEAN."""


@td.potential
def breathing(x, t, rate):
    return 0.5 * (1.0 + rate * t) * (x[0] ** 2 + x[1] ** 2)


@td.potential
def lifted(x, t, when):
    return 0.5 * x[0] ** 2 + (1.0 if t >= when else 0.0)


def in_equilibrium(n: int, stiffness: float, dim: int) -> np.ndarray:
    return np.sqrt(D / stiffness) * np.random.default_rng(n).standard_normal((n, dim))


@pytest.fixture(scope="module")
def work_of_dragging() -> np.ndarray:
    n = 200_000
    return td.simulate(DRAGGED, in_equilibrium(n, K, 1), END, 0.01, method="heun", rng=1, work=True).work[-1]


def jarzynski_z(work: np.ndarray, gained: float) -> float:
    """Standard errors between the mean of exp(-W/D) and exp(-dF/D)."""
    weight = np.exp(-work / D)
    return (weight.mean() - np.exp(-gained / D)) / (weight.std() / np.sqrt(weight.size))


def test_work_on_a_dragged_trap_is_normal_with_known_mean_and_variance(work_of_dragging: np.ndarray) -> None:
    work, variance = work_of_dragging, 2.0 * D * MEAN
    n = work.size
    assert abs(work.mean() - MEAN) < 4.0 * np.sqrt(variance / n)
    assert abs(work.var() / variance - 1.0) < 4.0 * np.sqrt(2.0 / n)
    assert stats.kstest(work, stats.norm(MEAN, np.sqrt(variance)).cdf).pvalue > 1e-4


def test_jarzynski_for_a_dragged_trap(work_of_dragging: np.ndarray) -> None:
    """Its free energy does not change; five per cent less work would be seen."""
    assert abs(jarzynski_z(work_of_dragging, 0.0)) < 4.0
    assert abs(jarzynski_z(0.95 * work_of_dragging, 0.0)) > 6.0


def test_jarzynski_and_mean_work_of_a_breathing_trap() -> None:
    """dF = D ln(k_T / k_0) in two dimensions; at this step the middles of the steps would miss the mean by 18 errors."""
    n, rate, dt = 200_000, 3.0, 0.02
    path = td.simulate(
        td.Langevin(breathing, (rate,), D, dim=2), in_equilibrium(n, 1.0, 2), 1.0, dt, method="heun", rng=2, work=True
    )
    work, gained = path.work[-1], D * np.log(1.0 + rate)
    assert abs(jarzynski_z(work, gained)) < 4.0
    # Variance s of each coordinate: s' = 2 D - 2 k s; mean work per unit time k' s.
    found = integrate.solve_ivp(
        lambda t, y: [2.0 * D - 2.0 * (1.0 + rate * t) * y[0], rate * y[0]], (0, 1), [D, 0.0], rtol=1e-10
    )
    error = work.std() / np.sqrt(n)
    assert abs(work.mean() - found.y[1, -1]) < 4.0 * error
    # What the rule of the middle leaves out: (D h / 4) times the change of the stiffness, in each coordinate.
    assert 2.0 * D * dt / 4.0 * rate > 8.0 * error
    assert work.mean() > gained + 8.0 * error


def test_work_is_kept_at_the_asked_times() -> None:
    path = td.simulate(DRAGGED, in_equilibrium(300, K, 1), [0.0, 0.5, END], 0.01, rng=3, heat=True, work=True)
    assert path.work.shape == path.heat.shape == (3, 300)
    assert np.all(path.work[0] == 0.0)
    energy = 0.5 * K * (path.states[..., 0] - U * path.times[:, None]) ** 2
    np.testing.assert_allclose(path.work - path.heat, energy - energy[0], rtol=0.0, atol=1e-12)
    np.testing.assert_array_equal(path.work[1], td.simulate(DRAGGED, path.states[0], 0.5, 0.01, rng=3, work=True).work[1])


def same(one: td.Path, two: td.Path) -> None:
    for name in ("states", "heat", "work"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


N = 5 * LANES + 40
GIVEN = {"times": [0.0, 0.1, 0.3], "dt": 0.02, "rng": 5, "heat": True, "work": True}
X0 = in_equilibrium(N, K, 1)


@pytest.fixture(scope="module")
def whole() -> td.Path:
    return td.simulate(DRAGGED, X0, **GIVEN)


def test_work_changes_nothing_else(whole: td.Path) -> None:
    plain = td.simulate(DRAGGED, X0, **GIVEN | {"heat": False, "work": False})
    np.testing.assert_array_equal(plain.states, whole.states)
    assert plain.work is None


def test_the_same_bits_for_any_executor_and_chunk(whole: td.Path) -> None:
    for chunk in (1, 3, 1000):
        same(whole, td.simulate(DRAGGED, X0, chunk=chunk, **GIVEN))
    with ThreadPoolExecutor(2) as executor:
        same(whole, td.simulate(DRAGGED, X0, chunk=2, executor=executor, **GIVEN))
    local = td.Langevin(td.potential(lambda x, t: 0.5 * K * (x[0] - U * t) ** 2), (), D, dim=1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        same(whole, td.simulate(DRAGGED, X0, chunk=2, executor=executor, **GIVEN))
        same(td.simulate(local, X0, **GIVEN), td.simulate(local, X0, chunk=2, executor=executor, **GIVEN))


class Stop(Exception):
    pass


def test_work_goes_through_checkpoints_and_files(whole: td.Path, tmp_path: Path) -> None:
    def stop(done: int, tasks: int) -> None:
        if done == 3:
            raise Stop

    given = GIVEN | {"chunk": 1, "checkpoint": tmp_path / "run"}
    with pytest.raises(Stop):
        td.simulate(DRAGGED, X0, progress=stop, **given)
    same(whole, td.simulate(DRAGGED, X0, out=tmp_path / "states.npy", **given))
    with pytest.raises(ValueError, match=r"holds another run \(it differs in work\)"):
        td.simulate(DRAGGED, X0, **given | {"work": False})


def test_work_beside_a_reducer_and_on_a_lost_path(whole: td.Path) -> None:
    path = td.simulate(DRAGGED, X0, reduce=td.Moments(), **GIVEN)
    assert path.states is None
    np.testing.assert_array_equal(path.work, whole.work)
    marked = td.simulate(DRAGGED, X0, on_divergence="mark", **GIVEN)
    assert not marked.diverged.any()
    same(whole, marked)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize(
    ("times", "dt"), [(1.0, 0.01), ([0.0, 0.1, 1.0], 0.01), ([0.1, 1.1, 2.0], 0.02), ([0.0, 0.7, 2.1], 0.007)]
)
def test_a_jump_in_time_is_met_once_wherever_it_is(times, dt: float, method: str) -> None:
    """Also at the edges of steps as they are rounded by whoever writes them down, and where a run is cut to be looked at."""
    ends = np.atleast_1d(times)
    edges = np.arange(round((ends[-1] - (ends[0] if ends.size > 1 else 0.0)) / dt))[1:] * dt
    edges += ends[0] if ends.size > 1 else 0.0
    for when in np.concatenate([edges, np.round(edges, 3), np.nextafter(edges, 9.0)])[::3]:
        path = td.simulate(td.Langevin(lifted, (when,), D, dim=1), [[0.5]], times, dt, method=method, rng=0, work=True)
        assert abs(path.work[-1, 0] - 1.0) < 1e-12, when
