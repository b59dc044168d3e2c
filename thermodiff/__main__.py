"""``python -m thermodiff``."""

from thermodiff.cli.main import main

main()
