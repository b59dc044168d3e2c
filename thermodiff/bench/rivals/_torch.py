"""The mixture and its score in Torch, for the rivals that are built on it."""

from __future__ import annotations

import torch

from thermodiff.bench.problems import Mixture


def mixture_score(
    x: torch.Tensor, log_weights: torch.Tensor, means: torch.Tensor, variances: torch.Tensor, alpha: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Score of the smoothed mixture at x (d, n): coordinates as rows."""
    width = (alpha * alpha * variances + variance)[:, None]
    gaps = alpha * means.T[:, :, None] - x[:, None, :]
    logits = log_weights[:, None] - 0.5 * x.shape[0] * torch.log(width) - 0.5 * (gaps * gaps).sum(dim=0) / width
    return ((torch.softmax(logits, dim=0) / width) * gaps).sum(dim=1)


def parts_of(problem: Mixture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logarithms of the weights, means, variances."""
    weights, means, variances = (torch.from_numpy(part.copy()) for part in problem.parts)
    return torch.log(weights), means, variances
