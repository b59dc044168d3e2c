"""First passage of one coordinate through a level, without the bias of looking at the ends of steps only.

Within an Euler step of variance v a path is a Brownian bridge from x to y.  It touches a level at distance b ahead of x
with probability exp(-2 b (b - (y - x)) / v) if it ends before it, and with s = tau / (h - tau) the time tau of the first
touch obeys W(v s) + (y - x - b) s = b: s is inverse Gaussian with mean b / |y - x - b| and shape b^2 / v (Borodin and
Salminen, "Handbook of Brownian Motion", 2.0.2, for the drifted motion; Michael, Schucany and Haas, 1976, for the draws).
Two levels are taken as independent within a step, which is off by exp(-2 (distance)^2 / v).
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import exp, log, sincos_turns
from thermodiff.kernels.jit import LANES, field_pointer, inline, integers, kernel, matrix, vector, words
from thermodiff.kernels.langevin import _mixed
from thermodiff.kernels.philox import BRIDGE, PATH, fill_rows, fill_uniforms

OUT_OF_REACH = 40.0
"""Exponent beyond which a touch within a step is not worth a random number: 4e-18."""


@inline
def _touch_time(distance, beyond, variance, normal, uniform):
    """Fraction of the step until the level at ``distance`` is touched first; ``beyond`` = y - x - distance."""
    mean = distance / max(abs(beyond), 1e-300)
    shape = distance * distance / variance
    w = 0.5 * mean * normal * normal / shape
    small = mean / (1.0 + w + np.sqrt(w * (2.0 + w)))
    s = small if uniform * (mean + small) <= mean else mean * (mean / small)
    return s / (1.0 + s) if s < 1e300 else 1.0


@inline
def _reach(old, new, low, high, variance, alive):
    """Whether any path of the block may have touched a level in this step."""
    near = False
    for lane in range(LANES):
        upper = (high - old[lane]) * (high - new[lane])
        lower = (old[lane] - low) * (new[lane] - low)
        least = min(upper, lower)
        near = near or (alive[lane] > 0.0 and 2.0 * least < OUT_OF_REACH * variance)
    return near


@inline
def _stop(old, new, low, high, variance, t, h, quad, alive, times, sides):
    """Stop the paths that touch a level in this step; returns how many."""
    stopped = 0
    for lane in range(LANES):
        if alive[lane] == 0.0:
            continue
        x, y, side = old[lane], new[lane], 0
        above, below = (high - x) * (high - y), (x - low) * (y - low)
        if y >= high:
            side = 1
        elif y <= low:
            side = -1
        else:
            chance_above = exp(-2.0 * above / variance)
            chance_below = exp(-2.0 * below / variance)
            if quad[0, lane] < chance_above:
                side = 1
            elif quad[0, lane] > 1.0 - chance_below:
                side = -1
        if side != 0:
            distance = high - x if side == 1 else x - low
            beyond = y - high if side == 1 else low - y
            sine, _ = sincos_turns(quad[3, lane])
            normal = np.sqrt(-2.0 * log(quad[2, lane])) * sine
            times[lane] = t + h * _touch_time(distance, beyond, variance, normal, quad[1, lane])
            sides[lane] = side
            alive[lane] = 0.0
            stopped += 1
    return stopped


@kernel(
    types.void(
        field_pointer,
        vector,
        matrix,
        words,
        types.int64,
        types.int64,
        types.float64,
        types.float64,
        types.int64,
        types.int64,
        types.float64,
        types.float64,
        matrix,
        vector,
        integers,
    )
)
def passage(field, params, mix, key, first, last, start, h, steps, coordinate, low, high, states, times, sides):
    """Euler steps of length h from time ``start`` until each path touches ``low`` or ``high``, or ``steps`` are over.

    ``states`` (d, n) of blocks first ... last - 1 holds the first states and then the last: at the level itself for a path
    that touched it, with its other coordinates at the end of that step.  ``times`` stays at inf, ``sides`` at 0 for paths
    that did not.
    """
    dim = states.shape[0]
    x, z, kick, quad = np.empty((dim, LANES)), np.empty((dim, LANES)), np.empty((dim, LANES)), np.empty((4, LANES))
    slope, old, alive, chance = np.empty((dim, LANES)), np.empty(LANES), np.empty(LANES), np.empty((4, LANES))
    row, variance = np.zeros(4), 0.0
    for j in range(mix.shape[1]):
        variance += h * mix[coordinate, j] * mix[coordinate, j]
    for block in range(first, last):
        offset = (block - first) * LANES
        left, group = LANES, -1
        for lane in range(LANES):
            alive[lane] = 1.0
            for i in range(dim):
                x[i, lane] = states[i, offset + lane]
        own_times, own_sides = times[offset : offset + LANES], sides[offset : offset + LANES]
        for k in range(steps):
            row[0] = start + k * h
            group = fill_rows(key, block * LANES, k * dim, PATH, quad, group, z)
            _mixed(mix, np.sqrt(h), z, kick)
            field(x, row, params, slope)
            for lane in range(LANES):
                old[lane] = x[coordinate, lane]
            for i in range(dim):
                target, change, noise = x[i], slope[i], kick[i]
                for lane in range(LANES):
                    target[lane] += alive[lane] * (h * change[lane] + noise[lane])
            if _reach(old, x[coordinate], low, high, variance, alive):
                fill_uniforms(key, block * LANES, k, BRIDGE, chance)
                left -= _stop(old, x[coordinate], low, high, variance, row[0], h, chance, alive, own_times, own_sides)
                if left == 0:
                    break
        for i in range(dim):
            for lane in range(LANES):
                states[i, offset + lane] = x[i, lane]
        for lane in range(LANES):
            if own_sides[lane] != 0:
                states[coordinate, offset + lane] = high if own_sides[lane] > 0 else low
