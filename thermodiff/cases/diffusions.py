"""Diffusions with a known entropy production."""

from __future__ import annotations

import numpy as np

from thermodiff.cases.base import DiffusionCase, LikelihoodCase
from thermodiff.cases.forms import gaussian_relaxation, mixture_log_density, mixture_relaxation
from thermodiff.densities import Gaussian, GaussianMixture, paper_mixture
from thermodiff.schedules import VP, StraightLine

VP_END = float(np.exp(-0.25 * (0.1 + 16.0)))
"""alpha of VP(0.1, 16) at t = 1: half the integral of beta is 4.025."""

KL_IDENTITY = "S_tot = KL(p_0‖p_eq) − KL(p_T‖p_eq), Gaussian closed form (arXiv 2409.03817; Risken 1989)"
KL_QUADRATURE = "S_tot = KL(p_0‖p_eq) − KL(p_T‖p_eq), entropies of the mixture by the trapezoid rule (arXiv 2409.03817)"

LINE = Gaussian([1.5], std=0.5)
# The axes of the covariance are turned away from the coordinates, so that no kernel for diagonal matrices would do.
AXES = np.array([[2.0, 2.0, 1.0], [-2.0, 1.0, 2.0], [1.0, -2.0, 2.0]]) / 3.0
MEAN3, VARIANCES3 = np.array([1.0, -0.5, 0.25]), np.array([2.0, 0.5, 0.1])
SPACE = Gaussian(AXES @ MEAN3, cov=AXES @ np.diag(VARIANCES3) @ AXES.T)
BIM1 = GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5], weights=[0.4, 0.6])
BIM2 = GaussianMixture([[-2.0], [1.0]], stds=[0.25, 0.4], weights=[0.3, 0.7])
PAPER3 = paper_mixture(3)


def _of_mixture(law: GaussianMixture, scale: float, alpha: float) -> float:
    part = law.parts()
    stds = np.sqrt(part.variances[:, 0]).tolist()
    return mixture_relaxation(part.weights.tolist(), part.means, stds, scale**2, alpha)


def _log_density(law: GaussianMixture, x: float) -> float:
    part = law.parts()
    stds = np.sqrt(part.variances[:, 0]).tolist()
    return mixture_log_density(x, part.weights.tolist(), part.means[:, 0].tolist(), stds)


DIFFUSIONS = (
    DiffusionCase(
        name="gaussian-vp",
        statement="Entropy production of N(1.5, 0.25) under VP, t = 0 … 1.",
        source=KL_IDENTITY,
        formula=lambda: gaussian_relaxation(1.5, 0.25, 1.0, VP_END),
        size=40_000,
        law=LINE,
        noise=VP(),
    ),
    DiffusionCase(
        name="gaussian-vpx",
        statement="Entropy production of N(1.5, 0.25) under VP with scale 0.1 (VPx), t = 0 … 1.",
        source=KL_IDENTITY,
        formula=lambda: gaussian_relaxation(1.5, 0.25, 0.01, VP_END),
        size=40_000,
        law=LINE,
        noise=VP(scale=0.1),
    ),
    DiffusionCase(
        name="gaussian-straight-line",
        statement="Entropy production of N(1.5, 0.25) under StraightLine with scale 0.1, t = 0 … 1.",
        source=KL_IDENTITY + "; p_T = p_eq",
        formula=lambda: gaussian_relaxation(1.5, 0.25, 0.01, 0.0),
        size=40_000,
        law=LINE,
        noise=StraightLine(scale=0.1),
    ),
    DiffusionCase(
        name="gaussian-3d",
        statement="Entropy production of a Gaussian in d = 3 with variances 2, 0.5, 0.1 along turned axes under VP.",
        source=KL_IDENTITY + ", summed over the principal axes",
        formula=lambda: gaussian_relaxation(MEAN3, VARIANCES3, 1.0, VP_END),
        size=10_000,
        law=SPACE,
        noise=VP(),
    ),
    DiffusionCase(
        name="bimodal-vp",
        statement="Entropy production of 0.4 N(−1.5, 0.3²) + 0.6 N(1, 0.5²) (BIM-1) under VP.",
        source=KL_QUADRATURE,
        formula=lambda: _of_mixture(BIM1, 1.0, VP_END),
        size=20_000,
        law=BIM1,
        noise=VP(),
    ),
    DiffusionCase(
        name="bimodal-straight-line",
        statement="Entropy production of 0.4 N(−1.5, 0.3²) + 0.6 N(1, 0.5²) (BIM-1) under StraightLine with scale 0.1.",
        source=KL_QUADRATURE + "; p_T = p_eq",
        formula=lambda: _of_mixture(BIM1, 0.1, 0.0),
        size=20_000,
        law=BIM1,
        noise=StraightLine(scale=0.1),
    ),
    DiffusionCase(
        name="bimodal-vpx",
        statement="Entropy production of 0.3 N(−2, 0.25²) + 0.7 N(1, 0.4²) (BIM-2) under VP with scale 0.1 (VPx).",
        source=KL_QUADRATURE,
        formula=lambda: _of_mixture(BIM2, 0.1, VP_END),
        size=20_000,
        law=BIM2,
        noise=VP(scale=0.1),
    ),
    DiffusionCase(
        name="paper-mixture",
        statement="Entropy production of the published five-component mixture in d = 3 under VP.",
        source=KL_QUADRATURE,
        formula=lambda: _of_mixture(PAPER3, 1.0, VP_END),
        size=20_000,
        law=PAPER3,
        noise=VP(),
    ),
    LikelihoodCase(
        name="log-likelihood",
        statement="ln p_0(0.7) of BIM-1 by the probability flow of VP.",
        source="the density itself; change of variables along the flow (arXiv 1806.07366)",
        formula=lambda: _log_density(BIM1, 0.7),
        size=1,
        law=BIM1,
        noise=VP(),
        point=(0.7,),
    ),
    LikelihoodCase(
        name="log-likelihood-valley",
        statement="ln p_0(−0.4) of BIM-1, between the components.",
        source="the density itself; change of variables along the flow (arXiv 1806.07366)",
        formula=lambda: _log_density(BIM1, -0.4),
        size=1,
        law=BIM1,
        noise=VP(),
        point=(-0.4,),
    ),
)
