"""azula's DDPM sampler with the exact posterior mean of the mixture as denoiser; all cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from azula.sample import DDPMSampler

from thermodiff.bench.problems import FloatArray, Mixture
from thermodiff.bench.rivals._torch import mixture_score, parts_of


class _LogSNR(Schedule):
    """VP with a clock that is linear in log-SNR: t = 1 is the noise end of the window, t = 0 its data end."""

    def __init__(self, window: tuple[float, float]) -> None:
        super().__init__()
        self.low, self.high = window

    def __call__(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.high + (self.low - self.high) * t
        return torch.sqrt(torch.sigmoid(u)), torch.sqrt(torch.sigmoid(-u))


class _Exact(Denoiser):
    def __init__(self, problem: Mixture) -> None:
        super().__init__()
        self.schedule, self.parts = _LogSNR(problem.window), parts_of(problem)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> DiracPosterior:
        alpha, sigma = self.schedule(t)
        score = mixture_score(x_t.T, *self.parts, alpha, sigma * sigma).T
        return DiracPosterior((x_t + sigma * sigma * score) / alpha)


def reverse(problem: Mixture) -> Callable[[], FloatArray]:
    """As many steps, at the same places; its rule is the ancestral one, of the same price as Euler-Maruyama."""
    sampler = DDPMSampler(_Exact(problem), steps=problem.steps, silent=True, dtype=torch.float64)
    start = torch.from_numpy(problem.start)

    def work() -> FloatArray:
        torch.manual_seed(problem.seed)
        with torch.no_grad():
            return sampler(start).numpy()

    return work
