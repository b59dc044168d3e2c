"""From inner products per sample to the rows of the ledger.

At a node with scalars (alpha, sigma, kappa = d ln alpha / d lam) a sample is x = alpha x_0 + sigma z.  With the
dimensionless vectors

    a = sigma f / D = q x, q = -2 kappa / sigma,      b = sigma grad log p_t,      e = b_theta (learned)

every rate per unit of lam is linear in inner products of (x, b, e), named "xx", "xb", "bb", "xe", "ee", "eb"; "div" and
"ediv" are sigma div b and sigma div e.  A third vector c, the dimensionless score of x given what it was drawn from (a
component of a mixture; for a data point c = -z), satisfies E[c | x] = b and carries control variates, as do "logp" (log
p_t) and, for components of a mixture, the rows called "share" and "square", whose means vanish.

A source hands over the products under these names.  This module says what to make of them, as coefficients; the arithmetic
on samples is `thermodiff.kernels.controls.adjust`, one for both paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

TERMS = 4
"""Most products in a linear row, as the kernel takes them."""
SAMPLES_PER_CONTROL = 20
"""With fewer, a fitted coefficient costs more than it saves."""
RIDGE = 2e-4
"""Added to the correlation matrix of the controls: nearly dependent ones must not form combinations that rest on a few
samples (with 1e-11 the RMS z of a mixture with rare components was 1.6)."""
MOST_LEVERAGE = 0.14
"""A control whose spread rests on one sample to this degree (a rare component, a thin overlap) is left out: its fit is an
accident, and the error from it too small.  A lower limit costs precision on ordinary laws (decision 3)."""
ROUND_OFF = 1e-9
"""A control that is smaller than the terms it was formed from by this factor has no known mean."""


class Scalars(NamedTuple):
    """Scalars of the nodes, (nodes,) each."""

    sigma: FloatArray
    q: FloatArray
    dim: int
    mean_xx: FloatArray | None
    """E|x|^2, where the law of x_0 is known."""
    mean_cc: FloatArray
    """E|c|^2."""


@dataclass(eq=False)
class Row:
    """constant + sum of factor * product, per node; or, with ``product``, one * two + rest."""

    terms: dict[str | int, FloatArray | float] = field(default_factory=dict)
    constant: FloatArray | float = 0.0
    size: FloatArray | float = 1.0
    """Of the terms that a control is formed from."""
    product: tuple[Row, Row, Row] | None = None

    def __sub__(self, other: Row) -> Row:
        terms = dict(self.terms)
        for name, factor in other.terms.items():
            terms[name] = terms.get(name, 0.0) - factor
        return Row(terms, self.constant - other.constant)


def known_medium(s: Scalars) -> FloatArray | None:
    """The medium per unit of lam, where it is known: E x.b = -sigma d for every density, so second moments suffice."""
    return None if s.mean_xx is None else 0.5 * (s.q**2 * s.mean_xx + s.q * s.sigma * s.dim)


def values(names: tuple[str, ...], s: Scalars) -> dict[str, Row]:
    """Integrands per unit of lam, as far as there are products for them; "system" is total - medium."""
    q, result = s.q, dict[str, Row]()
    if "bb" in names:
        result["total"] = Row({"xx": 0.5 * q**2, "xb": -q, "bb": 0.5})
    if s.mean_xx is None:
        result["medium"] = Row({"xx": 0.5 * q**2}, 0.5 * q * s.sigma * s.dim)
    if "xe" in names:
        result["neural"] = Row({"xx": 0.5 * q**2, "xe": -q, "ee": 0.5})
    if "eb" in names:
        result["mismatch"] = Row({"ee": 0.5, "eb": -1.0, "bb": 0.5})
    if "ec" in names:
        result["denoising"] = Row({"ee": 0.5, "ec": -1.0, "cc": 0.5})
    if "ediv" in names:
        result["residual"] = Row({"xe": 0.5 * q, "ee": -0.5, "ediv": -0.5}, 0.5 * q * s.sigma * s.dim)
    elif "div" in names and "xe" not in names:
        result["residual"] = Row({"xb": 0.5 * q, "bb": -0.5, "div": -0.5}, 0.5 * q * s.sigma * s.dim)
    return result


def balance(names: tuple[str, ...], s: Scalars) -> Row | None:
    """What total holds besides |b|^2 / 2, less its mean: zero on average, and most of the noise where scale is small."""
    if s.mean_xx is None or "xb" not in names:
        return None
    size = s.q**2 * s.mean_xx
    return Row({"xx": 0.5 * s.q**2, "xb": -s.q}, -0.5 * size - s.q * s.sigma * s.dim, size)


def controls(names: tuple[str, ...], s: Scalars) -> list[Row]:
    """Combinations whose mean is known to be zero, for the reduction of variance, the most useful first.

    |c|^2 - E|c|^2 and x.c + sigma d where there is c (E x.s = -d for every score); |x|^2 - E|x|^2 where it is known.  With
    an exact score also x.b + sigma d, b.(c - b) since E[c | x] = b, and Stein's identity E[div g + g.s] = 0 for the vector
    fields g = s, s log p, s |x|^2, x log p and x |x|^2, with the shares of the components after the first, which together
    stand for |c|^2; last, the squares of the components.
    """
    shift, size = s.sigma * s.dim, s.mean_cc
    result: list[Row] = []
    rest = balance(names, s)
    if rest is not None:
        # First, and by itself: as a combination of nearly dependent controls it would be fitted worse.
        result.append(rest)
    if "cc" in names:
        result += [Row({"cc": 1.0}, -size, size), Row({"xc": 1.0}, shift, shift)]
    if s.mean_xx is not None:
        result.append(Row({"xx": 1.0}, -s.mean_xx, s.mean_xx))
    if "xb" in names:
        result.append(Row({"xb": 1.0}, shift, shift))
    if "cb" in names:
        result.append(Row({"cb": 1.0, "bb": -1.0}, 0.0, size))
    stein = _stein(s, s.mean_xx) if "logp" in names and s.mean_xx is not None else []
    return [*result, *stein[:1], *_named(names, "share"), *stein[1:], *_named(names, "square")]


def _named(names: tuple[str, ...], kind: str) -> list[Row]:
    """The products of that name, as they are."""
    return [Row({column: 1.0}) for column, name in enumerate(names) if name == kind]


def _stein(s: Scalars, mean_xx: FloatArray) -> list[Row]:
    shift, size = s.sigma * s.dim, s.mean_cc
    fisher = Row({"bb": 1.0, "div": 1.0}, 0.0, size)
    # Any constant may be taken from log p; that of the Gaussian of the same |x|^2 keeps the products small.
    level = Row({"logp": 1.0}, 0.5 * s.dim * (np.log(2.0 * np.pi * mean_xx / s.dim) + 1.0))
    xx, xb, bb = Row({"xx": 1.0}), Row({"xb": 1.0}), Row({"bb": 1.0})
    return [
        fisher,
        Row(size=size, product=(level, fisher, bb)),
        Row(size=size * mean_xx, product=(xx, fisher, Row({"xb": 2.0 * s.sigma}))),
        Row(size=shift, product=(level, Row({"xb": 1.0}, shift), xb)),
        Row(size=mean_xx * s.dim, product=(xx, Row({"xb": 1.0 / s.sigma}, s.dim + 2.0), Row())),
    ]


@dataclass(frozen=True)
class Plan:
    """The rows of `values` and `controls` as arrays for the kernel, for all nodes of an account."""

    values: tuple[str, ...]
    """Names of the values, those with control variates first."""
    fitted: int
    columns: npt.NDArray[np.int64]
    factors: FloatArray
    """(nodes, rows, TERMS + 1)"""
    products: npt.NDArray[np.int64]
    sizes: FloatArray
    """(nodes, controls)"""

    def arguments(self, nodes: int | slice) -> tuple[object, ...]:
        """What `thermodiff.kernels.controls.adjust` takes between the samples and its output, for one or some nodes."""
        limits = np.array([RIDGE, MOST_LEVERAGE, ROUND_OFF])
        return self.fitted, self.columns, self.factors[nodes], self.products, self.sizes[nodes], limits


def plan(names: tuple[str, ...], s: Scalars, samples: int) -> Plan:
    """Lay out the table of `thermodiff.kernels.controls.adjust`: 1, controls, values, factors."""
    rows, zero_mean = values(names, s), controls(names, s)
    zero_mean = zero_mean[: samples // 2 // SAMPLES_PER_CONTROL]
    rest = balance(names, s)
    if not zero_mean and rest is not None:
        # Too few samples to fit anything: take off what is zero on average with its coefficient in the total.
        rows |= {name: rows[name] - rest for name in ("total", "neural") if name in rows}
    # The residual tests the identities that the controls rest on: it stays as drawn.
    order = [name for name in rows if name != "residual"]
    fitted = len(order)
    order += [name for name in rows if name == "residual"]
    table = [Row(constant=1.0), *zero_mean, *(rows[name] for name in order)]
    for row in zero_mean:
        table += [part for part in row.product or () if all(part is not other for other in table)]
    return Plan(tuple(order), fitted, *_arrays(table, names, s.sigma.size), _sizes(zero_mean, s.sigma.size))


def _arrays(
    table: list[Row], names: tuple[str, ...], nodes: int
) -> tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int64]]:
    columns, factors = np.full((len(table), TERMS), -1, dtype=np.int64), np.zeros((nodes, len(table), TERMS + 1))
    products: list[list[int]] = []
    place = {id(row): r for r, row in enumerate(table)}
    for r, row in enumerate(table):
        factors[:, r, TERMS] = row.constant
        if row.product is not None:
            products.append([r, *(place[id(part)] for part in row.product)])
        for k, (name, factor) in enumerate(row.terms.items()):
            columns[r, k] = names.index(name) if isinstance(name, str) else name
            factors[:, r, k] = factor
        # Unused places repeat the first row, with a factor of zero.
        columns[r, len(row.terms) :] = columns[r, 0]
    return columns, factors, np.array(products, dtype=np.int64).reshape(-1, 4)


def _sizes(zero_mean: list[Row], nodes: int) -> FloatArray:
    sizes = np.empty((nodes, len(zero_mean)))
    for i, row in enumerate(zero_mean):
        sizes[:, i] = row.size
    return sizes
