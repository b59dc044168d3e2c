"""Runs of few long paths: cut in time, they come to the same bits, show how far they are, and go on after a crash."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from user_dynamics import double_well, dragged

import thermodiff as td
from thermodiff.integrate import checkpoint, pieces, run

N = 600
X0 = 0.5 * np.random.default_rng(0).standard_normal((N, 1))
WELL = td.Langevin(double_well, (1.0,), 0.5, dim=1)
RISING = td.Langevin(double_well, (1.0,), lambda t: 0.5 + t, dim=1)
RING = td.Langevin(double_well, (1.0,), 0.5, dim=1, boundaries={0: ("periodic", -1.0, 1.0)})
LINEAR = td.Linear([[-1.0]], [0.3], 0.5)
GIVEN = {"times": [0.0, 0.05, 0.4, 1.0], "dt": 0.01, "rng": 5}


class Stop(Exception):
    pass


def stop_at(count: int):
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise Stop

    return progress


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of some fifteen steps: seven of them."""
    monkeypatch.setattr(run, "STRETCH", 256 * 15)


@pytest.fixture
def whole() -> td.Path:
    return td.simulate(WELL, X0, heat=True, **GIVEN)


def same(one: td.Path, two: td.Path) -> None:
    np.testing.assert_array_equal(one.states, two.states)
    for name in ("heat", "work"):
        first, second = getattr(one, name), getattr(two, name)
        assert (first is None) == (second is None)
        if first is not None:
            # Sums over stretches are rounded otherwise than sums over steps.
            np.testing.assert_allclose(first, second, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("process", [WELL, RISING, RING, LINEAR], ids=["well", "D(t)", "ring", "exact"])
def test_stretches_come_to_the_same_states(process: td.Langevin, monkeypatch: pytest.MonkeyPatch) -> None:
    also = {} if process is LINEAR else {"heat": True}
    path = td.simulate(process, X0, **GIVEN, **also)
    monkeypatch.setattr(run, "STRETCH", 256 * 15)
    for chunk, workers in ((None, None), (1, 2), (2, 1)):
        executor = None if workers is None else ThreadPoolExecutor(workers)
        same(td.simulate(process, X0, chunk=chunk, executor=executor, **GIVEN, **also), path)


def test_work_and_heat_are_the_same_bits_for_any_chunk(short: None) -> None:
    process = td.Langevin(dragged, (2.0, 0.7), 0.5, dim=1)
    paths = [td.simulate(process, X0, heat=True, work=True, chunk=chunk, **GIVEN) for chunk in (1, 3)]
    for name in ("states", "heat", "work"):
        np.testing.assert_array_equal(getattr(paths[0], name), getattr(paths[1], name))


def test_statistics_too(whole: td.Path, short: None) -> None:
    found = td.simulate(WELL, X0, reduce=td.Moments(), **GIVEN).reduced
    np.testing.assert_allclose(found["mean"], whole.states.mean(axis=1), rtol=1e-12, atol=1e-14)


def test_it_shows_how_far_it_is(short: None) -> None:
    seen = []
    td.simulate(WELL, X0, chunk=1, progress=lambda done, total: seen.append((done, total)), **GIVEN)
    assert seen[-1] == (21, 21)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) > 15


@pytest.mark.parametrize("after", [1, 5, 9, 15, 20])
@pytest.mark.parametrize("reduce", [None, td.Moments()], ids=["states", "moments"])
def test_a_crash_costs_a_stretch(after: int, reduce, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = GIVEN | {"heat": True, "chunk": 1, "reduce": reduce}
    path = td.simulate(WELL, X0, **given)
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(after), **given)
    made, call = [], run.Stretch.__call__
    monkeypatch.setattr(run.Stretch, "__call__", lambda self, task: made.append(1) or call(self, task))
    again = td.simulate(WELL, X0, checkpoint=tmp_path, **given)
    # Of each of the three ranges the last stretch of its seven is not written down by itself.
    assert len(made) <= 21 - after + 3
    if reduce is None:
        np.testing.assert_array_equal(again.states, path.states)
    else:
        np.testing.assert_array_equal(again.reduced["covariance"], path.reduced["covariance"])
    np.testing.assert_array_equal(again.heat, path.heat)
    assert not list(tmp_path.glob("part-*"))


def test_a_damaged_part_is_computed_again(tmp_path: Path, short: None) -> None:
    path = td.simulate(WELL, X0, **GIVEN)
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(3), **GIVEN)
    part = next(iter(tmp_path.glob("part-*")))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"part-0000000\.npz is damaged"):
        same(td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN), path)


@pytest.mark.parametrize("damage", [lambda part: part[:-40], lambda part: part + part[:50], lambda part: part + b"x"])
def test_a_stretch_that_was_being_written_costs_that_stretch(
    damage, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = td.simulate(WELL, X0, heat=True, **GIVEN)
    with pytest.raises(Stop):
        td.simulate(WELL, X0, heat=True, checkpoint=tmp_path, progress=stop_at(4), **GIVEN)
    part, made, call = tmp_path / "part-0000000.npz", [], run.Stretch.__call__
    part.write_bytes(damage(part.read_bytes()))
    monkeypatch.setattr(run.Stretch, "__call__", lambda self, task: made.append(1) or call(self, task))
    with (
        pytest.raises(Stop),
        pytest.warns(RuntimeWarning, match=r"part-0000000\.npz is damaged, or was being written.* stretch [34] of chunk 0"),
    ):
        td.simulate(WELL, X0, heat=True, checkpoint=tmp_path, progress=stop_at(6), **GIVEN)
    assert len(made) <= 3
    # What was damaged has been written over.
    same(td.simulate(WELL, X0, heat=True, checkpoint=tmp_path, **GIVEN), path)
    assert len(made) <= 4


@pytest.mark.parametrize("paths", [1, 600])
def test_what_is_written_grows_with_the_states_alone(paths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with their number times that of the stretches, and not with lanes that hold no path."""
    written, stored = [], checkpoint._stored
    monkeypatch.setattr(run, "STRETCH", 256 * 10)
    monkeypatch.setattr(checkpoint, "_stored", lambda arrays: written.append(len(new := stored(arrays))) or new)
    given = {"times": np.linspace(0.0, 4.0, 401), "dt": 0.01, "rng": 5}
    path = td.simulate(WELL, X0[:paths], checkpoint=tmp_path, **given)
    np.testing.assert_array_equal(path.states, td.simulate(WELL, X0[:paths], **given).states)
    assert len(written) == 40
    # The chunk itself, all parts of it, and some bytes around each.
    assert sum(written) < 2.1 * path.states.nbytes + 1500 * len(written)


def test_parts_stay_until_the_total_is_saved(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = GIVEN | {"reduce": td.Moments(), "chunk": 1}
    whole = td.simulate(WELL, X0, **given).reduced
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda self: False)
    for name, value in (("GROUP", 1), ("FEWEST", 1)):
        monkeypatch.setattr(pieces, name, value)
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(16), **given)
    assert not (tmp_path / "total.npz").exists()
    made, call = [], run.Stretch.__call__
    monkeypatch.setattr(run.Stretch, "__call__", lambda self, task: made.append(1) or call(self, task))
    again = td.simulate(WELL, X0, checkpoint=tmp_path, **given).reduced
    np.testing.assert_array_equal(again["covariance"], whole["covariance"])
    # Two ranges of seven stretches were done, but for what the last of them came to.
    assert len(made) <= 21 - 16 + 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.json", "total.npz"]


def test_parts_that_were_cut_otherwise_are_not_taken(
    whole: td.Path, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        td.simulate(WELL, X0, checkpoint=tmp_path, progress=stop_at(3), **GIVEN)
    monkeypatch.setattr(run, "STRETCH", 256 * 11)
    with pytest.warns(RuntimeWarning, match="stretch 0 of chunk 0 is computed again"):
        path = td.simulate(WELL, X0, checkpoint=tmp_path, **GIVEN)
    np.testing.assert_array_equal(path.states, whole.states)


def test_some_ranges_at_a_time(whole: td.Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GROUP", 1), ("FEWEST", 2)):
        monkeypatch.setattr(pieces, name, value)
    same(td.simulate(WELL, X0, heat=True, chunk=1, **GIVEN), whole)


def test_steps_that_are_too_large_are_seen_on_the_way(short: None) -> None:
    process = td.Langevin(td.drift(lambda x, t: (-(1.0 + 300.0 * (0.5 < t < 0.6)) * x[0],)), dim=1)
    with pytest.warns(RuntimeWarning, match="is too large for this drift"):
        td.simulate(process, X0, [0.0, 1.0], 0.01, rng=0, on_divergence="mark")


@pytest.mark.filterwarnings("ignore:the step .* is too large")
def test_lost_paths_are_counted(short: None) -> None:
    process = td.Langevin(td.drift(lambda x, t: (x[0] ** 3,)), dim=1)
    with pytest.raises(td.DivergenceError, match=r"\d+ of 600 paths left the finite numbers, the first at t = "):
        td.simulate(process, X0, 3.0, 0.01, rng=0)
