"""Ledgers as text."""

from __future__ import annotations

from thermodiff.accounting.estimate import Estimate
from thermodiff.accounting.ledger import Ledger

MEANING = {
    "total": "entropy production of the forward diffusion",
    "system": "change of the entropy of p_t",
    "medium": "entropy given to the bath",
    "excess": "= total: the velocity is a gradient",
    "housekeeping": "= 0: the velocity is a gradient",
    "neural": "stored by the network, S_NN",
    "neural - total": "paired difference",
    "mismatch": "what the network misses",
    "denoising": "mismatch + gap, 1/2 of the integral of E|b_theta + z|^2",
    "gap": "I(X_0; X_lam), from the noise to the data end of the window",
    "generated": "cost of the control on generated paths, S_gen",
    "prior": "KL(p_T || prior)",
    "kl_bound": "mismatch + prior >= KL(data || model)",
    "residual": "0 for a true score",
}


def text(ledger: Ledger) -> str:
    """The ledger as a table of plain text, in nats, with window and oracle."""
    low, high = ledger.window
    about = ledger.about
    lines = [
        f"{about['data']}  |  {about['schedule']}  |  {about['score']} score",
        f"window: lam = {low:.4g} ... {high:.4g} (log-SNR), {ledger.lam.size} nodes x {ledger.sample_count} samples",
        "",
        f"{'row':<16}{'nats':>14}{'± error':>12}   meaning",
    ]
    for row in ledger.rows:
        lines.append(_line(row, ledger.total(row)))
    if ledger.oracle is not None:
        lines.append(_line("oracle", ledger.oracle, f"independent value of total, z = {ledger.oracle.z:+.2f}"))
    return "\n".join(lines)


def _line(row: str, estimate: Estimate, meaning: str | None = None) -> str:
    error = f"{estimate.error:.1e}" if estimate.error > 0.0 else "exact"
    return f"{row:<16}{estimate.value:>14.6g}{error:>12}   {meaning or MEANING.get(row, '')}".rstrip()
