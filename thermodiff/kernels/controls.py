"""Linear maps of the rows of a sample table, and the fit of control variates to them.

Nothing here knows what the rows mean.  A *table row* is a constant plus up to four of the given rows times a factor, or the
product of two other table rows plus a third.  Row 0 is 1; then come the controls (variables of mean zero), the values, and
factors of products.  The table exists for one slice of samples at a time, in cache.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from thermodiff.kernels.elementary import from_bits, to_bits
from thermodiff.kernels.jit import BORROWING, inline, kernel, matrix, subroutine, vector

SLICE = 256
"""Samples per slice."""
TERMS = 4
"""Most terms in a linear row."""

indices = types.int64[:, ::1]

_SUMMING = {**BORROWING, "forceinline": True, "fastmath": {"contract", "nsz", "reassoc", "nnan"}}
"""For sums and maxima alone, which vectorise only if their order is free.  (`adjust` lets nan through by the values.)"""


@numba.njit(**_SUMMING)
def _dots(a0, a1, a2, a3, b0, b1, size, out, i, j):
    """Add the products of four rows with two to ``out[i : i + 4, j : j + 2]``."""
    s00, s01, s10, s11, s20, s21, s30, s31 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for n in range(size):
        u, v = b0[n], b1[n]
        s00 += a0[n] * u
        s01 += a0[n] * v
        s10 += a1[n] * u
        s11 += a1[n] * v
        s20 += a2[n] * u
        s21 += a2[n] * v
        s30 += a3[n] * u
        s31 += a3[n] * v
    out[i, j] += s00
    out[i, j + 1] += s01
    out[i + 1, j] += s10
    out[i + 1, j + 1] += s11
    out[i + 2, j] += s20
    out[i + 2, j + 1] += s21
    out[i + 3, j] += s30
    out[i + 3, j + 1] += s31


@numba.njit(**_SUMMING)
def _largest_squares(a0, a1, a2, a3, size, out, i):
    """Raise ``out[i : i + 4]`` to the largest squares in four rows."""
    m0, m1, m2, m3 = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for n in range(size):
        # Floats that are not negative are in the order of their bits, and LLVM vectorises the maximum of integers.
        v0, v1 = np.int64(to_bits(a0[n] * a0[n])), np.int64(to_bits(a1[n] * a1[n]))
        v2, v3 = np.int64(to_bits(a2[n] * a2[n])), np.int64(to_bits(a3[n] * a3[n]))
        m0 = v0 if v0 > m0 else m0
        m1 = v1 if v1 > m1 else m1
        m2 = v2 if v2 > m2 else m2
        m3 = v3 if v3 > m3 else m3
    out[i] = max(out[i], from_bits(np.uint64(m0)))
    out[i + 1] = max(out[i + 1], from_bits(np.uint64(m1)))
    out[i + 2] = max(out[i + 2], from_bits(np.uint64(m2)))
    out[i + 3] = max(out[i + 3], from_bits(np.uint64(m3)))


@numba.njit(**_SUMMING)
def _sum_and_squares(row):
    """Mean of a row and the sum of its squared deviations from it."""
    total, squares = 0.0, 0.0
    for n in range(row.size):
        total += row[n]
    mean = total / row.size
    for n in range(row.size):
        squares += (row[n] - mean) * (row[n] - mean)
    return mean, squares


@subroutine
def _fill(given, first, size, columns, factors, products, table):
    """The table rows of ``size`` samples from ``first`` on."""
    for r in range(columns.shape[0]):
        row, constant = table[r], factors[r, TERMS]
        if columns[r, 0] < 0:
            for n in range(size):
                row[n] = constant
            continue
        f0, f1, f2, f3 = factors[r, 0], factors[r, 1], factors[r, 2], factors[r, 3]
        one, two = given[columns[r, 0], first : first + size], given[columns[r, 1], first : first + size]
        if f1 == 0.0:
            for n in range(size):
                row[n] = constant + f0 * one[n]
        else:
            for n in range(size):
                row[n] = constant + f0 * one[n] + f1 * two[n]
        if f2 != 0.0 or f3 != 0.0:
            one, two = given[columns[r, 2], first : first + size], given[columns[r, 3], first : first + size]
            for n in range(size):
                row[n] += f2 * one[n] + f3 * two[n]
    for p in range(products.shape[0]):
        row, one, two, rest = table[products[p, 0]], table[products[p, 1]], table[products[p, 2]], table[products[p, 3]]
        for n in range(size):
            row[n] = one[n] * two[n] + rest[n]


@subroutine
def _moments(given, first, last, columns, factors, products, table, second, peaks):
    """Mean products of row 0 and the controls with all rows, and their largest squares, over samples first ... last - 1."""
    second[:, :] = 0.0
    peaks[:] = 0.0
    start = first
    while start < last:
        size = min(SLICE, last - start)
        _fill(given, start, size, columns, factors, products, table)
        for i in range(0, second.shape[0], 4):
            a0, a1, a2, a3 = table[i], table[i + 1], table[i + 2], table[i + 3]
            _largest_squares(a0, a1, a2, a3, size, peaks, i)
            for j in range(i, second.shape[1], 2):
                _dots(a0, a1, a2, a3, table[j], table[j + 1], size, second, i, j)
        start += size
    for i in range(second.shape[0]):
        for j in range(second.shape[1]):
            second[i, j] /= last - first


@inline
def _solve(gram, right):
    """Solve with a symmetric positive definite matrix by Cholesky's factorisation, in place; (C, C) and (C, R)."""
    count = gram.shape[0]
    for i in range(count):
        for j in range(i + 1):
            total = gram[i, j]
            for k in range(j):
                total -= gram[i, k] * gram[j, k]
            gram[i, j] = np.sqrt(total) if i == j else total / gram[j, j]
    for r in range(right.shape[1]):
        for i in range(count):
            for k in range(i):
                right[i, r] -= gram[i, k] * right[k, r]
            right[i, r] /= gram[i, i]
        for i in range(count - 1, -1, -1):
            for k in range(i + 1, count):
                right[i, r] -= gram[k, i] * right[k, r]
            right[i, r] /= gram[i, i]


@subroutine
def _fit(samples, sizes, limits, second, peaks, scale, gram, right):
    """Ridge regression of the values on the controls, from their moments; coefficients into ``right`` (C, R).

    ``scale`` (C,) and ``gram`` (C, C) are to work in.
    """
    controls, ridge, leverage, smallest = sizes.size, limits[0], limits[1], limits[2]
    for i in range(controls):
        scale[i] = 0.0
        square, floor = second[1 + i, 1 + i], smallest * sizes[i]
        # A control that vanishes up to rounding has no known mean; one that rests on a single sample has no fit.
        if square > floor * floor and peaks[1 + i] < leverage * samples * square:
            scale[i] = 1.0 / np.sqrt(square)
    for i in range(controls):
        for j in range(i + 1):
            gram[i, j] = scale[i] * scale[j] * (second[1 + j, 1 + i] - second[0, 1 + i] * second[0, 1 + j])
        gram[i, i] += ridge if scale[i] > 0.0 else 1.0
        for r in range(right.shape[1]):
            value = 1 + controls + r
            right[i, r] = scale[i] * (second[1 + i, value] - second[0, 1 + i] * second[0, value])
    _solve(gram, right)
    for i in range(controls):
        for r in range(right.shape[1]):
            right[i, r] *= scale[i]


@inline
def _add_linear(columns, factors, times, gains):
    """Add a linear table row ``times`` over to ``gains``, the factors of the given rows with a constant at the end."""
    gains[-1] += times * factors[TERMS]
    if columns[0] >= 0:
        for k in range(TERMS):
            gains[columns[k]] += times * factors[k]


@inline
def _gains(columns, factors, products, value, coefficients, gains, times):
    """A value less the controls, as ``gains`` on the given rows and ``times`` on the products of `_fill`."""
    gains[:] = 0.0
    times[:] = 0.0
    _add_linear(columns[value], factors[value], 1.0, gains)
    for i in range(coefficients.size):
        _add_linear(columns[1 + i], factors[1 + i], -coefficients[i], gains)
    for p in range(products.shape[0]):
        row = products[p, 0]
        if row == value or row <= coefficients.size:
            times[p] = 1.0 if row == value else -coefficients[row - 1]
            _add_linear(columns[products[p, 3]], factors[products[p, 3]], times[p], gains)


@inline
def _combine(given, first, size, gains, used, target):
    """The sum of the given rows by ``gains``; those without are not looked at, which may hold nan.  ``used`` is room."""
    constant, count = gains[-1], 0
    for n in range(size):
        target[n] = constant
    for g in range(gains.size - 1):
        if gains[g] != 0.0:
            used[count] = g
            count += 1
    for k in range(0, count, 3):
        one = used[k]
        two, three = (used[k + 1] if k + 1 < count else one), (used[k + 2] if k + 2 < count else one)
        f0, f1, f2 = gains[one], (gains[two] if k + 1 < count else 0.0), (gains[three] if k + 2 < count else 0.0)
        u, v, w = given[one, first : first + size], given[two, first : first + size], given[three, first : first + size]
        for n in range(size):
            target[n] += f0 * u[n] + (f1 * v[n] + f2 * w[n])


@subroutine
def _subtract(given, first, last, pair_columns, pair_factors, products, gains, times, used, table, out):
    """Values of samples first ... last - 1 less the controls, by their `_gains`.

    All that is linear is in one factor for each given row; products are formed from their factors.
    """
    start = first
    while start < last:
        size = min(SLICE, last - start)
        _fill(given, start, size, pair_columns, pair_factors, products[:0], table)
        for r in range(out.shape[0]):
            target = out[r, start : start + size]
            _combine(given, start, size, gains[r], used, target)
            for p in range(products.shape[0]):
                factor, one, two = times[r, p], table[2 * p], table[2 * p + 1]
                if factor != 0.0:
                    for n in range(size):
                        target[n] += factor * (one[n] * two[n])
        start += size


adjust_signature = types.void(matrix, types.int64, types.int64, indices, matrix, indices, vector, vector, matrix, matrix)
adjust_pointer = types.FunctionType(adjust_signature)


@kernel(adjust_signature)
def adjust(given, samples, fitted, columns, factors, products, sizes, limits, out, statistics):
    """Values of each sample less fitted multiples of the controls, with their means and sums of squared deviations.

    Parameters
    ----------
    given : (G, >= samples) array
    samples, fitted : int
        Controls are subtracted from the first ``fitted`` values.
    columns : (T, TERMS) integers
        The given rows in each table row; the first is -1 for a constant (and for a product).
    factors : (T, TERMS + 1) array
        Their factors, and the constant.
    products : (P, 4) integers
        (row, one, two, rest): ``table[row] = table[one] * table[two] + table[rest]``.
    sizes : (C,) array
        The size of the terms that a control was formed from, which tells a control from rounding errors.
    limits : (3,) array
        Ridge on the correlation matrix, largest share of one sample in a sum of squares, smallest relative size.
    out : (R, samples) array
    statistics : (R, 2) array

    The coefficients for each half of the samples come from the other half: the result is unbiased, and its spread includes
    what the fit costs.
    """
    controls, half = sizes.size, samples // 2
    # Row 0 and the controls in fours against all rows in twos: `_dots` takes them so.
    fours, twos = -(-(1 + controls) // 4) * 4, -(-(1 + controls + fitted) // 2) * 2
    table = np.zeros((max(columns.shape[0], fours, twos, 2 * products.shape[0]), SLICE))
    second, peaks = np.zeros((fours, twos)), np.zeros(fours)
    scale, correlations = np.empty(controls), np.empty((controls, controls))
    # Values beyond the fitted ones have nothing subtracted.
    coefficients = np.zeros((2, controls, out.shape[0]))
    if controls > 0:
        _moments(given, half, samples, columns, factors, products, table, second, peaks)
        _fit(samples - half, sizes, limits, second, peaks, scale, correlations, coefficients[0, :, :fitted])
        _moments(given, 0, half, columns, factors, products, table, second, peaks)
        _fit(half, sizes, limits, second, peaks, scale, correlations, coefficients[1, :, :fitted])
    gains, times = np.empty((out.shape[0], given.shape[0] + 1)), np.empty((out.shape[0], products.shape[0]))
    pairs, used = products[:, 1:3].copy().reshape(-1), np.empty(given.shape[0] + 2, np.int64)
    pair_columns, pair_factors = columns[pairs], factors[pairs]
    for part in range(2):
        first, last = (0, half) if part == 0 else (half, samples)
        for r in range(out.shape[0]):
            _gains(columns, factors, products, 1 + controls + r, coefficients[part, :, r], gains[r], times[r])
        _subtract(given, first, last, pair_columns, pair_factors, products, gains, times, used, table, out)
    for r in range(out.shape[0]):
        statistics[r, 0], statistics[r, 1] = _sum_and_squares(out[r])
