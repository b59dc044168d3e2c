"""Generation with a learned score, and what the control costs on the generated paths.

With b_theta = sigma s_theta and kappa = d ln alpha / dlam the model generates data, lam rising, by

    reverse process     dx = (kappa x + sigma b_theta) dlam + sigma dW
    probability flow    dx = (kappa x + (sigma / 2) b_theta) dlam

from its prior: the equilibrium of the schedule, or N(0, sigma_T^2) without one.  Step rules and noise are those of
`thermodiff.reverse`: with an exact score and the same key the paths are the same up to the precision of the network.

The cost of the control relative to the passive process, by Girsanov, is S_gen = 1/2 int dlam E |a - b_theta|^2 over the
generated paths, S_NN over those of the data; they agree for a perfect model (Premkumar, 2409.03817).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, choice, count, seed_words
from thermodiff.accounting import Ledger
from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.accounting.unresolved import unresolved
from thermodiff.densities.empirical import normals
from thermodiff.integrate.path import Path
from thermodiff.kernels import philox
from thermodiff.kernels.jit import LANES
from thermodiff.learned.field import DRAWN_TOGETHER
from thermodiff.schedules import Row, Schedule

if TYPE_CHECKING:
    from thermodiff.learned.model import LearnedDiffusion

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]

METHODS = {"reverse": ("heun", "euler", "exponential"), "flow": ("heun", "euler", "exponential", "rk4")}


def sample(
    model: LearnedDiffusion,
    n: int,
    *,
    process: str = "reverse",
    steps: int = 500,
    method: str = "heun",
    lam: tuple[float, float] | None = None,
    denoise: bool = True,
    rng: Any = None,
) -> Path:
    """Generate data from the prior; the states of the path are (2, n, ...), its ``final`` the generated data.

    Parameters
    ----------
    model : LearnedDiffusion
    n : int
        Number of samples.
    process : {"reverse", "flow"}
        The reverse process, or the probability flow.
    steps : int
        Uniform in log-SNR over the window.
    method : {"heun", "euler", "exponential", "rk4"}
        Step rule as for `thermodiff.reverse`; "rk4" for the flow alone.
    lam : (float, float), optional
        Log-SNR window; default that of an account.
    denoise : bool
        End with the step to the posterior mean E[x_0 | x].
    rng : int, SeedSequence, Generator or None
        Fixes start and noise.

    Raises
    ------
    ValueError
        Where a window must be stated; where the network is not what ``predicts`` says.
    DivergenceError
        If a path leaves the finite numbers, or the network is not finite at the end.
    """
    n, steps, key = count("n", n), count("steps", steps), seed_words(rng)
    choice("method", method, METHODS[choice("process", process, tuple(METHODS))])
    edges = np.linspace(*model.window(lam), steps + 1)
    model.try_out()
    states = np.empty((2, n, model.dim))

    def keep(edge: int, x: FloatArray, part: slice) -> None:
        if edge in (0, steps):
            states[0 if edge == 0 else 1, part] = x

    _march(model, edges, n, method, process, key, keep)
    if denoise:
        row = _scalars(model.noise, edges[-1])
        states[1] = (states[1] + row.sigma * model.field.values(states[1], row)) / row.alpha
        _require_finite_mean(states[1], row)
    at = edges[[0, -1]]
    return Path(model.noise.time(at), at, states.reshape(2, n, *model.shape), (int(key[0]), int(key[1])), denoise)


def generation_ledger(
    model: LearnedDiffusion,
    *,
    nodes: int = 64,
    samples: int = 1_000,
    steps: int = 500,
    method: str = "heun",
    lam: tuple[float, float] | None = None,
    rng: Any = None,
) -> Ledger:
    """S_gen: the neural entropy on the model's own reverse paths, as the row "generated" of a ledger.

    The paths step through the nodes of an account with the same ``nodes`` and window, where the control is measured; at
    the fineness of ``steps`` in all.  Errors are by path; those of the steps (order 2 in their length for "heun") are not
    in them: compare with twice as many.

    Parameters are those of `sample` and `thermodiff.account`.
    """
    nodes, samples, key = count("nodes", nodes), count("samples", samples, 2), seed_words(rng)
    choice("method", method, METHODS["reverse"])
    window = model.window(lam)
    model.try_out()
    node_lam, weights = gauss_legendre(*window, nodes)
    edges, at_node = _through(window, node_lam, count("steps", steps))
    values = np.empty((nodes, samples))

    def keep(edge: int, x: FloatArray, part: slice) -> None:
        node = at_node.get(edge)
        if node is not None:
            row = _scalars(model.noise, edges[edge])
            control = -2.0 * row.growth / row.sigma * x - model.field.values(x, row)
            values[node, part] = 0.5 * np.einsum("nd,nd->n", control, control)

    _march(model, edges, samples, method, "reverse", key, keep)
    row, rates, errors = model.noise.at(node_lam), values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(samples)
    return Ledger(
        samples={"generated": weights @ values},
        rates={"generated": rates},
        rate_errors={"generated": errors},
        unresolved={"generated": unresolved(node_lam, weights, window, rates, errors)},
        lam=node_lam,
        times=row.time,
        weights=weights,
        lam_per_time=2.0 * model.noise.diffusivity(row.time) / row.sigma**2,
        window=window,
        key=(int(key[0]), int(key[1])),
        about={**model.about, "paths": "generated", "steps": edges.size - 1, "method": method},
    )


def _through(window: tuple[float, float], nodes: FloatArray, steps: int) -> tuple[FloatArray, dict[int, int]]:
    """Rising edges of about ``steps`` steps through the nodes, and the node at an edge."""
    stops = np.concatenate([[window[0]], nodes[::-1], [window[1]]])
    counts = np.maximum(np.round(steps * np.diff(stops) / (window[1] - window[0])).astype(int), 1)
    pieces = [np.linspace(a, b, k + 1)[:-1] for a, b, k in zip(stops[:-1], stops[1:], counts, strict=True)]
    places = np.cumsum(counts)[:-1]
    return np.concatenate([*pieces, stops[-1:]]), {int(p): nodes.size - 1 - k for k, p in enumerate(places)}


def _scalars(noise: Schedule, lam: float) -> Row:
    return Row(*(float(entry) for entry in noise.at(float(lam))))


def _march(
    model: LearnedDiffusion, edges: FloatArray, n: int, method: str, process: str, key: Key, keep: Callable[..., None]
) -> None:
    """Carry ``n`` states over the edges, some at a time; ``keep(edge, x, part)`` sees x (m, d) at every edge."""
    together = max(1, DRAWN_TOGETHER // (model.dim * LANES)) * LANES
    width = model.noise.equilibrium_std or float(model.noise.at(edges[0]).sigma)
    for first in range(0, n, together):
        part = slice(first, min(first + together, n))
        x = width * normals(key, 0, model.dim, part.stop - first, philox.START, first).T
        keep(0, x, part)
        for k in range(edges.size - 1):
            z = normals(key, k, model.dim, part.stop - first, philox.PATH, first).T if process == "reverse" else None
            x = _step(model, x, edges[k], edges[k + 1], method, z)
            _require_finite(x, model.noise, edges[k + 1])
            keep(k + 1, x, part)


def _step(model: LearnedDiffusion, x: FloatArray, lam: float, after: float, method: str, z: FloatArray | None) -> FloatArray:
    """One step from ``lam`` to ``after``; ``z`` are normals for the reverse process, None for the flow."""
    share, length = 0.5 if z is None else 1.0, after - lam

    def drift(state: FloatArray, at: float) -> FloatArray:
        row = _scalars(model.noise, at)
        return row.growth * state + share * row.sigma * model.field.values(state, row)

    if method == "exponential":
        here, there = _scalars(model.noise, lam), _scalars(model.noise, after)
        forget = -np.expm1(-share * length)
        moved = there.alpha / here.alpha * (x + forget * here.sigma * model.field.values(x, here))
        return moved if z is None else moved + there.sigma * np.sqrt(forget) * z
    if method == "rk4":
        k1 = drift(x, lam)
        k2 = drift(x + 0.5 * length * k1, lam + 0.5 * length)
        k3 = drift(x + 0.5 * length * k2, lam + 0.5 * length)
        k4 = drift(x + length * k3, after)
        return x + length / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
    kick = 0.0 if z is None else _scalars(model.noise, lam + 0.5 * length).sigma * np.sqrt(length) * z
    first = drift(x, lam)
    if method == "euler":
        return x + length * first + kick
    return x + 0.5 * length * (first + drift(x + length * first + kick, after)) + kick


def _require_finite(x: FloatArray, noise: Schedule, lam: float) -> None:
    lost = int(np.count_nonzero(~np.isfinite(x).all(axis=1)))
    if lost:
        raise DivergenceError(
            f"{lost} of {len(x)} paths left the finite numbers at lam = {lam:.4g} (t = {float(noise.time(lam)):.4g}); "
            'take more steps, or method="exponential", which is stable however few they are.'
        )


def _require_finite_mean(x: FloatArray, row: Row) -> None:
    lost = int(np.count_nonzero(~np.isfinite(x).all(axis=1)))
    if lost:
        raise DivergenceError(
            f"the network is nan or infinite at {lost} of {len(x)} samples at the end, lam = {row.lam:.4g} "
            f"(t = {row.time:.4g}); end the window earlier, or pass denoise=False."
        )
