"""What Ctrl-C does to a command that goes on when it is given again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that the command can be given again, and what is kept, and end with exit status 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        told = str(stop) or "stopped; what is finished is kept."
        print(f"thermodiff: {told} Give the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
