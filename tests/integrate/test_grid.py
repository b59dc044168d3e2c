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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 15, 99])
def test_parts_of_a_grid_hold_all_steps_once(size: int) -> None:
    whole = Grid.of([0.0, 0.5, 0.6, 1.5], 0.1, 1)
    total, steps = int(whole.counts.sum()), []
    for first in range(0, total, size):
        part, j = whole.part(first, min(first + size, total))
        assert (part.counts > 0).all()
        np.testing.assert_array_equal(part.times[:-1], whole.times[j : j + part.counts.size])
        for t, h, skip, n in zip(part.times[:-1], part.widths, part.skips, part.counts, strict=True):
            steps += [t + h * (skip + i) for i in range(n)]
    expected = [t + h * i for t, h, n in zip(whole.times[:-1], whole.widths, whole.counts, strict=True) for i in range(n)]
    np.testing.assert_array_equal(steps, expected)
