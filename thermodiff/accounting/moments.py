"""From inner products per sample to the rows of the ledger.

At a node with scalars (alpha, sigma, kappa = d ln alpha / d lam) a sample is x = alpha x_0 + sigma z.  With the
dimensionless vectors

    a = sigma f / D = q x, q = -2 kappa / sigma,      b = sigma grad log p_t,      e = b_theta (learned)

every rate per unit of lam is linear in inner products of (x, b, e), written "xx", "xb", "bb", "xe", "ee", "eb"; "div" and
"ediv" are sigma div b and sigma div e.  A third vector c, the dimensionless score of x given what it was drawn from (a
component of a mixture; for a data point c = -z), satisfies E[c | x] = b and carries control variates, as do "logp" (log
p_t) and the rows of "zero" (rows, n), whose means vanish.  This is where the compiled and the learned path
meet: neither knows of the other, and nothing below this module knows of either.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._tasks import workspace

FloatArray = npt.NDArray[np.float64]
Gram = dict[str, FloatArray]
Control = tuple[FloatArray, float]
"""A variable of mean zero, and the size of the terms that it was formed from."""


class Node(NamedTuple):
    """Scalars of one node."""

    sigma: float
    q: float
    dim: int
    mean_xx: float | None
    """E|x|^2, where the law of x_0 is known."""
    mean_cc: float
    """E|c|^2."""


def rows(gram: Gram, node: Node) -> dict[str, FloatArray]:
    """Integrands per unit of lam for each sample, (n,) each; which rows depends on which products there are."""
    sigma, q, dim = node.sigma, node.q, node.dim
    xx = gram["xx"]
    result: dict[str, FloatArray] = {}
    # E x.b = -sigma d for every density, so the medium needs second moments only, and is a constant where they are known.
    moment = xx if node.mean_xx is None else np.full_like(xx, node.mean_xx)
    medium = 0.5 * (q * q * moment + q * sigma * dim)
    if "bb" in gram:
        total = 0.5 * (q * q * xx - 2.0 * q * gram["xb"] + gram["bb"])
        result |= {"total": total, "system": total - medium}
    result["medium"] = medium
    if "xe" not in gram:
        if "bb" in gram:
            result["residual"] = 0.5 * (q * gram["xb"] - gram["bb"] + sigma * q * dim - gram["div"])
        return result
    xe, ee = gram["xe"], gram["ee"]
    result["neural"] = 0.5 * (q * q * xx - 2.0 * q * xe + ee)
    if "eb" in gram:
        result["mismatch"] = 0.5 * (ee - 2.0 * gram["eb"] + gram["bb"])
    if "ediv" in gram:
        result["residual"] = 0.5 * (q * xe - ee + sigma * q * dim - gram["ediv"])
    return result


def balance(gram: Gram, node: Node) -> FloatArray | None:
    """What total holds besides |b|^2 / 2, less its mean: zero on average, and most of the noise where scale is small."""
    if node.mean_xx is None or "xb" not in gram:
        return None
    q = node.q
    return 0.5 * q * q * (gram["xx"] - node.mean_xx) - q * (gram["xb"] + node.sigma * node.dim)


def controls(gram: Gram, node: Node) -> list[Control]:
    """Combinations whose mean is known to be zero, for the reduction of variance.

    |c|^2 - E|c|^2 and x.c + sigma d always (E x.s = -d for every score); |x|^2 - E|x|^2 where it is known.  With an exact
    score also x.b + sigma d, b.(c - b) since E[c | x] = b, and Stein's identity E[div g + g.s] = 0 for the vector fields
    g = s, s log p, s |x|^2, x log p and x |x|^2; last, what is known of each component.
    """
    shift, size = node.sigma * node.dim, node.mean_cc
    result: list[Control] = []
    rest = balance(gram, node)
    if rest is not None and node.mean_xx is not None:
        # First, and by itself: as a combination of nearly dependent controls it would be fitted worse.
        result.append((rest, node.q**2 * node.mean_xx))
    result += [(gram["cc"] - node.mean_cc, size), (gram["xc"] + shift, shift)]
    if node.mean_xx is not None:
        result.append((gram["xx"] - node.mean_xx, node.mean_xx))
    if "xb" in gram:
        result += [(gram["xb"] + shift, shift), (gram["cb"] - gram["bb"], size)]
    if "logp" in gram:
        result += _stein(gram, node)
    result += [(row, 1.0) for row in gram.get("zero", ())]
    return result


def _stein(gram: Gram, node: Node) -> list[Control]:
    shift, size = node.sigma * node.dim, node.mean_cc
    xx, xb, bb = gram["xx"], gram["xb"], gram["bb"]
    spread = float(np.sqrt(np.mean(xx)))
    # Any constant may be taken from log p; this one keeps the products small.
    level = gram["logp"] - np.mean(gram["logp"])
    fisher = bb + gram["div"]
    xs = xb / node.sigma
    return [
        (fisher, size),
        (level * fisher + bb, size),
        (xx * fisher + 2.0 * node.sigma * xb, size * spread**2),
        (level * shift + xb * (1.0 + level), shift),
        (xx * (node.dim + 2.0 + xs), spread**2 * node.dim),
    ]


SAMPLES_PER_CONTROL = 20
"""With fewer, a fitted coefficient costs more than it saves."""
MOST_LEVERAGE = 0.2
"""A control whose spread rests on one sample to this degree (a rare component) is left out: its fit is an accident."""

RIDGE = 1e-4
"""Added to the correlation matrix of the controls: nearly dependent ones must not form combinations that rest on a few
samples (with 1e-11 the RMS z of a mixture with rare components was 1.6)."""


def reduce_variance(values: FloatArray, zero_mean: list[Control]) -> FloatArray:
    """Subtract fitted multiples of the control variates.

    The coefficients for each half of the samples are fitted on the other half: the result is unbiased, and its spread
    includes what the fit costs.

    Parameters
    ----------
    values : (rows, n) array
    zero_mean : list of Control

    Returns
    -------
    (rows, n) array
        Same expectation, smaller variance.
    """
    half = values.shape[1] // 2
    zero_mean = zero_mean[: half // SAMPLES_PER_CONTROL]
    if not zero_mean:
        return values
    table = workspace("controls", (len(zero_mean) + len(values), values.shape[1]))
    np.stack([control for control, _ in zero_mean] + list(values), out=table)
    sizes = np.array([size for _, size in zero_mean])
    adjusted = values.copy()
    for here, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        adjusted[:, here] -= _fit(table[:, other], sizes) @ table[: sizes.size, here]
    return adjusted


def _fit(table: FloatArray, sizes: FloatArray) -> FloatArray:
    """Least-squares coefficients (rows, controls); ``table`` holds the controls, then the rows to be explained."""
    count, n = sizes.size, table.shape[1]
    products, means = table @ table.T / n, table.mean(axis=1)
    squares = np.diag(products)[:count]
    peaks = np.maximum(table[:count].max(axis=1), -table[:count].min(axis=1))
    # A combination that vanishes up to rounding has no known mean.
    usable = (squares > (1e-9 * sizes) ** 2) & (peaks**2 < MOST_LEVERAGE * n * squares)
    scale = np.where(usable, 1.0 / np.sqrt(np.where(usable, squares, 1.0)), 0.0)
    covariance = products - np.outer(means, means)
    gram = scale[:, None] * covariance[:count, :count] * scale
    gram[np.diag_indices(count)] += RIDGE + (~usable)
    return scale * np.linalg.solve(gram, scale[:, None] * covariance[:count, count:]).T
