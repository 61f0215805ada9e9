"""What prepared data holds, in numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def summarise(
    splits: Mapping[str, Sequence[dict]],
    made: Iterable[dict],
    texts: Sequence[dict],
    sample_rate_hz: int,
) -> dict:
    """Counts over all shards.

    Args:
        splits: indexes of the shards of clips, by split.
        made: what the stage `cut` has noted of each shard.
        texts: indexes of the shards of prompts.
        sample_rate_hz: rate of the clips.

    Returns:
        `splits` (clips, hours, duplicates, rejected by reason, clips by number of sources), `names`
        (how many, and clips of the most frequent), `prompts` (tokens) and `files` (silent parts,
        short rests, clipped and turned down files).
    """
    names: Counter[str] = Counter()
    found = {split: _split(indexes, names, sample_rate_hz) for split, indexes in splits.items()}
    lengths = np.array([length for text in texts for length in text["lengths"]] or [0])
    files: Counter[str] = Counter()
    for shard in made:
        files.update(shard["counts"])
    return {
        "splits": found,
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


def _split(indexes: Sequence[dict], names: Counter[str], sample_rate_hz: int) -> dict:
    contents: Counter[str] = Counter()
    sources: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    samples = 0
    for index in indexes:
        for clip in index["clips"]:
            samples += clip["samples"]
            contents[clip["sha256"]] += 1
            sources[len(clip["sources"])] += 1
            names.update(index["sources"][i]["name"] for i in clip["sources"])
        for item in index["rejected"]:
            reasons[_kind(item)] += 1
    return {
        "clips": sum(contents.values()),
        "hours": round(samples / sample_rate_hz / 3600, 4),
        "duplicates": sum(contents.values()) - len(contents),
        "clips_by_sources": {str(count): sources[count] for count in sorted(sources)},
        "rejected": dict(reasons.most_common()),
    }


def _kind(rejected: dict[str, str]) -> str:
    """Why a file was rejected, without what is of that file alone."""
    why = rejected["why"].rpartition(f"{rejected['path']}: ")[2]
    return re.sub(r"\d+", "#", re.split(r" \(|[:;,]", why)[0])
