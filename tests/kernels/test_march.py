"""Order of the step rules, on the linear dynamics of a Gaussian, where everything is known in closed form."""

import numpy as np
import pytest
from packed_laws import LAWS, isotropic
from truths import flow_position

from thermodiff.kernels import march, philox
from thermodiff.kernels.jit import LANES
from thermodiff.schedules import VP

LAW = isotropic([1.0], [[1.5]], [0.5])
NOISE = VP()
LOW, HIGH = -4.0, 4.0
KEY = np.array([5, 6], dtype=np.uint32)
RULES = {"euler": march.EULER, "heun": march.HEUN, "rk4": march.RK4}


def edges(steps: int) -> np.ndarray:
    return np.linspace(LOW, HIGH, steps + 1)


def rows(lam: np.ndarray, noise: float) -> np.ndarray:
    """(alpha, sigma^2, a, c) at the beginning, middle and end of each step: flow (noise 0) or reverse process (1)."""
    h = np.diff(lam)
    stages = [NOISE.at(lam[:-1] + share * h) for share in (0.0, 0.5, 1.0)]
    return np.stack([
        np.stack([row.alpha, row.sigma**2, row.growth, 0.5 * (1.0 + noise) * row.sigma**2], axis=-1) for row in stages
    ], axis=1)  # fmt: skip


def run(rule: str, lam: np.ndarray, start: np.ndarray, amplitudes: np.ndarray, noise: float, law=LAW, blocks: int = 1):
    """The state after the last step; start is (d, n)."""
    states = np.empty((2, *start.shape))
    states[0] = start
    slots = np.full(lam.size - 1, -1)
    slots[-1] = 1
    march.march(
        law.score, law.params, KEY, RULES[rule], 0, blocks, rows(lam, noise), np.diff(lam), amplitudes, slots, states
    )
    return states[1]


def kernel_of(lam: float) -> tuple[float, float]:
    row = NOISE.at(lam)
    return float(row.alpha), float(row.sigma)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence_of_the_flow(rule: str, order: int) -> None:
    start = np.linspace(-3.0, 3.0, LANES)[None, :]
    exact = flow_position(start, 1.5, 0.5, kernel_of(LOW), kernel_of(HIGH))
    errors = [np.abs(run(rule, edges(steps), start, np.zeros(steps), 0.0) - exact).max() for steps in (16, 32, 64, 128, 256)]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert abs(slopes[-1] - order) < 0.05
    assert np.all(np.abs(slopes[1:] - order) < 0.35)


def variance_of_the_scheme(rule: str, steps: int) -> float:
    """Exact variance that the kernel's own steps give: the law is Gaussian, so the map is affine in start and noise.

    The response to the start and to the noise of each step is read off by switching on one at a time.
    """
    lam = edges(steps)
    h = np.diff(lam)
    amplitude = NOISE.at(lam[:-1] + 0.5 * h).sigma * np.sqrt(h)
    zero = np.zeros((1, LANES))
    base = run(rule, lam, zero, np.zeros(steps), 1.0)[0, 0]
    slope = run(rule, lam, zero + 1.0, np.zeros(steps), 1.0)[0, 0] - base
    alpha, sigma = kernel_of(LOW)
    variance = slope**2 * (alpha**2 * 0.25 + sigma**2)
    for step in range(steps):
        only = np.zeros(steps)
        only[step] = amplitude[step]
        kick = np.empty((1, LANES))
        philox.noise(KEY, 0, 1, step, philox.PATH, kick)
        lane = np.argmax(np.abs(kick[0]))
        variance += ((run(rule, lam, zero, only, 1.0)[0, lane] - base) / kick[0, lane]) ** 2
    return float(variance)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("heun", 2)])
def test_weak_order_of_the_reverse_process(rule: str, order: int) -> None:
    alpha, sigma = kernel_of(HIGH)
    exact = alpha**2 * 0.25 + sigma**2
    errors = np.array([abs(variance_of_the_scheme(rule, steps) - exact) for steps in (32, 64, 128, 256)])
    slopes = np.log2(errors[:-1] / errors[1:])
    assert abs(slopes[-1] - order) < 0.1


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_paths_have_the_variance_of_the_scheme(rule: str) -> None:
    """All noises at once: the kernel draws an independent normal for every path and step."""
    steps, blocks = 16, 400
    lam = edges(steps)
    h = np.diff(lam)
    amplitude = NOISE.at(lam[:-1] + 0.5 * h).sigma * np.sqrt(h)
    alpha, sigma = kernel_of(LOW)
    start = 1.5 * alpha + np.sqrt(alpha**2 * 0.25 + sigma**2) * np.random.default_rng(0).standard_normal((1, blocks * LANES))
    final = run(rule, lam, start, amplitude, 1.0, blocks=blocks)[0]
    expected = variance_of_the_scheme(rule, steps)
    z = (final.var(ddof=1) / expected - 1.0) / np.sqrt(2.0 / final.size)
    assert abs(z) < 4.0


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_noise_comes_from_the_documented_counters(rule: str) -> None:
    """Without drift a step adds amplitude times the normal of (step, coordinate)."""
    law = LAWS["isotropic, three components, d = 3"]
    steps, blocks = 5, 2
    nothing = np.zeros((steps, 3, 4))
    nothing[:, :, 1] = 1.0
    states = np.zeros((2, 3, blocks * LANES))
    slots = np.array([-1, -1, -1, -1, 1])
    amplitudes = np.array([1.0, 0.5, 0.0, 2.0, 0.25])
    march.march(law.score, law.params, KEY, RULES[rule], 0, blocks, nothing, np.ones(steps), amplitudes, slots, states)
    expected, normal = np.zeros((3, blocks * LANES)), np.empty((3, blocks * LANES))
    for step in range(steps):
        philox.noise(KEY, 0, blocks, step, philox.PATH, normal)
        expected += amplitudes[step] * normal
    np.testing.assert_allclose(states[1], expected, rtol=0.0, atol=1e-14)


def test_states_are_kept_in_their_slots() -> None:
    lam, start = edges(12), np.linspace(-1.0, 1.0, LANES)[None, :]
    states = np.empty((4, 1, LANES))
    states[0] = start
    slots = np.full(12, -1)
    slots[[3, 7, 11]] = [1, 2, 3]
    march.march(LAW.score, LAW.params, KEY, march.RK4, 0, 1, rows(lam, 0.0), np.diff(lam), np.zeros(12), slots, states)
    np.testing.assert_array_equal(states[0], start)
    for slot, steps in ((1, 4), (2, 8), (3, 12)):
        np.testing.assert_array_equal(states[slot], run("rk4", lam[: steps + 1], start, np.zeros(steps), 0.0))


def test_one_compilation_serves_every_law_and_schedule() -> None:
    start = np.zeros((3, LANES))
    for name in ("isotropic, three components, d = 3", "cloud, 65 points, d = 3"):
        run("heun", edges(4), start, np.ones(4), 1.0, law=LAWS[name])
    assert len(march.march.dispatcher.signatures) == 1


def test_apply_evaluates_the_field_at_every_point() -> None:
    law = LAWS["full, two components, d = 2"]
    x = np.random.default_rng(1).normal(size=(2, 3 * LANES))
    out, block = np.empty((3, 3 * LANES)), np.empty((3, LANES))
    row = np.array([0.7, 0.4, 0.1, 1.0])
    march.apply(law.score, law.params, row, x, out)
    for k in range(3):
        law.score(np.ascontiguousarray(x[:, k * LANES : (k + 1) * LANES]), row, law.params, block)
        np.testing.assert_array_equal(out[:, k * LANES : (k + 1) * LANES], block)
