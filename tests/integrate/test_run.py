"""The tasks of a run; what comes of them is in test_simulate, and of stretches in test_pieces."""

import pickle
from concurrent.futures import CancelledError

import numpy as np
import pytest
from user_dynamics import double_well

import thermodiff as td
from thermodiff._check import seed_words
from thermodiff.integrate import run
from thermodiff.integrate.grid import Grid
from thermodiff.integrate.run import Run, reduced_also
from thermodiff.kernels import langevin

PROCESSES = {
    "well": td.Langevin(double_well, (1.0,), 0.5, dim=1),
    "D(t)": td.Langevin(double_well, (1.0,), lambda t: 0.5 + t, dim=1),
    "D(x)": td.Langevin(double_well, (1.0,), td.diffusivity(lambda x, t: (0.5 + 0.1 * x[0] ** 2,)), dim=1),
    "ring": td.Langevin(double_well, (1.0,), 0.5, dim=1, boundaries={0: ("periodic", -1.0, 1.0)}),
    "mirrors": td.Langevin(double_well, (1.0,), 0.5, dim=1, boundaries={0: ("reflecting", -1.0, 1.0)}),
    "exact": td.Linear([[-1.0, 0.3, 0.0], [0.0, -2.0, 0.1], [0.0, 0.0, -1.0]], [0.3, 0.0, 0.0], 0.5),
}


def made(times, dt: float, reduce=None, diffusivity=0.5) -> Run:
    process, grid = td.Langevin(double_well, (1.0,), diffusivity, dim=1), Grid.of(times, dt, 1)
    mix = process.mix(grid.middles if callable(diffusivity) else grid.times[:1])
    return Run(process, grid, mix, seed_words(0), langevin.EULER, False, False, reduce)


@pytest.mark.parametrize("steps", [1, 7, 40, 1000])
@pytest.mark.parametrize("times", [1.0, [0.0, 0.31, 0.4, 1.0]])
def test_stretches_hold_all_steps_once(times, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STRETCH", 256 * steps)
    whole = made(times, 0.01, diffusivity=lambda t: 1.0 + t)
    stretches, rows = whole.stretches()
    total = int(whole.grid.counts.sum())
    assert len(stretches) == -(-total // steps)
    sizes = [int(stretch.grid.counts.sum()) for stretch in stretches]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    assert [stretch.step for stretch in stretches] == list(np.cumsum([0, *sizes[:-1]]))
    np.testing.assert_array_equal(np.concatenate([stretch.mix for stretch in stretches]), whole.mix)
    ends = np.concatenate([whole.grid.times[:1], *(stretch.grid.ends() for stretch in stretches)])
    np.testing.assert_allclose(ends[rows], whole.grid.times, rtol=1e-14)


def test_what_a_reducer_takes() -> None:
    class Works(td.Moments):
        def of(self, states, work):
            return work

    assert reduced_also(None) == reduced_also(td.Moments()) == ()
    assert reduced_also(Works()) == ("work",)


def test_a_task_survives_pickling() -> None:
    given = slice(0, 300), np.zeros((300, 1))
    for task in (made(0.1, 0.01), made(0.1, 0.01, td.Moments())):
        one, two = task(given), pickle.loads(pickle.dumps(task))(given)
        assert one.keys() == two.keys()
        np.testing.assert_array_equal(one["lost"], two["lost"])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_calls_of_a_kernel_end_anywhere(process: td.Langevin, monkeypatch: pytest.MonkeyPatch) -> None:
    """After how many steps depends on the time that they take, and no bit on that."""
    x0, times = np.random.default_rng(0).uniform(-0.9, 0.9, (600, process.dim)), [0.0, 0.02, 0.3, 0.31, 0.6]
    found = []
    for call, breath in ((2**40, 1.0), (1, 1e-9), (512 * 7, 1e-9), (512 * 3, 1e9)):
        monkeypatch.setattr(run, "CALL", call)
        monkeypatch.setattr(run, "BREATH", breath)
        found.append(td.simulate(process, x0, times, 0.01, rng=3).states)
    for states in found[1:]:
        np.testing.assert_array_equal(states, found[0])


def test_a_task_stops_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def pause() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise CancelledError

    monkeypatch.setattr(run, "CALL", 256)
    monkeypatch.setattr(run, "BREATH", 1e-9)
    monkeypatch.setattr(run, "pause", pause)
    with pytest.raises(CancelledError):
        made(1.0, 0.01)((slice(256, 300), np.zeros((44, 1))))
    assert len(calls) == 4


@td.drift
def swept(x, t):
    return (0.75 if x[1] == 1.0 else 0.5, -0.1)


def test_a_path_on_the_end_of_a_ring_stays_there_where_a_run_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may carry it to the upper end exactly; wrapped once more it would be at the lower one."""
    process = td.Langevin(swept, diffusivity=0.0, dim=2, boundaries={1: ("periodic", 0.0, 1.0)})
    whole = td.simulate(process, [[0.0, 0.3]], [0.0, 5.0], 1.0, rng=0, method="euler").final
    monkeypatch.setattr(run, "CALL", 1)
    monkeypatch.setattr(run, "BREATH", 1e-9)
    np.testing.assert_array_equal(td.simulate(process, [[0.0, 0.3]], [0.0, 5.0], 1.0, rng=0, method="euler").final, whole)
