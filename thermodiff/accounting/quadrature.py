"""How far the quadrature is off, and what the default window leaves out, from closed forms with the scales of the data.

For Gaussian data with covariance eigenvalues e_j and second moment M the rates per unit of lam are

    medium  (q^2 (alpha^2 M + sigma^2 d) + q sigma d) / 2
    system  (sum_j sigma^2 / (alpha^2 e_j + sigma^2) + q sigma d) / 2

Their integrals are known to machine precision, so the error of the nodes on them is measured, not guessed.  A mixture has
the rates of its components, averaged, less the rate at which noise makes them overlap.  The error of the nodes on the
components is taken off the ledger.  What is left is that of the overlap, and two stand-ins tell its size: the Gaussian of
the same moments less the components; and the components two by two, where the mutual information of x and the choice
between -m and m at a signal-to-noise ratio g = m^2 alpha^2 / (alpha^2 v + sigma^2) obeys

    dI / dg = (1 - E tanh(g + sqrt(g) z)) / 2,

scaled to the entropy of the weights.  Where no window was asked for, the ledger stands for the whole process, and the
integral beyond the default edge counts as error.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff.accounting.nodes import fine
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]


class Gaussians(NamedTuple):
    """Weights (K,) and eigenvalues of the covariances (K, d) of a description of the law."""

    weights: FloatArray
    eigenvalues: FloatArray


class Pairs(NamedTuple):
    """Components two by two, (P,) each: overlap entropy in units of ln 2, half the distance squared, variance along it."""

    weights: FloatArray
    signals: FloatArray
    variances: FloatArray


class Scales(NamedTuple):
    """What the quadrature error of a law rests on."""

    whole: Gaussians
    parts: Gaussians
    pairs: Pairs


def _integrals(
    noise: Schedule, rule: tuple[FloatArray, FloatArray], second_moment: float, references: tuple[Gaussians, ...]
) -> FloatArray:
    """Integrals of total, system and medium, and of the size of the terms that they are made of, (references, 4)."""
    lam, weights = rule
    row = noise.at(lam)
    q, snr = -2.0 * row.growth / row.sigma, np.exp(np.minimum(lam, 700.0))[:, None]
    dim = references[0].eigenvalues.shape[1]
    heats, volumes = 0.5 * q * q * (row.alpha**2 * second_moment + row.sigma**2 * dim), 0.5 * q * row.sigma * dim
    heat, volume, size = (float(weights @ terms) for terms in (heats, volumes, np.abs(volumes)))
    found = []
    for reference in references:
        ratios = 1.0 / (1.0 + snr * reference.eigenvalues.ravel())
        spread = 0.5 * float(weights @ ratios @ np.repeat(reference.weights, dim))
        found.append([heat + 2.0 * volume + spread, volume + spread, heat + volume, heat + 2.0 * size + spread])
    return np.array(found)


ROUND_OFF = 1e-12
"""What the sums over samples and nodes may lose, relative to the size of their terms."""
BEYOND = 60.0
"""Units of lam after which nothing is left."""


@cache
def _pair_information() -> tuple[FloatArray, FloatArray]:
    """ln g and dI / d ln g of a choice between two points, in nats; it vanishes to 1e-9 outside."""
    log_snr = np.linspace(-22.0, 5.0, 2701)
    snr = np.exp(log_snr)
    # The trapezoidal rule is exact to rounding for a normal weight.
    z = np.linspace(-9.0, 9.0, 181)
    weights = np.exp(-0.5 * z * z)
    choice = np.tanh(snr[:, None] + np.sqrt(snr)[:, None] * z) @ (weights / weights.sum())
    return log_snr, 0.5 * snr * (1.0 - choice)


def _overlap_rate(lam: FloatArray, pairs: Pairs) -> FloatArray:
    """Rate per unit of lam at which pairs of components overlap."""
    clean = np.exp(-np.minimum(np.maximum(lam, -700.0), 700.0))[:, None]
    log_snr = np.log(pairs.signals) - np.log(clean + pairs.variances)
    # d ln g / d lam is the share of the noise in the variance along the pair.
    return (
        np.interp(log_snr, *_pair_information(), left=0.0, right=0.0) * clean / (clean + pairs.variances)
    ) @ pairs.weights


def quadrature_errors(
    noise: Schedule,
    window: tuple[float, float],
    lam: FloatArray,
    weights: FloatArray,
    second_moment: float,
    scales: Scales,
    *,
    open_ended: bool,
) -> dict[str, tuple[float, float]]:
    """By row: what the nodes give too much (to be taken off), and the deterministic error that is left; nats.

    The first is that of the components; the second is of their overlap, plus round-off and, if ``open_ended``, what lies
    above the window.
    """
    exact, nodes, references = fine(*window), (lam, weights), (scales.whole, scales.parts)
    truth = _integrals(noise, exact, second_moment, references)
    off = _integrals(noise, nodes, second_moment, references) - truth
    excess, whole = off[1], off[0]
    overlap = weights @ _overlap_rate(lam, scales.pairs) - exact[1] @ _overlap_rate(exact[0], scales.pairs)
    # The medium rests on the second moment alone: there is no overlap in it.
    error = np.maximum(np.abs(whole - excess), np.array([1.0, 1.0, 0.0, 0.0]) * abs(overlap))
    error += ROUND_OFF * truth[1, 3]
    if open_ended:
        beyond = fine(window[1], window[1] + BEYOND)
        error += np.max(np.abs(_integrals(noise, beyond, second_moment, references)), axis=0)
    return {row: (float(excess[j]), float(error[j])) for j, row in enumerate(("total", "system", "medium"))}
