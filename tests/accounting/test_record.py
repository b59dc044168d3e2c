"""Files of ledgers: what was cut, edited or is none is refused with one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import LINE

import thermodiff as td


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a file holds."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    td.account(td.Diffusion(LINE, td.VP()), nodes=48, samples=2000, rng=1, divergence="exact").save(path)
    return json.loads(path.read_text())


def assert_refused(record: Any, path: Path) -> None:
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"bad\.json is not a ledger written by Ledger\.save \(.+\); save it again\."):
        td.Ledger.load(path)


ENTRIES = [
    "format", "about", "window", "key", "samples", "clusters", "totals", "oracle", "lam", "times", "weights", "lam_per_time",
    "rates", "rate_errors", "quadrature", "unresolved", "corrections", "fixed", "integrals",
]  # fmt: skip
HARMLESS = [("clusters", None), ("oracle", None), ("quadrature", {}), ("corrections", {}), ("unresolved", {})]


def test_all_entries_are_known(record: dict[str, Any]) -> None:
    assert sorted(record) == sorted(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_ledger_file_with_a_damaged_entry_is_refused(record: dict[str, Any], name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    if name != "unresolved":  # which ledgers of earlier versions have not
        assert_refused({key: value for key, value in record.items() if key != name}, path)
    for value in (None, True, "x", 1, -1, 0.5, float("nan"), [], ["x"], [None], {}, {"total": None}, {"total": [1.0]}):
        if (name, value) not in HARMLESS:
            assert_refused({**record, name: value}, path)


DAMAGES = [
    ("window", lambda w: w[::-1]),
    ("window", lambda w: [*w, 30.0]),
    ("window", lambda w: [w[0] + 5.0, w[1]]),
    ("window", lambda w: [-np.inf, w[1]]),
    ("key", lambda k: [k[0], 2**32]),
    ("key", lambda k: [-1, k[1]]),
    ("key", lambda k: [float(k[0]), k[1]]),
    ("key", lambda k: [*k, 1]),
    ("samples", lambda n: n + 1),
    ("clusters", lambda _: 20.0),
    ("clusters", lambda _: True),
    ("clusters", lambda _: 0),
    ("about", lambda a: {**a, "data": 1}),
    ("about", lambda a: {"data": a["data"]}),
    ("lam", lambda x: x[::-1]),
    ("lam", lambda x: x[:-1]),
    ("lam", lambda x: [x[0], *x[:-1]]),
    ("times", lambda x: [-1.0, *x[1:]]),
    ("times", lambda x: [str(v) for v in x]),
    ("weights", lambda x: [-v for v in x]),
    ("weights", lambda x: [*x[:-1], None]),
    ("weights", lambda x: [[v] for v in x]),
    ("lam_per_time", lambda x: [-v for v in x]),
    ("lam_per_time", lambda x: [np.nan, *x[1:]]),
    ("rates", lambda t: {**t, "total": [np.nan, *t["total"][1:]]}),
    ("rates", lambda t: {**t, "total": [None, *t["total"][1:]]}),
    ("rates", lambda t: {**t, "total": [10**400, *t["total"][1:]]}),
    ("rates", lambda t: {**t, "total": t["total"][1:]}),
    ("rates", lambda t: {**t, "unknown": t["total"]}),
    ("rates", lambda t: {row: t[row] for row in t if row != "total"}),
    ("rate_errors", lambda t: {**t, "total": [-v for v in t["total"]]}),
    ("rate_errors", lambda t: {**t, "total": [np.inf, *t["total"][1:]]}),
    ("integrals", lambda t: {**t, "total": t["total"][1:]}),
    ("integrals", lambda t: {**t, "total": [np.inf, *t["total"][1:]]}),
    ("integrals", lambda t: {**t, "total": [True, *t["total"][1:]]}),
    ("integrals", lambda t: {**t, "total": [1.0 + t["total"][0], *t["total"][1:]]}),
    ("integrals", lambda t: {row: t[row] for row in t if row != "total"}),
    ("totals", lambda t: {row: t[row] for row in t if row != "total"}),
    ("totals", lambda t: {**t, "total": {**t["total"], "error": 2.0 * t["total"]["error"]}}),
    ("totals", lambda t: {**t, "total": {"value": t["total"]["value"]}}),
    ("oracle", lambda o: {"value": o["value"], "error": o["error"]}),
    ("oracle", lambda o: {**o, "error": -o["error"]}),
    ("oracle", lambda o: {**o, "z": np.nan}),
    ("oracle", lambda o: {**o, "more": 1.0}),
    ("quadrature", lambda q: {**q, "total": -1.0}),
    ("quadrature", lambda q: {**q, "total": 0.1}),
    ("quadrature", lambda q: {**q, "total": "0.1"}),
    ("corrections", lambda c: {**c, "total": np.inf}),
    ("corrections", lambda c: {**c, "total": [0.1]}),
    ("fixed", lambda f: {**f, "excess": {"value": np.nan, "error": 0.0}}),
    ("fixed", lambda f: {**f, "prior": {"value": 0.0, "error": 0.0}}),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{name}-{k}" for k, (name, _) in enumerate(DAMAGES)])
def test_a_ledger_file_with_damaged_numbers_is_refused(record: dict[str, Any], name: str, damage, tmp_path: Path) -> None:
    assert_refused({**record, name: damage(record[name])}, tmp_path / "bad.json")


def test_a_clock_that_stands_still_can_be_saved(tmp_path: Path) -> None:
    """At lam = -90 the time of StraightLine is 1 to all digits, where D is infinite; so is z beside exact values."""
    ledger = td.account(td.Diffusion(LINE, td.StraightLine()), nodes=8, samples=100, lam=(-90.0, 8.0), rng=1)
    assert np.isinf(ledger.lam_per_time).any()
    object.__setattr__(ledger, "check", td.Estimate(1.0, 0.0, np.inf))
    ledger.save(tmp_path / "ledger.json")
    assert td.Ledger.load(tmp_path / "ledger.json").to_dict() == ledger.to_dict()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": "other"}', '{"format": "thermodiff-ledger-1"}', "null", "\xff\xfe"],
)
def test_a_file_that_is_no_ledger_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.json is not a ledger written by Ledger\.save"):
        td.Ledger.load(path)
