"""The state of a training on disk, from which the same call goes on: ``<path>.state.safetensors``.

One file, written under a temporary name and renamed, so that a killed process leaves the last whole one.  It holds the
weights and buffers, their average, Adam's moments and the running norm of the gradient, as tensors; and in its header,
as JSON, the step, what the training was called with, and a checksum.  No generator has to be kept: the draws of a step
are functions of the key and the step.  Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from thermodiff.learned.checkpoint import base_path, replace_file, tensors_of
from thermodiff.learned.optimiser import Optimiser

FORMAT = "thermodiff-training-1"
"""Name and version of the layout."""


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

    def save(self, net: nn.Module, optimiser: Optimiser, step: int) -> None:
        """Write the state after ``step`` steps."""
        tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser.state().items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        record = {"format": FORMAT, "step": step, "call": self.call, "sha256": _digest(tensors)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The state of one run has one temporary name: what a killed process left is overwritten, not collected.
        replace_file(self.file, save(tensors, {"record": json.dumps(record)}), self.file.with_name(f".{self.file.name}.tmp"))

    def load(self, net: nn.Module, optimiser: Optimiser) -> int:
        """Take over the state; the number of steps done, 0 if there is none.

        Raises
        ------
        ValueError
            The file is damaged, or belongs to another training.
        """
        if not self.file.exists():
            return 0
        content = self.file.read_bytes()
        tensors = tensors_of(content, self.file)
        record = self.record(content)
        if record.get("sha256") != _digest(tensors):
            raise ValueError(f"{self.file} does not match its checksum; it is damaged: delete it to start again.")
        self._compare(record.get("call"))
        parts: dict[str, dict[str, torch.Tensor]] = {"net": {}, "optimiser": {}}
        for name, value in tensors.items():
            parts[name.split(".", 1)[0]][name.split(".", 1)[1]] = value
        try:
            net.load_state_dict(parts["net"])
            optimiser.restore(parts["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.file} does not fit the network: {str(error).splitlines()[-1].strip()}") from None
        return int(record["step"])

    def record(self, content: bytes) -> dict[str, Any]:
        """What the header says beside the tensors: "step", "call", "sha256"."""
        length = int.from_bytes(content[:8], "little")
        try:
            record = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["record"])
        except (ValueError, KeyError, TypeError):
            record = None
        if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("step"), int):
            raise ValueError(
                f"{self.file} is not the state of a training of format {FORMAT!r}; delete it, or save elsewhere."
            )
        return record

    def _compare(self, stored: Any) -> None:
        stored = stored if isinstance(stored, dict) else {}
        names = [name for name in self.call if stored.get(name) != self.call[name]]
        if names:
            told = "; ".join(f"{name} was {stored.get(name)!r}, now {self.call[name]!r}" for name in names[:3])
            raise ValueError(
                f"{self.file} belongs to another training ({told}); call as before to go on, or delete it, or save "
                "elsewhere."
            )


def stored_key(path: str | PathLike[str]) -> list[int] | None:
    """The key of the draws of a training that was begun with ``rng=None``, from its state; None if there is none."""
    state = State(path, {}, 1)
    if not state.file.exists():
        return None
    key = state.record(state.file.read_bytes())["call"].get("key")
    return key if isinstance(key, list) else None


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
