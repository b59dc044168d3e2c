"""Ranges of blocks over executors."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from packed_laws import LAWS

from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import MOST_BLOCKS, TASK_STEPS, Ranged, at_points, blocks_per_task, over_blocks


def indices(first: int, last: int) -> np.ndarray:
    """Two rows of global path indices."""
    return np.stack([np.arange(first * LANES, last * LANES), -np.arange(first * LANES, last * LANES)])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_every_path_is_visited_once_in_order(count: int, chunk: int | None) -> None:
    np.testing.assert_array_equal(over_blocks(indices, count, None, chunk), [np.arange(count), -np.arange(count)])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_do_not_depend_on_the_executor(workers: int) -> None:
    with ThreadPoolExecutor(workers) as executor:
        np.testing.assert_array_equal(over_blocks(indices, 3000, executor, 2), indices(0, 12)[:, :3000])


def test_a_given_executor_gets_one_task_for_each_chunk() -> None:
    calls = []

    class Recorder(ThreadPoolExecutor):
        def submit(self, function, /, *arguments, **keywords):
            calls.append(arguments)
            return super().submit(function, *arguments, **keywords)

    with Recorder(1) as executor:
        over_blocks(indices, 3000, executor, 2)
    assert len(calls) == 6


def test_chunks_hold_the_asked_number_of_blocks() -> None:
    seen = []

    def record(first: int, last: int) -> np.ndarray:
        seen.append((first, last))
        return indices(first, last)

    over_blocks(record, 7 * LANES, None, 3)
    assert sorted(seen) == [(0, 3), (3, 6), (6, 7)]


def test_ranged_survives_pickling() -> None:
    task = pickle.loads(pickle.dumps(Ranged(indices, [(0, 1), (1, 3)])))
    np.testing.assert_array_equal(task(1), indices(1, 3))


@pytest.mark.parametrize("n", [1, 256, 700])
def test_at_points_gives_one_row_for_each_point(n: int) -> None:
    law = LAWS["isotropic, three components, d = 3"]
    x = np.random.default_rng(0).normal(size=(n, 3))
    whole = at_points(law.score, law.params, (0.7, 0.4, 0.0, 1.0), x, 4)
    assert whole.shape == (n, 4)
    assert whole.flags.c_contiguous
    single = at_points(law.score, law.params, (0.7, 0.4, 0.0, 1.0), x[n - 1 :], 4)
    np.testing.assert_array_equal(whole[-1:], single)


@pytest.mark.parametrize("paths", [1, 256, 2560, 102_400, 10**7])
@pytest.mark.parametrize("steps", [1, 1000, 10**6])
def test_tasks_are_worth_handing_out_and_many_where_there_is_work(paths: int, steps: int) -> None:
    blocks, per_task = -(-paths // LANES), blocks_per_task(paths, steps)
    assert 1 <= per_task <= min(blocks, MOST_BLOCKS)
    if per_task < min(blocks, MOST_BLOCKS):
        assert TASK_STEPS <= per_task * LANES * steps < TASK_STEPS + LANES * steps
    if paths * steps >= 16 * TASK_STEPS:
        # With fewer than some ten tasks the last of them would be waited for.
        assert -(-blocks // per_task) >= min(blocks, 16)


def test_longer_tasks_for_whoever_writes_each_to_a_file() -> None:
    assert blocks_per_task(10**6, 10**4, 2**28) == -(-(2**28) // (LANES * 10**4))
    assert blocks_per_task(10**6, 1, 2**28) == MOST_BLOCKS
