"""`thermodiff experiment`."""

import itertools
import json

import pytest
from commands import assert_refused, call

from thermodiff.cli import experiment, main
from thermodiff.cli.storage import run_storage
from thermodiff.experiments import storage, transport
from thermodiff.experiments.storage import Budget
from thermodiff.experiments.store import Store


def record(run: transport.Run) -> dict:
    rows = {row: {"value": 1.0 + 0.01 * run.seed, "error": 0.01} for row in ("neural", "mismatch", "total")}
    return {**run._asdict(), **rows, "training seconds": 1.5}


@pytest.fixture
def done(tmp_path):
    store = Store(tmp_path / "runs", transport.settings(plain=False))
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
        "plain": False,
        "out": out,
        "quiet": False,
    }
    return {**given, **changed}


@pytest.mark.parametrize("ours", [(50, 1600), (1280, 51_200)], ids=["small network", "plain network"])
def test_steps_can_be_read_off_the_axis(done, monkeypatch, ours) -> None:
    """Labels of the ticks do not overlap, be it over two decades or three."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = []

    def savefig(figure, *arguments, **options) -> None:
        FigureCanvasAgg(figure).draw()
        for axes in figure.axes:
            ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
            boxes = [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_text()]
            low, high = axes.get_window_extent().intervalx
            seen.append(sorted((box.x0, box.x1) for box in boxes if low <= 0.5 * (box.x0 + box.x1) <= high))

    point = experiment.run_transport(**options(done, quiet=True))[0]
    monkeypatch.setattr(Figure, "savefig", savefig)
    experiment._figure([point._replace(steps=steps) for steps in ours])
    assert len(seen) == 1
    assert len(seen[0]) >= 3
    assert all(left[1] < right[0] for left, right in itertools.pairwise(seen[0]))


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
    again = experiment.run_transport(**options(done, steps=(50, 100, 50), schedules=("VP", "SL", "VP"), quiet=True))
    assert again == points


def test_runs_of_the_other_network_are_not_mixed_in(done) -> None:
    with pytest.raises(ValueError, match=r"other settings \(.*network.*\); choose another folder"):
        experiment.run_transport(**options(done, plain=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dims": (4,)}, "--dim must be one of"),
        ({"schedules": ("VE",)}, "unknown schedule 'VE'; choose among VP, VPx, SL"),
        ({"steps": (0,)}, "--steps must be at least 1"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"workers": -3}, "--workers must be at least 1, got -3"),
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


BUDGET = Budget(nodes=4, images=40, paper_images=10, sheet=10, sheet_steps=2)


def store_some(out, **changed):
    given = {
        "data": "digits", "sizes": [20, 40], "steps": [2], "seeds": 1, "grids": ["lam", "paper"], "lr": None, "constant": False, "threads": 1,
        "out": out, "quiet": False, "budget": BUDGET,
    }  # fmt: skip
    return run_storage(**{**given, **changed})


def test_a_storage_experiment_is_shown_written_and_kept(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(storage, "TIMES", storage.TIMES[::100])
    results = store_some(tmp_path)
    assert [(point.n, point.steps, point.seeds) for point in results.points] == [(20, 2, 1), (40, 2, 1)]
    captured = capsys.readouterr()
    assert "lam_max = 8.362" in captured.out
    assert "slope" in captured.out
    assert str(results.points[1].values["paper held-out"]) in captured.out
    assert captured.err.count("training\n") == 2
    written = json.loads((tmp_path / "storage.json").read_text())
    assert [point["values"]["held-out"] for point in written["points"]] == [
        point.values["held-out"].to_dict() for point in results.points
    ]
    assert set(written["slopes"]["2"]) == {
        "held-out", "training", "denoising held-out", "denoising training", "paper held-out",
    }  # fmt: skip
    assert len(written["measurements"]) == 6
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["N=20-steps=2-seed=0.png", "N=40-steps=2-seed=0.png", "storage.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    again = store_some(tmp_path, quiet=True)
    assert again.points == results.points
    assert capsys.readouterr() == ("", "")


def test_one_grid_alone_leaves_the_other_out(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(storage, "TIMES", storage.TIMES[::100])
    results = store_some(tmp_path, sizes=[20], grids=["paper"])
    assert set(results.points[0].values) == {"paper held-out"}
    assert results.slopes == {2: {}}
    assert str(results.points[0].values["paper held-out"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", "25"), "cannot be shared equally by 10 classes"),
        (("--n", "5000"), "there are 1500 images to train on"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--grid", "time"), "--grid='time' is unknown; choose one of 'lam', 'paper'"),
        (("--lam-max", "-9"), "--lam-max must be greater than"),
        (("--lr", "0"), "--lr must be positive"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--data", "nowhere.npz"), "there is no file nowhere.npz"),
    ],
)
def test_bad_arguments_of_storage_leave_nothing(arguments, message, capsys, monkeypatch, tmp_path) -> None:
    got = call(capsys, monkeypatch, "experiment", "storage", *arguments, "--out", str(tmp_path / "x"))
    assert_refused(got, tmp_path / "x", message)
