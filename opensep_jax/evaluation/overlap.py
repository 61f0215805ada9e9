"""Which clips of a data set were in a training set: by their sound, not by their names."""

import hashlib

from opensep_jax.data.records import PreparedDataset


def overlapping_clips(dataset: PreparedDataset, train: PreparedDataset) -> list[int]:
    """Clips that hold the same samples as a training clip.

    Clips are compared by length and checksum first, then by SHA-256 of their PCM16 samples. A
    recording that was cut, scaled or resampled in another way is not found.

    Args:
        dataset: to be scored on.
        train: what was trained on, at the same sample rate.

    Returns:
        Indices into `dataset`.

    Raises:
        ValueError: the sample rates differ, so that equal sounds could not be told.
    """
    if dataset.sample_rate_hz != train.sample_rate_hz:
        raise ValueError(
            f"{dataset.folder} has {dataset.sample_rate_hz} Hz and {train.folder} "
            f"{train.sample_rate_hz} Hz: which clips they share cannot be told"
        )
    of_key: dict[tuple[int, int], list[int]] = {}
    for index, clip in enumerate(train.clips):
        of_key.setdefault((clip.samples, clip.crc32), []).append(index)
    found = []
    for index, clip in enumerate(dataset.clips):
        others = of_key.get((clip.samples, clip.crc32), [])
        if others and _hash(dataset, index) in {_hash(train, other) for other in others}:
            found.append(index)
    return found


def _hash(dataset: PreparedDataset, index: int) -> bytes:
    return hashlib.sha256(dataset.audio(index).tobytes()).digest()


def names_of(dataset: PreparedDataset) -> frozenset[str]:
    """Names of all sources: the classes that were seen in training."""
    return frozenset(source.name for clip in dataset.clips for source in clip.sources)
