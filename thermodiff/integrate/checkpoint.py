"""Finished chunks of a run on disk: a run that was killed goes on from them, to the same bits."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import SYNCED, count, require_folder, require_writable, write_atomically
from thermodiff.integrate.packing import packed, unpacked
from thermodiff.integrate.reducers import Reducer
from thermodiff.kernels.tasks import TASK_STEPS, blocks_per_task
from thermodiff.processes import Langevin, Linear

SEAL = 32
"""Bytes at the end of a chunk's file, which say of which run and which chunk it is, and that it is whole."""
TOTAL = 2**64 - 1
"""In place of a chunk's number, for what a reducer has so far."""
PART = 2**62
"""Added to the number of a chunk that is not finished."""
HEAD = 8
"""Bytes before each stretch in the file of such a chunk, which hold its length."""
SAVED_TASKS, SAVED_STEPS = 256, 2**28
"""Tasks of a run with a checkpoint, and the most steps of one: each is a file, and an hour's run must not make a million."""
PATIENCE = 1.0
"""Seconds between two records of what a reducer has so far, at least."""


class Total(NamedTuple):
    """What a reducer made of the first ``done`` chunks (``begun``: of any path), and which of their paths were lost."""

    done: int
    begun: bool
    value: Any
    lost: npt.NDArray[np.int64]


class Checkpoint:
    """A directory with ``run.json``, which says what run it is, and one ``.npz`` for each finished chunk.

    Of a run with a reducer, ``total.npz`` holds what it has so far, and there are chunks for heat and work only.  A chunk of
    a run that is cut in time has a file to which each stretch adds what is new, until it is finished.  Where the
    record is damaged, a file beside it that is sealed as one of the asked run will do in its place.

    Raises
    ------
    TypeError, ValueError
        If it is no path, or the directory holds another run.
    """

    def __init__(self, folder: Any, description: dict[str, Any], rng: Any, key: npt.NDArray[np.uint32]) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"checkpoint must be the path of a folder, got {folder!r:.60}.")
        directory = Path(folder)
        self.directory, self.key = directory, key
        self._since = time.monotonic()
        self.merged = 0
        """Chunks that are in what `total` read or `save_total` wrote last."""
        self._ends: dict[int, int] = {}
        self._dropped, self._tidy = 0, False
        if directory == Path():
            raise ValueError("checkpoint must name a folder for this run alone, got the current folder; name another.")
        require_folder("checkpoint", directory)
        manifest = directory / "run.json"
        self._begun = manifest.exists()
        known = _record(manifest) if self._begun else None
        if known is not None:
            words = known.pop("key")
            self.key = np.array(words, dtype=np.uint32)
            other = [name for name in description if known.get(name) != description[name]]
            if rng is not None and words != key.tolist():
                other.append("rng")
            if other:
                raise ValueError(
                    f"{directory} holds another run (it differs in {', '.join(_asked(other))}); choose another directory."
                )
        elif not self._begun and (any(directory.glob("chunk-*.npz")) or (directory / "total.npz").exists()):
            raise ValueError(f"{directory} holds chunks but no run.json that says of which run; choose another directory.")
        self.run = json.dumps({**description, "key": self.key.tolist()}, sort_keys=True).encode()
        if self._begun and known is None:
            if not self._holds_this_run():
                raise ValueError(f"{manifest} is not the record of a run; choose another directory.")
            warnings.warn(f"{manifest} is damaged; the chunks beside it are of this run.", RuntimeWarning, stacklevel=3)
            self._begun = False

    def _holds_this_run(self) -> bool:
        """Whether any file is sealed as one of the asked run."""
        files = [(self.directory / "total.npz", TOTAL)]
        files += [(file, int(file.stem[6:])) for file in self.directory.glob("chunk-*.npz") if file.stem[6:].isdecimal()]
        return any(file.is_file() and self._opened(file.read_bytes(), k) is not None for file, k in files)

    def _file(self, k: int) -> Path:
        return self.directory / f"chunk-{k:07d}.npz"

    def missing(self, chunks: int) -> list[int]:
        """Chunks that are still to be computed.

        Raises
        ------
        OSError
            If there are any, and they could not be written.
        """
        missing = [k for k in range(chunks) if not self._file(k).exists()]
        if missing:
            require_writable("checkpoint", self.directory)
        return missing

    def load(self, k: int) -> dict[str, np.ndarray] | None:
        """A finished chunk; None, with a warning, where its file is not what `save` wrote for this chunk of this run."""
        content = self._read(self._file(k), k)
        if content is None:
            return None
        return _loaded(content)

    def _part(self, k: int) -> Path:
        return self.directory / f"part-{k:07d}.npz"

    def parts(self, k: int, steps: list[int]) -> list[dict[str, np.ndarray]]:
        """The stretches that are behind a chunk that is not finished, as far as they are whole, with a warning if not.

        Each is known by the number of the step that comes after it, in ``steps``.
        """
        content = self._part(k).read_bytes() if self._part(k).exists() else b""
        found, place = [], 0
        while place < len(content) and len(found) < len(steps):
            end = place + HEAD + int.from_bytes(content[place : place + HEAD], "little") + SEAL
            inside = self._opened(content[place + HEAD : end], PART + k, steps[len(found)]) if end <= len(content) else None
            if inside is None:
                warnings.warn(
                    f"{self._part(k)} is damaged, or was being written when the run ended; what comes after stretch "
                    f"{len(found)} of chunk {k} is computed again.", RuntimeWarning, stacklevel=2,
                )  # fmt: skip
                break
            found.append(_loaded(inside))
            place = end
        self._ends[k] = place
        return found

    def add_part(self, k: int, step: int, new: dict[str, np.ndarray]) -> None:
        """Write what the stretch before ``step`` adds to a chunk behind those that come first, which `parts` has read."""
        content, file, place = _stored(new), self._part(k), self._ends.get(k, 0)
        with self._explained(len(content), file):
            self._begin()
            with open(file, "r+b" if place else "wb") as opened:
                opened.seek(place)
                opened.write(len(content).to_bytes(HEAD, "little") + content + self._seal(PART + k, content, step))
                # Behind it may be what a run that was killed left.
                opened.truncate()
                self._ends[k] = opened.tell()
                if len(content) < SYNCED:
                    opened.flush()
                    os.fsync(opened.fileno())

    def drop_part(self, k: int) -> None:
        """Forget how far a chunk was: what came of it is in another file."""
        self._part(k).unlink(missing_ok=True)

    def drop_parts(self, done: int) -> None:
        """Forget how far the first ``done`` chunks were."""
        for k in range(self._dropped, done):
            self.drop_part(k)
        self._dropped = max(done, self._dropped)

    def save(self, k: int, piece: dict[str, np.ndarray]) -> None:
        """Write a finished chunk; half a file is never seen."""
        self._write(self._file(k), k, _stored(piece))

    def total(self) -> Total | None:
        """What the reducer had; None where it had nothing, or, with a warning, where its file is damaged.

        Raises
        ------
        OSError
            If what it will have could not be written.
        """
        require_writable("checkpoint", self.directory)
        file = self.directory / "total.npz"
        content = self._read(file, TOTAL) if file.exists() else None
        if content is None:
            return None
        total = Total(*unpacked(content))
        self.merged = total.done
        return total

    def due(self) -> bool:
        """Whether it is time for another record of what the reducer has."""
        return time.monotonic() - self._since > PATIENCE

    def save_total(self, total: Total) -> None:
        """Write what the reducer has so far.

        Raises
        ------
        TypeError
            If it cannot be written without a pickle.
        """
        try:
            content = packed(tuple(total))
        except TypeError as error:
            raise TypeError(
                f"checkpoint: the reducer's `of` or `merge` gave a {error}, or run without checkpoint=."
            ) from None
        self._write(self.directory / "total.npz", TOTAL, content)
        self._since, self.merged = time.monotonic(), total.done

    def _read(self, file: Path, k: int) -> bytes | None:
        content = self._opened(file.read_bytes(), k)
        if content is None:
            warnings.warn(
                f"{file} is damaged, or of another run; what it held is computed again.", RuntimeWarning, stacklevel=2
            )
        return content

    def _opened(self, content: bytes, k: int, step: int = 0) -> bytes | None:
        """What was sealed; None where the seal is not that of this chunk (and stretch) of this run."""
        return content[:-SEAL] if content[-SEAL:] == self._seal(k, content[:-SEAL], step) else None

    def _begin(self) -> None:
        """The record of the run comes with the first file: a run that fails before leaves nothing in the way of another."""
        if not self._tidy:
            for old in leftovers(self.directory, ""):
                if old.is_file():
                    old.unlink(missing_ok=True)
            self._tidy = True
        if not self._begun:
            write_atomically(self.directory / "run.json", self.run)
            self._begun = True

    def _write(self, file: Path, k: int, content: bytes) -> None:
        with self._explained(len(content), file):
            self._begin()
            write_atomically(file, content + self._seal(k, content))

    @contextmanager
    def _explained(self, size: int, file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = (
                f"checkpoint: a file of {size} bytes could not be written ({error.strerror}); what was finished "
                "before is kept: mend this (make room on the disk), and the same call goes on from there"
            )
            raise OSError(error.errno, reason, str(file)) from error

    def _seal(self, k: int, content: bytes, step: int = 0) -> bytes:
        digest = hashlib.blake2b(self.run, digest_size=SEAL)
        digest.update(k.to_bytes(8, "little"))
        if step:
            digest.update(step.to_bytes(8, "little"))
        digest.update(content)
        return digest.digest()


def leftovers(folder: Path, name: str) -> list[Path]:
    """Temporary files for ``name`` ("" for any) of runs on this machine that are no more."""
    pattern = f".{glob.escape(name) or '*'}.{glob.escape(platform.node())}.*.tmp"
    pids = {old: old.name.split(".")[-3] for old in folder.glob(pattern)}
    return [old for old, pid in pids.items() if pid.isdigit() and int(pid) != os.getpid() and not _alive(int(pid))]


def _alive(pid: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _stored(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _loaded(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)


def _record(manifest: Path) -> dict[str, Any] | None:
    """What a record says; None where it is none, or damaged."""
    try:
        known = json.loads(manifest.read_text())
        if np.array(known["key"], dtype=np.uint32).shape != (2,):
            return None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, IsADirectoryError):
        return None
    return known


def _asked(names: list[str]) -> list[str]:
    """What was asked for differently: the counts of steps follow from the times and dt, and the chunks from the steps."""
    names = ["dt" if name == "counts" else name for name in names if name != "counts" or "times" not in names]
    return [name for name in names if name != "chunk" or not {"dt", "times", "x0"} & set(names)]


def per_task(paths: int, steps: int, chunk: Any, saved: bool) -> int:
    """Blocks of a task, ``steps`` being those of all coordinates of a path: ``chunk``, or more where they are ``saved``."""
    if chunk is not None:
        return count("chunk", chunk)
    longest = TASK_STEPS if not saved else max(TASK_STEPS, min(paths * steps // SAVED_TASKS, SAVED_STEPS))
    return blocks_per_task(paths, steps, longest)


def description(
    process: Langevin, x0: npt.NDArray[np.float64], times: npt.NDArray[np.float64], mix: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """What must be the same of a process and its starts when a run goes on."""
    from thermodiff.kernels.user import fingerprint

    # A D(t) is known by its values: it may be an object of any kind.
    noise = process.diffusivity if process.state_dependent else mix
    drift = "linear" if isinstance(process, Linear) else fingerprint(process.drift)
    code = [drift, fingerprint(noise) if callable(noise) else _digest(np.ascontiguousarray(noise).tobytes())]
    return {
        "process": repr(process),
        "code": _digest(repr(code[0]).encode()),
        "params": process.params.tolist(),
        "diffusivity": _digest(repr(code[1]).encode()),
        "diffusivity_params": process.diffusivity_params.tolist(),
        "interpretation": process.interpretation,
        "walls": process.walls.tolist(),
        "x0": _digest(x0.tobytes()),
        "times": times.tolist(),
    }


def code_of(function: Callable[..., Any]) -> str:
    """What a function computes, as a few letters."""
    from thermodiff.kernels.user import fingerprint

    return _digest(fingerprint(function).encode())


def reducer_description(reduce: Reducer | None) -> str | None:
    """The class of a reducer, what its methods compute, and its numbers."""
    if reduce is None:
        return None
    from thermodiff.kernels.user import fingerprint

    methods = [getattr(getattr(reduce, name), "__func__", getattr(reduce, name)) for name in ("of", "merge", "result")]
    content = [fingerprint(method) for method in methods] + [fingerprint(getattr(reduce, "__dict__", {}))]
    return f"{type(reduce).__qualname__} {_digest(repr(content).encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
