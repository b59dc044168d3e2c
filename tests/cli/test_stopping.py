"""Ctrl-C in a command that goes on when it is given again."""

import pytest

from thermodiff.cli.stopping import resumable


@pytest.mark.parametrize(
    ("told", "words"), [("", "stopped; what is finished is kept."), ("stopped after step 3.", "stopped after step 3.")]
)
def test_what_it_says(capsys, told: str, words: str) -> None:
    with pytest.raises(SystemExit) as stop, resumable():
        raise KeyboardInterrupt(*[told] if told else [])
    assert stop.value.code == 130
    assert capsys.readouterr().err == f"thermodiff: {words} Give the same command again to go on.\n"


def test_other_ends_are_left_alone() -> None:
    with resumable():
        pass
    with pytest.raises(ValueError, match="mine"), resumable():
        raise ValueError("mine")
