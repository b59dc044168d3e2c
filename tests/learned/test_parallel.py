"""Two processes train the network of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import thermodiff
from thermodiff.learned import training
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.parallel import Processes, processes
from thermodiff.learned.resume import State
from thermodiff.schedules import VP

ROOT = Path(thermodiff.__file__).parent.parent
CPU = torch.device("cpu")
PROGRAM = """
import hashlib, json, os, sys, numpy as np, torch
from thermodiff.learned import ControlMLP, train
from thermodiff.schedules import VP
torch.set_num_threads(1)
data, losses = np.random.default_rng(0).normal(size=(64, 2)) * [1.0, 0.3], []
rank = int(os.environ.get("RANK", "0"))
net = train(ControlMLP(2, width=32, rng=rank), data, VP(), steps=60, batch=64, rng=0, lam=(-6.0, 6.0), lr=1e-2,
            checkpoint=sys.argv[1], every=25, metrics=lambda step, loss: losses.append(loss), progress=False)
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in net.state_dict().values())).hexdigest()
with open(f"{sys.argv[1]}.rank{rank}", "w") as file:  # lines of two processes on one stream may mix
    json.dump({"rank": rank, "losses": losses, "weights": digest}, file)
"""


UNUSED = PROGRAM.replace(
    "net = train(ControlMLP(2, width=32, rng=rank)",
    """
class Unused(ControlMLP):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.spare, self.frozen = torch.nn.Linear(3, 3), torch.nn.Linear(2, 2).requires_grad_(False)

net = train(Unused(2, width=32, rng=rank)""",
)


def told(path: Path, ranks: int, program: str = PROGRAM) -> list[dict]:
    """What each process tells of its run of the program, in order of rank."""
    file = path.with_suffix(".py")
    file.write_text(program)
    start = [sys.executable] if ranks == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, str(file), str(path)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{path}.rank{rank}").read_text()) for rank in range(ranks)]


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    """Each draws initial weights of its own; those of the first are taken."""
    (one,) = told(tmp_path / "one", 1)
    two = told(tmp_path / "two", 2)
    assert len(one["losses"]) == len(two[0]["losses"]) == 60
    assert two[1]["losses"] == []
    np.testing.assert_allclose(two[0]["losses"], one["losses"], rtol=2e-4)
    assert two[0]["weights"] == two[1]["weights"]
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=2e-3, atol=2e-4)
    again = told(tmp_path / "two", 2)  # finished: nothing is left to do
    assert again == [{**entry, "losses": []} for entry in two]


def test_weights_that_forward_does_not_use(tmp_path):
    """One process trains such a module, and so do two."""
    (one,) = told(tmp_path / "one", 1, UNUSED)
    two = told(tmp_path / "two", 2, UNUSED)
    np.testing.assert_allclose(two[0]["losses"], one["losses"], rtol=2e-4)
    assert two[0]["weights"] == two[1]["weights"]


REFUSED = """
import json, os, sys, numpy as np
from thermodiff.learned import ControlMLP, train
from thermodiff.schedules import VP
rank = int(os.environ["RANK"])
try:
    train(ControlMLP(2, rng=0), np.eye(2), VP(), steps=2, batch=2, rng=0, checkpoint=sys.argv[1], every=1, progress=False)
    said = "nothing"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
with open(f"{sys.argv[1]}.rank{rank}", "w") as file:
    json.dump({"said": said}, file)
"""


def test_all_processes_say_that_another_training_writes_there(tmp_path):
    path = tmp_path / "net"
    with State(path, {}, 1).alone():
        said = [entry["said"] for entry in told(path, 2, REFUSED)]
    sentence = f"ValueError: another training is writing to {path}.state.safetensors; wait for its end, or save elsewhere."
    assert said == [sentence, sentence]
    assert [entry["said"] for entry in told(path, 2, REFUSED)] == ["nothing", "nothing"]


@pytest.mark.parametrize("error", [ValueError("taken"), PermissionError(13, "no")])
def test_what_one_process_refuses_is_raised_as_it_is(error):
    @contextmanager
    def refuse():
        raise error
        yield

    with pytest.raises(type(error)) as caught, Processes().held_by_first(refuse(), CPU):
        pytest.fail("it was entered")
    assert caught.value is error


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(training, "processes", lambda device: nullcontext(Processes(1, 2)))
    with pytest.raises(ValueError, match="batch=63 cannot be shared evenly by 2 processes; choose a multiple"):
        training.train(ControlMLP(2, rng=0), np.eye(2), VP(), batch=63, lam=(-4.0, 4.0))


def test_alone():
    with processes(CPU) as group:
        assert group == Processes(0, 1, 0)
        assert group.first
        net, values, words = torch.nn.Linear(1, 1), torch.ones(3), np.array([1, 2], dtype=np.uint32)
        assert group.share(net) is net
        assert group.mean(values) is values
        assert group.agree(words, CPU) is words
        group.wait()
    assert not torch.distributed.is_initialized()


def test_the_group_of_the_caller_is_used_and_kept(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with processes(CPU) as group:
            assert (group.rank, group.count) == (0, 1)
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_writes(rank):
    assert Processes(rank, 2).first == (rank == 0)
