"""The transport experiment in small."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

import thermodiff as td
from thermodiff.experiments import transport
from thermodiff.experiments.store import Store
from thermodiff.experiments.transport import Run

RECORD = {
    "dim": 3, "schedule": "VP", "steps": 50, "seed": 0, "neural": {"value": 1.0, "error": 0.03},
    "mismatch": {"value": 0.1, "error": 0.0},
}  # fmt: skip


def test_runs_are_all_combinations_with_short_ones_first() -> None:
    todo = transport.runs((3, 6), ("VP", "SL"), (400, 50), 3)
    assert len(set(todo)) == len(todo) == 24
    assert [run.steps for run in todo] == [50] * 12 + [400] * 12
    assert len({run.name for run in todo}) == 24
    assert transport.runs((3, 6, 3), ("VP", "SL", "VP"), (400, 50, 50), 3) == todo


def test_a_short_training_is_accounted_against_the_known_total(tmp_path) -> None:
    record = transport.measure(Run(3, "VP", 60, 0), Store(tmp_path, transport.settings(plain=False)))
    exact = td.account(td.Diffusion(td.paper_mixture(3), td.VP()), rng=0).total("total")
    assert abs(record["total"]["value"] - exact.value) < 4.0 * np.hypot(record["total"]["error"], exact.error)
    # The mean of |e - b|^2 / 2 is the mismatch: S_NN is within 2 sqrt(S_tot mismatch) + mismatch of S_tot.
    total, miss = record["total"]["value"], record["mismatch"]["value"]
    assert 0.0 < miss < 0.2 * total
    assert abs(record["neural"]["value"] - total) < 2.0 * np.sqrt(total * miss) + miss


def test_what_is_on_disk_is_not_done_again(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path, transport.settings(plain=False))
    todo = transport.runs((3,), ("VP",), (50,), 2)
    for run in todo:
        store.save(run.name, {**RECORD, "seed": run.seed})
    monkeypatch.setattr(transport, "ProcessPoolExecutor", None)
    assert [record["seed"] for record in transport.carry_out(todo, store, 1)] == [0, 1]


def test_one_process_makes_all_lengths_of_a_plain_training() -> None:
    todo = transport.runs((3,), ("VP", "SL"), (5, 3), 2)
    parts = transport._shared_out(todo, plain=True)
    assert len(parts) == 4
    assert all([run.steps for run in part] == [3, 5] and len({run.name for run in part}) == 2 for part in parts)
    assert transport._shared_out(todo, plain=False) == [[run] for run in todo]


def test_steps_of_records_are_those_that_are_made() -> None:
    """A plain training goes on from the length before, of which there is none at the first."""
    todo = transport.runs([3], ["VP", "SL"], [40, 10, 25], 2)
    apart, plain = transport.steps_for(todo, False), transport.steps_for(todo, True)
    assert list(apart) == todo
    assert [apart[run] for run in todo] == [run.steps for run in todo]
    assert plain == {run: {10: 10, 25: 15, 40: 15}[run.steps] for run in todo}
    assert sum(plain.values()) == 4 * 40


def test_a_plain_training_goes_on_from_one_length_to_the_next(tmp_path) -> None:
    store = Store(tmp_path / "runs", {**transport.settings(plain=True), "samples": 100})
    todo = transport.runs((3,), ("VP",), (4, 8), 1)
    records = list(transport.carry_out(todo, store, 1, plain=True))
    assert [record["steps"] for record in records] == [4, 8]
    whole = Store(tmp_path / "whole" / "runs", store.settings)
    assert transport.measure(todo[1], whole)["neural"] == records[1]["neural"]
    assert records[0]["neural"] != records[1]["neural"]


def test_a_curve_is_the_mean_over_seeds_with_its_error() -> None:
    values = [1.0, 1.2, 1.1, 1.3]
    records = [{**RECORD, "seed": k, "neural": {"value": v, "error": 0.03}} for k, v in enumerate(values)]
    (point,) = transport.curve(records)
    assert (point.schedule, point.dim, point.steps, point.seeds) == ("VP", 3, 50, 4)
    assert point.neural == pytest.approx(1.15)
    assert point.error == pytest.approx(np.hypot(np.std(values, ddof=1), 0.03) / 2.0)
    assert point.total == pytest.approx(1.0977, rel=2e-3)
    assert transport.curve(records[:1])[0].error == 0.03


def test_published_curves_have_a_value_for_each_epoch() -> None:
    assert set(transport.PUBLISHED) == {(s, d) for s in transport.SCHEDULES for d in transport.DIMS}
    assert {len(values) for values in transport.PUBLISHED.values()} == {len(transport.EPOCHS)}


class Constant(torch.nn.Module):
    """e = 1 everywhere: the rate under SL is 3 (0.1)^2 / (1 - t), whose integral is a logarithm."""

    predicts = "entropy"

    def forward(self, x, t):
        return torch.ones_like(x)


@pytest.mark.filterwarnings("ignore:the output of Constant")
def test_under_sl_the_published_window_ends_earlier(tmp_path, monkeypatch) -> None:
    """The published sum has no time between 98 / 99 and 1, where the rate of a control that does not vanish diverges."""
    assert pytest.approx(np.linspace(1e-5, 1.0, 100)[98], abs=1e-6) == transport.PUBLISHED_END
    monkeypatch.setattr(transport, "_train", lambda *arguments: Constant())
    record = transport.measure(Run(3, "SL", 50, 0), Store(tmp_path, transport.settings(plain=False)))
    assert record["neural, published window"]["value"] == pytest.approx(0.03 * np.log(99.0), rel=1e-3)
    left = float(td.StraightLine(scale=0.1).at(record["window"][0]).alpha)  # alpha = 1 - t
    assert record["neural"]["value"] == pytest.approx(-0.03 * np.log(left), rel=1e-3)


PROGRAM = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from thermodiff.experiments.transport import _end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_end_when_the_experiment_is_killed(tmp_path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True) as program:
        worker = int(program.stdout.readline())
        program.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker goes on")


def test_a_killed_process_is_told_in_a_sentence() -> None:
    future: Future[None] = Future()
    future.set_exception(BrokenProcessPool("abruptly"))
    with pytest.raises(MemoryError, match="a process of the experiment was killed, perhaps because memory was short"):
        transport._result(future)


def test_ctrl_c_does_not_wait_for_trainings(tmp_path) -> None:
    """Of a million steps, which would take an hour."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    begin = time.monotonic()
    try:
        signal.alarm(4)
        with pytest.raises(KeyboardInterrupt):
            next(transport.carry_out([Run(3, "VP", 10**6, 0)], Store(tmp_path, transport.settings(False)), 1))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 30.0
