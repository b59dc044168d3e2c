"""How a training calls its network: with labels, in lower precision, compiled, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from thermodiff.learned.field import is_full
from thermodiff.learned.networks import keep_times_uncompiled
from thermodiff.learned.parallel import Processes

PRECISIONS = ("float32", "bf16")
"""Types of the network's multiplications."""


class Caller:
    """The network as the loss calls it, ``caller(x, t)``; x, and t unless it takes float64, in the type of its weights.

    Parameters
    ----------
    net : Module
        The network.
    group : Processes
        Processes that average its gradients.
    device : torch.device
        Where it is.
    precision : {"float32", "bf16"}
        Type of its multiplications; what it gives is float32.
    compiled : bool
        Whether torch.compile is used.
    words : array of two uint32
        Key of the draws that the network itself makes, such as dropout.
    """

    def __init__(
        self, net: nn.Module, group: Processes, device: torch.device, precision: str, compiled: bool, words: Any
    ) -> None:
        self._type = next(net.parameters()).dtype
        self.double_time = getattr(net, "double_time", False) or self._type == torch.float64
        self.host_time = getattr(net, "host_time", False)
        module = group.share(net)
        if compiled:
            keep_times_uncompiled()
        self._module = torch.compile(module) if compiled else module
        self._device, self._low = device, precision == "bf16"
        self._seeds = np.random.SeedSequence([int(word) for word in words], spawn_key=(1, group.rank))
        self._base = int(self._seeds.generate_state(1, np.uint64)[0]) >> 2
        self._labels: tuple[torch.Tensor, ...] = ()

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Keep Torch's global generator as it was for the rest of the program."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            yield

    def at(self, step: int, labels: torch.Tensor | None) -> Caller:
        """The call of one step: with these labels, and draws of the network that depend on the step alone."""
        if self._device.type == "cpu":
            torch.default_generator.manual_seed(self._base + step)  # torch.manual_seed asks every kind of device: 0.1 ms
        else:
            torch.manual_seed(self._base + step)
        self._labels = () if labels is None else (labels,)
        return self

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        try:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low):
                output = self._module(x.to(self._type), t, *self._labels)
        except Exception as error:  # of any kind: it comes from whatever the module does
            if is_full(error):
                raise
            call, labels = (
                ("net(x, t, y)", f", labels y {tuple(self._labels[0].shape)}") if self._labels else ("net(x, t)", "")
            )
            raise ValueError(
                f"the network, called as {call} with x {tuple(x.shape)}, t {tuple(t.shape)}{labels}, failed: {_told(error)}"
            ) from error
        return output.to(x.dtype) if isinstance(output, torch.Tensor) else output  # the loss refuses what is no tensor


def _told(error: Exception) -> str:
    """What an error says, with its kind where its own text, such as 'a', may say little."""
    plain = isinstance(error, RuntimeError | TypeError | ValueError) and str(error)
    return str(error) if plain else f"{type(error).__name__}: {error}"
