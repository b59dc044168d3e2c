"""thermodiff: the thermodynamics of diffusion, with exact and learned scores.

Names are loaded when first used: importing the package imports neither numba, torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VP": "schedules", "StraightLine": "schedules", "VE": "schedules", "SubVP": "schedules",
    "Cosine": "schedules", "CondOT": "schedules", "Schedule": "schedules",
    "Density": "densities", "Gaussian": "densities", "GaussianMixture": "densities",
    "PointCloud": "densities", "Samples": "densities", "paper_mixture": "densities",
    "Diffusion": "diffusion", "oracle": "diffusion",
    "account": "accounting", "compare": "accounting", "Comparison": "accounting",
    "Estimate": "accounting", "Ledger": "accounting",
    "drift": "fields", "potential": "fields", "diffusivity": "fields", "stop_condition": "fields",
    "Langevin": "processes", "Linear": "processes",
    "simulate": "integrate.simulate", "Moments": "integrate.reducers", "Histogram": "integrate.reducers",
    "first_passage": "integrate.passage", "Passage": "integrate.passage",
    "reverse": "integrate.solve", "probability_flow": "integrate.solve", "log_prob": "integrate.likelihood",
    "Path": "integrate.path",
    "plot": "plotting",
    "DivergenceError": "_check",
}  # fmt: skip

_MODULES = ("cases",)

__all__ = [*_HOME, *_MODULES, "__version__"]

if TYPE_CHECKING:
    import thermodiff.cases as cases  # noqa: F401
    from thermodiff._check import DivergenceError as DivergenceError
    from thermodiff.accounting import Comparison as Comparison
    from thermodiff.accounting import Estimate as Estimate
    from thermodiff.accounting import Ledger as Ledger
    from thermodiff.accounting import account as account
    from thermodiff.accounting import compare as compare
    from thermodiff.densities import Density as Density
    from thermodiff.densities import Gaussian as Gaussian
    from thermodiff.densities import GaussianMixture as GaussianMixture
    from thermodiff.densities import PointCloud as PointCloud
    from thermodiff.densities import Samples as Samples
    from thermodiff.densities import paper_mixture as paper_mixture
    from thermodiff.diffusion import Diffusion as Diffusion
    from thermodiff.diffusion import oracle as oracle
    from thermodiff.fields import diffusivity as diffusivity
    from thermodiff.fields import drift as drift
    from thermodiff.fields import potential as potential
    from thermodiff.fields import stop_condition as stop_condition
    from thermodiff.integrate.likelihood import log_prob as log_prob
    from thermodiff.integrate.passage import Passage as Passage
    from thermodiff.integrate.passage import first_passage as first_passage
    from thermodiff.integrate.path import Path as Path
    from thermodiff.integrate.reducers import Histogram as Histogram
    from thermodiff.integrate.reducers import Moments as Moments
    from thermodiff.integrate.simulate import simulate as simulate
    from thermodiff.integrate.solve import probability_flow as probability_flow
    from thermodiff.integrate.solve import reverse as reverse
    from thermodiff.plotting import plot as plot
    from thermodiff.processes import Langevin as Langevin
    from thermodiff.processes import Linear as Linear
    from thermodiff.schedules import VE as VE
    from thermodiff.schedules import VP as VP
    from thermodiff.schedules import CondOT as CondOT
    from thermodiff.schedules import Cosine as Cosine
    from thermodiff.schedules import Schedule as Schedule
    from thermodiff.schedules import StraightLine as StraightLine
    from thermodiff.schedules import SubVP as SubVP


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"thermodiff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'thermodiff' has no attribute {name!r}.")
    value = getattr(import_module(f"thermodiff.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
