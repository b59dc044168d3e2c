"""One accounting for exact and learned scores: nodes in log-SNR, draws, per-sample integrals, a `Ledger`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, choice, count, seed_words
from thermodiff._progress import Progress, reporting
from thermodiff._tasks import in_order
from thermodiff.accounting import moments
from thermodiff.accounting.estimate import Estimate
from thermodiff.accounting.ledger import Ledger
from thermodiff.accounting.moments import Plan, Scalars
from thermodiff.accounting.nodes import MOST_NODES, gauss_legendre
from thermodiff.accounting.quadrature import Scales, quadrature_errors
from thermodiff.accounting.unresolved import unresolved
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]

SAMPLES_PER_TASK = 131_072
"""Over the nodes of a task: so many that workers seldom wait for each other, few enough to share."""

CANCELLED = 1e-6
"""A total below this share of its terms does not tell how large the error of the nodes is beside it."""

ORDER = ("total", "system", "medium", "neural", "mismatch", "denoising", "residual")
"""Of the rows in a ledger."""


class Source(Protocol):
    """What can be accounted: `Diffusion` and `LearnedDiffusion`."""

    @property
    def noise(self) -> Schedule: ...
    @property
    def dim(self) -> int: ...
    @property
    def second_moment(self) -> float | None:
        """E|x_0|^2 where the law of x_0 is known; None for samples of an unknown law."""
        ...

    def conditional_moment(self, alpha: FloatArray, sigma: FloatArray) -> FloatArray:
        """E|c|^2 at nodes, with c = sigma times the score of x given what it was drawn from."""
        ...

    @property
    def scales(self) -> Scales | None: ...
    @property
    def clusters(self) -> int | None: ...
    @property
    def about(self) -> dict[str, Any]: ...

    def window(self, lam: tuple[float, float] | None, times: tuple[float, float] | None) -> tuple[float, float]: ...

    @property
    def precision(self) -> float:
        """Relative precision of the score."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether nodes may be computed by several workers at once."""
        ...

    def products(self, divergence: str | None) -> tuple[str, ...]:
        """Names of the rows of `gram`; see `thermodiff.accounting.moments`."""
        ...

    def gram(self, key: Key, node: int, row: Row, samples: int, divergence: str | None) -> FloatArray:
        """Products of the samples, (m, products, >= samples), at the m nodes from ``node`` on; their scalars in ``row``."""
        ...

    def integrate(
        self, key: Key, nodes: slice, row: Row, plan: Plan, weights: FloatArray, divergence: str | None, sums: FloatArray
    ) -> FloatArray:
        """Add the weighted values of every sample at ``nodes`` to ``sums`` (values, samples), with reduced variance.

        Returns mean and sum of squared deviations of the values at each node, (m, values, 2).
        """
        ...

    def fixed_rows(self, window: tuple[float, float], total: Estimate | None) -> dict[str, Estimate]: ...
    def check(self, window: tuple[float, float], key: Key) -> Callable[[], Estimate] | None: ...


def account(
    source: Source,
    *,
    nodes: int = 64,
    samples: int = 10_000,
    rng: Any = None,
    lam: tuple[float, float] | None = None,
    times: tuple[float, float] | None = None,
    divergence: str | None = None,
    executor: Executor | None = None,
    chunk: int | None = None,
    progress: Progress = None,
) -> Ledger:
    """Measure the entropy of a diffusion.

    Parameters
    ----------
    source : Diffusion or LearnedDiffusion
    nodes : int
        Gauss-Legendre nodes in log-SNR, at most 4096.
    samples : int
        Draws per node, independent between nodes.  The errors, which come of as many (or of as many data points, if those
        are fewer), are uncertain by a part 1 / sqrt(2 samples) themselves: with five draws by a third, and rather too small.
    rng : int, SeedSequence, Generator or None
        Fixes every draw: the same ``rng``, ``nodes`` and window give exact and learned ledgers the same draws.
    lam, times : (float, float), optional
        The window, in log-SNR or in time.  The default is that of the schedule (see `Schedule.window`) and stands for the
        whole process: errors then include the little that lies beyond it.
    divergence : {"exact", "hutchinson"}, optional
        Also measure "residual" = E v.s + E div v, zero for a true score.
    executor : concurrent.futures.Executor, optional
        Where to run; threads by default.  The result is the same bits for any executor, and any ``chunk``.
    chunk : int, optional
        Taken as by `simulate`, and without effect: samples are drawn in parts that fit the cache whatever it is.
    progress : callable, False or None
        Called as ``progress(done, nodes)`` after every few nodes.  By default an account of more than two seconds in a
        terminal shows a bar.

    Returns
    -------
    Ledger
        Values in nats with standard errors.

    Notes
    -----
    Errors cover sampling, quadrature, round-off and, in the default window, what lies beyond it.  The known part of the
    quadrature error is taken off (`Ledger.corrections`).  What the course of a network over log-SNR adds to it is told
    from the rates at 24 nodes or more (`Ledger.unresolved`), but for a peak between two nodes.  They rest on the samples
    seen: a far-off component that is expected in fewer than some ten of them can make errors too small.

    Raises
    ------
    ValueError
        For arguments out of range, and where the entropy grows without bound so that a window must be stated.
    DivergenceError
        If a score returns nan or inf.
    """
    if not hasattr(source, "gram"):
        raise TypeError(
            f"account: it measures a Diffusion(data, noise) or a LearnedDiffusion(net, data, noise), got {source!r:.60}."
        )
    nodes, samples = count("nodes", nodes, most=MOST_NODES), count("samples", samples, 2)
    if chunk is not None:
        count("chunk", chunk)
    if divergence is not None:
        choice("divergence", divergence, ("exact", "hutchinson"))
    window = source.window(lam, times)
    key = seed_words(rng)
    node_lam, weights = gauss_legendre(*window, nodes)
    row = source.noise.at(node_lam)
    with np.errstate(over="ignore", invalid="ignore"):  # integrands that overflow are refused where they are averaged
        scalars = node_scalars(source, row)
        plan = moments.plan(source.products(divergence), scalars, samples)
    tasks = _tasks(nodes, max(1, min(8, SAMPLES_PER_TASK // samples)) if source.concurrent else 1)
    open_ended = lam is None and (times is None or times[0] == 0.0)
    measure = partial(_measure, source, key, row, weights, samples, divergence, plan)
    known = partial(_known_errors, source, window, node_lam, weights, open_ended)
    sums = np.zeros((len(plan.values), samples))
    means, errors = np.empty((nodes, len(plan.values))), np.empty((nodes, len(plan.values)))
    with reporting(progress, "account") as report:
        found = in_order(partial(_task, tasks, measure, known), len(tasks) + 1, executor, concurrent=source.concurrent)
        # In this order: zip looks for the next of the first before it takes one of the second, and one is left there.
        for here, (values, *statistics) in zip(tasks, found, strict=False):
            means[here], errors[here] = statistics
            sums += values
            report(here.stop, nodes)
        off = next(found)
    integrals, rates, rate_errors = _rows(plan, sums, means.T, errors.T, weights, moments.known_medium(scalars))
    rounding = _rounding_of_mismatch(source, row, weights, rates, scalars)
    quadrature, corrections = _correct_quadrature(off, source.precision, weights, integrals, scalars, rounding)
    ledger = Ledger(
        samples=integrals,
        rates=rates,
        rate_errors=rate_errors,
        lam=node_lam,
        times=row.time,
        weights=weights,
        lam_per_time=_lam_per_time(source.noise, row),
        window=window,
        key=(int(key[0]), int(key[1])),
        about=source.about,
        clusters=source.clusters,
        quadrature=quadrature,
        unresolved=_unresolved(node_lam, weights, window, rates, rate_errors),
        corrections=corrections,
        check=source.check(window, key),
    )
    ledger.fixed.update(source.fixed_rows(window, ledger.total("total") if "total" in integrals else None))
    return ledger


def node_scalars(source: Source, row: Row) -> Scalars:
    """What the rows of `moments` need to know of the nodes."""
    alpha, sigma, moment = np.asarray(row.alpha), np.asarray(row.sigma), source.second_moment
    return Scalars(
        sigma=sigma,
        q=-2.0 * np.asarray(row.growth) / sigma,
        dim=source.dim,
        mean_xx=None if moment is None else alpha**2 * moment + sigma**2 * source.dim,
        mean_cc=source.conditional_moment(alpha, sigma),
    )


def _tasks(nodes: int, together: int) -> list[slice]:
    """The nodes in tasks of ``together``, of fewer towards the end: no worker is left with much when others are done."""
    tasks, first = [], 0
    while first < nodes:
        while together > 2 and nodes - first < 3 * together:
            together = max(2, together // 2)
        tasks.append(slice(first, min(first + together, nodes)))
        first += together
    return tasks


def _task(tasks: list[slice], measure: Callable[[slice], Any], known: Callable[[], Any], k: int) -> Any:
    """Task k of an account; the last, which is short, is what is known of the error of the nodes."""
    return measure(tasks[k]) if k < len(tasks) else known()


def _measure(
    source: Source,
    key: Key,
    row: Row,
    weights: FloatArray,
    samples: int,
    divergence: str | None,
    plan: Plan,
    nodes: slice,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Some nodes: weighted sum (values, samples) of their integrands; means and standard errors (nodes, values)."""
    here = Row(*(np.asarray(entry)[nodes] for entry in row))
    sums = np.zeros((len(plan.values), samples))
    statistics = source.integrate(key, nodes, here, plan, weights[nodes], divergence, sums)
    for j in np.flatnonzero(~np.all(np.isfinite(statistics), axis=(1, 2))):
        one = Row(*(entry[j : j + 1] for entry in here))
        _not_finite(source.gram(key, nodes.start + j, one, samples, divergence)[0, :, :samples], one)
    return sums, statistics[..., 0], np.sqrt(statistics[..., 1] / (samples - 1) / samples)


def _rows(
    plan: Plan, sums: FloatArray, means: FloatArray, errors: FloatArray, weights: FloatArray, medium: FloatArray | None
) -> list[dict[str, FloatArray]]:
    """Integrals (samples,), rates and their errors (nodes,) by row: the values, medium, and system = total - medium."""
    tables = [dict(zip(plan.values, table, strict=True)) for table in (sums, means.copy(), errors.copy())]
    if medium is not None:
        whole = float(weights @ medium)
        known = [np.full(sums.shape[1], whole), medium, np.zeros_like(medium)]
        if "total" in plan.values:
            integrals, rates, rate_errors = tables
            system = [integrals["total"] - whole, rates["total"] - medium, rate_errors["total"]]
            tables = [table | {"system": row} for table, row in zip(tables, system, strict=True)]
        tables = [table | {"medium": row} for table, row in zip(tables, known, strict=True)]
    return [{name: table[name] for name in ORDER if name in table} for table in tables]


def _lam_per_time(noise: Schedule, row: Row) -> FloatArray:
    """-d lam / dt = 2 D / sigma^2 at the nodes, which turns rates per lam into rates per time."""
    return 2.0 * noise.diffusivity(row.time) / row.sigma**2


def _not_finite(gram: FloatArray, row: Row) -> NoReturn:
    bad = int(np.count_nonzero(~np.all(np.isfinite(gram), axis=0)))
    if not bad:
        raise DivergenceError(
            f"the integrands overflow at lam = {row.lam[0]:.4g} (t = {row.time[0]:.4g}); rescale the data to unit size."
        )
    raise DivergenceError(
        f"the score is nan or infinite for {bad} of {gram.shape[1]} samples at lam = {row.lam[0]:.4g} "
        f"(t = {row.time[0]:.4g}); check the score there, or choose a window without this point."
    )


def _rounding_of_mismatch(
    source: Source, row: Row, weights: FloatArray, rates: dict[str, FloatArray], scalars: Scalars
) -> float:
    """What the rounding of a network's output may do to its mismatch, nats; 0 for an exact score.

    With an error e of the score and a rounding r of it the mismatch is E|e + r|^2 / 2.  The mean of e.r need not fall with
    the number of samples: near the data x lies on the grid of its type, and what is added is rounded alike in all of them.
    It is bounded by the rms of both, with a sign of its own at each node.
    """
    rounding_at = getattr(source, "rounding", None)
    if "mismatch" not in rates or scalars.mean_xx is None or rounding_at is None:
        return 0.0
    learned, exact, error = (np.sqrt(2.0 * rates[name].clip(0.0)) for name in ("neural", "total", "mismatch"))
    rounded = rounding_at(row, scalars.q, learned, exact, np.sqrt(scalars.mean_xx))
    return float(np.linalg.norm(weights * error * rounded) + 0.5 * (weights @ rounded**2))


def _unresolved(
    lam: FloatArray,
    weights: FloatArray,
    window: tuple[float, float],
    rates: dict[str, FloatArray],
    errors: dict[str, FloatArray],
) -> dict[str, float]:
    """What the nodes miss of the rows of a network, by row; of its excess over the total where that is known."""
    if "neural" not in rates:
        return {}
    curves = {row: rates[row] for row in ("neural", "mismatch", "denoising", "residual") if row in rates}
    if "total" in rates:
        curves["neural"] = curves["neural - total"] = rates["neural"] - rates["total"]
    spread = {row: errors[row if row in errors else "neural"] for row in curves}
    return {row: unresolved(lam, weights, window, curve, spread[row]) for row, curve in curves.items()}


def _known_errors(
    source: Source, window: tuple[float, float], lam: FloatArray, weights: FloatArray, open_ended: bool
) -> dict[str, tuple[float, float]]:
    """Of the nodes, see `quadrature_errors`; none where the law of x_0 is not known."""
    moment, scales = source.second_moment, source.scales
    if moment is None or scales is None:
        return {}
    return quadrature_errors(source.noise, window, lam, weights, moment, scales, open_ended=open_ended)


def _correct_quadrature(
    found: dict[str, tuple[float, float]],
    precision: float,
    weights: FloatArray,
    integrals: dict[str, FloatArray],
    scalars: Scalars,
    rounding: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """Correct ``integrals`` by the known part of the error of the nodes; by row, the part left and the correction made.

    Learned rows share both with the total, in proportion to their size.  At an equilibrium, where only rounding is left of
    the total, the proportion is to the terms that cancel in it.  ``precision`` is that of the score,
    ``rounding`` that of the network's output in the mismatch.
    """
    if not found or scalars.mean_xx is None or "total" not in integrals:
        return {}, {}
    total = float(np.mean(integrals["total"]))
    errors = {row: left for row, (_, left) in found.items()}
    corrections = {row: -excess for row, (excess, _) in found.items()}
    terms = abs(total) + float(weights @ (0.5 * scalars.q**2 * scalars.mean_xx))
    whole = max(abs(total), CANCELLED * terms)
    for row in {"neural", "mismatch"} & set(integrals):
        share = float(np.mean(integrals[row])) / whole
        errors[row], corrections[row] = abs(share) * errors["total"], share * corrections["total"]
    if "mismatch" in errors:
        # Of the exact score nothing is left but the rounding of what cancels.
        errors["mismatch"] += float(np.finfo(np.float64).eps) * terms + rounding
    for row, correction in corrections.items():
        integrals[row] = integrals[row] + correction
    # A network answers in its own precision; in a paired difference that may be all there is.
    errors["neural - total"] = precision * abs(total) + abs(errors.get("neural", errors["total"]) - errors["total"])
    return errors, corrections
