"""The main job: exact and learned ledgers of a diffusion, as table, JSON and figure."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from thermodiff._check import count, increasing_pair, write_atomically
from thermodiff.accounting import Ledger, account, ratio
from thermodiff.accounting.nodes import MOST_NODES
from thermodiff.cli.inputs import Problem, read_data, read_schedule
from thermodiff.cli.table import show
from thermodiff.densities import Samples
from thermodiff.diffusion import Diffusion
from thermodiff.schedules import Schedule


@dataclass(frozen=True)
class Entry:
    """One ledger of the run."""

    schedule: str
    score: str
    data: str
    ledger: Ledger

    def record(self, exact: Ledger | None) -> dict[str, Any]:
        """The entry as written to ledgers.json."""
        full = self.ledger.to_dict()
        record: dict[str, Any] = {"schedule": self.schedule, "score": self.score, "data": self.data}
        record |= {name: full[name] for name in ("window", "totals", "about", "samples", "key")}
        record["nodes"] = len(full["lam"])
        if self.score == "exact":
            record["oracle"] = full["oracle"]
            record["stated"] = "excess = total and housekeeping = 0: the velocity is a gradient"
        elif exact is not None:
            record["neural / total"] = ratio(self.ledger, exact).to_dict()
        return record


def run(
    *,
    data: str,
    schedules: list[str],
    exact: bool,
    lam: tuple[float, float] | None,
    nodes: int,
    samples: int | None,
    steps: int,
    seed: int,
    out: Path,
    quiet: bool,
) -> list[Entry]:
    """Run the job; files appear in ``out`` only when all of it has succeeded."""
    count("--nodes", nodes, most=MOST_NODES)
    count("--steps", steps)
    count("--seed", seed, 0)
    if samples is not None:
        count("--samples", samples, 2)
    chosen = {name: read_schedule(name) for name in schedules}
    problem = read_data(data, seed)
    samples = samples or (10_000 if problem.held_out is None else 2_000)
    windows = {name: _window(problem, noise, lam) for name, noise in chosen.items()}
    if not exact:
        _require_torch()
    _require_writable(out)

    entries: list[Entry] = []
    networks: dict[str, Any] = {}
    for name, noise in chosen.items():
        options = {"nodes": nodes, "samples": samples, "rng": seed, "lam": windows[name]}
        system = Diffusion(problem.law, noise)
        label = "law" if problem.held_out is None else "memorising law"
        with _bar(f"{name}: exact ledger", nodes, quiet) as progress:
            entries.append(Entry(name, "exact", label, account(system, progress=progress, **options)))
        if not exact:
            networks[name] = _train(problem, noise, windows[name], steps, seed, quiet, name)
            entries += _learned(problem, networks[name], noise, options, quiet, name)
    written = _write(out, entries, networks, chosen)
    if not quiet:
        show(Console(width=None if sys.stdout.isatty() else 110), entries, written)
    return entries


def _window(problem: Problem, noise: Schedule, lam: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window to ask for; None for the schedule's own, which stands for the whole process."""
    if lam is not None:
        return increasing_pair("--lam", lam)
    if problem.top is not None:
        low = noise.window()[0]
        if not low < problem.top:
            raise ValueError(
                f"the vectors are so wide that {noise.name} leaves no default window (log-SNR {low:.3g} ... "
                f"{problem.top:.3g}); rescale them, or give --lam LOW HIGH."
            )
        return low, problem.top
    if noise.diverges:
        raise ValueError(
            f"the entropy of {noise.name} grows without bound towards the data; state the window, e.g. --lam -8 8."
        )
    return None


def _require_writable(out: Path) -> None:
    """Refuse a folder that could not be written, without making it: a run that fails leaves nothing behind."""
    there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write into {out}: {there} is not a folder; choose another one with --out.")
    for name in ("ledgers.json", "ledger.png"):
        if (out / name).is_dir():
            raise IsADirectoryError(f"cannot write {out / name}: it is a folder; choose another place with --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into {out}: no permission in {there}; choose another folder with --out.")


def _require_torch() -> None:
    try:
        import thermodiff.learned  # noqa: F401
    except ImportError:
        raise ImportError(
            "the learned part needs torch and safetensors; install them with: pip install 'thermodiff[learned]' "
            "(or pass --exact for the exact score alone)."
        ) from None


def _train(
    problem: Problem, noise: Schedule, window: tuple[float, float] | None, steps: int, seed: int, quiet: bool, name: str
) -> Any:
    from thermodiff.learned import ControlMLP, torch_threads, train

    if not quiet:
        print(f"{name}: training a ControlMLP for {steps} steps", file=sys.stderr)
    net = ControlMLP(problem.law.dim, rng=seed)
    with torch_threads(1):
        return train(net, problem.train, noise, steps=steps, rng=seed, lam=window, progress=not quiet)


def _learned(
    problem: Problem, net: Any, noise: Schedule, options: dict[str, Any], quiet: bool, name: str
) -> Iterator[Entry]:
    from thermodiff.learned import LearnedDiffusion, torch_threads

    sources = {"law": problem.train}
    if problem.held_out is not None:
        sources = {"training": problem.train, "held-out": problem.held_out}
    for label, source in sources.items():
        with _bar(f"{name}: learned ledger ({label})", options["nodes"], quiet) as progress:
            # Fewer draws than points would leave points out; whole rounds weigh all points alike.
            extra = {}
            if isinstance(source, Samples):
                points = source.points.shape[0]
                extra["samples"] = points * max(1, round(options["samples"] / points))
            with torch_threads(1):
                ledger = account(LearnedDiffusion(net, source, noise), progress=progress, **{**options, **extra})
        yield Entry(name, "learned", label, ledger)


@contextmanager
def _bar(title: str, total: int, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, when that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, _: bar.update(task, completed=done)


def _write(out: Path, entries: list[Entry], networks: dict[str, Any], schedules: dict[str, Schedule]) -> list[Path]:
    exact = {entry.schedule: entry.ledger for entry in entries if entry.score == "exact"}
    records = [entry.record(exact[entry.schedule] if entry.data == "law" else None) for entry in entries]
    picture = _figure(entries)
    written = [out / "ledgers.json"]
    for name, net in networks.items():
        from thermodiff.learned import save_weights

        save_weights(net, out / name, noise=schedules[name], predicts="entropy")
        written += [out / f"{name}.safetensors", out / f"{name}.json"]
    if picture is not None:
        write_atomically(out / "ledger.png", picture)
        written.append(out / "ledger.png")
    write_atomically(out / "ledgers.json", json.dumps(records, indent=1).encode())
    return written


def _figure(entries: list[Entry]) -> bytes | None:
    """One panel per schedule: rates of exact and learned over log-SNR, with bands of two standard errors."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("ledger.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]').", file=sys.stderr)
        return None
    from thermodiff.plotting import plot

    names = list(dict.fromkeys(entry.schedule for entry in entries))
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names, strict=True):
        for entry in (entry for entry in entries if entry.schedule == name):
            _panel(plot, axes, entry)
        low, high = next(entry.ledger.window for entry in entries if entry.schedule == name)
        axes.set_title(f"{name}:  λ = {low:.2f} … {high:.2f}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _panel(plot: Callable[..., Any], axes: Any, entry: Entry) -> None:
    if entry.score == "exact":
        name = "exact: total" if entry.data == "law" else "memorising law: total"
        plot(entry.ledger, ("total",), ax=axes, label=name, linewidth=2.5, alpha=0.7)
        return
    suffix = "" if entry.data == "law" else f" ({entry.data})"
    dashed = {"linestyle": "--", "color": "#e58606"} if entry.data == "training" else {"linestyle": "-"}
    plot(entry.ledger, ("neural",), ax=axes, label=f"network: neural{suffix}", linewidth=1.2, **dashed)
    if "mismatch" in entry.ledger.samples:
        plot(entry.ledger, ("mismatch",), ax=axes, label="network: mismatch", linewidth=1.2)
