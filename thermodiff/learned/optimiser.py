"""Adam with warm-up, cosine decay, clipping relative to the usual gradient, and averaged weights."""

from __future__ import annotations

import math

import torch
from torch import nn

_WARM_UP = 100  # steps of rising learning rate, or a tenth of the training if that is less
_CLIP = 3.0  # gradients longer than this many times their running mean are cut
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimiser:
    """Updates the weights of a network, and keeps their average.

    Parameters
    ----------
    net : Module
        Its weights are updated in place.
    lr : float
        Highest learning rate; rises over the first 100 steps and falls to zero as a cosine.
    ema : float
        Decay per step of the average of the weights.
    steps : int
        Length of the training.
    decay : bool
        Whether the rate falls; otherwise it stays, and the training can be made longer.
    """

    def __init__(self, net: nn.Module, lr: float, ema: float, steps: int, decay: bool = True) -> None:
        self._weights: list[torch.Tensor] = [weight for weight in net.parameters() if weight.requires_grad]
        if not self._weights:
            raise ValueError(f"{type(net).__name__} has no weights to train.")
        self._average = [weight.detach().clone() for weight in self._weights]
        # The memory of squared gradients is short: their size changes much during a training of some thousand steps.
        self._adam = torch.optim.Adam(self._weights, lr=lr, betas=(0.9, 0.99), fused=True)
        self._lr, self._ema, self._steps, self._decay = lr, ema, steps, decay
        self._warm_up = max(1, min(_WARM_UP, steps // 10)) if decay else _WARM_UP
        self._norm: torch.Tensor | None = None

    def clear(self) -> None:
        """Let go of the gradients."""
        for weight in self._weights:
            weight.grad = None

    def step(self, step: int) -> None:
        """Update the weights by their gradients, and the average, in step number ``step``, counted from 1."""
        for group in self._adam.param_groups:
            group["lr"] = self.rate(step)
        self._clip()
        self._adam.step()
        with torch.no_grad():
            # Early weights are soon forgotten: the average is over the last tenth of a short run at most.
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                self._average, self._weights, 1.0 - min(self._ema, step / (step + 9.0))
            )

    def finish(self) -> None:
        """Put the averaged weights into the network."""
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._average)  # pyright: ignore[reportPrivateImportUsage]

    def rate(self, step: int) -> float:
        """Learning rate of step number ``step``."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self._steps))
        return self._lr * min(1.0, step / self._warm_up) * (cosine if self._decay else 1.0)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, beside the weights: tensors by name."""
        tensors = {f"average.{k}": value for k, value in enumerate(self._average)}
        for k, weight in enumerate(self._weights):
            entry = self._adam.state[weight]
            tensors |= {f"adam.{k}.{name}": entry[name] for name in _MOMENTS if name in entry}
        return tensors if self._norm is None else {**tensors, "norm": self._norm}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over a `state`.

        Raises
        ------
        ValueError
            The tensors are those of other weights.
        """
        wanted = {f"average.{k}" for k in range(len(self._weights))}
        wanted |= {f"adam.{k}.{name}" for k in range(len(self._weights)) for name in _MOMENTS if f"adam.{k}.step" in tensors}
        if set(tensors) - {"norm"} != wanted:
            raise ValueError(f"it holds the state of other weights: {sorted(set(tensors) ^ wanted)[:3]} differ.")
        for k, (weight, average) in enumerate(zip(self._weights, self._average, strict=True)):
            moments = {name: tensors[f"adam.{k}.{name}"] for name in _MOMENTS[1:] if f"adam.{k}.step" in tensors}
            if any(value.shape != weight.shape for value in (tensors[f"average.{k}"], *moments.values())):
                raise ValueError(f"the state of weight {k} has another shape than the weight, {tuple(weight.shape)}.")
            average.copy_(tensors[f"average.{k}"])
            if moments:
                # In the memory layout of the weight, as Adam makes them.
                kept = {name: torch.empty_like(weight, requires_grad=False).copy_(value) for name, value in moments.items()}
                self._adam.state[weight] = {"step": tensors[f"adam.{k}.step"].to(weight.device).clone(), **kept}
        self._norm = tensors["norm"].to(self._weights[0].device) if "norm" in tensors else None

    def _clip(self) -> None:
        """Shorten a gradient far above the usual size; relative, so that the scale of the loss does not matter."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        usual = norm if self._norm is None else self._norm
        cut = torch.clamp(_CLIP * usual / torch.clamp(norm, min=1e-30), max=1.0)
        torch._foreach_mul_(gradients, cut)  # pyright: ignore[reportPrivateImportUsage]
        self._norm = usual.lerp(norm * cut, 0.02)
