"""Adaptive Dormand-Prince 5(4) for the probability flow dx/dlam = kappa x + (sigma^2 / 2) s, on blocks of LANES paths.

The field is a pointer and the schedule a table, so this is compiled once for every law and schedule.  The stages fall at
values of lam that only the error decides, so the table is a function: on equal pieces of (low, high) it holds the Chebyshev
coefficients of ``ln alpha``, ``ln sigma^2`` and ``kappa = d ln alpha / d lam``, and `schedule_row` sums them to the row
``(alpha, sigma^2, kappa, sigma^2 / 2)`` of a score field.

A block takes its steps alone, as small as its worst path needs them, so its result depends on nothing outside it.  States
within a step come from a quintic, so the steps do not depend on what is asked for: the continuous extension of fourth order
alone was found 20 times less accurate than the ends of the steps, so it only gives the two points at which the slopes of
that quintic are taken (Shampine's bootstrapping), two evaluations in every step that holds an asked state.

If the state has one row more than the point it is the integral of the divergence of the flow, the logarithm of the
change of volume.

References: Dormand and Prince, J. Comput. Appl. Math. 6 (1980) 19; coefficients, controller and continuous extension as in
Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, sections II.4 to II.6; Shampine, Math. Comp. 46 (1986)
135.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.jit import LANES, field_pointer, inline, kernel, lanes, matrix, subroutine, tensor, vector
from thermodiff.kernels.march import copy_lanes

DONE, EXHAUSTED, LOST = range(3)
"""How a block ended: at its goal, at the limit of steps, or with steps too small to move lam (a slope is not finite)."""

STAGES = 7
NODES = np.array([0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0])
# Row s: weights of the slopes 0 ... s - 1 in the point of stage s; the last row is the solution of fifth order itself.
WEIGHTS = np.array([
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0 / 5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [3.0 / 40.0, 9.0 / 40.0, 0.0, 0.0, 0.0, 0.0],
    [44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0, 0.0, 0.0, 0.0],
    [19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0, 0.0, 0.0],
    [9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0, 0.0],
    [35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
])  # fmt: skip
ERROR = np.array([
    71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0,
])  # fmt: skip
"""Weights of the difference between the solutions of order 5 and 4."""
DENSE = np.array([
    -12715105075.0 / 11282082432.0, 0.0, 87487479700.0 / 32700410799.0, -10690763975.0 / 1880347072.0,
    701980252875.0 / 199316789632.0, -1453857185.0 / 822651844.0, 69997945.0 / 29380423.0,
])  # fmt: skip
"""Weights of the quartic term of the continuous extension."""
INSIDE = np.array([0.4, 0.6])
"""Where in a step the two further slopes are taken, which are kept after those of the stages."""


def _quintic() -> np.ndarray:
    """Weights in the state at a share of the step: of the four slopes, then of y - x, by rising powers of the share.

    The slope is the cubic through slopes 0, a, b, 1 and a multiple of share (1 - share) (share - a) (share - b), such that
    the step ends in y.
    """
    nodes = np.array([0.0, *INSIDE, 1.0])
    bump = np.polynomial.Polynomial.fromroots(nodes).integ()
    bump = bump / bump(1.0)
    weights = np.zeros((5, 6))
    for i in range(4):
        others = np.polynomial.Polynomial.fromroots(np.delete(nodes, i))
        area = (others / others(nodes[i])).integ()
        weights[i] = np.pad(area.coef, (0, 1)) - area(1.0) * bump.coef
    weights[4] = bump.coef
    return weights


QUINTIC = _quintic()

FIRST, LONGEST = 0.5, 4.0
"""First and longest step.  Every scalar of the row changes over lengths of order one in lam, whatever the schedule and the
law; where the slope is nearly nothing, at both ends, an estimate of the error cannot be trusted with longer steps."""
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
MEMORY, EXPONENT = 0.04, 0.2 - 0.75 * 0.04
"""Hairer and Wanner's PI controller."""
ROUNDING = 1e-15
"""Relative error of a step that float64 leaves in any case."""


@inline
def schedule_row(table, low, high, lam, row):
    """(alpha, sigma^2, kappa, sigma^2 / 2) at lam from ``table[piece, function, degree + 1]``, by Clenshaw's sum."""
    pieces, degree = table.shape[0], table.shape[2] - 1
    place = (lam - low) / (high - low) * pieces
    piece = min(max(int(place), 0), pieces - 1)
    twice = 4.0 * (place - piece) - 2.0
    log_alpha, log_variance, growth = table[piece, 0], table[piece, 1], table[piece, 2]
    a1, a2, v1, v2, g1, g2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(degree, 0, -1):
        a1, a2 = log_alpha[j] + twice * a1 - a2, a1
        v1, v2 = log_variance[j] + twice * v1 - v2, v1
        g1, g2 = growth[j] + twice * g1 - g2, g1
    variance = np.exp(log_variance[0] + 0.5 * twice * v1 - v2)
    row[0], row[1] = np.exp(log_alpha[0] + 0.5 * twice * a1 - a2), variance
    row[2], row[3] = growth[0] + 0.5 * twice * g1 - g2, 0.5 * variance


@subroutine
def _combine(x, h, weights, count, slopes, out):
    """``out = x + h sum_j weights[j] slopes[j]`` over the first ``count`` slopes, two in a sweep."""
    for c in range(x.shape[0]):
        source, target = x[c], out[c]
        for j in range(0, count, 2):
            # What lies beyond ``count`` may be left over from a step that was lost.
            pair = j + 1 < count
            one, two = h * weights[j], h * weights[j + 1] if pair else 0.0
            first, second = slopes[j, c], slopes[j + 1 if pair else j, c]
            if j == 0:
                for lane in range(LANES):
                    target[lane] = source[lane] + (one * first[lane] + two * second[lane])
            else:
                for lane in range(LANES):
                    target[lane] += one * first[lane] + two * second[lane]


@inline
def _sum(weights, h, slopes, c, out):
    """``h sum_j weights[j] slopes[j, c]`` over all stages, whose second never counts."""
    w0, w2, w3, w4, w5, w6 = weights[0], weights[2], weights[3], weights[4], weights[5], weights[6]
    s0, s2, s3, s4, s5, s6 = slopes[0, c], slopes[2, c], slopes[3, c], slopes[4, c], slopes[5, c], slopes[6, c]
    for lane in range(LANES):
        early = w0 * s0[lane] + w2 * s2[lane] + w3 * s3[lane]
        out[lane] = h * (early + (w4 * s4[lane] + w5 * s5[lane] + w6 * s6[lane]))


@inline
def _larger(before, after, share, least, constant, out):
    """``constant + share max(|before|, |after|, least)``."""
    for lane in range(LANES):
        one, two = abs(before[lane]), abs(after[lane])
        size = one if one > two else two
        out[lane] = constant + share * (size if size > least else least)


@subroutine
def _worst(x, y, h, slopes, dim, rtol, atol, width, work):
    """Largest error of the block in units of its tolerance, ``inf`` where it is not a number; the limit is 1.

    Of a path it is the root mean square over coordinates, and beside it, not among them, the error of the row after them:
    one of a hundred in a mean would go unseen.  An error of the logarithm of a volume is a relative error of the volume,
    hence 1 in place of a smaller state.  With a ``width`` (not negative) coordinates are measured by it, as the error of a
    log-density is: what rounding does to the state itself cannot be asked for less.
    """
    gap, allowed, square = work[0], work[1], work[2]
    for lane in range(LANES):
        square[lane] = 0.0
    for c in range(x.shape[0]):
        if c >= dim:
            _larger(x[c], y[c], rtol, 1.0, atol, allowed)
        elif width >= 0.0:
            _larger(x[c], y[c], ROUNDING, 0.0, (rtol + atol) * width, allowed)
        else:
            _larger(x[c], y[c], rtol, 0.0, atol, allowed)
        _sum(ERROR, h, slopes, c, gap)
        if c < dim:
            for lane in range(LANES):
                unit = gap[lane] / allowed[lane]
                square[lane] += unit * unit / dim
        else:
            for lane in range(LANES):
                unit = gap[lane] / allowed[lane]
                # Written so that what is not a number wins.
                square[lane] = square[lane] if unit * unit <= square[lane] else unit * unit
    worst = 0.0
    for lane in range(LANES):
        if not square[lane] <= worst:
            worst = square[lane] if square[lane] < np.inf else np.inf
    return np.sqrt(worst)


@inline
def _between(x, y, h, slopes, share, out):
    """The state at ``share`` of the step, from the continuous extension of fourth order."""
    rest = 1.0 - share
    for c in range(x.shape[0]):
        before, after, first, last, target = x[c], y[c], slopes[0, c], slopes[STAGES - 1, c], out[c]
        _sum(DENSE, h, slopes, c, target)
        for lane in range(LANES):
            change = after[lane] - before[lane]
            bend = h * first[lane] - change
            twist = change - h * last[lane] - bend
            target[lane] = before[lane] + share * (change + rest * (bend + share * (twist + rest * target[lane])))


@inline
def _weight(i, share):
    """Row ``i`` of `QUINTIC` at a share of the step."""
    total = 0.0
    for power in range(5, -1, -1):
        total = total * share + QUINTIC[i, power]
    return total


@inline
def _within(x, y, h, slopes, share, out):
    """The state at ``share`` of the step, from the quintic."""
    w0, w1, w2, w3 = h * _weight(0, share), h * _weight(1, share), h * _weight(2, share), h * _weight(3, share)
    w4 = _weight(4, share)
    for c in range(x.shape[0]):
        before, after, target = x[c], y[c], out[c]
        s0, s1, s2, s3 = slopes[0, c], slopes[STAGES, c], slopes[STAGES + 1, c], slopes[STAGES - 1, c]
        for lane in range(LANES):
            moved = w0 * s0[lane] + w1 * s1[lane] + w2 * s2[lane] + w3 * s3[lane]
            target[lane] = before[lane] + (moved + w4 * (after[lane] - before[lane]))


@subroutine
def _keep(field, params, table, low, high, dim, asked, slot, lam, h, beyond, x, y, slopes, row, kept, out, offset):
    """Write the states that are asked for up to ``beyond``, the end of the step; returns the next slot."""
    fresh = True
    while slot < asked.size and (asked[slot] - beyond) * h <= 0.0:
        if asked[slot] == beyond:
            copy_lanes(y, 0, out[slot], offset)
        else:
            if fresh:
                for i in range(2):
                    _between(x, y, h, slopes, INSIDE[i], kept)
                    schedule_row(table, low, high, lam + INSIDE[i] * h, row)
                    field(kept[:dim], row, params, slopes[STAGES + i])
                fresh = False
            _within(x, y, h, slopes, (asked[slot] - lam) / h, kept)
            copy_lanes(kept, 0, out[slot], offset)
        slot += 1
    return slot


@subroutine
def _block(
    field, params, table, low, high, dim, asked, rtol, atol, narrow, most,
    x, y, slopes, row, work, kept, out, offset, status,
):  # fmt: skip
    """Carry ``x`` from asked[0] to asked[-1]; asked states go to ``out``, (how, lam, steps taken) to ``status``."""
    lam, goal, slot, taken = asked[0], asked[-1], 1, 0
    sign = 1.0 if goal > lam else -1.0
    schedule_row(table, low, high, lam, row)
    field(x[:dim], row, params, slopes[0])
    length, ceiling, memory, outcome = FIRST, GROW, 1e-4, EXHAUSTED
    for _ in range(most):
        final = abs(goal - lam) <= 1.0001 * length
        h = goal - lam if final else sign * length
        for stage in range(1, STAGES):
            _combine(x, h, WEIGHTS[stage], stage, slopes, y)
            schedule_row(table, low, high, lam + NODES[stage] * h, row)
            field(y[:dim], row, params, slopes[stage])
        width = np.sqrt(row[0] * row[0] * narrow + row[1]) if narrow >= 0.0 else -1.0
        worst = _worst(x, y, h, slopes, dim, rtol, atol, width, work)
        if not worst <= 1.0:
            length = abs(h) * max(SHRINK, SAFETY * worst**-EXPONENT)
            ceiling = 1.0
            if length < 1e-14 * (1.0 + abs(lam)):
                outcome = LOST
                break
            continue
        beyond = goal if final else lam + h
        slot = _keep(
            field, params, table, low, high, dim, asked, slot, lam, h, beyond, x, y, slopes, row, kept, out, offset
        )  # fmt: skip
        copy_lanes(y, 0, x, 0)
        copy_lanes(slopes[STAGES - 1], 0, slopes[0], 0)
        lam = beyond
        taken += 1
        if final:
            outcome = DONE
            break
        factor = SAFETY * memory**MEMORY * max(worst, 1e-10) ** -EXPONENT
        length = min(abs(h) * min(max(factor, SHRINK), ceiling), LONGEST)
        ceiling, memory = GROW, max(worst, 1e-4)
    status[0], status[1], status[2] = outcome, lam, taken


@kernel(
    types.void(
        field_pointer, vector, tensor, types.float64, types.float64, types.int64, types.int64, types.int64, vector,
        types.float64, types.float64, types.float64, types.int64, tensor, matrix,
    )
)  # fmt: skip
def flow(field, params, table, low, high, dim, first, last, asked, rtol, atol, narrow, most, states, status):
    """Carry ``states[0]`` (dim or dim + 1, n) of blocks first ... last - 1 from asked[0] over the asked values of lam.

    A step may change a coordinate wrongly by ``atol + rtol |x|``; with ``narrow >= 0``, the smallest variance of the data,
    by ``atol + rtol`` of the smallest width of p_t, which is the error that a log-density near a mode can bear.

    ``asked`` is monotone, within ``low`` ... ``high`` of the table.  ``status[block - first]`` tells how the block ended
    (DONE, EXHAUSTED after ``most`` attempts, LOST), the lam that it reached, and the steps that it took.
    """
    rows = states.shape[1]
    x, y, slopes = lanes(rows), lanes(rows), lanes((STAGES + 2) * rows).reshape(STAGES + 2, rows, LANES)
    row, work, kept = np.empty(4), lanes(3), lanes(rows)
    for block in range(last - first):
        offset = block * LANES
        copy_lanes(states[0], offset, x, 0)
        _block(
            field, params, table, low, high, dim, asked, rtol, atol, narrow, most,
            x, y, slopes, row, work, kept, states, offset, status[block],
        )  # fmt: skip


@kernel(types.void(tensor, types.float64, types.float64, vector, matrix))
def schedule_rows(table, low, high, lam, out):
    """What `flow` reads from a table at each lam, (n, 4)."""
    for k in range(lam.size):
        schedule_row(table, low, high, lam[k], out[k])
