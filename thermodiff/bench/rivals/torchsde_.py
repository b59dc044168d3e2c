"""torchsde, its Brownian interval told the step; all cores."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchsde

from thermodiff.bench.problems import DoubleWell, FloatArray


class _Well(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: DoubleWell) -> None:
        super().__init__()
        self.a, self.b, self.width = problem.a, problem.b, problem.amplitude / problem.dt**0.5

    def f(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Drift."""
        return self.a * x - self.b * x * x * x

    def g(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Amplitude of the noise."""
        return torch.full_like(x, self.width)


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """``dt`` told, the fastest of its ways."""
    well, end = _Well(problem), problem.steps * problem.dt
    times = torch.tensor([0.0, end], dtype=torch.float64)
    x0 = torch.full((problem.paths, 1), problem.start, dtype=torch.float64)

    def work() -> FloatArray:
        motion = torchsde.BrownianInterval(
            0.0, end, size=tuple(x0.shape), dtype=torch.float64, entropy=problem.seed, dt=problem.dt
        )
        with torch.no_grad():
            return torchsde.sdeint(well, x0, times, bm=motion, method="euler", dt=problem.dt)[-1].numpy()

    return work
