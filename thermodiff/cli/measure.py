"""Measure a network that ``thermodiff train`` has left in a folder: ``thermodiff measure``."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermodiff._check import count, increasing_pair, write_atomically
from thermodiff.accounting.nodes import MOST_NODES
from thermodiff.cli.inputs import require_files
from thermodiff.cli.subject import NETS, Subject, read_subject, require_torch

if TYPE_CHECKING:
    from thermodiff.learned import Measurement


def run(
    *,
    folder: Path,
    data: str | None,
    lam: tuple[float, float] | None,
    nodes: int,
    samples: int | None,
    seed: int,
    quiet: bool,
) -> Measurement:
    """Measure the weights in ``folder`` on what they were trained on and on what was held out; write into the folder."""
    from thermodiff.learned import LearnedDiffusion, load_weights, measure, torch_threads

    count("--nodes", nodes, 4, most=MOST_NODES)
    count("--seed", seed, 0)
    if samples is not None:
        count("--samples", samples, 2)
    window = None if lam is None else increasing_pair("--lam", lam)
    require_torch()
    record = _record(folder / "train.json")
    subject = _subject(record, data, folder)
    load_weights(subject.net, folder / "weights")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write into {folder}; copy it to a folder of yours.")
    require_files(folder, ("measure.json", "measure.png"))
    model = LearnedDiffusion(subject.net, subject.data, subject.net.noise)  # pyright: ignore[reportArgumentType]
    window = window or tuple(record["window"])
    with torch_threads(1 if subject.batch > 128 else os.cpu_count() or 1):
        page = measure(model, held_out=subject.held_out, nodes=nodes, samples=samples, rng=seed, lam=window)
    picture = _figure(page)
    if picture is not None:
        write_atomically(folder / "measure.png", picture)
    write_atomically(folder / "measure.json", (json.dumps(page.to_dict(), indent=1) + "\n").encode())
    if not quiet:
        print(page)
        print(f"written to {folder}: measure.json" + ("" if picture is None else ", measure.png"))
    return page


def _record(file: Path) -> dict[str, Any]:
    """What ``thermodiff train`` wrote of the training."""
    if (file.parent / "weights.state.safetensors").exists() and not file.exists():
        raise ValueError(f"the training in {file.parent} is not at its end; give its command again, then measure.")
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the folder that `thermodiff train --out` has written.")
    try:
        record = json.loads(file.read_bytes())
        increasing_pair("window", record["window"])
        known = isinstance(record["data"], str) and record.get("net") in NETS and isinstance(record["labels"], bool)
        if not known or type(record["seed"]) is not int:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{file} is not the record of a training by this version; train again.") from None
    return record


def _subject(record: dict[str, Any], data: str | None, folder: Path) -> Subject:
    """The data of the training and a network for it.

    Raises
    ------
    ValueError
        The data has changed since.
    """
    subject = read_subject(data or record["data"], record["net"], record["labels"], record["seed"])
    if subject.fingerprint() != record.get("fingerprint"):
        raise ValueError(
            f"{data or record['data']} does not hold the data that the network in {folder} was trained on; give that file "
            "with --data, or train again."
        )
    return subject


def _figure(page: Measurement) -> bytes | None:
    """The curves over log-SNR."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("measure.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]').", file=sys.stderr)
        return None
    from thermodiff.plotting import plot

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    seen = "" if page.held_out is None else ", training data"
    curves = [
        (page.memorising, "total", "memorising law: total", "#888888"),
        (page.ledger if "total" in page.ledger.samples else None, "total", "exact: total", "#1f4e79"),
        (page.ledger, "neural", f"neural{seen}", "#c1440e"),
        (page.held_out, "neural", "neural, held-out data", "#e9a23b"),
    ]
    for ledger, row, label, color in curves:
        if ledger is not None:
            plot(ledger, row, ax=axes, label=label, color=color)
    low, high = page.ledger.window
    axes.set_title(
        f"{page.ledger.about['network']}, {page.ledger.about['schedule']}:  λ = {low:.2f} … {high:.2f}", fontsize=10
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
