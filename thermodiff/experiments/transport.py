"""Neural entropy against training on Gaussian mixtures, where the total is known: the published transport experiment.

Premkumar (2409.03817) trains one network on mixtures in D = 3, 6, 9 for VP, VPx (VP with scale 0.1) and SL (StraightLine
with scale 0.1), and follows S_NN as it rises to S_tot.  Here the small network with output preconditioning and
importance-sampled times is trained afresh for each length of training, from each of several seeds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
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
BATCH = 1024
NODES, SAMPLES = 64, 10_000

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
    """All trainings, the shortest first, so that a stopped experiment has whole curves at their beginning."""
    return [Run(d, s, n, k) for n in sorted(steps) for d in dims for s in schedules for k in range(seeds)]


def settings() -> dict[str, Any]:
    """What all runs share."""
    return {"network": "ControlMLP", "training set": TRAINING_SET, "batch": BATCH, "nodes": NODES, "samples": SAMPLES}


def measure(run: Run) -> dict[str, Any]:
    """Train and account; S_NN and the rest in nats, with standard errors."""
    from thermodiff.learned import ControlMLP, LearnedDiffusion, torch_threads, train

    law, noise = paper_mixture(run.dim), SCHEDULES[run.schedule]
    points = Samples(law.sample(TRAINING_SET, rng=np.random.default_rng([run.dim, run.seed])))
    begin = time.perf_counter()
    with torch_threads(1):
        net = ControlMLP(run.dim, rng=run.seed)
        train(net, points, noise, steps=run.steps, batch=BATCH, rng=run.seed, progress=False)
        trained = time.perf_counter() - begin
        ledger = account(LearnedDiffusion(net, law, noise), nodes=NODES, samples=SAMPLES, rng=run.seed, progress=False)
    rows = {row: ledger.total(row).to_dict() for row in ("neural", "total", "mismatch", "kl_bound", "neural - total")}
    return {**run._asdict(), **rows, "window": list(ledger.window), "training seconds": round(trained, 2)}


def carry_out(todo: Sequence[Run], store: Store, workers: int) -> Iterator[dict[str, Any]]:
    """Records of all runs, those on disk first; each new one is written as soon as it is there."""
    missing = []
    for run in todo:
        record = store.load(run.name)
        if record is None:
            missing.append(run)
        else:
            yield record
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(measure, run): run for run in missing}
        try:
            for future in as_completed(futures):
                record = future.result()
                store.save(futures[future].name, record)
                yield record
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
                account(total, nodes=NODES, samples=SAMPLES, rng=0, progress=False).total("total").value,
                float(np.mean([record["mismatch"]["value"] for record in group])),
            )
        )  # fmt: skip
    return points
