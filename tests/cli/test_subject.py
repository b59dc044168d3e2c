"""What the command trains: data, network and batch by name."""

import numpy as np
import pytest

from thermodiff.cli.subject import read_subject
from thermodiff.learned import ControlMLP, EntropyMLP, Preconditioned


def test_the_network_fits_the_data() -> None:
    law = read_subject("mixture", "control", False, 0)
    assert isinstance(law.net, ControlMLP)
    assert (law.net.dim, law.held_out, law.spread, law.batch) == (3, None, None, 1024)
    digits = read_subject("digits", "mlp", False, 0)
    assert isinstance(digits.net, EntropyMLP)
    assert digits.held_out is not None
    images = read_subject("digits", "unet", True, 0)
    assert isinstance(images.net, Preconditioned)
    assert images.net.classes == 10
    assert images.batch == 128
    assert images.spread == pytest.approx(float(np.sqrt(np.asarray(images.data).var(0).mean())))


def test_the_fingerprint_is_that_of_the_data_and_its_split() -> None:
    prints = [
        read_subject("digits", net, False, seed).fingerprint() for net, seed in (("mlp", 0), ("control", 0), ("mlp", 1))
    ]
    assert prints[0] == prints[1] != prints[2]
