"""Point clouds: what is special to them.  Their scores and densities are tested with the others in test_scores.py."""

import numpy as np
import pytest
from scipy.special import softmax

from thermodiff.kernels.clouds import TILE, cloud_density, cloud_score, pack_cloud
from thermodiff.kernels.tasks import at_points


@pytest.mark.parametrize("count", [1, 3, 4, 5, TILE - 1, TILE, TILE + 1, 3 * TILE + 2])
def test_any_number_of_points_fills_its_tiles(count: int) -> None:
    """Sweeps take four points at a time, tiles TILE of them; both have remainders."""
    rng = np.random.default_rng(count)
    cloud, x = rng.normal(size=(count, 3)), rng.normal(size=(300, 3))
    alpha, sigma = 0.8, 0.5
    square = ((x[:, None, :] - alpha * cloud) ** 2).sum(axis=2)
    weights = softmax(-0.5 * square / sigma**2, axis=1)
    expected = (alpha * weights @ cloud - x) / sigma**2
    found = at_points(cloud_score, pack_cloud(cloud), (alpha, sigma**2, 0.0, 1.0), x, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_the_running_softmax_survives_points_that_come_in_the_worst_order() -> None:
    """Each tile is closer than all before it: everything is rescaled every time."""
    cloud = np.linspace(50.0, 0.0, 4 * TILE)[:, None]
    x = np.zeros((256, 1))
    found = at_points(cloud_density, pack_cloud(cloud), (1.0, 0.01, 0.0, 0.0), x, 2)[:, 0]
    logits = -0.5 * cloud[:, 0] ** 2 / 0.01
    expected = np.logaddexp.reduce(logits) - np.log(cloud.size) - 0.5 * np.log(2.0 * np.pi * 0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
