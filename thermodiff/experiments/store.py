"""Results of single runs on disk, so that an experiment that was stopped goes on where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from thermodiff._check import write_atomically


class Store:
    """One JSON file for each run in a folder, with the settings that it belongs to.

    Parameters
    ----------
    folder : Path
    settings : dict
        What every run shares.  Runs of other settings are refused rather than mixed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))

    def load(self, name: str) -> dict[str, Any] | None:
        """The record of a run; None where it has not been done.

        Raises
        ------
        ValueError
            For a file that is not such a record, or one of an experiment with other settings.
        """
        path = self._path(name)
        try:
            found = json.loads(path.read_bytes())
            settings, record = found["settings"], found["record"]
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a record of this experiment ({error}); delete it to run it again.") from None
        if settings != self.settings:
            changed = sorted(key for key in {*settings, *self.settings} if settings.get(key) != self.settings.get(key))
            raise ValueError(
                f"{self.folder} holds runs with other settings ({', '.join(changed)}); choose another folder with --out, "
                "or delete it."
            )
        return record

    def save(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(name), json.dumps({"settings": self.settings, "record": record}, indent=1).encode())

    def _path(self, name: str) -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9.=-]+", "-", name) + ".json")
