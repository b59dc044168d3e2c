"""Every schedule against its own SDE, integrated numerically, and against the definitions of lam and D."""

import inspect

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from truths import ALPHA_VP_END

from thermodiff.schedules import LAM_DATA, LAM_NOISE, SCHEDULES, VE, VP, CondOT, Cosine, Schedule, StraightLine, SubVP

ALL: list[Schedule] = [
    VP(), VP(scale=0.1), VP(1.0, 4.0, 3.0), VP(16.0, 0.1), VP(5.0, 5.0), StraightLine(), StraightLine(0.1), Cosine(), Cosine(0.5),
    CondOT(), CondOT(2.0), SubVP(), SubVP(2.0, 1.0), VE(), VE(0.1, 3.0),
]  # fmt: skip
every = pytest.mark.parametrize("noise", ALL, ids=lambda noise: str(noise))
arcs = pytest.mark.parametrize("noise", [n for n in ALL if n.equilibrium_std is not None], ids=lambda noise: str(noise))
TIMES = np.array([1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])


@every
def test_moments_solve_the_forward_equation(noise: Schedule) -> None:
    """d alpha/dt = rate alpha and d var/dt = 2 rate var + 2 D, from clean data at t = 0."""

    def slopes(t: float, y: np.ndarray) -> list[float]:
        rate, diffusivity = float(noise.drift_rate(t)), float(noise.diffusivity(t))
        return [rate * y[0], 2.0 * rate * y[1] + 2.0 * diffusivity]

    times = TIMES[TIMES >= 0.01]
    solution = solve_ivp(slopes, (0.0, times[-1]), [1.0, 0.0], method="DOP853", t_eval=times, rtol=1e-13, atol=1e-18)
    np.testing.assert_allclose(noise.alpha(times), solution.y[0], rtol=1e-10)
    np.testing.assert_allclose(noise.sigma(times), np.sqrt(solution.y[1]), rtol=1e-10)


@every
def test_lam_is_the_log_of_the_signal_to_noise_ratio(noise: Schedule) -> None:
    expected = 2.0 * (np.log(noise.alpha(TIMES)) - np.log(noise.sigma(TIMES)))
    np.testing.assert_allclose(noise.lam(TIMES), expected, rtol=1e-12, atol=1e-12)


@every
def test_diffusivity_is_minus_half_sigma_squared_dlam_dt(noise: Schedule) -> None:
    t = TIMES[TIMES >= 0.01]
    h = 1e-3 * np.minimum(t, 1.0 - t)
    slope = sum(w * noise.lam(t + k * h) for k, w in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))) / (12.0 * h)
    np.testing.assert_allclose(noise.diffusivity(t), -0.5 * noise.sigma(t) ** 2 * slope, rtol=1e-9)


@every
def test_at_agrees_with_the_functions_of_time(noise: Schedule) -> None:
    row = noise.at(noise.lam(TIMES))
    np.testing.assert_allclose(row.time, TIMES, rtol=1e-11)
    np.testing.assert_allclose(row.alpha, noise.alpha(TIMES), rtol=1e-12)
    np.testing.assert_allclose(row.sigma, noise.sigma(TIMES), rtol=1e-12)
    # d ln alpha / d lam = drift_rate / (dlam/dt) = -sigma^2 drift_rate / (2 D).
    growth = -(noise.sigma(TIMES) ** 2) * noise.drift_rate(TIMES) / (2.0 * noise.diffusivity(TIMES))
    np.testing.assert_allclose(row.growth, growth, rtol=1e-11, atol=0.0)


@every
def test_at_is_accurate_over_the_whole_window(noise: Schedule) -> None:
    low, high = noise.window()
    lam = np.linspace(low, high, 101)
    row = noise.at(lam)
    np.testing.assert_allclose(2.0 * (np.log(row.alpha) - np.log(row.sigma)), lam, rtol=1e-13, atol=2e-14)
    assert np.all(np.diff(row.time) < 0.0)
    assert np.all((row.time >= 0.0) & (row.time <= noise.t_end * (1.0 + 1e-12)))
    assert np.all((row.growth >= 0.0) & (row.growth <= 0.5))
    h = 1e-3
    slope = sum(w * np.log(noise.at(lam + k * h).alpha) for k, w in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)))
    np.testing.assert_allclose(row.growth, slope / (12.0 * h), rtol=0.0, atol=3e-11)


@every
def test_time_inverts_lam(noise: Schedule) -> None:
    low, high = noise.window()
    # Near t_end the time of an unbounded schedule is 1 to rounding: invert where it is resolved.
    lam = np.linspace(max(low, -10.0), high, 60)[1:-1]
    np.testing.assert_allclose(noise.lam(noise.time(lam)), lam, rtol=1e-10, atol=1e-9)


@every
def test_diffusivity_and_drift_are_finite_inside(noise: Schedule) -> None:
    t = np.concatenate([[0.0], TIMES, [1.0 - 1e-9]])
    assert np.all(np.isfinite(noise.drift_rate(t)))
    assert np.all(np.isfinite(noise.diffusivity(t)))
    assert np.all(noise.diffusivity(t[1:]) > 0.0)
    assert np.all(noise.drift_rate(t) <= 0.0)


@every
def test_ends(noise: Schedule) -> None:
    assert noise.alpha(0.0) == 1.0
    assert noise.sigma(0.0) == 0.0
    assert noise.lam(0.0) == np.inf
    bounded = isinstance(noise, VP | SubVP | VE)
    assert np.isfinite(noise.lam(1.0)) == bounded
    if not bounded:
        assert noise.alpha(1.0) == 0.0
        assert noise.lam(1.0) == -np.inf


@arcs
def test_the_equilibrium_is_invariant(noise: Schedule) -> None:
    """alpha^2 k^2 + sigma^2 = k^2, and f = -(D / k^2) x."""
    k2 = noise.equilibrium_std**2
    np.testing.assert_allclose(noise.alpha(TIMES) ** 2 * k2 + noise.sigma(TIMES) ** 2, k2, rtol=1e-14)
    np.testing.assert_allclose(noise.drift_rate(TIMES), -noise.diffusivity(TIMES) / k2, rtol=1e-13)


@pytest.mark.parametrize("noise", [CondOT(), SubVP(), VE()], ids=str)
def test_schedules_without_a_fixed_equilibrium_say_so(noise: Schedule) -> None:
    assert noise.equilibrium_std is None


@every
def test_diverges_is_stated_where_the_reference_collapses_with_the_noise(noise: Schedule) -> None:
    """The quasi-equilibrium has variance D / -rate: it vanishes at t = 0 for SubVP and CondOT only."""
    rate = float(noise.drift_rate(1e-9))
    collapses = rate < 0.0 and float(noise.diffusivity(1e-9)) / -rate < 1e-6
    assert noise.diverges == collapses


def test_published_values_of_vp() -> None:
    assert float(VP().alpha(1.0)) == pytest.approx(ALPHA_VP_END, rel=1e-12)
    assert float(VP().diffusivity(0.0)) == pytest.approx(0.05, rel=1e-14)
    assert float(VP(scale=0.1).diffusivity(1.0)) == pytest.approx(0.08, rel=1e-14)


def test_subvp_is_vp_with_its_variance_squared() -> None:
    np.testing.assert_allclose(SubVP().sigma(TIMES), VP().sigma(TIMES) ** 2, rtol=1e-13)
    np.testing.assert_array_equal(SubVP().alpha(TIMES), VP().alpha(TIMES))


@every
def test_default_window(noise: Schedule) -> None:
    low, high = noise.window()
    assert high == pytest.approx(LAM_DATA - 2.0 * np.log(getattr(noise, "scale", 1.0)), rel=1e-15)
    end = float(noise.lam(1.0))
    assert low == (end if np.isfinite(end) else LAM_NOISE)


@every
def test_window_from_times(noise: Schedule) -> None:
    low, high = noise.window()
    assert noise.window(times=(0.1, 0.9)) == (float(noise.lam(0.9)), float(noise.lam(0.1)))
    assert noise.window(times=(0.0, 0.9)) == (float(noise.lam(0.9)), high)
    assert noise.window(times=(0.1, 1.0)) == (low, float(noise.lam(0.1)))


def test_window_from_lam_is_taken_as_it_is() -> None:
    assert VP().window(lam=(-3, 4)) == (-3.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": (1.0, -1.0)}, ValueError, "lam must increase.*swap"),
        ({"lam": (1.0, 1.0)}, ValueError, "lam must increase"),
        ({"lam": (0.0, np.inf)}, ValueError, r"lam\[1\] must be finite"),
        ({"lam": (0.0, "x")}, TypeError, r"lam\[1\] must be a number"),
        ({"lam": 3.0}, ValueError, "lam must be a pair"),
        ({"lam": (1, 2, 3)}, ValueError, "lam must be a pair"),
        ({"times": (1.0, 0.0)}, ValueError, "times must increase"),
        ({"times": (-0.1, 0.5)}, ValueError, "times.*0 <= t0 < t1 <= 1"),
        ({"times": (0.1, 1.5)}, ValueError, "times.*0 <= t0 < t1 <= 1"),
        ({"lam": (0.0, 1.0), "times": (0.0, 1.0)}, ValueError, "both lam= and times="),
    ],
)
def test_bad_windows_are_refused(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        VP().window(**arguments)


@pytest.mark.parametrize(("noise", "rest"), [(VP(8.0, 4.0), "-8"), (SubVP(8.0, 4.0), "-7.999")], ids=["VP", "SubVP"])
def test_a_window_begins_before_a_falling_beta_has_come_to_zero(noise: Schedule, rest: str) -> None:
    """Beyond there is no time, and what formulas give for one has a negative diffusivity."""
    message = f"begins at -9, and .* comes to rest at log-SNR {rest}, where .* fallen to zero; begin at -[56].99., its end at t = 1"
    with pytest.raises(ValueError, match=message):
        noise.window(lam=(-9.0, 4.0))
    lam = np.linspace(*noise.window(lam=(-7.5, 4.0)), 50)
    np.testing.assert_allclose(noise.lam(noise.time(lam)), lam, rtol=1e-12, atol=1e-12)
    assert (noise.diffusivity(noise.time(lam)) > 0.0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VP(beta_min=0.0), ValueError, "VP: beta_min must be positive, got 0"),
        (lambda: VP(beta_max=-1.0), ValueError, "VP: beta_max must be positive, got -1"),
        (lambda: VP(scale=0.0), ValueError, "VP: scale must be positive"),
        (lambda: VP(beta_min=np.nan), ValueError, "beta_min must be finite"),
        (lambda: VP(beta_min="0.1"), TypeError, "beta_min must be a number"),
        (lambda: VP(scale=True), TypeError, "scale must be a number"),
        (lambda: SubVP(beta_min=-0.1), ValueError, "SubVP: beta_min must be positive"),
        (lambda: StraightLine(-1.0), ValueError, "StraightLine: scale must be positive"),
        (lambda: Cosine(0.0), ValueError, "Cosine: scale must be positive"),
        (lambda: CondOT(np.inf), ValueError, "CondOT: scale must be finite"),
        (lambda: VE(0.0, 1.0), ValueError, "VE: sigma_min must be positive"),
        (lambda: VE(1.0, 1.0), ValueError, "VE: sigma_max must be greater than 1, got 1"),
        (lambda: VE(2.0, 1.0), ValueError, "VE: sigma_max must be greater than 2, got 1"),
    ],
)
def test_bad_parameters_are_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@every
def test_record_makes_the_same_schedule_again(noise: Schedule) -> None:
    record = noise.to_dict()
    assert SCHEDULES[record.pop("schedule")](**record) == noise


def test_names_carry_the_scale_where_it_is_not_one() -> None:
    assert [noise.name for noise in (VP(), VP(scale=0.1), VE())] == ["VP", "VP(scale=0.1)", "VE"]


def test_every_concrete_schedule_is_registered() -> None:
    def family(cls: type) -> set[type]:
        return {cls}.union(*map(family, cls.__subclasses__()))

    concrete = {cls for cls in family(Schedule) if not inspect.isabstract(cls) and cls.__module__ == "thermodiff.schedules"}
    assert set(SCHEDULES.values()) == concrete
