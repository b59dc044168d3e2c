"""Divergence of a field that Torch can differentiate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
Field = Callable[[torch.Tensor], torch.Tensor]


def exact_divergence(field: Field, points: torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """Values (n, d) and divergence (n,) of ``field`` at points (n, d), by d backward passes."""
    x = points.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        values = field(x)
        total = x.new_zeros(x.shape[0])
        for i in range(x.shape[1]):
            total += _gradient(values[:, i].sum(), x)[:, i]
    return values.detach().cpu().numpy(), total.cpu().numpy()


def hutchinson_divergence(field: Field, points: torch.Tensor, signs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """As `exact_divergence`, from vectors of random signs: unbiased, one backward pass for each.

    ``signs`` is (n, d) for one probe at each point, giving (n,), or (k, n, d) for k probes, giving (k, n).
    """
    x = points.detach().clone().requires_grad_(True)
    probes = torch.from_numpy(np.ascontiguousarray(signs)).reshape(-1, *points.shape).to(x.device)
    with torch.enable_grad():
        values = field(x)
        slopes = [(_gradient((values * probe).sum(), x) * probe).sum(1) for probe in probes]
    return values.detach().cpu().numpy(), torch.stack(slopes).reshape(signs.shape[:-1]).cpu().numpy()


def reaches(output: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the graph of ``output`` leads back to ``x``, which requires gradients; without it every gradient is zero."""
    start, todo, seen = x.grad_fn, [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node is start or getattr(node, "variable", None) is x:
            return True
        seen.add(node)
        todo.extend(before for before, _ in node.next_functions)
    return False


def _gradient(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to ``x``; zero where the value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
