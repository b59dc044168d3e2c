"""Pictures of ledgers; matplotlib is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from thermodiff.accounting import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "total": "#1f4e79", "system": "#2a9d8f", "medium": "#e9a23b", "neural": "#c1440e", "mismatch": "#7a5195",
    "residual": "#888888",
}  # fmt: skip


def plot(
    ledger: Ledger,
    rows: str | tuple[str, ...] | None = None,
    *,
    per: str = "lam",
    ax: Axes | None = None,
    errors: float = 2.0,
    **style: Any,
) -> Axes:
    """Draw the rates of a ledger with their error bands.

    Parameters
    ----------
    ledger : Ledger
    rows : str or tuple of str, optional
        Rows to draw; by default total, system and medium of an exact score, total, neural and mismatch of a learned one.
    per : {"lam", "t"}
        Rates per unit of log-SNR over log-SNR, or per unit of time over time.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    errors : float
        Half-width of the bands in standard errors.
    **style
        Passed to ``Axes.plot``.

    Returns
    -------
    matplotlib Axes
    """
    if not isinstance(ledger, Ledger):
        raise TypeError(f"plot: it draws a Ledger, got {type(ledger).__name__}.")
    if rows is None:
        wanted = ("total", "neural", "mismatch") if "neural" in ledger.samples else ("total", "system", "medium")
        rows = tuple(row for row in wanted if row in ledger.samples)
    rows = (rows,) if isinstance(rows, str) else tuple(rows)
    rates = {row: (ledger.rate(row, per=per), ledger.error(row, per=per)) for row in rows}
    axes: Axes = _new_axes() if ax is None else ax
    x = ledger.lam if per == "lam" else ledger.times
    order = np.argsort(x)
    for row, (rate, error) in rates.items():
        rate, error = rate[order], error[order]
        options = {"label": row, "color": COLOURS.get(row), **style}
        (line,) = axes.plot(x[order], rate, **options)
        axes.fill_between(
            x[order], rate - errors * error, rate + errors * error, color=line.get_color(), alpha=0.25, linewidth=0
        )
    axes.set_xlabel("log-SNR  λ   (noise → data)" if per == "lam" else "time  t   (data → noise)")
    axes.set_ylabel("nats per unit of λ" if per == "lam" else "nats per unit of t")
    axes.legend(frameon=False)
    return axes


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("plotting needs matplotlib; install it with: pip install 'thermodiff[plot]'") from None
    return pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
