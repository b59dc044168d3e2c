import torch

from thermodiff.learned import torch_threads


def test_the_number_of_threads_holds_inside_and_is_restored_after_an_error():
    before = torch.get_num_threads()
    try:
        with torch_threads(1):
            assert torch.get_num_threads() == 1
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.get_num_threads() == before
