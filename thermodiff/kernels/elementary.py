"""exp, log, sincos for lane loops: branch-free, so that LLVM vectorises the loop that calls them.

Scalar functions to be called inside a loop over lanes.  Accuracy (tested as compiled inside such a loop, over the whole
range of float64): ``exp`` and ``log`` relative 1e-15, ``sincos`` and ``sincos_turns`` absolute 5e-16.  Special values
follow IEEE 754: exp(-inf) = 0, log(0) = -inf, log(-1) = nan, sin(inf) = nan.

Two tricks are used throughout.  Adding ``MAGIC = 1.5 * 2**52`` rounds to the nearest integer and leaves that integer in
the low bits of the sum.  Shifts are done on unsigned words, since AVX2 has no arithmetic shift of 64-bit lanes.

Method: Cody and Waite's reduction (exp), the fdlibm scheme (log), Payne and Hanek's reduction from a table of the bits
of 2/pi (sincos), Taylor polynomials on the reduced range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from thermodiff.kernels.jit import inline

MAGIC = 6755399441055744.0
_MAGIC_BITS = 0x4338000000000000
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
_LN2_HI = 0.6931471803691238
_LN2_LO = 1.9082149292705877e-10
# (exp(r) - 1 - r - r^2 / 2) / r^3 for |r| <= ln 2 / 2, fitted so that the largest relative error of exp is 5e-18.
_EXP = (
    0.16666666666666433,
    0.04166666666660394,
    0.008333333333500078,
    0.001388888892680518,
    0.00019841269466154516,
    2.4801508670931946e-05,
    2.7557640901591417e-06,
    2.762519165105994e-07,
    2.4978375803665225e-08,
)
# (2**r - 1) / r for |r| <= 1/2, so that the largest relative error of 2**r is 3e-16.
_EXP2 = (
    0.6931471805599516,
    0.24022650695910472,
    0.055504108664346595,
    0.00961812910738072,
    0.0013333558246479465,
    0.00015403530800809788,
    1.5252647748364983e-05,
    1.3215235638319615e-06,
    1.0210506341142341e-07,
    7.111758215844321e-09,
)
_HALF_PI = 1.5707963267948966


@intrinsic
def to_bits(typingctx: Any, x: Any) -> Any:
    """The 64 bits of a float64 as an unsigned integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


@intrinsic
def from_bits(typingctx: Any, x: Any) -> Any:
    """The float64 with these 64 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


@intrinsic
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """``x y + z`` rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


@intrinsic
def _rint(typingctx: Any, x: Any) -> Any:
    """Nearest integer, for any magnitude (``MAGIC`` serves below 2**51 only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()]), args)

    return types.float64(types.float64), codegen


@intrinsic
def _held(typingctx: Any, x: Any) -> Any:
    """A constant that stays in a register or on the stack for the whole loop.

    The code model of Numba's JIT takes two instructions to load a constant, and LLVM loads each of them anew for every
    vector, which doubles the length of a polynomial.  It does not see through the empty instruction here.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        double = ir.DoubleType()
        value = builder.asm(ir.FunctionType(double, [double]), "", "=r,0", args, False)
        value.attributes.add("nounwind")
        value.attributes.add("readnone")
        return value

    return types.float64(types.float64), codegen


@inline
def _reduced_exp(y):
    """(exp(r) - 1, s) with y = k ln 2 + r; the low bits of s hold the integer k.  Estrin's order: short chains."""
    shifted = y * _held(LOG2E) + _held(MAGIC)
    k = shifted - _held(MAGIC)
    r = (y - k * _held(_LN2_HI)) - k * _held(_LN2_LO)
    r2 = r * r
    r4 = r2 * r2
    low = (_held(_EXP[0]) + r * _held(_EXP[1])) + r2 * (_held(_EXP[2]) + r * _held(_EXP[3]))
    high = (_held(_EXP[4]) + r * _held(_EXP[5])) + r2 * (_held(_EXP[6]) + r * _held(_EXP[7]))
    p = low + r4 * (high + r4 * _held(_EXP[8]))
    return r + (0.5 + r * p) * r2, shifted


@inline
def exp(x):
    """Exponential; gradual underflow below -708, inf above 709.78."""
    y = x if x < 710.0 else 710.0
    y = y if y > -746.0 else -746.0
    p, shifted = _reduced_exp(y)
    # 2**k in two factors: a single one would overflow to inf or flush subnormal results.
    n = to_bits(shifted) - np.uint64(_MAGIC_BITS) + np.uint64(4096)
    half = n >> np.uint64(1)
    first = from_bits((half - np.uint64(2048 - 1023)) << np.uint64(52))
    second = from_bits((n - half - np.uint64(2048 - 1023)) << np.uint64(52))
    return (1.0 + p) * first * second if x == x else x


@inline
def exp2_weight(x):
    """2**x of x <= 0, for a softmax; below -900 it stays at 1.2e-271, far from subnormal numbers.  nan gives nan.

    A power of two loses nothing where the integer is split off, and saves a third of the time of `exp`.
    """
    y = -900.0 if x < -900.0 else x
    shifted = y + _held(MAGIC)
    r = y - (shifted - _held(MAGIC))
    r2 = r * r
    r4 = r2 * r2
    low = (_held(1.0) + r * _held(_EXP2[0])) + r2 * (_held(_EXP2[1]) + r * _held(_EXP2[2]))
    middle = (_held(_EXP2[3]) + r * _held(_EXP2[4])) + r2 * (_held(_EXP2[5]) + r * _held(_EXP2[6]))
    high = (_held(_EXP2[7]) + r * _held(_EXP2[8])) + r2 * _held(_EXP2[9])
    return from_bits(to_bits(low + r4 * (middle + r4 * high)) + (to_bits(shifted) << np.uint64(52)))


@inline
def expm1(x):
    """exp(x) - 1 without cancellation; relative 4e-16."""
    y = x if x < 709.0 else 709.0
    y = y if y > -40.0 else -40.0
    p, shifted = _reduced_exp(y)
    scale = from_bits((to_bits(shifted) - np.uint64(_MAGIC_BITS) + np.uint64(1023)) << np.uint64(52))
    value = scale * p + (scale - 1.0)
    value = value if x < 709.0 else exp(x) - 1.0
    return value if x == x else x


@inline
def tanh(x):
    """Hyperbolic tangent; relative 1e-15."""
    size = abs(x)
    size = size if size < 20.0 else 20.0
    t = expm1(-2.0 * size)
    value = -t / (2.0 + t)
    value = value if x >= 0.0 else -value
    return value if x == x else x


@inline
def log_normal(x):
    """Natural logarithm of a positive, finite, normal number."""
    bits = to_bits(x)
    # Split x = 2**k z with z in [sqrt(1/2), sqrt(2)).
    biased = (bits - np.uint64(0x3FE6A09E667F3BCD) + np.uint64(0x8000000000000000)) >> np.uint64(52)
    z = from_bits(bits - ((biased - np.uint64(2048)) << np.uint64(52)))
    k = from_bits(np.uint64(_MAGIC_BITS) + biased) - _held(MAGIC + 2048.0)
    f = z - _held(1.0)
    s = f / (_held(2.0) + f)
    w = s * s
    v = w * w
    low = _held(6.666666666666735130e-01) + w * _held(3.999999999940941908e-01)
    middle = _held(2.857142874366239149e-01) + w * _held(2.222219843214978396e-01)
    high = _held(1.818357216161805012e-01) + w * _held(1.531383769920937332e-01) + v * _held(1.479819860511658591e-01)
    r = w * (low + v * (middle + v * high))
    h = _held(0.5) * f * f
    return k * _held(_LN2_HI) - ((h - (s * (h + r) + k * _held(_LN2_LO))) - f)


@inline
def log(x):
    """Natural logarithm, subnormal numbers included."""
    tiny = x < 2.2250738585072014e-308
    y = x * 18014398509481984.0 if tiny else x
    value = log_normal(y) - (54.0 * _LN2_HI if tiny else 0.0) - (54.0 * _LN2_LO if tiny else 0.0)
    value = value if x < np.inf else x
    value = value if x > 0.0 else (-np.inf if x == 0.0 else np.nan)
    return value


@inline
def _quarter(f):
    """sin and cos of f quarter turns, of absolute value up to 1/2."""
    a = f * _held(_HALF_PI)
    w = a * a
    v = w * w
    s0 = _held(-1.0 / 6.0) + w * _held(1.0 / 120.0)
    s1 = _held(-1.0 / 5040.0) + w * _held(1.0 / 362880.0)
    s2 = _held(-1.0 / 39916800.0) + w * _held(1.0 / 6227020800.0) + v * _held(-1.0 / 1307674368000.0)
    s = (s0 + v * (s1 + v * s2)) * (w * a) + a
    c0 = _held(-0.5) + w * _held(1.0 / 24.0)
    c1 = _held(-1.0 / 720.0) + w * _held(1.0 / 40320.0)
    c2 = _held(-1.0 / 3628800.0) + w * _held(1.0 / 479001600.0)
    c3 = _held(-1.0 / 87178291200.0) + w * _held(1.0 / 20922789888000.0)
    c = ((c0 + v * c1) + (v * v) * (c2 + v * c3)) * w + _held(1.0)
    return s, c


@inline
def _turn(q, s, c):
    """Rotate (sin, cos) by q quarter turns; q holds the integer in its low bits."""
    odd = (q & np.uint64(1)) == np.uint64(1)
    sine = c if odd else s
    cosine = s if odd else c
    sine = -sine if (q & np.uint64(2)) == np.uint64(2) else sine
    cosine = -cosine if ((q + np.uint64(1)) & np.uint64(2)) == np.uint64(2) else cosine
    return sine, cosine


@inline
def sincos_turns(u):
    """sin and cos of 2 pi u for u below 2**48 in size: the reduction is exact, hence cheap."""
    shifted = _held(4.0) * u + _held(MAGIC)
    s, c = _quarter(_held(4.0) * u - (shifted - _held(MAGIC)))
    return _turn(to_bits(shifted), s, c)


def _two_over_pi_table() -> np.ndarray:
    """2/pi * 2**E mod 4 as sums of three doubles, for E = -1074 ... 971 (Payne and Hanek)."""
    digits = 1300
    # pi by Machin's formula in integer arithmetic, with guard bits.
    one = 1 << (digits + 64)

    def arctan_inverse(n: int) -> int:
        total, term, k = 0, one // n, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total

    pi = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
    two_over_pi = ((2 * one) << digits) // pi  # 2/pi * 2**digits
    table = np.zeros((2046, 3))
    for row, exponent in enumerate(range(-1074, 972)):
        unit = digits - exponent  # the value is remainder / 2**unit
        remainder = two_over_pi % (4 << unit)
        if remainder >= 2 << unit:
            remainder -= 4 << unit
        for part in range(3):
            rounded = _to_float(remainder, unit)
            table[row, part] = rounded
            numerator, denominator = rounded.as_integer_ratio()
            remainder -= (numerator << unit) // denominator
    return table


def _to_float(numerator: int, unit: int) -> float:
    """numerator / 2**unit as a float, cut to 53 bits; 0 below the normal range."""
    sign, size = (-1.0 if numerator < 0 else 1.0), abs(numerator)
    drop = max(size.bit_length() - 53, 0)
    power = drop - unit
    return sign * float(size >> drop) * 2.0**power if power > -1022 else 0.0


_TWO_OVER_PI = _two_over_pi_table()


@inline
def sincos(x):
    """sin and cos of x radians, for every finite x; nan for inf and nan."""
    bits = to_bits(x)
    field = (bits >> np.uint64(52)) & np.uint64(0x7FF)
    # x = m 2**E with an integer m below 2**53 (subnormal x have the same E as the smallest normal ones).
    hidden = np.uint64(1) if field > np.uint64(0) else np.uint64(0)
    m = from_bits(np.uint64(0x4330000000000000) | (bits & np.uint64(0xFFFFFFFFFFFFF))) - 4503599627370496.0
    m = m + 4503599627370496.0 if hidden == np.uint64(1) else m
    m = -m if x < 0.0 else m
    row = np.int64(field) - np.int64(hidden)
    row = row if row < 2046 else 2045
    r0, r1, r2 = _TWO_OVER_PI[row, 0], _TWO_OVER_PI[row, 1], _TWO_OVER_PI[row, 2]
    p0 = m * r0
    e0 = fma(m, r0, -p0)
    p0 = p0 - 4.0 * _rint(0.25 * p0)
    q0, q1 = _rint(p0), _rint(e0)
    p0, e0 = p0 - q0, e0 - q1
    p1 = m * r1
    e1 = fma(m, r1, -p1) + m * r2
    q2 = _rint(p1)
    p1 = p1 - q2
    # Sum the fractions of a quarter turn, keeping what the two large additions round away.
    s0 = p0 + e0
    b = s0 - p0
    lost = (p0 - (s0 - b)) + (e0 - b)
    s1 = s0 + p1
    b = s1 - s0
    lost += (s0 - (s1 - b)) + (p1 - b)
    q3 = _rint(s1)
    s, c = _quarter((s1 - q3) + (lost + e1))
    q = to_bits((q0 + q1 + q2 + q3) + MAGIC)
    s, c = _turn(q, s, c)
    invalid = x - x
    return s + invalid, c + invalid
