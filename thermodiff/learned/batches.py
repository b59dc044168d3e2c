"""Training batches: data, labels, normals, and log-SNR drawn where the gradient is."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from thermodiff._check import array
from thermodiff.learned.devices import placed
from thermodiff.learned.images import Images, plain_array, to_float32, without_dataset
from thermodiff.learned.losses import likelihood_weight
from thermodiff.learned.networks import torch_generator
from thermodiff.learned.predict import tensor_row
from thermodiff.schedules import FloatArray, Row, Schedule

UNIFORM_EDGE = 1e-5
"""Times of the published scheme are uniform in [1e-5, t_end - 1e-5]."""
UNLABELLED_SHARE = 0.1
"""Share of samples whose label is hidden from a conditional network, so that it learns the unconditional law too."""
_BLOCK = 1 << 18  # numbers of data drawn in one call: small batches share the overhead of a call
_CELLS = 256
_FINEST = 0.15  # where structures end, in rms deviations, for the proposal only
_FLOOR = 0.15  # share of the proposal that is uniform, so that no weight is large


class Batch(NamedTuple):
    """One training batch; ``row`` is that of `tensor_row`, ``weights`` has shape (n,)."""

    x0: torch.Tensor
    z: torch.Tensor
    row: Row
    weights: torch.Tensor
    labels: torch.Tensor | None = None


class Source:
    """The data of a training: draws, mean and spread, from a density-like object, images or an array.

    Parameters
    ----------
    data : object or array
        Has ``sample(n, rng=)``, ``mean()`` and ``covariance()``; or `Images`, not empty; or an array (n, d) or (n,
        channels, height, width), or a torch dataset of such points or images, whose labels are left out.  Grey levels need
        `Images`, which says what they mean.
    """

    def __init__(self, data: Any) -> None:
        self._law = data if hasattr(data, "sample") and hasattr(data, "covariance") else None
        self._images = data if isinstance(data, Images) else None
        if self._images is not None and not len(self._images):
            raise ValueError(f"data is empty, {data!r}; give at least one image.")
        self._points = None if self._law is not None or self._images is not None else _stored(data)
        self.shape: tuple[int, ...] = tuple(self.draw(1, np.random.default_rng(0)).shape[1:])
        """Shape of one sample."""

    @property
    def classes(self) -> int | None:
        """Number of classes of labelled images."""
        return None if self._images is None else self._images.classes

    def draw(self, n: int, rng: np.random.Generator) -> torch.Tensor:
        """``n`` independent draws, float32; with replacement from images or an array."""
        return self.draw_labelled(n, rng)[0]

    def draw_labelled(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``n`` draws, and their labels (n,) where there are any."""
        if self._images is not None:
            index = torch.from_numpy(rng.integers(0, len(self._images), n))
            labels = self._images.labels
            return self._images.draw(index, rng), None if labels is None else labels[index]
        if self._points is not None:
            return self._points[torch.from_numpy(rng.integers(0, len(self._points), n))], None
        values = self._law.sample(n, rng=rng)  # pyright: ignore[reportOptionalMemberAccess]
        ndim = 4 if np.ndim(values) == 4 else 2
        return torch.from_numpy(array("data.sample()", values, "(n, d)", ndim)).to(torch.float32), None

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean (d,) and covariance (d, d) of vectors; mean and variances (d,) of the flattened pixels of images."""
        if self._law is not None:
            law: Any = self._law
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused here
                mean, covariance = law.mean(), law.covariance()
            return array("data.mean()", mean, "(d,)", 1), array("data.covariance()", covariance, "(d, d)", 2)
        flat = self._flat().double()
        if len(self.shape) > 1:
            return flat.mean(0).numpy(), flat.var(0, correction=0).numpy()
        return flat.mean(0).numpy(), np.atleast_2d(np.cov(flat.numpy(), rowvar=False, bias=True))

    def variances(self) -> FloatArray:
        """Variances in the eigenbasis of the covariance; of single coordinates for more than 512 of them."""
        if self._law is None and math.prod(self.shape) > 512:
            return self._flat().var(0, correction=0).double().numpy()
        covariance = self.moments()[1]
        if covariance.ndim == 1:
            covariance = np.atleast_2d(np.cov(self._flat().double().numpy(), rowvar=False, bias=True))
        return np.maximum(np.linalg.eigvalsh(covariance), 0.0)

    def fingerprint(self) -> str:
        """A digest of the data, or of the moments of a law and some draws: two trainings on other data differ in it."""
        digest = hashlib.sha256(repr(self.shape).encode())
        parts = (self._stored().numpy(),) if self._law is None else (*self.moments(), self._some_draws())
        for part in parts:
            digest.update(np.ascontiguousarray(part).data)
        if self._images is not None:
            digest.update(repr((self._images.span, self._images.dequantise, self._images.levels)).encode())
            digest.update(b"" if self._images.labels is None else self._images.labels.numpy().data)
        return digest.hexdigest()

    def _some_draws(self) -> FloatArray:
        """Draws of a law by a fixed key, rounded: moments alone are shared by other laws."""
        draws = np.asarray(self.draw(64, np.random.default_rng(1)), dtype=np.float64)
        return (draws / max(float(np.abs(draws).max()), 1e-300)).round(4) + 0.0

    def _stored(self) -> torch.Tensor:
        return self._images.values if self._images is not None else self._points  # pyright: ignore[reportReturnType]

    def _flat(self) -> torch.Tensor:
        """All samples as rows, float32."""
        values = self._points if self._images is None else torch.from_numpy(np.asarray(self._images))
        assert values is not None
        return values.flatten(1)


def _stored(data: Any) -> torch.Tensor:
    data = without_dataset(data)
    values = plain_array(data)
    if values.ndim == 4 and values.dtype.kind in "iub":
        raise TypeError(
            f"the images are of type {values.dtype}, whose scale is not said; pass Images(values, span=(0, 1)), or divide."
        )
    if values.ndim == 4 and values.dtype == np.float32 and np.isfinite(values).all() and values.size:
        return torch.from_numpy(np.ascontiguousarray(values))  # images keep their type: no copy
    ndim = 4 if values.ndim == 4 else 2
    given = values if isinstance(data, torch.Tensor) else data
    return torch.from_numpy(to_float32("data", array("data", given, "(n, d) or (n, channels, height, width)", ndim)))


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


class Stream:
    """Batches by number: batch k is the same whichever were made before it, and however many processes share it.

    The random numbers of a chunk of batches come from a generator of its own, keyed by the chunk.  So a training that
    goes on at step k needs no state of a generator, and each process of several takes its part of the batch that one
    process would have.

    Parameters
    ----------
    source : Source
        Data.
    rows : callable
        ``rows(uniforms)`` gives the kernel and the weights at stratified uniforms.
    batch : int
        Samples per batch, over all processes.
    pairs : bool
        Whether lam is stratified and samples come in pairs (x_0, z), (x_0, -z) at one lam: at the data end both see
        nearly the same x, and the noise of their targets cancels (measured: a fifth to a third less error).  Otherwise
        all draws are independent, as published.
    words : array of two uint32
        The key of all draws.
    device : torch.device
        Where the network is.
    rank, ranks : int
        This process takes samples rank, rank + ranks, ... of each batch.
    unlabelled : int, optional
        Labels are drawn too, and one in ten is replaced by this one, "no class stated".
    """

    def __init__(
        self,
        source: Source,
        rows: Any,
        batch: int,
        pairs: bool,
        words: Any,
        device: torch.device,
        *,
        rank: int = 0,
        ranks: int = 1,
        unlabelled: int | None = None,
    ) -> None:
        self._source, self._rows, self._batch, self._pairs = source, rows, batch, pairs
        self._words, self._device, self._part = [int(word) for word in words], device, slice(rank, None, ranks)
        self._distinct = (batch + 1) // 2 if pairs else batch
        self._unlabelled = unlabelled
        self._length = max(1, _BLOCK // (self._distinct * math.prod(source.shape)))
        self._number, self._chunk = -1, Batch(*[None] * 5)  # pyright: ignore[reportArgumentType]

    def __call__(self, step: int) -> Batch:
        """Batch number ``step``, counted from 0."""
        number, place = divmod(step, self._length)
        if number != self._number:
            self._number, self._chunk = number, self._make(number)
        x0, z, row, weights, labels = self._chunk
        return Batch(
            x0[place], z[place], Row(*(entry[place] for entry in row)), weights[place],
            None if labels is None else labels[place],
        )  # fmt: skip

    def _make(self, number: int) -> Batch:
        """The chunk: all entries with an axis of batches in front."""
        shape = (self._length, self._distinct)
        seeds = np.random.SeedSequence(self._words, spawn_key=(number,)).spawn(2)
        rng = np.random.default_rng(seeds[0])
        x0, labels = self._source.draw_labelled(math.prod(shape), rng)
        x0 = x0.reshape(*shape, *x0.shape[1:])
        uniforms = rng.random(shape)
        if self._pairs:
            uniforms = (np.arange(self._distinct) + uniforms) / self._distinct
        row, weights = self._rows(uniforms.ravel())
        row = tensor_row(row, x0.flatten(0, 1))
        row = Row(*(entry.reshape(*shape, *entry.shape[1:]) for entry in row))
        weights = torch.as_tensor(weights, dtype=x0.dtype).reshape(shape)
        z = torch.randn(x0.shape, generator=torch_generator(seeds[1]))
        if self._unlabelled is not None:
            assert labels is not None
            drop = torch.from_numpy(rng.random(shape) < UNLABELLED_SHARE)
            labels = torch.where(drop, self._unlabelled, labels.reshape(shape))
            labels = self._there(labels, labels)
        move = self._there
        return Batch(
            move(x0, x0), move(z, -z), Row(*((self._own if entry is row.time else move)(entry, entry) for entry in row)),
            move(weights, weights), None if self._unlabelled is None else labels,
        )  # fmt: skip

    def _there(self, values: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """The part of this process where the network is."""
        return placed(self._own(values, mirrored), self._device)

    def _own(self, values: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """The part of this process, with the second of each pair."""
        if self._pairs:
            values = torch.cat([values, mirrored], 1)[:, : self._batch]
        return values[:, self._part]
