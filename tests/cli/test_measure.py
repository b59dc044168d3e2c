"""``thermodiff measure``: the page of a trained network, and one sentence for every mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from thermodiff.cli import main as command

SMALL = ("--nodes", "8", "--samples", "40")


@pytest.fixture
def run(capsys, monkeypatch):
    """``run(...)`` calls ``thermodiff ...``; exit status, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thermodiff", *map(str, arguments)])
        code = 0
        try:
            command()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def trained(run, folder: Path, *arguments: str) -> Path:
    given = ["--steps", "4", "--batch", "16", "--every", "2", "--quiet", "--out", str(folder), *map(str, arguments)]
    assert run("train", *given) == (0, "", "")
    return folder


def vectors(place: Path, shift: float = 0.0) -> Path:
    np.savez(place, x=np.random.default_rng(0).normal(size=(60, 2)) * [1.0, 0.3] + shift)
    return place


def test_vectors_are_measured_on_both_parts(run, tmp_path):
    folder = trained(run, tmp_path / "net", "--data", vectors(tmp_path / "x.npz"))
    code, out, _ = run("measure", folder, *SMALL)
    assert code == 0
    for words in ("stored by the network, S_NN", "gaussian part", "held-out data", "memorising law", "8 nodes less 4"):
        assert words in out
    assert out.splitlines()[-1] == f"written to {folder}: measure.json, measure.png"
    told, record = (json.loads((folder / name).read_text()) for name in ("measure.json", "train.json"))
    assert told["ledger"]["window"] == pytest.approx(record["window"])
    assert set(told) == {"ledger", "held_out", "memorising", "gaussian", "remainder", "coarse_nodes", "convergence"}
    assert (folder / "measure.png").stat().st_size > 10_000
    # The same again, in another window and without a page.
    assert run("measure", folder, *SMALL, "--lam", "-3", "2", "--quiet") == (0, "", "")
    assert json.loads((folder / "measure.json").read_text())["ledger"]["window"] == [-3.0, 2.0]


@pytest.mark.filterwarnings("default:the window is")
def test_a_window_beyond_the_training_is_told_in_a_sentence(run, tmp_path):
    folder = trained(run, tmp_path / "net", "--data", vectors(tmp_path / "x.npz"), "--lam", "-3", "3")
    code, _, err = run("measure", folder, *SMALL, "--lam", "-6", "5")
    assert code == 0
    lines = [line for line in err.splitlines() if "trained on" in line]
    assert lines
    assert all(line.startswith("thermodiff: warning: the window is lam = -6 ... 5, and the network") for line in lines)


def test_a_known_law_has_its_mismatch(run, tmp_path):
    folder = trained(run, tmp_path / "net", "--data", "mixture")
    code, out, _ = run("measure", folder, *SMALL)
    assert code == 0
    assert "mismatch" in out
    assert "held-out" not in out


def test_images_with_classes(run, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", images=grey, labels=np.arange(40) % 4)
    folder = trained(run, tmp_path / "net", "--data", tmp_path / "i.npz", "--net", "unet", "--labels")
    assert run("measure", folder, "--nodes", "4", "--samples", "36", "--quiet")[0] == 0
    assert json.loads((folder / "measure.json").read_text())["held_out"]["totals"]["neural"]


def test_the_data_must_be_that_of_the_training(run, tmp_path):
    data = vectors(tmp_path / "x.npz")
    folder = trained(run, tmp_path / "net", "--data", data)
    data.rename(tmp_path / "moved.npz")
    code, _, err = run("measure", folder, *SMALL)
    assert code == 2
    assert f"there is no file {data}" in err
    assert run("measure", folder, *SMALL, "--quiet", "--data", tmp_path / "moved.npz")[0] == 0
    vectors(data, shift=1.0)
    code, _, err = run("measure", folder, *SMALL)
    assert code == 2
    assert "x.npz does not hold the data that the network" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no nowhere/train.json; give the folder that `thermodiff train --out` has written"),
        ([".", "--nodes", "3"], "--nodes must be at least 4, got 3"),
        ([".", "--samples", "1"], "--samples must be at least 2, got 1"),
        ([".", "--lam", "3", "1"], "--lam must increase"),
        ([".", "--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_mistakes_end_with_one_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("measure", *arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"data": "mixture"}',
        '{"data": 3, "net": "control", "labels": false, "seed": 0, "window": [0, 1]}',
        '{"data": "mixture", "net": "control", "labels": false, "seed": true, "window": [0, 1]}',
        '{"data": "mixture", "net": "control", "labels": false, "seed": 0, "window": [-Infinity, 1]}',
    ],
)
def test_a_record_that_is_none(run, tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    code, _, err = run("measure", tmp_path)
    assert code == 2
    assert "train.json is not the record of a training by this version; train again" in err


def test_a_training_that_is_not_at_its_end(run, tmp_path):
    folder = trained(run, tmp_path / "net")
    (folder / "train.json").unlink()
    code, _, err = run("measure", folder, *SMALL)
    assert code == 2
    assert f"the training in {folder} is not at its end; give its command again, then measure." in err


def test_a_folder_in_the_place_of_the_page(run, tmp_path):
    folder = trained(run, tmp_path / "net")
    (folder / "measure.json").mkdir()
    code, _, err = run("measure", folder, *SMALL)
    assert code == 2
    assert "measure.json is a folder" in err
