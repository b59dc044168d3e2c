"""First passages as tasks: where they are cut, when they end, and what is heard and seen on the way."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import thermodiff as td
from thermodiff.integrate import passage
from thermodiff.integrate.passage import first_passage


@td.drift
def constant(x, t, v):
    return (v,)


@td.drift
def swinging(x, t):
    return (0.3 + np.sin(t) - 0.1 * x[0], -x[1])


@td.drift
def nowhere(x, t):
    return (0.5 if x[0] > -5.0 else np.nan,)


@td.drift
def stiff_between(x, t):
    return (-150.0 * x[0] if 30.0 < t < 60.0 else -x[0],)


@td.drift
def stiff_on_the_way(x, t):
    return (1.0, -150.0 * x[1] if 30.0 < x[0] < 60.0 else -x[1])


@td.diffusivity
def soft(x, t):
    return (0.5 + 0.2 * np.sin(x[0]),)


PROCESSES = {
    "line": td.Langevin(constant, (0.3,), 0.5, dim=1),
    "D(t)": td.Langevin(constant, (0.3,), lambda t: 0.3 + 0.1 * t, dim=1),
    "D(x)": td.Langevin(constant, (0.3,), soft, dim=1, interpretation="isothermal"),
    "ring": td.Langevin(constant, (0.3,), 0.5, dim=1, boundaries={0: ("periodic", -2.0, 2.0)}),
    "mirror": td.Langevin(constant, (0.3,), 0.5, dim=1, boundaries={0: ("reflecting", -0.3, 3.0)}),
    "other": td.Langevin(swinging, (), [[0.5, 0.1], [0.1, 0.3]], dim=2, boundaries={1: ("periodic", -0.5, 0.5)}),
}
FREE = PROCESSES["line"]


class Calls:
    """The kernel, and which steps it was called for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.kernel = [], passage.passage
        monkeypatch.setattr(passage, "passage", self)

    def __call__(self, *arguments) -> None:
        self.steps.append(arguments[12:14])
        self.kernel(*arguments)

    @property
    def last(self) -> int:
        return max(begin + steps for begin, steps in self.steps)


def same(one: td.Passage, two: td.Passage) -> None:
    for name in ("times", "sides", "states"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_steps_are_cut_anywhere(process: td.Langevin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into calls, whose length depends on the time that they take, and into tasks: no bit depends on either."""
    given = {"x0": np.zeros((600, process.dim)), "high": 1.0, "t0": 0.5, "t_max": 2.5, "dt": 0.01, "rng": 3}
    whole = first_passage(process, **given)
    assert 100 < np.count_nonzero(whole.sides) < 600
    for stretch, call, breath in ((256 * 7, 2**40, 1.0), (256 * 33, 1, 1e-9), (2**30, 512 * 3, 1e-9)):
        for name, value in (("STRETCH", stretch), ("CALL", call), ("BREATH", breath)):
            monkeypatch.setattr(passage, name, value)
        calls = Calls(monkeypatch)
        same(first_passage(process, **given, chunk=1), whole)
        assert len(calls.steps) > 10
        monkeypatch.setattr(passage, "passage", calls.kernel)


def test_a_place_on_the_end_of_a_ring_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 - 0.1 - 0.1 - 0.1 is a little below 0, which a turn carries to 1."""
    process = td.Langevin(swept, (), 0.0, dim=2, boundaries={1: ("periodic", 0.0, 1.0)})
    found = []
    for call in (2**21, 1):
        monkeypatch.setattr(passage, "CALL", call)
        monkeypatch.setattr(passage, "BREATH", 1e-9)
        found.append(first_passage(process, [[0.0, 0.3]], high=2.5, t_max=5.0, dt=1.0, rng=0))
    same(*found)


@td.drift
def swept(x, t):
    return (0.75 if x[1] == 1.0 else 0.5, -0.1)


def test_lanes_without_a_path_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    found = first_passage(td.Langevin(constant, (0.0,), 0.5, dim=1), [[0.0]], high=1.0, t_max=5e4, dt=1e-2, rng=1)
    assert found.times[0] < 1.0
    assert calls.last <= 8192


def test_lost_paths_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And change nothing for the others."""
    process, x0 = td.Langevin(nowhere, diffusivity=0.5, dim=1), np.zeros((256, 1))
    given = {"high": 1.0, "low": -4.0, "dt": 1e-2, "rng": 0, "on_divergence": "mark"}
    x0[7] = -3.9999
    others = first_passage(process, x0, t_max=1e3, **given)
    calls = Calls(monkeypatch)
    x0[7] = -40.0
    found = first_passage(process, x0, t_max=5e4, **(given | {"low": -np.inf}))
    assert found.diverged is not None
    assert found.diverged[7]
    assert np.isnan(found.times[7])
    assert calls.last <= 2**15
    kept = (others.sides == 1) & ~found.diverged
    assert kept.sum() > 200
    np.testing.assert_array_equal(found.times[kept], others.times[kept])
    with pytest.raises(td.DivergenceError, match="paths left the finite numbers"):
        first_passage(process, x0, t_max=5e4, **(given | {"low": -np.inf, "on_divergence": "raise"}))


def test_tasks_stop_when_nobody_waits() -> None:
    """An interrupt is heard, and the thread of the executor is free soon."""
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with ThreadPoolExecutor(1) as executor:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            first_passage(FREE, np.zeros((300, 1)), high=1e9, t_max=1e6, dt=1e-3, rng=0, executor=executor)
        since = time.monotonic()
    assert time.monotonic() - since < 20.0
    timer.join()


def test_a_task_stops_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, pauses = Calls(monkeypatch), []

    def pause() -> None:
        pauses.append(1)
        if len(pauses) == 4:
            raise CancelledError

    for name, value in (("pause", pause), ("CALL", 256), ("BREATH", 1e-9)):
        monkeypatch.setattr(passage, name, value)
    with pytest.raises(CancelledError):
        first_passage(FREE, [[0.0]], high=1e9, t_max=1.0, dt=1e-3, rng=0)
    assert len(calls.steps) == 3


def test_progress_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all paths of one block end long before those of another."""
    monkeypatch.setattr(passage, "STRETCH", 256 * 10)
    x0, told = np.zeros((512, 1)), []
    x0[:256] = 0.99
    found = first_passage(
        td.Langevin(constant, (1.0,), 1e-4, dim=1), x0, high=1.0, t_max=2.0, dt=0.02, rng=0, chunk=1,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert np.all(found.sides == 1)
    done = [done for done, _ in told]
    assert {total for _, total in told} == {20}
    assert done == sorted(done)
    assert done[-1] == 20
    assert len(done) > 5


def test_a_task_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "STRETCH", 256 * 20)
    given = {"high": 1.0, "t_max": 2.0, "dt": 0.01, "rng": 0}
    whole = first_passage(FREE, np.zeros((300, 1)), **given)
    call = passage._Run.__call__
    monkeypatch.setattr(
        passage._Run,
        "__call__",
        lambda self, task: pickle.loads(pickle.dumps(call(*pickle.loads(pickle.dumps((self, task)))))),
    )
    same(first_passage(FREE, np.zeros((300, 1)), **given), whole)


@pytest.mark.parametrize("stretch", [2**30, 256 * 600])
def test_a_step_that_is_too_large_on_the_way_is_noticed(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the drift says so by its time, and by the state."""
    monkeypatch.setattr(passage, "STRETCH", stretch)
    given = {"high": 99.5, "t_max": 100.0, "rng": 1}
    in_time = td.Langevin(stiff_between, diffusivity=0.1, dim=1), np.zeros((300, 1))
    in_space = td.Langevin(stiff_on_the_way, diffusivity=[0.0, 0.1], dim=2), np.zeros((300, 2))
    for process, x0 in (in_time, in_space):
        with pytest.warns(RuntimeWarning, match=r"the step 0\.01 is too large for this drift"):
            first_passage(process, x0, dt=0.01, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first_passage(process, x0, dt=0.004, **given)


@td.stop_condition
def above(x, t, level):
    return x[0] - level


KILLED = """
import os, signal, sys
import numpy as np
import thermodiff as td
from thermodiff.integrate import passage

passage.STRETCH = 256 * 40

def progress(done, tasks):
    if done == 20 and sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    level = 0.9
    condition = td.stop_condition(lambda x, t, c: c * x[0] - level)
    process = td.Langevin(td.drift(lambda x, t: (-x[0],)), diffusivity=0.5, dim=1)
    found = td.first_passage(
        process, np.zeros((1000, 1)), stop=condition, stop_params=(1.0,), t_max=4.0, dt=0.01, rng=5, chunk=1,
        checkpoint=sys.argv[1] if sys.argv[1] != "none" else None, progress=progress,
    )
    print(found, found.times.tobytes().hex(), found.states.tobytes().hex())
"""


@pytest.mark.slow
def test_kill_9_of_the_whole_program(tmp_path: Path) -> None:
    """With some stretches of each range behind it: started again it ends with the bits of one that had no checkpoint."""
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(directory: str, fate: str) -> subprocess.CompletedProcess:
        arguments = [sys.executable, str(program), directory, fate]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)

    folder = tmp_path / "a"
    assert run(str(folder), "die").returncode == -signal.SIGKILL
    assert len(list(folder.glob("part-*.npz"))) == 4
    again = run(str(folder), "live")
    assert again.returncode == 0, again.stderr
    assert sorted(file.name for file in folder.iterdir()) == [*(f"chunk-{k:07d}.npz" for k in range(4)), "run.json"]
    assert again.stdout == run("none", "live").stdout != ""


class Enough(Exception):
    """Ends a run."""


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("stretch", [256 * 15, 2**30])
def test_a_run_that_ended_goes_on(workers, stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what it had, whatever the executor; what is finished is not computed again."""
    monkeypatch.setattr(passage, "STRETCH", stretch)
    given = {"x0": np.zeros((1000, 1)), "high": 1.0, "t_max": 2.0, "dt": 0.02, "rng": 3}
    whole = first_passage(FREE, **given)
    executor = ThreadPoolExecutor(workers) if workers else None
    for end in (2, 3, 5, 9):

        def progress(done: int, total: int, end: int = end) -> None:
            if done >= min(end, total - 1):
                raise Enough

        with contextlib.suppress(Enough):
            first_passage(FREE, **given, chunk=1, checkpoint=tmp_path, executor=executor, progress=progress)
    same(first_passage(FREE, **given, chunk=1, checkpoint=tmp_path, executor=executor), whole)
    calls = Calls(monkeypatch)
    same(first_passage(FREE, **given, chunk=1, checkpoint=tmp_path), whole)
    assert not calls.steps


def test_another_run_is_refused(tmp_path: Path) -> None:
    given = {"x0": np.zeros((3, 1)), "t_max": 2.0, "dt": 0.02, "rng": 3, "checkpoint": tmp_path}
    first_passage(FREE, high=1.0, **given)
    first_passage(FREE, high=1.0, **given)
    for other, what in (
        ({"high": 1.5}, "levels"),
        ({"high": 1.0, "t_max": 3.0}, "times"),
        ({"high": 1.0, "dt": 0.04}, "dt"),
        ({"stop": above, "stop_params": (1.0,)}, "stop, stop_params"),
    ):
        with pytest.raises(ValueError, match=rf"holds another run \(it differs in {what}\); choose another directory"):
            first_passage(FREE, **(given | other))
    with pytest.raises(ValueError, match=r"holds another run \(it differs in"):
        td.simulate(FREE, given["x0"], 2.0, 0.02, rng=3, checkpoint=tmp_path)
    with pytest.raises(TypeError, match="checkpoint must be the path of a folder, got 3"):
        first_passage(FREE, **(given | {"checkpoint": 3}), high=1.0)
    damaged = tmp_path / "chunk-0000000.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="is damaged, or of another run; what it held is computed again"):
        first_passage(FREE, high=1.0, **given)
