"""Prepared data on disk: ArrayRecord shards of clips and of embedded prompts.

    DIR/dataset.json                              what this is; written last, so its presence
                                                  means that the folder is complete
    DIR/clips-<split>-00000-of-00004.arrayrecord  a msgpack map per clip (`ClipRecord`)
    DIR/clips-<split>-00000-of-00004.index        the same maps without audio, msgpack list
    DIR/text-00000-of-00001.arrayrecord           a msgpack map per distinct prompt

Audio is PCM16 at one rate. A prompt's key is a hash of prompt and text encoder, and ids are ranks
of sorted keys, so nothing depends on the order in which shards were made. Readers ignore map
entries that they do not know: later versions add, they do not change.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

SCHEMA_VERSION = 1
_WRITER_OPTIONS = "group_size:1,uncompressed"  # random access; PCM hardly compresses


class RecordError(ValueError):
    """Prepared data that cannot be used; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class SourceEntry:
    """A named source of a clip and its prompts.

    Attributes:
        name: what it is; equal names never meet in a mixture.
        prompts: keys of the text table by kind of wording (`text.wordings.WORDINGS`).
    """

    name: str
    prompts: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class ClipEntry:
    """What is known of a clip without reading its audio.

    Attributes:
        path: of the file it came from, relative to the root of the data set.
        start_samples: where in that file it begins, at the prepared rate.
        samples: its length.
        sources: what is heard in it.
        extra: licence, origin and other columns of the data set.
        crc32: checksum of the PCM16 bytes.
    """

    path: str
    start_samples: int
    samples: int
    sources: list[SourceEntry]
    extra: dict[str, str]
    crc32: int


def prompt_key(prompt: str, encoder_id: str) -> str:
    """Content hash of a prompt and its encoder, 32 hex digits."""
    return hashlib.sha256(f"{encoder_id}\0{prompt}".encode()).hexdigest()[:32]


def shard_name(kind: str, shard: int, shards: int) -> str:
    """Name of a shard without its suffix; `kind` is `clips-<split>` or `text`."""
    return f"{kind}-{shard:05d}-of-{shards:05d}"


def write_clip_shard(
    stem: Path, clips: Iterable[tuple[ClipEntry, np.ndarray]], rejected: list[dict[str, str]]
) -> None:
    """Writes a shard and its index; the index appears last and means that both are whole.

    Args:
        stem: path of the shard without suffix.
        clips: entries (their `crc32` is filled in here) with int16 [T] samples.
        rejected: `{"path", "why"}` of files that gave no clip; the caller may append to it while
            `clips` is read.
    """
    records, index = stem.with_suffix(".arrayrecord"), stem.with_suffix(".index")
    temporary = _temporary(records)
    writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    entries = []
    for entry, pcm_T in clips:
        audio = pcm_T.astype("<i2").tobytes()
        entry = dataclasses.asdict(dataclasses.replace(entry, crc32=zlib.crc32(audio)))
        entries.append(entry)
        writer.write(msgpack.packb({**entry, "audio": audio}))
    writer.close()
    os.replace(temporary, records)
    temporary = _temporary(index)
    temporary.write_bytes(msgpack.packb({"clips": entries, "rejected": rejected}))
    os.replace(temporary, index)


def read_index(stem: Path) -> dict[str, list]:
    """`{"clips": [maps of ClipEntry], "rejected": [...]}` of a finished shard.

    Raises:
        RecordError: if it is damaged.
    """
    file = stem.with_suffix(".index")
    try:
        return msgpack.unpackb(file.read_bytes())
    except ValueError as error:
        raise RecordError(f"{file}: damaged ({error}); prepare this folder again") from error


def digest(indexes: Sequence[dict[str, list]]) -> str:
    """Hash over the clips of indexes: their files, checksums of the samples, names and prompts."""
    found = hashlib.sha256()
    for index in indexes:
        found.update(msgpack.packb(index["clips"]))
    return found.hexdigest()


def write_text_shard(stem: Path, rows: Sequence[tuple[str, str, np.ndarray]]) -> None:
    """Writes (key, prompt, bfloat16 [L, C] states) rows, sorted by key."""
    records = stem.with_suffix(".arrayrecord")
    temporary = _temporary(records)
    writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    for key, prompt, states_LC in sorted(rows, key=lambda row: row[0]):
        tokens = states_LC.astype(ml_dtypes.bfloat16).tobytes()
        row = {"key": key, "prompt": prompt, "length": len(states_LC), "tokens": tokens}
        writer.write(msgpack.packb({**row, "crc32": zlib.crc32(tokens)}))
    writer.close()
    os.replace(temporary, records)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict:
    """Content of a JSON file; an unreadable one is named."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise RecordError(f"{path}: not valid JSON: {error}") from error


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Every distinct prompt, embedded, unpadded.

    Attributes:
        prompts: texts; a text id is an index into them.
        tokens_MC: bfloat16 token states of all prompts, one after the other.
        start_V: int32 [V + 1], where each prompt's states begin.
        ids: text id by key.
    """

    prompts: list[str]
    tokens_MC: np.ndarray
    start_V: np.ndarray
    ids: dict[str, int]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self.start_V).max())

    def states(self, text_id: int) -> np.ndarray:
        """Token states of one prompt, bfloat16 [L, C]."""
        return self.tokens_MC[self.start_V[text_id] : self.start_V[text_id + 1]]


class PreparedDataset:
    """A folder written by `prepare`, one split of it, with random access.

    Attributes:
        info: the content of `dataset.json`.
        clips: entries in the order of the shards.
        text: the table of prompts.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        """Opens a folder.

        Raises:
            RecordError: if it is not complete, of another schema, or has no such split.
        """
        self.folder, self.split = Path(folder), split
        self.info = read_info(self.folder)
        if split not in self.info["splits"]:
            raise RecordError(
                f"{self.folder}: no split {split!r}; it has {', '.join(self.info['splits'])}"
            )
        shards = self.info["splits"][split]["shards"]
        stems = [self.folder / shard_name(f"clips-{split}", i, shards) for i in range(shards)]
        maps = [entry for stem in stems for entry in read_index(stem)["clips"]]
        self.clips = [_clip_entry(entry) for entry in maps]
        self._records = _open_records([stem.with_suffix(".arrayrecord") for stem in stems])
        if len(self._records) != len(self.clips):
            raise RecordError(
                f"{self.folder}: split {split} has {len(self._records)} records, but its indexes "
                f"name {len(self.clips)} clips; prepare this folder again"
            )
        self.text = _read_text(self.folder, self.info["text"])
        self._check_prompts()

    @property
    def sample_rate_hz(self) -> int:
        """Rate of all clips."""
        return self.info["sample_rate_hz"]

    def __len__(self) -> int:
        return len(self.clips)

    def audio(self, index: int) -> np.ndarray:
        """PCM16 samples of a clip, int16 [T].

        Raises:
            RecordError: if its checksum does not fit.
        """
        try:
            record = msgpack.unpackb(self._records[index])
            damaged = zlib.crc32(record["audio"]) != self.clips[index].crc32
        except (RuntimeError, ValueError, KeyError):  # of ArrayRecord's checksum, of msgpack
            damaged = True
        if damaged:
            raise RecordError(
                f"{self.folder}: record {index} of split {self.split} ({self.clips[index].path}) "
                "is damaged: its checksum does not fit; prepare this folder again"
            )
        return np.frombuffer(record["audio"], "<i2")

    def _check_prompts(self) -> None:
        """Every prompt that a clip points to is in the table."""
        for clip in self.clips:
            for source in clip.sources:
                for kind, keys in source.prompts.items():
                    if any(key not in self.text.ids for key in keys):
                        raise RecordError(
                            f"{self.folder}: the {kind} prompts of {clip.path} are not in the "
                            "text table: it is of another run; prepare this folder again"
                        )


def read_info(folder: Path) -> dict:
    """Content of `dataset.json`, its schema checked.

    Raises:
        RecordError: if the folder is no complete prepared data set, or of another schema.
    """
    file = folder / "dataset.json"
    if not file.exists():
        raise RecordError(
            f"{folder}: no dataset.json: not a prepared data set, or `prepare` has not finished"
        )
    info = read_json(file)
    if info.get("schema") != SCHEMA_VERSION:
        raise RecordError(
            f"{file}: schema {info.get('schema')!r}, this version reads {SCHEMA_VERSION}; "
            "prepare the data again"
        )
    return info


def _open_records(files: Sequence[Path]) -> ArrayRecordDataSource:
    """Random access over shards; a missing or broken one is named."""
    try:
        return ArrayRecordDataSource([str(file) for file in files])
    except (RuntimeError, FileNotFoundError) as error:
        if len(files) > 1:
            for file in files:
                _open_records([file])
        why = "missing" if not files[0].exists() else f"damaged or cut short ({error})"
        raise RecordError(f"{files[0]}: {why}; prepare this folder again") from error


def _clip_entry(entry: dict) -> ClipEntry:
    known = {field.name: entry[field.name] for field in dataclasses.fields(ClipEntry)}
    sources = [SourceEntry(s["name"], s["prompts"]) for s in known.pop("sources")]
    return ClipEntry(**known, sources=sources)


def _read_text(folder: Path, info: dict) -> TextTable:
    rows = []
    for shard in range(info["shards"]):
        file = folder / f"{shard_name('text', shard, info['shards'])}.arrayrecord"
        source = _open_records([file])
        try:
            raw = source.__getitems__(range(len(source))) if len(source) else []
            read = [msgpack.unpackb(row) for row in raw]
            damaged = any(zlib.crc32(row["tokens"]) != row["crc32"] for row in read)
        except (RuntimeError, ValueError, KeyError):
            damaged = True
        if damaged:
            raise RecordError(f"{file}: damaged: a checksum does not fit; prepare again")
        rows += read
    rows.sort(key=lambda row: row["key"])
    states = [np.frombuffer(row["tokens"], ml_dtypes.bfloat16) for row in rows]
    start_V = np.cumsum([0] + [row["length"] for row in rows]).astype(np.int32)
    tokens_MC = np.concatenate(states).reshape(-1, info["width"])
    ids = {row["key"]: i for i, row in enumerate(rows)}
    return TextTable([row["prompt"] for row in rows], tokens_MC, start_V, ids)


def _temporary(path: Path) -> Path:
    """A name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
