"""The ``thermodiff`` command."""

from thermodiff.cli.main import main as main
