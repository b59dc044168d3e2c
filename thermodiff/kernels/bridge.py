"""Where and when a path is within one step, of which only the ends are known, if it touches a level there.

Within an Euler step of variance v a watched number is a Brownian bridge from x to y.  Three things are drawn of it, exactly
where drift and noise are constant:

- which level it touches first.  The chance is an alternating series over mirror images (Doob, 1949);
- when.  With a single level, at distance b ahead of x, and with s = tau / (h - tau), the time tau of the first touch obeys
  W(v s) + (y - x - b) s = b: s is inverse Gaussian with mean b / |y - x - b| and shape b^2 / v (Borodin and Salminen,
  "Handbook of Brownian Motion", 2.0.2, for the drifted motion; Michael, Schucany and Haas, 1976, for the draws).  With two
  levels such a time is kept with the chance that the path did not touch the other level before, and else drawn again;
- where the path is then.  What of its noise is independent of the watched number is a bridge of its own, and normal at a
  given time; the rest follows from the level.

Steps that are long beside the distance between the levels are cut into pieces, so that the series are short: the points
between the pieces are drawn from the bridge, one after the other, until a level is touched.

Where the noise is zero, a straight line takes the place of the bridge.

The draws of a step are the uniforms of (key, path, step, purpose, number of the draw): they depend on nothing else.
"""

from __future__ import annotations

import numpy as np

from thermodiff.kernels.elementary import exp, log, sincos_turns
from thermodiff.kernels.jit import LANES, inline, subroutine
from thermodiff.kernels.langevin import STATE
from thermodiff.kernels.philox import _HALF_WORD, _LOW, BRIDGE, PLACE, philox, uniform

OUT_OF_REACH = 40.0
"""Exponent beyond which a touch within a step is not worth a random number: 4e-18."""
MOST_DRAWS = 2**20
"""Draws after which a time is taken as it is: a path within 1e-6 of one level that ends at the other may get so far."""


@inline
def _draw(key, path, step, purpose, number):
    """Four uniforms; number 0 is what `fill_uniforms` gives."""
    low, high = np.uint64(path) & _LOW, np.uint64(path) >> _HALF_WORD
    purpose = np.uint64(purpose + 256 * number)
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
    small = mean / (1.0 + w + np.sqrt(w) * np.sqrt(2.0 + w))  # whose product may overflow
    s = small if uniform * (mean + small) <= mean else mean * (mean / small)
    return s / (1.0 + s) if s < 1e300 else 1.0


@inline
def near(x, y, low, high, variance):
    """Whether a level is in reach of a step from x to y; without noise, it is if the step ends on it.

    No level is where it is infinite, and none in reach of a step to where there are no numbers: that path is lost.
    """
    reach = OUT_OF_REACH * variance
    meets = 2.0 * (high - x) * (high - y) <= reach or 2.0 * (x - low) * (y - low) <= reach
    return meets and abs(y) < np.inf and variance < np.inf


@inline
def first_touch(x, y, low, high, variance, key, path, step, first):
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
    while left > 0.0 and abs(y) < np.inf:
        piece, end = left, y
        if piece > width * width:
            piece = width * width
            number += 1
            radius, angle, _, _ = _draw(key, path, step, BRIDGE, number)
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
                chance, two, three, four = _draw(key, path, step, BRIDGE, number)
                if chance < kept:
                    break
                fraction = _touch_time(distance, beyond, piece, _normal(three, four), two)
                kept = _untouched(distance, width, piece * fraction)
            return side, (variance - left) / variance + piece / variance * fraction
        x, left, number = end, left - piece, number + 1
        one, two, three, four = _draw(key, path, step, BRIDGE, number)
    return 0, 0.0


@subroutine
def noise_along(normal, kind, mix, spread, lane, push):
    """2 D n of one path: in which direction noise moves the number whose gradient n is ``normal`` (d, LANES)."""
    dim = push.size
    if kind == STATE or mix.shape[1] == 1:
        for i in range(dim):
            push[i] = (2.0 * spread[i, lane] if kind == STATE else mix[i, 0] * mix[i, 0]) * normal[i, lane]
        return
    for i in range(dim):
        push[i] = 0.0
    for j in range(mix.shape[1]):
        share = 0.0
        for i in range(dim):
            share += mix[i, j] * normal[i, lane]
        for i in range(dim):
            push[i] += share * mix[i, j]


@subroutine
def place_at_touch(before, slope, kick, normal, ahead, fraction, h, kind, mix, spread, key, path, step, line, push):
    """The state of a path at its touch into ``line`` (d,).

    The whole step was h ``slope`` + ``kick``; the watched number, whose gradient is ``normal`` (d, LANES), came by ``ahead``
    until the touch.
    """
    dim, lane = line.size, path % LANES
    root, diagonal = np.sqrt(max(h * fraction * (1.0 - fraction), 0.0)), kind == STATE or mix.shape[1] == 1
    for i in range(dim):
        line[i] = fraction * (h * slope[i, lane] + kick[i, lane])
    for j in range(dim):
        one, two, _, _ = _draw(key, path, step, PLACE, j)
        normal_number = root * _normal(one, two)
        if diagonal:
            line[j] += normal_number * (np.sqrt(2.0 * spread[j, lane]) if kind == STATE else mix[j, 0])
        else:
            for i in range(dim):
                line[i] += normal_number * mix[i, j]
    noise_along(normal, kind, mix, spread, lane, push)
    moved, variance = 0.0, 0.0
    for i in range(dim):
        moved += normal[i, lane] * line[i]
        variance += normal[i, lane] * push[i]
    missing = (ahead - moved) / variance if variance > 0.0 else 0.0
    for i in range(dim):
        line[i] += before[i, lane] + missing * push[i]
