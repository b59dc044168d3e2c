"""A diffusion whose score is a network: what `thermodiff.account` measures on the learned path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import above, choice, count, points
from thermodiff._tasks import workspace
from thermodiff.accounting import Estimate
from thermodiff.accounting.ledger import standard_error
from thermodiff.accounting.moments import Plan
from thermodiff.accounting.quadrature import Scales
from thermodiff.densities import Density, Samples
from thermodiff.densities.empirical import probes
from thermodiff.diffusion import Diffusion, accounting_window, noise_kl
from thermodiff.kernels.controls import adjust
from thermodiff.kernels.tasks import at_points
from thermodiff.learned.divergence import exact_divergence, hutchinson_divergence
from thermodiff.learned.predict import PREDICTS, call, dimensionless_score
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]


class LearnedDiffusion:
    """The diffusion of ``data`` under ``noise`` with a learned score.

    Parameters
    ----------
    net : torch.nn.Module
        Called as ``net(x, t)`` with x (n, d) in the type of its weights (float32 without weights) and t (n,); returns
        (n, d).
    data : density, Samples or (n, d) array
        With a density the exact score is known, so that the ledger has "total" and "mismatch"; with samples of an
        unknown law it has "medium" and "neural".  An array is taken as Samples.
    noise : Schedule
    predicts : {"entropy", "score", "eps", "x0", "v", "flow"}
        What the network gives; see `thermodiff.learned.predict`.
    batch : int
        Samples in one call of the network.
    """

    def __init__(self, net: nn.Module, data: Any, noise: Schedule, *, predicts: str = "entropy", batch: int = 8192) -> None:
        if not isinstance(noise, Schedule):
            raise TypeError(f"LearnedDiffusion: noise must be a schedule (VP(), ...), got {type(noise).__name__}.")
        if not callable(net):
            raise TypeError(f"LearnedDiffusion: net must be a module called as net(x, t), got {type(net).__name__}.")
        self.net = net
        self.data: Density | Samples = data if isinstance(data, Density | Samples) else Samples(data)
        self.noise = noise
        self.predicts = choice("predicts", predicts, PREDICTS)
        self.batch = count("batch", batch)

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.data.dim

    @property
    def precision(self) -> float:
        """Relative precision of what the network returns."""
        return float(torch.finfo(_dtype(self.net)).eps)

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
        return {**record, "score": "learned", "network": type(self.net).__name__, "predicts": self.predicts}

    def conditional_moment(self, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> FloatArray:
        """E|c|^2 with c = sigma times the score of x given what it was drawn from; (...) as alpha and sigma."""
        if isinstance(self.data, Density):
            return self.data.conditional_moment(alpha, sigma)
        return np.full(np.shape(alpha), float(self.dim))

    def window(
        self, lam: tuple[float, float] | None = None, times: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """The log-SNR window of an account; to be stated for samples, point clouds, SubVP and CondOT."""
        if isinstance(self.data, Density):
            return Diffusion(self.data, self.noise).window(lam, times)
        return accounting_window(self.noise, True, self.data.label, lam, times)

    def score(self, x: npt.ArrayLike, t: float) -> FloatArray:
        """The learned score grad log p_theta at points (n, d) and time t > 0; (n, d)."""
        row = Row(*(float(value) for value in self.noise.at(self.noise.lam(above("t", t, 0.0, "sigma would vanish")))))
        with self._evaluating():
            return self._dimensionless(points("x", x, self.dim), row, None, None)[0] / row.sigma

    def products(self, divergence: str | None = None) -> tuple[str, ...]:
        """Names of the rows of `gram`."""
        names = ("xx", "xc", "cc", "xe", "ee")
        if isinstance(self.data, Density):
            names += ("xb", "bb", "cb", "eb", "div", "logp", *self.data.component_names)
        return names if divergence is None else (*names, "ediv")

    def gram(self, key: Key, node: int, row: Row, samples: int, divergence: str | None = None) -> FloatArray:
        """Inner products of (x, c, b, b_theta) for the samples of the nodes from ``node`` on, (m, products, samples)."""
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
        chunk: int | None,
        sums: FloatArray,
    ) -> FloatArray:
        """Add the weighted values of every sample at ``nodes`` to ``sums``; see `thermodiff.accounting.measure.Source`."""
        gram = workspace("gram", (len(self.products(divergence)), sums.shape[1]))
        out, statistics = workspace("values", sums.shape), np.empty((len(weights), len(sums), 2))
        for j in range(len(weights)):
            self._node(key, nodes.start + j, Row(*(float(entry[j]) for entry in row)), divergence, gram)
            adjust(gram, sums.shape[1], *plan.arguments(nodes.start + j), out, statistics[j])
            if self.clusters is not None:
                # Data points that serve several samples are the independent units.
                n = sums.shape[1]
                statistics[j, :, 1] = [standard_error(values, self.clusters) ** 2 * n * (n - 1) for values in out]
            sums += weights[j] * out
        return statistics

    def _node(self, key: Key, node: int, row: Row, divergence: str | None, out: FloatArray) -> None:
        """The rows of `products` at one node into ``out``."""
        samples = out.shape[1]
        x, c = self.data.draw(key, node, row.alpha, row.sigma, samples)
        with self._evaluating():
            learned, slope = self._dimensionless(x.T, row, divergence, self._probes(key, node, samples, divergence))
        e = learned.T
        pairs = [(x, x), (x, c), (c, c), (x, e), (e, e)]
        if isinstance(self.data, Density):
            law, d = self.data.law, self.dim
            scalars = (row.alpha, row.sigma**2, 0.0, row.sigma)
            exact = at_points(law.score, law.params, scalars, x.T, d + 2 + law.component_rows).T
            b = exact[:d]
            pairs += [(x, b), (b, b), (c, b), (e, b)]
            last = len(pairs) + exact.shape[0] - d
            out[len(pairs) : last] = exact[d:]
            out[len(pairs)] *= row.sigma
        for target, (one, two) in zip(out, pairs, strict=False):
            np.einsum("dn,dn->n", one, two, out=target)
        if slope is not None:
            out[-1] = row.sigma * slope

    def _probes(self, key: Key, node: int, samples: int, divergence: str | None) -> FloatArray | None:
        """Random signs (n, d) for Hutchinson's estimate, functions of key, node and sample."""
        return np.sign(probes(key, node, self.dim, samples)).T if divergence == "hutchinson" else None

    def _dimensionless(
        self, x: FloatArray, row: Row, divergence: str | None, signs: FloatArray | None
    ) -> tuple[FloatArray, FloatArray | None]:
        """b_theta (n, d) in float64, and its divergence (n,) where asked for; in batches."""
        field = _Field(self.net, self.predicts, row, self.noise)
        scores, slopes = [], []
        for first in range(0, x.shape[0], self.batch):
            part = slice(first, first + self.batch)
            batch = torch.from_numpy(np.ascontiguousarray(x[part]))
            if divergence is None:
                with torch.inference_mode():
                    scores.append(field(batch).cpu().numpy())
                continue
            value, slope = (
                exact_divergence(field, batch) if signs is None else hutchinson_divergence(field, batch, signs[part])
            )
            scores.append(value)
            slopes.append(slope)
        return np.concatenate(scores), np.concatenate(slopes) if slopes else None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Dropout and the like off, and the module left as it was."""
        modules = list(self.net.modules()) if isinstance(self.net, nn.Module) else []
        training = [module.training for module in modules]
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, flag in zip(modules, training, strict=True):
                module.training = flag

    def fixed_rows(self, window: tuple[float, float], total: Estimate | None) -> dict[str, Estimate]:
        """prior = KL(p_T || prior), where the law of the data is known."""
        if not isinstance(self.data, Density):
            return {}
        return {"prior": noise_kl(self.data, self.noise, window[0])}

    def check(self, window: tuple[float, float], key: Key) -> Callable[[], Estimate] | None:
        """The oracle of "total", where the law of the data is known."""
        return Diffusion(self.data, self.noise).check(window, key) if isinstance(self.data, Density) else None


class _Field:
    """x (n, d) in float64 -> b_theta (n, d) in float64, at one node."""

    def __init__(self, net: nn.Module, predicts: str, row: Row, noise: Schedule) -> None:
        self.net, self.predicts, self.row, self.noise = net, predicts, row, noise
        weights = next(iter(net.parameters()), None) if isinstance(net, nn.Module) else None
        self.dtype = _dtype(net)
        self.device = torch.device("cpu") if weights is None else weights.device

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device)
        t = torch.full((x.shape[0],), float(self.row.time), dtype=torch.float64, device=self.device)
        try:
            output = call(self.net, x.to(self.dtype), t)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"the network, called as net(x, t) with x {tuple(x.shape)} and t {tuple(t.shape)}, failed: {error}"
            ) from error
        if not isinstance(output, torch.Tensor) or output.shape != x.shape:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"the network must return a tensor of the shape of x, {tuple(x.shape)}, got {got}.")
        # The conversion is done in float64: at the ends of the window it subtracts large terms.
        return dimensionless_score(self.predicts, output.to(torch.float64), x, self.row, self.noise)


def _dtype(net: nn.Module) -> torch.dtype:
    """Type of the weights; float32 without weights."""
    weights = next(iter(net.parameters()), None) if isinstance(net, nn.Module) else None
    return torch.float32 if weights is None else weights.dtype
