"""``thermodiff train``: what it writes, that it goes on, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import thermodiff
from thermodiff.cli import main as command
from thermodiff.learned import ControlMLP, EntropyMLP, Preconditioned, UNet, load_weights
from thermodiff.learned.resume import State
from thermodiff.schedules import VP

ROOT = Path(thermodiff.__file__).parent.parent
FILES = ["metrics.jsonl", "train.json", "weights.json", "weights.safetensors", "weights.state.safetensors"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """``run(...)`` calls the command with a small budget and a folder of its own; exit status, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        small = ["--steps", "3", "--batch", "8", "--every", "2", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["thermodiff", "train", *small, *arguments])
        code = 0
        try:
            command()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights.safetensors")


def test_mixture(run, tmp_path):
    code, out, _ = run()
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert out.splitlines()[0].startswith("trained on log-SNR -8.050 ... 20.000; loss ")
    net = ControlMLP(3)
    record = load_weights(net, tmp_path / "out" / "weights")
    assert record["noise"] == VP().to_dict()
    told = json.loads((tmp_path / "out" / "train.json").read_text())
    assert len(told.pop("fingerprint")) == 64
    assert told == {
        "data": "mixture", "net": "control", "labels": False, "seed": 0, "network": "ControlMLP", "steps": 3, "span": None,
        "window": pytest.approx(VP().window()),
    }  # fmt: skip


def test_the_same_command_goes_on(run, tmp_path):
    assert run("--quiet")[0] == 0
    whole, state = weights(tmp_path / "out"), tmp_path / "out" / "weights.state.safetensors"
    before = state.stat().st_mtime_ns
    (tmp_path / "out" / "weights.safetensors").unlink()
    assert run("--quiet") == (0, "", "")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "out").items())
    assert state.stat().st_mtime_ns == before  # nothing was left to do
    code, _, err = run("--lr", "0.5")
    assert code == 2
    assert "belongs to another training (lr was 0.007, now 0.5)" in err
    assert len(err.strip().splitlines()) == 1


def test_a_finished_training_without_its_metrics(run, tmp_path):
    assert run("--quiet")[0] == 0
    (tmp_path / "out" / "metrics.jsonl").unlink()
    code, out, _ = run()
    assert code == 0
    assert "nothing was left to do" in out


@pytest.mark.parametrize("labels", [False, True])
def test_digits_as_images(run, tmp_path, labels):
    assert run("--data", "digits", "--net", "unet", *(["--labels"] if labels else []))[0] == 0
    record = load_weights(Preconditioned(UNet(1, classes=10 if labels else None)), tmp_path / "out" / "weights")
    assert record["arguments"]["classes"] == (10 if labels else None)
    told = json.loads((tmp_path / "out" / "train.json").read_text())
    assert told["span"] == [-1.0, 1.0]
    assert 4.0 < told["window"][1] < 8.0


def test_vectors_and_the_published_network(run, tmp_path):
    np.savez(tmp_path / "vectors.npz", x=np.random.default_rng(0).normal(size=(40, 2)))
    assert run("--data", str(tmp_path / "vectors.npz"), "--net", "mlp", "--schedule", "SL", "--lam", "-3", "6")[0] == 0
    assert load_weights(EntropyMLP(2), tmp_path / "out" / "weights")["noise"]["schedule"] == "StraightLine"


def test_two_processes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "thermodiff",
            "train", "--steps", "3", "--batch", "8", "--out", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained on log-SNR") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--net", "cnn"], "--net='cnn' is unknown; choose one of 'control', 'mlp', 'unet'"),
        (["--net", "unet"], "--net unet takes images, 'mixture' holds vectors"),
        (["--net", "unet", "--data", "none.npz"], "there is no file none.npz"),
        (["--net", "unet", "--data", "letters"], "unknown images 'letters'; give 'digits' or a FILE.npz"),
        (["--data", "letters"], "unknown data 'letters'"),
        (["--schedule", "Spiral"], "unknown schedule 'Spiral'"),
        (["--schedule", "CondOT"], "state the window"),
        (["--labels"], "--labels needs --net unet"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--every", "0"], "--every must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--lam", "3", "1"], "--lam must increase"),
        (["--lr", "-1"], "lr must be positive"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--ema", "1"], "ema must be at least 0 and below 1"),
        (["--precision", "fp8"], "precision='fp8' is unknown"),
        (["--device", "abacus"], "device='abacus' cannot be used"),
    ],
)
def test_mistakes_end_with_one_sentence(run, tmp_path, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("thermodiff: ")
    assert words in err
    assert not (tmp_path / "out").exists()


def test_bad_images_and_places(run, tmp_path):
    for name, values, words in (
        ("nan", np.full((4, 5, 5), np.nan), "nan.npz: images: the images hold 100 values that are nan"),
        ("one", np.zeros((1, 5, 5), dtype=np.uint8), "one.npz: images: got one image"),
        ("flat", np.zeros((4, 25), dtype=np.uint8), "flat.npz: images: images must have shape"),
        ("same", np.zeros((40, 5, 5), dtype=np.uint8), "all samples are equal; there is nothing to learn"),
    ):
        np.savez(tmp_path / f"{name}.npz", images=values)
        code, _, err = run("--net", "unet", "--data", str(tmp_path / f"{name}.npz"))
        assert code == 2
        assert words in err
    np.savez(tmp_path / "bare.npz", images=np.random.default_rng(0).integers(0, 255, (40, 5, 5), dtype=np.uint8))
    code, _, err = run("--net", "unet", "--labels", "--data", str(tmp_path / "bare.npz"))
    assert code == 2
    assert "holds no labels" in err
    (tmp_path / "out").write_text("a file")
    code, _, err = run()
    assert code == 2
    assert "is a file; name a folder" in err


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch):
    whole = run("--steps", "120", "--quiet", "--out", str(tmp_path / "whole"))
    assert whole == (0, "", "")
    real, steps = State.save, []

    def interrupt(self, net, optimiser, step, losses=()):
        steps.append(step)
        if step == 60:
            signal.raise_signal(signal.SIGINT)
        return real(self, net, optimiser, step, losses)

    monkeypatch.setattr(State, "save", interrupt)
    code, out, err = run("--steps", "120", "--quiet")
    assert (code, out) == (130, "")
    assert err.startswith("thermodiff: stopped after step 61 of 120, saved in ")
    assert err.endswith("Give the same command again to go on.\n")
    assert steps[-1] == 61
    monkeypatch.setattr(State, "save", real)
    assert run("--steps", "120", "--quiet") == (0, "", "")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "out")[name])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(line["step"], line["loss"]) for line in others]


def test_folders_in_the_place_of_files_are_told_at_once(run, tmp_path):
    for name in ("metrics.jsonl", "train.json"):
        (tmp_path / "out" / name).mkdir(parents=True)
        code, _, err = run()
        assert code == 2
        assert f"{name} is a folder, and a file of that name is to be written; move it away." in err
        (tmp_path / "out" / name).rmdir()


def test_words_of_the_command_line(run, tmp_path):
    code, _, err = run("--schedule", "CondOT")
    assert code == 2
    assert "state the window: --lam -8 8." in err
    grey = np.random.default_rng(0).integers(0, 255, (9, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "two.npz", train_images=grey, test_images=grey)
    code, _, err = run("--net", "unet", "--labels", "--data", str(tmp_path / "two.npz"))
    assert code == 2
    assert "or as train_labels= and test_labels= of train_images= and test_images=." in err
    code, _, err = run("--data", str(tmp_path / "two.npz"))
    assert code == 2
    assert "images are for `thermodiff train --net unet`." in err
    np.savez(tmp_path / "huge.npz", images=grey, labels=np.arange(9) + 1_000_000_000)
    code, _, err = run("--net", "unet", "--labels", "--data", str(tmp_path / "huge.npz"))
    assert code == 2
    assert "labels must be below 1000000, got 1000000008" in err
