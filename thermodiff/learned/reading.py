"""Whether a network predicts what it is said to predict: the scale of its score on the forward marginals.

For every density, with x = alpha x_0 + sigma z and c a vector whose mean given x is the dimensionless score b,

    E b.(c - b) = 0   and   E x.(b - c) = 0,   that is E x.s = -d.

They are tried at a few log-SNR, from noise to the finest structures.  A network that fails them may be a poor one, which
is no reason to refuse its ledger; it is refused where another reading of the same output passes them, is nearer to c, and
owes that to the output (a network that gives zero is near a good "v" of data of unit variance, and knows nothing).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from thermodiff.densities import Density, Samples
from thermodiff.learned.field import Field, evaluating
from thermodiff.learned.predict import PREDICTS, dimensionless_score
from thermodiff.schedules import Row

FloatArray = npt.NDArray[np.float64]

LEVELS = 5
"""Values of lam that are tried."""
NUMBERS = 2048
"""Coordinates of the samples at each of them."""
FEWEST, MOST = 16, 512
"""Samples at each of them."""
FAILS, PASSES = 0.15, 0.10
"""Size of the two means, relative to E|c|^2 and the rms of x, beyond which a reading fails, and below which it passes."""
NEARER, OWED = 0.02, 0.05
"""By how much another reading must be nearer to c, at some lam and with the output than without, in units of E|c|^2."""

_KEY = np.array([0x7468, 0x6469], dtype=np.uint32)


class Draws(NamedTuple):
    """Points and their c, (n, d), at one lam."""

    row: Row
    x: torch.Tensor
    c: torch.Tensor


class Fit(NamedTuple):
    """How well a reading does: its worst failure over lam, and its squared distance to c at each lam."""

    scale: float
    distance: FloatArray


def check_reading(field: Field, data: Density | Samples) -> None:
    """Refuse a ``predicts`` that is plainly not what the network gives.

    Raises
    ------
    ValueError
        Naming the reading that fits.
    """
    draws = [_draws(field, data, node, lam) for node, lam in enumerate(_levels(field, data))]
    outputs = _outputs(field, draws, field.predicts)
    stated = _fit(field, draws, outputs, field.predicts)
    if not stated.scale > FAILS:
        return
    found: dict[str, float] = {}
    for other in PREDICTS:
        if other != field.predicts and "edm" not in (other, field.predicts):
            found |= _candidate(field, draws, outputs, other, stated)
    try:
        asked_otherwise = _outputs(field, draws, "x0" if field.predicts == "edm" else "edm")
    except Exception:
        asked_otherwise = None  # A network that cannot be asked so is not of that kind.
    for other in PREDICTS:
        if asked_otherwise is not None and (other == "edm") != (field.predicts == "edm"):
            found |= _candidate(field, draws, asked_otherwise, other, stated)
    if found:
        best = min(found, key=lambda name: found[name])
        raise ValueError(
            f"the output of {type(field.net).__name__}, read as predicts={field.predicts!r}, has not the scale of a score "
            f"(E b.c / E b.b should be 1 at every noise level); read as {best!r} it has. Pass predicts={best!r}."
        )


def _candidate(field: Field, draws: list[Draws], outputs: list[torch.Tensor], name: str, stated: Fit) -> dict[str, float]:
    """``name`` with its distance to c, if it is a better reading than the stated one; nothing otherwise."""
    fit = _fit(field, draws, outputs, name)
    without = _fit(field, draws, [torch.zeros_like(output) for output in outputs], name)
    nearer = np.max(stated.distance - fit.distance) > NEARER
    owed = without.distance.mean() - fit.distance.mean() > OWED
    return {name: float(fit.distance.mean())} if fit.scale < PASSES and nearer and owed else {}


def _levels(field: Field, data: Density | Samples) -> FloatArray:
    """Values of lam from where data and equilibrium drown in noise to where the noise is less than the data."""
    variance = max(float(np.mean(np.square(_few(data) - _few(data).mean(axis=0)))), 1e-12)
    signal, own = -np.log(variance), -2.0 * np.log(getattr(field.noise, "scale", 1.0))
    low = min(signal, own) - 4.0
    edge = float(field.noise.lam(field.noise.t_end))
    low = max(low, edge) if np.isfinite(edge) else low
    return np.linspace(low, max(signal + 3.0, low + 4.0), LEVELS)


def _few(data: Density | Samples) -> FloatArray:
    return data.sample(512, rng=0) if isinstance(data, Density) else data.points[:512]


def _draws(field: Field, data: Density | Samples, node: int, lam: float) -> Draws:
    samples = max(FEWEST, min(MOST, NUMBERS // data.dim))
    row = Row(*(float(entry) for entry in field.noise.at(lam)))
    x, c = data.draw(_KEY, node, row.alpha, row.sigma, samples)
    return Draws(row, torch.from_numpy(np.ascontiguousarray(x.T)), torch.from_numpy(np.ascontiguousarray(c.T)))


def _outputs(field: Field, draws: list[Draws], predicts: str) -> list[torch.Tensor]:
    """What the network gives when asked as for ``predicts``."""
    outputs = [torch.empty_like(draw.x) for draw in draws]
    with evaluating(field.net), torch.inference_mode():
        for draw, out in zip(draws, outputs, strict=True):

            def work(part: slice, draw: Draws = draw, out: torch.Tensor = out) -> None:
                out[part] = field.output(draw.x[part].to(field.weights.device), draw.row, predicts).cpu()

            field.in_batches(work, len(draw.x))
    return outputs


def _fit(field: Field, draws: list[Draws], outputs: list[torch.Tensor], predicts: str) -> Fit:
    worst, distances = 0.0, []
    for draw, output in zip(draws, outputs, strict=True):
        b = dimensionless_score(predicts, output, draw.x, draw.row, field.noise)
        size = float(draw.c.square().sum(1).mean())
        along = float((b * (draw.c - b)).sum(1).mean()) / size
        outward = float((draw.x * (b - draw.c)).sum(1).mean()) / np.sqrt(size * float(draw.x.square().sum(1).mean()))
        worst = float(np.max([worst, abs(along), abs(outward)]))  # nan stays nan, and fails nothing
        distances.append(float((b - draw.c).square().sum(1).mean()) / size)
    return Fit(worst, np.array(distances))
