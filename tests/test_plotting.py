"""Pictures of ledgers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import thermodiff as td
from thermodiff.accounting import Ledger
from thermodiff.plotting import plot

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def exact() -> Ledger:
    law = td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5], weights=[0.4, 0.6])
    return td.account(td.Diffusion(law, td.VP()), nodes=12, samples=200, rng=0, lam=(-6.0, 6.0))


@pytest.fixture(scope="module")
def learned(exact: Ledger) -> Ledger:
    """The same with the rows of a network, without torch."""
    rows = {"neural": "total", "mismatch": "system"}
    tables = [
        {**table, **{row: 0.5 * table[source] for row, source in rows.items()}}
        for table in (exact.samples, exact.rates, exact.rate_errors)
    ]
    return Ledger(
        *tables, exact.lam, exact.times, exact.weights, exact.lam_per_time, exact.window, exact.key, exact.about,
        fixed={"prior": td.Estimate(0.1, 0.0)},
    )  # fmt: skip


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_rates_over_lam(exact: Ledger) -> None:
    ax = td.plot(exact)
    assert isinstance(ax, Axes)
    assert labels(ax) == ["total", "system", "medium"]
    assert "log-SNR" in ax.get_xlabel()
    assert ax.get_ylabel() == "nats per unit of λ"
    for line, row in zip(ax.lines, labels(ax), strict=True):
        x, y = line.get_data()
        assert np.all(np.diff(x) > 0.0)
        np.testing.assert_array_equal(x, np.sort(exact.lam))
        np.testing.assert_allclose(y, exact.rate(row, per="lam")[::-1])
    assert len(ax.collections) == 3


def test_rates_over_time(exact: Ledger) -> None:
    ax = plot(exact, ("total",), per="t")
    assert "time" in ax.get_xlabel()
    assert ax.get_ylabel() == "nats per unit of t"
    x, y = ax.lines[0].get_data()
    order = np.argsort(exact.times)
    np.testing.assert_array_equal(x, exact.times[order])
    np.testing.assert_allclose(y, exact.rate("total")[order])


@pytest.mark.parametrize("per", ["lam", "t"])
@pytest.mark.parametrize("errors", [1.0, 2.0])
def test_bands(exact: Ledger, per: str, errors: float) -> None:
    ax = plot(exact, ("medium",), per=per, errors=errors)
    corners = ax.collections[0].get_paths()[0].vertices
    x = exact.lam if per == "lam" else exact.times
    rate, error = exact.rate("medium", per=per), exact.error("medium", per=per)
    for k in range(exact.lam.size):
        heights = corners[np.isclose(corners[:, 0], x[k], rtol=1e-12, atol=0.0), 1]
        assert heights.max() == pytest.approx(rate[k] + errors * error[k])
        assert heights.min() == pytest.approx(rate[k] - errors * error[k])


def test_learned_rows(exact: Ledger, learned: Ledger) -> None:
    assert labels(plot(learned)) == ["total", "neural", "mismatch"]
    both = plot(learned, ("neural",), ax=plot(exact, ("total",)))
    assert labels(both) == ["total", "neural"]
    colours = [to_hex(line.get_color()) for line in both.lines]
    assert len(set(colours)) == 2


def test_rows_that_a_sample_has(learned: Ledger) -> None:
    """Without a known law there are only medium and neural."""
    tables = [
        {row: table[row] for row in ("medium", "neural")} for table in (learned.samples, learned.rates, learned.rate_errors)
    ]
    few = Ledger(
        *tables, learned.lam, learned.times, learned.weights, learned.lam_per_time, learned.window, learned.key, {}
    )  # fmt: skip
    assert labels(plot(few)) == ["neural"]


def test_axes_given(exact: Ledger) -> None:
    figure = Figure()
    before = pyplot.get_fignums()
    left, right = figure.subplots(1, 2)
    assert plot(exact, ax=left) is left
    assert not right.lines
    assert pyplot.get_fignums() == before  # no figure behind the back of the caller


def test_style(exact: Ledger) -> None:
    ax = plot(exact, ("total",), label="mine", color="#123456", linestyle="--", linewidth=3.0)
    (line,) = ax.lines
    assert labels(ax) == ["mine"]
    assert (to_hex(line.get_color()), line.get_linestyle(), line.get_linewidth()) == ("#123456", "--", 3.0)
    assert to_hex(ax.collections[0].get_facecolor()[0]) == "#123456"


def test_it_can_be_drawn(exact: Ledger, tmp_path: Path) -> None:
    plot(exact).figure.savefig(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_errors(exact: Ledger, learned: Ledger) -> None:
    with pytest.raises(KeyError, match=r"no row 'neural' \(it needs a LearnedDiffusion\); its rows are total"):
        plot(exact, ("neural",))
    with pytest.raises(KeyError, match="no row 'heat'"):
        plot(exact, ("total", "heat"))
    with pytest.raises(KeyError, match="row 'prior' has no rate; rows with a rate are total"):
        plot(learned, ("prior",))
    with pytest.raises(ValueError, match="per='s' is unknown; choose one of 't', 'lam'"):
        plot(exact, per="s")
    with pytest.raises(TypeError, match="it draws a Ledger, got list"):
        plot([exact])
    with pytest.raises(TypeError, match="it draws a Ledger, got Estimate"):
        plot(exact.total("total"))


def test_one_row_by_name(exact: Ledger) -> None:
    try:
        assert labels(plot(exact, "total")) == ["total"]
    except (TypeError, KeyError) as error:
        assert "('total',)" in str(error) or "tuple" in str(error)  # noqa: PT017


def test_no_figure_is_left_by_a_mistake(exact: Ledger) -> None:
    with pytest.raises(KeyError):
        plot(exact, ("heat",))
    assert not pyplot.get_fignums()


def test_without_matplotlib() -> None:
    """One sentence with how to install it; importing thermodiff needs no matplotlib."""
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'matplotlib': raise ImportError('blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import thermodiff as td\n"
        "ledger = td.account(td.Diffusion(td.Gaussian([0.0], std=0.5), td.VP()), nodes=2, samples=10, rng=0)\n"
        "try: td.plot(ledger)\n"
        "except ImportError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(td.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "plotting needs matplotlib; install it with: pip install 'thermodiff[plot]'"
