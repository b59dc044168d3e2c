"""The integrator: dx = g(x, lam) dlam + amplitude dW over blocks of paths, for any field.

The field is a pointer and the schedule a table, so this is compiled once.  ``rows[k, stage]`` holds the scalars of step k
at its beginning, middle and end (stages 0, 1, 2); ``steps[k]`` its signed length; ``amplitudes[k]`` the standard
deviation of its noise.  The step rules:

=========  ==============================================================  ==================
euler      x + h g(x) + e                                                  weak and strong 1
heun       x + h/2 (g(x) + g(x + h g(x) + e)) + e                          weak 2, strong 1
rk4        classical Runge-Kutta, without noise                            4
=========  ==============================================================  ==================

with e = amplitude times a normal.  Heun's rule has weak order 2 because the noise is additive (Platen's scheme), and
order 2 without noise.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.jit import (
    LANES,
    field_pointer,
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
from thermodiff.kernels.philox import PATH, fill_rows, hold

EULER, HEUN, RK4 = range(3)


@inline
def copy_lanes(source, at, target, to):
    """A block of columns of ``source`` from ``at`` on into ``target`` from ``to`` on."""
    for c in range(source.shape[0]):
        one, two = source[c], target[c]
        for lane in range(LANES):
            two[to + lane] = one[at + lane]


@inline
def _axpy(x, h, g, out):
    """``out = x + h g`` row by row."""
    for c in range(x.shape[0]):
        source, slope, target = x[c], g[c], out[c]
        for lane in range(LANES):
            target[lane] = source[lane] + h * slope[lane]


@inline
def _euler(field, x, rows, params, h, amplitude, key, path, step, quad, group, work):
    """x + h g(x) + e, without a copy of the normals; returns the group of them that ``quad`` then holds, see `hold`."""
    field(x, rows[0], params, work[0])
    for c in range(x.shape[0]):
        target, slope = x[c], work[0, c]
        if amplitude > 0.0:
            group = hold(key, path, step * x.shape[0] + c, PATH, quad, group)
            normal = quad[(step * x.shape[0] + c) % 4]
            for lane in range(LANES):
                target[lane] += h * slope[lane] + amplitude * normal[lane]
        else:
            for lane in range(LANES):
                target[lane] += h * slope[lane]
    return group


@inline
def _heun(field, x, rows, params, h, noise, work):
    """The mean of the slopes at both ends, with the same noise in the predictor."""
    field(x, rows[0], params, work[0])
    for c in range(x.shape[0]):
        source, slope, kick, target = x[c], work[0, c], noise[c], work[1, c]
        for lane in range(LANES):
            target[lane] = source[lane] + h * slope[lane] + kick[lane]
    field(work[1], rows[2], params, work[2])
    for c in range(x.shape[0]):
        target, first, second, kick = x[c], work[0, c], work[2, c], noise[c]
        for lane in range(LANES):
            target[lane] += 0.5 * h * (first[lane] + second[lane]) + kick[lane]


@subroutine
def rk4(field, x, rows, params, h, work):
    """Classical Runge-Kutta."""
    field(x, rows[0], params, work[0])
    _axpy(x, 0.5 * h, work[0], work[4])
    field(work[4], rows[1], params, work[1])
    _axpy(x, 0.5 * h, work[1], work[4])
    field(work[4], rows[1], params, work[2])
    _axpy(x, h, work[2], work[4])
    field(work[4], rows[2], params, work[3])
    for c in range(x.shape[0]):
        target, k1, k2, k3, k4 = x[c], work[0, c], work[1, c], work[2, c], work[3, c]
        for lane in range(LANES):
            target[lane] += h / 6.0 * (k1[lane] + 2.0 * (k2[lane] + k3[lane]) + k4[lane])


@subroutine
def _march(
    field, params, key, rule, block, offset, rows, steps, amplitudes, slots, x, kick, quad, scales, work, states
):  # fmt: skip
    """`march` of one block."""
    dim, path, group = x.shape[0], block * LANES, -1
    copy_lanes(states[0], offset, x, 0)
    for k in range(steps.size):
        h = steps[k]
        if rule == EULER:
            group = _euler(field, x, rows[k], params, h, amplitudes[k], key, path, k, quad, group, work)
        elif rule == HEUN:
            scales[:] = amplitudes[k]
            if amplitudes[k] > 0.0:
                group = fill_rows(key, path, k * dim, PATH, quad, group, scales, kick)
            elif k == 0 or amplitudes[k - 1] > 0.0:
                kick[:, :] = 0.0
            _heun(field, x, rows[k], params, h, kick, work)
        else:
            rk4(field, x, rows[k], params, h, work)
        if slots[k] >= 0:
            copy_lanes(x, 0, states[slots[k]], offset)


@kernel(
    types.void(field_pointer, vector, words, types.int64, types.int64, types.int64, tensor, vector, vector, integers, tensor)
)
def march(field, params, key, rule, first, last, rows, steps, amplitudes, slots, states):
    """Carry ``states[0]`` (d, n) of blocks first ... last - 1 through all steps.

    After step k the state is written to ``states[slots[k]]`` where ``slots[k] >= 0``.
    """
    dim = states.shape[1]
    x, kick, quad, scales = lanes(dim), lanes(dim), lanes(4), np.empty(dim)
    kick[:] = 0.0
    work = lanes(5 * dim).reshape(5, dim, LANES)
    for block in range(first, last):
        _march(
            field, params, key, rule, block, (block - first) * LANES, rows, steps, amplitudes, slots,
            x, kick, quad, scales, work, states,
        )  # fmt: skip


@kernel(types.void(field_pointer, vector, vector, matrix, matrix))
def apply(field, params, row, x, out):
    """One evaluation of a field at points x[d, n], n a multiple of LANES, into out[rows, n]."""
    point, value = lanes(x.shape[0]), lanes(out.shape[0])
    for block in range(x.shape[1] // LANES):
        offset = block * LANES
        copy_lanes(x, offset, point, 0)
        field(point, row, params, value)
        copy_lanes(value, 0, out, offset)
