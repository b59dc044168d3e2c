"""The dimensionless score of a network as a function of points, evaluated in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermodiff.learned.divergence import exact_divergence, hutchinson_divergence, reaches
from thermodiff.learned.predict import ask, dimensionless_score
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]
Function = Callable[[torch.Tensor], torch.Tensor]

MOST_SAMPLES = 8192
"""In one call of the network, by default."""
MOST_NUMBERS = 1 << 17
"""In one call of the network, by default: the activations for images are many times their size."""

DRAWN_TOGETHER = 1 << 20
"""Numbers of x that exist at a time: memory does not grow with the number of samples."""

_FULL = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "could not create a primitive",
)
"""The last is what oneDNN says, of whatever hindered it."""


def usual_batch(dim: int) -> int:
    """Samples of ``dim`` numbers in one call of a network."""
    return max(1, min(MOST_SAMPLES, MOST_NUMBERS // dim))


class Field:
    """b_theta at points (n, d), in float64.

    Parameters
    ----------
    net : Module
        Called with points of ``shape``, in the type of its weights (float32 without weights).
    predicts : str
    noise : Schedule
    shape : tuple of int
        One sample as the network takes it; d is the product.
    batch : int
        Samples in one call.  It is halved where memory is short, and stays so.
    """

    def __init__(self, net: nn.Module, predicts: str, noise: Schedule, shape: tuple[int, ...], batch: int) -> None:
        self.net, self.predicts, self.noise, self.shape, self.batch = net, predicts, noise, shape, batch

    @property
    def weights(self) -> torch.Tensor:
        """One of the weights, for their type and place; float32 on the CPU for a network without."""
        found = next(iter(self.net.parameters()), None) if isinstance(self.net, nn.Module) else None
        return torch.zeros(()) if found is None else found

    def output(self, x: torch.Tensor, row: Row, predicts: str) -> torch.Tensor:
        """What the network puts out when asked as for ``predicts``; float64, (n, d)."""
        images = x.reshape(-1, *self.shape)
        output = self._asked(images, row, predicts)
        if images.requires_grad and not reaches(output, images):
            self._require_constant(output, images.detach(), row, predicts)
        # What follows is done in float64: at the ends of the window large terms are subtracted.
        return output.to(torch.float64).reshape(x.shape)

    def _asked(self, images: torch.Tensor, row: Row, predicts: str) -> torch.Tensor:
        """The output at ``images``, of their shape, as the network gives it."""
        try:
            output = ask(self.net, predicts, images, row, self.weights.dtype)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_full(error):
                raise
            failure = str(error) or type(error).__name__
            raise ValueError(f"the network, called as {self.told(tuple(images.shape))}, failed: {failure}") from error
        if not isinstance(output, torch.Tensor) or output.shape != images.shape:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"the network must return a tensor of the shape of x, {tuple(images.shape)}, got {got}.")
        if not output.is_floating_point():
            kind = str(output.dtype).removeprefix("torch.")
            raise ValueError(f"the network must return real floating-point numbers, got {kind}; convert its output.")
        return output

    def _require_constant(self, output: torch.Tensor, images: torch.Tensor, row: Row, predicts: str) -> None:
        """Refuse an output without a graph unless it is the same at other points: its divergence would seem to be zero."""
        for shift in (0.5 + images.abs(), -0.5 - images.abs()):
            other = self._asked(images + shift, row, predicts)
            if not torch.allclose(output, other, rtol=0.0, atol=0.0, equal_nan=True):
                raise ValueError(
                    "the output of the network changes with x, but not for autograd, so that its divergence is unknown; "
                    "remove no_grad, inference_mode, detach and NumPy from forward, or pass divergence=None to account."
                )

    @property
    def name(self) -> str:
        """The network in messages, by its class."""
        return type(self.net).__name__

    def told(self, shape: tuple[int, ...]) -> str:
        """The call of the network with x of ``shape``, for messages."""
        return f"net(x, t) with x {shape} and t ({shape[0]},)"

    def at(self, row: Row) -> Function:
        """The function x -> b_theta on float64 tensors (n, d), at the log-SNR of ``row`` (scalars)."""

        def score(x: torch.Tensor) -> torch.Tensor:
            return dimensionless_score(self.predicts, self.output(x, row, self.predicts), x, row, self.noise)

        return score

    def values(self, x: FloatArray, row: Row) -> FloatArray:
        """b_theta at points (n, d), in batches."""
        out, field = np.empty(x.shape), self.at(row)

        def work(part: slice) -> None:
            out[part] = field(self._there(x[part])).cpu().numpy()

        with evaluating(self.net), torch.inference_mode():
            self.in_batches(work, x.shape[0])
        return out

    def with_divergence(self, x: FloatArray, row: Row, signs: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """b_theta (n, d) and its divergence: exact (n,), or one estimate for each probe in ``signs`` (k, n, d), (k, n)."""
        out, field = np.empty(x.shape), self.at(row)
        slopes = np.empty(x.shape[:1] if signs is None else signs.shape[:2])

        def work(part: slice) -> None:
            if signs is None:
                out[part], slopes[part] = exact_divergence(field, self._there(x[part]))
            else:
                out[part], slopes[:, part] = hutchinson_divergence(field, self._there(x[part]), signs[:, part])

        with evaluating(self.net):
            self.in_batches(work, x.shape[0])
        return out, slopes

    def _there(self, x: FloatArray) -> torch.Tensor:
        """``x`` where the network is."""
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.weights.device)

    def in_batches(self, work: Callable[[slice], None], n: int) -> None:
        """Call ``work`` on slices of 0 ... n - 1, on smaller ones where memory is short.

        Raises
        ------
        MemoryError
            If a single sample does not fit.
        """
        first = 0
        while first < n:
            part = slice(first, min(first + self.batch, n))
            try:
                work(part)
            except (RuntimeError, MemoryError) as error:
                if not is_full(error):
                    raise
                if part.stop - part.start == 1:
                    raise MemoryError(
                        f"one sample of shape {self.shape} does not fit into memory in one call of the network; "
                        "use a smaller network, or a device with more memory."
                    ) from error
                self.batch = (part.stop - part.start) // 2
            else:
                first = part.stop
                continue
            # After the exception is let go: it holds on to what was allocated.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_full(error: BaseException) -> bool:
    """Whether memory was short: Torch says so by an error of its own on a GPU, and by a RuntimeError on a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _FULL)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Dropout and the like off, and the module left as it was."""
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
