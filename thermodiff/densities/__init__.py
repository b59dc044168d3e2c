"""Laws of the data: sample, log_prob, score, entropy."""

from thermodiff.densities.base import Density as Density
from thermodiff.densities.empirical import PointCloud as PointCloud
from thermodiff.densities.empirical import Samples as Samples
from thermodiff.densities.mixture import Gaussian as Gaussian
from thermodiff.densities.mixture import GaussianMixture as GaussianMixture
from thermodiff.densities.mixture import paper_mixture as paper_mixture
