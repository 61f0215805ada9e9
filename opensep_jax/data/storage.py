"""Where records lie: a local folder, or anything that fsspec reads (`gs://`, `s3://`, ...).

ArrayRecord reads local files only. So a remote file is copied into the cache when it is first
needed, whole and under its final name only once it is complete.
"""

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from opensep_jax.checkpoint.weights import cache_folder

_WRITER_OPTIONS = "group_size:1,uncompressed"  # random access; PCM hardly compresses
_HOST = socket.gethostname().replace(".", "_")


class RecordError(ValueError):
    """Prepared data that cannot be used; the message names the file and what is wrong."""


class DamagedRecord(RecordError):
    """One record whose checksum does not fit; the others can be used."""


class Storage:
    """The files of one prepared folder.

    Attributes:
        url: the folder as it was given.
    """

    def __init__(self, folder: str | os.PathLike):
        """Takes a path, or a URL with `://`."""
        self.url = os.fspath(folder).rstrip("/")
        self._remote = "://" in self.url
        self._cache = Path(self.url)
        if self._remote:  # a set that was prepared anew has other files
            filesystem, path = self._open()
            info = f"{path}/dataset.json"
            content = filesystem.cat_file(info) if filesystem.exists(info) else b""
            key = hashlib.sha256(self.url.encode() + b"\0" + content).hexdigest()[:32]
            self._cache = cache_folder() / "records" / key

    def __str__(self) -> str:
        return self.url

    def local(self, name: str, size: int | None = None) -> Path:
        """Path of a file on this machine, fetched if need be.

        Args:
            name: within the folder.
            size: bytes it must have.

        Raises:
            RecordError: it is missing, or of another size.
        """
        file = self._cache / name
        if self._remote and not file.exists():
            self._fetch(name, file)
        try:
            found = file.stat().st_size
        except FileNotFoundError:
            raise RecordError(f"{self.url}/{name}: missing; prepare this folder again") from None
        if size is not None and found != size:
            raise RecordError(
                f"{self.url}/{name}: damaged or cut short ({found} bytes of {size}); prepare this "
                "folder again"
            )
        return file

    def is_ready(self, name: str) -> bool:
        """Whether a file need not be fetched."""
        return not self._remote or (self._cache / name).exists()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        if not self._remote:
            return (self._cache / name).exists()
        filesystem, path = self._open()
        return filesystem.exists(f"{path}/{name}")

    def _open(self) -> tuple:
        import fsspec  # only here: most folders are local

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:  # an unknown protocol, or its library is missing
            raise RecordError(f"{self.url}: cannot be read: {error}") from error

    def _fetch(self, name: str, file: Path) -> None:
        filesystem, path = self._open()
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".part-")
        os.close(handle)
        try:
            filesystem.get_file(f"{path}/{name}", temporary)
            os.replace(temporary, file)
        except FileNotFoundError:
            raise RecordError(f"{self.url}/{name}: missing; prepare this folder again") from None
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def record_writer(file: Path) -> Iterator[Callable[[bytes], object]]:
    """Appends records to an ArrayRecord file, which appears when it is whole.

    Raises:
        OSError: it cannot be written, for example since the disk is full.
    """
    temporary = temporary_name(file)
    writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    try:
        yield writer.write
        writer.close()
        os.replace(temporary, file)
    except RuntimeError as error:  # what ArrayRecord makes of errors of the system
        raise OSError(f"{file} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames."""
    temporary = temporary_name(path)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON under a temporary name, then renames."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict:
    """Content of a JSON file; an unreadable one is named."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise RecordError(f"{path}: not valid JSON: {error}") from error


def temporary_name(path: Path) -> Path:
    """A name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")


def is_left_over(file: Path) -> bool:
    """Whether a temporary file is of a process of this machine that is gone."""
    host, _, process = file.name.removesuffix(".tmp").rpartition(".")[2].rpartition("-")
    if host != _HOST or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
