"""Whether a network predicts what it is said to predict: the scale of its score on the forward marginals.

For every density, with x = alpha x_0 + sigma z and c a vector whose mean given x is the dimensionless score b,

    E b.(c - b) = 0   and   E x.(b - c) = 0,   that is E x.s = -d.

They are tried at a few log-SNR, from noise to the finest structures.  A network that fails them may be a poor one, which
is no reason to refuse its ledger; it is refused where another reading of the same output passes them, is nearer to c, and
owes that to the output (a network that gives zero is near a good "v" of data of unit variance, and knows nothing).  Where
another reading passes no better but is at less than half of the distance, which is the loss of training, there is a warning.
"""

from __future__ import annotations

import warnings
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
MUCH_NEARER, MUCH_BETTER = 0.1, 3.0
"""The same, and the ratio of failures, where the stated reading does not fail."""

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
    """Refuse a ``predicts`` that is plainly not what the network gives, and warn of one that is probably not.

    Raises
    ------
    ValueError
        Naming the reading that fits.
    """
    draws = [_draws(field, data, node, lam) for node, lam in enumerate(_levels(field, data))]
    outputs = _outputs(field, draws, field.predicts)
    stated = _fit(field, draws, outputs, field.predicts)
    if not np.isfinite(stated.scale):
        return  # The account says where.
    others = _other_readings(field, draws, outputs)
    better = {name: fit for name, fit in others.items() if _is_better(stated, fit)}
    likely = {name: fit for name, fit in others.items() if _is_likelier(stated, fit)}
    name, said = type(field.net).__name__, f"read as predicts={field.predicts!r}"
    if better:
        best = _nearest(better)
        raise ValueError(
            f"the output of {name}, {said}, has not the scale of a score "
            f"(E b.c / E b.b should be 1 at every noise level); read as {best!r} it has. Pass predicts={best!r}."
        )
    if likely:
        best = _nearest(likely)
        ratio = stated.distance.mean() / likely[best].distance.mean()
        warnings.warn(
            f"the output of {name}, {said}, is far from a score; read as {best!r} its denoising loss would be {ratio:.1f} "
            "times smaller. Either predicts= is wrong, or the network has learned little.",
            stacklevel=2,
        )


def _other_readings(field: Field, draws: list[Draws], outputs: list[torch.Tensor]) -> dict[str, Fit]:
    """Those that owe their distance to the output."""
    found: dict[str, Fit] = {}
    for name in PREDICTS:
        if name != field.predicts and "edm" not in (name, field.predicts):
            found |= _owed(field, draws, outputs, name)
    try:
        with np.errstate(all="ignore"):  # a network that takes times may get such as it cannot have
            asked_otherwise = _outputs(field, draws, "x0" if field.predicts == "edm" else "edm")
    except Exception:
        return found  # A network that cannot be asked so is not of that kind.
    for name in PREDICTS:
        if (name == "edm") != (field.predicts == "edm"):
            found |= _owed(field, draws, asked_otherwise, name)
    return found


def _owed(field: Field, draws: list[Draws], outputs: list[torch.Tensor], name: str) -> dict[str, Fit]:
    """``name`` with its fit, if that is nearer than without the output; nothing otherwise."""
    fit = _fit(field, draws, outputs, name)
    without = _fit(field, draws, [torch.zeros_like(output) for output in outputs], name)
    return {name: fit} if without.distance.mean() - fit.distance.mean() > OWED else {}


def _is_better(stated: Fit, other: Fit) -> bool:
    """Whether the stated reading is plainly the wrong one of the two."""
    nearer = float(np.max(stated.distance - other.distance))
    if stated.scale > FAILS:
        return other.scale < PASSES and nearer > NEARER
    return MUCH_BETTER * other.scale < min(stated.scale, MUCH_BETTER * PASSES) and nearer > MUCH_NEARER


def _is_likelier(stated: Fit, other: Fit) -> bool:
    """Whether the stated reading fails and is much further from c."""
    return stated.scale > FAILS and 2.0 * other.distance.mean() < stated.distance.mean()


def _nearest(fits: dict[str, Fit]) -> str:
    return min(fits, key=lambda name: float(fits[name].distance.mean()))


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
