"""Langevin systems with known heat, work and entropy.

D is the temperature (friction 1, k_B = 1).  Heat is what `simulate` keeps with ``heat=True``, the integral of f . dx.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thermodiff.cases import forms
from thermodiff.cases.base import LangevinCase, variance_of
from thermodiff.fields import drift, potential
from thermodiff.integrate.path import Path
from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]

SEIFERT = "Seifert, Rep. Prog. Phys. 75, 126001 (2012)"
LAX = "Lyapunov equation of the steady state (Lax 1960)"


@drift
def dragged(x, t, k, u):  # noqa: ANN001, ANN201
    """A harmonic trap dragged at speed u."""
    return (-k * (x[0] - u * t),)


@drift
def breathing(x, t):  # noqa: ANN001, ANN201
    """A harmonic trap of stiffness 1 + t."""
    return (-(1.0 + t) * x[0],)


@drift
def rotation(x, t, k, g):  # noqa: ANN001, ANN201
    """An isotropic trap with a rotating force."""
    return -k * x[0] - g * x[1], -k * x[1] + g * x[0]


@drift
def coupled(x, t, k, one, two):  # noqa: ANN001, ANN201
    """Two springs; ``one`` and ``two`` are the couplings as each coordinate feels them."""
    return -k * x[0] - one * x[1], -k * x[1] - two * x[0]


@potential
def double_well(x, t):  # noqa: ANN001, ANN201
    """Minima at -1 and 1, a barrier of 1/4."""
    return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2


def log_ratio(path: Path, before: float, after: float, mean: float = 0.0) -> FloatArray:
    """ln p_0(x_0) - ln p_T(x_T) along each path, for N(0, before) and N(mean, after) in every coordinate; nats."""
    first, last = path.states[0], path.states[-1] - mean
    powers = 0.5 * (np.sum(last**2, axis=1) / after - np.sum(first**2, axis=1) / before)
    return powers + 0.5 * first.shape[1] * np.log(after / before)


# Dragged trap: k, D, u.
K, D, U = 2.0, 0.5, 3.0
DRAGGED = Langevin(dragged, params=(K, U), diffusivity=D, dim=1)


def _dragged_start(n: int, rng: np.random.Generator) -> FloatArray:
    return np.sqrt(D / K) * rng.standard_normal((n, 1))


def dragged_production(path: Path) -> FloatArray:
    """s_tot along each path of the dragged trap: heat / D + ln p_0(x_0) / p_T(x_T); nats."""
    assert path.heat is not None
    mean = forms.dragged_mean(K, U, float(path.times[-1]))
    return path.heat[-1] / D + log_ratio(path, D / K, D / K, mean)


# Breathing trap: D = 1, stiffness 1 + t.
BREATHING = Langevin(breathing, diffusivity=1.0, dim=1)


def _breathing_start(n: int, rng: np.random.Generator) -> FloatArray:
    return rng.standard_normal((n, 1))


def breathing_work(path: Path) -> FloatArray:
    """Work on each path by the first law: change of k x^2 / 2, and heat; units of D."""
    assert path.heat is not None
    stiffness = 1.0 + path.times
    return path.heat[-1] + 0.5 * (stiffness[-1] * path.states[-1, :, 0] ** 2 - stiffness[0] * path.states[0, :, 0] ** 2)


def breathing_production(path: Path) -> FloatArray:
    """s_tot along each path of the breathing trap; nats."""
    assert path.heat is not None
    return path.heat[-1] + log_ratio(path, 1.0, forms.breathing_variance(float(path.times[-1])))


# Rotation: k, g, and the wide start of the relaxation; D as above.
KR, G, WIDE = 1.0, 0.7, 2.0
ROTATION = Langevin(rotation, params=(KR, G), diffusivity=D, dim=2)


def _rotation_start(n: int, rng: np.random.Generator) -> FloatArray:
    return np.sqrt(D / KR) * rng.standard_normal((n, 2))


def _wide_start(n: int, rng: np.random.Generator) -> FloatArray:
    return np.sqrt(WIDE) * rng.standard_normal((n, 2))


def rotation_rate(path: Path) -> FloatArray:
    """Entropy given to the bath per unit time, steady state; nats per unit time."""
    assert path.heat is not None
    return path.heat[-1] / (D * path.times[-1])


def rotation_production(path: Path) -> FloatArray:
    """s_tot along each path of the relaxation; nats."""
    assert path.heat is not None
    return path.heat[-1] / D + log_ratio(path, WIDE, forms.rotation_variance(KR, D, WIDE, float(path.times[-1])))


# Gyrator: k, c and two temperatures; once in the usual coordinates, once in y_i = x_i / sqrt(T_i), where D = 1 and
# heat= is the entropy given to both baths, Q_1 / T_1 + Q_2 / T_2.
KG, C, T1, T2 = 1.0, 0.4, 1.0, 2.5
GYRATOR = Langevin(coupled, params=(KG, C, C), diffusivity=[T1, T2], dim=2)
REDUCED = Langevin(coupled, params=(KG, C * np.sqrt(T2 / T1), C * np.sqrt(T1 / T2)), diffusivity=1.0, dim=2)
TEMPERATURES = np.array([T1, T2])


def _origin(n: int, rng: np.random.Generator) -> FloatArray:
    return np.zeros((n, 2))


def _reduced_start(n: int, rng: np.random.Generator) -> FloatArray:
    factor = np.linalg.cholesky(forms.gyrator_covariance(KG, C, T1, T2))
    z = rng.standard_normal((n, 2))
    # Written out: no BLAS, whose sums depend on the machine.
    x = np.stack([factor[0, 0] * z[:, 0], factor[1, 0] * z[:, 0] + factor[1, 1] * z[:, 1]], axis=1)
    return x / np.sqrt(TEMPERATURES)


def gyrator_entropy_rate(path: Path) -> FloatArray:
    """Entropy given to both baths per unit time, steady state; nats per unit time."""
    assert path.heat is not None
    return path.heat[-1] / path.times[-1]


def gyrator_heat_rate(path: Path) -> FloatArray:
    """Heat into bath 1 per unit time: Q_1 / T_1 + Q_2 / T_2 is kept, and Q_1 + Q_2 is the energy lost; energy per time."""
    assert path.heat is not None
    x, y = np.moveaxis(path.states * np.sqrt(TEMPERATURES), 2, 0)
    energy = 0.5 * KG * (x * x + y * y) + C * x * y
    return (path.heat[-1] + (energy[-1] - energy[0]) / T2) / (1.0 / T1 - 1.0 / T2) / path.times[-1]


def product(path: Path) -> FloatArray:
    """x_1 x_2 at the end, whose mean is their covariance: both means are zero."""
    return path.states[-1, :, 0] * path.states[-1, :, 1]


# Double well.  The slowest even mode decays at the rate 1.50 (spectrum of the Fokker-Planck operator on a grid), so that
# exp(-18) of the start is left at t = 12; the odd one, at 0.187, which crosses the barrier, does not touch x^2.
WELL_D = 0.25
WELL = Langevin(double_well, diffusivity=WELL_D, dim=1)


def _well_start(n: int, rng: np.random.Generator) -> FloatArray:
    return rng.standard_normal((n, 1))


def square(path: Path) -> FloatArray:
    """x^2 at the end."""
    return path.states[-1, :, 0] ** 2


LANGEVINS = (
    LangevinCase(
        name="dragged-trap",
        statement="Mean entropy production in a trap (k = 2, D = 0.5) dragged at u = 3 from equilibrium, t = 0 … 1.5.",
        source=f"(u²/D)[T − 2(1 − e^(−kT))/k + (1 − e^(−2kT))/2k]: the law moves rigidly; {SEIFERT}",
        formula=lambda: forms.dragged_entropy(K, D, U, 1.5),
        size=100_000,
        process=DRAGGED,
        start=_dragged_start,
        horizon=1.5,
        dt=0.01,
        values=dragged_production,
    ),
    LangevinCase(
        name="dragged-trap-variance",
        statement="Variance of the entropy production along paths of the same dragged trap, t = 0 … 1.5.",
        source=f"s_tot is Gaussian, so that ⟨exp(−s_tot)⟩ = 1 fixes its variance to twice its mean; {SEIFERT}",
        formula=lambda: 2.0 * forms.dragged_entropy(K, D, U, 1.5),
        size=100_000,
        unit="nats²",
        process=DRAGGED,
        start=_dragged_start,
        horizon=1.5,
        dt=0.01,
        values=dragged_production,
        estimate=variance_of,
    ),
    LangevinCase(
        name="fluctuation-theorem",
        statement="⟨exp(−s_tot)⟩ in the same dragged trap, t = 0 … 0.3.",
        source=f"integral fluctuation theorem: 1; {SEIFERT}",
        formula=lambda: 1.0,
        size=200_000,
        unit="1",
        process=DRAGGED,
        start=_dragged_start,
        horizon=0.3,
        dt=0.005,
        values=lambda path: np.exp(-dragged_production(path)),
    ),
    LangevinCase(
        name="breathing-trap-work",
        statement="Mean work in a trap of stiffness 1 + t (D = 1) from equilibrium, t = 0 … 1, by the first law.",
        source=f"∫ v/2 dt with dv/dt = −2(1 + t)v + 2 (Dawson's integral); {SEIFERT}",
        formula=lambda: forms.breathing_work(1.0),
        size=100_000,
        unit="D",
        process=BREATHING,
        start=_breathing_start,
        horizon=1.0,
        dt=0.01,
        values=breathing_work,
    ),
    LangevinCase(
        name="breathing-trap-entropy",
        statement="Mean entropy production in the same breathing trap, t = 0 … 1.",
        source=f"work − ΔF − KL(p_T‖p_eq,T), the last Gaussian; {SEIFERT}",
        formula=lambda: forms.breathing_entropy(1.0),
        size=100_000,
        process=BREATHING,
        start=_breathing_start,
        horizon=1.0,
        dt=0.01,
        values=breathing_production,
    ),
    LangevinCase(
        name="rotation-steady",
        statement="Steady entropy production of a planar trap (k = 1, D = 0.5) with a rotating force (g = 0.7).",
        source=f"2g²/k; {LAX}",
        formula=lambda: forms.rotation_rate(KR, G),
        size=40_000,
        unit="nats/time",
        process=ROTATION,
        start=_rotation_start,
        horizon=2.0,
        dt=0.0005,
        values=rotation_rate,
        order=1,
    ),
    LangevinCase(
        name="rotation-relaxation",
        statement="Entropy production of the same rotation from N(0, 2), t = 0 … 1: excess and housekeeping.",
        source=f"fall of KL(p‖p_ss) + (2g²/D)∫ v dt; {SEIFERT}",
        formula=lambda: forms.rotation_relaxation(KR, G, D, WIDE, 1.0),
        size=50_000,
        process=ROTATION,
        start=_wide_start,
        horizon=1.0,
        dt=0.002,
        values=rotation_production,
        order=1,
    ),
    LangevinCase(
        name="gyrator-entropy",
        statement="Steady entropy production of two coupled coordinates (k = 1, c = 0.4) at temperatures 1 and 2.5.",
        source=f"c²(T₁ − T₂)²/2kT₁T₂; {LAX}",
        formula=lambda: forms.gyrator_rate(KG, C, T1, T2),
        size=40_000,
        unit="nats/time",
        process=REDUCED,
        start=_reduced_start,
        horizon=4.0,
        dt=0.0025,
        values=gyrator_entropy_rate,
        order=1,
    ),
    LangevinCase(
        name="gyrator-heat",
        statement="Steady heat into the cold bath of the same gyrator.",
        source=f"c²(T₂ − T₁)/2k; {LAX}",
        formula=lambda: forms.gyrator_heat(KG, C, T1, T2),
        size=40_000,
        unit="energy/time",
        process=REDUCED,
        start=_reduced_start,
        horizon=4.0,
        dt=0.0015,
        values=gyrator_heat_rate,
        order=1,
    ),
    LangevinCase(
        name="ou-covariance",
        statement="Stationary covariance of the two coordinates of the same gyrator, reached from the origin at t = 16.",
        source=f"−c(T₁ + T₂)/2(k² − c²); {LAX}",
        formula=lambda: forms.gyrator_covariance(KG, C, T1, T2)[0, 1],
        size=200_000,
        unit="length²",
        process=GYRATOR,
        start=_origin,
        horizon=16.0,
        dt=0.02,
        values=product,
        heat=False,
    ),
    LangevinCase(
        name="double-well",
        statement="Stationary E x² in U = x⁴/4 − x²/2 at D = 0.25, reached from N(0, 1) at t = 12.",
        source="quadrature of the Boltzmann density exp(−U/D)",
        formula=lambda: forms.double_well_moment(WELL_D),
        size=100_000,
        unit="length²",
        process=WELL,
        start=_well_start,
        horizon=12.0,
        dt=0.01,
        values=square,
        heat=False,
    ),
)
