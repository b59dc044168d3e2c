"""The record of a run on disk."""

import contextlib
import errno
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import thermodiff as td
from thermodiff.integrate.checkpoint import Checkpoint, Total, reducer_description

KEY = np.array([1, 2], dtype=np.uint32)
RUN = {"code": "abc", "params": [1.0, 0.1], "reduce": None}
PIECE = {"states": np.arange(6.0).reshape(1, 3, 2), "lost": np.array([False, True, False])}


def test_chunks_come_back_as_they_were(tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path / "a" / "run", RUN, 0, KEY)
    assert saved.missing(3) == [0, 1, 2]
    saved.save(1, PIECE)
    assert saved.missing(3) == [0, 2]
    found = Checkpoint(tmp_path / "a" / "run", RUN, 0, KEY).load(1)
    assert set(found) == set(PIECE)
    for name, values in PIECE.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert sorted(file.name for file in (tmp_path / "a" / "run").iterdir()) == ["chunk-0000001.npz", "run.json"]


def test_the_key_of_an_unseeded_run_is_kept(tmp_path: Path) -> None:
    Checkpoint(tmp_path, RUN, None, KEY).save(0, PIECE)
    np.testing.assert_array_equal(Checkpoint(tmp_path, RUN, None, KEY + np.uint32(1)).key, KEY)
    with pytest.raises(ValueError, match=r"holds another run \(it differs in rng\)"):
        Checkpoint(tmp_path, RUN, 3, KEY + np.uint32(1))


def test_a_run_that_computed_nothing_leaves_nothing(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run", RUN, 0, KEY)
    assert not (tmp_path / "run").exists()
    Checkpoint(tmp_path / "run", RUN | {"code": "mended"}, 0, KEY).save(0, PIECE)
    assert Checkpoint(tmp_path / "run", RUN | {"code": "mended"}, 0, KEY).missing(1) == []


def test_what_differs_is_named(tmp_path: Path) -> None:
    Checkpoint(tmp_path, RUN, 0, KEY).save(0, PIECE)
    with pytest.raises(ValueError, match=r"differs in code, params, rng"):
        Checkpoint(tmp_path, RUN | {"code": "b", "params": [1.0, 0.1000001]}, 0, KEY + np.uint32(1))


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", '"key"', "{}", '{"key": 5}', '{"key": "ab"}', '{"key": [1]}', '{"key": [1, -2]}',
        '{"key": [1, 99999999999]}', '{"key": null}', "\x00\x01",
    ],
)  # fmt: skip
def test_a_record_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run; choose another directory"):
        Checkpoint(tmp_path, RUN, None, KEY)
    assert (tmp_path / "run.json").read_text() == content


def test_a_record_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="is not the record of a run"):
        Checkpoint(tmp_path, RUN, None, KEY)


def test_chunks_without_a_record_are_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, RUN, 0, KEY).save(0, PIECE)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds chunks but no run\.json"):
        Checkpoint(tmp_path, RUN, 0, KEY)


def test_steps_and_chunks_are_named_by_what_was_asked_for(tmp_path: Path) -> None:
    run = RUN | {"times": [0.0, 1.0], "counts": [10], "chunk": 2, "x0": "ab"}
    Checkpoint(tmp_path, run, 0, KEY).save(0, PIECE)
    for changes, what in (
        ({"counts": [20], "chunk": 1}, "dt"),
        ({"counts": [20], "times": [0.0, 2.0]}, "times"),
        ({"x0": "cd", "chunk": 3}, "x0"),
        ({"chunk": 3}, "chunk"),
    ):
        with pytest.raises(ValueError, match=rf"holds another run \(it differs in {what}\)"):
            Checkpoint(tmp_path, run | changes, 0, KEY)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_is_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    with pytest.raises(
        ValueError, match=r"checkpoint: '.*file' is a file, and a folder is needed there; choose another name"
    ):
        Checkpoint(tmp_path / name, RUN, 0, KEY)


def test_the_current_folder_is_no_place_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must name a folder for this run alone, got the current folder"):
        Checkpoint(Path(""), RUN, 0, KEY)
    assert list(tmp_path.iterdir()) == []


def stored(save, values) -> bytes:
    buffer = io.BytesIO()
    save(buffer, values)
    return buffer.getvalue()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"x" * 99,
        lambda content: flipped(content, 5),
        lambda content: flipped(content, len(content) // 2),
        lambda content: flipped(content, len(content) - 1),
        lambda content: stored(np.savez, np.ones(3)),
        lambda content: stored(np.save, np.ones(3)),
    ],
)
def test_a_damaged_chunk_is_named(damage, tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path, RUN, 0, KEY)
    saved.save(4, PIECE)
    file = tmp_path / "chunk-0000004.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"chunk-0000004\.npz is damaged, or of another run; .* computed again"):
        assert saved.load(4) is None


def test_a_chunk_in_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Of the same run, or of another with the same chunks."""
    runs = [Checkpoint(tmp_path / name, RUN | {"code": name}, 0, KEY) for name in "ab"]
    for saved in runs:
        for k in range(2):
            saved.save(k, PIECE)
    place = tmp_path / "a" / "chunk-0000000.npz"
    for other in (tmp_path / "a" / "chunk-0000001.npz", tmp_path / "b" / "chunk-0000000.npz"):
        place.write_bytes(other.read_bytes())
        with pytest.warns(RuntimeWarning, match=re.escape(f"{place} is damaged, or of another run")):
            assert runs[0].load(0) is None


def test_what_a_reducer_has_comes_back(tmp_path: Path) -> None:
    total = Total(3, True, (5, {"sum": np.arange(4.0)}), np.array([2, 7]))
    saved = Checkpoint(tmp_path, RUN, 0, KEY)
    assert saved.total() is None
    saved.save_total(total)
    found = Checkpoint(tmp_path, RUN, 0, KEY).total()
    assert found is not None
    assert (found.done, found.begun, found.value[0]) == (3, True, 5)
    np.testing.assert_array_equal(found.value[1]["sum"], np.arange(4.0))
    np.testing.assert_array_equal(found.lost, [2, 7])
    (tmp_path / "total.npz").write_bytes(flipped((tmp_path / "total.npz").read_bytes(), 40))
    with pytest.warns(RuntimeWarning, match=r"total\.npz is damaged"):
        assert saved.total() is None
    with pytest.raises(
        TypeError, match="the reducer's `of` or `merge` gave a set, and only numbers, .* without checkpoint="
    ):
        saved.save_total(Total(1, True, {1, 2}, np.zeros(0, dtype=np.int64)))


class Sum:
    def __init__(self, power: int) -> None:
        self.power = power

    def of(self, states):
        return (states**self.power).sum(axis=1)

    def merge(self, one, two):
        return one + two

    def result(self, total):
        return total


class Least(Sum):
    def of(self, states):
        return states.min(axis=1)


def test_reducers_are_known_by_what_they_compute() -> None:
    names = [reducer_description(reducer) for reducer in (Sum(1), Sum(2), Least(1), None)]
    assert len(set(names)) == 4
    assert reducer_description(Sum(1)) == names[0]
    edges = [reducer_description(td.Histogram(values)) for values in ([0.0, 0.5, 1.0], [0.0, 0.6, 1.0])]
    assert edges[0] != edges[1]


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    Checkpoint(tmp_path, RUN, 0, KEY).save(0, PIECE)
    assert json.loads((tmp_path / "run.json").read_text()) == RUN | {"key": [1, 2]}


def no_room(*given, **named) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_computed(tmp_path: Path, monkeypatch) -> None:
    saved = Checkpoint(tmp_path / "run", RUN, 0, KEY)
    assert saved.missing(2) == [0, 1]
    assert saved.total() is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("thermodiff._check.tempfile.TemporaryFile", no_room)
    for ask in (lambda: saved.missing(2), saved.total):
        with pytest.raises(OSError, match=r"checkpoint: nothing can be written there \(No space.*choose another.*run'"):
            ask()
    computed = []
    with pytest.raises(OSError, match="nothing can be written there"):
        td.simulate(
            td.Linear(-np.eye(1), np.zeros(1), 1.0), np.zeros((600, 1)), 1.0, 0.1, chunk=1, checkpoint=tmp_path / "run",
            progress=lambda done, tasks: computed.append(done),
        )  # fmt: skip
    assert computed == []
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch) -> None:
    Checkpoint(tmp_path, RUN, 0, KEY).save(0, PIECE)
    monkeypatch.setattr("thermodiff._check.tempfile.TemporaryFile", no_room)
    saved = Checkpoint(tmp_path, RUN, 0, KEY)
    assert saved.missing(1) == []
    assert saved.load(0) is not None


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    saved = Checkpoint(tmp_path, RUN, 0, KEY)
    saved.save(0, PIECE)
    message = (
        r"checkpoint: a file of \d+ bytes could not be written \(No space.*kept.*the same call goes on.*chunk-0000001\.npz"
    )
    with monkeypatch.context() as patched:
        patched.setattr("thermodiff._check.os.replace", no_room)
        with pytest.raises(OSError, match=message) as found:
            saved.save(1, PIECE)
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(tmp_path / "chunk-0000001.npz"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chunk-0000000.npz", "run.json"]
    saved.save(1, PIECE)
    assert Checkpoint(tmp_path, RUN, 0, KEY).missing(2) == []


@pytest.mark.parametrize("content", ["", "{", '{"key": [1]}'])
@pytest.mark.parametrize("kept", ["chunk", "total"])
def test_sealed_files_do_in_place_of_a_damaged_record(content: str, kept: str, tmp_path: Path) -> None:
    saved, record = Checkpoint(tmp_path / "a", RUN, 0, KEY), tmp_path / "a" / "run.json"
    saved.save(3, PIECE) if kept == "chunk" else saved.save_total(Total(1, True, 2.0, np.zeros(0, dtype=np.int64)))
    good = record.read_text()
    record.write_text(content)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.warns(RuntimeWarning, match=r"run\.json is damaged; .* are of this run"):
        again = Checkpoint(tmp_path / "a", RUN, 0, KEY)
    assert 3 not in again.missing(4) if kept == "chunk" else again.total() is not None
    again.save(1, PIECE)
    assert record.read_text() == good
    for run, key in ((RUN | {"code": "b"}, KEY), (RUN, KEY + np.uint32(1))):
        with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
            Checkpoint(tmp_path / "b", run, 0, key)


def test_what_a_killed_run_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    """Of this machine, where that run is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    machine = platform.node()
    dead = tmp_path / f".chunk-0000009.npz.{machine}.{child.pid}.10.tmp"
    others = [
        tmp_path / f".chunk-0000009.npz.{where}.{pid}.3.tmp" for where, pid in ((machine, os.getppid()), ("x", child.pid))
    ]
    for file in (dead, *others):
        file.write_bytes(b"half")
    saved = Checkpoint(tmp_path, RUN, 0, KEY)
    assert dead.exists()  # it may be that there is nothing to write
    saved.save(0, PIECE)
    assert not dead.exists()
    assert all(file.exists() for file in others)


def test_stretches_come_back_as_far_as_they_are_whole(tmp_path: Path) -> None:
    steps, saved = [10, 20, 30], Checkpoint(tmp_path, RUN, 0, KEY)
    assert saved.parts(2, steps) == []
    news = [{"states": np.arange(float(j + 1))} for j in range(3)]
    for step, new in zip(steps, news, strict=True):
        saved.add_part(2, step, new)
    file = tmp_path / "part-0000002.npz"
    content = file.read_bytes()
    found = Checkpoint(tmp_path, RUN, 0, KEY).parts(2, steps)
    assert [record["states"].size for record in found] == [1, 2, 3]
    for end in (0, 5, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:end])
        with pytest.warns(RuntimeWarning, match="is damaged, or was being") if end else contextlib.nullcontext():
            again = Checkpoint(tmp_path, RUN, 0, KEY)
            found = again.parts(2, steps)
        assert [record["states"].size for record in found] == [1, 2, 3][: len(found)]
        for step, new in list(zip(steps, news, strict=True))[len(found) :]:
            again.add_part(2, step, new)
        assert len(file.read_bytes()) == len(content)
        assert len(Checkpoint(tmp_path, RUN, 0, KEY).parts(2, steps)) == 3
    with pytest.warns(RuntimeWarning, match="after stretch 0 of chunk 2 is computed again"):
        assert saved.parts(2, [11, 20]) == []
    saved.drop_parts(3)
    assert not file.exists()
