"""The cases: exact values against reference numbers, measurements within their errors, and cases that must fail."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from truths import PUBLISHED

import thermodiff as td
from thermodiff.cases import CASES, DiffusionCase, LangevinCase, forms
from thermodiff.cases import langevin as systems
from thermodiff.cases.base import mean_of, variance_of
from thermodiff.integrate.path import Path as States

NAMES = td.cases.names()
STOCHASTIC = [case.name for case in CASES if case.stochastic]
SIMULATED = [case for case in CASES if isinstance(case, LangevinCase)]
# Cases whose drift is linear and whose quantity is quadratic: the mean of the scheme itself is known.
QUADRATIC = [case for case in SIMULATED if case.name not in {"dragged-trap-variance", "fluctuation-theorem", "double-well"}]
# Computed with mpmath to 12 digits and cross-checked by independent integration.
REFERENCE = {
    "gaussian-vp": 1.44278817658,
    "gaussian-vpx": 122.854648533,
    "gaussian-straight-line": 122.890562088,
    "gaussian-3d": 1.60733308342,
    "bimodal-vp": 0.570159781595,
    "bimodal-straight-line": 81.7245747006,
    "bimodal-vpx": 99.1801914336,
    "log-likelihood": -0.916616976408,
    "log-likelihood-valley": -4.59137549492,
    "dragged-trap": 14.3850128458,
    "dragged-trap-variance": 28.7700256917,
    "fluctuation-theorem": 1.0,
    "breathing-trap-work": 0.412465798535,
    "breathing-trap-entropy": 0.057237287856,
    "rotation-steady": 0.98,
    "gyrator-entropy": 0.072,
    "gyrator-heat": 0.12,
    "ou-covariance": -0.833333333333,
}


# Names


def test_names_are_unique_and_found():
    assert len(set(NAMES)) == len(CASES) >= 12
    assert [td.cases.get(name) for name in NAMES] == list(CASES)


def test_an_unknown_name():
    with pytest.raises(KeyError, match="there is no case 'nonsense'; choose among gaussian-vp, "):
        td.cases.get("nonsense")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_case_says(case):
    assert case.statement.endswith(".")
    assert case.source
    assert case.method.startswith("td.")
    assert np.isfinite(case.exact)


# Exact values


@pytest.mark.parametrize("name", REFERENCE)
def test_exact_values(name):
    assert td.cases.get(name).exact == pytest.approx(REFERENCE[name], rel=1e-11, abs=1e-9)


def test_breathing_trap():
    assert forms.breathing_variance(1.0) == pytest.approx(0.598889043819, abs=1e-11)
    assert forms.gaussian_kl(0.0, forms.breathing_variance(1.0), 0.5) == pytest.approx(0.00865492039881, abs=1e-12)


def test_gyrator_covariance():
    expected = [[4.0 / 3.0, -5.0 / 6.0], [-5.0 / 6.0, 17.0 / 6.0]]
    np.testing.assert_allclose(forms.gyrator_covariance(1.0, 0.4, 1.0, 2.5), expected, rtol=1e-13)


def test_rotation_relaxation_starts_with_the_known_rates():
    # From N(0, 2 I) with D = 0.5, k = 1, g = 0.7: excess 4.5 and housekeeping 3.92 per unit time.
    h = 1e-6
    assert forms.rotation_relaxation(1.0, 0.7, 0.5, 2.0, h) / h == pytest.approx(4.5 + 3.92, rel=1e-5)
    late = [forms.rotation_relaxation(1.0, 0.7, 0.5, 2.0, t) for t in (30.0, 31.0)]
    assert late[1] - late[0] == pytest.approx(0.98, rel=1e-10)


def test_paper_mixture():
    kl = forms.mixture_relaxation(*mixture_columns("paper-mixture"), 1.0, 0.0)
    assert kl == pytest.approx(PUBLISHED[3][2], abs=6e-6)
    # KL(p_T || p_eq) to second order in alpha^2 is 3.0e-4.
    assert kl - td.cases.get("paper-mixture").exact == pytest.approx(3.0e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["bimodal-vp", "bimodal-vpx", "paper-mixture"])
def test_the_trapezoid_rule_has_converged(name):
    weights, means, stds = mixture_columns(name)
    values = [forms.mixture_entropy(weights, means, stds, step) for step in (0.25, 0.2)]
    assert values[0] == pytest.approx(values[1], abs=1e-10)


def mixture_columns(name):
    part = td.cases.get(name).law.parts()
    return part.weights, part.means, np.sqrt(part.variances[:, 0])


def test_double_well_moment_by_another_rule():
    # The trapezoid rule converges geometrically for an entire integrand that vanishes at both ends.
    x = np.linspace(-6.0, 6.0, 2001)
    density = np.exp(-(0.25 * x**4 - 0.5 * x**2) / 0.25)
    assert td.cases.get("double-well").exact == pytest.approx((x**2 @ density) / density.sum(), abs=1e-12)


# Measurements


@pytest.mark.parametrize("name", NAMES)
def test_measured_within_four_errors(name):
    case = td.cases.get(name)
    measured = case.measure(rng=11, size=max(case.size // 10, 5000) if case.stochastic else None)
    assert 0.0 < measured.error < 0.3 * abs(case.exact)
    assert abs(case.z(measured)) < 4.0


def test_the_same_seed_gives_the_same_bits():
    case = td.cases.get("rotation-relaxation")
    one, two, other = (case.measure(rng=seed, size=1000) for seed in (5, 5, 6))
    assert one == two != other


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_errors_are_honest(name):
    case = td.cases.get(name)
    z = np.array([case.z(case.measure(rng=seed)) for seed in range(30)])
    assert 0.75 <= np.sqrt(np.mean(z**2)) <= 1.25


def test_estimates():
    values = np.random.default_rng(0).gamma(2.0, size=200_000)
    mean, variance = mean_of(values), variance_of(values)
    assert mean.error == pytest.approx(np.sqrt(2.0 / 200_000), rel=0.02)
    # The fourth central moment of Gamma(2) is 24, its variance 2.
    assert variance.error == pytest.approx(np.sqrt((24.0 - 4.0) / 200_000), rel=0.05)
    assert abs(mean.value - 2.0) < 4.0 * mean.error
    assert abs(variance.value - 2.0) < 4.0 * variance.error


# The bias of the steps


def heun_means(case, drift, dt):
    """E values(path) of Heun's rule with the midpoint heat, without sampling, for f = A(t) x + b(t).

    The first two moments of x, and the mean heat, are carried exactly; the values at the ends are taken at points with
    the same two moments.
    """
    process, steps = case.process, int(np.ceil(case.horizon / dt - 1e-9))
    h, dim = case.horizon / steps, case.process.dim
    noise = np.diag(2.0 * np.broadcast_to(process.diffusivity, (dim,)) * h)
    start = case.start(400_000, np.random.default_rng(0))
    mean, second = np.zeros(dim), exact_start(case)
    np.testing.assert_allclose(start.T @ start / len(start), second, atol=0.03)
    first, heat = second, 0.0
    for j in range(steps):
        (a, b), (middle, force), (a2, b2) = (drift((j + part) * h) for part in (0.0, 0.5, 1.0))
        step = np.eye(dim) + 0.5 * h * (a + a2 + h * a2 @ a)
        shift = 0.5 * h * (b + b2 + h * a2 @ b)
        kick = np.eye(dim) + 0.5 * h * a2
        cross = step @ second + np.outer(shift, mean)
        after = cross @ step.T + np.outer(step @ mean + shift, shift) + kick @ noise @ kick.T
        moved = step @ mean + shift
        heat += 0.5 * np.trace(middle @ (cross.T - second + after - cross)) + force @ (moved - mean)
        mean, second = moved, after
    ends = [moment_points(np.zeros(dim), first), moment_points(mean, second - np.outer(mean, mean))]
    path = States(
        times=np.array([0.0, case.horizon]), lam=None, states=np.stack(ends), key=None, denoised=False,
        heat=np.full((2, 2 * dim), heat),
    )  # fmt: skip
    return float(np.mean(case.values(path)))


def exact_start(case):
    """Covariance at t = 0; all starts have mean zero."""
    covariance = forms.gyrator_covariance(systems.KG, systems.C, systems.T1, systems.T2)
    return {
        systems._dragged_start: np.eye(1) * systems.D / systems.K,
        systems._breathing_start: np.eye(1),
        systems._rotation_start: np.eye(2) * systems.D / systems.KR,
        systems._wide_start: np.eye(2) * systems.WIDE,
        systems._reduced_start: covariance / np.sqrt(np.outer(systems.TEMPERATURES, systems.TEMPERATURES)),
        systems._origin: np.zeros((2, 2)),
    }[case.start]


def moment_points(mean, covariance):
    """2 d points with this mean and covariance."""
    level, axes = np.linalg.eigh(covariance)
    offsets = np.sqrt(len(mean) * np.maximum(level, 0.0)) * axes
    return np.concatenate([mean + offsets.T, mean - offsets.T])


def linear_form(process):
    """t -> (A, b), read off the plain drift."""
    dim, numbers = process.dim, process.params.tolist()

    def at(t):
        value = lambda x: np.array(process.drift(tuple(x), t, *numbers), dtype=float)  # noqa: E731
        b = value(np.zeros(dim))
        return np.stack([value(row) - b for row in np.eye(dim)], axis=1), b

    return at


@pytest.mark.parametrize("case", QUADRATIC, ids=lambda case: case.name)
def test_the_bias_of_a_step_is_far_below_the_error(case):
    drift = linear_form(case.process)
    biases = [heun_means(case, drift, case.dt * factor) - case.exact for factor in (1.0, 2.0)]
    error = case.measure(rng=0, size=5000).error * np.sqrt(5000 / case.size)
    assert abs(biases[0]) < 0.1 * error
    assert biases[1] / biases[0] == pytest.approx(2.0**case.order, rel=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the step:RuntimeWarning")
@pytest.mark.parametrize("name", ["dragged-trap-variance", "fluctuation-theorem", "double-well"])
def test_the_bias_of_other_cases(name):
    case = td.cases.get(name)
    coarse = replace(case, dt=4.0 * case.dt, size=10 * case.size).measure(rng=1)
    # A bias of second order is 16 times smaller at the step of the case.
    assert (abs(coarse.value - case.exact) + 2.0 * coarse.error) / 16.0 < 0.1 * case.measure(rng=2).error


def test_more_paths_take_shorter_steps():
    case = td.cases.get("dragged-trap")
    assert case.step(case.size) == case.step(100) == case.dt
    assert case.step(16 * case.size) == pytest.approx(case.dt / 2.0)
    case = td.cases.get("rotation-steady")
    assert case.step(16 * case.size) == pytest.approx(case.dt / 4.0)


# Sabotage: what is wrong must be seen


@td.drift
def slightly_stiff(x, t, k, u):
    return (-1.02 * k * (x[0] - u * t),)


@td.drift
def static(x, t):
    return (-x[0],)


@td.potential
def softer(x, t):
    return 0.24 * x[0] ** 4 - 0.5 * x[0] ** 2


@td.drift
def one_way(x, t, k, g):
    return -k * x[0] - g * x[1], -k * x[1]


WRONG = [
    ("dragged-trap", {"process": td.Langevin(slightly_stiff, params=(2.0, 3.0), diffusivity=0.5, dim=1)}),
    ("dragged-trap-variance", {"process": td.Langevin(systems.dragged, params=(2.0, 3.0), diffusivity=0.55, dim=1)}),
    ("fluctuation-theorem", {"process": td.Langevin(systems.dragged, params=(2.0, 3.0), diffusivity=0.6, dim=1)}),
    ("breathing-trap-work", {"process": td.Langevin(static, diffusivity=1.0, dim=1)}),
    ("breathing-trap-entropy", {"process": td.Langevin(static, diffusivity=1.0, dim=1)}),
    ("rotation-steady", {"process": td.Langevin(one_way, params=(1.0, 0.7), diffusivity=0.5, dim=2)}),
    ("rotation-relaxation", {"process": systems.ROTATION.with_params(1.0, 0.65)}),
    ("gyrator-entropy", {"process": systems.REDUCED.with_params(1.0, 0.4, 0.4)}),
    ("gyrator-heat", {"process": systems.REDUCED.with_params(1.0, 0.4, 0.4)}),
    ("ou-covariance", {"process": systems.GYRATOR.with_params(1.0, 0.42, 0.42)}),
    ("double-well", {"process": td.Langevin(softer, diffusivity=0.25, dim=1)}),
    ("gaussian-vp", {"law": td.Gaussian([1.5], std=0.501)}),
    ("gaussian-straight-line", {"noise": td.StraightLine(scale=0.1001)}),
    ("bimodal-vp", {"law": td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.51], weights=[0.4, 0.6])}),
    ("log-likelihood", {"law": td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.50001], weights=[0.4, 0.6])}),
    ("paper-mixture", {"noise": td.VP(scale=1.01)}),
]


@pytest.mark.parametrize(("name", "changed"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_sabotage_is_seen(name, changed):
    case = replace(td.cases.get(name), **changed)
    assert abs(case.z(case.measure(rng=3, size=max(1, case.size // 2)))) > 4.0


# Data


def test_draws_of_a_diffusion():
    case = td.cases.get("gaussian-3d")
    assert isinstance(case, DiffusionCase)
    x = case.data(20_000, rng=0)
    assert x.shape == (20_000, 3)
    np.testing.assert_allclose(np.cov(x.T), case.law.covariance(), atol=0.08)
    np.testing.assert_array_equal(x, case.data(20_000, rng=0))


def test_trajectories():
    case = td.cases.get("dragged-trap")
    data = case.data(4000, rng=0, frames=16)
    assert data.states.shape == (4000, 16, 1)
    assert data.dt == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(data.times), data.dt)
    np.testing.assert_array_equal(data.diffusivity, [0.5])
    expected = [forms.dragged_mean(2.0, 3.0, t) for t in data.times]
    np.testing.assert_allclose(data.states[:, :, 0].mean(axis=0), expected, atol=4.0 * np.sqrt(0.25 / 4000))


def test_trajectories_have_one_diffusivity_per_coordinate():
    np.testing.assert_array_equal(td.cases.get("ou-covariance").data(2, rng=0, frames=2).diffusivity, [1.0, 2.5])
    np.testing.assert_array_equal(td.cases.get("rotation-steady").data(2, rng=0, frames=2).diffusivity, [0.5, 0.5])


def test_an_estimator_of_the_entropy_finds_it_in_the_data():
    # The steady rate from trajectories alone: the rotating part of the drift by least squares, 2 g^2 / k.
    case = td.cases.get("rotation-steady")
    data = case.data(5000, rng=1, frames=201)
    x, moved = data.states[:, :-1].reshape(-1, 2), np.diff(data.states, axis=1).reshape(-1, 2) / data.dt
    slope = np.linalg.lstsq(x, moved, rcond=None)[0].T
    g, k = 0.5 * (slope[1, 0] - slope[0, 1]), -0.5 * np.trace(slope)
    assert 2.0 * g * g / k == pytest.approx(case.exact, rel=0.1)


def test_the_page_lists_every_case_and_its_program_runs():
    page = (Path(__file__).parent.parent / "docs" / "cases.md").read_text()
    for case in CASES:
        assert f"| `{case.name}` | {case.exact:.10g}" in page
        assert case.statement in page
        assert case.source in page
    program = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.group(1), "cases.md", "exec"), {"__name__": "program"})
    texts, number = (printed.getvalue(), program.group(2)), r"[-+]?\d[\d.]*\d|\d"
    words = [re.sub(number, "#", text).split() for text in texts]
    assert words[0] == words[1]
    numbers = [[float(found) for found in re.findall(number, text)] for text in texts]
    assert numbers[0] == pytest.approx(numbers[1], rel=2e-3)


@pytest.mark.parametrize("size", [0, 1, 2.5])
def test_sizes_that_cannot_be(size):
    with pytest.raises((TypeError, ValueError), match="size"):
        td.cases.get("dragged-trap").measure(rng=0, size=size)


def test_scaled():
    case = td.cases.get("dragged-trap")
    assert (case.scaled(0.5), case.scaled(1e-9)) == (case.size // 2, 2)
    with pytest.raises(ValueError, match="scale must be positive"):
        case.scaled(0.0)
