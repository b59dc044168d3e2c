"""LearnedDiffusion: the ledger of a module whose error is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from thermodiff import account
from thermodiff.accounting import Ledger
from thermodiff.accounting.nodes import fine
from thermodiff.densities import Density, GaussianMixture
from thermodiff.diffusion import Diffusion
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.predict import drift_term, target
from thermodiff.schedules import VE, VP, CondOT, Cosine, Schedule, StraightLine, SubVP

UNIT = 2.0**-24
"""Relative rounding error of float32."""
STD = 0.4
MEANS = np.array([[-1.5, 0.0], [1.0, 0.5]])
LAW = GaussianMixture(MEANS, stds=STD, weights=[0.4, 0.6])
GAP = float(np.linalg.norm(MEANS[1] - MEANS[0]))

# (schedule, stated window or None for the default)
CASES = [
    (VP(), None),
    (VP(scale=0.1), None),
    (StraightLine(scale=0.1), None),
    (VE(), (-7.0, 9.0)),
    (SubVP(), (-8.0, 8.0)),
    (Cosine(scale=2.0), (-9.0, 7.0)),
    (CondOT(scale=0.5), (-6.0, 8.0)),
]


class Exact(nn.Module):
    """A module that predicts what the exact score of ``law`` implies, in the type of its input.

    The control is multiplied by ``control`` before the output is formed, and the output changed by ``change`` after.
    """

    double_time = True

    def __init__(
        self,
        law: Density,
        noise: Schedule,
        predicts: str = "entropy",
        change: Callable[[Any], Any] | None = None,
        control: float = 1.0,
    ) -> None:
        super().__init__()
        self.law, self.noise, self.predicts = law, noise, predicts
        self.control = control
        self.change = change or (lambda output: output)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = self.noise.at(-2.0 * np.log(float(t[0])) if self.predicts == "edm" else self.noise.lam(float(t[0])))
        points = x.double().numpy() * (float(row.alpha) if self.predicts == "edm" else 1.0)
        b = float(row.sigma) * self.law.score(points, alpha=float(row.alpha), sigma=float(row.sigma))
        if self.control != 1.0:
            drift = drift_term(points, row)
            b = drift + self.control * (b - drift)
        output = self.change(target(self.predicts, b, points, row, self.noise))
        return torch.from_numpy(np.ascontiguousarray(output)).to(x.dtype)


class Peaks(nn.Module):
    """The score of `LAW` times ``factor`` in torch, differentiable."""

    double_time = True

    def __init__(self, noise: Schedule, factor: float = 1.0) -> None:
        super().__init__()
        self.noise, self.factor = noise, factor
        self.register_buffer("means", torch.from_numpy(MEANS))
        self.register_buffer("logs", torch.log(torch.tensor([0.4, 0.6], dtype=torch.float64)))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        row = self.noise.at(self.noise.lam(float(t[0])))
        v = float(row.alpha) ** 2 * STD**2 + float(row.sigma) ** 2
        gaps = float(row.alpha) * self.means - x.double()[:, None, :]
        share = torch.softmax(self.logs - gaps.square().sum(2) / (2.0 * v), 1)
        return (self.factor * (share[:, :, None] * gaps).sum(1) / v).to(x.dtype)


class Recording(nn.Module):
    """Zero control with one layer of dropout; keeps what it was given."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros((), dtype=dtype))
        self.drop = nn.Dropout(0.5)
        self.seen: list[tuple[torch.dtype, torch.dtype, bool, int]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.dtype, t.dtype, self.training, len(x)))
        return self.drop(self.scale * x + 1.0)


def bound_of_mismatch(noise: Schedule, window: tuple[float, float], predicts: str) -> float:
    """Largest mismatch that float32 can cause in `Exact`, nats.

    The output o is rounded, by at most u|o|, and enters b with a factor g; the input is rounded, by at most u|x|, and
    enters through the slope of b = sigma s, at most sigma max(1/v, alpha^2 gap^2 / (4 v^2)) for two peaks of one width.
    E|o|^2 is at most what it is for the conditional target (Jensen).  The inner products are formed in float64: a few
    units of 2^-53 per node.
    """
    lam, weights = fine(*window)
    row = noise.at(lam)
    alpha, sigma, q, d = row.alpha, row.sigma, -2.0 * row.growth / row.sigma, 2
    clean = LAW.second_moment
    moment = alpha**2 * clean + sigma**2 * d
    scale = getattr(noise, "scale", 1.0)
    control = q * q * moment + 2.0 * q * sigma * d + d
    output = {
        "entropy": control,
        "flow": control,
        "score": d,
        "eps": d,
        "x0": alpha**2 * clean / sigma**2,
        "edm": alpha**2 * clean / sigma**2,
        "v": (alpha / (alpha**2 + sigma**2 / scale)) ** 2 * (alpha**2 * d + sigma**2 * clean / scale**2),
    }[predicts]
    v = alpha**2 * STD**2 + sigma**2
    slope = sigma * np.maximum(1.0 / v, alpha**2 * GAP**2 / (4.0 * v**2))
    square = UNIT**2 * (np.sqrt(output) + slope * np.sqrt(moment)) ** 2
    return float(weights @ (0.5 * square)) + 64.0 * 2.0**-53 * d * (window[1] - window[0])


def z_score(ledger: Ledger, row: str, expected: float, rounding: float = 0.0) -> float:
    """Deviation in standard errors, after an allowance for rounding."""
    estimate = ledger.total(row)
    gap = max(0.0, abs(estimate.value - expected) - rounding)
    return gap / estimate.error if gap else 0.0


def exact_ledger(noise: Schedule, window: tuple[float, float] | None, law: Density = LAW, **options: Any) -> Ledger:
    return account(Diffusion(law, noise), lam=window, **{"nodes": 32, "samples": 512, "rng": 3, **options})


def learned_ledger(net: Any, noise: Schedule, window: Any = None, data: Any = LAW, **options: Any) -> Ledger:
    given = {name: options.pop(name) for name in ("predicts", "batch") if name in options}
    model = LearnedDiffusion(net, data, noise, **given)
    return account(model, lam=window, **{"nodes": 32, "samples": 512, "rng": 3, **options})
