"""The loss of a batch and its gradients, in as many parts as memory needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thermodiff.learned.batches import Batch
from thermodiff.learned.field import is_full
from thermodiff.learned.optimiser import Optimiser
from thermodiff.learned.parallel import Processes
from thermodiff.schedules import Row

Loss = Callable[[Batch], torch.Tensor]


class Gradients:
    """Leaves the gradients of the mean loss of a batch in the weights.

    Parameters
    ----------
    optimiser : Optimiser
    group : Processes
        Of several, each must take its batch whole: they wait for each other after every part.
    """

    def __init__(self, optimiser: Optimiser, group: Processes) -> None:
        self._optimiser, self._alone = optimiser, group.count == 1
        self._most: int | None = None

    def __call__(self, loss: Loss, batch: Batch) -> torch.Tensor:
        """The mean of ``loss`` over the batch, without its graph; by parts where memory is short, half as large each time.

        Raises
        ------
        MemoryError
            If a single sample does not fit, or one of several processes is short of memory.
        """
        n = len(batch.x0)
        while True:
            size = n if self._most is None else min(n, self._most)
            self._optimiser.clear()
            try:
                return self._in_parts(loss, batch, n, size)
            except (RuntimeError, MemoryError) as error:
                if "training graph has changed" in str(error):  # as DistributedDataParallel says it
                    raise ValueError(
                        "the forward of the network uses other weights in this step than in the first, which several "
                        "processes cannot train; use the same in every step, or one process."
                    ) from error
                if not is_full(error):
                    raise
                if size == 1 or not self._alone:
                    what = "one sample does" if size == 1 else f"{n} samples in each of several processes do"
                    raise MemoryError(
                        f"training: {what} not fit into memory; use a smaller batch or network, or a larger device."
                    ) from error
            # After the exception is let go: it holds on to what was allocated.
            self._most = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @staticmethod
    def _in_parts(loss: Loss, batch: Batch, n: int, size: int) -> torch.Tensor:
        if size == n:
            value = loss(batch)
            value.backward()
            return value.detach()
        total = torch.zeros((), device=batch.x0.device)
        for first in range(0, n, size):
            part = slice(first, first + size)
            here = Batch(
                batch.x0[part], batch.z[part], Row(*(entry[part] for entry in batch.row)), batch.weights[part],
                None if batch.labels is None else batch.labels[part],
            )  # fmt: skip
            value = loss(here) * (len(here.x0) / n)
            value.backward()
            total += value.detach()
        return total
