"""What a case is: a statement, its exact value, a measurement, and data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import above, count
from thermodiff.accounting import Estimate, account
from thermodiff.densities import Density
from thermodiff.diffusion import Diffusion
from thermodiff.integrate.likelihood import log_prob
from thermodiff.integrate.path import Path
from thermodiff.integrate.simulate import simulate
from thermodiff.processes import Langevin
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]


class Trajectories(NamedTuple):
    """Paths for an estimator.

    ``states`` are (n, T, d), at ``times`` (T,) that lie ``dt`` apart; ``diffusivity`` is D, (d,) in units of the states
    squared per unit time.
    """

    states: FloatArray
    times: FloatArray
    dt: float
    diffusivity: FloatArray


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """A quantity with a known value.

    Attributes
    ----------
    name : str
    statement : str
        What is measured on what, in one sentence.
    source : str
        Where the formula comes from.
    formula : callable
        The exact value, computed; see `exact`.
    size : int
        Samples or paths that a measurement takes unless told otherwise.
    unit : str
    """

    name: str
    statement: str
    source: str
    formula: Callable[[], float]
    size: int
    unit: str = "nats"

    @cached_property
    def exact(self) -> float:
        """The exact value, in ``unit``."""
        return float(self.formula())

    @property
    def stochastic(self) -> bool:
        """Whether the error is that of samples; else it is the stated tolerance of a solver."""
        return True

    @property
    @abstractmethod
    def method(self) -> str:
        """How thermodiff measures it, with the numbers that fix the accuracy."""

    @abstractmethod
    def measure(self, rng: Any = None, size: int | None = None) -> Estimate:
        """Measure it with thermodiff; ``size`` samples or paths, and everything random from ``rng``."""

    @abstractmethod
    def data(self, n: int, rng: Any = None) -> Any:
        """Data for an estimator."""

    def z(self, measured: Estimate) -> float:
        """(measured - exact) in standard errors."""
        return measured.deviation(Estimate(self.exact, 0.0))

    def scaled(self, scale: float) -> int:
        """``size`` times ``scale``, at least 2."""
        return max(2, round(self.size * above("scale", scale, 0.0, "it multiplies the number of samples")))


@dataclass(frozen=True, kw_only=True)
class DiffusionCase(Case):
    """Entropy production of a diffusion from t = 0 to t_end, from the exact score.

    Attributes
    ----------
    law : Density
        Of x_0.
    noise : Schedule
    nodes : int
        So many that the error of the quadrature is below that of the samples at ten times the default size.
    """

    law: Density
    noise: Schedule
    nodes: int = 128

    @property
    def method(self) -> str:
        return f"td.account: {self.nodes} nodes in log-SNR, {self.size} samples at each"

    def measure(self, rng: Any = None, size: int | None = None) -> Estimate:
        samples = self.size if size is None else size
        return account(Diffusion(self.law, self.noise), nodes=self.nodes, samples=samples, rng=rng, progress=False).total(
            "total"
        )

    def data(self, n: int, rng: Any = None) -> FloatArray:
        """``n`` draws of x_0, (n, d); the forward process is ``noise``."""
        return self.law.sample(n, rng)


@dataclass(frozen=True, kw_only=True)
class LikelihoodCase(Case):
    """Log-density of the data at a point, by the probability flow.

    Attributes
    ----------
    law : Density
        Of x_0.
    noise : Schedule
    point : tuple of float
    rtol : float
        Tolerance of a step of the solver; the error of a measurement is taken as ten times this.
    """

    law: Density
    noise: Schedule
    point: tuple[float, ...]
    rtol: float = 1e-8

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def method(self) -> str:
        return f"td.log_prob: rtol = {self.rtol:g}; the error is ten times this tolerance"

    def measure(self, rng: Any = None, size: int | None = None) -> Estimate:
        """Measure it; nothing is random, and there is one point."""
        x = np.array([self.point])
        value = log_prob(Diffusion(self.law, self.noise), x, rtol=self.rtol, atol=0.01 * self.rtol)
        return Estimate(float(value[0]), 10.0 * self.rtol)

    def data(self, n: int, rng: Any = None) -> FloatArray:
        """``n`` draws of x_0, (n, d)."""
        return self.law.sample(n, rng)


def mean_of(values: FloatArray) -> Estimate:
    """Mean of independent values with its standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


def variance_of(values: FloatArray) -> Estimate:
    """Variance of independent values with its standard error, from the fourth moment."""
    squares = (values - values.mean()) ** 2
    value = float(squares.sum() / (values.size - 1))
    return Estimate(value, float(squares.std(ddof=1) / np.sqrt(values.size)))


@dataclass(frozen=True, kw_only=True)
class LangevinCase(Case):
    """A quantity along simulated paths.

    Attributes
    ----------
    process : Langevin
    start : callable
        ``start(n, rng)`` draws x(0), (n, d).
    horizon : float
        T: paths run from 0 to T.
    dt : float
        Longest step at the default ``size``, where the bias of the steps is below a tenth of the standard error.  With more
        paths it shrinks, so that this stays true.
    order : int
        The bias is of order dt**order: 2 for Heun's rule, and for heat where the force is a gradient; 1 for heat where it
        is not, since the chord of a step does not see the area that a path encloses within it.
    values : callable
        ``values(path)`` is the quantity along each path, (n,).
    estimate : callable
        Of these, mean or variance with its standard error.
    heat : bool
        Whether ``values`` uses ``path.heat``.
    """

    process: Langevin
    start: Callable[[int, np.random.Generator], FloatArray]
    horizon: float
    dt: float
    values: Callable[[Path], FloatArray]
    estimate: Callable[[FloatArray], Estimate] = mean_of
    heat: bool = True
    order: int = 2

    @property
    def method(self) -> str:
        kept = "heat and end points" if self.heat else "end points"
        return f'td.simulate(method="heun"): {self.size} paths, t = 0 ... {self.horizon:g}, dt = {self.dt:g}; {kept}'

    def step(self, size: int) -> float:
        """Longest step for ``size`` paths."""
        return self.dt * min(1.0, self.size / size) ** (0.5 / self.order)

    def run(self, n: int, rng: Any, times: FloatArray, dt: float) -> Path:
        """Paths from the start of this case."""
        generator = np.random.default_rng(rng)
        x0 = self.start(n, generator)
        return simulate(self.process, x0, times, dt, method="heun", rng=generator, heat=self.heat, progress=False)

    def measure(self, rng: Any = None, size: int | None = None) -> Estimate:
        n = count("size", self.size if size is None else size, 2)
        return self.estimate(self.values(self.run(n, rng, np.array([0.0, self.horizon]), self.step(n))))

    def data(self, n: int, rng: Any = None, frames: int = 101) -> Trajectories:
        """``n`` trajectories at ``frames`` equally spaced times from 0 to T, simulated with steps of at most ``dt``."""
        times = np.linspace(0.0, self.horizon, count("frames", frames, 2))
        states = self.run(count("n", n), rng, times, self.dt).states.transpose(1, 0, 2)
        diffusivity = np.broadcast_to(np.asarray(self.process.diffusivity, dtype=np.float64), (self.process.dim,))
        return Trajectories(np.ascontiguousarray(states), times, float(times[1]), diffusivity.copy())
