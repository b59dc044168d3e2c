"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) z, from data (t = 0) to noise (t = t_end = 1).

The forward process is dx = f dt + sqrt(2 D) dW (Ito) with

    f = (d ln alpha / dt) x,    D = -(sigma**2 / 2) d lam / dt,    lam = ln(alpha**2 / sigma**2),

where lam is the log signal-to-noise ratio, sigma in data units.  Integrals over the process are taken in lam, where every
schedule is smooth: `Schedule.at` gives (t, alpha, sigma, d ln alpha / d lam) at given lam.

``scale`` multiplies sigma.  For VP it is kappa of the paper's VPx (equilibrium N(0, scale**2)), for StraightLine its
Sigma_0.  Reference: Premkumar, "Neural Entropy", arXiv 2409.03817; D = sigma_paper**2 / 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import above, increasing_pair

FloatArray = npt.NDArray[np.float64]

LAM_NOISE = -25.0
"""Lower edge of the default window where alpha(t_end) = 0."""
LAM_DATA = 20.0
"""Upper edge of the default window, less ln scale**2."""


MOST_LAM = 200.0
"""Bound on the edges of a window; beyond, alpha or sigma are nothing."""


class Row(NamedTuple):
    """Scalars of the kernel at one or many values of lam: numbers, arrays or tensors of one shape."""

    lam: Any
    time: Any
    alpha: Any
    sigma: Any
    growth: Any
    """d ln alpha / d lam, between 0 and 1/2."""


@dataclass(frozen=True)
class Schedule(ABC):
    """A Gaussian transition kernel alpha(t), sigma(t) on 0 <= t <= t_end."""

    t_end = 1.0

    @property
    def name(self) -> str:
        """Class name, with the scale where it is not 1."""
        scale = getattr(self, "scale", 1.0)
        return type(self).__name__ + ("" if scale == 1.0 else f"(scale={scale:g})")

    @property
    def equilibrium_std(self) -> float | None:
        """Standard deviation of the equilibrium N(0, std**2) that the forward process keeps at all t; None if none."""
        return None

    @property
    def diverges(self) -> bool:
        """Whether entropy production grows without bound towards the data, so that a window must be stated."""
        return False

    @abstractmethod
    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        """Factor of x_0 at time t."""

    @abstractmethod
    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        """Standard deviation of the noise at time t, in data units."""

    @abstractmethod
    def lam(self, t: npt.ArrayLike) -> FloatArray:
        """ln(alpha**2 / sigma**2) at time t: +inf at t = 0; -inf at t_end where alpha vanishes."""

    @abstractmethod
    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        """d ln alpha / dt, so that f = drift_rate * x; per unit time."""

    @abstractmethod
    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        """D(t), half the squared noise amplitude of the forward process; data units squared per unit time."""

    @abstractmethod
    def at(self, lam: npt.ArrayLike) -> Row:
        """Time and kernel at given log-SNR, accurate at both ends."""

    def time(self, lam: npt.ArrayLike) -> FloatArray:
        """The inverse of `lam`."""
        return self.at(lam).time

    def window(
        self, lam: tuple[float, float] | None = None, times: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """Edges (low, high) of the log-SNR window, from ``lam``, from ``times``, or the default of the schedule.

        The default runs from lam(t_end) (or -25 where alpha(t_end) = 0) to 20 - ln scale**2.  ``times = (t0, t1)`` with
        an end where lam is infinite takes the default edge there.  ``lam`` may begin beyond t_end, where the formulas of the
        schedule hold as before: it is then of a process that goes on for longer.
        """
        if lam is not None and times is not None:
            raise ValueError("window: both lam= and times= were given; give one of them.")
        if lam is not None:
            pair = increasing_pair("lam", lam)
            if max(map(abs, pair)) > MOST_LAM:
                raise ValueError(f"lam must lie within -{MOST_LAM:g} ... {MOST_LAM:g}, got ({pair[0]:g}, {pair[1]:g}).")
            if pair[0] <= self._last_lam:
                raise ValueError(
                    f"lam: the window begins at {pair[0]:g}, and {self.name} comes to rest at log-SNR {self._last_lam:.4g}, "
                    f"where its diffusivity has fallen to zero; begin at {float(self.lam(self.t_end)):.4g}, its end at "
                    f"t = {self.t_end:g}."
                )
            return pair
        low, high = self._default_window()
        if times is not None:
            start, end = increasing_pair("times", times)
            if start < 0.0 or end > self.t_end:
                raise ValueError(f"times: got ({start:g}, {end:g}); choose 0 <= t0 < t1 <= {self.t_end:g}.")
            edges = self.lam(np.array([end, start]))
            return (
                float(edges[0]) if np.isfinite(edges[0]) else low,
                float(edges[1]) if np.isfinite(edges[1]) else high,
            )
        return low, high

    @property
    def _last_lam(self) -> float:
        """The log-SNR that the process never reaches, were it to go on beyond t_end."""
        return -np.inf

    def _default_window(self) -> tuple[float, float]:
        end = float(self.lam(self.t_end))
        low = end if np.isfinite(end) else LAM_NOISE
        high = float(LAM_DATA - 2.0 * np.log(getattr(self, "scale", 1.0)))
        if not low < high:
            raise ValueError(
                f"{self.name} has no default window, its noise end lies at log-SNR {low:.3g} and its data end at "
                f"{high:.3g}; state the window, e.g. lam=({low:.3g}, {low + 20:.3g})."
            )
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Class name and parameters, for records."""
        return {"schedule": type(self).__name__, **self.__dict__}


def _array(values: npt.ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _sigmoid(u: FloatArray) -> FloatArray:
    """1 / (1 + exp(-u)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -u))


@dataclass(frozen=True)
class _Linear(Schedule):
    """beta(t) = beta_min + (beta_max - beta_min) t, shared by VP and SubVP."""

    beta_min: float = 0.1
    beta_max: float = 16.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        above(f"{name}: beta_min", self.beta_min, 0.0, "the diffusivity would vanish at t = 0")
        above(f"{name}: beta_max", self.beta_max, 0.0, "the diffusivity would vanish at t = 1")

    def _beta(self, t: FloatArray) -> FloatArray:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    @property
    def _last_lam(self) -> float:
        # A beta that falls comes to zero; beyond, noise would be taken away.
        fall = self.beta_min - self.beta_max
        return float(self.lam(self.beta_min / fall)) if fall > 0.0 else -np.inf

    def _integral(self, t: FloatArray) -> FloatArray:
        """B(t), the integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t

    def _inverse(self, integral: FloatArray) -> FloatArray:
        """The time at which B(t) = integral, in the form without cancellation."""
        root = np.sqrt(np.maximum(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral, 0.0))
        return 2.0 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class _Arc(Schedule):
    """Schedules with alpha**2 + (sigma / scale)**2 = 1; they differ in the clock only, and share one equilibrium."""

    @property
    @abstractmethod
    def _scale(self) -> float: ...

    @property
    def equilibrium_std(self) -> float:
        return self._scale

    @abstractmethod
    def _clock(self, unit: FloatArray) -> FloatArray:
        """t at lam + ln scale**2 = unit."""

    def at(self, lam: npt.ArrayLike) -> Row:
        lam = _array(lam)
        unit = lam + 2.0 * np.log(self._scale)
        alpha, noise = np.sqrt(_sigmoid(unit)), np.sqrt(_sigmoid(-unit))
        return Row(lam, self._clock(unit), alpha, self._scale * noise, 0.5 * noise * noise)


@dataclass(frozen=True)
class VP(_Linear, _Arc):
    """Variance preserving: alpha**2 = exp(-B(t)), sigma**2 = scale**2 (1 - alpha**2), B' = beta(t) linear in t.

    Parameters
    ----------
    beta_min, beta_max : float
        beta at t = 0 and t = 1, positive; the published values are 0.1 and 16.
    scale : float
        Standard deviation of the equilibrium; 0.1 is the paper's VPx.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above("VP: scale", self.scale, 0.0, "sigma would vanish")

    @property
    def _scale(self) -> float:
        return self.scale

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        return np.exp(-0.5 * self._integral(_array(t)))

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        return self.scale * np.sqrt(-np.expm1(-self._integral(_array(t))))

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -np.log(np.expm1(self._integral(_array(t)))) - 2.0 * np.log(self.scale)

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        return -0.5 * self._beta(_array(t))

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        return 0.5 * self.scale**2 * self._beta(_array(t))

    def _clock(self, unit: FloatArray) -> FloatArray:
        return self._inverse(np.logaddexp(0.0, -unit))


@dataclass(frozen=True)
class StraightLine(_Arc):
    """The paper's SL: alpha = 1 - t, sigma = scale sqrt(1 - alpha**2); f and D are infinite at t = 1.

    Parameters
    ----------
    scale : float
        Standard deviation of the equilibrium (Sigma_0); the published value is 0.1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        above("StraightLine: scale", self.scale, 0.0, "sigma would vanish")

    @property
    def _scale(self) -> float:
        return self.scale

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        return 1.0 - _array(t)

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        t = _array(t)
        return self.scale * np.sqrt(t * (2.0 - t))

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        t = _array(t)
        with np.errstate(divide="ignore"):
            return 2.0 * np.log1p(-t) - np.log(t * (2.0 - t)) - 2.0 * np.log(self.scale)

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -1.0 / (1.0 - _array(t))

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return self.scale**2 / (1.0 - _array(t))

    def _clock(self, unit: FloatArray) -> FloatArray:
        return -np.expm1(-0.5 * np.logaddexp(0.0, -unit))


@dataclass(frozen=True)
class Cosine(_Arc):
    """alpha = cos(pi t / 2), sigma = scale sin(pi t / 2); f and D are infinite at t = 1.

    Parameters
    ----------
    scale : float
        Standard deviation of the equilibrium.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        above("Cosine: scale", self.scale, 0.0, "sigma would vanish")

    @property
    def _scale(self) -> float:
        return self.scale

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        # sin of the complement: exactly zero at t = 1.
        return np.sin(0.5 * np.pi * (1.0 - _array(t)))

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        return self.scale * np.sin(0.5 * np.pi * _array(t))

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha(t)) - np.log(self.sigma(t)))

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -0.5 * np.pi * np.sin(0.5 * np.pi * _array(t)) / self.alpha(t)

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        return -(self.scale**2) * self.drift_rate(t)

    def _clock(self, unit: FloatArray) -> FloatArray:
        return 2.0 / np.pi * np.arctan(np.exp(-0.5 * unit))


@dataclass(frozen=True)
class CondOT(Schedule):
    """The conditional optimal-transport path: alpha = 1 - t, sigma = scale t; no equilibrium; f infinite at t = 1.

    Parameters
    ----------
    scale : float
        Standard deviation of the noise at t = 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        above("CondOT: scale", self.scale, 0.0, "sigma would vanish")

    @property
    def diverges(self) -> bool:
        return True

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        return 1.0 - _array(t)

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        return self.scale * _array(t)

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        t = _array(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log1p(-t) - np.log(t) - np.log(self.scale))

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -1.0 / (1.0 - _array(t))

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        t = _array(t)
        with np.errstate(divide="ignore"):
            return self.scale**2 * t / (1.0 - t)

    def at(self, lam: npt.ArrayLike) -> Row:
        lam = _array(lam)
        half = 0.5 * lam + np.log(self.scale)
        time = _sigmoid(-half)
        return Row(lam, time, _sigmoid(half), self.scale * time, 0.5 * time)


@dataclass(frozen=True)
class SubVP(_Linear):
    """alpha**2 = exp(-B(t)), sigma = 1 - alpha**2, with beta linear in t; its quasi-equilibrium depends on time.

    Parameters
    ----------
    beta_min, beta_max : float
        beta at t = 0 and t = 1, positive.
    """

    @property
    def diverges(self) -> bool:
        return True

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        return np.exp(-0.5 * self._integral(_array(t)))

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        return -np.expm1(-self._integral(_array(t)))

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -self._integral(_array(t)) - 2.0 * np.log(self.sigma(t))

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        return -0.5 * self._beta(_array(t))

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        t = _array(t)
        return -0.5 * self._beta(t) * np.expm1(-2.0 * self._integral(t))

    def at(self, lam: npt.ArrayLike) -> Row:
        # alpha / sigma = exp(lam / 2) = w with sigma = 1 - alpha**2 is a quadratic for alpha; written in 1/w.
        lam = _array(lam)
        inverse = np.exp(-0.5 * lam)
        alpha = 2.0 / (inverse + np.sqrt(inverse * inverse + 4.0))
        sigma = alpha * inverse
        integral = np.where(sigma < 0.5, -np.log1p(-np.minimum(sigma, 0.5)), -2.0 * np.log(alpha))
        return Row(lam, self._inverse(integral), alpha, sigma, sigma / (2.0 * (1.0 + alpha * alpha)))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma**2 = s(t)**2 - s(0)**2 with s(t) = sigma_min (sigma_max / sigma_min)**t.

    Parameters
    ----------
    sigma_min, sigma_max : float
        s at t = 0 and t = 1, with 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        above("VE: sigma_min", self.sigma_min, 0.0, "the noise must start from a positive width")
        above("VE: sigma_max", self.sigma_max, self.sigma_min, "the noise must grow from sigma_min to sigma_max")

    @property
    def _rate(self) -> float:
        return float(np.log(self.sigma_max / self.sigma_min))

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        return np.ones_like(_array(t))

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        return self.sigma_min * np.sqrt(np.expm1(2.0 * self._rate * _array(t)))

    def lam(self, t: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -2.0 * np.log(self.sigma(t))

    def drift_rate(self, t: npt.ArrayLike) -> FloatArray:
        return np.zeros_like(_array(t))

    def diffusivity(self, t: npt.ArrayLike) -> FloatArray:
        return self.sigma_min**2 * self._rate * np.exp(2.0 * self._rate * _array(t))

    def at(self, lam: npt.ArrayLike) -> Row:
        lam = _array(lam)
        variance = np.exp(-lam)
        time = np.log1p(variance / self.sigma_min**2) / (2.0 * self._rate)
        return Row(lam, time, np.ones_like(lam), np.sqrt(variance), np.zeros_like(lam))


SCHEDULES: dict[str, type[Schedule]] = {
    "VP": VP, "StraightLine": StraightLine, "VE": VE, "SubVP": SubVP, "Cosine": Cosine, "CondOT": CondOT,
}  # fmt: skip
