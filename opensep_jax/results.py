"""What `infer` leaves on disk: a folder for each input, and a manifest.

    DIR/<relative>/NN_<slug>.<ext>, residual.<ext>, separation.json    one input
    DIR/manifest.jsonl, or manifest-I-of-N.jsonl of each shard         a line for each input

A folder is done when it has a `separation.json`: that appears last, with the other files or after.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opensep_jax.api import Separation
from opensep_jax.cli import DoorError
from opensep_jax.signal.write import quantize

logger = logging.getLogger("opensep_jax")

CLIP_POLICIES = ("clamp", "rescale")
_RECORD = "separation.json"
_SLUG_CHARACTERS = 40
_SHARD = re.compile(r"manifest-(\d+)-of-(\d+)\.jsonl")
_STEPS = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23}  # of the integer grids


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How samples are written.

    Attributes:
        format: suffix without the dot.
        subtype: sample format, a name of libsndfile's.
        clip: what happens to integer samples beyond full scale, of `CLIP_POLICIES`: cut each off,
            or turn the input down beforehand, so that stems and residual fit.
    """

    format: str
    subtype: str
    clip: str


def slug(text: str) -> str:
    """Part of a file name: lower-case ASCII letters and digits joined by "-", at most 40."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    joined = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    return joined[:_SLUG_CHARACTERS].rstrip("-") or "source"


def stem_names(separation: Separation, encoding: Encoding) -> list[str]:
    """File names of the stems, then of the residual."""
    names = [f"{i:02d}_{slug(s.name)}" for i, s in enumerate(separation.sources, 1)]
    return [f"{name}.{encoding.format}" for name in (*names, "residual")]


def encoded(
    input_CT: np.ndarray, separation: Separation, encoding: Encoding, clipping: dict
) -> Iterator[np.ndarray]:
    """Samples as the files will hold them, one stem at a time, then the residual.

    On an integer grid the residual is the rounded input minus the rounded stems, so that what is
    read back sums to the input, but for samples that `clipping` counts. Lossy formats have no grid,
    but clip all the same.

    Args:
        input_CT: float32 [C, T].
        separation: of that input.
        encoding: of the files.
        clipping: filled with `gain`, by which everything was turned down, and `samples`, how many
            were cut off; complete when the iterator ends.

    Yields:
        float [C, T].
    """
    clipping.update(policy=encoding.clip, gain=1.0, samples=0)
    if encoding.subtype == "FLOAT":
        yield from (*separation.stems, separation.residual)
        return
    step = _STEPS.get(encoding.subtype, 0.0)  # lossy formats have no grid
    if encoding.clip == "rescale":
        parts = (input_CT, separation.residual, *separation.stems)
        peak = max(float(np.abs(part).max()) for part in parts)
        limit = 1 - (len(separation.stems) + 2) * step  # rounding may add up in the residual
        clipping["gain"] = min(1.0, limit / max(peak, step, 1e-30))
    if not step:
        for part_CT in (*separation.stems, separation.residual):
            part_CT = part_CT * clipping["gain"]
            clipping["samples"] += int((np.abs(part_CT) > 1).sum())
            yield np.clip(part_CT, -1, 1)
        return
    gain = clipping["gain"]
    rest_CT, clipping["samples"] = quantize(input_CT * np.float64(gain), encoding.subtype)
    for stem_CT in separation.stems:
        grid_CT, clipped = quantize(stem_CT * np.float64(gain), encoding.subtype)
        clipping["samples"] += clipped
        rest_CT -= grid_CT
        yield grid_CT
    grid_CT, clipped = quantize(rest_CT, encoding.subtype)
    clipping["samples"] += clipped
    yield grid_CT


@contextlib.contextmanager
def staged(out: Path, relative: str) -> Iterator[Path]:
    """A hidden folder whose files become those of `out/relative` if the block succeeds.

    A killed process leaves nothing under the final name, or no `separation.json`. Files that the
    `separation.json` of an earlier result names are removed; folders of other inputs stay.
    """
    scratch = out / f".{hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]}.part"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    scratch.mkdir()
    try:
        yield scratch
        target = out / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.rename(scratch, target)
            return
        earlier = read_record(target)
        (target / _RECORD).unlink(missing_ok=True)
        for name in file_names(earlier or {}):
            (target / name).unlink(missing_ok=True)
        for file in sorted(scratch.iterdir(), key=lambda file: (file.name == _RECORD, file.name)):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_record(folder: Path, record: dict) -> None:
    """Writes `separation.json` into a staged folder."""
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict | None:
    """Content of a finished folder's `separation.json`; None where something is missing."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        whole = all((folder / name).is_file() for name in file_names(record))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if whole else None


def file_names(record: dict) -> list[str]:
    """Audio files that a `separation.json` names, without any path."""
    files = [source["file"] for source in record.get("sources", [])]
    files += [record["residual"]["file"]] if "residual" in record else []
    return [Path(file).name for file in files]


class Manifest:
    """The manifest of one run: each input is on disk as soon as it is finished.

    Lines go to a hidden journal, which a killed run leaves for the next one. `close` writes the
    manifest in one step: the lines of this run, and earlier ones of inputs that it had not.

    Attributes:
        path: of the finished manifest.
        counts: lines of this run by status.
    """

    def __init__(self, out: Path, shard: int = 0, num_shards: int = 1):
        """Reads what earlier runs have left in `out`."""
        name = "manifest.jsonl" if num_shards == 1 else f"manifest-{shard}-of-{num_shards}.jsonl"
        self.path, self._journal = out / name, out / f".{name}.part"
        self.counts: dict[str, int] = {}
        self._earlier = _read_lines(self.path) + _read_lines(self._journal)
        others = [_read_lines(file) for file in sorted(out.glob("manifest*.jsonl"))]
        lines = [line for part in (*others, self._earlier) for line in part]
        self._ok = {line["output"] for line in lines if line["status"] == "ok"}
        self._lines: list[dict] = []
        self._stream = self._journal.open("a")

    def add(self, given: str, output: str | None, status: str, error: str | None = None) -> None:
        """Notes an input: `ok`, `skipped` (done before; an earlier `ok` stays) or `error`."""
        if status == "skipped" and output in self._ok:
            status = "ok"
        line = {"input": given, "output": output, "status": status}
        if error is not None:
            line["error"] = error
        self.counts[status] = self.counts.get(status, 0) + 1
        self._lines.append(line)
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Writes the manifest under its name."""
        self._stream.close()
        _write_lines(self.path, _joined(self._earlier, self._lines))
        self._journal.unlink(missing_ok=True)


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
