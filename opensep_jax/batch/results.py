"""What `infer` leaves on disk: a folder for each input, and a manifest.

    DIR/<relative>/NN_<slug>.<ext>, residual.<ext>, separation.json    one input
    DIR/manifest.jsonl, or manifest-I-of-N.jsonl of each shard         a line for each input

A folder is done when it has a `separation.json` and all files that this names. They appear at once,
or where the folder is there already, as other inputs' results are in it, after their record: so no
moment leaves files of which no record tells.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from opensep_jax import __version__
from opensep_jax.cli import DoorError
from opensep_jax.separation.result import RECORD
from opensep_jax.signal.files import named_files

logger = logging.getLogger("opensep_jax")

_SHARD = re.compile(r"manifest-(\d+)-of-(\d+)\.jsonl")
_BEGUN = "begun"  # status in the journal alone


@contextlib.contextmanager
def staged(out: Path, relative: str) -> Iterator[Path]:
    """A hidden folder whose files become those of `out/relative` if the block succeeds.

    A killed process leaves nothing under the final name, or no result that is whole. Files that the
    `separation.json` of an earlier result names are removed; folders of other inputs stay.
    """
    scratch = out / f".{hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]}.part"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    scratch.mkdir()
    try:
        yield scratch
        target = out / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(scratch, target)
        except OSError:
            if not target.is_dir():
                raise
            _move_into(target, scratch)  # of this input, or another process has just made it
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_into(target: Path, scratch: Path) -> None:
    """Moves the files of a result into a folder that is there, in place of an earlier result's."""
    earlier, files = _read_any_record(target), {file.name for file in scratch.iterdir()}
    for name in {*named_files(earlier or {}), *files} - {RECORD}:
        (target / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: (name != RECORD, name)):  # it first
        os.replace(scratch / name, target / name)


def read_record(folder: Path) -> dict | None:
    """Content of a finished folder's `separation.json`; None where something is missing."""
    record = _read_any_record(folder)
    whole = record and all((folder / name).is_file() for name in named_files(record))
    return record if whole else None


def _read_any_record(folder: Path) -> dict | None:
    """Content of a `separation.json`, whatever has become of its files; None if it is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text())
        named_files(record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record


class Manifest:
    """The manifest of one run: each input is on disk as soon as it is finished.

    Lines go to a hidden journal, which a killed run leaves for the next one. `close` writes the
    manifest in one step: the lines of this run, and earlier ones of inputs that it had not. An
    input that a killed run had begun, and whose result is there, was `ok`, even if the run was
    killed before it could say so.

    Attributes:
        path: of the finished manifest.
        counts: lines of this run by status.
    """

    def __init__(self, out: Path, shard: int = 0, num_shards: int = 1):
        """Reads what earlier runs have left in `out`."""
        name = "manifest.jsonl" if num_shards == 1 else f"manifest-{shard}-of-{num_shards}.jsonl"
        self.path, self._journal = out / name, out / f".{name}.part"
        self.counts: dict[str, int] = {}
        journal = _read_lines(self._journal)
        self._earlier = _read_lines(self.path) + [x for x in journal if x["status"] != _BEGUN]
        others = [_read_lines(file) for file in sorted(out.glob("manifest*.jsonl"))]
        lines = [line for part in (*others, self._earlier, journal) for line in part]
        self._ok = {line["output"] for line in lines if line["status"] in ("ok", _BEGUN)}
        self._lines: list[dict] = []
        self._begun: dict[str, dict] = {}
        torn = self._journal.is_file() and not self._journal.read_bytes().endswith(b"\n")
        self._stream, self._lock = self._journal.open("a"), threading.Lock()
        self._stream.write("\n" * torn)  # of a killed run, whose last line is lost; ours are not

    def begin(self, given: str, output: str) -> None:
        """Notes that an input's result is being made; any thread may."""
        self._begun[output] = {"input": given, "output": output, "status": _BEGUN}
        self._write(self._begun[output])

    def add(self, given: str, output: str | None, status: str, error: str | None = None) -> None:
        """Notes an input: `ok`, `skipped` (done before; an earlier `ok` stays) or `error`."""
        if status == "skipped" and output in self._ok:
            status = "ok"
        line = {"input": given, "output": output, "status": status, "version": __version__}
        if error is not None:
            line["error"] = error
        self._begun.pop(output, None)
        self.counts[status] = self.counts.get(status, 0) + 1
        self._lines.append(line)
        self._write(line)

    def close(self) -> None:
        """Writes the manifest under its name; the journal of an interrupted run stays."""
        self._stream.close()
        _write_lines(self.path, _joined(self._earlier, self._lines))
        if self._begun:
            _write_lines(self._journal, list(self._begun.values()))
        else:
            self._journal.unlink(missing_ok=True)

    def _write(self, line: dict) -> None:
        with self._lock:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())


def merge(out: Path) -> int:
    """Joins the manifests of all shards into `manifest.jsonl`; shards' own files stay.

    Returns:
        How many inputs failed.

    Raises:
        DoorError: there are none, one is missing or unfinished, or their numbers differ.
    """
    shards = {}
    for file in out.glob("manifest-*-of-*.jsonl"):
        if match := _SHARD.fullmatch(file.name):
            shards[int(match[1]), int(match[2])] = file
    totals = sorted({total for _, total in shards})
    if len(totals) != 1:
        found = f"those of {' and of '.join(map(str, totals))} shards" if totals else "none"
        raise DoorError(f"{out}: need the manifests of one sharded run, found {found}")
    names = [f"manifest-{i}-of-{totals[0]}.jsonl" for i in range(totals[0])]
    unfinished = [n for n in names if not (out / n).is_file() or (out / f".{n}.part").exists()]
    if unfinished:
        raise DoorError(f"{out}: missing or not finished: {', '.join(unfinished)}")
    lines = [line for name in names for line in _read_lines(out / name)]
    path = out / "manifest.jsonl"
    _write_lines(path, _joined(_read_lines(path), lines))
    failed = [line["input"] for line in lines if line["status"] == "error"]
    logger.info("%s: %d inputs of %d shards", path, len(lines), len(names))
    for given in failed:
        logger.error("failed: %s", given)
    return len(failed)


def _joined(earlier: list[dict], lines: list[dict]) -> list[dict]:
    """Earlier lines of inputs that the new lines do not have, and the new lines."""
    inputs = {line["input"] for line in lines}
    kept = {(x["input"], x["output"]): x for x in earlier if x["input"] not in inputs}
    return [*kept.values(), *lines]


def _read_lines(path: Path) -> list[dict]:
    """Lines of a manifest or journal; a last one that was cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            line = json.loads(text)
            lines.append(line | {key: line[key] for key in ("input", "output", "status")})
    return lines


def _write_lines(path: Path, lines: list[dict]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(temporary, path)
