"""Counter-based random numbers: Philox 4x32-10 and Box-Muller normals.

The normal for (key, purpose, path, step, coordinate) is a pure function of these five numbers, so results do not depend
on threads, chunks or the order of work.

=========  ==========================================================================
key        64 bits, two words
counter    (path low word, path high word, (step * d + coordinate) // 4, purpose)
output     four words: four 32-bit uniforms, or four normals
=========  ==========================================================================

Uniforms are the midpoints (k + 1/2) / 2**32, so a normal is never exactly zero and never larger than 6.77 in size.

Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); its published test vectors are tests.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import from_bits, log_normal, sincos_turns
from thermodiff.kernels.jit import LANES, inline, kernel, matrix, words

COMPONENT, START, NOISE, PATH, PROBE, TRAINING, BRIDGE = range(7)
"""Purposes: the component of a mixture, x_0, the noise z of the transition kernel, path noise, probes, training, bridges."""

_UNIT = 1.0 / 4294967296.0
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_WEYL0, _WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_EXPONENT = np.uint64(0x4330000000000000)  # the bits of 2**52, whose last place is 1


@inline
def _round(c0, c1, c2, c3, k0, k1):
    """One Feistel round; the 32-bit words travel in uint64, which keeps the lane loop vectorised."""
    product0 = np.uint64(0xD2511F53) * c0
    product1 = np.uint64(0xCD9E8D57) * c2
    return (product1 >> _HALF_WORD) ^ c1 ^ k0, product1 & _LOW, (product0 >> _HALF_WORD) ^ c3 ^ k1, product0 & _LOW


@inline
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox 4x32 (written out: LLVM vectorises the lane loop around them, not around an inner loop)."""
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    return _round(c0, c1, c2, c3, k0, k1)


@inline
def uniform(word):
    """The midpoint of the word's cell of (0, 1)."""
    return (from_bits(word | _EXPONENT) - 4503599627370495.5) * _UNIT


@inline
def fill_uniforms(key, path, group, purpose, out):
    """Write the four uniforms of one counter for each of the LANES paths from ``path`` on."""
    r0, r1, r2, r3 = out[0], out[1], out[2], out[3]
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low, high = np.uint64(path) & _LOW, np.uint64(path) >> _HALF_WORD
    c2, c3 = np.uint64(group) & _LOW, np.uint64(purpose) & _LOW
    for lane in range(LANES):
        # Blocks start at multiples of LANES: the low word never carries inside a block.
        w0, w1, w2, w3 = philox(low + np.uint64(lane), high, c2, c3, k0, k1)
        r0[lane] = uniform(w0)
        r1[lane] = uniform(w1)
        r2[lane] = uniform(w2)
        r3[lane] = uniform(w3)


@inline
def fill_normals(key, path, group, purpose, out):
    """Write the four normals of one counter for each of the LANES paths from ``path`` on."""
    fill_uniforms(key, path, group, purpose, out)
    r0, r1, r2, r3 = out[0], out[1], out[2], out[3]
    for lane in range(LANES):
        radius = np.sqrt(-2.0 * log_normal(r0[lane]))
        s, c = sincos_turns(r1[lane])
        r0[lane] = radius * c
        r1[lane] = radius * s
        radius = np.sqrt(-2.0 * log_normal(r2[lane]))
        s, c = sincos_turns(r3[lane])
        r2[lane] = radius * c
        r3[lane] = radius * s


@inline
def fill_rows(key, path, first, purpose, quad, group, out):
    """Write normals ``first``, ``first + 1``, ... of each path into the rows of ``out``; (step s, coordinate c) is s d + c.

    ``quad`` holds the four normals of counter ``group`` (-1: none yet) and is refilled as needed; returns the group that
    it then holds, so that consecutive steps share their draws.
    """
    for r in range(out.shape[0]):
        index = first + r
        if index // 4 != group:
            group = index // 4
            fill_normals(key, path, group, purpose, quad)
        source, target = quad[index - 4 * group], out[r]
        for lane in range(LANES):
            target[lane] = source[lane]
    return group


@kernel(types.void(words, types.int64, types.int64, types.int64, types.int64, matrix))
def noise(key, first, last, step, purpose, out):
    """Normals (step, coordinate 0 ... d - 1) of blocks first ... last - 1 as columns of ``out[d, n]``."""
    dim = out.shape[0]
    block_noise, quad = np.empty((dim, LANES)), np.empty((4, LANES))
    for block in range(first, last):
        fill_rows(key, block * LANES, step * dim, purpose, quad, -1, block_noise)
        offset = (block - first) * LANES
        out[:, offset : offset + LANES] = block_noise
