"""A diffusion whose score is a network: what `thermodiff.account` measures on the learned path."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import above, array, count, points, time_within
from thermodiff._tasks import workspace
from thermodiff.accounting import Estimate
from thermodiff.accounting.ledger import standard_error
from thermodiff.accounting.moments import Plan
from thermodiff.accounting.quadrature import Scales
from thermodiff.densities import Density, Samples
from thermodiff.densities.empirical import probes
from thermodiff.diffusion import Diffusion, accounting_window, noise_kl
from thermodiff.kernels.controls import adjust, in_blocks
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import at_points
from thermodiff.learned.field import DRAWN_TOGETHER, Field, usual_batch
from thermodiff.learned.images import grey_span, plain_array, require_span, without_dataset
from thermodiff.learned.meaning import reading_of, require_schedule, warn_beyond_training
from thermodiff.learned.predict import check_window, dimensionless_score
from thermodiff.learned.reading import check_reading
from thermodiff.learned.sampling import sample
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]


class LearnedDiffusion:
    """The diffusion of ``data`` under ``noise`` with a learned score.

    Parameters
    ----------
    net : torch.nn.Module
        Called as ``net(x, t)`` with x (n, d), or (n, channels, height, width), in the type of its weights (float32 without
        weights) and t (n,); returns the shape of x.
    data : density, Samples, array or Images
        With a density the exact score is known, so that the ledger has "total" and "mismatch"; with samples of an
        unknown law it has "medium", "neural" and "denoising".  An array (n, d) or (n, channels, height, width) is taken
        as Samples; grey levels (uint8) need `Images`, which says what they mean.
    noise : Schedule
    predicts : {"entropy", "score", "eps", "x0", "v", "flow", "edm"}, optional
        What the network gives; see `thermodiff.learned.predict`.  Default: ``net.predicts``, which `train` sets, or
        "entropy".
    batch : int, optional
        Samples in one call of the network; default 8192, fewer for data of more than 16 numbers.  It is halved where
        memory is short.
    shape : tuple of int, optional
        One sample as the network takes it, where the data does not say: (1, 8, 8) for a density in d = 64, or for an array
        (n, 64).  Images have a shape of their own, and no other is taken for them.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Any,
        noise: Schedule,
        *,
        predicts: str | None = None,
        batch: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        if not isinstance(noise, Schedule):
            raise TypeError(f"LearnedDiffusion: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
        if not callable(net):
            raise TypeError(f"LearnedDiffusion: net must be a module called as net(x, t), got {type(net).__name__}.")
        self.net = net
        self.data, own = flattened(data)
        self.span = grey_span(data)
        self.noise = noise
        require_schedule(net, noise)
        self.predicts = reading_of(predicts, net=net)
        self.shape = own if shape is None else tuple(shape)
        if math.prod(self.shape) != self.dim:
            raise ValueError(f"shape {self.shape} has {math.prod(self.shape)} numbers, the data has d = {self.dim}; fit it.")
        require_layout(own, self.shape)
        batch = usual_batch(self.dim) if batch is None else count("batch", batch)
        self.field = Field(net, self.predicts, noise, self.shape, batch)
        self._tried = self._told = False

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.data.dim

    @property
    def precision(self) -> float:
        """Relative precision of what the network returns."""
        return float(torch.finfo(self.field.weights.dtype).eps)

    def rounding(self, row: Row, q: FloatArray, learned: FloatArray, exact: FloatArray, points: FloatArray) -> FloatArray:
        """Rms rounding error of b_theta at nodes, in the type of the network; (m,) as all arguments.

        ``learned``, ``exact`` and ``points`` are the rms of b_theta - q x, b - q x and x.  The output is b_theta - h x but
        for a factor.  The input is rounded as well: h x is formed without that, and b has a slope of about
        E|b|^2 / (d sigma), at most 1 / sigma.
        """
        h = np.asarray(dimensionless_score(self.predicts, 0.0, 1.0, row, self.noise))
        output, b = learned + np.abs(q - h) * points, exact + np.abs(q) * points
        slope = np.abs(h) + np.minimum(1.0, b**2 / self.dim) / row.sigma
        # Half a unit in the last place is precision / 4 to precision / 2 of a number; the rms is 1 / sqrt(3) of that.
        return 0.2 * self.precision * np.hypot(output, slope * points) + self._rounding_of_time(row) * output

    def _rounding_of_time(self, row: Row) -> FloatArray | float:
        """Relative error of the factor between output and b, formed with a rounded time in the network: large near t = 1."""
        if self.predicts == "edm" or getattr(self.net, "double_time", False):
            return 0.0
        times = torch.from_numpy(np.asarray(row.time)).to(self.field.weights.dtype).double().numpy()
        rounded = self.noise.at(self.noise.lam(np.minimum(times, np.nextafter(self.noise.t_end, 0.0))))
        exact, used = (dimensionless_score(self.predicts, 1.0, 0.0, each, self.noise) for each in (row, rounded))
        return np.abs(np.asarray(exact / used) - 1.0)

    @property
    def concurrent(self) -> bool:
        """Torch has threads of its own, and a module need not be safe to call from several."""
        return False

    @property
    def second_moment(self) -> float | None:
        """E|x_0|^2 of a density; unknown for samples."""
        return self.data.second_moment if isinstance(self.data, Density) else None

    @property
    def scales(self) -> Scales | None:
        """What the quadrature error rests on, where the law of the data is known."""
        return self.data.scales if isinstance(self.data, Density) else None

    @property
    def clusters(self) -> int | None:
        """Data points that serve several samples."""
        return None if isinstance(self.data, Density) else self.data.points.shape[0]

    @property
    def about(self) -> dict[str, Any]:
        """Header of the ledger."""
        record = {"data": self.data.label, "noise": self.noise.to_dict(), "schedule": self.noise.name}
        network = {"network": type(self.net).__name__, "predicts": self.predicts}
        return {**record, "score": "learned", "dim": self.dim, **network}

    def conditional_moment(self, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> FloatArray:
        """E|c|^2 with c = sigma times the score of x given what it was drawn from; (...) as alpha and sigma."""
        if isinstance(self.data, Density):
            return self.data.conditional_moment(alpha, sigma)
        return np.full(np.shape(alpha), float(self.dim))

    def try_out(self) -> None:
        """Refuse a ``predicts`` that is plainly not what the network gives; tried once, with some hundred samples.

        Raises
        ------
        ValueError
            See `thermodiff.learned.reading`.
        """
        if not self._tried:
            check_reading(self.field, self.data)
            self._tried = True

    def window(
        self, lam: tuple[float, float] | None = None, times: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """The log-SNR window of an account; to be stated for samples, point clouds, SubVP and CondOT.

        Raises
        ------
        ValueError
            Also where it begins beyond the end of the schedule, which no time of it reaches.

        Warns
        -----
        RuntimeWarning
            Where it goes beyond ``net.window``, that of the training.
        """
        if isinstance(self.data, Density):
            window = Diffusion(self.data, self.noise).window(lam, times)
        else:
            window = accounting_window(self.noise, True, self.data.label, lam, times)
        window = check_window(self.predicts, self.noise, window)
        self._told = self._told or warn_beyond_training(self.net, window)
        return window

    def score(self, x: npt.ArrayLike, t: float) -> FloatArray:
        """The learned score grad log p_theta at points (n, d), or (n, ...) as `shape` says, and time t > 0; as x."""
        row = Row(*(float(value) for value in self.noise.at(self.noise.lam(self._time(t)))))
        given = self._points(x)
        return (self.field.values(given.reshape(-1, self.dim), row) / row.sigma).reshape(given.shape)

    def _time(self, t: float) -> float:
        return above("t", time_within(t, self.noise.t_end), 0.0, "sigma would vanish")

    def _points(self, x: npt.ArrayLike) -> FloatArray:
        """``x`` checked: points (n, d), or (n, ...) in the shape of the samples."""
        require_span(x, self.span)
        if len(self.shape) == 1:
            return points("x", x, self.dim)
        needed = f"(n, {self.dim}) or (n, {', '.join(map(str, self.shape))})"
        ndim = 2
        with suppress(ValueError):  # lists that are no array are refused below
            ndim = max(2, np.ndim(x))
        checked = array("x", x, needed, 2 if ndim == 2 else 1 + len(self.shape))
        if checked.shape[1:] not in ((self.dim,), self.shape):
            raise ValueError(f"x must have shape {needed}, got {checked.shape}; one row for each sample.")
        return checked

    def sample(self, n: int, **options: Any) -> FloatArray:
        """``n`` generated samples (n, ...), by the reverse process from the prior; options of `sampling.sample`."""
        return sample(self, n, **options).final

    def products(self, divergence: str | None = None) -> tuple[str, ...]:
        """Names of the rows of `gram`."""
        names = ("xx", "xe", "ee")
        if isinstance(self.data, Density):
            names += ("xb", "bb", "eb", *self.data.conditional_names, "div", "logp", *self.data.component_names)
        else:
            names += ("xc", "cc", "ec")
        return names if divergence is None else (*names, "ediv")

    def gram(self, key: Key, node: int, row: Row, samples: int, divergence: str | None = None) -> FloatArray:
        """The rows of `products` for the samples of the nodes from ``node`` on, (m, products, samples)."""
        out = np.empty((len(row.lam), len(self.products(divergence)), samples))
        for j in range(len(row.lam)):
            self._node(key, node + j, Row(*(float(entry[j]) for entry in row)), divergence, out[j])
        return out

    def integrate(
        self,
        key: Key,
        nodes: slice,
        row: Row,
        plan: Plan,
        weights: FloatArray,
        divergence: str | None,
        sums: FloatArray,
    ) -> FloatArray:
        """Add the weighted values of every sample at ``nodes`` to ``sums``; see `thermodiff.accounting.measure.Source`."""
        self.try_out()
        gram = workspace("gram", (len(self.products(divergence)), sums.shape[1]))
        out, statistics = workspace("values", sums.shape), np.empty((len(weights), len(sums), 2))
        for j in range(len(weights)):
            self._node(key, nodes.start + j, Row(*(float(entry[j]) for entry in row)), divergence, gram)
            adjust(in_blocks(gram), sums.shape[1], *plan.arguments(nodes.start + j), out, statistics[j])
            if self.clusters is not None:
                # Data points that serve several samples are the independent units.
                n = sums.shape[1]
                statistics[j, :, 1] = [standard_error(values, self.clusters) ** 2 * n * (n - 1) for values in out]
            sums += weights[j] * out
        return statistics

    def _node(self, key: Key, node: int, row: Row, divergence: str | None, out: FloatArray) -> None:
        """The rows of `products` at one node into ``out``, some samples at a time."""
        samples = out.shape[1]
        together = max(1, DRAWN_TOGETHER // (self.dim * LANES)) * LANES
        for start in range(0, samples, together):
            self._part(key, node, row, divergence, start, out[:, start : start + together])

    def _part(self, key: Key, node: int, row: Row, divergence: str | None, start: int, out: FloatArray) -> None:
        """The rows of `products` at one node for the samples from ``start`` on."""
        samples, slope = out.shape[1], None
        x, c = self.data.draw(key, node, row.alpha, row.sigma, samples, start)
        if divergence is None:
            e = self.field.values(x.T, row).T
        else:
            signs = self._signs(key, node, samples, start) if divergence == "hutchinson" else None
            learned, slope = self.field.with_divergence(x.T, row, signs)
            e = learned.T
        pairs = [(x, x), (x, e), (e, e)]
        if isinstance(self.data, Density):
            law, d = self.data.law, self.dim
            scalars = (row.alpha, row.sigma**2, 0.0, row.sigma)
            exact = at_points(law.score, law.params, scalars, x.T, d + 2 + law.component_rows).T
            b = exact[:d]
            pairs += [(x, b), (b, b), (e, b)]
            if self.data.conditional_names:
                pairs += [(x, c), (c, c), (c, b)]
            last = len(pairs) + exact.shape[0] - d
            out[len(pairs) : last] = exact[d:]
            out[len(pairs)] *= row.sigma
        else:
            pairs += [(x, c), (c, c), (e, c)]
        for target, (one, two) in zip(out, pairs, strict=False):
            np.einsum("dn,dn->n", one, two, out=target)
        if slope is not None:
            out[-1] = row.sigma * slope.reshape(-1)

    def _signs(self, key: Key, node: int, samples: int, start: int) -> FloatArray:
        """Random signs (1, n, d) for Hutchinson's estimate, functions of key, node and sample."""
        return np.sign(probes(key, node, self.dim, samples, start)).T[None]

    def fixed_rows(self, window: tuple[float, float], total: Estimate | None) -> dict[str, Estimate]:
        """prior = KL(p_T || prior), where the law of the data is known."""
        if not isinstance(self.data, Density):
            return {}
        return {"prior": noise_kl(self.data, self.noise, window[0])}

    def check(self, window: tuple[float, float], key: Key) -> Callable[[], Estimate] | None:
        """The oracle of "total", where the law of the data is known."""
        return Diffusion(self.data, self.noise).check(window, key) if isinstance(self.data, Density) else None


def require_layout(own: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse images of shape ``own`` for a network that takes ``shape``: as many numbers would be scrambled."""
    if len(own) > 1 and own != shape:
        raise ValueError(
            f"one sample of the data has shape {own}, the network takes {shape}: as many numbers, laid out otherwise; bring "
            "the data to that shape, for images by moving the axis of channels."
        )


def flattened(data: Any) -> tuple[Density | Samples, tuple[int, ...]]:
    """``data`` as a law of vectors, and the shape of one of its samples."""
    if isinstance(data, Density | Samples):
        return data, (data.dim,)
    data = without_dataset(data)
    values = plain_array(data)
    if values.ndim != 4:
        return Samples(values if isinstance(data, torch.Tensor) else data), values.shape[1:]
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(
            f"the images are of type {values.dtype}, whose scale is not said; pass Images(values, span=(0, 1)), or divide."
        )
    checked = array("images", values, "(n, channels, height, width)", 4)
    return Samples(checked.reshape(checked.shape[0], -1)), values.shape[1:]
