"""A training that is stopped, or killed, goes on to the same bits; a foreign or damaged state is refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import nn

import thermodiff
from thermodiff.densities import GaussianMixture
from thermodiff.learned import report, resume, training
from thermodiff.learned.images import Images
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.training import train
from thermodiff.learned.unet import UNet
from thermodiff.schedules import VP

ROOT = Path(thermodiff.__file__).parent.parent
DATA = np.random.default_rng(0).normal(size=(64, 2)) * [1.0, 0.3]
PROGRAM = """
import sys, numpy as np, torch
from thermodiff.learned import ControlMLP, train
from thermodiff.schedules import VP
torch.set_num_threads(1)
data = np.random.default_rng(0).normal(size=(64, 2)) * [1.0, 0.3]
path, every = sys.argv[1], int(sys.argv[2])
train(ControlMLP(2, width=32, rng=0), data, VP(), steps=400, batch=64, rng=0, lam=(-6.0, 6.0),
      checkpoint=path, every=every, metrics=path + ".jsonl", progress=False)
print("done")
"""


class Noisy(nn.Module):
    """Draws random numbers of its own, as dropout does."""

    predicts = "eps"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner(self.norm(x))


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that is a view of it."""

    predicts = "eps"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.register_buffer("row", self.a.weight.detach()[1])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x))) + self.row


def labelled() -> Images:
    rng = np.random.default_rng(0)
    return Images(rng.integers(0, 256, (20, 6, 6), dtype=np.uint8), labels=rng.integers(0, 3, 20), dequantise=True)


CASES = {
    "control": (lambda: ControlMLP(2, width=16, rng=0), DATA, {}),
    "dropout": (Noisy, DATA, {}),
    "tied": (Tied, DATA, {}),
    "labels": (lambda: UNet(1, (4, 8), classes=3, rng=0), labelled(), {"batch": 8}),
    "channels last": (lambda: UNet(1, (4, 8), rng=0), labelled(), {"batch": 8, "precision": "bf16"}),
}


def run(case: str, path: Path | None = None, **options) -> nn.Module:
    build, data, more = CASES[case]
    call = {"steps": 12, "batch": 32, "rng": 3, "lam": (-5.0, 5.0), **more, **options}
    return train(build(), data, VP(), checkpoint=path, every=None if path is None else 2, **call)


class Stop(Exception):
    pass


def stop_after(step: int):
    def metrics(k: int, loss: float) -> None:
        if k == step:
            raise Stop

    return metrics


@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_training_ends_with_the_same_bits(case, stop, tmp_path):
    whole = run(case).state_dict()
    with pytest.raises(Stop):
        run(case, tmp_path / "net", metrics=stop_after(stop))
    torch.rand(3)  # the state of the rest of the program does not matter
    steps = []
    resumed = run(case, tmp_path / "net", metrics=lambda step, loss: steps.append(step)).state_dict()
    assert steps == list(range((stop - 1) // 2 * 2 + 1, 13))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_finished_training_is_not_repeated(tmp_path):
    whole, steps = run("control", tmp_path / "net").state_dict(), []
    again = run("control", tmp_path / "net", metrics=lambda step, loss: steps.append(step)).state_dict()
    assert steps == []
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_training_without_decay_can_be_made_longer_but_not_shorter(tmp_path):
    def longer(steps, path):
        net = ControlMLP(2, width=8, rng=0)
        return train(
            net, DATA, VP(), steps=steps, batch=8, rng=0, lam=(-5.0, 5.0), decay=False, checkpoint=path, every=5
        ).state_dict()  # fmt: skip

    whole, first, second = longer(12, tmp_path / "whole"), longer(7, tmp_path / "part"), longer(12, tmp_path / "part")
    assert all(torch.equal(value, second[name]) for name, value in whole.items())
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(ValueError, match=r"has made 12 steps, more than steps=7; ask for more"):
        longer(7, tmp_path / "part")


def test_without_rng_the_key_of_the_state_goes_on(tmp_path):
    losses = []
    with pytest.raises(Stop):
        run("control", tmp_path / "net", rng=None, metrics=stop_after(7))
    run("control", tmp_path / "net", rng=None, metrics=lambda step, loss: losses.append(loss))
    assert len(losses) == 6


def test_lines_of_metrics_are_those_of_a_training_that_was_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LINE", 5)
    run("control", tmp_path / "whole", metrics=tmp_path / "whole.jsonl")
    with monkeypatch.context() as killed:
        killed.setattr(training.State, "save", after(8, training.State.save))
        with pytest.raises(Stop):
            run("control", tmp_path / "part", metrics=tmp_path / "part.jsonl")
    run("control", tmp_path / "part", metrics=tmp_path / "part.jsonl")
    one, two = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("whole", "part")
    )
    assert [line["step"] for line in one] == [5, 10, 12]
    assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in two]


def after(last: int, save):
    """`State.save` that ends the program after step ``last``."""

    def saved(self, net, optimiser, step, losses):
        save(self, net, optimiser, step, losses)
        if step == last:
            raise Stop

    return saved


def test_without_every_nothing_is_resumed(tmp_path):
    net = train(CASES["control"][0](), DATA, VP(), steps=2, batch=8, rng=0, lam=(-5.0, 5.0), checkpoint=tmp_path / "net")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    assert not net.training


def launch(path: Path, every: int = 20) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), str(every)], env=environment, stdout=subprocess.PIPE)


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    assert launch(tmp_path / "whole").communicate(timeout=300)[0] == b"done\n"
    rng, path, kills = np.random.default_rng(int(time.time())), tmp_path / "killed", 0
    state = tmp_path / "killed.state.safetensors"
    for _ in range(4):
        process, before = launch(path, every=1), state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)  # until it has come further than the last
        time.sleep(float(rng.uniform(0.0, 0.1)))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    assert launch(path, every=1).communicate(timeout=300)[0] == b"done\n"
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    lines = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("whole", "killed")
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(50, 401, 50))
    # A line that was not full at the kill is the mean of all its steps.
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


# What is refused


@pytest.fixture
def state(tmp_path) -> Path:
    with pytest.raises(Stop):
        run("control", tmp_path / "net", metrics=stop_after(5))
    return tmp_path / "net.state.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 16}, "belongs to another training .batch was 32, now 16"),
        ({"rng": 4}, "belongs to another training .key was"),
        ({"steps": 14}, "steps was 12, now 14"),
        ({"lam": (-5.0, 4.0)}, "lam was"),
        ({"likelihood": False}, "likelihood was True, now False"),
    ],
)
def test_the_state_of_another_call(state, change, message):
    with pytest.raises(ValueError, match=message):
        run("control", state.with_name("net"), **change)


def test_the_state_of_other_data_and_networks(state):
    path, options = state.with_name("net"), {"steps": 12, "batch": 32, "rng": 3, "lam": (-5.0, 5.0), "every": 2}
    with pytest.raises(ValueError, match="data was"):
        train(ControlMLP(2, width=16, rng=0), DATA + 1.0, VP(), checkpoint=path, **options)
    with pytest.raises(ValueError, match="arguments was"):
        train(ControlMLP(2, width=8, rng=0), DATA, VP(), checkpoint=path, **options)
    with pytest.raises(ValueError, match="noise was"):
        train(ControlMLP(2, width=16, rng=0), DATA, VP(scale=0.5), checkpoint=path, **options)


def test_another_law_with_the_same_moments_is_refused(tmp_path):
    laws = [GaussianMixture([[-2, 0], [2, 0]], stds=stds) for stds in ([0.3, 0.5], [0.5, 0.3])]
    options = {"steps": 4, "batch": 8, "rng": 3, "every": 2, "checkpoint": tmp_path / "net", "progress": False}
    for law in (laws[0], laws[0]):
        train(ControlMLP(2, width=8, rng=0), law, VP(), **options)
    with pytest.raises(ValueError, match="data was"):
        train(ControlMLP(2, width=8, rng=0), laws[1], VP(), **options)


def test_other_types_and_compilation_are_refused(state):
    path, options = state.with_name("net"), {"steps": 12, "batch": 32, "rng": 3, "lam": (-5.0, 5.0), "every": 2}
    with pytest.raises(ValueError, match=r"types was \['float32'\], now \['float64'\]"):
        train(ControlMLP(2, width=16, rng=0).double(), DATA, VP(), checkpoint=path, **options)
    call = resume.State(path, {}, 1).read()[0]["call"]
    assert call["compile"] is False
    with pytest.raises(ValueError, match="compile was False, now True"):
        resume.State(path, {**call, "compile": True}, 1)._compare(call)
    # Of states of earlier versions this is not known.
    resume.State(path, call, 1)._compare({name: value for name, value in call.items() if name != "compile"})


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_damaged_and_foreign_files(state, tmp_path):
    good, trap = state.read_bytes(), tmp_path / "trap"
    flipped = bytearray(good)
    flipped[-100] ^= 1
    for broken, message in (
        (good[:-10], "is not a safetensors file .*; delete it to start again"),
        (b"", "is not a safetensors file"),
        (pickle.dumps(Trap(trap)), "is not a safetensors file"),
        (bytes(flipped), "does not match its checksum; it is damaged: delete it to start again"),
    ):
        state.write_bytes(broken)
        with pytest.raises(ValueError, match=message):
            run("control", tmp_path / "net")
    torch.save({"net": Trap(trap)}, state)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        run("control", tmp_path / "net")
    assert not trap.exists()
    save_file({"a": torch.zeros(1)}, state)
    for rng in (3, None):
        with pytest.raises(ValueError, match="is not the state of a training of format"):
            run("control", tmp_path / "net", rng=rng)
    state.write_bytes(good)
    run("control", tmp_path / "net")


def rewritten(state: Path, change, checksum: bool = False) -> None:
    """Change the header of ``state``, with a checksum that fits or with the old one."""
    content = state.read_bytes()
    with safe_open(state, "pt") as file:
        record = json.loads(file.metadata()["record"])
    record = change(record) or record
    tensors = load(content)
    if checksum:
        record["sha256"] = resume._digest(record, tensors)
    text = record if isinstance(record, str) else json.dumps(record)
    state.write_bytes(save(tensors, {"record": text}))


@pytest.mark.parametrize("rng", [3, None])
@pytest.mark.parametrize(
    "change",
    [lambda record: record.update(step=2), lambda record: record["call"].update(batch=16)],
    ids=["step", "call"],
)
def test_an_edited_header(state, change, rng):
    rewritten(state, change)
    with pytest.raises(ValueError, match="does not match its checksum; it is damaged: delete it to start again"):
        run("control", state.with_name("net"), rng=rng)


@pytest.mark.parametrize("rng", [3, None])
@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(step=-3),
        lambda record: record.update(step=True),
        lambda record: record.pop("call") and None,
        lambda record: record["call"].pop("key") and None,
        lambda record: record["call"].update(key=["a", -1]),
        lambda record: record["call"].update(key=[-1, 2]),
    ],
    ids=["negative step", "no number", "no call", "no key", "wrong key", "negative key"],
)
def test_a_header_without_sense(state, change, rng):
    rewritten(state, change, checksum=True)
    with pytest.raises(ValueError, match="is not the state of a training of format .*; delete it"):
        run("control", state.with_name("net"), rng=rng)


def test_a_header_that_is_nested_too_deeply(state):
    rewritten(state, lambda record: "[" * 100_000)
    with pytest.raises(ValueError, match="is not the state of a training of format"):
        run("control", state.with_name("net"))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    loss = training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", lambda *given: loss(*given) * float("nan"))
    with pytest.raises(ArithmeticError, match="became nan at step 1"):
        run("control", tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_every_needs_a_place():
    with pytest.raises(ValueError, match="say where with checkpoint="):
        train(ControlMLP(2, rng=0), DATA, VP(), every=5, lam=(-5.0, 5.0))
    with pytest.raises(ValueError, match="every must be at least 1"):
        train(ControlMLP(2, rng=0), DATA, VP(), every=0, checkpoint="x", lam=(-5.0, 5.0))


def test_two_trainings_do_not_write_to_one_state(tmp_path: Path) -> None:
    path, options = tmp_path / "net", {"steps": 4, "batch": 8, "rng": 0, "every": 2, "progress": False}
    first = train(ControlMLP(2, rng=0), DATA, VP(), checkpoint=path, metrics=tmp_path / "lines", **options)
    before = (tmp_path / "lines").read_bytes()
    with resume.State(path, {}, 1).alone(), pytest.raises(ValueError, match="another training is writing to .*net.state"):
        train(ControlMLP(2, rng=0), DATA, VP(), checkpoint=path, metrics=tmp_path / "lines", **options)
    assert (tmp_path / "lines").read_bytes() == before
    again = train(ControlMLP(2, rng=0), DATA, VP(), checkpoint=path, **options)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert sorted(file.name for file in tmp_path.iterdir() if "lock" in file.name) == []


def test_a_file_system_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(resume.fcntl, "flock", refuse)
    train(ControlMLP(2, rng=0), DATA, VP(), steps=2, batch=8, rng=0, checkpoint=tmp_path / "net", every=1, progress=False)
    assert (tmp_path / "net.state.safetensors").exists()


def test_the_lock_of_a_killed_training_is_none(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from thermodiff.learned.resume import State\n"
        "with State(sys.argv[1], {}, 1).alone(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "net"
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert [file.name for file in tmp_path.iterdir()] == [".net.state.safetensors.lock"]
    with resume.State(path, {}, 1).alone():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another training ends between the opening of the file and its locking."""
    state, real = resume.State(tmp_path / "net", {}, 1), resume.fcntl.flock
    lock, calls = tmp_path / ".net.state.safetensors.lock", []

    def lag(file: object, mode: int) -> None:
        if not calls:
            lock.unlink()
        calls.append(mode)
        real(file, mode)

    monkeypatch.setattr(resume.fcntl, "flock", lag)
    with state.alone():
        assert len(calls) == 2
        with pytest.raises(ValueError, match="another training"), resume.State(tmp_path / "net", {}, 1).alone():
            pass
        assert lock.exists()
    assert not lock.exists()
