"""Tensors on their way to a device, without waiting for what it is doing."""

from __future__ import annotations

import torch

ASYNCHRONOUS = ("cuda",)
"""Kinds of device that copy from pinned memory on their own."""


def placed(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``; the program goes on while they are copied there, as work on the device does."""
    pinned = device.type in ASYNCHRONOUS and values.device.type == "cpu"
    if pinned and not torch.compiler.is_compiling():  # no compiler is known to trace the call that pins
        return values.contiguous().pin_memory().to(device, non_blocking=True)
    return values.to(device)
