"""Finished chunks of a run on disk: a run that was killed goes on from them, to the same bits."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import write_atomically


class Checkpoint:
    """A directory with ``run.json``, which says what run it is, and one ``.npz`` for each finished chunk.

    Raises
    ------
    ValueError
        If the directory holds another run.
    """

    def __init__(self, directory: Path, description: dict[str, Any], rng: Any, key: npt.NDArray[np.uint32]) -> None:
        self.directory, self.key = directory, key
        if description["reduce"] is not None:
            raise ValueError("checkpoint= keeps states; it does not go with reduce=.")
        manifest = directory / "run.json"
        if manifest.exists():
            try:
                known = json.loads(manifest.read_text())
                words = known.pop("key")
                self.key = np.array(words, dtype=np.uint32)
                if self.key.shape != (2,):
                    raise ValueError
            except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
                raise ValueError(f"{manifest} is not the record of a run; choose another directory.") from None
            other = [name for name in description if known.get(name) != description[name]]
            if rng is not None and words != key.tolist():
                other.append("rng")
            if other:
                raise ValueError(
                    f"{directory} holds another run (it differs in {', '.join(other)}); choose another directory."
                )
        else:
            if any(directory.glob("chunk-*.npz")):
                raise ValueError(
                    f"{directory} holds chunks but no run.json that says of which run; choose another directory."
                )
            write_atomically(manifest, json.dumps({**description, "key": key.tolist()}).encode())

    def _file(self, k: int) -> Path:
        return self.directory / f"chunk-{k:07d}.npz"

    def missing(self, chunks: int) -> list[int]:
        """Chunks that are still to be computed."""
        return [k for k in range(chunks) if not self._file(k).exists()]

    def load(self, k: int) -> dict[str, np.ndarray]:
        """A finished chunk."""
        try:
            with np.load(io.BytesIO(self._file(k).read_bytes()), allow_pickle=False) as stored:
                return dict(stored)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{self._file(k)} is damaged; delete it, and its chunk is computed again.") from None

    def save(self, k: int, piece: dict[str, np.ndarray]) -> None:
        """Write a finished chunk; half a file is never seen."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **piece)
        write_atomically(self._file(k), buffer.getvalue())
