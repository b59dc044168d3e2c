"""What an account of a network costs beside its forward passes.

A U-Net on 28 x 28 images: all draws, products and errors of `account`, against calls of the network on as many samples in
the same batches.  The goal is at most 5 % more.  Run with

    pytest benchmarks/test_overhead.py --benchmark-only
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import thermodiff as td

NODES, SAMPLES, BATCH = 8, 256, 32


def network() -> Any:
    """The published U-Net, untrained."""
    from thermodiff.learned import UNet

    return UNet(1, padding=0, rng=0).eval()


def forward_passes(net: Any, images: np.ndarray) -> Any:
    """A call that makes as many forward passes as the account."""
    torch = pytest.importorskip("torch")
    x, t = torch.from_numpy(images[:BATCH]), torch.full((BATCH,), 0.5, dtype=torch.float64)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(NODES * SAMPLES // BATCH):
                net(x, t)

    return work


def measured(net: Any, images: np.ndarray) -> Any:
    """The account."""
    from thermodiff.learned import LearnedDiffusion

    model = LearnedDiffusion(net, images, td.VP(), batch=BATCH)
    model.try_out()
    return lambda: td.account(model, lam=(-8.0, 8.0), nodes=NODES, samples=SAMPLES, rng=0, progress=False)


def test_account_of_a_network(benchmark):
    pytest.importorskip("safetensors")
    from thermodiff.learned import torch_threads

    images = np.random.default_rng(0).random((SAMPLES, 1, 28, 28), dtype=np.float32)
    with torch_threads(1):
        net = network()
        ways = [forward_passes(net, images), measured(net, images)]
        seconds: list[list[float]] = [[], []]
        # In turn, by the time of the processor: other work on the machine is in neither.
        for _ in range(9):
            for work, times in zip(ways, seconds, strict=True):
                begin = time.process_time()
                work()
                times.append(time.process_time() - begin)
        benchmark.pedantic(ways[1], rounds=1)
    benchmark.extra_info["account / forward passes, least of 9"] = min(seconds[1]) / min(seconds[0])
