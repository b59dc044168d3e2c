"""Whether a network predicts what it is said to predict: the scale of its score on the forward marginals.

For every density, with x = alpha x_0 + sigma z and c a vector whose mean given x is the dimensionless score b,

    E b.(c - b) = 0   and   E x.(b - c) = 0,   that is E x.s = -d.

They are tried at a few log-SNR, from noise to the finest structures, as far as the schedule and ``net.window`` go; those at
which the network fails or is not finite tell nothing, and are left out.  A network that fails them may be a poor one, which
is no reason to refuse its ledger.  It is refused where another reading of the same output passes them ten times better, is
nearer to c, and owes that to the output: a network that gives zero is near a good "v" of data of unit variance, and knows
nothing.  On such data a good control is small too, but then it is what lacks: c less the score without it has a slope of 1
on it.  So a reading is refused too where another one has that slope of 1 at every lam, and is nearer to c for certain.
Where the stated reading fails clearly, or another one does better without passing for certain, or by a factor that is the
same at every lam, or over a narrow window only, there is a warning.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from thermodiff.densities import Density, Samples
from thermodiff.learned.checkpoint import known_window
from thermodiff.learned.field import Field, evaluating
from thermodiff.learned.predict import PREDICTS, dimensionless_score
from thermodiff.schedules import Row

FloatArray = npt.NDArray[np.float64]

LEVELS = 5
"""Values of lam that are tried."""
SPAN = 4.0
"""Nats of lam that they cover, where the network can be asked there."""
REFUSES = 3.0
"""Nats that they must cover for a refusal: over less, a right reading that is off by a factor can look like another one."""
INSIDE = 1e-3
"""Share of the window of the network at each of its ends that is left out: rounding."""
NUMBERS = 2048
"""Coordinates of the samples at each of them."""
FEWEST, MOST = 16, 512
"""Samples at each of them."""
FAILS, CLEARLY = 0.15, 1.0
"""Size of the two means, relative to E|c|^2 and the rms of x, beyond which a reading fails, and fails clearly."""
PASSES, MUCH_BETTER = 0.05, 10.0
"""The same for a reading that takes the place of another, and how much less it must be than that of the other."""
BETTER = 3.0
"""How much less it must be for a doubt."""
NEARER, MUCH_NEARER = 0.02, 0.1
"""By how much another reading must be nearer to c at some lam, in units of E|c|^2: where the stated one fails, and else."""
OWED = 0.05
"""By how much a reading must be nearer to c with the output than without, in units of E|c|^2; or else:"""
LEAST_Z, SLOPE_WITHIN = 3.0, 0.25
"""It is nearer by so many standard errors, and the slope of what lacks without the output on what it adds is 1 to this."""
CERTAIN_Z, SLOPE_KNOWN, SLOPE_BETTER = 5.0, 0.15, 3.0
"""For certain means so many standard errors; slopes are known to this; half of them must be so much nearer to 1.

A network that knows the law behind some hundred points has slopes up to 1.2 on these at the data end (measured)."""
FACTOR = 1.5
"""Slopes whose ratio over lam is less are those of a network that is off by a factor."""

_KEY = np.array([0x7468, 0x6469], dtype=np.uint32)


class Draws(NamedTuple):
    """Points and their c, (n, d), at one lam."""

    row: Row
    x: torch.Tensor
    c: torch.Tensor


class Fit(NamedTuple):
    """How well a reading does: its worst failure over lam, its squared distance to c at each lam, and what it owes."""

    scale: float
    distance: FloatArray
    owed: bool
    """Whether it is nearer to c for the output."""
    apart: FloatArray
    """The squared distances of the single samples, (levels, n)."""
    slopes: FloatArray
    """Slope of what lacks without the output on what it adds, at each lam; nan where it adds nothing."""
    errors: FloatArray
    """Standard errors of the slopes."""


def check_reading(field: Field, data: Density | Samples) -> None:
    """Refuse a ``predicts`` that is plainly not what the network gives, and warn of one that is probably not.

    Raises
    ------
    ValueError
        Naming the reading that fits.
    """
    tried = [_draws(field, data, node, lam) for node, lam in enumerate(_levels(field, data))]
    given, failure = _outputs(field, tried, field.predicts)
    sound = [k for k in range(LEVELS) if _is_sound(field, tried[k], given[k], field.predicts)]
    if not sound:
        if failure is not None:
            raise failure
        return  # The account says where it is not finite.
    draws, outputs = [tried[k] for k in sound], [given[k] for k in sound]
    stated, others = _fit(field, draws, outputs, field.predicts), _other_readings(field, draws, outputs)
    certain = {name: fit for name, fit in others.items() if _has_the_slopes(stated, fit)}
    better = {
        name: fit
        for name, fit in others.items()
        if _is_better(stated, fit) or (name in certain and not _is_a_factor(stated, fit))
    }
    likely = {name: fit for name, fit in others.items() if name in certain or _is_likelier(stated, fit)}
    said = f"the output of {field.name}, read as predicts={field.predicts!r}"
    no_score = "has not the scale of a score (E b.c / E b.b should be 1 at every noise level)"
    cause = "Either predicts= is wrong, or the network has learned little."
    if better and draws[-1].row.lam - draws[0].row.lam > REFUSES:
        best = _nearest(better)
        raise ValueError(f"{said}, {no_score}; read as {best!r} it has. Pass predicts={best!r}.")
    if likely:
        best = _nearest(likely)
        ratio = stated.distance.mean() / likely[best].distance.mean()
        warnings.warn(
            f"{said}, is far from a score; read as {best!r} its denoising loss would be {ratio:.1f} times smaller. {cause}",
            stacklevel=2,
        )
    elif stated.scale > CLEARLY:
        warnings.warn(f"{said}, {no_score}. {cause}", stacklevel=2)


def _other_readings(field: Field, draws: list[Draws], outputs: list[torch.Tensor]) -> dict[str, Fit]:
    """The fits of the other kinds that are finite, each with the output that it is asked for."""
    with np.errstate(all="ignore"):  # a network that takes times may get such as it cannot have
        otherwise, _ = _outputs(field, draws, "x0" if field.predicts == "edm" else "edm")
    found = {}
    for name in PREDICTS:
        given = otherwise if "edm" in (name, field.predicts) else outputs
        sound = all(_is_sound(field, draw, output, name) for draw, output in zip(draws, given, strict=True))
        if name != field.predicts and sound:
            found[name] = _fit(field, draws, given, name)
    return found


def _is_better(stated: Fit, other: Fit) -> bool:
    """Whether the stated reading is plainly the wrong one of the two."""
    passes = other.scale < min(PASSES, stated.scale / MUCH_BETTER)
    return stated.scale > FAILS and passes and other.owed and _nearer(stated, other) > NEARER


def _is_likelier(stated: Fit, other: Fit) -> bool:
    """Whether the other reading is the better one of the two, perhaps by accident."""
    less = other.scale < min(FAILS, stated.scale) / BETTER
    if stated.scale <= FAILS:
        return less and other.owed and _nearer(stated, other) > MUCH_NEARER
    much_nearer = 2.0 * other.distance.mean() < stated.distance.mean()
    return (less and _nearer(stated, other) > NEARER) or (much_nearer and other.owed)


def _has_the_slopes(stated: Fit, other: Fit) -> bool:
    """Whether the other reading is nearer to c for certain, and it alone has slopes of 1."""
    closer = stated.apart - other.apart
    gain, error = closer.mean(1).sum(), np.linalg.norm(closer.std(1)) / np.sqrt(closer.shape[1])
    if not gain > CERTAIN_Z * error:
        return False
    off, amiss = np.abs(stated.slopes - 1.0), np.abs(other.slopes - 1.0)
    known = other.errors < SLOPE_KNOWN  # of a control that has drowned in noise nothing can be said
    wrong = known & (off > SLOPE_WITHIN) & (off > CERTAIN_Z * stated.errors)
    right = amiss < np.maximum(SLOPE_WITHIN, LEAST_Z * other.errors)
    if not (wrong.any() and 2 * known.sum() > len(known) and right.all()):
        return False
    return bool(np.median(off[known]) > SLOPE_BETTER * np.median(amiss[known]))


def _is_a_factor(stated: Fit, other: Fit) -> bool:
    """Whether the stated reading is off by the same factor everywhere, as that of a poor network may be."""
    slopes = stated.slopes[other.errors < SLOPE_KNOWN]
    return bool(slopes.min() > 0.0 and slopes.max() < FACTOR * slopes.min())


def _nearer(stated: Fit, other: Fit) -> float:
    return float(np.max(stated.distance - other.distance))


def _nearest(fits: dict[str, Fit]) -> str:
    return min(fits, key=lambda name: float(fits[name].distance.mean()))


def _levels(field: Field, data: Density | Samples) -> FloatArray:
    """Values of lam from where data and equilibrium drown in noise to where the noise is less than the data."""
    variance = max(float(np.mean(np.square(_few(data) - _few(data).mean(axis=0)))), 1e-12)
    signal, own = -np.log(variance), -2.0 * np.log(getattr(field.noise, "scale", 1.0))
    first, last = _bounds(field)
    low = min(max(min(signal, own) - 4.0, first), last)
    high = min(max(signal + 3.0, low + SPAN), last)
    return np.linspace(max(min(low, high - SPAN), first), high, LEVELS)


def _bounds(field: Field) -> tuple[float, float]:
    """The lam between which the network can be asked, infinite where nothing is known."""
    edge = float(field.noise.lam(field.noise.t_end))
    window = known_window(field.net)
    if window is None:
        return edge, np.inf
    inset = INSIDE * (window[1] - window[0])
    first, last = window[0] + inset, window[1] - inset
    return (max(first, edge) if edge < last else first), last  # an "edm" denoiser may know what the schedule does not


def _few(data: Density | Samples) -> FloatArray:
    return data.sample(512, rng=0) if isinstance(data, Density) else data.points[:512]


def _draws(field: Field, data: Density | Samples, node: int, lam: float) -> Draws:
    samples = max(FEWEST, min(MOST, NUMBERS // data.dim))
    row = Row(*(float(entry) for entry in field.noise.at(lam)))
    x, c = data.draw(_KEY, node, row.alpha, row.sigma, samples)
    return Draws(row, torch.from_numpy(np.ascontiguousarray(x.T)), torch.from_numpy(np.ascontiguousarray(c.T)))


def _outputs(field: Field, draws: list[Draws], predicts: str) -> tuple[list[torch.Tensor], Exception | None]:
    """What the network gives when asked as for ``predicts``, nan where it fails, and its first failure.

    It may be one that cannot be asked at a lam that its account does not need; the account meets the other failures.
    """
    outputs, failure = [torch.empty_like(draw.x) for draw in draws], None
    with evaluating(field.net), torch.inference_mode():
        for draw, out in zip(draws, outputs, strict=True):

            def work(part: slice, draw: Draws = draw, out: torch.Tensor = out) -> None:
                out[part] = field.output(draw.x[part].to(field.weights.device), draw.row, predicts).cpu()

            try:
                field.in_batches(work, len(draw.x))
            except MemoryError:
                raise
            except Exception as error:
                failure = error if failure is None else failure
                out.fill_(torch.nan)
    return outputs, failure


def _is_sound(field: Field, draw: Draws, output: torch.Tensor, predicts: str) -> bool:
    """Whether the two means can be formed."""
    b = dimensionless_score(predicts, output, draw.x, draw.row, field.noise)
    return bool(torch.isfinite(b.square().sum()))


def _fit(field: Field, draws: list[Draws], outputs: list[torch.Tensor], predicts: str) -> Fit:
    worst, apart, gains, slopes = 0.0, [], [], []
    for draw, output in zip(draws, outputs, strict=True):
        b, without = (
            dimensionless_score(predicts, each, draw.x, draw.row, field.noise) for each in (output, torch.zeros_like(output))
        )
        size = float(draw.c.square().sum(1).mean())
        along = float((b * (draw.c - b)).sum(1).mean()) / size
        outward = float((draw.x * (b - draw.c)).sum(1).mean()) / np.sqrt(size * float(draw.x.square().sum(1).mean()))
        worst = max(worst, abs(along), abs(outward))
        added, lacks = b - without, draw.c - without
        product, square = (added * lacks).sum(1) / size, added.square().sum(1) / size
        apart.append(((b - draw.c).square().sum(1) / size).numpy())
        gains.append((2.0 * product - square).numpy())
        slopes.append((product.numpy(), square.numpy()))
    products, squares = np.array(slopes, dtype=np.float64).transpose(1, 0, 2)
    with np.errstate(all="ignore"):
        slope = products.mean(1) / squares.mean(1)
        error = (products - slope[:, None] * squares).std(1) / squares.mean(1) / np.sqrt(products.shape[1])
    found = np.array(apart, dtype=np.float64)
    owed = _is_owed(np.array(gains, dtype=np.float64), float(products.mean(1).sum()), float(squares.mean(1).sum()))
    return Fit(worst, found.mean(1), owed, found, slope, error)


def _is_owed(gains: FloatArray, product: float, square: float) -> bool:
    """Whether the output brings a reading nearer to c: by much, or by little for certain and with the slope of a score."""
    if gains.mean() > OWED:
        return True
    error = np.linalg.norm(gains.std(1)) / np.sqrt(gains.shape[1])
    return bool(gains.mean(1).sum() > LEAST_Z * error and abs(product - square) < SLOPE_WITHIN * square)
