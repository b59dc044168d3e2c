"""First passage of one coordinate through a level, without the bias of looking at the ends of steps only.

Within an Euler step of variance v a path is a Brownian bridge from x to y, and two things are drawn of it, both exactly:

- which level it touches first.  The chance is an alternating series over mirror images (Doob, 1949);
- when.  With a single level, at distance b ahead of x, and with s = tau / (h - tau), the time tau of the first touch obeys
  W(v s) + (y - x - b) s = b: s is inverse Gaussian with mean b / |y - x - b| and shape b^2 / v (Borodin and Salminen,
  "Handbook of Brownian Motion", 2.0.2, for the drifted motion; Michael, Schucany and Haas, 1976, for the draws).  With two
  levels such a time is kept with the chance that the path did not touch the other level before, and else drawn again.

Steps that are long beside the distance between the levels are cut into pieces, so that the series are short: the points
between the pieces are drawn from the bridge, one after the other, until a level is touched.

Where D depends on the state, the bridge has that of the start of the step, and where it is zero, a straight line takes the
place of the bridge.

The draws of a step are the uniforms of (key, path, step, number of the draw): they depend on nothing else.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import exp, log, sincos_turns
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
from thermodiff.kernels.philox import _HALF_WORD, _LOW, BRIDGE, fill_uniforms, philox, uniform

OUT_OF_REACH = 40.0
"""Exponent beyond which a touch within a step is not worth a random number: 4e-18."""
LOST_EVERY = 64
"""Steps after which paths that left the finite numbers are looked for: they are waited for no longer than that."""
MOST_DRAWS = 2**20
"""Draws after which a time is taken as it is: a path within 1e-6 of one level that ends at the other may get so far."""


@inline
def _draw(key, path, step, number):
    """Four uniforms; number 0 is what `fill_uniforms` gives."""
    low, high = np.uint64(path) & _LOW, np.uint64(path) >> _HALF_WORD
    purpose = np.uint64(BRIDGE + 256 * number)
    a, b, c, d = philox(low, high, np.uint64(step) & _LOW, purpose, np.uint64(key[0]), np.uint64(key[1]))
    return uniform(a), uniform(b), uniform(c), uniform(d)


@inline
def _normal(one, two):
    """A normal of two uniforms."""
    sine, _ = sincos_turns(two)
    return np.sqrt(-2.0 * log(one)) * sine


@inline
def _chance(distance, rest, width, variance):
    """Chance that a bridge touches a level before the other one, ``width`` behind the level.

    It starts at ``distance`` before the level, and ends at ``rest`` before it: negative where it ends beyond.
    """
    total = 1.0 if rest <= 0.0 else exp(-2.0 * (distance * rest) / variance)
    images = width
    while True:
        if rest > 0.0:
            back, forth = images * (images - distance + rest), (images + rest) * (images + distance)
        else:
            back, forth = (images - distance) * (images - rest), images * (images + distance - rest)
        if not 2.0 * back < OUT_OF_REACH * variance:
            return total
        total += exp(-2.0 * forth / variance) - exp(-2.0 * back / variance)
        images += width


@inline
def _untouched(distance, width, variance):
    """Chance that a path did not touch the level behind, if it touches that at ``distance`` first after this variance."""
    total, images = 1.0, width
    while 2.0 * images * (images - distance) < OUT_OF_REACH * variance:
        ratio = 2.0 * images / distance
        total += (1.0 + ratio) * exp(-2.0 * images * (images + distance) / variance)
        total += (1.0 - ratio) * exp(-2.0 * images * (images - distance) / variance)
        images += width
    return total


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
def _near(x, y, low, high, variance):
    """Whether a level is in reach of a step from x to y; without noise, it is if the step ends on it."""
    return 2.0 * min((high - x) * (high - y), (x - low) * (y - low)) <= OUT_OF_REACH * variance


@inline
def _reach(old, new, low, high, variance, alive):
    """Whether any path of the block may have touched a level in this step."""
    near = False
    for lane in range(LANES):
        near = near or (alive[lane] > 0.0 and _near(old[lane], new[lane], low, high, variance[lane]))
    return near


@inline
def _first_touch(x, y, low, high, variance, key, path, step, first):
    """(side, fraction of the step) of the first touch in a step from x to y; side 0 if there is none.

    ``first`` holds the four uniforms of draw 0 of each path of the block.
    """
    if x >= high or x <= low:  # rounding may turn it back from its mirror to the level itself
        return (1 if x >= high else -1), 0.0
    if variance == 0.0:
        if y >= high:
            return 1, (high - x) / (y - x)
        return (-1, (low - x) / (y - x)) if y <= low else (0, 0.0)
    lane = path % LANES
    one, two, three, four = first[0, lane], first[1, lane], first[2, lane], first[3, lane]
    width, left, number = high - low, variance, 0
    # What is not a number touches nothing.
    while left > 0.0 and x == x and y == y:
        piece, end = left, y
        if piece > width * width:
            piece = width * width
            number += 1
            radius, angle, _, _ = _draw(key, path, step, number)
            share = piece / left
            end = x + share * (y - x) + np.sqrt(piece * (1.0 - share)) * _normal(radius, angle)
        side, outside = 0, end >= high or end <= low
        if one < _chance(high - x, high - end, width, piece):
            side = 1
        elif outside or one > 1.0 - _chance(x - low, end - low, width, piece):
            side = -1
        if side != 0:
            distance = high - x if side == 1 else x - low
            beyond = end - high if side == 1 else low - end
            fraction = _touch_time(distance, beyond, piece, _normal(three, four), two)
            kept = _untouched(distance, width, piece * fraction)
            while kept < 1.0 and number < MOST_DRAWS:
                # The chance for this time, and the numbers for the next.
                number += 1
                chance, two, three, four = _draw(key, path, step, number)
                if chance < kept:
                    break
                fraction = _touch_time(distance, beyond, piece, _normal(three, four), two)
                kept = _untouched(distance, width, piece * fraction)
            return side, (variance - left) / variance + piece / variance * fraction
        x, left, number = end, left - piece, number + 1
        one, two, three, four = _draw(key, path, step, number)
    return 0, 0.0


@inline
def _stop(old, new, low, high, variance, t, h, key, block, step, first, alive, times, sides):
    """Stop the paths that touch a level in this step; returns how many."""
    stopped = 0
    for lane in range(LANES):
        if alive[lane] == 0.0 or not _near(old[lane], new[lane], low, high, variance[lane]):
            continue
        path = block * LANES + lane
        side, fraction = _first_touch(old[lane], new[lane], low, high, variance[lane], key, path, step, first)
        if side != 0:
            times[lane] = t + h * fraction
            sides[lane] = side
            alive[lane] = 0.0
            stopped += 1
    return stopped


@subroutine
def _lost(x, alive):
    """Give up the paths that left the finite numbers, for good; returns how many."""
    lost = 0
    for lane in range(LANES):
        total = 0.0
        for i in range(x.shape[0]):
            # nan, but for finite numbers.
            total += 0.0 * x[i, lane]
        if alive[lane] > 0.0 and total != 0.0:
            alive[lane] = 0.0
            lost += 1
    return lost


@subroutine
def _additive(field, x, row, params, mix, h, coordinate, slope, variance):
    """Drift of a step where D does not depend on the state; ``variance`` is that of the watched coordinate."""
    field(x, row, params, slope)
    total = 0.0
    for j in range(mix.shape[1]):
        total += h * mix[coordinate, j] * mix[coordinate, j]
    for lane in range(LANES):
        variance[lane] = total


@subroutine
def _multiplicative(
    field, noise, x, row, params, noise_params, h, twist, z, kick, coordinate, slope, spread, variance, walls
):
    """Drift and noise of a step where D_i depends on the state."""
    dim = x.shape[0]
    _drift_and_noise(field, noise, x, row, params, noise_params, twist, slope, spread, walls, z[:0])
    for i in range(dim):
        target, normal, level = kick[i], z[i], spread[i]
        for lane in range(LANES):
            target[lane] = np.sqrt(2.0 * h * level[lane]) * normal[lane]
    for lane in range(LANES):
        variance[lane] = 2.0 * h * spread[coordinate, lane]


@subroutine
def _watch(
    field, params, noise, noise_params, kind, mix, twist, key, block, offset, start, h, begin, steps, coordinate, low, high,
    walls, ring, confined, buffers, states, times, sides, alive,
):  # fmt: skip
    """`passage` of one block, whose lanes begin at ``offset``; ``buffers`` are to work in."""
    x, z, kick, quad, slope, old, chance, variance, spread, place, row, turned, scales = buffers
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
    for k in range(begin, begin + steps):
        row[0] = start + k * h
        now = mix[k - begin if mix.shape[0] > 1 else 0]
        group = draw_noise(key, block * LANES, k, kind, now, np.sqrt(h), quad, group, scales, z, kick)
        here = x
        if ring.size > 0:
            copy_lanes(x, 0, place, 0)
            _wrap(place, ring)
            here = place
        if kind == STATE:
            _multiplicative(
                field, noise, here, row, params, noise_params, h, twist, z, kick, coordinate, slope, spread, variance,
                walls,
            )  # fmt: skip
        else:
            _additive(field, here, row, params, now, h, coordinate, slope, variance)
        for lane in range(LANES):
            old[lane] = x[coordinate, lane]
        for i in range(dim):
            target, change, random = x[i], slope[i], kick[i]
            for lane in range(LANES):
                # Not a product: behind a level the drift of a stopped path may have no value.
                target[lane] += h * change[lane] + random[lane] if awake[lane] > 0.0 else 0.0
        if _reach(old, x[coordinate], low, high, variance, awake):
            fill_uniforms(key, block * LANES, k, BRIDGE, chance)
            left -= _stop(
                old, x[coordinate], low, high, variance, row[0], h, key, block, k, chance, awake, own_times, own_sides
            )
        if confined:
            _reflect(x, walls, turned)
            _wrap(x, walls)
        if k % LOST_EVERY == LOST_EVERY - 1:
            left -= _lost(x, awake)
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
    states,
    times,
    sides,
    alive,
):
    """Euler steps number ``begin`` and after of length h until each path touches ``low`` or ``high``, or ``steps`` are over.

    Step number 0 begins at time ``start``.  Where a run is cut in two calls makes no difference to any bit.

    ``states`` (d, n) of blocks first ... last - 1 holds the first states and then the last, where the watched coordinate of
    a path that stopped may be anywhere.  ``times`` stays at inf, ``sides`` at 0 for paths that touched no level.  ``alive``
    is 1 for paths to be waited for, and becomes 0 where one stops, or is lost; lanes without a path have 0.
    Coordinates are kept between ``walls`` (d, 3); ``ring``, which is empty or (d, 3), carries a copy of the state into the
    interval of the watched coordinate where fields are evaluated.
    """
    dim = states.shape[0]
    x, z, kick, quad = lanes(dim), lanes(dim), lanes(dim), lanes(4)
    slope, old, chance = lanes(dim), lanes(1).reshape(-1), lanes(4)
    variance, spread, place = lanes(1).reshape(-1), lanes(2 * dim), lanes(dim)
    row, confined, turned, scales = np.zeros(4), False, lanes(dim), np.empty(dim)
    for i in range(dim):
        confined = confined or walls[i, 0] > 0.0
    buffers = (x, z, kick, quad, slope, old, chance, variance, spread, place, row, turned, scales)
    for block in range(first, last):
        _watch(
            field, params, noise, noise_params, kind, mix, twist, key, block, (block - first) * LANES, start, h, begin,
            steps, coordinate, low, high, walls, ring, confined, buffers, states, times, sides, alive,
        )  # fmt: skip
