"""``python -m thermodiff.cli``."""

from thermodiff.cli.main import main

main()
