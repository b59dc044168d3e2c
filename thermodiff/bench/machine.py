"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from thermodiff import __version__
from thermodiff._tasks import cores
from thermodiff.bench.rivals import versions


def describe() -> dict[str, Any]:
    """Processor, cores, versions and date; nothing that names the machine or its user."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "cores used": cores(),
        "load": _load(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "thermodiff": __version__,
            "python": platform.python_version(),
            "llvm": ".".join(map(str, import_module("llvmlite.binding").llvm_version_info)),
            "compiler": _compiler(),
            **versions(),
        },
    }


def _processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _load() -> float | None:
    """Processes that wanted to run over the last minute: more than 0.3 before a run, and its times are not to be trusted."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _compiler() -> str:
    """First line of what the C compiler says of itself."""
    try:
        done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.splitlines()[0]
