"""Counter-based random numbers: Philox 4x32-10 and Box-Muller normals.

The normal for (key, purpose, path, step, coordinate) is a pure function of these five numbers, so results do not depend
on threads, chunks or the order of work.

=========  ==========================================================================
key        64 bits, two words
counter    (path low word, path high word, (step * d + coordinate) // 4, purpose)
output     four words: four 32-bit uniforms, or four normals
=========  ==========================================================================

Uniforms are the midpoints (k + 1/2) / 2**32, so a normal is never exactly zero and never larger than 6.77 in size.  The
functions of Box and Muller are good to 2e-11, a tenth of the distance between neighbouring uniforms (decision 13).

Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); its published test vectors are tests.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import _held, from_bits, to_bits
from thermodiff.kernels.jit import LANES, inline, kernel, lanes, matrix, subroutine, words

COMPONENT, START, NOISE, PATH, PROBE, TRAINING, BRIDGE, PLACE = range(8)
"""Purposes: the component of a mixture, x_0, the noise z of the transition kernel, path noise, probes, training, the touch
of a bridge, and where the path is then."""

_UNIT = 1.0 / 4294967296.0
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_WEYL0, _WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROOT, _HALF_ROOT = np.uint64(0x3FE6A09E667F3BCD), np.uint64(0x3FD6A09E667F3BCD)  # sqrt(1/2), and half of it
_MANTISSA = np.uint64(0xFFFFFFFFFFFFF)
# -4 artanh(s) / s in s**2; sine over f and cosine of f quarter turns in f**2, f in units of 2**-30.  Least largest errors:
# 1.5e-12, 1.7e-12 and 6e-14, where the grid of the uniforms is 2e-10 wide.
_LOG = (-4.000000000093501, -1.3333332701041565, -0.800011960401524, -0.5705075731168903, -0.47524989986781635)
_SIN = tuple(
    value * 2.0 ** (-30 * (2 * k + 1))
    for k, value in enumerate(
        (1.570796326757612, -0.6459640945212768, 0.07969255932297749, -0.004681141460910373, 0.0001579844687692953)
    )
)
_COS = tuple(
    value * 2.0 ** (-60 * k)
    for k, value in enumerate(
        (
            0.9999999999999445,
            -1.233700550120178,
            0.2536695071543066,
            -0.02086346800898955,
            0.0009191617677869262,
            -2.4851012689476965e-05,
        )
    )
)
_EXPONENT = np.uint64(0x4330000000000000)  # the bits of 2**52, whose last place is 1
_ODD = np.uint64(0x4330000000000001)
_ANGLE, _EXCHANGE = np.uint64(0x3FFFFFFF), np.uint64(0x40000000)
_SIGN = np.uint64(0x8000000000000000)


@inline
def _round(c0, c1, c2, c3, k0, k1):
    """One Feistel round.

    The 32-bit words travel in uint64, which keeps the lane loop vectorised.  What stands in the upper halves is ignored by
    the instruction that multiplies, so it is cut off there, at no cost, and not where it arises.
    """
    product0 = np.uint64(0xD2511F53) * (c0 & _LOW)
    product1 = np.uint64(0xCD9E8D57) * (c2 & _LOW)
    return (product1 >> _HALF_WORD) ^ c1 ^ k0, product1, (product0 >> _HALF_WORD) ^ c3 ^ k1, product0


@inline
def _two_rounds(a, b, k0, k1):
    """A round of each of two counters, and the next key."""
    a, b = _round(a[0], a[1], a[2], a[3], k0, k1), _round(b[0], b[1], b[2], b[3], k0, k1)
    return a, b, (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW


@inline
def _two_counters(a, b, k0, k1):
    """Ten rounds of Philox 4x32 on two counters of four words; the upper halves of the results are not cut off.

    Each round waits for the one before, and a processor looks ahead by less than ten: two counters in step keep it busy.
    (Written out: LLVM vectorises the lane loop around the rounds, not around an inner loop.)
    """
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, k0, k1 = _two_rounds(a, b, k0, k1)
    a, b, _, _ = _two_rounds(a, b, k0, k1)
    return a, b


@inline
def philox(c0, c1, c2, c3, k0, k1):
    """The four words of one counter."""
    words, _ = _two_counters((c0, c1, c2, c3), (c0, c1, c2, c3), k0, k1)
    return words[0] & _LOW, words[1] & _LOW, words[2] & _LOW, words[3] & _LOW


@inline
def _fill_words(key, path, group, purpose, out):
    """Write the bits of the four words of one counter for each of the LANES paths from ``path`` on."""
    r0, r1, r2, r3 = out[0], out[1], out[2], out[3]
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low, high = np.uint64(path) & _LOW, np.uint64(path) >> _HALF_WORD
    c2, c3 = np.uint64(group) & _LOW, np.uint64(purpose) & _LOW
    for lane in range(LANES // 2):
        # Blocks start at multiples of LANES: the low word never carries inside a block.
        other = lane + LANES // 2
        a, b = (low + np.uint64(lane), high, c2, c3), (low + np.uint64(other), high, c2, c3)
        a, b = _two_counters(a, b, k0, k1)
        r0[lane], r1[lane], r2[lane], r3[lane] = from_bits(a[0]), from_bits(a[1]), from_bits(a[2]), from_bits(a[3])
        r0[other], r1[other], r2[other], r3[other] = from_bits(b[0]), from_bits(b[1]), from_bits(b[2]), from_bits(b[3])


@inline
def uniform(word):
    """The midpoint of the cell of (0, 1) that the lower half of ``word`` numbers."""
    return (from_bits((word & _LOW) | _EXPONENT) - 4503599627370495.5) * _UNIT


@inline
def fill_uniforms(key, path, group, purpose, out):
    """Write the four uniforms of one counter for each of the LANES paths from ``path`` on."""
    _fill_words(key, path, group, purpose, out)
    for c in range(4):
        row = out[c]
        for lane in range(LANES):
            row[lane] = uniform(to_bits(row[lane]))


@inline
def squared_radius(word):
    """-2 ln((word + 1/2) / 2**32) of the lower half of a word, to 2e-11 of it."""
    # word + 1/2 = 2**(k + 32) z with z in [sqrt(1/2), sqrt(2)); what is subtracted keeps the exponent positive.
    shifted = to_bits(from_bits((word & _LOW) | _EXPONENT) - 4503599627370495.5) - _HALF_ROOT
    z = from_bits((shifted & _MANTISSA) + _ROOT)
    k = from_bits((shifted >> np.uint64(52)) | _EXPONENT) - _held(4503599627370496.0 + 33.0)
    s = (z - 1.0) / (z + 1.0)
    w = s * s
    series = _held(_LOG[3]) + w * _held(_LOG[4])
    series = _held(_LOG[0]) + w * (_held(_LOG[1]) + w * (_held(_LOG[2]) + w * series))
    return s * series - k * _held(2.0 * np.log(2.0))


@inline
def _directions(one, two):
    """Points on the unit circle of two words, to 2e-12: the angles are uniform on the midpoints of 2**31 cells.

    Bits 1 to 29 are an angle within an eighth of a turn from the x axis, bit 31 turns the sign of x, and bit 30 exchanges
    the coordinates.  Two at a time, step by step: each polynomial waits for its last step.
    """
    # An odd integer less 2**29: symmetric, and never zero.
    middle = _held(4503599627370496.0 + 536870912.0)
    f, g = from_bits((one & _ANGLE) | _ODD) - middle, from_bits((two & _ANGLE) | _ODD) - middle
    v, w = f * f, g * g
    y, t = _held(_SIN[3]) + v * _held(_SIN[4]), _held(_SIN[3]) + w * _held(_SIN[4])
    x, s = _held(_COS[4]) + v * _held(_COS[5]), _held(_COS[4]) + w * _held(_COS[5])
    y, t = _held(_SIN[2]) + v * y, _held(_SIN[2]) + w * t
    x, s = _held(_COS[3]) + v * x, _held(_COS[3]) + w * s
    y, t = _held(_SIN[1]) + v * y, _held(_SIN[1]) + w * t
    x, s = _held(_COS[2]) + v * x, _held(_COS[2]) + w * s
    y, t = f * (_held(_SIN[0]) + v * y), g * (_held(_SIN[0]) + w * t)
    x, s = _held(_COS[1]) + v * x, _held(_COS[1]) + w * s
    x, s = _held(_COS[0]) + v * x, _held(_COS[0]) + w * s
    x, s = _signed(x, one), _signed(s, two)
    turn, swap = (one & _EXCHANGE) != np.uint64(0), (two & _EXCHANGE) != np.uint64(0)
    return (y if turn else x), (x if turn else y), (t if swap else s), (s if swap else t)


@inline
def _signed(x, word):
    """x > 0 with the sign of bit 31."""
    return from_bits(to_bits(x) ^ ((word << _HALF_WORD) & _SIGN))


@inline
def box_muller(a, b, one, two):
    """Two pairs of normals of two squared radii and the words of two directions."""
    x, y, s, t = _directions(one, two)
    a, b = np.sqrt(a), np.sqrt(b)
    return a * x, a * y, b * s, b * t


@subroutine
def fill_normals(key, path, group, purpose, out):
    """Write the four normals of one counter for each of the LANES paths from ``path`` on."""
    r0, r1, r2, r3 = out[0], out[1], out[2], out[3]
    _fill_words(key, path, group, purpose, out)
    # Loops of their own: all together would need more registers than there are.  The roots are taken in the last, where
    # they do not wait for the divisions.
    for lane in range(LANES):
        r0[lane] = squared_radius(to_bits(r0[lane]))
    for lane in range(LANES):
        r2[lane] = squared_radius(to_bits(r2[lane]))
    for lane in range(LANES):
        first, second = to_bits(r1[lane]), to_bits(r3[lane])
        r0[lane], r1[lane], r2[lane], r3[lane] = box_muller(r0[lane], r2[lane], first, second)


@inline
def hold(key, path, index, purpose, quad, group):
    """Make ``quad`` hold normal ``index`` of each path in row ``index % 4``; returns the group of four that it then holds.

    Normal (step s, coordinate c) of d is number s d + c.  ``group`` is what ``quad`` held before (-1: nothing), so that
    consecutive steps share their draws.
    """
    if index // 4 != group:
        fill_normals(key, path, index // 4, purpose, quad)
    return index // 4


@inline
def fill_rows(key, path, first, purpose, quad, group, scales, out):
    """Write ``scales`` times normals ``first``, ``first + 1``, ... of each path into the rows of ``out``, see `hold`."""
    for r in range(out.shape[0]):
        group = hold(key, path, first + r, purpose, quad, group)
        source, target, scale = quad[(first + r) % 4], out[r], scales[r]
        for lane in range(LANES):
            target[lane] = scale * source[lane]
    return group


@kernel(types.void(words, types.int64, types.int64, types.int64, types.int64, matrix))
def noise(key, first, last, step, purpose, out):
    """Normals (step, coordinate 0 ... d - 1) of blocks first ... last - 1 as columns of ``out[d, n]``."""
    dim = out.shape[0]
    block_noise, quad, ones = lanes(dim), lanes(4), np.ones(dim)
    for block in range(first, last):
        fill_rows(key, block * LANES, step * dim, purpose, quad, -1, ones, block_noise)
        offset = (block - first) * LANES
        out[:, offset : offset + LANES] = block_noise
