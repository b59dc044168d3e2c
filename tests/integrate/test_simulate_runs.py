"""Runs of `simulate` that write as they go, die and go on: files, checkpoints, killed workers, memory."""

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from user_dynamics import closure, double_well, dragged

import thermodiff as td
from thermodiff.kernels.jit import LANES

WELL = td.Langevin(double_well, (1.0,), 0.5, dim=1)
N = 6 * LANES + 30
X0 = 0.5 * np.random.default_rng(0).standard_normal((N, 1))
GIVEN = {"times": [0.0, 0.1, 0.3], "dt": 0.02, "rng": 5, "chunk": 1, "heat": True}


@pytest.fixture(scope="module")
def whole() -> td.Path:
    return td.simulate(WELL, X0, **GIVEN)


def same(one: td.Path, two: td.Path) -> None:
    assert one.key == two.key
    np.testing.assert_array_equal(one.states, two.states)
    np.testing.assert_array_equal(one.heat, two.heat)


class Stop(Exception):
    pass


def stop_at(task: int):
    def progress(done: int, tasks: int) -> None:
        if done == task:
            raise Stop

    return progress


def test_progress_counts_the_tasks() -> None:
    seen = []
    td.simulate(WELL, X0, progress=lambda done, tasks: seen.append((done, tasks)), **GIVEN)
    assert seen == [(k, 7) for k in range(1, 8)]


def test_a_small_ensemble_of_long_paths_is_dealt_out_block_by_block() -> None:
    seen = []
    td.simulate(WELL, X0, 10.0, 1e-3, rng=0, progress=lambda done, tasks: seen.append((done, tasks)))
    assert seen == [(k, 7) for k in range(1, 8)]


def test_states_written_to_a_file(whole: td.Path, tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "states.npy"
    path = td.simulate(WELL, X0, out=target, **GIVEN)
    assert os.listdir(target.parent) == ["states.npy"]
    assert isinstance(path.states, np.memmap)
    same(path, whole)
    np.testing.assert_array_equal(np.load(target), whole.states)


def test_half_a_file_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        td.simulate(WELL, X0, out=tmp_path / "states.npy", progress=stop_at(3), **GIVEN)
    assert os.listdir(tmp_path) == []


def test_a_file_of_before_stays_when_a_run_fails(whole: td.Path, tmp_path: Path) -> None:
    td.simulate(WELL, X0, out=str(tmp_path / "states.npy"), **GIVEN)
    with pytest.raises(Stop):
        td.simulate(WELL, X0 + 1.0, out=tmp_path / "states.npy", progress=stop_at(3), **GIVEN)
    np.testing.assert_array_equal(np.load(tmp_path / "states.npy"), whole.states)


def test_states_written_to_an_array(whole: td.Path) -> None:
    """What takes slices will do: an object that is not an array, and one of less precision."""

    class Store:
        def __init__(self) -> None:
            self.inside = np.full((3, N, 1), np.nan)
            self.shape, self.dtype = self.inside.shape, self.inside.dtype

        def __setitem__(self, where, values) -> None:
            assert where[0] == slice(None)
            self.inside[where] = values

    store, single = Store(), np.zeros((3, N, 1), dtype=np.float32)
    assert td.simulate(WELL, X0, out=store, **GIVEN).states is store
    np.testing.assert_array_equal(store.inside, whole.states)
    td.simulate(WELL, X0, out=single, **GIVEN)
    np.testing.assert_array_equal(single, whole.states.astype(np.float32))


@pytest.mark.parametrize("seed", [5, None])
def test_a_run_that_died_goes_on_to_the_same_bits(seed: int | None, tmp_path: Path) -> None:
    given = GIVEN | {"rng": seed}
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(4), **given)
    chunks = sorted(file.name for file in tmp_path.glob("chunk-*.npz"))
    assert chunks == [f"chunk-{k:07d}.npz" for k in range(4)]
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in chunks}
    path = td.simulate(WELL, X0, checkpoint=tmp_path, **given)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in chunks} == before
    words = (
        np.random.SeedSequence(5).generate_state(2) if seed == 5 else json.loads((tmp_path / "run.json").read_text())["key"]
    )
    assert path.key == tuple(int(word) for word in words)
    # And again, from chunks alone; with a hole in them; and on other workers.
    same(td.simulate(WELL, X0, checkpoint=tmp_path, **given), path)
    (tmp_path / "chunk-0000002.npz").unlink()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        same(td.simulate(WELL, X0, checkpoint=tmp_path, executor=executor, **given), path)


def test_the_checkpoint_of_a_seeded_run_has_its_bits(whole: td.Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(2), **GIVEN)
    same(td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN), whole)


class Extremes:
    """Least and largest state at each time, and the mean of all, as a nested value."""

    def of(self, states):
        return {"ends": [states.min(axis=1), states.max(axis=1)], "sum": (states.shape[1], states.sum(axis=1))}

    def merge(self, one, two):
        ends = [np.minimum(one["ends"][0], two["ends"][0]), np.maximum(one["ends"][1], two["ends"][1])]
        return {"ends": ends, "sum": (one["sum"][0] + two["sum"][0], one["sum"][1] + two["sum"][1])}

    def result(self, total):
        return [*total["ends"], total["sum"][1] / total["sum"][0]]


@pytest.mark.parametrize("also", [{}, {"heat": True}])
@pytest.mark.parametrize("damage", ["none", "chunk", "total"])
def test_statistics_go_on_to_the_same_bits(also: dict, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermodiff.integrate.checkpoint.PATIENCE", 0.0)
    given = GIVEN | {"heat": False, "reduce": Extremes()} | also
    whole = td.simulate(WELL, X0, **given)
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(4), **given)
    heats = [f"chunk-{k:07d}.npz" for k in range(4)] if also else []
    assert sorted(file.name for file in tmp_path.iterdir()) == [*heats, "run.json", "total.npz"]
    warned = damage == "total" or (damage == "chunk" and also)
    if damage != "none" and warned:
        file = tmp_path / ("total.npz" if damage == "total" else "chunk-0000001.npz")
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="computed again") if warned else contextlib.nullcontext():
        path = td.simulate(WELL, X0, checkpoint=tmp_path, **given)
    for _ in range(2):
        for one, two in zip(path.reduced, whole.reduced, strict=True):
            np.testing.assert_array_equal(one, two)
        if also:
            np.testing.assert_array_equal(path.heat, whole.heat)
        # And again, from what is on the disk alone.
        path = td.simulate(WELL, X0, checkpoint=tmp_path, **given)
    with pytest.raises(ValueError, match=r"holds another run \(it differs in reduce\)"):
        td.simulate(WELL, X0, checkpoint=tmp_path, **given | {"reduce": td.Moments()})


class MeanExponential:
    """Of minus the work at each time, with the heat's mean: Jarzynski's average over more paths than are kept."""

    def of(self, states, work, heat):
        assert work.shape == heat.shape == states.shape[:2]
        return np.array([np.exp(-work).sum(axis=1), heat.sum(axis=1), np.full(len(work), work.shape[1])])

    def merge(self, one, two):
        return one + two

    def result(self, total):
        return total[:2] / total[2]


def test_reducers_may_take_heat_and_work(tmp_path: Path) -> None:
    process = td.Langevin(dragged, (2.0, 0.7), 0.5, dim=1)
    given = {"x0": X0, "times": [0.0, 0.4, 1.0], "dt": 0.02, "rng": 5, "heat": True, "work": True, "chunk": 2}
    path = td.simulate(process, **given)
    found = td.simulate(process, reduce=MeanExponential(), checkpoint=tmp_path, **given)
    assert found.heat is None
    assert found.work is None
    np.testing.assert_allclose(found.reduced, [np.exp(-path.work).mean(axis=1), path.heat.mean(axis=1)], rtol=1e-12)
    assert not list(tmp_path.glob("chunk-*"))
    again = td.simulate(process, reduce=MeanExponential(), **given | {"chunk": 1})
    np.testing.assert_array_equal(again.reduced, found.reduced)
    with pytest.raises(ValueError, match="the reducer's `of` takes heat; pass heat=True"):
        td.simulate(process, reduce=MeanExponential(), **given | {"heat": False})


CELL = """
class Squares:
    def of(self, states):
        return (states**2).sum(axis=1)
    def merge(self, one, two):
        return one + two
    def result(self, total):
        return total
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_reducer_of_a_notebook_goes_to_processes(how: str) -> None:
    cell = {"__name__": "__main__"}
    exec(CELL, cell)
    whole = td.simulate(WELL, X0, reduce=cell["Squares"](), times=0.1, dt=0.02, rng=5)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(how)) as executor:
        path = td.simulate(WELL, X0, reduce=cell["Squares"](), times=0.1, dt=0.02, rng=5, executor=executor, chunk=2)
    np.testing.assert_array_equal(path.reduced, whole.reduced)


def test_a_damaged_chunk_is_computed_again(whole: td.Path, tmp_path: Path) -> None:
    td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN)
    file = tmp_path / "chunk-0000001.npz"
    good = file.read_bytes()
    file.write_bytes(good[:100])
    with pytest.warns(RuntimeWarning, match=r"chunk-0000001\.npz is damaged, or of another run"):
        same(td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN), whole)
    assert file.stat().st_size == len(good)
    same(td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN), whole)


def test_lost_paths_are_remembered_with_the_statistics(tmp_path: Path) -> None:
    given = {"times": 3.0, "dt": 0.1, "rng": 0, "reduce": td.Moments(), "on_divergence": "mark", "chunk": 1}
    run_away = td.Langevin(outward, diffusivity=0.5, dim=1)
    whole = td.simulate(run_away, X0, **given)
    assert 0 < whole.diverged.sum() < N
    for _ in range(2):
        path = td.simulate(run_away, X0, checkpoint=tmp_path, **given)
        np.testing.assert_array_equal(path.diverged, whole.diverged)
        assert path.reduced["n"] == N - whole.diverged.sum()
        np.testing.assert_array_equal(path.reduced["mean"], whole.reduced["mean"])
    with pytest.raises(td.DivergenceError, match=rf"{whole.diverged.sum()} of {N} paths"):
        td.simulate(run_away, X0, checkpoint=tmp_path, **given | {"on_divergence": "raise"})


@td.drift
def outward(x, t):
    return (x[0] * x[0] * x[0],)


@td.drift
def of_sine(x, t):
    return (np.sin(x[0]),)


@td.drift
def of_cosine(x, t):
    return (np.cos(x[0]),)


of_cosine.__name__ = of_cosine.function.__name__ = "of_sine"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"process": WELL.with_params(2.0)}, "params"),
        ({"x0": X0 + 1e-9}, "x0"),
        ({"times": [0.0, 0.1, 0.31]}, "times"),
        ({"dt": 0.01}, "dt"),
        ({"rng": 6}, "rng"),
        ({"chunk": 2}, "chunk"),
        ({"heat": False}, "heat"),
        ({"method": "heun"}, "method"),
        ({"process": td.Langevin(double_well, (1.0,), 0.6, dim=1)}, "diffusivity"),
        ({"process": td.Langevin(double_well, (1.0,), lambda t: 0.5, dim=1)}, "diffusivity"),
        ({"process": td.Langevin(double_well, (1.0,), 0.5, dim=1, boundaries={0: ("periodic", -2, 2)})}, "walls"),
    ],
)
def test_another_run_is_refused(changes: dict, what: str, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(1), **GIVEN)
    given = {"process": WELL, "x0": X0} | GIVEN | changes
    with pytest.raises(ValueError, match=rf"holds another run \(it differs in {what}\); choose another directory"):
        td.simulate(given.pop("process"), given.pop("x0"), checkpoint=tmp_path, **given)


@pytest.mark.parametrize(
    "processes",
    [
        (td.Langevin(of_sine, dim=1), td.Langevin(of_cosine, dim=1)),
        (td.Langevin(closure(0.5), dim=2), td.Langevin(closure(0.6), dim=2)),
        (td.Langevin(of_sine, (), lambda t: 1.0 + t, dim=1), td.Langevin(of_sine, (), lambda t: 1.0 - t, dim=1)),
        (td.Langevin(closure(0.5), (), np.eye(2), dim=2), td.Langevin(closure(0.5), (), np.eye(2) * (1 + 1e-12), dim=2)),
    ],
    ids=["another function", "another closure", "another diffusivity", "nearly the same matrix"],
)
def test_another_program_is_refused(processes, tmp_path: Path) -> None:
    x0 = np.zeros((3, processes[0].dim))
    td.simulate(processes[0], x0, 0.1, 0.1, rng=0, checkpoint=tmp_path)
    td.simulate(processes[0], x0, 0.1, 0.1, rng=0, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(it differs in (code|diffusivity)\)"):
        td.simulate(processes[1], x0, 0.1, 0.1, rng=0, checkpoint=tmp_path)


KILLED = """
import os, signal, sys
import numpy as np
import thermodiff as td
from user_dynamics import double_well

def progress(done, tasks):
    if done == 3 and sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    inner = td.drift(lambda x, t: (sum([-v for v in x]) + (lambda v: 0.5 * v)(t),))
    x0 = 0.5 * np.random.default_rng(0).standard_normal((1566, 1))
    path = td.simulate(td.Langevin(inner, dim=1), x0, 0.3, 0.02, rng=5, chunk=1, checkpoint=sys.argv[1], progress=progress)
    print(path.states.tobytes().hex())
"""


def coupled(strength: float) -> td.Langevin:
    couplings = np.array([strength, 1.0])

    @td.drift
    def function(x, t):
        return (-couplings[0] * x[0],)

    return td.Langevin(function, diffusivity=lambda t: couplings[0] * (1.0 + t), dim=1)


def test_numbers_around_a_function_belong_to_a_run(tmp_path: Path) -> None:
    given = {"x0": X0, "times": 0.1, "dt": 0.02, "rng": 1, "checkpoint": tmp_path}
    one = td.simulate(coupled(1.0), **given)
    np.testing.assert_array_equal(td.simulate(coupled(1.0), **given).states, one.states)
    with pytest.raises(ValueError, match=r"another run \(it differs in code, diffusivity\)"):
        td.simulate(coupled(2.0), **given)


@pytest.mark.slow
def test_kill_9_of_the_whole_program(tmp_path: Path) -> None:
    """Started again it finds its own record, though functions inside functions have other addresses now."""
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(directory: str, fate: str) -> subprocess.CompletedProcess:
        arguments = [sys.executable, str(program), str(tmp_path / directory), fate]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)

    assert run("a", "die").returncode == -signal.SIGKILL
    assert len(list((tmp_path / "a").glob("chunk-*.npz"))) == 3
    again = run("a", "live")
    assert again.returncode == 0, again.stderr
    assert again.stdout == run("b", "live").stdout != ""


def test_kill_9_of_a_worker(whole: td.Path) -> None:
    deaths = []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:

        def kill(done: int, tasks: int) -> None:
            if done == 2:
                deaths.append(next(iter(executor._processes)))
                os.kill(deaths[0], signal.SIGKILL)
                time.sleep(0.05)

        same(td.simulate(WELL, X0, executor=executor, progress=kill, **GIVEN), whole)
        assert len(deaths) == 1


GROWTH = """
import sys
import numpy as np
import thermodiff as td
from user_dynamics import double_well

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

reduce = td.Moments() if sys.argv[1] == "reduced" else None
well = td.Langevin(double_well, (1.0,), 0.5, dim=1)
td.simulate(well, np.zeros((300, 1)), 1.0, 0.01, rng=0, reduce=reduce)
x0 = np.zeros((1_000_000, 1))
x0[:] = 0.5
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = kilobytes("VmRSS")
td.simulate(well, x0, 1.0, 0.01, rng=0, reduce=reduce)
print((kilobytes("VmHWM") - before) * 1024 / (2 * x0.nbytes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "low", "high"), [("states", 0.9, 3.0), ("reduced", -0.1, 0.9)])
def test_growth_of_memory_in_units_of_the_states(what: str, low: float, high: float) -> None:
    """10^6 paths and 100 steps, of which the last is kept, or nothing but statistics."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", GROWTH, what], env=environment, capture_output=True, text=True, check=True)
    assert low < float(found.stdout) < high


@pytest.mark.parametrize("paths", [4, 100_000])
def test_what_is_no_executor_is_refused(paths: int) -> None:
    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor, got 3\."):
        td.simulate(td.Linear(-np.eye(1), np.zeros(1), 1.0), np.zeros((paths, 1)), 1.0, 0.1, executor=3)
    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor, got <class"):
        td.simulate(td.Linear(-np.eye(1), np.zeros(1), 1.0), np.zeros((paths, 1)), 1.0, 0.1, executor=ProcessPoolExecutor)


def test_other_things_are_no_folder_and_no_rule() -> None:
    with pytest.raises(TypeError, match=r"checkpoint must be the path of a folder, got 5\."):
        td.simulate(WELL, X0, 0.1, 0.1, checkpoint=5)
    with pytest.raises(ValueError, match=r"method=array\(.* is unknown; choose one of 'euler'"):
        td.simulate(WELL, X0, 0.1, 0.1, method=np.array(["heun", "euler"]))


def test_starts_behind_a_reflecting_wall_are_refused() -> None:
    walls = {1: ("reflecting", 1.0, 2.0), 0: ("periodic", 0.0, 1.0)}
    process = td.Linear(-np.eye(2), np.zeros(2), 1.0, boundaries=walls)
    with pytest.raises(ValueError, match="3 of 4 paths start outside the reflecting walls of coordinate 1, 1 and 2; move"):
        td.simulate(process, np.array([[7.0, 0.0], [7.0, 1.5], [0.0, 2.1], [0.0, -1.0]]), 1.0, 0.1)
    td.simulate(process, np.array([[7.0, 1.0], [-3.0, 2.0]]), 1.0, 0.1)


def test_the_file_of_a_killed_run_is_removed(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (tmp_path / f".states.npy.{platform.node()}.{dead.pid}.0.tmp").write_bytes(b"half a file")
    path = td.simulate(
        td.Linear(-np.eye(1), np.zeros(1), 1.0), np.zeros((9, 1)), 1.0, 0.1, rng=0, out=tmp_path / "states.npy"
    )
    assert path.states.shape == (2, 9, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["states.npy"]


def test_two_runs_with_one_file_do_not_write_into_each_other(tmp_path) -> None:
    """The one that ends last has it, whole; the other has its own states."""
    process, file = td.Linear(-np.eye(1), np.zeros(1), 1.0), tmp_path / "states.npy"
    given = {"x0": np.zeros((20 * LANES, 1)), "times": 1.0, "dt": 0.1, "chunk": 1}
    paths = []

    def again(done: int, total: int) -> None:
        if done == 10:
            paths.append(td.simulate(process, rng=1, out=file, progress=False, **given).final.copy())

    last = td.simulate(process, rng=0, out=file, progress=again, **given)
    np.testing.assert_array_equal(last.final, td.simulate(process, rng=0, progress=False, **given).final)
    np.testing.assert_array_equal(paths[0], td.simulate(process, rng=1, progress=False, **given).final)
    np.testing.assert_array_equal(np.load(file)[-1], last.final)
    assert [place.name for place in tmp_path.iterdir()] == ["states.npy"]


def test_a_file_that_has_no_room_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"out needs 3\.2e-06 GB for the states, and 1e-06 GB are free"):
        td.simulate(td.Linear(-np.eye(1)), np.zeros((200, 1)), 1.0, 0.1, out=tmp_path / "states.npy")
    assert list(tmp_path.iterdir()) == []
