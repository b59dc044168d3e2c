"""torchdiffeq for the probability flow; all cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq

from thermodiff.bench.problems import FloatArray, Mixture
from thermodiff.bench.rivals._torch import mixture_score, parts_of


def _velocity(problem: Mixture) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    parts = parts_of(problem)

    def velocity(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        variance = torch.sigmoid(-u)
        return 0.5 * variance * (x + mixture_score(x, *parts, torch.sqrt(1.0 - variance), variance))

    return velocity


def flow_rk4(problem: Mixture) -> Callable[[], FloatArray]:
    """The classical rule is not among its methods: "rk4" is the 3/8 rule, of the same order and price."""
    velocity, edges = _velocity(problem), torch.from_numpy(problem.edges)
    start = torch.from_numpy(problem.start.T.copy())
    step = {"step_size": float(problem.edges[1] - problem.edges[0])}

    def work() -> FloatArray:
        with torch.no_grad():
            found: Any = torchdiffeq.odeint(velocity, start, edges[[0, -1]], method="rk4", options=step)
        return found[-1].numpy().T

    return work


def flow(problem: Mixture) -> Callable[[], FloatArray]:
    """Dopri5: all paths share their steps."""
    velocity, window = _velocity(problem), torch.tensor(problem.window, dtype=torch.float64)
    start = torch.from_numpy(problem.start.T.copy())

    def work() -> FloatArray:
        with torch.no_grad():
            found: Any = torchdiffeq.odeint(velocity, start, window, method="dopri5", rtol=problem.rtol, atol=problem.atol)
        return found[-1].numpy().T

    return work
