"""Training batches: data, normals, and log-SNR drawn where the gradient is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from thermodiff._check import array
from thermodiff.learned.losses import likelihood_weight
from thermodiff.learned.predict import tensor_row
from thermodiff.schedules import FloatArray, Row, Schedule

UNIFORM_EDGE = 1e-5
"""Times of the published scheme are uniform in [1e-5, t_end - 1e-5]."""
_BLOCK = 1 << 18  # numbers of data drawn in one call: small batches share the overhead of a call
_CELLS = 256
_FINEST = 0.15  # where structures end, in rms deviations, for the proposal only
_FLOOR = 0.15  # share of the proposal that is uniform, so that no weight is large


class Batch(NamedTuple):
    """One training batch; ``row`` holds tensors of shape (n, 1, ...), ``weights`` has shape (n,)."""

    x0: torch.Tensor
    z: torch.Tensor
    row: Row
    weights: torch.Tensor


class Source:
    """The data of a training: draws, mean and covariance, from a density-like object or from an array.

    Parameters
    ----------
    data : object or array
        Has ``sample(n, rng=)``, ``mean()`` and ``covariance()``; or an array (n, d) or (n, channels, height, width).
    """

    def __init__(self, data: Any) -> None:
        self._law = data if hasattr(data, "sample") and hasattr(data, "covariance") else None
        self._points = None if self._law is not None else _stored(data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.draw(1, np.random.default_rng(0)).shape[1:])

    def draw(self, n: int, rng: np.random.Generator) -> torch.Tensor:
        """``n`` independent draws, float32; with replacement from an array."""
        if self._points is not None:
            return self._points[torch.from_numpy(rng.integers(0, len(self._points), n))]
        values = self._law.sample(n, rng=rng)  # pyright: ignore[reportOptionalMemberAccess]
        ndim = 4 if np.ndim(values) == 4 else 2
        return torch.from_numpy(array("data.sample()", values, "(n, d)", ndim)).to(torch.float32)

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean (d,) and covariance (d, d) of the flattened data."""
        if self._points is None:
            law: Any = self._law
            mean = array("data.mean()", law.mean(), "(d,)", 1)
            return mean, array("data.covariance()", law.covariance(), "(d, d)", 2)
        flat = self._points.flatten(1).double().numpy()
        return flat.mean(0), np.atleast_2d(np.cov(flat, rowvar=False, bias=True))

    def variances(self) -> FloatArray:
        """Variances in the eigenbasis of the covariance; of single coordinates for more than 512 of them."""
        if self._points is not None and self._points[0].numel() > 512:
            return self._points.flatten(1).var(0, correction=0).double().numpy()
        return np.maximum(np.linalg.eigvalsh(self.moments()[1]), 0.0)


def _stored(data: Any) -> torch.Tensor:
    values = np.asarray(data)
    if values.ndim == 4 and values.dtype == np.float32 and np.isfinite(values).all() and values.size:
        return torch.from_numpy(np.ascontiguousarray(values))  # images keep their type: no copy
    ndim = 4 if values.ndim == 4 else 2
    stored = array("data", data, "(n, d) or (n, channels, height, width)", ndim)
    return torch.from_numpy(stored).to(torch.float32)


class LamProposal:
    """A density over the window from which training values of lam are drawn, constant on equal cells.

    The noise of the gradient is least for a density proportional to the rms gradient at each lam, that is the rms of
    the residual b_theta + z times the size that b_theta can change by.  For variances c of the data both hold a factor
    sqrt(alpha**2 c / (alpha**2 c + sigma**2)), and the second falls like sigma below the finest structures:

        mean of alpha**2 c / (alpha**2 c + sigma**2), times sigma / sqrt(sigma**2 + alpha**2 width**2).

    It leaves out the noise end, where the data is not seen, and the data end, where the score is finite and the target
    nearly all noise.  One part in seven is uniform.  On the published D = 3 mixture 1,000 steps leave an error of 2.1 %
    of the total entropy with lam uniform over the window, of 0.6 % with this density.
    """

    def __init__(self, noise: Schedule, low: float, high: float, variances: FloatArray) -> None:
        if not variances.sum() > 0.0:
            raise ValueError("the data does not vary; there is nothing to learn.")
        self.edges = np.linspace(low, high, _CELLS + 1)
        row = noise.at(0.5 * (self.edges[1:] + self.edges[:-1]))
        signal, noise_power = np.square(row.alpha), np.square(row.sigma)
        seen = (signal[:, None] * variances / (signal[:, None] * variances + noise_power[:, None])).mean(1)
        shape = seen * np.sqrt(noise_power / (noise_power + signal * _FINEST**2 * variances.mean()))
        mass = _FLOOR / _CELLS + (1.0 - _FLOOR) * shape / shape.sum()
        self.density = mass * _CELLS / (high - low)
        self.cumulative = np.append(0.0, np.cumsum(mass))
        self.cumulative /= self.cumulative[-1]

    def __call__(self, uniforms: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values of lam at the given quantiles, and the density there (per unit lam)."""
        cell = np.clip(np.searchsorted(self.cumulative, uniforms, side="right") - 1, 0, _CELLS - 1)
        return np.interp(uniforms, self.cumulative, self.edges), self.density[cell]


def lam_rows(noise: Schedule, proposal: LamProposal, likelihood: bool, uniforms: FloatArray) -> tuple[Row, FloatArray]:
    """Kernel and weights at lam from the proposal; the mean of weight times residual is the integral over lam."""
    lam, density = proposal(uniforms)
    row = noise.at(lam)
    return row, (0.5 / density if likelihood else 0.5 / (density * likelihood_weight(row, noise)))


def time_rows(noise: Schedule, likelihood: bool, uniforms: FloatArray) -> tuple[Row, FloatArray]:
    """Kernel and weights at times uniform in t, as published."""
    t = UNIFORM_EDGE + (noise.t_end - 2.0 * UNIFORM_EDGE) * uniforms
    row = noise.at(noise.lam(t))._replace(time=t)
    return row, (likelihood_weight(row, noise) if likelihood else np.ones_like(t))


def batches(
    source: Source, rows: Any, batch: int, pairs: bool, rng: np.random.Generator, normals: torch.Generator, device: Any
) -> Iterator[Batch]:
    """Endless batches.

    Parameters
    ----------
    source : Source
        Data.
    rows : callable
        ``rows(uniforms)`` gives the kernel and the weights at stratified uniforms.
    batch : int
        Samples per batch.
    pairs : bool
        Whether lam is stratified and samples come in pairs (x_0, z), (x_0, -z) at one lam: at the data end both see
        nearly the same x, and the noise of their targets cancels (measured: a fifth to a third less error).  Otherwise
        all draws are independent, as published.
    rng, normals
        Generators of data and times, and of z.
    device : torch.device
        Where the network is.
    """
    distinct = (batch + 1) // 2 if pairs else batch
    chunk = max(1, _BLOCK // (distinct * math.prod(source.shape)))
    while True:
        data = source.draw(chunk * distinct, rng)
        uniforms = rng.random((chunk, distinct))
        if pairs:
            uniforms = (np.arange(distinct) + uniforms) / distinct
        for x0, quantiles in zip(data.split(distinct), uniforms, strict=True):
            row, weights = rows(quantiles)
            z = torch.randn(x0.shape, generator=normals)
            if pairs:
                x0, z = torch.cat([x0, x0])[:batch], torch.cat([z, -z])[:batch]
                row = Row(*(np.concatenate([values, values])[:batch] for values in row))
                weights = np.concatenate([weights, weights])[:batch]
            x0, z = x0.to(device), z.to(device)
            yield Batch(x0, z, tensor_row(row, x0), torch.as_tensor(weights, dtype=x0.dtype, device=device))
