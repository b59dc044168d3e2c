"""Train a network: ``thermodiff train``."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from thermodiff._check import choice, count, increasing_pair, write_atomically
from thermodiff.cli.inputs import FINEST, read_schedule, require_files
from thermodiff.cli.stopping import resumable
from thermodiff.cli.subject import NETS, Subject, read_subject, require_torch
from thermodiff.schedules import Schedule


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
    require_torch()
    noise, subject = read_schedule(schedule), read_subject(data, choice("--net", net, NETS), labels, seed)
    window = _window(noise, subject, lam)
    batch = subject.batch if batch is None else count("--batch", batch)
    _require_folder(out)
    options = {
        "steps": steps, "batch": batch, "lr": lr, "ema": ema, "lam": window, "precision": precision,
        "compile": compile, "device": device, "every": every, "rng": seed,
    }  # fmt: skip
    with resumable():
        _run(subject, noise, options, out, quiet, {"data": data, "net": net, "labels": labels, "seed": seed})


def _window(noise: Schedule, subject: Subject, lam: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window; None for the schedule's own."""
    if lam is not None:
        return increasing_pair("--lam", lam)
    if subject.spread is None:
        if noise.diverges:
            raise ValueError(f"{noise.name} grows without bound towards the data; state the window: --lam -8 8.")
        return None
    if not subject.spread > 0.0:
        raise ValueError("all samples are equal; there is nothing to learn.")
    low, top = noise.window()[0], round(-2.0 * np.log(FINEST * subject.spread), 1)
    if not low < top:
        raise ValueError(
            f"{noise.name} leaves no default window for data of spread {subject.spread:.3g}; give --lam LOW HIGH."
        )
    return low, top


def _run(subject: Subject, noise: Schedule, options: dict[str, Any], out: Path, quiet: bool, record: dict[str, Any]) -> None:
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
    record["fingerprint"] = subject.fingerprint()
    span = getattr(subject.data, "span", None)
    write_atomically(out / "train.json", (json.dumps({**record, "span": span}, indent=1) + "\n").encode())
    if not quiet:
        metrics = out / "metrics.jsonl"
        losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
        # Of a training that was complete already there are none, where the file was moved away.
        told = f"loss {losses[0]:.5g} first, {losses[-1]:.5g} last" if losses else "nothing was left to do"
        print(f"trained on log-SNR {window[0]:.3f} ... {window[1]:.3f}; {told}")
        print(f"written to {out}: weights.safetensors, weights.json, metrics.jsonl, train.json")


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if out.exists() and not os.access(out, os.W_OK):
        raise PermissionError(f"cannot write into {out}; choose another folder with --out.")
    require_files(out, ("metrics.jsonl", "train.json"))
