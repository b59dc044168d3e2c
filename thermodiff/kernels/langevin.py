"""Ensembles of dx = f(x, t) dt + sqrt(2 D) dW on blocks of LANES paths.

f comes as a field (`jit.field_signature`, row = (t, ...)).  The noise is one of

``ADDITIVE``
    dx = f dt + B(t) dW, where ``mix`` holds B: (1 or steps, d, 1) for a diagonal, (1 or steps, d, d) for a matrix.
``STATE``
    dx_i = f_i dt + sqrt(2 D_i(x, t)) dW_i, where a second field writes D_i into rows 0 ... d - 1 and the derivatives
    dD_i/dx_i into rows d ... 2 d - 1.  ``twist`` says where on a step D is meant to be taken: 0 (Ito), 1/2
    (Stratonovich), 1 (isothermal); the Ito drift is f_i + twist dD_i/dx_i, since b b' = D' for b = sqrt(2 D).

Rules: Euler-Maruyama; Heun (predictor and corrector share the noise; weak order 2 for additive noise); Milstein for
``STATE`` noise, whose correction is dD_i/dx_i (dW_i^2 - h) / 2; Platen's explicit weak order 2 for ``STATE`` noise whose
D_i depends on x_i only; RK4 without noise.

Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations" (1992), sections 10.3 and 15.1.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import fma
from thermodiff.kernels.jit import (
    LANES,
    field_pointer,
    field_signature,
    inline,
    integers,
    kernel,
    lanes,
    matrix,
    subroutine,
    tensor,
    vector,
    words,
)
from thermodiff.kernels.march import copy_lanes
from thermodiff.kernels.philox import PATH, fill_rows, hold

EULER, HEUN, MILSTEIN, WEAK2, RK4 = range(5)
NONE, ADDITIVE, STATE = range(3)
FREE, PERIODIC, REFLECTING = range(3)
GAUSS = 0.5 / np.sqrt(3.0)


@subroutine
def draw_noise(key, path, step, kind, mix, root, quad, group, scales, z, kick):
    """The noise of step number ``step``, kick = sqrt(h) B z; where it depends on the state, z only.

    Returns the group of normals that ``quad`` then holds, see `hold`.
    """
    dim = z.shape[0]
    diagonal = kind == ADDITIVE and mix.shape[1] == 1
    for i in range(dim):
        scales[i] = root * mix[i, 0] if diagonal else 1.0
    group = fill_rows(key, path, step * dim, PATH, quad, group, scales, kick if diagonal else z)
    if kind == ADDITIVE and not diagonal:
        for i in range(dim):
            target = kick[i]
            for lane in range(LANES):
                target[lane] = 0.0
            for j in range(dim):
                factor = root * mix[i, j]
                if factor != 0.0:
                    source = z[j]
                    for lane in range(LANES):
                        target[lane] += factor * source[lane]
    return group


@subroutine
def _wrap(x, walls):
    """Carry periodic coordinates back into their intervals; ``walls[i]`` = (kind, low, high)."""
    for i in range(x.shape[0]):
        if int(walls[i, 0]) == PERIODIC:
            low, high, row = walls[i, 1], walls[i, 2], x[i]
            length = high - low
            for lane in range(LANES):
                place = row[lane] - length * np.floor((row[lane] - low) / length)
                # Rounding may carry it past an end.
                place = low if place < low else place
                row[lane] = high if place > high else place


@subroutine
def _reflect(x, walls, sides):
    """Fold coordinates with reflecting walls back between them; ``sides`` is -1 where an image in a mirror was folded."""
    for i in range(x.shape[0]):
        if int(walls[i, 0]) != REFLECTING:
            continue
        low, high, row, side = walls[i, 1], walls[i, 2], x[i], sides[i]
        length = high - low
        if np.isfinite(length):
            for lane in range(LANES):
                place = row[lane] - low
                place -= 2.0 * length * np.floor(place / (2.0 * length))
                side[lane] = -1.0 if place > length else 1.0
                place = low + (2.0 * length - place if place > length else place)
                place = low if place < low else place
                row[lane] = high if place > high else place
        else:
            # A single wall, which the half-line lies above or below.
            wall, up = (low, 1.0) if np.isfinite(low) else (high, -1.0)
            for lane in range(LANES):
                beyond = up * (row[lane] - wall)
                side[lane] = -1.0 if beyond < 0.0 else 1.0
                row[lane] = wall + up * abs(beyond)


@subroutine
def _evaluate(field, x, row, params, out, walls, sides):
    """A drift at points that may have left the walls, of which there are none where ``sides`` is empty; x is carried back.

    Behind a mirror the drift is that of the image, turned round: dynamics on the unfolded line, symmetric about the walls,
    fold to those between them.  Without the turn Heun's rule is of first order there, as Euler's.
    """
    if sides.size > 0:
        _reflect(x, walls, sides)
        _wrap(x, walls)
    field(x, row, params, out)
    if sides.size > 0:
        _turn(out, walls, sides)


@subroutine
def _turn(slope, walls, sides):
    """Turn the drift of images in a mirror round."""
    for i in range(sides.shape[0]):
        if int(walls[i, 0]) == REFLECTING:
            target, side = slope[i], sides[i]
            for lane in range(LANES):
                target[lane] *= side[lane]


@inline
def _time(start, steps, h):
    """The time after so many steps, rounded once: the same wherever it is asked for."""
    return fma(float(steps), h, start)


@inline
def _euler_diagonal(field, x, rows, params, h, key, path, step, mix, quad, group, work):
    """x + h f + sqrt(h) B z for a diagonal B, without a copy of the normals; returns their group, see `hold`."""
    dim, root = x.shape[0], np.sqrt(h)
    field(x, rows[0], params, work[0])
    for i in range(dim):
        group = hold(key, path, step * dim + i, PATH, quad, group)
        target, slope, normal, scale = x[i], work[0, i], quad[(step * dim + i) % 4], root * mix[i, 0]
        for lane in range(LANES):
            target[lane] += h * slope[lane] + scale * normal[lane]
    return group


@subroutine
def _euler(field, x, rows, params, h, kick, work):
    """x + h f + kick."""
    field(x, rows[0], params, work[0])
    for i in range(x.shape[0]):
        target, slope, noise = x[i], work[0, i], kick[i]
        for lane in range(LANES):
            target[lane] += h * slope[lane] + noise[lane]


@subroutine
def _heun(field, x, rows, params, h, kick, work, walls, sides):
    """The mean of the slopes at both ends, with the same noise in the predictor."""
    field(x, rows[0], params, work[0])
    for i in range(x.shape[0]):
        source, slope, noise, target = x[i], work[0, i], kick[i], work[1, i]
        for lane in range(LANES):
            target[lane] = source[lane] + h * slope[lane] + noise[lane]
    _evaluate(field, work[1], rows[2], params, work[2], walls, sides)
    for i in range(x.shape[0]):
        target, one, two, noise = x[i], work[0, i], work[2, i], kick[i]
        for lane in range(LANES):
            target[lane] += 0.5 * h * (one[lane] + two[lane]) + noise[lane]


@subroutine
def _drift_and_noise(field, noise, x, row, params, noise_params, twist, slope, spread, walls, sides):
    """`_evaluate`, with the noise; the drift is made Ito's: slope_i += twist dD_i/dx_i."""
    if sides.size > 0:
        _reflect(x, walls, sides)
        _wrap(x, walls)
    field(x, row, params, slope)
    noise(x, row, noise_params, spread)
    if twist != 0.0:
        for i in range(x.shape[0]):
            target, change = slope[i], spread[x.shape[0] + i]
            for lane in range(LANES):
                target[lane] += twist * change[lane]
    if sides.size > 0:
        _turn(slope, walls, sides)


@subroutine
def _milstein(field, noise, x, rows, params, noise_params, h, twist, z, order, work, spread, walls, sides):
    """Euler (``order`` 0) or Milstein (``order`` 1) for noise that depends on the state."""
    dim = x.shape[0]
    _drift_and_noise(field, noise, x, rows[0], params, noise_params, twist, work[0], spread, walls, sides[:0])
    for i in range(dim):
        target, slope, normal, level, change = x[i], work[0, i], z[i], spread[i], spread[dim + i]
        for lane in range(LANES):
            kick = np.sqrt(2.0 * h * level[lane]) * normal[lane]
            correction = 0.5 * h * change[lane] * (normal[lane] * normal[lane] - 1.0)
            target[lane] += h * slope[lane] + kick + order * correction


@subroutine
def _stratonovich_heun(field, noise, x, rows, params, noise_params, h, twist, z, work, spread, other, walls, sides):
    """Heun's rule, which converges to Stratonovich's meaning: its drift is f + (twist - 1/2) D'."""
    dim = x.shape[0]
    _drift_and_noise(field, noise, x, rows[0], params, noise_params, twist - 0.5, work[0], spread, walls, sides[:0])
    for i in range(dim):
        source, slope, normal, level, target = x[i], work[0, i], z[i], spread[i], work[1, i]
        for lane in range(LANES):
            target[lane] = source[lane] + h * slope[lane] + np.sqrt(2.0 * h * level[lane]) * normal[lane]
    _drift_and_noise(field, noise, work[1], rows[2], params, noise_params, twist - 0.5, work[2], other, walls, sides)
    for i in range(dim):
        target, one, two, normal, level, last = x[i], work[0, i], work[2, i], z[i], spread[i], other[i]
        for lane in range(LANES):
            kick = 0.5 * (np.sqrt(2.0 * h * level[lane]) + np.sqrt(2.0 * h * last[lane])) * normal[lane]
            target[lane] += 0.5 * h * (one[lane] + two[lane]) + kick


@subroutine
def _platen(field, noise, x, rows, params, noise_params, h, twist, z, work, spread, other, walls, sides):
    """Weak order 2 for D_i(x_i, t): trapezoidal drift, and the noise averaged over x + h f +- sqrt(2 D h)."""
    dim = x.shape[0]
    _drift_and_noise(field, noise, x, rows[0], params, noise_params, twist, work[0], spread, walls, sides[:0])
    for i in range(dim):
        source, slope, normal, level = x[i], work[0, i], z[i], spread[i]
        predicted, above, below = work[1, i], work[3, i], work[4, i]
        for lane in range(LANES):
            width = np.sqrt(2.0 * h * level[lane])
            middle = source[lane] + h * slope[lane]
            predicted[lane] = middle + width * normal[lane]
            above[lane] = middle + width
            below[lane] = middle - width
    _drift_and_noise(field, noise, work[1], rows[2], params, noise_params, twist, work[2], other, walls, sides)
    for i in range(dim):
        target, one, two, normal, level = x[i], work[0, i], work[2, i], z[i], spread[i]
        for lane in range(LANES):
            target[lane] += 0.5 * h * (one[lane] + two[lane]) + 0.5 * np.sqrt(2.0 * h * level[lane]) * normal[lane]
    for sign in range(2):
        if sides.size > 0:
            _reflect(work[3 + sign], walls, sides)
            _wrap(work[3 + sign], walls)
        noise(work[3 + sign], rows[2], noise_params, other)
        swing = 0.25 if sign == 0 else -0.25
        for i in range(dim):
            target, normal, level = x[i], z[i], other[i]
            for lane in range(LANES):
                square = normal[lane] * normal[lane] - 1.0
                target[lane] += np.sqrt(2.0 * h * level[lane]) * (0.25 * normal[lane] + swing * square)


@subroutine
def _rk4(field, x, rows, params, h, work, walls, sides):
    """Classical Runge-Kutta between walls; the middle slopes are added up in work[2]."""
    dim = x.shape[0]
    field(x, rows[0], params, work[0])
    for stage in range(3):
        last, step = work[0] if stage == 0 else work[1], h if stage == 2 else 0.5 * h
        for i in range(dim):
            source, slope, target = x[i], last[i], work[4, i]
            for lane in range(LANES):
                target[lane] = source[lane] + step * slope[lane]
        _evaluate(field, work[4], rows[2 if stage == 2 else 1], params, work[1], walls, sides)
        for i in range(dim):
            slope, total = work[1, i], work[2, i]
            for lane in range(LANES):
                total[lane] = (total[lane] if stage > 0 else 0.0) + (1.0 if stage == 2 else 2.0) * slope[lane]
    for i in range(dim):
        target, one, rest = x[i], work[0, i], work[2, i]
        for lane in range(LANES):
            target[lane] += h / 6.0 * (one[lane] + rest[lane])


@subroutine
def _add_heat(field, old, x, rows, params, work, heat, walls, confined):
    """heat += the integral of f . dx along the chord, f at mid time, by Gauss's rule of two points.

    Its middle alone would leave an error of first order where f is not linear: the mean of dx^4 is of second order.
    The chord may leave a periodic interval; f is taken where its points are in it.
    """
    for side in range(2):
        share = 0.5 + GAUSS if side == 0 else 0.5 - GAUSS
        for i in range(x.shape[0]):
            before, after, target = old[i], x[i], work[1, i]
            for lane in range(LANES):
                target[lane] = before[lane] + share * (after[lane] - before[lane])
        if confined:
            _wrap(work[1], walls)
        field(work[1], rows[1], params, work[0])
        for i in range(x.shape[0]):
            before, after, slope = old[i], x[i], work[0, i]
            for lane in range(LANES):
                heat[lane] += 0.5 * slope[lane] * (after[lane] - before[lane])


@subroutine
def _add_work(energy, old, x, rows, params, work, total):
    """total += what the passing of time adds to the energy at the ends of the step, their mean.

    At the middle of the chord alone, the spread of a path within the step would be missed: an error of first order.
    """
    for side in range(2):
        place = old if side == 0 else x
        energy(place, rows[2], params, work[0])
        energy(place, rows[0], params, work[1])
        later, sooner = work[0, 0], work[1, 0]
        for lane in range(LANES):
            total[lane] += 0.5 * (later[lane] - sooner[lane])


@kernel(field_signature)
def affine(x, row, params, out):
    """A x + b; params = A (d, d), then b (d,)."""
    dim = x.shape[0]
    matrix_part = params[: dim * dim].reshape(dim, dim)
    for i in range(dim):
        target, constant = out[i], params[dim * dim + i]
        for lane in range(LANES):
            target[lane] = constant
        for j in range(dim):
            factor, source = matrix_part[i, j], x[j]
            if factor != 0.0:
                for lane in range(LANES):
                    target[lane] += factor * source[lane]


@subroutine
def _carry(
    field, params, energy, noise, noise_params, kind, mix, twist, key, rule, block, offset, step,
    starts, widths, skips, counts, stops, walls, confined, direct, buffers, rows, states, heats, works,
):  # fmt: skip
    """`langevin` of one block, whose lanes begin at ``offset``; ``buffers`` and ``rows`` are to work in."""
    x, z, kick, quad, old, heat, total, scales, work, spread, other, sides = buffers
    per_step, heated, worked = mix.shape[0] > 1, heats.size > 0, works.size > 0
    copy_lanes(states[0], offset, x, 0)
    # At the start alone: one that a step carried to the upper end of a ring must stay there, wherever a run is cut.
    if confined and step == 0:
        _wrap(x, walls)
    for lane in range(LANES):
        heat[lane], total[lane] = 0.0, 0.0
    group, k = -1, step
    for interval in range(starts.size):
        h, count = widths[interval], counts[interval]
        end = _time(starts[interval], skips[interval], h)
        for j in range(count):
            # A step begins where the last one ended, to the bit: what jumps between the two would be seen by neither.
            t, end = end, _time(starts[interval], skips[interval] + j + 1, h)
            if j == count - 1 and not np.isnan(stops[interval]):
                end = stops[interval]
            rows[0, 0], rows[1, 0], rows[2, 0] = t, t + 0.5 * h, end
            now = mix[k - step if per_step else 0]
            if kind != NONE and not direct:
                group = draw_noise(key, block * LANES, k, kind, now, np.sqrt(h), quad, group, scales, z, kick)
            if heated or worked:
                copy_lanes(x, 0, old, 0)
            if kind == STATE:
                if rule == HEUN:
                    _stratonovich_heun(
                        field, noise, x, rows, params, noise_params, h, twist, z, work, spread, other, walls, sides
                    )
                elif rule == WEAK2:
                    _platen(field, noise, x, rows, params, noise_params, h, twist, z, work, spread, other, walls, sides)
                else:
                    order = 1.0 if rule == MILSTEIN else 0.0
                    _milstein(field, noise, x, rows, params, noise_params, h, twist, z, order, work, spread, walls, sides)
            elif rule == RK4:
                _rk4(field, x, rows, params, h, work, walls, sides)
            elif direct:
                group = _euler_diagonal(field, x, rows, params, h, key, block * LANES, k, now, quad, group, work)
            elif rule == EULER:
                _euler(field, x, rows, params, h, kick, work)
            else:
                _heun(field, x, rows, params, h, kick, work, walls, sides)
            # A wall that reflects takes no heat; a chord around a ring must not be cut.
            if confined:
                _reflect(x, walls, sides)
            if heated:
                _add_heat(field, old, x, rows, params, work, heat, walls, confined)
            if confined:
                _wrap(x, walls)
            if worked:
                _add_work(energy, old, x, rows, params, work, total)
            k += 1
        copy_lanes(x, 0, states[interval + 1], offset)
        if heated:
            for lane in range(LANES):
                heats[interval + 1, offset + lane] = heat[lane]
        if worked:
            for lane in range(LANES):
                works[interval + 1, offset + lane] = total[lane]


@kernel(
    types.void(
        field_pointer,
        vector,
        field_pointer,
        field_pointer,
        vector,
        types.int64,
        tensor,
        types.float64,
        words,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        vector,
        vector,
        integers,
        integers,
        vector,
        matrix,
        tensor,
        matrix,
        matrix,
    )
)
def langevin(
    field,
    params,
    energy,
    noise,
    noise_params,
    kind,
    mix,
    twist,
    key,
    rule,
    first,
    last,
    step,
    starts,
    widths,
    skips,
    counts,
    stops,
    walls,
    states,
    heats,
    works,
):
    """Carry ``states[0]`` (d, n) of blocks first ... last - 1 through all intervals, keeping the state after each.

    The noise begins with that of step number ``step``.

    Interval j is ``counts[j]`` steps of ``widths[j]``, after ``skips[j]`` steps from time ``starts[j]`` that others make (a
    stretch that is cut in two has the same times to the bit), to time ``stops[j]`` unless that is nan; it ends in
    ``states[j + 1]`` and, where they are not empty, in ``heats[j + 1]`` and ``works[j + 1]`` (T, n): the integrals of
    f . dx and of dU/dt along each path, where the first row of the field ``energy``, with the same ``params``, is U.
    """
    dim = states.shape[1]
    direct = kind == ADDITIVE and rule == EULER and mix.shape[2] == 1
    confined = False
    for i in range(dim):
        confined = confined or walls[i, 0] > 0.0
    sides = np.ones((dim if confined else 0, LANES))
    x, z, kick, quad = lanes(dim), lanes(dim), lanes(dim), lanes(4)
    z[:], kick[:] = 0.0, 0.0
    old, heat, total, scales = lanes(dim), np.zeros(LANES), np.zeros(LANES), np.empty(dim)
    work, spread, other = lanes(5 * dim).reshape(5, dim, LANES), lanes(2 * dim), lanes(2 * dim)
    rows = np.zeros((3, 4))
    buffers = (x, z, kick, quad, old, heat, total, scales, work, spread, other, sides)
    for block in range(first, last):
        _carry(
            field, params, energy, noise, noise_params, kind, mix, twist, key, rule, block, (block - first) * LANES, step,
            starts, widths, skips, counts, stops, walls, confined, direct, buffers, rows, states, heats, works,
        )  # fmt: skip
