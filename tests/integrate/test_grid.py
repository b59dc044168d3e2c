"""Steps between asked times, and the same steps with other stops; what `simulate` makes of them is in test_simulate."""

import numpy as np
import pytest

from thermodiff.integrate.grid import MOST_NORMALS, Grid


def test_intervals_are_split_evenly_and_end_at_the_asked_times() -> None:
    grid = Grid.of([1.0, 1.25, 2.0], 0.1, 1)
    np.testing.assert_array_equal(grid.counts, [3, 8])
    np.testing.assert_allclose(grid.widths * grid.counts, [0.25, 0.75], rtol=1e-15)
    np.testing.assert_allclose(grid.ends(), [1.25, 2.0], rtol=1e-15)
    np.testing.assert_allclose(grid.middles[:3], 1.0 + 0.25 / 3.0 * np.array([0.5, 1.5, 2.5]), rtol=1e-15)


def test_more_steps_than_random_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="take a larger dt"):
        Grid.of(1.0, 1.0 / MOST_NORMALS, 2)


@pytest.mark.parametrize("stops", [[], [3], [1, 2, 5, 6, 7, 14], [0, 15, 99]])
def test_a_grid_is_cut_at_steps(stops: list[int]) -> None:
    grid = Grid.of([0.0, 0.5, 1.5], 0.1, 1)
    fine, kept = grid.cut(np.array(stops, dtype=np.int64))
    assert fine.counts.sum() == 15
    assert (fine.counts > 0).all()
    np.testing.assert_allclose(np.concatenate([[0.0], fine.ends()])[kept], grid.times, rtol=1e-14)
    begun = np.concatenate([[0], np.cumsum(fine.counts)[:-1]])
    np.testing.assert_array_equal(begun - fine.skips, np.where(begun < 5, 0, 5))
