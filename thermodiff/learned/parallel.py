"""Several processes that train one network: started by ``torchrun``, or with a process group of the caller."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """One process among those that share the work."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Rank on this machine, which is the number of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def share(self, net: nn.Module) -> nn.Module:
        """The network whose gradients are averaged over all processes; it starts from the weights of the first."""
        if self.count == 1:
            return net
        # With a static graph, weights that forward does not use are found at the first step; else they end the training.
        # Without device_ids the input stays where it is: of some networks the times are on the CPU.
        return DistributedDataParallel(net, static_graph=True)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of ``values`` over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        return values

    def agree(self, words: npt.NDArray[np.uint32], device: torch.device) -> npt.NDArray[np.uint32]:
        """The key of the first process."""
        if self.count == 1:
            return words
        shared = torch.tensor(words.astype(np.int64), device=device)
        distributed.broadcast(shared, 0)
        return shared.cpu().numpy().astype(np.uint32)

    @contextmanager
    def held_by_first(self, what: AbstractContextManager[None], device: torch.device) -> Iterator[None]:
        """Enter ``what`` in the first process; if it refuses there, all do so in its words.

        Else the others would wait for it, and report a lost connection.
        """
        with ExitStack() as held:
            refusal: Exception | None = None
            if self.first:
                try:
                    held.enter_context(what)
                except (ValueError, OSError) as error:
                    refusal = error
            if self.count > 1:
                words = [None if refusal is None else str(refusal)]
                distributed.broadcast_object_list(words, 0, device=device)
                if refusal is None and words[0] is not None:
                    refusal = ValueError(words[0])
            if refusal is not None:
                raise refusal
            yield

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()


def local_rank() -> int:
    """Number of this process on this machine, as ``torchrun`` says; 0 for one alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that share the work: the caller's group, or that of ``torchrun``, or this one alone.

    Between GPUs they speak by NCCL, else by Gloo.
    """
    own = distributed.is_available() and not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if own:
        cuda = device.type == "cuda"
        distributed.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank())
        else:
            yield Processes()
    finally:
        if own:
            distributed.destroy_process_group()
