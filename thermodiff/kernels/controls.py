"""Linear maps of the rows of a sample table, and the fit of control variates to them.

Nothing here knows what the rows mean.  They are given in blocks of LANES samples, those of a block one below the other.  A
*table row* is a constant plus up to four of the given rows times a factor, or the product of two other table rows plus a
third.  Row 0 is 1; then come the controls (variables of mean zero), the values, and factors of products.  The table exists
for one block at a time, in cache, and without the rows that are given as they are.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from thermodiff.kernels.elementary import from_bits, to_bits
from thermodiff.kernels.jit import BORROWING, LANES, inline, kernel, lanes, matrix, subroutine, vector

TERMS = 4
"""Most terms in a linear row."""

indices = types.int64[:, ::1]

_SUMMING = {**BORROWING, "forceinline": True, "fastmath": {"contract", "nsz", "reassoc", "nnan"}}
"""For sums and maxima alone, which vectorise only if their order is free.  (`adjust` lets nan through by the values.)"""


def in_blocks(rows: np.ndarray) -> np.ndarray:
    """Rows (G, n) as `adjust` takes them, (blocks * G, LANES); what fills the last block is not looked at."""
    count, n = rows.shape
    padded = np.zeros((count, -(-n // LANES) * LANES))
    padded[:, :n] = rows
    return padded.reshape(count, -1, LANES).transpose(1, 0, 2).reshape(-1, LANES)


@numba.njit(**_SUMMING)
def _dots(a0, a1, a2, a3, b0, b1, out, i, j):
    """Add the products of four rows with two to ``out[i : i + 4, j : j + 2]``."""
    s00, s01, s10, s11, s20, s21, s30, s31 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for n in range(b0.size):
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
def _largest_squares(a0, a1, a2, a3, out, i):
    """Raise ``out[i : i + 4]`` to the largest squares in four rows."""
    m0, m1, m2, m3 = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for n in range(a0.size):
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


@inline
def _is_given(factors):
    """Whether a linear table row is a given row as it is."""
    same = factors[0] == 1.0
    for k in range(1, TERMS + 1):
        same = same and factors[k] == 0.0
    return same


@inline
def _is_multiplied(products, r):
    """Whether a product is formed from table row r."""
    found = False
    for p in range(products.shape[0]):
        found = found or products[p, 1] == r or products[p, 2] == r
    return found


@subroutine
def _lay_out(columns, factors, products, place, linear, multiplied):
    """Where the table rows are: ``place[r]`` is a given row, or -1 - r for one of the table, the r-th from its end.

    Returns how many linear rows are to be filled, which are the first in ``linear``, and how many of those products are
    formed from, the first in ``multiplied``.
    """
    filled, among = 0, 0
    for r in range(place.size):
        place[r] = -1 - r
    for r in range(columns.shape[0]):
        if columns[r, 0] < 0:
            continue
        if _is_given(factors[r]):
            place[r] = columns[r, 0]
            continue
        linear[filled] = r
        filled += 1
        if _is_multiplied(products, r):
            multiplied[among] = r
            among += 1
    return filled, among


@inline
def _holder(rows, table, place):
    """The array in which a table row is."""
    if place >= 0:
        return rows
    return table


@subroutine
def _fill(rows, low, high, columns, factors, wanted, table):
    """Lanes low ... high - 1 of the linear table rows in ``wanted``, from the given ``rows`` of a block."""
    for k in range(wanted.size):
        r = wanted[k]
        row, constant = table[-1 - r, low:high], factors[r, TERMS]
        f0, f1, f2, f3 = factors[r, 0], factors[r, 1], factors[r, 2], factors[r, 3]
        one, two = rows[columns[r, 0], low:high], rows[columns[r, 1], low:high]
        if f1 == 0.0:
            for n in range(row.size):
                row[n] = constant + f0 * one[n]
        else:
            for n in range(row.size):
                row[n] = constant + f0 * one[n] + f1 * two[n]
        if f2 != 0.0 or f3 != 0.0:
            one, two = rows[columns[r, 2], low:high], rows[columns[r, 3], low:high]
            for n in range(row.size):
                row[n] += f2 * one[n] + f3 * two[n]


@inline
def _multiply(rows, low, high, products, place, table):
    """The table rows that are products."""
    for p in range(products.shape[0]):
        first, second, third = place[products[p, 1]], place[products[p, 2]], place[products[p, 3]]
        one, two = _holder(rows, table, first)[first, low:high], _holder(rows, table, second)[second, low:high]
        row, rest = table[-1 - products[p, 0], low:high], _holder(rows, table, third)[third, low:high]
        for n in range(row.size):
            row[n] = one[n] * two[n] + rest[n]


@inline
def _add_products(rows, low, high, table, place, second, peaks):
    """Add the products of row 0 and the controls with all rows in a block, and raise the largest squares."""
    for i in range(0, second.shape[0], 4):
        p0, p1, p2, p3 = place[i], place[i + 1], place[i + 2], place[i + 3]
        a0, a1 = _holder(rows, table, p0)[p0, low:high], _holder(rows, table, p1)[p1, low:high]
        a2, a3 = _holder(rows, table, p2)[p2, low:high], _holder(rows, table, p3)[p3, low:high]
        _largest_squares(a0, a1, a2, a3, peaks, i)
        for j in range(i, second.shape[1], 2):
            q0, q1 = place[j], place[j + 1]
            b0, b1 = _holder(rows, table, q0)[q0, low:high], _holder(rows, table, q1)[q1, low:high]
            _dots(a0, a1, a2, a3, b0, b1, second, i, j)


@subroutine
def _moments(given, count, first, last, columns, factors, products, place, linear, table, second, peaks):
    """Mean products of row 0 and the controls with all rows, and their largest squares, over samples first ... last - 1."""
    second[:, :] = 0.0
    peaks[:] = 0.0
    for block in range(first // LANES, -(-last // LANES)):
        rows = given[block * count : (block + 1) * count]
        low, high = max(first - block * LANES, 0), min(last - block * LANES, LANES)
        _fill(rows, low, high, columns, factors, linear, table)
        _multiply(rows, low, high, products, place, table)
        _add_products(rows, low, high, table, place, second, peaks)
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
def _combine(rows, low, high, gains, used, target):
    """The sum of the given rows by ``gains``; those without are not looked at, which may hold nan.  ``used`` is room."""
    constant, count = gains[-1], 0
    for n in range(target.size):
        target[n] = constant
    for g in range(gains.size - 1):
        if gains[g] != 0.0:
            used[count] = g
            count += 1
    for k in range(0, count, 3):
        one = used[k]
        two, three = (used[k + 1] if k + 1 < count else one), (used[k + 2] if k + 2 < count else one)
        f0, f1, f2 = gains[one], (gains[two] if k + 1 < count else 0.0), (gains[three] if k + 2 < count else 0.0)
        u, v, w = rows[one, low:high], rows[two, low:high], rows[three, low:high]
        for n in range(target.size):
            target[n] += f0 * u[n] + (f1 * v[n] + f2 * w[n])


@subroutine
def _subtract(given, count, first, last, columns, factors, products, place, wanted, gains, times, used, table, out):
    """Values of samples first ... last - 1 less the controls, by their `_gains`.

    All that is linear is in one factor for each given row; products are formed from their factors, which are ``wanted``.
    """
    for block in range(first // LANES, -(-last // LANES)):
        rows, start = given[block * count : (block + 1) * count], block * LANES
        low, high = max(first - start, 0), min(last - start, LANES)
        _fill(rows, low, high, columns, factors, wanted, table)
        for r in range(out.shape[0]):
            target = out[r, start + low : start + high]
            _combine(rows, low, high, gains[r], used, target)
            for p in range(products.shape[0]):
                factor, k, m = times[r, p], place[products[p, 1]], place[products[p, 2]]
                if factor != 0.0:
                    one, two = _holder(rows, table, k)[k, low:high], _holder(rows, table, m)[m, low:high]
                    for n in range(target.size):
                        target[n] += factor * (one[n] * two[n])


adjust_signature = types.void(matrix, types.int64, types.int64, indices, matrix, indices, vector, vector, matrix, matrix)
adjust_pointer = types.FunctionType(adjust_signature)


@kernel(adjust_signature)
def adjust(given, samples, fitted, columns, factors, products, sizes, limits, out, statistics):
    """Values of each sample less fitted multiples of the controls, with their means and sums of squared deviations.

    Parameters
    ----------
    given : (blocks * G, LANES) array
        G rows for each block of samples, see `in_blocks`.
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
    controls, half, count = sizes.size, samples // 2, given.shape[0] // -(-samples // LANES)
    # Row 0 and the controls in fours against all rows in twos: `_dots` takes them so.
    fours, twos = -(-(1 + controls) // 4) * 4, -(-(1 + controls + fitted) // 2) * 2
    table = lanes(max(columns.shape[0], fours, twos))
    table[:] = 0.0
    place, linear = np.empty(table.shape[0], np.int64), np.empty(table.shape[0], np.int64)
    multiplied = np.empty(table.shape[0], np.int64)
    filled, among = _lay_out(columns, factors, products, place, linear, multiplied)
    linear, multiplied = linear[:filled], multiplied[:among]
    for r in range(columns.shape[0]):
        if columns[r, 0] < 0:
            table[-1 - r] = factors[r, TERMS]
    second, peaks = np.zeros((fours, twos)), np.zeros(fours)
    scale, correlations = np.empty(controls), np.empty((controls, controls))
    # Values beyond the fitted ones have nothing subtracted.
    coefficients = np.zeros((2, controls, out.shape[0]))
    if controls > 0:
        _moments(given, count, half, samples, columns, factors, products, place, linear, table, second, peaks)
        _fit(samples - half, sizes, limits, second, peaks, scale, correlations, coefficients[0, :, :fitted])
        _moments(given, count, 0, half, columns, factors, products, place, linear, table, second, peaks)
        _fit(half, sizes, limits, second, peaks, scale, correlations, coefficients[1, :, :fitted])
    gains, times = np.empty((out.shape[0], count + 1)), np.empty((out.shape[0], products.shape[0]))
    used = np.empty(count, np.int64)
    for part in range(2):
        first, last = (0, half) if part == 0 else (half, samples)
        for r in range(out.shape[0]):
            _gains(columns, factors, products, 1 + controls + r, coefficients[part, :, r], gains[r], times[r])
        _subtract(
            given, count, first, last, columns, factors, products, place, multiplied, gains, times, used, table, out
        )  # fmt: skip
    for r in range(out.shape[0]):
        statistics[r, 0], statistics[r, 1] = _sum_and_squares(out[r])
