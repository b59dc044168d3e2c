"""Weights on disk."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from thermodiff.densities import Gaussian
from thermodiff.learned.checkpoint import check_path, load_weights, save_weights
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.training import train
from thermodiff.schedules import VP, Cosine, StraightLine


def saved(path: Path) -> ControlMLP:
    net = ControlMLP(2, width=8, rng=1)
    net.precondition(np.array([1.0, 2.0]), np.diag([1.0, 0.5]), StraightLine(scale=0.1))
    torch.nn.init.ones_(net.last.weight)
    save_weights(net, path)
    return net


def test_round_trip(tmp_path: Path) -> None:
    net = saved(tmp_path / "runs" / "mix")
    other = ControlMLP(2, width=8, rng=2)
    record = load_weights(other, tmp_path / "runs" / "mix")
    x, t = torch.ones(3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    assert torch.equal(net(x, t), other(x, t))
    assert record["predicts"] == "entropy"
    assert record["noise"] == {"schedule": "StraightLine", "scale": 0.1}
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == ["mix.json", "mix.safetensors"]
    load_weights(other, tmp_path / "runs" / "mix.safetensors")


def test_wrong_network(tmp_path: Path) -> None:
    saved(tmp_path / "mix")
    with pytest.raises(ValueError, match=r"holds ControlMLP\(dim=2, width=8, depth=3\), .* ControlMLP\(dim=2, width=16"):
        load_weights(ControlMLP(2, width=16), tmp_path / "mix")
    with pytest.raises(ValueError, match="the network given is EntropyMLP"):
        load_weights(EntropyMLP(2), tmp_path / "mix")


def test_module_without_arguments(tmp_path: Path) -> None:
    save_weights(torch.nn.Linear(2, 2), tmp_path / "plain", predicts="eps")
    assert load_weights(torch.nn.Linear(2, 2), tmp_path / "plain")["predicts"] == "eps"
    with pytest.raises(ValueError, match="does not fit the network: size mismatch"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "plain")


class Tied(torch.nn.Module):
    """Two layers with one weight, and a buffer that is a view of it."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.b.weight = self.a.weight if tied else self.b.weight
        self.register_buffer("row", self.a.weight.detach()[1] if tied else torch.zeros(2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x))) + self.row


def test_tied_weights(tmp_path: Path) -> None:
    net, other = Tied(), Tied()
    save_weights(net, tmp_path / "tied")
    load_weights(other, tmp_path / "tied")
    assert other.b.weight is other.a.weight
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    save_weights(Tied(tied=False), tmp_path / "loose")
    with pytest.raises(ValueError, match="does not fit the network: .* shares memory with another tensor of the network"):
        load_weights(other, tmp_path / "loose")


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    base = tmp_path / "mix"
    net = saved(base)
    weights, sidecar = tmp_path / "mix.safetensors", tmp_path / "mix.json"
    good, record = weights.read_bytes(), sidecar.read_text()
    for broken in (good[:-10], pickle.dumps({"a": 1}), b""):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="does not match the checksum"):
            load_weights(net, base)
    weights.unlink()
    with pytest.raises(ValueError, match="does not exist; give the path"):
        load_weights(net, base)
    weights.write_bytes(good)
    for text, message in (
        ("{", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file; it is damaged"),
        ('{"a":' * 100_000, "is not a JSON file; it is damaged"),
        ("1" * 5000, "is not a JSON file; it is damaged"),
        ("[1]", "is not a weights record"),
        ('{"format": "other"}', "is not a weights record"),
        (record.replace("StraightLine", "Spiral"), "names a schedule that cannot be built"),
        (record.replace("0.1", "1" + "0" * 400), "names a schedule that cannot be built"),
    ):
        sidecar.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_weights(net, base)


def test_foreign_weights_with_a_matching_checksum(tmp_path: Path) -> None:
    import hashlib

    net = saved(tmp_path / "mix")
    content = pickle.dumps({"a": 1})
    (tmp_path / "mix.safetensors").write_bytes(content)
    record = json.loads((tmp_path / "mix.json").read_text())
    record["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "mix.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_weights(net, tmp_path / "mix")


class Fixed(torch.nn.Linear):
    """Says itself what it predicts, and calls a number noise."""

    noise = 0.1

    @property
    def predicts(self) -> str:
        return "v"


def test_what_a_network_predicts_and_its_schedule_come_back(tmp_path: Path) -> None:
    law = Gaussian([0.0, 0.0], std=1.0)
    save_weights(EntropyMLP(2, rng=0), tmp_path / "eps", noise=Cosine(), predicts="eps")
    net = EntropyMLP(2, rng=1)
    load_weights(net, tmp_path / "eps")
    assert net.predicts == LearnedDiffusion(net, law, Cosine()).predicts == "eps"
    with pytest.raises(ValueError, match=r"the network belongs to Cosine.*, the diffusion is that of VP"):
        LearnedDiffusion(net, law, VP())
    save_weights(net, tmp_path / "again")
    assert load_weights(net, tmp_path / "again")["noise"] == Cosine().to_dict()
    # A denoiser of noise levels goes with every schedule.
    save_weights(EntropyMLP(2, rng=0), tmp_path / "edm", noise=Cosine(), predicts="edm")
    net = EntropyMLP(2, rng=1)
    load_weights(net, tmp_path / "edm")
    assert LearnedDiffusion(net, law, VP()).predicts == "edm"


def test_what_is_the_networks_own_stays(tmp_path: Path) -> None:
    save_weights(Fixed(2, 2), tmp_path / "own", noise=VP(), predicts="eps")
    net = Fixed(2, 2)
    assert load_weights(net, tmp_path / "own")["predicts"] == "eps"
    assert (net.predicts, net.noise) == ("v", 0.1)


def test_what_is_something_else_is_not_saved(tmp_path: Path) -> None:
    """Layers that a module calls noise or predicts; and what is given must be what it is called."""
    net = torch.nn.Linear(2, 2)
    net.noise, net.predicts = torch.nn.Linear(2, 2), torch.ones(2)
    save_weights(net, tmp_path / "own")
    assert load_weights(net, tmp_path / "own")["noise"] is None
    with pytest.raises(TypeError, match="save_weights: noise must be a schedule .*, got int"):
        save_weights(net, tmp_path / "no", noise=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="predicts='noise' is unknown; choose one of"):
        save_weights(net, tmp_path / "no", predicts="noise")
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("given", ["noise", ["eps"], 3])
def test_an_unknown_prediction_is_refused(tmp_path: Path, given: object) -> None:
    saved(tmp_path / "mix")
    record = json.loads((tmp_path / "mix.json").read_text())
    (tmp_path / "mix.json").write_text(json.dumps({**record, "predicts": given}))
    with pytest.raises(
        ValueError, match=r"mix.json says predicts=.*, needed is one of entropy, score, .*; save the weights"
    ):
        load_weights(ControlMLP(2, width=8), tmp_path / "mix")


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".state.safetensors"])
def test_paths_that_cannot_be_written_are_refused_before_training(tmp_path, suffix):
    """A folder in the place of a file, a path beneath a file, an empty name."""
    (tmp_path / f"taken{suffix}").mkdir()
    (tmp_path / "file").write_text("x")
    heard = []
    places = {
        tmp_path / "taken": r"taken' would be written to .*, which is a folder; choose another",
        tmp_path / "file" / "deep" / "net": r"lies beneath .*file, which is a file; choose another folder",
        f"{tmp_path}/sub/": r"sub/' has no name; give a path with one, as in '.*sub/net'",
        "": "checkpoint '' has no name; give a path with one, as in 'net'",
    }
    for path, message in places.items():
        with pytest.raises(ValueError, match=message):
            train(
                ControlMLP(2, rng=0),
                np.eye(2),
                VP(),
                checkpoint=path,
                every=2,
                steps=2,
                lam=(-4.0, 4.0),
                metrics=heard.append,
            )
        with pytest.raises(ValueError, match=message):
            save_weights(ControlMLP(2, rng=0), path)
    assert heard == []
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize("cause", ["mkdir", "access"])
def test_a_folder_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch, cause):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    if cause == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        ValueError, match=r"cannot be written \((Permission denied|no permission to write)\); choose another"
    ):
        check_path(tmp_path / "nope" / "net")
