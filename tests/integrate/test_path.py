import numpy as np

import thermodiff as td


def test_final_is_the_last_state_and_the_key_is_recorded():
    path = td.reverse(td.Diffusion(td.Gaussian([1.0, -1.0], std=0.5), td.VP()), 300, steps=10, rng=7)
    assert path.states.shape == (2, 300, 2)
    assert np.array_equal(path.final, path.states[-1])
    assert path.key == tuple(int(word) for word in np.random.SeedSequence(7).generate_state(2))
    assert path.denoised
