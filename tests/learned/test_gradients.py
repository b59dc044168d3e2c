"""Gradients of a batch in parts where memory is short."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thermodiff.learned.batches import Batch
from thermodiff.learned.gradients import Gradients
from thermodiff.learned.networks import EntropyMLP
from thermodiff.learned.optimiser import Optimiser
from thermodiff.learned.parallel import Processes
from thermodiff.learned.training import train
from thermodiff.schedules import VP

DATA = np.random.default_rng(0).normal(size=(64, 2)) * [1.0, 0.3]
OPTIONS = {"steps": 6, "batch": 32, "rng": 0, "lam": (-5.0, 5.0), "progress": False}


class Limited(nn.Module):
    """Has memory for so many samples."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.seen = EntropyMLP(2, rng=0), most, []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return self.inner(x, t)


def weights(most: int) -> tuple[list[torch.Tensor], list[int]]:
    net = train(Limited(most), DATA, VP(), **OPTIONS)
    return [weight.detach() for weight in net.parameters()], net.seen


def test_a_batch_in_parts_gives_the_same_weights_to_rounding() -> None:
    whole, seen = weights(32)
    assert seen == [32] * 6
    parts, seen = weights(11)
    assert seen == [32, 16, *[8] * 24]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_parts_need_not_be_equal() -> None:
    _, seen = weights(5)
    assert seen[:4] == [32, 16, 8, 4]
    net = train(Limited(5), DATA, VP(), **{**OPTIONS, "batch": 30, "steps": 1})
    assert net.seen == [30, 15, 7, *[3] * 10]


def test_where_one_sample_does_not_fit_there_is_a_sentence() -> None:
    with pytest.raises(MemoryError, match="one sample does not fit into memory; use a smaller batch or network"):
        train(Limited(0), DATA, VP(), **OPTIONS)


def test_other_errors_of_a_network_are_told_with_the_call() -> None:
    class Wrong(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.inner = nn.Linear(2, outputs)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    class Alone(Wrong):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(ValueError, match=r"must return a tensor of the shape of x, \(32, 2\), got \(32, 1\)"):
        train(Wrong(1), DATA, VP(), **OPTIONS)
    with pytest.raises(ValueError, match=r"called as net\(x, t\) with x \(32, 2\), t \(32,\), failed: .*takes 2 positional"):
        train(Alone(2), DATA, VP(), **OPTIONS)

    class Pair(Wrong):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x), x

    with pytest.raises(ValueError, match=r"must return a tensor of the shape of x, \(32, 2\), got tuple"):
        train(Pair(2), DATA, VP(), **OPTIONS)
    mixed = Wrong(2)
    mixed.inner.weight.data = mixed.inner.weight.data.double()
    mixed.inner.bias.data = mixed.inner.bias.data.float()
    with pytest.raises(ValueError, match=r"called as net\(x, t\) with x \(32, 2\), t \(32,\), failed: .*dtype"):
        train(mixed, DATA, VP(), **OPTIONS)


def test_several_processes_need_the_same_weights_in_every_step() -> None:
    """What DistributedDataParallel says is told as a sentence."""

    def loss(batch: Batch) -> torch.Tensor:
        raise RuntimeError("Your training graph has changed in this iteration, e.g., one parameter is unused in first ...")

    net = nn.Linear(2, 2)
    gradients = Gradients(Optimiser(net, 1e-3, 0.9, 10), Processes(0, 2))
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="uses other weights in this step than in the first, which several processes"):
        gradients(loss, Batch(x, x, VP().at(0.0), torch.ones(4)))
