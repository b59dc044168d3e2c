"""Train a network: ``thermodiff train``."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thermodiff._check import choice, count, increasing_pair, write_atomically
from thermodiff.cli.inputs import FINEST, read_data, read_schedule
from thermodiff.schedules import Schedule

if TYPE_CHECKING:
    from torch import nn

NETS = ("control", "mlp", "unet")


def run(
    *,
    data: str,
    schedule: str,
    net: str,
    labels: bool,
    lam: tuple[float, float] | None,
    steps: int,
    batch: int | None,
    lr: float | None,
    ema: float,
    precision: str,
    compile: bool,
    device: str,
    every: int,
    seed: int,
    out: Path,
    quiet: bool,
) -> None:
    """Train, or go on with a training that was stopped, and write weights and metrics into ``out``."""
    count("--every", every)
    count("--seed", seed, 0)
    if labels and net != "unet":
        raise ValueError("--labels needs --net unet; the other networks know no classes.")
    _require_torch()
    noise, subject = read_schedule(schedule), _subject(data, choice("--net", net, NETS), labels, seed)
    window = _window(noise, subject, lam)
    batch = subject.batch if batch is None else count("--batch", batch)
    _require_folder(out)
    options = {
        "steps": steps, "batch": batch, "lr": lr, "ema": ema, "lam": window, "precision": precision,
        "compile": compile, "device": device, "every": every, "rng": seed,
    }  # fmt: skip
    _run(subject, noise, options, out, quiet, {"data": data, "labels": labels, "seed": seed})


@dataclass(frozen=True)
class _Subject:
    """What is learned, by which network, with which batch, and the rms deviation of a coordinate of points."""

    data: Any
    net: nn.Module
    batch: int
    spread: float | None


def _subject(data: str, net: str, labels: bool, seed: int) -> _Subject:
    from thermodiff.learned import ControlMLP, EntropyMLP, Preconditioned, UNet, read_images

    if net == "unet":
        if data == "mixture" or data.endswith(".json"):
            raise ValueError(f"--net unet takes images, {data!r} holds vectors; use --net control or mlp.")
        images = read_images(data, rng=seed)[0]
        if labels and images.labels is None:
            raise ValueError(f"--labels: {data} holds no labels; save them beside the images as labels=.")
        network = UNet(images.shape[0], classes=images.classes if labels else None, rng=seed)
        return _Subject(images, Preconditioned(network), 128, float(np.sqrt(np.asarray(images).var(0).mean())))
    problem = read_data(data, seed)
    build = ControlMLP if net == "control" else EntropyMLP
    spread = None if problem.held_out is None else float(np.sqrt(np.diag(problem.law.covariance()).mean()))
    return _Subject(problem.train, build(problem.law.dim, rng=seed), 1024, spread)


def _window(noise: Schedule, subject: _Subject, lam: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window; None for the schedule's own."""
    if lam is not None:
        return increasing_pair("--lam", lam)
    if subject.spread is None:
        return None
    if not subject.spread > 0.0:
        raise ValueError("all samples are equal; there is nothing to learn.")
    low, top = noise.window()[0], round(-2.0 * np.log(FINEST * subject.spread), 1)
    if not low < top:
        raise ValueError(
            f"{noise.name} leaves no default window for data of spread {subject.spread:.3g}; give --lam LOW HIGH."
        )
    return low, top


def _run(
    subject: _Subject, noise: Schedule, options: dict[str, Any], out: Path, quiet: bool, record: dict[str, Any]
) -> None:
    from thermodiff.learned import torch_threads
    from thermodiff.learned import train as fit

    first = os.environ.get("RANK", "0") == "0"
    # The small network gains nothing from a second thread.
    with torch_threads(1) if subject.batch > 128 else nullcontext():
        fit(
            subject.net, subject.data, noise, checkpoint=out / "weights", metrics=out / "metrics.jsonl",
            progress=not quiet, **options,
        )  # fmt: skip
    if not first:
        return
    window = options["lam"] or noise.window()
    record |= {"network": type(subject.net).__name__, "window": list(window), "steps": options["steps"]}
    span = getattr(subject.data, "span", None)
    write_atomically(out / "train.json", (json.dumps({**record, "span": span}, indent=1) + "\n").encode())
    if not quiet:
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        print(f"trained on log-SNR {window[0]:.3f} ... {window[1]:.3f}; loss {losses[0]:.5g} first, {losses[-1]:.5g} last")
        print(f"written to {out}: weights.safetensors, weights.json, metrics.jsonl, train.json")


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if out.exists() and not os.access(out, os.W_OK):
        raise PermissionError(f"cannot write into {out}; choose another folder with --out.")


def _require_torch() -> None:
    try:
        import thermodiff.learned  # noqa: F401
    except ImportError:
        raise ImportError("training needs torch and safetensors; install them: pip install 'thermodiff[learned]'.") from None
