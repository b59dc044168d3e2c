"""The Langevin integrator: each rule against NumPy, orders of convergence, stationary laws, walls, heat."""

from functools import cache

import numpy as np
import pytest
from scipy import integrate, stats

import thermodiff as td
from thermodiff.kernels import langevin, philox
from thermodiff.kernels.jit import LANES

KEY = np.array([11, 12], dtype=np.uint32)
RULES = {
    "euler": langevin.EULER, "heun": langevin.HEUN, "milstein": langevin.MILSTEIN, "weak2": langevin.WEAK2,
    "rk4": langevin.RK4,
}  # fmt: skip


def run(process, rule: str, start: np.ndarray, times, counts, heat=False, work=False, first: int = 0, step: int = 0):
    """States (T, d, n), and heats and works (T, n) where asked for."""
    times, counts = np.asarray(times, dtype=float), np.asarray(counts)
    blocks, states = start.shape[1] // LANES, np.empty((times.size, *start.shape))
    states[0] = start
    heats, works = (np.zeros((times.size, start.shape[1]) if kept else (0, 0)) for kept in (heat, work))
    widths, made = np.diff(times) / counts, process.compiled()
    kind = langevin.NONE if process.noiseless else langevin.STATE if process.state_dependent else langevin.ADDITIVE
    middles = np.concatenate([t + h * (np.arange(n) + 0.5) for t, h, n in zip(times[:-1], widths, counts, strict=True)])
    langevin.langevin(
        made.field, made.params, process.energy() if work else made.field, made.noise, made.noise_params, kind,
        process.mix(middles), made.twist, KEY, RULES[rule], first, first + blocks, step, times[:-1].copy(), widths,
        np.zeros_like(counts), counts, times[1:].copy(), made.walls, states, heats, works,
    )  # fmt: skip
    return tuple(x for x, kept in ((states, True), (heats, heat), (works, work)) if kept) if heat or work else states


def normals(dim: int, n: int, steps: int, first: int = 0) -> np.ndarray:
    """(steps, d, n): the documented normals of path noise."""
    out = np.empty((steps, dim, n))
    for step in range(steps):
        philox.noise(KEY, first, first + n // LANES, step, philox.PATH, out[step])
    return out


def starts(dim: int, blocks: int = 1) -> np.ndarray:
    return np.random.default_rng(dim).standard_normal((dim, blocks * LANES))


@td.drift
def pulled(x, t, k):
    return -k * x[0] ** 3 + 0.5 * x[1] + np.cos(t), -x[1] + np.sin(x[0]) * t


def pulled_by_numpy(x: np.ndarray, t: float) -> np.ndarray:
    return np.stack([-0.3 * x[0] ** 3 + 0.5 * x[1] + np.cos(t), -x[1] + np.sin(x[0]) * t])


@td.diffusivity
def varied(x, t, level):
    return level + 0.5 * np.sin(x[0]) + 0.1 * t, 0.2 + x[1] ** 2


def varied_by_numpy(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """D and dD_i/dx_i."""
    return np.stack([1.0 + 0.5 * np.sin(x[0]) + 0.1 * t, 0.2 + x[1] ** 2]), np.stack([0.5 * np.cos(x[0]), 2.0 * x[1]])


def step_by_numpy(rule: str, x: np.ndarray, t: float, h: float, z: np.ndarray, twist: float) -> np.ndarray:
    """One step for noise that depends on the state, from the formulas of Kloeden and Platen."""
    level, slope = varied_by_numpy(x, t)
    b, dw = np.sqrt(2.0 * level), np.sqrt(h) * z
    a = pulled_by_numpy(x, t) + twist * slope
    if rule == "euler":
        return x + a * h + b * dw
    if rule == "milstein":
        b_slope = slope / b
        return x + a * h + b * dw + 0.5 * b * b_slope * (dw**2 - h)

    def ito(y: np.ndarray, share: float) -> np.ndarray:
        return pulled_by_numpy(y, t + h) + share * varied_by_numpy(y, t + h)[1]

    def noise(y: np.ndarray) -> np.ndarray:
        return np.sqrt(2.0 * varied_by_numpy(y, t + h)[0])

    if rule == "heun":
        a = pulled_by_numpy(x, t) + (twist - 0.5) * slope
        y = x + a * h + b * dw
        return x + 0.5 * (a + ito(y, twist - 0.5)) * h + 0.5 * (b + noise(y)) * dw
    y, above, below = x + a * h + b * dw, x + a * h + b * np.sqrt(h), x + a * h - b * np.sqrt(h)
    up, down = noise(above), noise(below)
    return (
        x + 0.5 * (a + ito(y, twist)) * h + 0.25 * (up + down + 2.0 * b) * dw
        + 0.25 * (up - down) * (dw**2 - h) / np.sqrt(h)
    )  # fmt: skip


@pytest.mark.parametrize("meaning", ["ito", "stratonovich", "isothermal"])
@pytest.mark.parametrize("rule", ["euler", "heun", "milstein", "weak2"])
def test_steps_with_noise_that_depends_on_the_state(rule: str, meaning: str) -> None:
    process = td.Langevin(pulled, (0.3,), varied, diffusivity_params=(1.0,), dim=2, interpretation=meaning)
    x, twist = starts(2, 2), {"ito": 0.0, "stratonovich": 0.5, "isothermal": 1.0}[meaning]
    found = run(process, rule, x, [0.5, 0.8, 1.0], [3, 1], first=5)
    z, widths, t = normals(2, 2 * LANES, 4, first=5), (0.1, 0.1, 0.1, 0.2), 0.5
    for k, h in enumerate(widths):
        x = step_by_numpy(rule, x, t, h, z[k], twist)
        t += h
        if k == 2:
            np.testing.assert_allclose(found[1], x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found[2], x, rtol=1e-12, atol=1e-13)


MATRIX = np.array([[1.0, 0.6], [0.6, 0.5]])


@pytest.mark.parametrize("rule", ["euler", "heun"])
@pytest.mark.parametrize("level", [0.7, [0.3, 0.8], MATRIX], ids=["number", "diagonal", "matrix"])
def test_steps_with_additive_noise(rule: str, level) -> None:
    process = td.Langevin(pulled, (0.3,), level, dim=2)
    mixing = process.mix(np.zeros(1))[0]
    full = np.diag(mixing[:, 0]) if mixing.shape[1] == 1 else mixing
    np.testing.assert_allclose(
        full @ full.T, 2.0 * np.diag(np.broadcast_to(level, 2)) if np.ndim(level) < 2 else 2.0 * MATRIX
    )
    x, z, t, h = starts(2), normals(2, LANES, 3), 0.5, 0.1
    found = run(process, rule, x, [0.5, 0.8], [3])[1]
    for k in range(3):
        kick, a = np.sqrt(h) * full @ z[k], pulled_by_numpy(x, t)
        second = pulled_by_numpy(x + h * a + kick, t + h) if rule == "heun" else a
        x, t = x + 0.5 * h * (a + second) + kick, t + h
    np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-13)


def test_a_run_can_be_taken_up_at_any_step() -> None:
    process = td.Langevin(pulled, (0.3,), 0.5, dim=2)
    whole = run(process, "heun", starts(2), [0.0, 0.5, 1.25], [5, 6])
    second = run(process, "heun", whole[1], [0.5, 1.25], [6], step=5)
    np.testing.assert_array_equal(second[1], whole[2])


def slope_of(errors: np.ndarray) -> float:
    """Order from errors at doubled numbers of steps."""
    return float(-np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0])


@td.drift
def growth(x, t, a):
    return (a * x[0],)


@td.diffusivity
def geometric(x, t, s):
    return (0.5 * s * s * x[0] * x[0],)


A, S = 0.4, 0.6


@cache
def geometric_process(meaning: str = "ito"):
    """dx = A x dt + S x dW."""
    return td.Langevin(growth, (A,), geometric, diffusivity_params=(S,), dim=1, interpretation=meaning)


@pytest.mark.parametrize(("rule", "order"), [("euler", 0.5), ("milstein", 1.0), ("heun", 1.0), ("weak2", 1.0)])
@pytest.mark.parametrize(("meaning", "shift"), [("ito", -0.5), ("stratonovich", 0.0), ("isothermal", 0.5)])
def test_strong_order(rule: str, order: float, meaning: str, shift: float) -> None:
    """On geometric Brownian motion, driven by the very normals of the run."""
    n, errors = 40 * LANES, []
    for steps in (16, 32, 64, 128, 256):
        w = np.sqrt(1.0 / steps) * normals(1, n, steps)[:, 0].sum(axis=0)
        exact = np.exp((A + shift * S**2) + S * w)
        errors.append(
            np.abs(run(geometric_process(meaning), rule, np.ones((1, n)), [0.0, 1.0], [steps])[1, 0] - exact).mean()
        )
    assert abs(slope_of(np.array(errors)) - order) < 0.07


def moments_of_a_step(process: td.Langevin, rule: str, t: float, h: float) -> tuple[float, float]:
    """(E R, E R^2) of x -> R x for one step: R is a polynomial of second degree in the normal, read off from the kernel."""
    factor = run(process, rule, np.ones((1, LANES)), [t, t + h], [1])[1, 0]
    z = normals(1, LANES, 1)[0, 0]
    c, residual, _, _ = np.linalg.lstsq(np.stack([np.ones(LANES), z, z * z], axis=1), factor, rcond=None)
    assert residual[0] < 1e-26 * LANES
    return c[0] + c[2], c[0] ** 2 + c[1] ** 2 + 3.0 * c[2] ** 2 + 2.0 * c[0] * c[2]


@td.drift
def quickening(x, t, a):
    return (a * (1.0 + t) * x[0],)


@td.diffusivity
def rising(x, t, s):
    return (0.5 * s * s * (1.0 + t) * x[0] * x[0],)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("milstein", 1), ("heun", 1), ("weak2", 2)])
@pytest.mark.parametrize(("meaning", "shift"), [("ito", 0.0), ("stratonovich", 0.5), ("isothermal", 1.0)])
def test_weak_order(rule: str, order: int, meaning: str, shift: float) -> None:
    """Mean and second moment of dx = (1 + t) A x dt + sqrt(1 + t) S x dW on [0, 1], without any sampling error."""
    process = td.Langevin(quickening, (A,), rising, diffusivity_params=(S,), dim=1, interpretation=meaning)
    rate, errors = A + shift * S**2, []
    for steps in (32, 64, 128):
        moments = np.prod([moments_of_a_step(process, rule, k / steps, 1.0 / steps) for k in range(steps)], axis=0)
        errors.append(np.abs(moments - np.exp(1.5 * np.array([rate, 2.0 * rate + S**2]))))
    first, last = np.log2(np.array(errors[:-1]) / errors[1:])
    # Without the leading part of what the slopes still miss.
    assert np.abs(2.0 * last - first - order).max() < 0.01


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("heun", 2)])
def test_weak_order_with_additive_noise(rule: str, order: int) -> None:
    """Variance of an Ornstein-Uhlenbeck process from the recursion of the scheme, whose coefficients the kernel gives."""
    rate, level, before = 1.5, 0.8, 2.0
    process = td.Langevin(growth, (-rate,), level, dim=1)
    start = np.zeros((1, LANES))
    start[0, 128:] = 1.0
    z, errors = normals(1, LANES, 1)[0, 0], []
    for steps in (32, 64, 128, 256):
        after = run(process, rule, start, [0.0, 1.0 / steps], [1])[1, 0]
        kick, factor = np.linalg.lstsq(np.stack([z, start[0]], axis=1), after, rcond=None)[0]
        np.testing.assert_allclose(after, kick * z + factor * start[0], rtol=0.0, atol=1e-14)
        variance = before
        for _ in range(steps):
            variance = factor**2 * variance + kick**2
        errors.append(abs(variance - (level / rate + (before - level / rate) * np.exp(-2.0 * rate))))
    assert abs(np.log2(errors[-2] / errors[-1]) - order) < 0.05


def test_order_of_runge_kutta() -> None:
    @td.drift
    def logistic(x, t):
        return (x[0] * (1.0 - x[0]) * np.cos(t),)

    process = td.Langevin(logistic, (), 0.0, dim=1)
    start = np.linspace(0.1, 2.0, LANES)[None, :]
    exact = 1.0 / (1.0 + (1.0 / start - 1.0) * np.exp(-np.sin(2.0)))
    errors = [np.abs(run(process, "rk4", start, [0.0, 2.0], [steps])[1] - exact).max() for steps in (8, 16, 32, 64)]
    assert abs(np.log2(errors[-2] / errors[-1]) - 4.0) < 0.2
    assert errors[-1] < 1e-6


@td.drift
def relaxing(x, t):
    return (-(1.0 + 0.7 * np.sin(2.0 * x[0])) * x[0],)


@td.diffusivity
def wavy(x, t):
    return (1.0 + 0.7 * np.sin(2.0 * x[0]),)


@pytest.mark.parametrize(("meaning", "theta"), [("ito", 0.0), ("stratonovich", 0.5), ("isothermal", 1.0)])
@pytest.mark.parametrize("rule", ["weak2", "heun"])
def test_stationary_law_of_each_interpretation(rule: str, meaning: str, theta: float) -> None:
    """f = -D U' with U = x^2/2: density exp(-U) D^(theta - 1); isothermal gives Boltzmann's law."""
    n = 100 * LANES

    process = td.Langevin(relaxing, (), wavy, dim=1, interpretation=meaning)
    start = np.random.default_rng(0).standard_normal((1, n))
    final = run(process, rule, start, [0.0, 5.0], [500])[1, 0]
    edges = np.linspace(-3.0, 3.0, 25)

    def p_value(share: float) -> float:
        def weight(x: float) -> float:
            return float(np.exp(-0.5 * x * x) * (1.0 + 0.7 * np.sin(2.0 * x)) ** (share - 1.0))

        cells = [-9.0, *edges, 9.0]
        mass = np.array([integrate.quad(weight, low, high)[0] for low, high in zip(cells[:-1], cells[1:], strict=True)])
        found = np.histogram(final, cells)[0]
        return float(stats.chisquare(found, mass / mass.sum() * n).pvalue)

    assert p_value(theta) > 1e-4
    assert all(p_value(other) < 1e-20 for other in (0.0, 0.5, 1.0) if other != theta)


def test_covariance_of_a_full_matrix_of_noise() -> None:
    level = np.array([[1.0, 0.6, -0.2], [0.6, 0.5, 0.1], [-0.2, 0.1, 0.4]])
    n = 200 * LANES

    @td.drift
    def still(x, t):
        return 0.0, 0.0, 0.0

    final = run(td.Langevin(still, (), level, dim=3), "euler", np.zeros((3, n)), [0.0, 0.7], [4])[1]
    expected = 2.0 * level * 0.7
    deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / n)
    assert np.abs((final @ final.T / n - expected) / deviation).max() < 4.0


@td.drift
def resting(x, t):
    return (0.0,)


def test_diffusivity_that_depends_on_time() -> None:
    """D = 1 + 3 t: the middle of a step is exact for a linear D, and z-scores show it."""
    n = 200 * LANES
    process = td.Langevin(resting, (), lambda t: 1.0 + 3.0 * t, dim=1)
    states = run(process, "euler", np.zeros((1, n)), [0.0, 0.5, 1.0], [2, 3])
    for k, t in ((1, 0.5), (2, 1.0)):
        variance = 2.0 * (t + 1.5 * t * t)
        assert abs(states[k, 0].var() / variance - 1.0) < 4.0 * np.sqrt(2.0 / n)
    step = np.sqrt(2.0 * 1.375 * 0.25) * normals(1, n, 1)[0]
    np.testing.assert_allclose(run(process, "euler", np.zeros((1, n)), [0.0, 0.25], [1])[1], step, rtol=1e-14)


@pytest.mark.parametrize("kind", ["periodic", "reflecting"])
def test_walls_keep_a_uniform_law_uniform(kind: str) -> None:
    """Also steps much longer than the box; no point is ever outside."""
    low, high, n = -0.3, 0.8, 100 * LANES
    start = np.random.default_rng(3).uniform(low, high, (1, n))
    for level in (0.02, 50.0):
        process = td.Langevin(resting, (), level, dim=1, boundaries={0: (kind, low, high)})
        states = run(process, "euler", start, np.linspace(0.0, 1.0, 11), np.full(10, 2))
        assert states.min() >= low
        assert states.max() <= high
        counts = np.histogram(states[-1], np.linspace(low, high, 21))[0]
        assert counts.sum() == n
        assert stats.chisquare(counts).pvalue > 1e-4


def test_walls_fold_by_the_books() -> None:
    @td.drift
    def marching(x, t, speed):
        return speed, -speed, speed

    walls = {0: ("periodic", -1.0, 2.0), 2: ("reflecting", -1.0, 2.0)}
    start = np.tile(np.linspace(-1.0, 2.0, LANES), (3, 1))
    for speed in (0.7, -25.3, 3.0):
        process = td.Langevin(marching, (speed,), 0.0, dim=3, boundaries=walls)
        end = run(process, "euler", start, [0.0, 1.0], [1])[1]
        free = start[0] + speed
        np.testing.assert_allclose(np.exp(2j * np.pi * end[0] / 3.0), np.exp(2j * np.pi * free / 3.0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(end[1], start[1] - speed, rtol=1e-14)
        np.testing.assert_allclose(end[2], -1.0 + np.abs((free + 1.0 + 3.0) % 6.0 - 3.0), rtol=0.0, atol=1e-12)


def test_heat_of_a_resting_trap_is_the_energy_lost() -> None:
    """First law: for a quadratic energy the rule is exact, path by path, however large the step."""

    @td.potential
    def trap(x, t, k):
        return 0.5 * k * (x[0] ** 2 + 2.0 * (x[1] - x[0]) ** 2)

    x = starts(2, 2)
    states, heats = run(td.Langevin(trap, (1.5,), MATRIX, dim=2), "euler", x, [0.0, 0.4, 1.0], [4, 5], heat=True)
    energy = 0.75 * (states[:, 0] ** 2 + 2.0 * (states[:, 1] - states[:, 0]) ** 2)
    np.testing.assert_allclose(heats, energy[0] - energy, rtol=1e-12, atol=1e-12)


@td.potential
def shaken(x, t):
    """Anharmonic, and changing in shape and place."""
    return (1.0 + 0.5 * np.sin(2.0 * t)) * (0.25 * x[0] ** 4 - 0.5 * x[0] ** 2) + 0.5 * (x[1] - x[0] + t * t) ** 2


def shaken_by_numpy(x: np.ndarray, t: float) -> np.ndarray:
    return (1.0 + 0.5 * np.sin(2.0 * t)) * (0.25 * x[0] ** 4 - 0.5 * x[0] ** 2) + 0.5 * (x[1] - x[0] + t * t) ** 2


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_the_first_law_holds_to_second_order_along_each_path(rule: str) -> None:
    process, start, errors = td.Langevin(shaken, (), [0.5, 0.3], dim=2), starts(2, 20), []
    for steps in (32, 64, 128, 256):
        states, heats, works = run(process, rule, start, [0.2, 1.2], [steps], heat=True, work=True)
        gained = shaken_by_numpy(states[1], 1.2) - shaken_by_numpy(states[0], 0.2)
        errors.append(np.sqrt(np.mean((works[1] - heats[1] - gained) ** 2)))
    assert abs(slope_of(np.array(errors)) - 2.0) < 0.1
    assert errors[-1] < 1e-5


def test_no_work_is_done_by_an_energy_that_rests() -> None:
    @td.potential
    def resting_energy(x, t, a):
        return a * np.exp(x[0]) * np.cos(x[1]) + x[0] ** 4

    process = td.Langevin(resting_energy, (0.3,), MATRIX, dim=2)
    for rule in ("euler", "heun"):
        _, works = run(process, rule, starts(2), [0.0, 0.5], [20], work=True)
        assert np.all(works == 0.0)


@td.potential
def tilted(x, t, g):
    return g * t * x[0] + 0.3 * x[1]


def test_walls_that_reflect_take_no_heat() -> None:
    """Steps that often fold: what a path gains is still work less heat, to rounding where the energy is linear."""
    walls = {0: ("reflecting", -1.0, 0.5), 1: ("reflecting", -0.5, 1.0)}
    process = td.Langevin(tilted, (2.0,), 1.0, dim=2, boundaries=walls)
    start = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4 * LANES))
    states, heats, works = run(process, "euler", start, [0.5, 1.0, 2.5], [10, 30], heat=True, work=True)
    energy = 2.0 * np.array([0.5, 1.0, 2.5])[:, None] * states[:, 0] + 0.3 * states[:, 1]
    np.testing.assert_allclose(works - heats, energy - energy[0], rtol=0.0, atol=1e-13)


def test_heat_around_a_ring_is_not_cut_at_its_ends() -> None:
    """A constant force: heat is force times the unwrapped distance."""

    @td.drift
    def driven(x, t, force):
        return (force,)

    start = np.zeros((1, LANES))
    ring, line = (
        run(td.Langevin(driven, (2.0,), 0.5, dim=1, boundaries=walls), "euler", start, [0.0, 3.0], [30], heat=True)
        for walls in ({0: ("periodic", -1.0, 1.0)}, None)
    )
    np.testing.assert_allclose(ring[1][1], 2.0 * line[0][1, 0], rtol=1e-13)
    assert np.abs(ring[0]).max() <= 1.0


def test_heat_and_entropy_of_the_dragged_trap() -> None:
    """Mean heat D S_tot, and s_tot normal of variance 2 S_tot (k = 2, D = 1/2, u = 3, T = 3/2)."""
    k, level, u, end, total = 2.0, 0.5, 3.0, 1.5, 14.3850128458
    n = 200 * LANES

    @td.drift
    def dragged(x, t, k, u):
        return (-k * (x[0] - u * t),)

    start = np.sqrt(level / k) * np.random.default_rng(5).standard_normal((1, n))
    process = td.Langevin(dragged, (k, u), level, dim=1)
    states, heats = run(process, "heun", start, [0.0, end], [1000], heat=True)
    heat = heats[1]
    assert abs(heat.mean() - level * total) < 4.0 * heat.std() / np.sqrt(n)
    mean = u * end - u / k * (1.0 - np.exp(-k * end))
    entropy = heat / level + 0.5 * k / level * ((states[1, 0] - mean) ** 2 - start[0] ** 2)
    assert abs(entropy.mean() - total) < 4.0 * np.sqrt(2.0 * total / n)
    assert abs(entropy.var() / (2.0 * total) - 1.0) < 4.0 * np.sqrt(2.0 / n)


def test_the_affine_field() -> None:
    matrix, offset = np.array([[1.0, 0.0, -2.0], [0.5, 1.5, 0.0], [0.0, 0.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    x, out = starts(3), np.empty((3, LANES))
    langevin.affine(x, np.zeros(4), np.concatenate([matrix.ravel(), offset]), out)
    np.testing.assert_allclose(out, matrix @ x + offset[:, None], rtol=1e-13, atol=1e-14)


def test_one_compilation_serves_every_process() -> None:
    run(geometric_process(), "euler", np.ones((1, LANES)), [0.0, 1.0], [1])
    run(td.Langevin(pulled, (0.3,), 0.5, dim=2), "heun", starts(2), [0.0, 1.0], [1])
    assert len(langevin.langevin.dispatcher.signatures) == 1
