"""Prepared data on disk: ArrayRecord shards of clips and of embedded prompts.

    DIR/dataset.json                              what this is; written last, so its presence
                                                  means that the folder is complete
    DIR/clips-<split>-00000-of-00004.arrayrecord  a msgpack map per clip: its samples
    DIR/clips-<split>-00000-of-00004.index        msgpack map: its clips (`ClipEntry`), the
                                                  distinct sources that they point to, and what
                                                  was rejected
    DIR/text-00000-of-00001.arrayrecord, .index   distinct prompts, see `text_table`

Audio is PCM16 at one rate, as it is or in FLAC. A prompt's key is a hash of prompt and text
encoder, and ids are ranks of sorted keys, so nothing depends on the order in which shards were
made. Readers ignore map entries that they do not know: later versions add, they do not change.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from opensep_jax.data.clip_table import ClipTable, make_table
from opensep_jax.data.shards import SCHEMA_VERSION, ClipEntry, SourceEntry, decode, shard_name
from opensep_jax.data.storage import DamagedRecord, RecordError, Storage, read_json, write_json
from opensep_jax.data.text_table import TextTable, open_reader, read_keys, read_msgpack, read_text

__all__ = [
    "ClipEntry",
    "DamagedRecord",
    "PreparedDataset",
    "RecordError",
    "SourceEntry",
    "read_info",
    "read_json",
    "write_json",
]

_OPEN_SHARDS = 256  # open files of a process at most
_LEFT_BEHIND = ("keys", "text", "_reader", "_index")  # when a worker process gets a data set
_KEPT_INDEXES = 4  # shards whose entries stay decoded


class PreparedDataset:
    """A folder written by `prepare`, one split of it, with random access.

    Pickled, it is its folder's name and the table of clips: worker processes open the audio
    themselves and get no token states.

    Attributes:
        folder: where it is, a path or a URL.
        info: the content of `dataset.json`.
        keys: of all prompts, sorted; a text id is an index into them.
        table: names and prompts of all clips.
    """

    def __init__(self, folder: str | os.PathLike, split: str, text: TextTable | None = None):
        """Opens a folder.

        Args:
            folder: a path, or a URL that fsspec reads.
            split: `train`, `val`, ...
            text: the table of the same folder, where another split has read it already.

        Raises:
            RecordError: if it is not complete, of another schema, or has no such split.
        """
        self._storage, self.split = Storage(folder), split
        self.folder = self._storage.url
        self.info = read_info(self._storage)
        if split not in self.info["splits"]:
            raise RecordError(
                f"{self.folder}: no split {split!r}; it has {', '.join(self.info['splits'])}"
            )
        shards = self.info["splits"][split]["shards"]
        self._stems = [shard_name(f"clips-{split}", i, shards) for i in range(shards)]
        if text is not None:
            self.text = text
        self.keys = text.keys if text is not None else read_keys(self._storage, self._text_stems)
        self.table = self._read_clips({key: i for i, key in enumerate(self.keys)})

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in _LEFT_BEHIND}

    @property
    def sample_rate_hz(self) -> int:
        """Rate of all clips."""
        return self.info["sample_rate_hz"]

    @property
    def contents(self) -> dict[str, str]:
        """A hash over sounds, names and prompts of all clips, by folder and split."""
        return {self.split: self.info["splits"][self.split]["sha256"]}

    @property
    def clips(self) -> "Entries":
        """Entries in the order of the shards, read from the indexes when they are asked for."""
        return Entries(self)

    @functools.cached_property
    def text(self) -> TextTable:
        """The table of prompts."""
        return read_text(self._storage, self._text_stems, self.info["text"]["width"])

    def __len__(self) -> int:
        return len(self._crc32_I)

    def audio(self, index: int) -> np.ndarray:
        """PCM16 samples of a clip, int16 [T].

        Raises:
            DamagedRecord: if its checksum does not fit.
            RecordError: if its shard cannot be opened.
        """
        shard, row = self._place(index)
        try:
            record = msgpack.unpackb(self._reader(shard).read([row])[0])
            damaged = zlib.crc32(record["audio"]) != self._crc32_I[index]
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            if isinstance(error, RecordError):
                raise
            damaged = True  # of ArrayRecord's checksum, of msgpack
        if damaged:
            raise DamagedRecord(
                f"{self.folder}: record {index} of split {self.split} ({self.clips[index].path}) "
                "is damaged: its checksum does not fit; prepare this folder again"
            )
        return decode(record["audio"], self.info["audio"])

    def entry(self, index: int) -> ClipEntry:
        """What is known of a clip."""
        shard, row = self._place(index)
        index_ = self._index(shard)
        known = {f.name: index_["clips"][row][f.name] for f in dataclasses.fields(ClipEntry)}
        sources = [index_["sources"][number] for number in known.pop("sources")]
        return ClipEntry(**known, sources=[SourceEntry(s["name"], s["prompts"]) for s in sources])

    @property
    def _text_stems(self) -> list[str]:
        shards = self.info["text"]["shards"]
        return [shard_name("text", i, shards) for i in range(shards)]

    @functools.cached_property
    def _reader(self):
        def reader(shard: int) -> ArrayRecordReader:
            return open_reader(self._storage.local(f"{self._stems[shard]}.arrayrecord"))

        return functools.lru_cache(_OPEN_SHARDS)(reader)

    @functools.cached_property
    def _index(self):
        def index(shard: int) -> dict:
            return read_msgpack(self._storage.local(f"{self._stems[shard]}.index"))

        return functools.lru_cache(_KEPT_INDEXES)(index)

    def _place(self, index: int) -> tuple[int, int]:
        """Shard and row of a clip."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        shard = int(np.searchsorted(self._first_clip, index, side="right")) - 1
        return shard, int(index - self._first_clip[shard])

    def _read_clips(self, ids: Mapping[str, int]) -> ClipTable:
        """The table, out of all indexes; sets where shards begin, and the checksums."""
        distinct: dict[bytes, int] = {}
        clips, crc32, first = [], [], [0]
        for stem in self._stems:
            index = read_msgpack(self._storage.local(f"{stem}.index"))
            if self._storage.is_ready(f"{stem}.arrayrecord"):
                self._storage.local(f"{stem}.arrayrecord", index["bytes"])
            packed = [msgpack.packb([s["name"], s["prompts"]]) for s in index["sources"]]
            number = [distinct.setdefault(source, len(distinct)) for source in packed]
            for clip in index["clips"]:
                clips.append((clip["samples"], [number[i] for i in clip["sources"]]))
                crc32.append(clip["crc32"])
            first.append(len(clips))
        expected = self.info["splits"][self.split]["clips"]
        if len(clips) != expected:
            raise RecordError(
                f"{self.folder}: the indexes of split {self.split} name {len(clips)} clips, "
                f"dataset.json {expected}; prepare this folder again"
            )
        self._first_clip = np.array(first[:-1] or [0])
        self._crc32_I = np.array(crc32, np.uint32)
        sources = []
        for name, prompts in map(msgpack.unpackb, distinct):
            try:
                sources.append((name, {k: [ids[key] for key in p] for k, p in prompts.items()}))
            except KeyError as error:
                raise RecordError(
                    f"{self.folder}: prompts of {name!r} are not in the text table: it is of "
                    "another run; prepare this folder again"
                ) from error
        return make_table(clips, sources)


class Entries(Sequence):
    """`ClipEntry` of every clip of a data set, read when asked for."""

    def __init__(self, dataset: PreparedDataset):
        """Takes a data set with `entry`."""
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int | slice) -> ClipEntry | list[ClipEntry]:
        if isinstance(index, slice):
            return [self._dataset.entry(i) for i in range(len(self))[index]]
        return self._dataset.entry(range(len(self))[index])

    def __iter__(self) -> Iterator[ClipEntry]:
        return map(self._dataset.entry, range(len(self)))


def read_info(folder: Storage | str | os.PathLike) -> dict:
    """Content of `dataset.json`, its schema checked.

    Raises:
        RecordError: if the folder is no complete prepared data set, or of another schema.
    """
    storage = folder if isinstance(folder, Storage) else Storage(folder)
    if not storage.exists("dataset.json"):
        raise RecordError(
            f"{storage}: no dataset.json: not a prepared data set, or `prepare` has not finished"
        )
    info = read_json(storage.local("dataset.json"))
    if info.get("schema") != SCHEMA_VERSION:
        raise RecordError(
            f"{storage}/dataset.json: schema {info.get('schema')!r}, this version reads "
            f"{SCHEMA_VERSION}; prepare the data again"
        )
    return info
