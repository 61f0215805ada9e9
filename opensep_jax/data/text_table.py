"""Every distinct prompt of prepared data, embedded once."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from opensep_jax.data.storage import RecordError, Storage, record_writer, write_bytes


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Prompts and their token states, unpadded.

    Attributes:
        keys: content hashes of prompts and encoder, sorted; a text id is an index into them.
        prompts: texts.
        tokens_MC: bfloat16 token states of all prompts, one after the other.
        start_V: int32 [V + 1], where each prompt's states begin.
    """

    keys: list[str]
    prompts: list[str]
    tokens_MC: np.ndarray
    start_V: np.ndarray

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Text id by key."""
        return {key: i for i, key in enumerate(self.keys)}

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self.start_V).max())

    def states(self, text_id: int) -> np.ndarray:
        """Token states of one prompt, bfloat16 [L, C]."""
        return self.tokens_MC[self.start_V[text_id] : self.start_V[text_id + 1]]


def write_text_shard(
    stem: Path, rows: Sequence[tuple[str, str, np.ndarray]], truncated: Sequence[str] = ()
) -> None:
    """Writes a shard and its index; the index appears last and means that both are whole.

    Args:
        stem: path of the shard without suffix.
        rows: (key, prompt, bfloat16 [L, C] states), written sorted by key.
        truncated: keys of prompts that were cut to the encoder's longest.
    """
    records = stem.with_suffix(".arrayrecord")
    rows = sorted(rows, key=lambda row: row[0])
    with record_writer(records) as write:
        for key, prompt, states_LC in rows:
            tokens = states_LC.astype(ml_dtypes.bfloat16).tobytes()
            row = {"key": key, "prompt": prompt, "length": len(states_LC), "tokens": tokens}
            write(msgpack.packb({**row, "crc32": zlib.crc32(tokens)}))
    index = {
        "bytes": records.stat().st_size,
        "keys": [key for key, _, _ in rows],
        "lengths": [len(states_LC) for _, _, states_LC in rows],
        "truncated": sorted(truncated),
    }
    write_bytes(stem.with_suffix(".index"), msgpack.packb(index))


def read_msgpack(file: Path) -> dict:
    """Content of an index.

    Raises:
        RecordError: if it is damaged.
    """
    try:
        return msgpack.unpackb(file.read_bytes())
    except ValueError as error:
        raise RecordError(f"{file}: damaged ({error}); prepare this folder again") from error


def open_reader(file: Path) -> ArrayRecordReader:
    """Random access to a shard; a broken one is named."""
    try:
        return ArrayRecordReader(str(file))
    except (RuntimeError, ValueError) as error:
        raise RecordError(
            f"{file}: damaged or cut short ({error}); prepare this folder again"
        ) from error


def read_states(file: Path, row: int, key: str, width: int) -> np.ndarray | None:
    """Token states [L, C] in a row of a shard; None if it is not there, damaged or of another key.

    Args:
        file: of the shard.
        row: number of the record.
        key: of the prompt.
        width: C.
    """
    try:
        stored = msgpack.unpackb(open_reader(file).read([row])[0])
        if stored["key"] != key or zlib.crc32(stored["tokens"]) != stored["crc32"]:
            return None
        return np.frombuffer(stored["tokens"], ml_dtypes.bfloat16).reshape(-1, width)
    except (RuntimeError, ValueError, KeyError, IndexError):
        return None


def read_keys(storage: Storage, stems: Sequence[str]) -> list[str]:
    """Sorted keys of all prompts of these shards, without their states."""
    indexes = [read_msgpack(storage.local(f"{stem}.index")) for stem in stems]
    for stem, index in zip(stems, indexes, strict=True):
        if storage.is_ready(f"{stem}.arrayrecord"):
            storage.local(f"{stem}.arrayrecord", index["bytes"])
    return sorted(key for index in indexes for key in index["keys"])


def read_text(storage: Storage, stems: Sequence[str], width: int) -> TextTable:
    """All prompts of these shards.

    Args:
        storage: the prepared folder.
        stems: names of the shards without suffix.
        width: C, channels of a token state.

    Raises:
        RecordError: a shard is missing or damaged.
    """
    indexes = [read_msgpack(storage.local(f"{stem}.index")) for stem in stems]
    rows = [
        (key, length)
        for index in indexes
        for key, length in zip(index["keys"], index["lengths"], strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: rows[i][0])
    start_V = np.cumsum([0] + [rows[i][1] for i in order]).astype(np.int32)
    place = {rows[i][0]: rank for rank, i in enumerate(order)}
    tokens_MC = np.empty((int(start_V[-1]), width), ml_dtypes.bfloat16)
    prompts = [""] * len(rows)
    for stem, index in zip(stems, indexes, strict=True):
        file = storage.local(f"{stem}.arrayrecord", index["bytes"])
        reader = open_reader(file)
        try:
            for number in range(len(index["keys"])):
                row = msgpack.unpackb(reader.read([number])[0])
                if zlib.crc32(row["tokens"]) != row["crc32"]:
                    raise ValueError("a checksum does not fit")
                rank = place[row["key"]]
                prompts[rank] = row["prompt"]
                states = np.frombuffer(row["tokens"], ml_dtypes.bfloat16)
                tokens_MC[start_V[rank] : start_V[rank + 1]] = states.reshape(-1, width)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise RecordError(f"{file}: damaged ({error}); prepare this folder again") from error
    return TextTable([rows[i][0] for i in order], prompts, tokens_MC, start_V)


def unite(tables: Sequence[TextTable]) -> TextTable:
    """One table of the prompts of several, which must be of one encoder."""
    owner = {key: (table, i) for table in tables for i, key in enumerate(table.keys)}
    keys = sorted(owner)
    states = [owner[key][0].states(owner[key][1]) for key in keys]
    start_V = np.cumsum([0] + [len(states_LC) for states_LC in states]).astype(np.int32)
    prompts = [owner[key][0].prompts[owner[key][1]] for key in keys]
    return TextTable(keys, prompts, np.concatenate(states), start_V)
