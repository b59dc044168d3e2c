"""What an integrator returns."""

import numpy as np
import pytest
from systems import PLANE

import thermodiff as td


def test_final_is_the_last_state() -> None:
    states = np.arange(12.0).reshape(3, 2, 2)
    path = td.Path(np.array([1.0, 0.5, 0.0]), np.array([-8.0, 0.0, 20.0]), states, (1, 2), False)
    np.testing.assert_array_equal(path.final, states[2])


def test_a_path_cannot_be_changed() -> None:
    path = td.Path(np.zeros(1), np.zeros(1), np.zeros((1, 1, 1)), None, False)
    with pytest.raises(AttributeError):
        path.states = np.ones((1, 1, 1))


def test_shapes_and_times_of_a_path() -> None:
    noise = td.VP()
    path = td.reverse(td.Diffusion(PLANE, noise), 300, steps=50, times=[1.0, 0.5, 0.1], rng=3)
    assert path.states.shape == (3, 300, 2)
    np.testing.assert_allclose(path.times, [1.0, 0.5, 0.1], rtol=1e-12)
    np.testing.assert_allclose(path.lam, noise.lam(path.times), rtol=1e-10)
    words = np.random.SeedSequence(3).generate_state(2)
    assert path.key == (int(words[0]), int(words[1]))


def test_a_path_without_noise_has_no_key() -> None:
    path = td.probability_flow(td.Diffusion(PLANE, td.VP()), np.zeros((3, 2)), steps=10, times=[0.5, 0.1])
    assert path.key is None
    assert path.denoised is False
