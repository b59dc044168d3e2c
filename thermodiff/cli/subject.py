"""What a network of the command line learns: data by name, and the network for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thermodiff.cli.inputs import read_data

if TYPE_CHECKING:
    from torch import nn

NETS = ("control", "mlp", "unet")


@dataclass(frozen=True)
class Subject:
    """Data to learn from, data held out (None where the law is known), the network, and what the command trains it with."""

    data: Any
    held_out: Any
    net: nn.Module
    batch: int
    spread: float | None
    """The rms deviation of a coordinate of points."""

    def fingerprint(self) -> str:
        """A digest of the data to learn from."""
        from thermodiff.learned.batches import Source

        return Source(self.data).fingerprint()


def read_subject(data: str, net: str, labels: bool, seed: int) -> Subject:
    """The data by name or file, split by ``seed`` where it is not split, and a new network for it."""
    from thermodiff.learned import ControlMLP, EntropyMLP, Preconditioned, UNet, read_images

    if net == "unet":
        if data == "mixture" or data.endswith(".json"):
            raise ValueError(f"--net unet takes images, {data!r} holds vectors; use --net control or mlp.")
        images, held_out = read_images(data, rng=seed)
        if labels and images.labels is None:
            raise ValueError(
                f"--labels: {data} holds no labels; save them beside the images, as labels= of images=, or as train_labels= "
                "and test_labels= of train_images= and test_images=."
            )
        network = UNet(images.shape[0], classes=images.classes if labels else None, rng=seed)
        spread = float(np.sqrt(np.asarray(images).var(0).mean()))
        return Subject(images, held_out, Preconditioned(network), 128, spread)
    problem = read_data(data, seed)
    build = ControlMLP if net == "control" else EntropyMLP
    spread = None if problem.held_out is None else float(np.sqrt(np.diag(problem.law.covariance()).mean()))
    return Subject(problem.train, problem.held_out, build(problem.law.dim, rng=seed), 1024, spread)


def require_torch() -> None:
    """Say how to get what the learned part needs, where it is not there."""
    try:
        import thermodiff.learned  # noqa: F401
    except ImportError:
        raise ImportError("networks need torch and safetensors; install them: pip install 'thermodiff[learned]'.") from None
