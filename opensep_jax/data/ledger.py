"""Results by key in a file that only grows, so that a killed run loses none that was finished."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class Ledger:
    """JSON values by key, a line each.

    A line that was cut short when a process was killed is dropped, and with it what follows.
    """

    def __init__(self, file: Path):
        """Reads what is there."""
        self._file = file
        self._rows: dict[str, object] = {}
        whole = 0
        if file.exists():
            with file.open("rb") as stream:
                for line in stream:
                    try:
                        key, value = json.loads(line) if line.endswith(b"\n") else None
                    except (ValueError, TypeError):
                        break
                    self._rows[key] = value
                    whole += len(line)
            if whole < file.stat().st_size:
                os.truncate(file, whole)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> object:
        return self._rows[key]

    def add(self, rows: Mapping[str, object]) -> None:
        """Keeps results; they are on disk when this returns."""
        if not rows:
            return
        with self._file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps([key, value]) + "\n" for key, value in rows.items())
            stream.flush()
            os.fsync(stream.fileno())
        self._rows.update(rows)
