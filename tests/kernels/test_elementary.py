"""exp, log, sincos as compiled inside a lane loop, against mpmath."""

import platform
import re

import mpmath
import numba
import numpy as np
import pytest

from thermodiff.kernels import elementary
from thermodiff.kernels.jit import FLAGS, LANES

FLAGS_HERE = {**FLAGS, "cache": False}
SMALLEST = 5e-324
TINY = np.finfo(float).tiny
HUGE = np.finfo(float).max


def one_output(function):
    def loop(x, out):
        for block in range(x.size // LANES):
            source, target = x[block * LANES : (block + 1) * LANES], out[block * LANES : (block + 1) * LANES]
            for lane in range(LANES):
                target[lane] = function(source[lane])

    return numba.njit("void(f8[::1], f8[::1])", **FLAGS_HERE)(loop)


def two_outputs(function):
    def loop(x, sines, cosines):
        for block in range(x.size // LANES):
            source = x[block * LANES : (block + 1) * LANES]
            s, c = sines[block * LANES : (block + 1) * LANES], cosines[block * LANES : (block + 1) * LANES]
            for lane in range(LANES):
                s[lane], c[lane] = function(source[lane])

    return numba.njit("void(f8[::1], f8[::1], f8[::1])", **FLAGS_HERE)(loop)


LOOPS = {
    "exp": one_output(elementary.exp),
    "log": one_output(elementary.log),
    "exp2_weight": one_output(elementary.exp2_weight),
    "log_normal": one_output(elementary.log_normal),
    "expm1": one_output(elementary.expm1),
    "tanh": one_output(elementary.tanh),
    "sincos": two_outputs(elementary.sincos),
    "sincos_turns": two_outputs(elementary.sincos_turns),
}


def evaluate(name: str, x: np.ndarray) -> list[np.ndarray]:
    """The function at every x, in whole lane blocks."""
    padded = np.resize(x, -(-x.size // LANES) * LANES)
    outputs = [np.empty_like(padded) for _ in range(2 if name.startswith("sincos") else 1)]
    LOOPS[name](padded, *outputs)
    return [out[: x.size] for out in outputs]


def largest(errors) -> float:
    return float(max(errors))


def spread(low: float, high: float, n: int, seed: int) -> np.ndarray:
    """Log-uniform magnitudes."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), n))


EXP_ARGUMENTS = np.concatenate([
    np.random.default_rng(0).uniform(-745.0, 709.78, 3000),
    np.random.default_rng(1).uniform(-0.7, 0.7, 1000),
    spread(1e-300, 1.0, 300, 2),
    -spread(1e-300, 1.0, 300, 3),
    np.arange(-1070, 1024) * np.log(2.0),
    (np.arange(-1000, 1000) + 0.5) * np.log(2.0),
    [709.782712893384, -708.39, -708.4, -745.1332191019411, -745.0],
])  # fmt: skip


def test_exp_is_correct_to_1e_15() -> None:
    (values,) = evaluate("exp", EXP_ARGUMENTS)
    with mpmath.workprec(120):
        exact = [mpmath.exp(mpmath.mpf(float(x))) for x in EXP_ARGUMENTS]
        # A subnormal result has fewer digits: one unit in its last place.
        off = [
            abs(mpmath.mpf(float(v)) - e) / max(e * mpmath.mpf(1e-15), mpmath.mpf(SMALLEST))
            for v, e in zip(values, exact, strict=True)
        ]
    assert largest(off) <= 1.0


LOG_ARGUMENTS = np.concatenate([
    spread(TINY, 1e308, 3000, 4),
    1.0 + np.random.default_rng(5).uniform(-0.3, 0.42, 1000),
    1.0 + np.random.default_rng(6).choice([-1, 1], 1000) * spread(2.3e-16, 0.1, 1000, 7),
    np.nextafter(1.0, [0.0, 2.0]),
    np.nextafter(np.sqrt(2.0), [0.0, 2.0]),
    np.nextafter(np.sqrt(0.5), [0.0, 2.0]),
    [2.0**k for k in range(-1074, 1024, 7)],
    SMALLEST * np.random.default_rng(8).integers(1, 2**52, 500),
    [SMALLEST, TINY, np.nextafter(TINY, 0.0), HUGE],
])  # fmt: skip


def test_log_is_correct_to_1e_15() -> None:
    (values,) = evaluate("log", LOG_ARGUMENTS)
    with mpmath.workprec(160):
        off = []
        for x, v in zip(LOG_ARGUMENTS, values, strict=True):
            exact = mpmath.log(mpmath.mpf(float(x)))
            off.append(abs(mpmath.mpf(float(v)) - exact) / abs(exact) if exact != 0 else abs(float(v)) * 1e300)
    assert largest(off) <= 1e-15


def test_the_power_of_two_of_a_weight_is_correct_to_1e_15_down_to_its_floor() -> None:
    halves = np.arange(0.0, 900.0, 0.5)
    arguments = -np.concatenate(
        [np.random.default_rng(20).uniform(0.0, 900.0, 2000), spread(1e-17, 900.0, 1000, 21), halves]
    )
    (values,) = evaluate("exp2_weight", arguments)
    with mpmath.workprec(160):
        off = [
            abs(mpmath.mpf(float(v)) / mpmath.mpf(2) ** mpmath.mpf(float(x)) - 1)
            for x, v in zip(arguments, values, strict=True)
        ]
    assert largest(off) <= 1e-15
    floor, low, nan = evaluate("exp2_weight", np.array([-900.0, -np.inf, np.nan]))[0]
    assert floor == low > 1e-271
    assert np.isnan(nan)


def test_log_of_normal_numbers_is_correct_to_1e_15() -> None:
    arguments = np.concatenate([spread(TINY, HUGE, 2000, 22), np.random.default_rng(23).random(1000), LOG_ARGUMENTS[-1:]])
    (values,) = evaluate("log_normal", arguments)
    np.testing.assert_allclose(values, evaluate("log", arguments)[0], rtol=4e-16)
    with mpmath.workprec(160):
        off = [
            abs(mpmath.mpf(float(v)) / mpmath.log(mpmath.mpf(float(x))) - 1) for x, v in zip(arguments, values, strict=True)
        ]
    assert largest(off) <= 1e-15


REAL = np.concatenate([
    np.random.default_rng(24).uniform(-45.0, 45.0, 2000),
    np.random.default_rng(25).uniform(-1.1, 1.1, 2000),
    np.random.default_rng(26).choice([-1, 1], 1000) * spread(1e-300, 700.0, 1000, 27),
    (np.arange(-40, 40) + 0.5) * np.log(2.0),
    [709.0, 709.78, -745.0, SMALLEST, TINY, -TINY, 20.0, -20.0, 19.99],
])  # fmt: skip


@pytest.mark.parametrize(("name", "bound"), [("expm1", 4.5e-16), ("tanh", 1e-15)])
def test_expm1_and_tanh_are_correct(name: str, bound: float) -> None:
    (values,) = evaluate(name, REAL)
    with mpmath.workprec(1200):
        exact = [getattr(mpmath, name)(mpmath.mpf(float(x))) for x in REAL]
        off = [abs(mpmath.mpf(float(v)) / e - 1) for v, e in zip(values, exact, strict=True)]
    assert largest(off) <= bound


def test_expm1_and_tanh_special_values() -> None:
    arguments = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e308, -1e308, 710.0, -40.0])
    np.testing.assert_array_equal(evaluate("tanh", arguments)[0], np.tanh(arguments))
    expected = np.array([0.0, 0.0, np.inf, -1.0, np.nan, np.inf, -1.0, np.inf, -1.0])
    np.testing.assert_array_equal(evaluate("expm1", arguments)[0], expected)


def _near_multiples_of_quarter_turns() -> np.ndarray:
    k = np.random.default_rng(9).integers(1, 2**40, 500).astype(float)
    return np.concatenate([k * (np.pi / 2), np.nextafter(k * (np.pi / 2), np.inf), np.nextafter(k * (np.pi / 2), 0.0)])


RADIANS = np.concatenate([
    np.random.default_rng(10).uniform(-10.0, 10.0, 1500),
    np.random.default_rng(11).choice([-1, 1], 2500) * spread(1.0, 1.7e308, 2500, 12),
    spread(1e-320, 1.0, 500, 13),
    _near_multiples_of_quarter_turns(),
    # The double closest to a multiple of pi/2 (Kahan), and its neighbours in kind.
    [6381956970095103.0 * 2.0**797, 5.319372648326541e255, HUGE, -HUGE, 1e22, 2.0**1023, 0.0, -0.0, SMALLEST, TINY],
])  # fmt: skip


def test_sin_and_cos_are_correct_to_5e_16_for_every_finite_argument() -> None:
    sines, cosines = evaluate("sincos", RADIANS)
    with mpmath.workprec(1300):
        for values, function in ((sines, mpmath.sin), (cosines, mpmath.cos)):
            off = [abs(mpmath.mpf(float(v)) - function(mpmath.mpf(float(x)))) for x, v in zip(RADIANS, values, strict=True)]
            assert largest(off) <= 5e-16


TURNS = np.concatenate([
    np.random.default_rng(14).uniform(-2.0, 2.0, 2000),
    np.random.default_rng(15).uniform(-(2.0**47), 2.0**47, 1000),
    np.arange(-16, 17) / 8.0,
    (np.arange(64) + 0.5) / 2.0**32,
    1.0 - (np.arange(64) + 0.5) / 2.0**32,
])  # fmt: skip


def test_sin_and_cos_of_turns_are_correct_to_5e_16() -> None:
    sines, cosines = evaluate("sincos_turns", TURNS)
    with mpmath.workprec(200):
        for values, function in ((sines, mpmath.sinpi), (cosines, mpmath.cospi)):
            off = [
                abs(mpmath.mpf(float(v)) - function(2 * mpmath.mpf(float(u)))) for u, v in zip(TURNS, values, strict=True)
            ]
            assert largest(off) <= 5e-16


def test_quarter_turns_are_exact() -> None:
    sines, cosines = evaluate("sincos_turns", np.arange(-8, 9) / 4.0)
    np.testing.assert_array_equal(sines, np.array([0, 1, 0, -1])[np.arange(-8, 9) % 4])
    np.testing.assert_array_equal(cosines, np.array([1, 0, -1, 0])[np.arange(-8, 9) % 4])


def test_exp_special_values() -> None:
    arguments = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 710.0, 1e308, -746.0, -1e308, 709.79])
    expected = np.array([1.0, 1.0, np.inf, 0.0, np.nan, np.inf, np.inf, 0.0, 0.0, np.inf])
    np.testing.assert_array_equal(evaluate("exp", arguments)[0], expected)


def test_log_special_values() -> None:
    arguments = np.array([1.0, 0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, -SMALLEST])
    expected = np.array([0.0, -np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(evaluate("log", arguments)[0], expected)


def test_sincos_special_values() -> None:
    sines, cosines = evaluate("sincos", np.array([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(sines, [0.0, 0.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(cosines, [1.0, 1.0, np.nan, np.nan, np.nan])


def test_from_bits_inverts_to_bits() -> None:
    @numba.njit(**FLAGS_HERE)
    def there_and_back(x, out):
        for i in range(x.size):
            out[i] = elementary.from_bits(elementary.to_bits(x[i]))

    x = np.array([0.0, -1.5, 1e308, SMALLEST, np.inf])
    out = np.empty_like(x)
    there_and_back(x, out)
    np.testing.assert_array_equal(out.view(np.uint64), x.view(np.uint64))


def in_place(function):
    """One block, where input and output cannot overlap by half: no scalar fallback is needed."""

    def loop(x):
        for lane in range(LANES):
            x[lane] = function(x[lane])

    return numba.njit("void(f8[::1])", **FLAGS_HERE)(loop)


@numba.njit(**{**FLAGS_HERE, "forceinline": True})
def sine_plus_cosine(u):
    s, c = elementary.sincos_turns(u)
    return s + c


@pytest.mark.parametrize(
    "function",
    [
        elementary.exp,
        elementary.exp2_weight,
        elementary.log,
        elementary.log_normal,
        elementary.expm1,
        elementary.tanh,
        sine_plus_cosine,
    ],
    ids=["exp", "exp_weight", "log", "log_normal", "expm1", "tanh", "sincos_turns"],
)
def test_the_lane_loop_is_vectorised(function) -> None:
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        pytest.skip("the assembly of this test is that of x86-64")
    (asm,) = in_place(function).inspect_asm().values()
    assert len(re.findall(r"\bv?(?:mul|fn?m(?:add|sub)\d*)pd\b", asm)) >= 8
    assert len(re.findall(r"\bv?(?:mul|fn?m(?:add|sub)\d*)sd\b", asm)) == 0
