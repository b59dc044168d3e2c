"""Mutual information of data X and what they are conditioned on, Y: a label, or another block of variables.

With b(x, y) and b(x) the dimensionless scores of a conditional and of a plain model of one noised X, the entropies of the
two diffusions differ by the information, and so do the scores (Franzese et al., MINDE, 2310.09031):

    I(X_hi; Y) - I(X_lo; Y) = E S^(X|Y) - S^X                            "difference"
                            = 1/2 int dlam E |b(x, y) - b(x)|^2          "score difference"

between the ends of the window.  For true scores both are the same; the second cannot be negative and varies less.  Errors
of the networks enter the first to first order, whatever their sign, and the second only squared once both networks are
near.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff._check import DivergenceError, count, seed_words
from thermodiff.accounting import Ledger
from thermodiff.accounting.ledger import standard_error
from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.accounting.unresolved import unresolved
from thermodiff.densities import Samples
from thermodiff.learned.checkpoint import known_window
from thermodiff.learned.field import DRAWN_TOGETHER, Field
from thermodiff.learned.images import plain_array
from thermodiff.learned.meaning import reading_of, require_schedule, warn_beyond_training
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.reading import check_reading
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]

ROWS = ("conditional", "neural", "difference", "score difference")


def mutual_information(
    conditional: Any,
    plain: Any,
    x: Any,
    y: npt.ArrayLike,
    noise: Schedule,
    *,
    predicts: str | None = None,
    nodes: int = 64,
    rounds: int = 1,
    rng: Any = None,
    lam: tuple[float, float] | None = None,
    batch: int | None = None,
) -> Ledger:
    """Estimate the mutual information of X and Y from two networks and pairs of their values.

    Parameters
    ----------
    conditional, plain : Module
        Called as ``conditional(x, t, y)`` and ``plain(x, t)``, with a batch of ``y``; both give what ``predicts`` says.
        One network may serve as both, where it takes ``y`` or not.
    x : (n, d) or (n, channels, height, width) array, or Images
        Data.
    y : (n,) array of labels or (n, k) array
        What belongs to each; labels are whole numbers, as the network counts them, or True and False for 1 and 0.
    noise : Schedule
        That of both networks.
    predicts : str, optional
        What both networks give; see `thermodiff.learned.predict`.  Default: their ``predicts``, which `train` sets, or
        "entropy".
    nodes, rng, lam
        As for `thermodiff.account`; the window must be stated, since the law of the data is unknown.
    rounds : int
        Draws of noise for each pair at each node.
    batch : int, optional
        Samples in one call of a network.

    Returns
    -------
    Ledger
        Rows "conditional" (E S_NN of X given Y), "neural" (S_NN of X), "difference" and "score difference", in nats; errors
        by data point.

    Raises
    ------
    ValueError
        Where one of the networks is not what ``predicts`` says, or says itself that it predicts something else than the
        other, or belongs to another schedule.
    DivergenceError
        Where one of them is not finite.

    Warns
    -----
    RuntimeWarning
        Where the window goes beyond that of the training of one of them.
    """
    predicts = reading_of(predicts, conditional=conditional, plain=plain)
    model = LearnedDiffusion(plain, x, noise, predicts=predicts, batch=batch)
    require_schedule(conditional, noise, "conditional")
    if not isinstance(model.data, Samples):
        raise TypeError(f"x must be data, an array or Images, of which y is known; got {type(x).__name__}.")
    data = _Drawn(model.data.points)
    field = _ConditionalField(Conditional(conditional, y, data.points.shape[0]), data, model.field)
    window, key = model.window(lam), seed_words(rng)
    if conditional is not plain:
        warn_beyond_training(conditional, window, "conditional")
    model.try_out()
    try:
        check_reading(field, data)
    except ValueError as error:
        raise ValueError(f"conditional, as a function of x and t for the y of its points: {error}") from error
    node_lam, weights = gauss_legendre(*window, count("nodes", nodes))
    row, points = noise.at(node_lam), data.points.shape[0]
    samples = points * count("rounds", rounds)
    sums, rates, errors = np.zeros((len(ROWS), samples)), *np.empty((2, len(ROWS), len(node_lam)))
    for j, weight in enumerate(weights):
        here = Row(*(float(entry[j]) for entry in row))
        values = _node(model.field, field, data, key, j, here, samples)
        rates[:, j] = values.mean(axis=1)
        errors[:, j] = [standard_error(value, points) for value in values]
        sums += weight * values
    return Ledger(
        samples=dict(zip(ROWS, sums, strict=True)),
        rates=dict(zip(ROWS, rates, strict=True)),
        rate_errors=dict(zip(ROWS, errors, strict=True)),
        lam=node_lam,
        times=row.time,
        weights=weights,
        lam_per_time=2.0 * noise.diffusivity(row.time) / row.sigma**2,
        window=window,
        key=(int(key[0]), int(key[1])),
        about={**model.about, "conditional": type(conditional).__name__},
        clusters=points,
        unresolved={name: unresolved(node_lam, weights, window, rates[k], errors[k]) for k, name in enumerate(ROWS)},
    )


class Conditional(nn.Module):
    """A conditional network as a function of x and t, for the part of ``y`` that was chosen last."""

    def __init__(self, net: Any, y: npt.ArrayLike, points: int) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"conditional must be a module called as net(x, t, y), got {type(net).__name__}.")
        values = _numbers(y)
        if values.ndim == 0 or len(values) != points:
            raise ValueError(f"y must have one entry for each of the {points} data points, got shape {tuple(values.shape)}.")
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise ValueError("y holds values that are nan or infinite; remove them, with their data points.")
        self._require_known(net, values)
        self.net: Any = net
        self.values, self.chosen = values, values
        self.double_time, self.host_time = (bool(getattr(net, name, False)) for name in ("double_time", "host_time"))
        self.window = known_window(net)

    @staticmethod
    def _require_known(net: Any, values: torch.Tensor) -> None:
        """Refuse the label by which `train` says "not stated", and higher ones: given it, there is no information."""
        classes = getattr(net, "classes", None)
        if type(classes) is not int or values.is_floating_point() or not values.numel() or int(values.max()) < classes:
            return
        raise ValueError(
            f"y holds the label {int(values.max())}, and conditional knows the classes 0 ... {classes - 1}; the label "
            f'{classes} says "not stated" in its training. Leave these points out, or build it with more classes.'
        )

    def choose(self, index: npt.NDArray[np.intp]) -> None:
        """The entries of ``y`` that the next call is for."""
        self.chosen = self.values[torch.from_numpy(index)]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = self.chosen.to(x.device)
        return self.net(x, t, y.to(x.dtype) if y.is_floating_point() else y)


def _numbers(y: npt.ArrayLike) -> torch.Tensor:
    """``y`` as a tensor; whole numbers of any width as int64, which labels are looked up by."""
    try:
        values = plain_array(y)
    except ValueError:  # a list whose entries make no array
        raise ValueError(
            "the entries of y have different shapes; give one number, or one row of k numbers, for each."
        ) from None
    if values.dtype.kind not in "fiub":
        got = type(y).__name__ if np.ndim(values) == 0 else f"an array of type {values.dtype}"
        raise TypeError(
            f"y must be labels, whole numbers counted from 0, or an array (n, k) of numbers, got {got}; number the classes, "
            "as in numpy.unique(y, return_inverse=True)[1]."
        )
    return torch.as_tensor(values.astype(np.int64) if values.dtype.kind in "iub" else values)


class _Drawn(Samples):
    """Data points that know which of them were drawn last, so that ``y`` can be chosen to fit."""

    last: npt.NDArray[np.intp]

    def draw(
        self, key: npt.NDArray[np.uint32], node: int, alpha: float, sigma: float, samples: int, start: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """As `Samples.draw`."""
        self.last = self.order(key, samples, start)
        return super().draw(key, node, alpha, sigma, samples, start)


class _ConditionalField(Field):
    """The score of a conditional network at the points drawn last from ``data``, called otherwise as ``like``."""

    def __init__(self, net: Conditional, data: _Drawn, like: Field) -> None:
        super().__init__(net, like.predicts, like.noise, like.shape, like.batch)
        self.conditional, self.data = net, data

    @property
    def name(self) -> str:
        """As `Field.name`, that of the caller's network."""
        return f"{type(self.conditional.net).__name__}, given y"

    def told(self, shape: tuple[int, ...]) -> str:
        """As `Field.told`, with ``y`` and, of labels, their range."""
        y = self.conditional.chosen
        span = "" if y.is_floating_point() or not y.numel() else f" from {int(y.min())} to {int(y.max())}"
        return f"conditional(x, t, y) with x {shape}, t ({shape[0]},) and y {tuple(y.shape)}{span}"

    def in_batches(self, work: Callable[[slice], None], n: int) -> None:
        """As `Field.in_batches`, with the ``y`` of each slice."""

        def chosen(part: slice) -> None:
            self.conditional.choose(self.data.last[part])
            work(part)

        super().in_batches(chosen, n)


def _node(
    plain: Field, conditional: Field, data: Samples, key: npt.NDArray[np.uint32], node: int, row: Row, samples: int
) -> FloatArray:
    """Rates per unit of lam of each row and sample at one node."""
    out = np.empty((len(ROWS), samples))
    together = max(256, DRAWN_TOGETHER // data.dim // 256 * 256)
    for start in range(0, samples, together):
        size = min(together, samples - start)
        x = data.draw(key, node, row.alpha, row.sigma, size, start)[0].T
        drift = -2.0 * row.growth / row.sigma * x
        scores = [
            _finite(name, field.values(x, row), row) for name, field in (("conditional", conditional), ("plain", plain))
        ]
        pairs = (drift - scores[0], drift - scores[1], scores[0] - scores[1])
        first, second, third = (0.5 * np.einsum("nd,nd->n", pair, pair) for pair in pairs)
        out[:, start : start + size] = first, second, first - second, third
    return out


def _finite(name: str, scores: FloatArray, row: Row) -> FloatArray:
    """Scores (n, d), refused where they are not finite."""
    bad = int(np.count_nonzero(~np.isfinite(scores).all(axis=1)))
    if bad:
        raise DivergenceError(
            f"the score of {name} is nan or infinite for {bad} of {len(scores)} samples at lam = {row.lam:.4g} "
            f"(t = {row.time:.4g}); check the network there, or choose a window without this point."
        )
    return scores
