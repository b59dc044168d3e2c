"""The state of a training on disk, from which the same call goes on: ``<path>.state.safetensors``.

One file, written under a temporary name and renamed, so that a killed process leaves the last whole one.  It holds the
weights and buffers, their average, Adam's moments and the running norm of the gradient, as tensors; and in its header,
as JSON, the step, the losses that no line of metrics holds yet, what the training was called with, and a checksum of all of
it.  No generator has to be kept: the draws of a step are functions of the key and the step.  Nothing is unpickled.

A module of the caller's is known by its class and, where it has them, its ``arguments``: without these, one with another
dropout, or the like, cannot be told from it, and the training goes on with that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TextIO, TypeGuard

import torch
from safetensors.torch import save
from torch import nn

from thermodiff.learned.checkpoint import base_path, bytes_of, fill, own_tensors, replace_file, tensors_of
from thermodiff.learned.optimiser import Optimiser

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

FORMAT = "thermodiff-training-2"
"""Name and version of the layout."""
LATER = ("types", "compile")
"""What a call says since the layout was first used."""


class State:
    """The state of one training on disk.

    Parameters
    ----------
    path : path
        As given to ``train(checkpoint=)``.
    call : dict
        What decides the course of the training, as JSON values; a state with another one is refused.
    every : int
        Steps from one saving to the next.
    """

    def __init__(self, path: str | PathLike[str], call: dict[str, Any], every: int) -> None:
        self.every = every
        self.file, self.call = Path(base_path(path) + ".state.safetensors"), json.loads(json.dumps(call))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse to write beside another training that runs; its lock ends with its process and what that has forked.

        Not on Windows and on file systems without such locks.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = self.file.with_name(f".{self.file.name}.lock")
        file = open(lock, "w")  # noqa: SIM115
        try:
            self._hold(file)
            while not _is_same(file, lock):  # one that has just ended has removed what was opened here
                file.close()
                file = open(lock, "w")  # noqa: SIM115
                self._hold(file)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
        finally:
            file.close()

    def _hold(self, file: TextIO) -> None:
        """Lock the file, where there are locks."""
        if fcntl is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another training is writing to {self.file}; wait for its end, or save elsewhere.") from None
        except OSError:
            pass  # a file system without locks is no reason not to train

    def save(self, net: nn.Module, optimiser: Optimiser, step: int, losses: Sequence[float] = ()) -> None:
        """Write the state after ``step`` steps, with the losses of those that no line of metrics holds yet."""
        tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser.state().items()}
        tensors = own_tensors(tensors)
        record: dict[str, Any] = {"format": FORMAT, "step": step, "call": self.call, "losses": list(losses)}
        record["sha256"] = _digest(record, tensors)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The state of one run has one temporary name: what a killed process left is overwritten, not collected.
        replace_file(self.file, save(tensors, {"record": json.dumps(record)}), self.file.with_name(f".{self.file.name}.tmp"))

    def load(self, net: nn.Module, optimiser: Optimiser) -> tuple[int, list[float]]:
        """Take over the state; the number of steps done, 0 if there is none, and the losses that came with it.

        Raises
        ------
        ValueError
            The file is damaged, or belongs to another training.
        """
        if not self.file.exists():
            return 0, []
        record, tensors = self.read()
        self._compare(record["call"])
        weights, rest = (
            {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            for part in ("net.", "optimiser.")
        )
        try:
            fill(net, weights)
            optimiser.restore(rest)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.file} does not fit the network: {str(error).splitlines()[-1].strip()}") from None
        return int(record["step"]), record.get("losses", [])  # states of earlier versions have none

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the header says ("step", "call", "sha256"), and the tensors; checked against each other."""
        content = self.file.read_bytes()
        tensors = tensors_of(content, self.file, "delete it to start again")
        length = int.from_bytes(content[:8], "little")
        try:
            record = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["record"])
        except (ValueError, KeyError, TypeError, RecursionError):
            record = None
        if not _is_record(record):
            raise ValueError(
                f"{self.file} is not the state of a training of format {FORMAT!r}; delete it, or save elsewhere."
            )
        if record.get("sha256") != _digest(record, tensors):
            raise ValueError(f"{self.file} does not match its checksum; it is damaged: delete it to start again.")
        return record, tensors

    def _compare(self, stored: dict[str, Any]) -> None:
        # States of earlier versions know nothing of the later names.
        names = [name for name in self.call if stored.get(name) != self.call[name] and (name in stored or name not in LATER)]
        if names:
            told = "; ".join(f"{name} was {stored.get(name)!r}, now {self.call[name]!r}" for name in names[:3])
            raise ValueError(
                f"{self.file} belongs to another training ({told}); call as before to go on, or delete it, or save "
                "elsewhere."
            )


def _is_same(file: TextIO, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def stored_key(path: str | PathLike[str]) -> list[int] | None:
    """The key of the draws of a training that was begun with ``rng=None``, from its state; None if there is none."""
    state = State(path, {}, 1)
    return state.read()[0]["call"]["key"] if state.file.exists() else None


def _is_record(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the header has the form that `State.save` gives it."""
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("call"), dict):
        return False
    key = record["call"].get("key")
    return _is_count(record.get("step")) and isinstance(key, list) and len(key) == 2 and all(map(_is_count, key))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _digest(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """The checksum of the tensors and of all that ``record`` says but the checksum itself."""
    said = {name: value for name, value in record.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()
