"""The works: what is done, in which ways, how large, and how results are judged.

The first way of a work is thermodiff's; ratios are those of the others to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from thermodiff.bench import fresh, ours, rivals
from thermodiff.bench.problems import Cloud, DoubleWell, Entropy, Mixture, Verdict

Size = Mapping[str, int]


class Unit(NamedTuple):
    """How the time of a work is given."""

    name: str
    factor: float
    per_size: bool


PATH_STEP = Unit("ns per path-step", 1e9, True)
DRAW = Unit("ns per draw", 1e9, True)
SECONDS = Unit("s", 1.0, False)
MILLISECONDS = Unit("ms", 1e3, False)
STATES = Unit("times the array of states", 1.0, False)


@dataclass(frozen=True)
class Way:
    """One way to do a work.

    Attributes
    ----------
    name : str
    threads : int
        That it uses; 2 stands for all cores.
    make : callable
        ``make(problem)`` makes ready and returns the call that is timed; it raises `Absent` where it cannot run.
    goal : float
        Least ratio to thermodiff's time that is aimed at; 0 for none.
    size : callable, optional
        ``size(problem)``, by which the time is divided, where it is not that of the problem.
    """

    name: str
    threads: int
    make: Callable[[Any], Callable[[], Any]]
    goal: float = 0.0
    size: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes
    ----------
    name : str
    statement : str
        What is computed, in one sentence.
    problem : callable
        Takes a size as keywords.
    sizes : mapping
        "full" (the published one), "quick" and "tiny" (for tests).
    ways : sequence of Way
        The first is thermodiff's.
    unit : Unit
    judge : callable, optional
        ``judge(problem, result)`` compares with the truth.
    apart : bool
        Whether each run is a process of its own, so that ways need not be measured in turn.
    """

    name: str
    statement: str
    problem: Callable[..., Any]
    sizes: Mapping[str, Size]
    ways: Sequence[Way]
    unit: Unit = PATH_STEP
    judge: Callable[[Any, Any], Verdict] | None = None
    apart: bool = False


class Scaling(NamedTuple):
    """Paths and steps of the largest piece of a scaling work."""

    paths: int
    steps: int


def _rival(name: str, module: str, work: str, threads: int = 2, goal: float = 0.0) -> Way:
    """A rival's way; its library is imported when it is made ready."""
    return Way(name, threads, lambda problem: rivals.load(module, work)(problem), goal)


def _of(paths: int, steps: int) -> Size:
    return {"paths": paths, "steps": steps}


def _sizes(full: tuple[int, int], quick: tuple[int, int], tiny: tuple[int, int] = (600, 20)) -> Mapping[str, Size]:
    return {"full": _of(*full), "quick": _of(*quick), "tiny": _of(*tiny)}


WELL = "Euler-Maruyama of a user's double well, final states only"
MIXTURE = "five-component 2-D mixture, noise to data"
EULER_SIZES = _sizes((102_400, 1000), (51_200, 400))
REVERSE_SIZES = _sizes((102_400, 500), (25_600, 200))
FLOW_SIZES = _sizes((102_400, 100), (25_600, 100), (600, 60))
ANHARMONIC = "ring of anharmonic oscillators"


def _scaled(name: str, make: Callable[..., Any], part: Callable[[Scaling], tuple[int, int]], *more: int) -> Way:
    """A run of ``part(problem)`` = (paths, steps); its time is divided by these and by the last of ``more``, if any."""

    def size(problem: Scaling) -> float:
        paths, steps = part(problem)
        return float(paths * steps * (more[-1] if more else 1))

    return Way(name, 2, lambda problem: make(*part(problem), *more), 0.0, size)


def _well(paths: int, steps: int) -> Callable[[], Any]:
    return ours.double_well(DoubleWell(paths, steps))


def _scaling() -> list[Way]:
    whole = _scaled("all paths, all steps", _well, lambda p: (p.paths, p.steps))
    by_paths = [
        _scaled(f"paths / {part}", _well, lambda p, part=part: (max(p.paths // part, 1), p.steps)) for part in (10, 100)
    ]
    by_steps = [
        _scaled(f"steps / {part}", _well, lambda p, part=part: (p.paths, max(p.steps // part, 1))) for part in (10, 100)
    ]
    by_dim = [
        _scaled(f"{ANHARMONIC}, d = {d}; per coordinate", ours.ring, lambda p, d=d: (max(p.paths // 4 // d, 1), p.steps), d)
        for d in (2, 8, 32)
    ]
    by_components = [
        _scaled(
            f"reverse SDE, {k} components; per component", ours.components,
            lambda p, k=k: (max(p.paths // 2 // k, 1), max(p.steps // 4, 1)), k,
        )
        for k in (1, 8, 64)
    ]  # fmt: skip
    return [whole, *by_paths, *by_steps, *by_dim, *by_components]


WORKS: tuple[Work, ...] = (
    Work(
        "euler-1", f"{WELL}; one thread, against C with the same algorithm", DoubleWell, EULER_SIZES,
        (
            Way("thermodiff", 1, partial(ours.double_well, threads=1)),
            _rival("C, -O3 -march=native -ffast-math", "c", "double_well", 1, 1.0 / 1.3),
            _rival("Numba prange, np.random.normal", "numba_", "double_well_alone", 1),
            _rival("NumPy", "numpy_", "double_well", 1),
        ),
        judge=DoubleWell.judge,
    ),
    Work(
        "euler-2", f"{WELL}; all threads", DoubleWell, EULER_SIZES,
        (
            Way("thermodiff", 2, ours.double_well),
            _rival("JAX, jitted scan", "jax_", "double_well", goal=8.0),
            _rival("NumPy", "numpy_", "double_well", 1, goal=12.0),
            _rival("Numba prange, np.random.normal", "numba_", "double_well", goal=4.0),
            _rival("Numba prange, counter hash", "numba_", "double_well_hash", goal=4.0),
            _rival("diffrax, batch as one state", "diffrax_", "double_well", goal=8.0),
            _rival("diffrax, vmap over paths", "diffrax_", "double_well_vmap", goal=30.0),
            _rival("torchsde, dt told", "torchsde_", "double_well", goal=30.0),
            _rival("pyito", "pyito_", "double_well"),
        ),
        judge=DoubleWell.judge,
    ),
    Work(
        "reverse", f"reverse SDE, {MIXTURE}, by Euler-Maruyama", Mixture, REVERSE_SIZES,
        (
            Way("thermodiff", 2, ours.reverse),
            _rival("JAX, jitted scan", "jax_", "reverse", goal=15.0),
            _rival("Numba prange, score inside", "numba_", "reverse", goal=8.0),
            _rival("azula, DDPM sampler", "azula_", "reverse", goal=25.0),
            _rival("NumPy", "numpy_", "reverse", 1),
        ),
        judge=Mixture.judge,
    ),
    Work(
        "flow-rk4", f"probability flow, {MIXTURE}, by RK4", Mixture, FLOW_SIZES,
        (
            Way("thermodiff", 2, ours.flow_rk4),
            _rival("JAX, jitted scan", "jax_", "flow", goal=10.0),
            _rival("torchdiffeq, 3/8 rule", "torchdiffeq_", "flow_rk4"),
        ),
        judge=Mixture.judge_flow,
    ),
    Work(
        "flow-adaptive", f"probability flow, {MIXTURE}, by adaptive Dormand-Prince 5(4) at rtol 1e-6", Mixture, FLOW_SIZES,
        (
            Way("thermodiff", 2, ours.flow),
            _rival("JAX, jitted RK4", "jax_", "flow"),
            _rival("diffrax, batch as one state", "diffrax_", "flow", goal=4.0),
            _rival("diffrax, vmap over paths", "diffrax_", "flow_vmap", goal=4.0),
            _rival("torchdiffeq", "torchdiffeq_", "flow"),
            _rival("SciPy solve_ivp, RK45", "scipy_", "flow", 1),
        ),
        unit=MILLISECONDS,
        judge=Mixture.judge_flow,
    ),
    Work(
        "entropy", "exact entropy production, published D = 3 mixture", Entropy,
        {
            "full": {"nodes": 100, "samples": 10_000}, "quick": {"nodes": 100, "samples": 10_000},
            "tiny": {"nodes": 24, "samples": 500},
        },
        (
            Way("thermodiff", 2, ours.entropy),
            _rival("JAX, same control variates", "jax_", "entropy_reduced", goal=8.0),
            _rival("JAX, plain averages", "jax_", "entropy", goal=8.0),
            _rival("NumPy, plain averages", "numpy_", "entropy", 1),
        ),
        unit=DRAW,
        judge=Entropy.judge,
    ),
    Work(
        "cloud", "score of a point cloud", Cloud,
        {
            "full": {"points": 10_000, "dim": 784, "queries": 1000},
            "quick": {"points": 10_000, "dim": 784, "queries": 1000},
            "tiny": {"points": 200, "dim": 16, "queries": 40},
        },
        (Way("thermodiff", 2, ours.cloud), _rival("NumPy and BLAS", "numpy_", "cloud", goal=1.0)),
        unit=MILLISECONDS,
        judge=Cloud.judge,
    ),
    Work(
        "threads", f"{WELL}; two threads against one", DoubleWell, EULER_SIZES,
        (
            Way("thermodiff", 2, ours.double_well),
            Way("thermodiff", 1, partial(ours.double_well, threads=1), 1.7),
        ),
        judge=DoubleWell.judge,
    ),
    Work(
        "compile", "a new drift in a process that has run another one", dict, {"full": {}, "quick": {}, "tiny": {}},
        (
            Way("thermodiff, new drift", 1, fresh.fresh(fresh.NEW_DRIFT, inside=True)),
            Way("thermodiff, new parameters", 1, fresh.fresh(fresh.NEW_PARAMETERS, inside=True)),
            Way("Numba prange, new drift", 1, fresh.fresh(fresh.NUMBA, "numba", inside=True)),
            Way("JAX, new drift", 1, fresh.fresh(fresh.JAX, "jax", inside=True)),
            Way("C, new drift", 1, fresh.fresh(fresh.C, inside=True)),
        ),
        unit=SECONDS,
        apart=True,
    ),
    Work(
        "start", "a process from start to end, disk cache warm", dict, {"full": {}, "quick": {}, "tiny": {}},
        (
            Way("thermodiff, account", 2, fresh.fresh(fresh.ACCOUNT)),
            Way("thermodiff, reverse", 2, fresh.fresh(fresh.REVERSE)),
            Way("import thermodiff", 1, fresh.fresh("import thermodiff")),
            Way("import numpy", 1, fresh.fresh("import numpy")),
            Way("import numba", 1, fresh.fresh("import numba", "numba")),
            Way("import jax", 1, fresh.fresh("import jax", "jax")),
            Way("JAX, double well of 512 paths", 2, fresh.fresh(fresh.JAX_START, "jax")),
        ),
        unit=SECONDS,
        apart=True,
    ),
    Work(
        "memory", "growth of memory in 100 steps of a user's double well, final states only", dict,
        {"full": {"paths": 10_000_000}, "quick": {"paths": 2_000_000}, "tiny": {"paths": 100_000}},
        (Way("thermodiff", 2, lambda size: fresh.fresh(fresh.MEMORY.format(**size), inside=True)(size)),),
        unit=STATES,
        apart=True,
    ),
    Work(
        "scaling", "thermodiff over paths, steps, dimension and components; all threads", Scaling,
        _sizes((102_400, 1000), (102_400, 200), (600, 20)), _scaling(),
    ),
)  # fmt: skip


def choose(names: Sequence[str]) -> list[Work]:
    """The works of these names, in their own order; all without names.

    Raises
    ------
    ValueError
        For a name that there is not.
    """
    known = {work.name for work in WORKS}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown work {name!r}; choose among {', '.join(work.name for work in WORKS)}.")
    return [work for work in WORKS if not names or work.name in names]
