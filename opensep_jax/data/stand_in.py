"""Prepared data without sound, for planning: what only needs its shapes."""

from pathlib import Path

import numpy as np

from opensep_jax.data.records import (
    SCHEMA_VERSION,
    ClipEntry,
    SourceEntry,
    prompt_key,
    shard_name,
    write_clip_shard,
    write_json,
    write_text_shard,
)

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
        names: named sources, each in a family of its own.
        sample_rate_hz: of the clips.
        text_tokens: length of the prompt.
        text_width: channels of its token states.
    """
    key = prompt_key("", _ENCODER["id"])
    states_LC = np.zeros((text_tokens, text_width), np.float32)
    write_text_shard(folder / shard_name("text", 0, 1), [(key, "", states_LC)])
    for split in splits:
        clips = (
            (
                ClipEntry(
                    path=f"{name}.wav",
                    start_samples=0,
                    samples=sample_rate_hz,
                    sources=[SourceEntry(str(name), {wording: [key] for wording in wordings})],
                    extra={},
                    crc32=0,
                ),
                np.zeros(sample_rate_hz, np.int16),
            )
            for name in range(names)
        )
        write_clip_shard(folder / shard_name(f"clips-{split}", 0, 1), clips, rejected=[])
    info = {
        "schema": SCHEMA_VERSION,
        "sample_rate_hz": sample_rate_hz,
        "families": {},
        "splits": {split: {"shards": 1, "clips": names} for split in splits},
        "text": {"shards": 1, "width": text_width},
        "text_encoder": {**_ENCODER, "width": text_width},
    }
    write_json(folder / "dataset.json", info)
