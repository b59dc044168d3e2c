"""The main job: what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thermodiff as td
from thermodiff.cli import entropy as job
from thermodiff.cli.entropy import Entry, run

PNG = b"\x89PNG\r\n\x1a\n"
TWO = {"means": [[-1.5], [1.0]], "stds": [0.3, 0.5], "weights": [0.4, 0.6]}
FULL = {"means": [[-1.0, 0.0], [1.0, 0.5]], "covs": [[[0.3, 0.1], [0.1, 0.2]], [[0.4, 0.0], [0.0, 0.1]]]}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small networks on one thread: two wait for each other when the machine is busy."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def do(out: Path, **changes: Any) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Run quietly with a small budget; entries, and records of the file."""
    options: dict[str, Any] = {
        "data": "mixture", "schedules": ["VP"], "exact": False, "lam": None, "nodes": 16, "samples": 500, "steps": 60,
        "seed": 0, "out": out, "quiet": True,
    }  # fmt: skip
    entries = run(**{**options, **changes})
    return entries, json.loads((out / "ledgers.json").read_text())


def mixture(path: Path, record: dict[str, Any]) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def vectors(path: Path, n: int = 60) -> str:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.choice([-1.0, 1.0], (n, 1)) * [1.0, 0.5] + 0.2 * rng.standard_normal((n, 2)))
    return str(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_exact(tmp_path: Path) -> None:
    entries, records = do(tmp_path, exact=True, schedules=["VP", "VPx", "SL"], nodes=48, samples=1000)
    assert names(tmp_path) == ["ledger.png", "ledgers.json"]
    assert (tmp_path / "ledger.png").read_bytes().startswith(PNG)
    assert [record["schedule"] for record in records] == ["VP", "VPx", "SL"]
    kl = {"VP": 1.09796, "VPx": 259.9148, "SL": 259.9148}  # KL(p_0 || p_eq), published to these digits
    for entry, record in zip(entries, records, strict=True):
        assert record["score"] == "exact"
        assert record["data"] == "law"
        assert record["nodes"] == 48
        assert record["samples"] == 1000
        assert record["window"] == list(entry.ledger.window)
        assert list(record["key"]) == list(entry.ledger.key)
        assert set(record["totals"]) >= {"total", "system", "medium", "excess", "housekeeping"}
        for total in record["totals"].values():
            assert set(total) == {"value", "error"}
        assert set(record["oracle"]) == {"value", "error", "z"}
        assert abs(record["oracle"]["z"]) < 4.0
        total = record["totals"]["total"]
        # What p_T keeps of the data is at most 0.03 nats for VPx.
        assert abs(total["value"] - kl[record["schedule"]]) < 4.0 * total["error"] + 0.1
        assert record["totals"]["excess"] == total
        assert record["totals"]["housekeeping"] == {"value": 0.0, "error": 0.0}
        assert "gradient" in record["stated"]
        assert record["about"]["score"] == "exact"


def test_the_same_as_account(tmp_path: Path) -> None:
    """The command adds nothing to `account`."""
    path = mixture(tmp_path / "two.json", TWO)
    entries, _ = do(tmp_path / "out", exact=True, data=path, seed=3)
    ledger = td.account(td.Diffusion(td.GaussianMixture(**TWO), td.VP()), nodes=16, samples=500, rng=3)
    np.testing.assert_array_equal(entries[0].ledger.samples["total"], ledger.samples["total"])


def test_learned(tmp_path: Path) -> None:
    from thermodiff.learned import ControlMLP, LearnedDiffusion, load_weights

    entries, records = do(tmp_path)
    assert names(tmp_path) == ["VP.json", "VP.safetensors", "ledger.png", "ledgers.json"]
    assert [(record["schedule"], record["score"]) for record in records] == [("VP", "exact"), ("VP", "learned")]
    exact, learned = records
    assert exact["key"] == learned["key"]
    assert exact["window"] == learned["window"]
    wanted = {"neural", "mismatch", "prior", "kl_bound", "neural - total", "total", "medium"}
    assert wanted <= set(learned["totals"])
    totals = {row: entry["value"] for row, entry in learned["totals"].items()}
    assert totals["total"] == pytest.approx(exact["totals"]["total"]["value"], rel=1e-6)
    assert totals["neural - total"] == pytest.approx(totals["neural"] - totals["total"], abs=1e-9)
    assert totals["kl_bound"] == pytest.approx(totals["mismatch"] + totals["prior"], rel=1e-12)
    assert 0.0 < totals["mismatch"] < 0.2 * totals["total"]
    # theory.md 1.3: the norms of control and error obey the triangle inequality.
    assert (np.sqrt(totals["total"]) - np.sqrt(totals["neural"])) ** 2 <= totals["mismatch"]
    assert learned["neural / total"]["value"] == pytest.approx(totals["neural"] / totals["total"], rel=1e-6)
    assert "oracle" not in learned

    # The weights on disk are those that were measured.
    net = ControlMLP(3, rng=5)
    record = load_weights(net, tmp_path / "VP")
    assert (record["noise"], record["predicts"]) == (td.VP().to_dict(), "entropy")
    model = LearnedDiffusion(net, td.paper_mixture(3), td.VP())
    again = td.account(model, nodes=16, samples=500, rng=0)
    np.testing.assert_allclose(again.samples["neural"], entries[1].ledger.samples["neural"], rtol=1e-5, atol=1e-5)


def test_covariances_and_several_schedules(tmp_path: Path) -> None:
    path = mixture(tmp_path / "full.json", FULL)
    _, records = do(tmp_path / "out", data=path, schedules=["SL", "SubVP", "SL"], lam=(-6.0, 6.0), steps=3, samples=100)
    assert [(record["schedule"], record["score"]) for record in records] == [
        ("SL", "exact"), ("SL", "learned"), ("SubVP", "exact"), ("SubVP", "learned"),
    ]  # fmt: skip
    assert all(record["window"] == [-6.0, 6.0] for record in records)
    assert {"SL.safetensors", "SubVP.safetensors"} <= set(names(tmp_path / "out"))


def test_vectors(tmp_path: Path) -> None:
    entries, records = do(tmp_path / "out", data=vectors(tmp_path / "x.npz"), steps=10, samples=100)
    assert [(record["score"], record["data"]) for record in records] == [
        ("exact", "memorising law"), ("learned", "training"), ("learned", "held-out"),
    ]  # fmt: skip
    exact, train, held = records
    assert exact["window"] == train["window"] == held["window"]
    low, high = exact["window"]
    assert low == pytest.approx(float(td.VP().lam(1.0)))
    # The finest noise is a tenth of the spread, about 0.8 per coordinate.
    assert 4.5 < high < 5.5
    assert abs(exact["oracle"]["z"]) < 4.0
    for record, points in ((train, 48), (held, 12)):
        assert set(record["totals"]) == {"medium", "neural", "denoising"}
        assert record["samples"] % points == 0  # all points weigh the same
        assert "neural / total" not in record
    assert entries[1].ledger.clusters == 48
    assert entries[2].ledger.clusters == 12


def test_stated_window_for_vectors(tmp_path: Path) -> None:
    _, records = do(tmp_path / "out", exact=True, data=vectors(tmp_path / "x.npz"), lam=(-5.0, 3.0), nodes=8, samples=100)
    assert len(records) == 1
    assert records[0]["window"] == [-5.0, 3.0]


def test_vectors_much_wider_than_the_noise(tmp_path: Path) -> None:
    """Spread 1000: VPx ends at a log-SNR of -3.4, above the default upper edge."""
    np.savez(tmp_path / "x.npz", x=1000.0 * np.random.default_rng(0).standard_normal((40, 2)))
    with pytest.raises(ValueError, match="--lam"):
        do(tmp_path / "out", exact=True, data=str(tmp_path / "x.npz"), schedules=["VPx"], nodes=8, samples=100)


def test_seeds(tmp_path: Path) -> None:
    path = mixture(tmp_path / "two.json", TWO)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        do(tmp_path / out, data=path, steps=5, samples=100, seed=seed)
    one, two, other = ((tmp_path / out / "ledgers.json").read_bytes() for out in "abc")
    assert one == two != other
    weights = [(tmp_path / out / "VP.safetensors").read_bytes() for out in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_results_are_replaced(tmp_path: Path) -> None:
    path = mixture(tmp_path / "two.json", TWO)
    do(tmp_path / "out", exact=True, data=path)
    _, records = do(tmp_path / "out", exact=True, data=path, schedules=["SL"])
    assert [record["schedule"] for record in records] == ["SL"]
    assert names(tmp_path / "out") == ["ledger.png", "ledgers.json"]


def test_folders_are_made(tmp_path: Path) -> None:
    do(tmp_path / "a" / "b" / "c", exact=True, data=mixture(tmp_path / "two.json", TWO))
    assert (tmp_path / "a" / "b" / "c" / "ledgers.json").is_file()


def test_numbers_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(job, "account", never)
    monkeypatch.setattr(job, "read_data", never)
    for change, word in (({"nodes": 0}, "--nodes"), ({"steps": 0}, "--steps"), ({"seed": -1}, "--seed"),
                         ({"samples": 1}, "--samples"), ({"schedules": ["VP", "no"]}, "unknown schedule")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            do(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_default_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    honest = job.account

    def small(source: Any, **options: Any) -> Any:
        seen.append(options["samples"])
        return honest(source, **{**options, "samples": 50})

    monkeypatch.setattr(job, "account", small)
    do(tmp_path / "a", exact=True, data=mixture(tmp_path / "two.json", TWO), samples=None)
    do(tmp_path / "b", exact=True, data=vectors(tmp_path / "x.npz"), samples=None, nodes=8)
    assert seen == [10_000, 2_000]


def test_not_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    do(tmp_path / "out", data=mixture(tmp_path / "two.json", TWO), quiet=False, steps=3, samples=100)
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "VP: training a ControlMLP for 3 steps"
    for row in ("total", "neural", "mismatch", "kl_bound", "neural / total", "oracle: ", "nats", "written to"):
        assert row in captured.out
    assert "\x1b" not in captured.out + captured.err


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    _, records = do(tmp_path, data="digits", steps=20, nodes=8, samples=400)
    exact, train, held = records
    assert [record["data"] for record in records[1:]] == ["training", "held-out"]
    assert train["samples"] == 1438
    assert held["samples"] == 359
    assert exact["window"] == [pytest.approx(-8.05, abs=0.01), pytest.approx(7.2, abs=0.2)]
    assert all(np.isfinite(total["value"]) for record in records for total in record["totals"].values())
