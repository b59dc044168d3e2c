"""What a network says of itself: its schedule, what it predicts, the window of its training."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from thermodiff.learned.meaning import reading_of, require_schedule, warn_beyond_training
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.schedules import VP, Cosine


def test_another_schedule_is_refused() -> None:
    for own in (VP(), 0.1, torch.nn.Linear(2, 2)):  # the last two are the module's own
        require_schedule(SimpleNamespace(noise=own), VP())
    require_schedule(object(), VP())
    with pytest.raises(ValueError, match=r"the network belongs to Cosine.* give noise=net.noise, or a network that was"):
        require_schedule(SimpleNamespace(noise=Cosine()), VP())
    with pytest.raises(ValueError, match=r"conditional belongs to VP\(.*scale=0.5\), .* give noise=conditional.noise"):
        require_schedule(SimpleNamespace(noise=VP(scale=0.5)), VP(), "conditional")


@pytest.mark.parametrize(
    ("stated", "first", "second", "found"),
    [
        (None, None, None, "entropy"),
        (None, "eps", "eps", "eps"),
        (None, None, "v", "v"),
        (None, torch.ones(2), "v", "v"),
        ("score", "eps", "eps", "score"),
    ],
)
def test_the_reading_of_two_networks(stated: Any, first: Any, second: Any, found: str) -> None:
    assert reading_of(stated, one=SimpleNamespace(predicts=first), two=SimpleNamespace(predicts=second)) == found


def test_readings_that_differ_are_refused() -> None:
    nets = {name: SimpleNamespace(predicts=name) for name in ("eps", "v")}
    for stated in (None, "v"):
        with pytest.raises(ValueError, match="one predicts 'eps', two predicts 'v': their outputs cannot be read alike"):
            reading_of(stated, one=nets["eps"], two=nets["v"])
    with pytest.raises(ValueError, match="predicts='noise' is unknown; choose one of"):
        reading_of(None, net=SimpleNamespace(predicts="noise"))


def test_a_module_may_use_the_names_otherwise() -> None:
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.predicts = torch.nn.Linear(2, 2), torch.ones(2)

    assert LearnedDiffusion(Layers(), np.eye(2), VP()).predicts == "entropy"


def test_windows_beyond_the_training() -> None:
    net = SimpleNamespace(window=(-4.0, 4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_beyond_training(net, (-4.04, 4.04))
        assert not warn_beyond_training(object(), (-90.0, 90.0))
    with pytest.warns(RuntimeWarning, match=r"the window is lam = -6 ... 3, and plain was trained on -4 ... 4: beyond"):
        assert warn_beyond_training(net, (-6.0, 3.0), "plain")
