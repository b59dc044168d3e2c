"""Neural entropy against training on Gaussian mixtures, where the total is known: the published transport experiment.

Premkumar (2409.03817) trains one network on mixtures in D = 3, 6, 9 for VP, VPx (VP with scale 0.1) and SL (StraightLine
with scale 0.1), and follows S_NN as it rises to S_tot.  Here this is done in two ways:

- the small network with output preconditioning and importance-sampled times, trained afresh for each length of training;
- the published network ("plain"), unweighted loss, uniform times and constant rate; one training passes all lengths.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thermodiff.accounting import account
from thermodiff.densities import Samples, paper_mixture
from thermodiff.diffusion import Diffusion
from thermodiff.experiments.store import Store
from thermodiff.schedules import VP, Schedule, StraightLine

DIMS = (3, 6, 9)
SCHEDULES: dict[str, Schedule] = {"VP": VP(), "VPx": VP(scale=0.1), "SL": StraightLine(scale=0.1)}
STEPS = (50, 100, 200, 400, 800, 1600)
SEEDS = 4
TRAINING_SET = 8192
"""Draws from the mixture that the network is trained on, as published."""
NODES = 64

EPOCHS = (5, 10, 20, 30, 40, 80, 120, 160, 200)
STEPS_PER_EPOCH = 256
PUBLISHED = {
    ("VP", 3): (1.21, 1.04, 1.10, 1.08, 1.17, 1.15, 1.11, 1.06, 1.17),
    ("VP", 6): (2.52, 2.65, 3.06, 2.79, 2.79, 2.82, 2.98, 2.80, 2.81),
    ("VP", 9): (5.92, 5.95, 6.04, 6.15, 6.15, 6.07, 6.52, 6.39, 6.52),
    ("VPx", 3): (20, 40, 68, 97, 120, 203, 238, 249, 254),
    ("VPx", 6): (17, 47, 95, 142, 189, 351, 441, 492, 520),
    ("VPx", 9): (35, 84, 153, 221, 290, 542, 697, 802, 870),
    ("SL", 3): (20, 50, 83, 101, 119, 202, 234, 245, 247),
    ("SL", 6): (22, 60, 155, 191, 216, 353, 443, 490, 519),
    ("SL", 9): (45, 122, 209, 267, 321, 548, 700, 804, 873),
}
"""S_NN after `EPOCHS`, mean of four seeds, read off the published figure (VPx and SL to 3 nats, VP to 0.03)."""
PUBLISHED_END = 98 / 99
"""Where the published sum over 100 times ends under SL, whose rate is infinite at the last, t = 1."""
PLAIN_STEPS = tuple(STEPS_PER_EPOCH * epoch for epoch in EPOCHS)
EVERY = 256
"""Steps of the plain network from one saved state to the next."""


class Run(NamedTuple):
    """One training."""

    dim: int
    schedule: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"D={self.dim}-{self.schedule}-steps={self.steps}-seed={self.seed}"


def runs(dims: Sequence[int], schedules: Sequence[str], steps: Sequence[int], seeds: int) -> list[Run]:
    """All trainings, the shortest first, so that a stopped experiment has whole curves at their beginning.

    What is named twice is done once: a repeated run is no further seed.
    """
    dims, schedules = list(dict.fromkeys(dims)), list(dict.fromkeys(schedules))
    return [Run(d, s, n, k) for n in sorted(set(steps)) for d in dims for s in schedules for k in range(seeds)]


def steps_for(todo: Sequence[Run], plain: bool) -> dict[Run, int]:
    """Steps of training that each record takes: those of the run, or of the plain network those since the length before."""
    if not plain:
        return {run: run.steps for run in todo}
    taken: dict[Run, int] = {}
    done: dict[tuple[int, str, int], int] = {}
    for run in sorted(todo, key=lambda run: run.steps):
        key = (run.dim, run.schedule, run.seed)
        taken[run] = run.steps - done.get(key, 0)
        done[key] = run.steps
    return taken


def settings(plain: bool) -> dict[str, Any]:
    """What all runs share; a batch of the plain network is as large as the published 32 points with 10 draws each."""
    shared = {"training set": TRAINING_SET, "nodes": NODES}
    if plain:
        return {"network": "EntropyMLP", "batch": 320, "samples": 2500, "rate": "constant", "times": "uniform", **shared}
    return {"network": "ControlMLP", "batch": 1024, "samples": 10_000, **shared}


def _train(run: Run, noise: Schedule, points: Samples, options: dict[str, Any], folder: Path) -> Any:
    from thermodiff.learned import ControlMLP, EntropyMLP, train

    common = {"steps": run.steps, "batch": options["batch"], "rng": run.seed, "progress": False}
    if options["network"] == "ControlMLP":
        return train(ControlMLP(run.dim, rng=run.seed), points, noise, **common)
    # One training of all lengths: it goes on where the run before this one left it.
    path = folder / "networks" / f"D={run.dim}-{run.schedule}-seed={run.seed}"
    return train(
        EntropyMLP(run.dim, rng=run.seed), points, noise, ema=0.0, decay=False, times="uniform", likelihood=False,
        checkpoint=path, every=EVERY, **common,
    )  # fmt: skip


def measure(run: Run, store: Store) -> dict[str, Any]:
    """Train and account; S_NN and the rest in nats, with standard errors."""
    from thermodiff.learned import LearnedDiffusion, torch_threads

    law, noise, options = paper_mixture(run.dim), SCHEDULES[run.schedule], store.settings
    points = Samples(law.sample(TRAINING_SET, rng=np.random.default_rng([run.dim, run.seed])))
    begin = time.perf_counter()
    with torch_threads(1):
        net = _train(run, noise, points, options, store.folder.parent)
        trained = time.perf_counter() - begin
        model = LearnedDiffusion(net, law, noise)
        ledger = account(model, nodes=NODES, samples=options["samples"], rng=run.seed, progress=False)
        rows = {row: ledger.total(row).to_dict() for row in ("neural", "total", "mismatch", "kl_bound", "neural - total")}
        if run.schedule == "SL":
            part = (float(noise.lam(PUBLISHED_END)), ledger.window[1])
            ended = account(model, nodes=NODES, samples=options["samples"], rng=run.seed, lam=part, progress=False)
            rows["neural, published window"] = ended.total("neural").to_dict()
    return {**run._asdict(), **rows, "window": list(ledger.window), "training seconds": round(trained, 2)}


def _measure_all(todo: Sequence[Run], store: Store) -> None:
    """Records of runs, in this order, each written as soon as it is there."""
    for run in todo:
        store.save(run.name, measure(run, store))


def _shared_out(missing: Sequence[Run], plain: bool) -> list[list[Run]]:
    """What one process does after the other: single runs; of the plain network all lengths of a training."""
    if not plain:
        return [[run] for run in missing]
    keys = dict.fromkeys((run.dim, run.schedule, run.seed) for run in missing)
    return [[run for run in missing if (run.dim, run.schedule, run.seed) == key] for key in keys]


def _end_with_parent() -> None:
    """End this worker when the experiment is killed: a training of hours would go on, beside the one that takes it up."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()


def carry_out(todo: Sequence[Run], store: Store, workers: int, plain: bool = False) -> Iterator[dict[str, Any]]:
    """Records of all runs, those on disk first; each new one is on disk before it is given."""
    missing = []
    for run in todo:
        record = store.load(run.name)
        if record is None:
            missing.append(run)
        else:
            yield record
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        futures = {pool.submit(_measure_all, part, store) for part in _shared_out(missing, plain)}
        try:
            while missing:
                done, futures = wait(futures, timeout=1.0, return_when="FIRST_EXCEPTION")
                for future in done:
                    _result(future)
                for run in list(missing):
                    record = store.load(run.name)
                    if record is not None:
                        missing.remove(run)
                        yield record
                if missing and not futures:
                    raise RuntimeError(f"records vanished from {store.folder} during the experiment; start it again.")
        except BaseException:  # Ctrl-C too: what runs may take hours, and is begun again from what it has saved
            for worker in list((getattr(pool, "_processes", None) or {}).values()):
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise MemoryError(
            "a process of the experiment was killed, perhaps because memory was short; what is finished is kept: start it "
            "again, with fewer workers if memory is the reason."
        ) from error


class Point(NamedTuple):
    """S_NN at one length of training, over seeds."""

    schedule: str
    dim: int
    steps: int
    seeds: int
    neural: float
    error: float
    total: float
    mismatch: float


def curve(records: Sequence[dict[str, Any]]) -> list[Point]:
    """Means over seeds, with the standard error of the mean from their spread (or the account's own for one seed)."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["schedule"], record["dim"], record["steps"]), []).append(record)
    order = list(SCHEDULES)
    points = []
    for (schedule, dim, steps), group in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])):
        neural = np.array([record["neural"]["value"] for record in group])
        own = np.array([record["neural"]["error"] for record in group])
        spread = float(neural.std(ddof=1)) if neural.size > 1 else 0.0
        error = float(np.hypot(spread, np.sqrt(np.mean(own**2))) / np.sqrt(neural.size))
        total = Diffusion(paper_mixture(dim), SCHEDULES[schedule])
        points.append(
            Point(
                schedule, dim, steps, neural.size, float(neural.mean()), error,
                account(total, nodes=NODES, rng=0, progress=False).total("total").value,
                float(np.mean([record["mismatch"]["value"] for record in group])),
            )
        )  # fmt: skip
    return points
