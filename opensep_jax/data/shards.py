"""Shards of clips: what is in their files, and how they are written.

A shard is an ArrayRecord file with a msgpack map per clip (its samples), and an index with all that
is known of the clips, so that words can change without the audio being written again.
"""

import dataclasses
import hashlib
import io
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgpack
import numpy as np
import soundfile

from opensep_jax.data.storage import record_writer
from opensep_jax.data.text_table import read_msgpack

SCHEMA_VERSION = 2
AUDIO_CODECS = ("pcm16", "flac")


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
        captions: sentences about all of it, written or said by a captioner.
        extra: licence, origin and other columns of the data set.
        sha256: content hash of the PCM16 samples, 32 hex digits.
        crc32: checksum of the stored bytes.
    """

    path: str
    start_samples: int
    samples: int
    sources: list[SourceEntry]
    captions: list[str]
    extra: dict[str, str]
    sha256: str
    crc32: int


def prompt_key(prompt: str, encoder_id: str) -> str:
    """Content hash of a prompt and its encoder, 32 hex digits."""
    return hashlib.sha256(f"{encoder_id}\0{prompt}".encode()).hexdigest()[:32]


def shard_name(kind: str, shard: int, shards: int) -> str:
    """Name of a shard without its suffix; `kind` is `clips-<split>` or `text`."""
    return f"{kind}-{shard:05d}-of-{shards:05d}"


def write_audio(
    file: Path, clips: Iterable[tuple[dict, np.ndarray]], codec: str, sample_rate_hz: int
) -> list[dict]:
    """Writes a shard of samples.

    Args:
        file: of the shard; it appears when it is whole.
        clips: maps of what is known of clips, with int16 [T] samples.
        codec: a name of `AUDIO_CODECS`.
        sample_rate_hz: rate of the samples.

    Returns:
        The maps, each with `samples`, `sha256` and `crc32`.
    """
    entries = []
    with record_writer(file) as write:
        for known, pcm_T in clips:
            pcm = pcm_T.astype("<i2").tobytes()
            audio = _encode(pcm_T, sample_rate_hz) if codec == "flac" else pcm
            sums = {"sha256": hashlib.sha256(pcm).hexdigest()[:32], "crc32": zlib.crc32(audio)}
            entries.append({**known, "samples": len(pcm_T), **sums})
            write(msgpack.packb({**entries[-1], "audio": audio}))
    return entries


def pack_index(
    stem: Path,
    clips: Iterable[tuple[dict, list[SourceEntry], list[str], dict[str, str]]],
    rejected: list[dict[str, str]],
) -> bytes:
    """Index of a shard of samples.

    Args:
        stem: path of the shard without suffix.
        clips: for each record, in order, the map of `write_audio`, and a clip's sources, captions
            and extra columns.
        rejected: `{"path", "why"}` of files that gave no clip, only some, or one without words.

    Returns:
        Content of `<stem>.index`.
    """
    distinct: dict[bytes, int] = {}
    rows = []
    for known, sources, captions, extra in clips:
        packed = [msgpack.packb(dataclasses.asdict(source)) for source in sources]
        numbers = [distinct.setdefault(source, len(distinct)) for source in packed]
        fields = ("path", "start_samples", "samples", "sha256", "crc32")
        row = {field: known[field] for field in fields}
        rows.append({**row, "sources": numbers, "captions": captions, "extra": extra})
    index = {
        "bytes": stem.with_suffix(".arrayrecord").stat().st_size,
        "clips": rows,
        "sources": [msgpack.unpackb(source) for source in distinct],
        "rejected": rejected,
    }
    return msgpack.packb(index)


def read_index(stem: Path) -> dict[str, list]:
    """Content of the index of a finished shard of clips.

    Raises:
        RecordError: if it is damaged.
    """
    return read_msgpack(stem.with_suffix(".index"))


def decode(audio: bytes, codec: str) -> np.ndarray:
    """Samples of a record, int16 [T]."""
    if codec == "flac":
        return soundfile.read(io.BytesIO(audio), dtype="int16")[0]
    return np.frombuffer(audio, "<i2")


def _encode(pcm_T: np.ndarray, sample_rate_hz: int) -> bytes:
    """FLAC file of int16 samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, sample_rate_hz, "PCM_16", format="FLAC")
    return buffer.getvalue()
