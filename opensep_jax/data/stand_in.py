"""Prepared data without sound, for planning: what only needs its shapes."""

from pathlib import Path

import numpy as np

from opensep_jax.data.shards import (
    AUDIO_CODECS,
    SCHEMA_VERSION,
    SourceEntry,
    pack_index,
    prompt_key,
    shard_name,
    write_audio,
)
from opensep_jax.data.storage import write_bytes, write_json
from opensep_jax.data.text_table import write_text_shard

_ENCODER = {"id": "stand-in", "name": "stand-in"}


def write_stand_in(
    folder: Path,
    *,
    splits: tuple[str, ...],
    wordings: tuple[str, ...],
    names: int,
    sample_rate_hz: int,
    text_tokens: int,
    text_width: int,
) -> None:
    """Writes a folder as `prepare` does: a silent clip for each name, and one prompt.

    Args:
        folder: an empty one.
        splits: to write, all alike.
        wordings: kinds of prompt that every clip has.
        names: named sources, each in a family of its own, all in one scene.
        sample_rate_hz: of the clips.
        text_tokens: length of the prompt.
        text_width: channels of its token states.
    """
    key = prompt_key("", _ENCODER["id"])
    states_LC = np.zeros((text_tokens, text_width), np.float32)
    write_text_shard(folder / shard_name("text", 0, 1), [(key, "", states_LC)])
    codec, silence_T = AUDIO_CODECS[0], np.zeros(sample_rate_hz, np.int16)
    for split in splits:
        stem = folder / shard_name(f"clips-{split}", 0, 1)
        clips = [({"path": f"{name}.wav", "start_samples": 0}, silence_T) for name in range(names)]
        rows = write_audio(stem.with_suffix(".arrayrecord"), clips, codec, sample_rate_hz)
        entries = [
            (row, [SourceEntry(str(name), {wording: [key] for wording in wordings})], [], {})
            for name, row in enumerate(rows)
        ]
        write_bytes(stem.with_suffix(".index"), pack_index(stem, entries, rejected=[]))
    info = {
        "schema": SCHEMA_VERSION,
        "sample_rate_hz": sample_rate_hz,
        "audio": codec,
        "families": {},
        "scenes": {"all": [str(name) for name in range(names)]},
        "splits": {split: {"shards": 1, "clips": names} for split in splits},
        "text": {"shards": 1, "width": text_width},
        "text_encoder": {**_ENCODER, "width": text_width},
    }
    write_json(folder / "dataset.json", info)
