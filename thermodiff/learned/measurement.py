"""What a network stores, measured so that it can be trusted: one call, one printed page.

Beside the ledger it gives the Gaussian part of S_NN, what a Gaussian of the data's mean and covariance would have as
entropy production in the same window, and the remainder, which needs structure beyond second moments; the change of each
row when half of the nodes are used; and, for training data, the ledger of the memorising law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import count, seed_words
from thermodiff.accounting import Estimate, Ledger, account
from thermodiff.accounting.ledger import standard_error
from thermodiff.densities import Density, PointCloud, Samples
from thermodiff.diffusion import Diffusion, medium_integral
from thermodiff.learned.gaussian import gaussian_production
from thermodiff.learned.images import require_span
from thermodiff.learned.model import LearnedDiffusion, flattened, require_layout
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measurement:
    """A ledger and what is needed to judge it.

    Attributes
    ----------
    ledger, coarse : Ledger
        With all the nodes, and with half of them (draws of its own).
    convergence : dict of str to Estimate
        All nodes less half of them, by row: zero within its error where the nodes suffice.
    gaussian, remainder : Estimate
        The Gaussian part of S_NN, and S_NN less that part, with the error of the difference.
    held_out : Ledger or None
        Of the same network on data that it was not trained on.
    memorising : Ledger or None
        "total" of the empirical law of the training data, and its "gap", the information about which point it was.
    """

    ledger: Ledger
    coarse: Ledger
    convergence: dict[str, Estimate]
    gaussian: Estimate
    remainder: Estimate
    held_out: Ledger | None = None
    memorising: Ledger | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        ledgers = {"ledger": self.ledger, "held_out": self.held_out, "memorising": self.memorising}
        return {
            **{name: ledger.to_dict() for name, ledger in ledgers.items() if ledger is not None},
            "gaussian": self.gaussian.to_dict(),
            "remainder": self.remainder.to_dict(),
            "coarse_nodes": self.coarse.lam.size,
            "convergence": {row: gap.to_dict() for row, gap in self.convergence.items()},
        }

    def __str__(self) -> str:
        high = self.ledger.window[1]
        lines = [str(self.ledger), "", f"of S_NN up to lam_max = {high:.4g} (nats)"]
        lines += [f"{'gaussian part':<16}{self.gaussian.value:>14.6g}{self.gaussian.error:>12.1e}"]
        lines += [f"{'remainder':<16}{self.remainder.value:>14.6g}{self.remainder.error:>12.1e}"]
        lines += ["", f"{self.ledger.lam.size} nodes less {self.coarse.lam.size}, with draws of its own"]
        for row, gap in self.convergence.items():
            lines.append(
                f"{row:<16}{gap.value:>14.2g}{gap.error:>12.1e}   {_verdict(gap, self.ledger.unresolved.get(row, 0.0))}"
            )
        for title, ledger in (("held-out data", self.held_out), ("memorising law", self.memorising)):
            if ledger is not None:
                lines += ["", title, str(ledger)]
        return "\n".join(lines)


def _verdict(gap: Estimate, missed: float) -> str:
    """What the page says of the nodes.

    ``missed`` is what they seem to miss (`Ledger.unresolved`): two numbers of nodes may agree by accident.
    """
    suffice = max(abs(gap.value), missed) <= 3.0 * gap.error
    return "the nodes suffice" if suffice else "NOT CONVERGED: take more nodes"


def measure(
    model: LearnedDiffusion,
    *,
    held_out: Any = None,
    nodes: int = 64,
    samples: int | None = None,
    rng: Any = None,
    lam: tuple[float, float] | None = None,
) -> Measurement:
    """Measure a network on its data.

    Parameters
    ----------
    model : LearnedDiffusion
    held_out : array, Samples or Images, optional
        Data that the network was not trained on; ``model.data`` is then taken as the training data, and the memorising
        law is measured too.  In the shape of the model's samples, or flattened, (n, d).
    nodes : int
        At least 4; half of them serve the statement of convergence, at half the cost.
    samples : int, optional
        Draws per node; default 2000, or as many whole rounds of the data points as come nearest.
    rng, lam
        As for `thermodiff.account`.

    Returns
    -------
    Measurement
    """
    nodes = count("nodes", nodes, 4)
    if not isinstance(rng, int | np.integer | np.random.SeedSequence):
        rng = np.random.SeedSequence([int(word) for word in seed_words(rng)])  # used more than once below
    draws, unseen = _draws(model, samples), None
    if held_out is not None:
        unseen = _unseen(model, held_out)
        for each in (model, unseen):  # what can be refused is so before an hour of accounts, not after
            each.try_out()
    options: dict[str, Any] = {"rng": rng, "lam": lam}
    ledger = account(model, nodes=nodes, samples=draws, **options)
    # A key of its own: the draws of node k do not depend on where it lies.
    coarse = account(
        model,
        nodes=nodes // 2,
        samples=draws,
        rng=np.random.SeedSequence([int(word) for word in seed_words(rng)], spawn_key=(3,)),
        lam=lam,
    )
    gaussian, remainder = gaussian_part(model, ledger)
    other = memorising = None
    if unseen is not None:
        assert isinstance(model.data, Samples)
        options["lam"] = ledger.window
        other = account(unseen, nodes=nodes, samples=_draws(unseen, samples), **options)
        memorising = memorising_ledger(model.data, model.noise, ledger.window, nodes, draws, rng)
    return Measurement(ledger, coarse, _convergence(model, ledger, coarse), gaussian, remainder, other, memorising)


def _unseen(model: LearnedDiffusion, held_out: Any) -> LearnedDiffusion:
    """The same network on other data, whatever is wrong with them refused."""
    if not isinstance(model.data, Samples):
        raise TypeError("held_out needs a model of training data (an array, Samples or Images), got one of a density.")
    try:
        require_span(held_out, model.span)
        data, own = flattened(held_out)
        if data.dim == model.dim:
            require_layout(own, model.shape)
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"held_out: {error}") from None
    if data.dim != model.dim:
        raise ValueError(f"held_out has d = {data.dim}, the model's data d = {model.dim}; give data of one kind.")
    return LearnedDiffusion(
        model.net, data, model.noise, predicts=model.predicts, batch=model.field.batch, shape=model.shape
    )


def _convergence(model: LearnedDiffusion, fine: Ledger, coarse: Ledger) -> dict[str, Estimate]:
    """Fine less coarse, by row; point by point where both used all the points."""
    if not isinstance(model.data, Samples) or fine.sample_count < len(model.data.points):
        # What the ledgers say of the course of the network is what is asked here.
        return {row: _mean(fine, row) - _mean(coarse, row) for row in fine.samples}
    gaps = {}
    for row in fine.samples:
        means = [_by_point(model.data, ledger, row) for ledger in (fine, coarse)]
        gaps[row] = Estimate(float(np.mean(means[0] - means[1])), standard_error(means[0] - means[1], None))
    return gaps


def _mean(ledger: Ledger, row: str) -> Estimate:
    """A row with the error of its draws, and of its nodes as far as the law tells it."""
    values = ledger.samples[row]
    error = np.hypot(standard_error(values, ledger.clusters), ledger.quadrature.get(row, 0.0))
    return Estimate(float(np.mean(values)), float(error))


def _by_point(data: Samples, ledger: Ledger, row: str) -> FloatArray:
    """Mean of a row over the draws that start from each point, (points,)."""
    order = data.order(np.array(ledger.key, dtype=np.uint32), ledger.sample_count)
    return np.bincount(order, weights=ledger.samples[row]) / np.bincount(order)


def _draws(model: LearnedDiffusion, samples: int | None) -> int:
    if samples is not None:
        return count("samples", samples, 2)
    if model.clusters is None:
        return 2000
    return model.clusters * max(1, round(2000 / model.clusters))


def memorising_ledger(
    data: Samples, noise: Schedule, window: tuple[float, float], nodes: int, samples: int, rng: Any
) -> Ledger:
    """The ledger of the law that puts 1/N on each point, what a network that memorises them stores.

    Its "gap" is I(X_0; X_lam) between the ends of the window, at most ln N: how well a noised point tells which it was.
    """
    cloud = PointCloud(data.points)
    ledger = account(Diffusion(cloud, noise), nodes=nodes, samples=samples, rng=rng, lam=window)
    ledger.fixed["gap"] = information_gap(cloud, noise, window)
    return ledger


def information_gap(law: Density, noise: Schedule, window: tuple[float, float]) -> Estimate:
    """I(X_0; X_hi) - I(X_0; X_lo) of a law: what its denoising loss holds besides the mismatch; nats."""
    noisy, clean = noise.at(window[0]), noise.at(window[1])
    entropies = [law.entropy(alpha=float(row.alpha), sigma=float(row.sigma)) for row in (clean, noisy)]
    channel = law.dim * float(np.log(clean.sigma / noisy.sigma))
    difference = entropies[0] - entropies[1]
    return Estimate(difference.value - channel, difference.error)


def gaussian_part(model: LearnedDiffusion, ledger: Ledger) -> tuple[Estimate, Estimate]:
    """Entropy production in the window of the Gaussian of the data's moments, and S_NN less that; nats.

    For samples it is that of the law of all points, however few of them the ledger drew from, without the bias of order
    1 / n of the moments of n points; see `gaussian_production`.  Both then have errors by data point, with the bias that
    may be left added.
    """
    window, noise, data = ledger.window, model.noise, model.data
    total = ledger.total("neural")
    if isinstance(data, Density):
        low, high = (noise.at(edge) for edge in window)
        centre, covariance = data.mean(), data.covariance()
        spectrum = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
        spread = [row.alpha**2 * spectrum + row.sigma**2 for row in (low, high)]
        second = float(np.sum(spectrum) + centre @ centre)
        value = medium_integral(noise, window, second, model.dim) + 0.5 * float(np.sum(np.log(spread[0] / spread[1])))
        return Estimate(value, 0.0), Estimate(total.value - value, total.error)
    found = gaussian_production(data.points, noise, window)
    neural = ledger.samples["neural"]
    order = data.order(np.array(ledger.key, dtype=np.uint32), neural.size)
    error = float(np.hypot(_error_less(neural, order, found.influence), found.bias))
    error = float(np.hypot(error, ledger.unresolved.get("neural", 0.0)))
    return found.estimate, Estimate(total.value - found.value, error)


def _error_less(draws: FloatArray, order: npt.NDArray[np.intp], influence: FloatArray) -> float:
    """Error of the mean of ``draws``, which start from the points ``order``, less that of ``influence`` over all points.

    Both are sums over the same independent points; a point without a draw has its part in the second alone.
    """
    n = influence.size
    shares = np.bincount(order, weights=draws - draws.mean(), minlength=n) / draws.size - influence / n
    units = min(n, draws.size)
    return float(np.sqrt(np.sum(shares**2) * units / (units - 1)))
