"""Finished chunks of a run on disk: a run that was killed goes on from them, to the same bits."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import write_atomically

SEAL = 32
"""Bytes at the end of a chunk's file, which say of which run and which chunk it is, and that it is whole."""


def require_folder(name: str, folder: Path) -> None:
    """Refuse a folder that cannot be made because a file has its name, or that of a folder above it."""
    taken = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if taken is not None:
        raise ValueError(f"{name}: {str(taken)!r} is a file, and a folder is needed there; choose another name.")


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
        if directory == Path():
            raise ValueError("checkpoint must name a folder for this run alone, got the current folder; name another.")
        require_folder("checkpoint", directory)
        manifest = directory / "run.json"
        self._begun = manifest.exists()
        if self._begun:
            try:
                known = json.loads(manifest.read_text())
                words = known.pop("key")
                self.key = np.array(words, dtype=np.uint32)
                if self.key.shape != (2,):
                    raise ValueError
            except (ValueError, KeyError, AttributeError, TypeError, OverflowError, IsADirectoryError):
                raise ValueError(f"{manifest} is not the record of a run; choose another directory.") from None
            other = [name for name in description if known.get(name) != description[name]]
            if rng is not None and words != key.tolist():
                other.append("rng")
            if other:
                raise ValueError(
                    f"{directory} holds another run (it differs in {', '.join(_asked(other))}); choose another directory."
                )
        elif any(directory.glob("chunk-*.npz")):
            raise ValueError(f"{directory} holds chunks but no run.json that says of which run; choose another directory.")
        self.run = json.dumps({**description, "key": self.key.tolist()}, sort_keys=True).encode()

    def _file(self, k: int) -> Path:
        return self.directory / f"chunk-{k:07d}.npz"

    def missing(self, chunks: int) -> list[int]:
        """Chunks that are still to be computed."""
        return [k for k in range(chunks) if not self._file(k).exists()]

    def load(self, k: int) -> dict[str, np.ndarray]:
        """A finished chunk.

        Raises
        ------
        ValueError
            If its file is not what `save` wrote for this chunk of this run.
        """
        content = self._file(k).read_bytes()
        if content[-SEAL:] != self._seal(k, content[:-SEAL]):
            raise ValueError(f"{self._file(k)} is damaged; delete it, and its chunk is computed again.")
        with np.load(io.BytesIO(content[:-SEAL]), allow_pickle=False) as stored:
            return dict(stored)

    def save(self, k: int, piece: dict[str, np.ndarray]) -> None:
        """Write a finished chunk; half a file is never seen.

        The record of the run comes with the first one: a run that fails before leaves nothing in the way of a mended one.
        """
        if not self._begun:
            write_atomically(self.directory / "run.json", self.run)
            self._begun = True
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **piece)
        content = buffer.getvalue()
        write_atomically(self._file(k), content + self._seal(k, content))

    def _seal(self, k: int, content: bytes) -> bytes:
        digest = hashlib.blake2b(self.run, digest_size=SEAL)
        digest.update(k.to_bytes(8, "little"))
        digest.update(content)
        return digest.digest()


def _asked(names: list[str]) -> list[str]:
    """What was asked for differently: the counts of steps follow from the times and dt, and the chunks from the steps."""
    names = ["dt" if name == "counts" else name for name in names if name != "counts" or "times" not in names]
    return [name for name in names if name != "chunk" or not {"dt", "times", "x0"} & set(names)]
