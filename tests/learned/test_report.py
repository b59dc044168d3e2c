"""What a training tells: to a function, to a file of JSON lines."""

from __future__ import annotations

import json

import pytest
import torch

from thermodiff._check import DivergenceError
from thermodiff.learned.parallel import Processes
from thermodiff.learned.report import Report

CPU = torch.device("cpu")


def report(steps, metrics, done=0, processes=None, device=CPU):
    return Report(steps, done, lambda step: 0.1 / step, device, processes or Processes(), False, metrics)


def go(steps, metrics, done=0, stop=None, loss=float):
    with report(steps, metrics, done) as told:
        for step in range(done + 1, (stop or steps) + 1):
            told.add(step, torch.tensor(loss(step)))


def test_a_function_hears_of_every_step_in_order():
    heard = []
    go(45, lambda step, loss: heard.append((step, loss)), done=3)
    assert heard == [(step, float(step)) for step in range(4, 46)]


def test_on_a_gpu_losses_are_read_every_twenty_steps():
    heard = []
    with report(45, lambda step, loss: heard.append(step), device=torch.device("cuda")) as told:
        counts = []
        for step in range(1, 46):
            told.add(step, torch.tensor(0.0))
            counts.append(len(heard))
    assert [counts.index(n) + 1 for n in sorted(set(counts))] == [1, 20, 40, 45]
    assert heard == list(range(1, 46))


def test_lines(tmp_path):
    file = tmp_path / "runs" / "metrics.jsonl"
    go(120, file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100, 120]
    assert [line["loss"] for line in lines] == [25.5, 75.5, 110.5]
    assert [line["lr"] for line in lines] == [0.1 / 50, 0.1 / 100, 0.1 / 120]
    assert lines[0]["seconds"] <= lines[1]["seconds"] <= lines[2]["seconds"] < 60.0


def test_lines_of_a_run_that_goes_on(tmp_path):
    file = tmp_path / "metrics.jsonl"
    go(200, file, stop=160)
    before = file.read_text().splitlines()
    file.write_text("\n".join(before) + '\n{"step": 200, "lo')  # torn by a kill
    go(200, file, done=120)
    lines = file.read_text().splitlines()
    assert lines[:2] == before[:2]
    assert [json.loads(line)["step"] for line in lines] == [50, 100, 150, 200]


def test_losses_of_a_line_that_is_not_full_are_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    told = report(200, file)
    for step in range(1, 121):
        told.add(step, torch.tensor(float(step)))
    assert told.losses == [float(step) for step in range(101, 121)]
    on = Report(200, 120, lambda step: 0.1 / step, CPU, Processes(), False, file, told.losses)
    for step in range(121, 201):
        on.add(step, torch.tensor(float(step)))
    assert [json.loads(line)["loss"] for line in file.read_text().splitlines()] == [25.5, 75.5, 125.5, 175.5]
    assert on.losses == []


def test_a_file_of_something_else_is_refused_and_kept(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("dear diary\nsecond line\n")
    with pytest.raises(ValueError, match="line 1, is not a line of metrics; choose another file"):
        report(10, file)
    assert file.read_text().startswith("dear diary")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00bad\n{}\n", "metrics.jsonl is not a file of text, so it holds no metrics; choose another file"),
        (b'{"step": true, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n', "metrics.jsonl, line 1, is not a line of metrics"),
        (b'{"step": 1}\n{"step": 2, "loss": 1.0}\n', "metrics.jsonl, line 1, is not a line of metrics"),
        (b'{"step": 1, "loss": "low"}\n{"step": 2, "loss": 1.0}\n', "metrics.jsonl, line 1, is not a line of metrics"),
    ],
)
def test_lines_that_are_none_are_refused_by_the_name_of_the_file(tmp_path, content, message):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        report(10, file)
    assert file.read_bytes() == content


def test_only_the_first_process_tells(tmp_path):
    heard = []
    for metrics in (lambda step, loss: heard.append(step), tmp_path / "metrics.jsonl"):
        told = report(1, metrics, processes=Processes(rank=1))
        told.add(1, torch.tensor(1.0))
    assert heard == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    heard = []
    with pytest.raises(DivergenceError, match=f"became {value} at step 7 of 20; lower lr"):
        go(20, lambda step, loss: heard.append(step), loss=lambda step: value if step == 7 else 1.0)
    assert heard == list(range(1, 7))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics='.*' is a folder; name a file in it"):
        report(10, tmp_path)


def test_a_line_that_is_whole_and_no_metrics_is_not_erased(tmp_path):
    path = tmp_path / "other.txt"
    for text in ("garbage\n", "[1]\n", "my notes", '{"step": 50, "loss": 1.0}\nmine\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a line of metrics; choose another file"):
            report(5, path)
        assert path.read_text() == text
    path.write_text('{"step": 50, "loss": 1.0}\n{"step": 10')  # torn by a kill
    report(100, path, done=50)
    assert path.read_text() == '{"step": 50, "loss": 1.0}\n'


def test_a_file_that_cannot_be_written(tmp_path):
    blocking = tmp_path / "file"
    blocking.write_text("")
    with pytest.raises(ValueError, match=r"metrics='.*' cannot be written \(.*\); choose a file in a folder of yours"):
        report(5, blocking / "metrics.jsonl")
