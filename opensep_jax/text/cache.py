"""Results kept on disk by a hash of what they depend on, safe under concurrent writers."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path


def digest(*parts: object) -> str:
    """SHA-256 of JSON values, 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """JSON values by key, a file each.

    A file appears whole by one rename, so that readers never see half of it, and writers of the
    same key write the same. A cache that cannot be written is no error: it is not used.
    """

    def __init__(self, folder: Path):
        """Takes the folder of the files, which need not be there yet."""
        self.folder = folder

    def get(self, key: str) -> object | None:
        """The value of a key; None if there is none, or its file is damaged."""
        try:
            return json.loads(self._file(key).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: object) -> None:
        """Keeps a value."""
        file = self._file(key)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".part-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    json.dump(value, stream)
                os.replace(temporary, file)
            except OSError:
                os.unlink(temporary)
                raise

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
