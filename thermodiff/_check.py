"""Argument checks.  One form of message: what was given, what is needed, what to do."""

from __future__ import annotations

import itertools
import os
import platform
import tempfile
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class DivergenceError(ArithmeticError):
    """A path or a score left the finite numbers."""


def finite_number(name: str, value: Any) -> float:
    """``value`` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not np.isfinite(float(value)):
        raise ValueError(f"{name} must be finite, got {value!r}.")
    return float(value)


def above(name: str, value: Any, bound: float, reason: str) -> float:
    """``value`` as a float greater than ``bound``."""
    number = finite_number(name, value)
    if not number > bound:
        need = "positive" if bound == 0.0 else f"greater than {bound:g}"
        raise ValueError(f"{name} must be {need}, got {number:g}; {reason}.")
    return number


def time_within(t: Any, t_end: float) -> float:
    """``t`` as a number in [0, t_end]."""
    t = finite_number("t", t)
    if not 0.0 <= t <= t_end:
        raise ValueError(f"t must lie between 0 (data) and {t_end:g} (noise), got {t:g}.")
    return t


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` as an integer of at least ``least``, and at most ``most`` where given."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} must be at most {most}, got {value}.")
    return int(value)


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """``value`` if it is one of ``options``."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, options))}.")
    return str(value)


def increasing_pair(name: str, value: Any) -> tuple[float, float]:
    """``value`` as (low, high) with low < high, both finite."""
    try:
        low, high = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {value!r}.") from None
    low, high = finite_number(f"{name}[0]", low), finite_number(f"{name}[1]", high)
    if not low < high:
        raise ValueError(f"{name} must increase, got ({low:g}, {high:g}); swap the two ends.")
    return low, high


def array(name: str, value: Any, shape: str, ndim: int) -> FloatArray:
    """``value`` as a finite, non-empty, C-contiguous float64 array with ``ndim`` axes; ``shape`` is for the message."""
    try:
        # NumPy would read numbers from text.
        if np.asarray(value).dtype.kind in "cUS":
            raise TypeError
        result = np.ascontiguousarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        got = f"one of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an array of numbers of shape {shape}, got {got}.") from None
    if np.ndim(value) != ndim:
        raise ValueError(f"{name} must have shape {shape}, got {np.shape(value)}.")
    if result.size == 0:
        raise ValueError(f"{name} is empty (shape {result.shape}); give at least one entry.")
    bad = int(np.count_nonzero(~np.isfinite(result)))
    if bad:
        raise ValueError(f"{name} holds {bad} values that are nan or infinite; remove them.")
    return result


def points(name: str, value: Any, dim: int | None = None) -> FloatArray:
    """``value`` as points (n, d), with d = ``dim`` where given."""
    result = array(name, value, "(n, d)", 2)
    if dim is not None and result.shape[1] != dim:
        raise ValueError(f"{name} must have shape (n, {dim}), got {result.shape}; one column per coordinate.")
    return result


def seed_words(rng: Any) -> npt.NDArray[np.uint32]:
    """The 64-bit key (two words) of ``rng``: int, SeedSequence, Generator, or None for fresh entropy (SPEC 7)."""
    if isinstance(rng, np.random.Generator):
        return rng.integers(0, 2**32, size=2, dtype=np.uint32)
    if isinstance(rng, np.random.SeedSequence):
        return rng.generate_state(2).astype(np.uint32)
    if rng is None or (isinstance(rng, Integral) and not isinstance(rng, bool) and int(rng) >= 0):
        return np.random.SeedSequence(None if rng is None else int(rng)).generate_state(2).astype(np.uint32)
    hint = "; use numpy.random.default_rng(seed)" if isinstance(rng, np.random.RandomState) else ""
    raise TypeError(f"rng must be a non-negative integer, a SeedSequence, a Generator or None, got {rng!r:.60}{hint}.")


def require_folder(name: str, folder: Path) -> None:
    """Refuse a folder that cannot be made because a file has its name, or that of a folder above it."""
    taken = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if taken is not None:
        raise ValueError(f"{name}: {str(taken)!r} is a file, and a folder is needed there; choose another name.")


def require_writable(name: str, folder: Path) -> None:
    """Refuse a folder into which nothing can be written, or which cannot be made, before anything is computed for it.

    It is not made here, for another run with the same folder could be about to write into it.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"probe")
    except OSError as error:
        reason = f"{name}: nothing can be written there ({error.strerror}); choose another place, or make this one writable"
        raise OSError(error.errno, reason, str(folder)) from None


_WRITES = itertools.count()
SYNCED = 10**6
"""Bytes below which a file is on the disk before it gets its name: a record that is empty after a loss of power is in the
way of what it describes, and large files cost time."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name for each write: threads, and machines that share the disk, may write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{next(_WRITES)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if len(content) < SYNCED:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
