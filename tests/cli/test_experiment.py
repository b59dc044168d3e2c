"""`thermodiff experiment`."""

import json

import pytest

from thermodiff.cli import experiment, main
from thermodiff.experiments import transport
from thermodiff.experiments.store import Store


def record(run: transport.Run) -> dict:
    rows = {row: {"value": 1.0 + 0.01 * run.seed, "error": 0.01} for row in ("neural", "mismatch", "total")}
    return {**run._asdict(), **rows, "training seconds": 1.5}


@pytest.fixture
def done(tmp_path):
    store = Store(tmp_path / "runs", transport.settings())
    for run in transport.runs((3,), ("VP", "SL"), (50, 100), 2):
        store.save(run.name, record(run))
    return tmp_path


def options(out, **changed) -> dict:
    given = {
        "dims": (3,),
        "schedules": ("VP", "SL"),
        "steps": (50, 100),
        "seeds": 2,
        "workers": 1,
        "out": out,
        "quiet": False,
    }
    return {**given, **changed}


def test_a_finished_experiment_is_shown_and_written(done, capsys) -> None:
    points = experiment.run_transport(**options(done))
    assert len(points) == 4
    assert all(point.neural == pytest.approx(1.005) for point in points)
    written = json.loads((done / "transport.json").read_text())
    assert [point["steps"] for point in written["points"]] == [50, 100, 50, 100]
    assert written["training seconds in all"] == 12.0
    assert {entry["schedule"] for entry in written["published"]} == {"VP", "VPx", "SL"}
    assert (done / "transport.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "1.005 ± " in shown
    assert "1.17" in shown


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dims": (4,)}, "--dim must be one of"),
        ({"schedules": ("VE",)}, "unknown schedule 'VE'; choose among VP, VPx, SL"),
        ({"steps": (0,)}, "--steps must be at least 1"),
        ({"seeds": 0}, "--seeds must be at least 1"),
    ],
)
def test_bad_arguments_leave_nothing(changed: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.run_transport(**options(tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_a_sentence(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("sys.argv", ["thermodiff", "experiment", "transport", "--dim", "5", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("thermodiff: --dim must be one of")
