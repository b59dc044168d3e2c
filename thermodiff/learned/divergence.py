"""Divergence of a field that Torch can differentiate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
Field = Callable[[torch.Tensor], torch.Tensor]


def exact_divergence(field: Field, points: torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """Values (n, d) and divergence (n,) of ``field`` at points (n, d), by d backward passes."""
    x = points.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        values = field(x)
        total = torch.zeros(x.shape[0], dtype=values.dtype, device=values.device)
        for i in range(x.shape[1]):
            (slope,) = torch.autograd.grad(values[:, i].sum(), x, retain_graph=i + 1 < x.shape[1])
            total += slope[:, i].to(values.device)
    return values.detach().cpu().numpy(), total.cpu().numpy()


def hutchinson_divergence(field: Field, points: torch.Tensor, seed: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """As `exact_divergence`, with one random sign vector per point: unbiased, by one backward pass."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    x = points.detach().clone().requires_grad_(True)
    probe = torch.from_numpy(generator.choice([-1.0, 1.0], size=tuple(points.shape)))
    with torch.enable_grad():
        values = field(x)
        (slope,) = torch.autograd.grad((values * probe.to(values.device)).sum(), x)
    return values.detach().cpu().numpy(), (slope * probe).sum(1).cpu().numpy()
