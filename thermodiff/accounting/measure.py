"""One accounting for exact and learned scores: nodes in log-SNR, draws, per-sample integrals, a `Ledger`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, choice, count, seed_words
from thermodiff._tasks import in_order, one_blas_thread
from thermodiff.accounting.estimate import Estimate
from thermodiff.accounting.ledger import Ledger, standard_error
from thermodiff.accounting.moments import SAMPLES_PER_CONTROL, Gram, Node, balance, controls, reduce_variance, rows
from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.accounting.quadrature import Widths, quadrature_errors
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]


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

    def conditional_moment(self, alpha: float, sigma: float) -> float:
        """E|c|^2 with c = sigma times the score of x given what it was drawn from."""
        ...

    @property
    def widths(self) -> Widths: ...
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

    def gram(self, key: Key, node: int, row: Row, samples: int, divergence: str | None, chunk: int | None) -> Gram:
        """Inner products of the samples of one node, whose scalars are in ``row``."""
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
    progress: Callable[[int, int], None] | None = None,
) -> Ledger:
    """Measure the entropy of a diffusion.

    Parameters
    ----------
    source : Diffusion or LearnedDiffusion
    nodes : int
        Gauss-Legendre nodes in log-SNR.
    samples : int
        Draws per node, independent between nodes.
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
        Blocks of 256 samples per call of the kernel, which bounds its working memory.
    progress : callable, optional
        Called as ``progress(done, nodes)`` after each node.

    Returns
    -------
    Ledger
        Values in nats with standard errors.

    Notes
    -----
    Errors cover sampling, quadrature, round-off and, in the default window, what lies beyond it.  They rest on the samples
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
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r:.60}.")
    nodes, samples = count("nodes", nodes), count("samples", samples, 2)
    chunk = None if chunk is None else count("chunk", chunk)
    if divergence is not None:
        choice("divergence", divergence, ("exact", "hutchinson"))
    window = source.window(lam, times)
    key = seed_words(rng)
    node_lam, weights = gauss_legendre(*window, nodes)
    row = source.noise.at(node_lam)
    rates, rate_errors, integrals = _Table(nodes), _Table(nodes), dict[str, FloatArray]()
    work = partial(_measure_node, source, key, row, weights, samples, divergence, chunk)
    with one_blas_thread():
        for k, (here, means, errors) in enumerate(in_order(work, nodes, executor, concurrent=source.concurrent)):
            rates.put(k, means)
            rate_errors.put(k, errors)
            for name, values in here.items():
                integrals[name] = integrals[name] + values if name in integrals else values
            if progress is not None:
                progress(k + 1, nodes)
    open_ended = lam is None and (times is None or times[0] == 0.0)
    quadrature = _quadrature(source, window, node_lam, weights, integrals, open_ended)
    ledger = Ledger(
        samples=integrals,
        rates=rates.rows,
        rate_errors=rate_errors.rows,
        lam=node_lam,
        times=row.time,
        weights=weights,
        lam_per_time=_lam_per_time(source.noise, row),
        window=window,
        key=(int(key[0]), int(key[1])),
        about=source.about,
        clusters=source.clusters,
        quadrature=quadrature,
        check=source.check(window, key),
    )
    ledger.fixed.update(source.fixed_rows(window, ledger.total("total") if "total" in integrals else None))
    return ledger


def _measure_node(
    source: Source,
    key: Key,
    row: Row,
    weights: FloatArray,
    samples: int,
    divergence: str | None,
    chunk: int | None,
    k: int,
) -> tuple[dict[str, FloatArray], dict[str, float], dict[str, float]]:
    """Weighted rows of one node, (n,) each, with reduced variance; their means and standard errors without weight."""
    here_row = Row(*(float(values[k]) for values in row))
    gram = source.gram(key, k, here_row, samples, divergence, chunk)
    _require_finite(gram, here_row)
    node = _node(source, here_row)
    here = rows(gram, node)
    # The residual tests the identities that the controls rest on: it stays as drawn.
    names = [name for name in here if name != "residual"]
    rest = balance(gram, node)
    if samples < 2 * SAMPLES_PER_CONTROL and rest is not None:
        # Too few samples to fit anything: take off what is zero on average with its coefficient in the total.
        here |= {name: here[name] - rest for name in ("total", "system", "neural") if name in here}
    adjusted = reduce_variance(np.array([here[name] for name in names]), controls(gram, node))
    here |= dict(zip(names, adjusted, strict=True))
    means = {name: float(np.mean(values)) for name, values in here.items()}
    errors = {name: standard_error(values, source.clusters) for name, values in here.items()}
    return {name: weights[k] * values for name, values in here.items()}, means, errors


def _node(source: Source, row: Row) -> Node:
    alpha, sigma, moment = float(row.alpha), float(row.sigma), source.second_moment
    return Node(
        sigma=sigma,
        q=-2.0 * float(row.growth) / sigma,
        dim=source.dim,
        mean_xx=None if moment is None else alpha**2 * moment + sigma**2 * source.dim,
        mean_cc=source.conditional_moment(alpha, sigma),
    )


class _Table:
    """Numbers of each row at each node."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.rows: dict[str, FloatArray] = {}

    def put(self, k: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self.rows.setdefault(name, np.zeros(self.nodes))[k] = number


def _lam_per_time(noise: Schedule, row: Row) -> FloatArray:
    """-d lam / dt = 2 D / sigma^2 at the nodes, which turns rates per lam into rates per time."""
    return 2.0 * noise.diffusivity(row.time) / row.sigma**2


def _require_finite(gram: Gram, row: Row) -> None:
    bad = [name for name, values in gram.items() if not np.all(np.isfinite(values))]
    if bad:
        samples = int(np.count_nonzero(~np.isfinite(gram[bad[0]])))
        raise DivergenceError(
            f"the score is nan or infinite for {samples} of {gram[bad[0]].size} samples at lam = {float(row.lam):.4g} "
            f"(t = {float(row.time):.4g}); check the score there, or choose a window without this point."
        )


def _quadrature(
    source: Source,
    window: tuple[float, float],
    lam: FloatArray,
    weights: FloatArray,
    integrals: dict[str, FloatArray],
    open_ended: bool,
) -> dict[str, float]:
    """Deterministic error of each row; that of the total stands for learned rows, in proportion to their size."""
    moment = source.second_moment
    if moment is None or not source.widths or "total" not in integrals:
        return {}
    errors = quadrature_errors(source.noise, window, lam, weights, moment, source.widths, open_ended=open_ended)
    total = float(np.mean(integrals["total"]))
    for name in {"neural", "mismatch"} & set(integrals):
        errors[name] = errors["total"] * abs(float(np.mean(integrals[name])) / total) if total else 0.0
    # A network answers in its own precision; in a paired difference that may be all there is.
    errors["neural - total"] = source.precision * abs(total)
    return errors
