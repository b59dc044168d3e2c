"""diffrax: the whole batch as one state, or one solve per path under `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax

from thermodiff.bench.problems import DoubleWell, FloatArray, Mixture
from thermodiff.bench.rivals.jax_ import ready, velocity


def _last(found: diffrax.Solution) -> Any:
    """The only state that was saved."""
    assert found.ys is not None
    return found.ys[0]


def _solve(problem: DoubleWell, x0: Any, key: Any) -> Any:
    """Euler-Maruyama with the cheapest Brownian motion that diffrax has.

    Rounding of the accumulated time can leave one more step, of no length.
    """
    p = problem
    width = p.amplitude / p.dt**0.5
    motion = diffrax.UnsafeBrownianPath(x0.shape, key)
    drift = diffrax.ODETerm(lambda t, x, args: p.a * x - p.b * x * x * x)
    noise = diffrax.ControlTerm(lambda t, x, args: lineax.DiagonalLinearOperator(jnp.full(x.shape, width)), motion)
    found = diffrax.diffeqsolve(
        diffrax.MultiTerm(drift, noise), diffrax.Euler(), 0.0, p.steps * p.dt, p.dt, x0,
        saveat=diffrax.SaveAt(t1=True), adjoint=diffrax.DirectAdjoint(), max_steps=p.steps + 2,
    )  # fmt: skip
    return _last(found)


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """The whole batch as one state."""
    run = jax.jit(lambda x, key: _solve(problem, x, key))
    return ready(run, jnp.full(problem.paths, problem.start), jax.random.key(problem.seed))


def double_well_vmap(problem: DoubleWell) -> Callable[[], FloatArray]:
    """One solve per path, as the documentation of diffrax shows it."""
    run = jax.jit(jax.vmap(lambda x, key: _solve(problem, x, key)))
    keys = jax.random.split(jax.random.key(problem.seed), problem.paths)
    return ready(run, jnp.full((problem.paths, 1), problem.start), keys)


def flow(problem: Mixture) -> Callable[[], FloatArray]:
    """Dopri5 with its PID controller for the whole batch: all paths share their steps."""
    parts = [jnp.asarray(part) for part in problem.parts]
    term = diffrax.ODETerm(lambda u, x, args: velocity(u, x, *parts))

    @jax.jit
    def run(x: Any) -> Any:
        found = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), *problem.window, None, x, saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=problem.rtol, atol=problem.atol), max_steps=100_000,
        )  # fmt: skip
        return _last(found)

    return ready(run, jnp.asarray(problem.start))


def flow_vmap(problem: Mixture) -> Callable[[], FloatArray]:
    """Dopri5 path by path under `vmap`: each path has steps of its own, all wait for the slowest."""
    parts = [jnp.asarray(part) for part in problem.parts]
    term = diffrax.ODETerm(lambda u, x, args: velocity(u, x[None], *parts)[0])

    def one(x: Any) -> Any:
        found = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), *problem.window, None, x, saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=problem.rtol, atol=problem.atol), max_steps=100_000,
        )  # fmt: skip
        return _last(found)

    return ready(jax.jit(jax.vmap(one)), jnp.asarray(problem.start))
