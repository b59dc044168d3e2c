"""What is kept of a run as its pieces come: in memory, in a file, in a Zarr store, or in an array of the caller's."""

from __future__ import annotations

import errno
import itertools
import math
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import require_folder
from thermodiff.integrate.checkpoint import Total, leftovers
from thermodiff.integrate.path import Path
from thermodiff.integrate.reducers import Reducer, Running

FloatArray = npt.NDArray[np.float64]

ZARR_CHUNK = 2**19
"""Numbers in a chunk of a Zarr store, about: 4 MB."""


@dataclass
class Kept:
    """States (T, n, d) or what a reducer makes of them, and heat or work (T, n), by pieces of paths."""

    states: Any
    also: dict[str, FloatArray]
    running: Running | None
    lost: npt.NDArray[np.bool_]
    file: _OnDisk | None

    @classmethod
    def made(cls, shape: tuple[int, int, int], piece: int, also: tuple[str, ...], reduce: Reducer | None, out: Any) -> Kept:
        """For states of this shape, which come in pieces of ``piece`` paths.

        Raises
        ------
        TypeError, ValueError, ImportError
            If ``out`` cannot take them.
        """
        if out is not None and reduce is not None:
            raise ValueError("out= keeps the states and reduce= does not; pass one of them.")
        file, states = None, None
        if isinstance(out, str | os.PathLike):
            file = _OnDisk.made(FilePath(out), shape, piece)
            states = file.array
        elif out is not None:
            if getattr(out, "shape", None) != shape:
                raise ValueError(f"out must have shape {shape}, got {getattr(out, 'shape', None)}.")
            if np.dtype(out.dtype).kind != "f":
                raise TypeError(f"out must hold floating-point numbers, got {out.dtype}.")
            if isinstance(out, np.ndarray) and not out.flags.writeable:
                raise ValueError('out is read-only; pass an array that can be written to (a memory map with mode="r+").')
            states = out
        elif reduce is None:
            states = np.empty(shape)
        running = None if reduce is None else Running(reduce)
        return cls(states, {name: np.empty(shape[:2]) for name in also}, running, np.zeros(shape[1], dtype=bool), file)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        """Half a file is not kept."""
        if kind is not None and self.file is not None:
            _remove(self.file.temporary)

    def begin(self, total: Total | None) -> int:
        """Go on from what a reducer had; returns of how many chunks."""
        if total is None or self.running is None:
            return 0
        self.running.total, self.running.begun = total.value, total.begun
        self.lost[total.lost] = True
        return total.done

    def total(self, done: int) -> Total:
        """What the reducer has after ``done`` pieces."""
        assert self.running is not None
        return Total(done, self.running.begun, self.running.total, np.flatnonzero(self.lost))

    def put(self, part: slice, piece: dict[str, Any]) -> None:
        """Take the paths ``part``."""
        if self.states is not None:
            self.states[:, part] = piece["states"]
        for name, values in self.also.items():
            values[:, part] = piece[name]
        if self.running is not None:
            self.running.add(piece.get("reduced", []))
        self.lost[part] = piece["lost"]

    def path(self, times: FloatArray, key: tuple[int, int] | None, marked: bool) -> Path:
        """All pieces together; a file gets its name now."""
        return Path(
            times=times,
            lam=None,
            states=self.states if self.file is None else self.file.finished(),
            key=key,
            denoised=False,
            **self.also,
            reduced=None if self.running is None else self.running.result(),
            diverged=self.lost if marked else None,
        )


_RUNS = itertools.count()


@dataclass
class _OnDisk:
    """An array under a temporary name, which ``read`` opens under its own."""

    array: Any
    temporary: FilePath
    target: FilePath
    read: Callable[[FilePath], Any]

    @classmethod
    def made(cls, target: FilePath, shape: tuple[int, int, int], piece: int) -> _OnDisk:
        if target.suffix not in (".npy", ".zarr"):
            raise ValueError(f"out must be a .npy file, a .zarr store or an array that takes slices, got {str(target)!r}.")
        require_folder("out", target.parent)
        zarr = _zarr() if target.suffix == ".zarr" else None
        if zarr is None and target.is_dir():
            raise ValueError(f"out: {str(target)!r} is a folder, and a file is to be written there; choose another name.")
        if zarr is not None and target.exists():
            try:
                zarr.open_array(str(target), mode="r")
            except (OSError, ValueError):
                raise ValueError(f"out: {str(target)!r} exists and is not a Zarr array; choose another name.") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in leftovers(target.parent, target.name):
            _remove(old)
        # A name for each run: two with the same target must not write into one file.
        temporary = target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.{next(_RUNS)}.tmp")
        if zarr is None:
            size, free = 8 * math.prod(shape), shutil.disk_usage(target.parent).free
            if size > free:
                raise _no_room(target, size, f"{free / 1e9:.3g} GB are free", errno.ENOSPC)
            try:
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float64, shape=shape)
                _reserve(temporary, target)
            except BaseException:
                _remove(temporary)
                raise
            return cls(array, temporary, target, lambda file: np.load(file, mmap_mode="r", allow_pickle=False))
        _remove(temporary)
        # A piece of paths begins and ends with chunks, which are then written once each.
        paths = min(piece, shape[1])
        chunks = (min(max(ZARR_CHUNK // (paths * shape[2]), 1), shape[0]), paths, shape[2])
        array = zarr.create_array(str(temporary), shape=shape, chunks=chunks, dtype="float64")
        return cls(array, temporary, target, lambda file: zarr.open_array(str(file), mode="r"))

    def finished(self) -> Any:
        """The whole array under its own name, read as it is asked for."""
        if isinstance(self.array, np.memmap):
            self.array.flush()
        if self.temporary.is_dir() and self.target.exists():
            # A directory does not replace another.
            old = self.target.with_name(f".{self.target.name}.{os.getpid()}.old")
            os.rename(self.target, old)
            os.rename(self.temporary, self.target)
            _remove(old)
        else:
            os.replace(self.temporary, self.target)
        return self.read(self.target)


def _reserve(temporary: FilePath, target: FilePath) -> None:
    """Take the room on the disk now: pages of a memory map that find none later end the process without a word."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = temporary.stat().st_size
    try:
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        # Some file systems cannot reserve; there one has to trust that what is free now stays free.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise _no_room(target, size, f"they could not be reserved ({error.strerror})", error.errno) from None


def _no_room(target: FilePath, size: int, found: str, number: int | None) -> OSError:
    cure = f"make room for {size} bytes, name a place on another disk, ask for fewer times or paths, or use reduce="
    return OSError(number, f"out needs {size / 1e9:.3g} GB for the states, and {found}; {cure}", str(target))


def _remove(place: FilePath) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise ImportError("out=\"….zarr\" needs zarr; install it with: pip install 'thermodiff[zarr]'") from None
    return zarr
