"""What prepared data holds, in numbers."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgpack
import numpy as np


def summarise_split(
    indexes: Iterable[dict], names: Counter[str], elsewhere: set[bytes], sample_rate_hz: int
) -> tuple[dict, dict]:
    """Counts over the clips of a split; one shard at a time is in memory.

    Args:
        indexes: of its shards, in order.
        names: clips by name; is added to.
        elsewhere: hashes of the clips of other splits; is added to.
        sample_rate_hz: rate of the clips.

    Returns:
        For `dataset.json`: `shards`, `clips`, `seconds`, `rejected` and `sha256`, a hash over the
        clips' files, checksums, names and prompts. For `summary.json`: `clips`, `hours`,
        `duplicates`, `also_in_another_split`, `clips_by_sources` and `rejected` by reason.
    """
    contents: set[bytes] = set()
    sources: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    shards = clips = samples = 0
    content = hashlib.sha256()
    for index in indexes:
        shards += 1
        content.update(msgpack.packb([index["clips"], index["sources"]]))
        reasons.update(map(_kind, index["rejected"]))
        for clip in index["clips"]:
            clips += 1
            samples += clip["samples"]
            contents.add(bytes.fromhex(clip["sha256"]))
            sources[len(clip["sources"])] += 1
            names.update(index["sources"][i]["name"] for i in clip["sources"])
    shared = len(contents & elsewhere)
    elsewhere |= contents
    rejected, seconds = sum(reasons.values()), samples / sample_rate_hz
    info = {"shards": shards, "clips": clips, "seconds": round(seconds, 3), "rejected": rejected}
    return info | {"sha256": content.hexdigest()}, {
        "clips": clips,
        "hours": round(seconds / 3600, 4),
        "duplicates": clips - len(contents),
        "also_in_another_split": shared,
        "clips_by_sources": {str(count): sources[count] for count in sorted(sources)},
        "rejected": dict(reasons.most_common()),
    }


def summarise(
    splits: dict[str, dict], names: Counter[str], made: Iterable[dict], texts: Sequence[dict]
) -> dict:
    """Counts over all of a data set, for `summary.json`.

    Args:
        splits: of `summarise_split`.
        names: clips by name.
        made: what the stage `cut` has noted of each shard.
        texts: indexes of the shards of prompts.

    Returns:
        `splits`, `names` (how many, and clips of the most frequent), `prompts` (tokens, and how
        many were cut) and `files` (silent parts, short rests, clipped and turned down files).
    """
    lengths = np.array([length for text in texts for length in text["lengths"]] or [0])
    files: Counter[str] = Counter()
    for shard in made:
        files.update(shard["counts"])
    return {
        "splits": splits,
        "names": {"distinct": len(names), "most_frequent": dict(names.most_common(20))},
        "prompts": {
            "distinct": sum(len(text["keys"]) for text in texts),
            "tokens": int(lengths.sum()),
            "tokens_mean": round(float(lengths.mean()), 2),
            "tokens_longest": int(lengths.max()),
            "truncated": sum(len(text["truncated"]) for text in texts),
        },
        "files": dict(files),
    }


def _kind(rejected: dict[str, str]) -> str:
    """Why a file was rejected, without what is of that file alone."""
    why = rejected["why"].rpartition(f"{rejected['path']}: ")[2]
    return re.sub(r"\d+", "#", re.split(r" \(|[:;,]", why)[0])
