"""First passage of an ensemble, without the bias of looking at the ends of steps only.

What is watched is one coordinate, until it touches a level, or a function g(x, t), until it passes through zero.  Within a
step it is a Brownian bridge (`thermodiff.kernels.bridge`): of a coordinate that has the noise of the start of the step, of g
the mean of those with the gradients at both ends.  That takes the surface g = 0 for a plane within one step, which has an
error of first order in the length of steps (Gobet, "Weak approximation of killed diffusion using Euler schemes", 2000).
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.bridge import first_touch, near, noise_along, place_at_touch
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
from thermodiff.kernels.langevin import STATE, _drift_and_noise, _reflect, _wrap, draw_noise
from thermodiff.kernels.march import copy_lanes
from thermodiff.kernels.philox import BRIDGE, fill_uniforms

LOST_EVERY = 64
"""Steps after which paths that left the finite numbers are looked for: they are waited for no longer than that."""
SURFACE = -1
"""In place of the number of a coordinate: a function is watched."""
FAR = 1e150
"""Size of a level from which on there is none."""
CORRECTIONS = 20
"""Newton's steps at most that take the place of a touch onto the surface."""
CLOSE = 1e-5
"""Share of a step's noise from which one of them goes to all digits."""
SMALL = 1e-9
"""Share of the size of a function that counts as zero."""
WIDEST = 6.0
"""Largest way to the plane by noise alone, in units of the noise until the touch: no path gets further."""
LONGEST, REACH = 2.0, 1.0
"""Way of one of Newton's steps at most, in units of a step's noise, and of all, in those of the noise until the touch."""
HALVINGS = 60
"""Places at most at which a surface is looked for along a straight line."""


@inline
def _reach(old, new, low, high, variance, alive):
    """Whether any path of the block may have touched a level in this step."""
    found = False
    for lane in range(LANES):
        found = found or (alive[lane] > 0.0 and near(old[lane], new[lane], low, high, variance[lane]))
    return found


@subroutine
def _stop(stop, watched, low, high, t, h, kind, mix, key, block, step, first, motion, surface, alive, times, sides):
    """Stop the paths that touch a level in this step, where they touch it; returns how many."""
    old, new, variance, flip = watched
    x, before, slope, kick, spread, normal, line, push = motion
    stopped = 0
    for lane in range(LANES):
        if alive[lane] == 0.0 or not near(old[lane], new[lane], low, high, variance[lane]):
            continue
        path = block * LANES + lane
        side, fraction = first_touch(old[lane], new[lane], low, high, variance[lane], key, path, step, first)
        if side == 0:
            continue
        if surface[0].shape[0] > 0:
            fraction = _settle(stop, watched, fraction, t, h, kind, mix, key, path, step, motion, surface)
            if fraction < 0.0:
                continue
        else:
            ahead = (high if side > 0 else low) - old[lane]
            place_at_touch(before, slope, kick, normal, ahead, fraction, h, kind, mix, spread, key, path, step, line, push)
        times[lane], sides[lane], alive[lane] = t + h * fraction, side * int(flip[lane]), 0.0
        stopped += 1
        for i in range(line.size):
            x[i, lane] = line[i]
    return stopped


@subroutine
def _settle(stop, watched, fraction, t, h, kind, mix, key, path, step, motion, surface):
    """The state of a path at its touch of a surface, after this ``fraction`` of a step if that was a plane.

    Returns the fraction after which it is there; -1 where no surface is in reach, and the path goes on.
    """
    old, new, variance, flip = watched
    _, before, slope, kick, spread, normal, line, push = motion
    lane = path % LANES
    # What the function changes by beside the path, since it depends on time, and by drift.
    moved, drifted, width = flip[lane] * (new[lane] - old[lane]), 0.0, 0.0
    for i in range(line.size):
        moved -= normal[i, lane] * (h * slope[i, lane] + kick[i, lane])
        drifted += normal[i, lane] * h * slope[i, lane]
    ahead, scale = -flip[lane] * old[lane] - fraction * moved, abs(old[lane]) + abs(new[lane])
    place_at_touch(before, slope, kick, normal, ahead, fraction, h, kind, mix, spread, key, path, step, line, push)
    for i in range(line.size):
        width += normal[i, lane] * push[i]
    by_noise = abs(ahead - fraction * drifted) <= WIDEST * np.sqrt(width) * _noise_until(h, fraction)
    if by_noise and _onto(stop, surface, t, h, fraction, scale, kind, mix, spread, line, push, lane):
        return fraction
    if new[lane] < 0.0:
        return -1.0
    fraction = _on_chord(stop, surface, t, h, before, slope, kick, old, new, flip, line, lane)
    if variance[lane] == 0.0:
        # What has noise does not matter, and is drawn as ever.
        place_at_touch(before, slope, kick, normal, 0.0, fraction, h, kind, mix, spread, key, path, step, line, push)
        if abs(_look(stop, surface, t + h * fraction, line, lane)) > SMALL * scale:
            _along(before, slope, kick, h, fraction, line, lane)
            _look(stop, surface, t + h * fraction, line, lane)
    return fraction


@subroutine
def _look(stop, surface, t, line, lane):
    """The function at a state ``line``, which is carried back between the walls, with its gradient in ``glance``.

    Fields and walls take whole blocks; the other lanes hold what they did.
    """
    glance, place, stop_params, moment, walls, turned = surface
    for i in range(line.size):
        place[i, lane] = line[i]
    _reflect(place, walls, turned)
    _wrap(place, walls)
    for i in range(line.size):
        line[i] = place[i, lane]
    moment[0] = t
    stop(place, moment, stop_params, glance)
    return glance[0, lane]


@inline
def _noise_until(h, fraction):
    """The width of unit noise after this ``fraction`` of a step, and a little for rounding."""
    return np.sqrt(h * fraction) + CLOSE * np.sqrt(h)


@subroutine
def _onto(stop, surface, t, h, fraction, scale, kind, mix, spread, line, push, lane):
    """Move a state ``line``, in the direction of noise, onto the surface; returns whether that is in reach.

    It is the state after this ``fraction`` of a step; ``scale`` is the size of the function.
    """
    normal, root, gone, t = surface[0][1:], np.sqrt(h), 0.0, t + h * fraction
    for _ in range(CORRECTIONS):
        value = _look(stop, surface, t, line, lane)
        noise_along(normal, kind, mix, spread, lane, push)
        variance = 0.0
        for i in range(line.size):
            variance += normal[i, lane] * push[i]
        away = abs(value) / np.sqrt(variance)
        if not away < np.inf:
            return False
        part = min(LONGEST * root / away, 1.0) if away > 0.0 else 1.0
        gone += part * away
        if gone > REACH * _noise_until(h, fraction):
            return False
        for i in range(line.size):
            line[i] -= part * value / variance * push[i]
        if away <= CLOSE * root:
            left = abs(_look(stop, surface, t, line, lane))
            # Where the function is steep a short step may lead nowhere.
            if left <= 0.5 * abs(value) or left <= SMALL * scale:
                return True
    return False


@inline
def _along(before, slope, kick, h, fraction, line, lane):
    """The state of a path on the straight line between the ends of a step."""
    for i in range(line.size):
        line[i] = before[i, lane] + fraction * (h * slope[i, lane] + kick[i, lane])


@subroutine
def _on_chord(stop, surface, t, h, before, slope, kick, old, new, flip, line, lane):
    """Fraction of a step after which a straight line between its ends meets the surface, and that state into ``line``.

    By false positions (the Illinois rule), between a place on the first side and one that is not.
    """
    first, last, one, two, side = 0.0, 1.0, old[lane], new[lane], 0
    for _ in range(HALVINGS):
        at = (first * two - last * one) / (two - one)
        if not first < at < last:
            at = 0.5 * (first + last)
        _along(before, slope, kick, h, at, line, lane)
        value = flip[lane] * _look(stop, surface, t + h * at, line, lane)
        if value < 0.0:
            first, one, two, side = at, value, two * (0.5 if side < 0 else 1.0), -1
        else:
            last, two, one, side = at, value, one * (0.5 if side > 0 else 1.0), 1
        if abs(value) <= 1e-14 * (new[lane] - old[lane]) or last - first <= 1e-14:
            return at
    return at


@subroutine
def _lost(x, t, alive, times):
    """Give up the paths that left the finite numbers by t, for good; returns how many."""
    lost = 0
    for lane in range(LANES):
        total = 0.0
        for i in range(x.shape[0]):
            # nan, but for finite numbers.
            total += 0.0 * x[i, lane]
        if alive[lane] > 0.0 and total != 0.0:
            alive[lane], times[lane] = 0.0, t
            lost += 1
    return lost


@subroutine
def _blind(value, variance, x, t, alive, times):
    """Make those paths lost for which the watched function or its gradient has no value by t; returns how many."""
    lost = 0
    for lane in range(LANES):
        if alive[lane] > 0.0 and not (abs(value[lane]) < np.inf and variance[lane] < np.inf):
            x[0, lane], alive[lane], times[lane] = np.nan, 0.0, t
            lost += 1
    return lost


@subroutine
def _variances(kind, mix, spread, normal, h, weight, out):
    """``out`` grows by ``weight`` times the variances, in a step, of the number whose gradient is ``normal`` (d, LANES)."""
    dim = normal.shape[0]
    for j in range(dim):
        if kind == STATE or mix.shape[1] == 1:
            row = normal[j]
            for lane in range(LANES):
                square = 2.0 * spread[j, lane] if kind == STATE else mix[j, 0] * mix[j, 0]
                out[lane] += weight * h * square * row[lane] * row[lane]
        else:
            for lane in range(LANES):
                share = 0.0
                for i in range(dim):
                    share += mix[i, j] * normal[i, lane]
                out[lane] += weight * h * share * share


@subroutine
def _see(old_sight, new_sight, kind, mix, spread, h, watched):
    """What is watched of a step, from the function and its gradient at both ends: made negative at the start by ``flip``."""
    old, new, variance, flip = watched
    one, two = old_sight[0], new_sight[0]
    for lane in range(LANES):
        flip[lane] = -1.0 if one[lane] > 0.0 else 1.0
        old[lane], new[lane], variance[lane] = flip[lane] * one[lane], flip[lane] * two[lane], 0.0
    _variances(kind, mix, spread, old_sight[1:], h, 0.5, variance)
    _variances(kind, mix, spread, new_sight[1:], h, 0.5, variance)


@subroutine
def _drift_and_kick(
    field, noise, kind, x, row, params, noise_params, h, twist, mix, z, kick, coordinate, slope, spread, variance, walls
):
    """Drift and noise of a step, and the ``variance`` of the watched coordinate."""
    if kind != STATE:
        field(x, row, params, slope)
        total = 0.0
        if coordinate != SURFACE:
            for j in range(mix.shape[1]):
                total += h * mix[coordinate, j] * mix[coordinate, j]
        for lane in range(LANES):
            variance[lane] = total
        return
    _drift_and_noise(field, noise, x, row, params, noise_params, twist, slope, spread, walls, z[:0])
    for i in range(x.shape[0]):
        target, normal, level = kick[i], z[i], spread[i]
        for lane in range(LANES):
            target[lane] = np.sqrt(2.0 * h * level[lane]) * normal[lane]
    if coordinate != SURFACE:
        for lane in range(LANES):
            variance[lane] = 2.0 * h * spread[coordinate, lane]


@subroutine
def _watch(
    field, params, noise, noise_params, kind, mix, twist, key, block, offset, start, h, begin, steps, coordinate, low, high,
    walls, ring, confined, stop, stop_params, buffers, states, times, sides, alive,
):  # fmt: skip
    """`passage` of one block, whose lanes begin at ``offset``; ``buffers`` are to work in."""
    x, z, kick, quad, slope, before, chance, variance, flip, spread, place, turned, scales, sights, work, rows = buffers
    row, moment = rows
    dim = states.shape[0]
    own_times, own_sides = times[offset : offset + LANES], sides[offset : offset + LANES]
    left, group, awake = 0, -1, alive[offset : offset + LANES]
    for lane in range(LANES):
        left += 1 if awake[lane] > 0.0 else 0
    copy_lanes(states, offset, x, 0)
    if left == 0:
        return
    # Not in between: it would carry a place on one end of a ring to the other.
    if confined and begin == 0:
        _wrap(x, walls)
    on_line = coordinate != SURFACE
    first_sight, sight, glance, seen = sights[0], sights[1], sights[2], sights[-1]
    old, new, normal = seen[0], seen[1], first_sight[1:]
    if on_line:
        old, new, normal = before[coordinate], x[coordinate], first_sight
    watched, motion = (old, new, variance, flip), (x, before, slope, kick, spread, normal, work[0], work[1])
    surface = (glance, place, stop_params, moment, walls, turned)
    if not on_line:
        moment[0] = start + begin * h
        stop(x, moment, stop_params, sight)
    for k in range(begin, begin + steps):
        row[0] = start + k * h
        now = mix[k - begin if mix.shape[0] > 1 else 0]
        group = draw_noise(key, block * LANES, k, kind, now, np.sqrt(h), quad, group, scales, z, kick)
        here = x
        if ring.size > 0:
            copy_lanes(x, 0, place, 0)
            _wrap(place, ring)
            here = place
        _drift_and_kick(
            field, noise, kind, here, row, params, noise_params, h, twist, now, z, kick, coordinate, slope, spread,
            variance, walls,
        )  # fmt: skip
        copy_lanes(x, 0, before, 0)
        for i in range(dim):
            target, change, random = x[i], slope[i], kick[i]
            for lane in range(LANES):
                # Not a product: behind a level the drift of a stopped path may have no value.
                target[lane] += h * change[lane] + random[lane] if awake[lane] > 0.0 else 0.0
        if not on_line:
            # Walls first: the function has values between them only.
            if confined:
                _reflect(x, walls, turned)
                _wrap(x, walls)
            copy_lanes(sight, 0, first_sight, 0)
            moment[0] = start + (k + 1) * h
            stop(x, moment, stop_params, sight)
            _see(first_sight, sight, kind, now, spread, h, watched)
            left -= _blind(new, variance, x, start + (k + 1) * h, awake, own_times)
        if _reach(old, new, low, high, variance, awake):
            fill_uniforms(key, block * LANES, k, BRIDGE, chance)
            left -= _stop(
                stop, watched, low, high, row[0], h, kind, now, key, block, k, chance, motion, surface, awake, own_times,
                own_sides,
            )  # fmt: skip
        if confined and on_line:
            _reflect(x, walls, turned)
            _wrap(x, walls)
        if k % LOST_EVERY == LOST_EVERY - 1:
            left -= _lost(x, start + (k + 1) * h, awake, own_times)
        if left == 0:
            break
    copy_lanes(x, 0, states, offset)


@kernel(
    types.void(
        field_pointer,
        vector,
        field_pointer,
        vector,
        types.int64,
        tensor,
        types.float64,
        words,
        types.int64,
        types.int64,
        types.float64,
        types.float64,
        types.int64,
        types.int64,
        types.int64,
        types.float64,
        types.float64,
        matrix,
        matrix,
        field_pointer,
        vector,
        matrix,
        vector,
        integers,
        vector,
    )
)
def passage(
    field,
    params,
    noise,
    noise_params,
    kind,
    mix,
    twist,
    key,
    first,
    last,
    start,
    h,
    begin,
    steps,
    coordinate,
    low,
    high,
    walls,
    ring,
    stop,
    stop_params,
    states,
    times,
    sides,
    alive,
):
    """Euler steps number ``begin`` and after of length h until each path touches ``low`` or ``high``, or ``steps`` are over.

    Step number 0 begins at time ``start``.  Where a run is cut in two calls makes no difference to any bit.

    What touches is a ``coordinate``, or where that is `SURFACE` the field ``stop``, which holds a function and its gradient
    in d + 1 rows and ends a path where it passes through zero; its sides are +1 for passing upwards.

    ``states`` (d, n) of blocks first ... last - 1 holds the first states and then the last, at the touch for those that
    stopped.  ``times`` stays at inf and ``sides`` at 0 for paths that touched nothing; lost ones have the time when that was
    seen.  ``alive`` is 1 for paths to be waited for, and becomes 0 where one stops, or is lost; lanes without a path have 0.
    Coordinates are kept between ``walls`` (d, 3); ``ring``, which is empty or (d, 3), carries a copy of the state into the
    interval of the watched coordinate where fields are evaluated.
    """
    dim, surface = states.shape[0], coordinate == SURFACE
    x, z, kick, quad = lanes(dim), lanes(dim), lanes(dim), lanes(4)
    slope, before, chance, flip = lanes(dim), lanes(dim), lanes(4), lanes(1).reshape(-1)
    variance, spread, place = lanes(1).reshape(-1), lanes(2 * dim), lanes(dim)
    row, confined, turned, scales = np.zeros(4), False, lanes(dim), np.empty(dim)
    work, moment, rows = np.empty((2, dim)), np.zeros(4), dim + 1 if surface else 0
    sights = (lanes(rows if surface else dim), lanes(rows), lanes(rows), lanes(2))
    low, high = low if low > -FAR else -np.inf, high if high < FAR else np.inf
    flip[:], place[:], sights[0][:] = 1.0, 0.0, 0.0
    if not surface:
        sights[0][coordinate] = 1.0
    for i in range(dim):
        confined = confined or walls[i, 0] > 0.0
    buffers = (
        x, z, kick, quad, slope, before, chance, variance, flip, spread, place, turned, scales, sights, work, (row, moment),
    )  # fmt: skip
    for block in range(first, last):
        _watch(
            field, params, noise, noise_params, kind, mix, twist, key, block, (block - first) * LANES, start, h, begin,
            steps, coordinate, low, high, walls, ring, confined, stop, stop_params, buffers, states, times, sides, alive,
        )  # fmt: skip
