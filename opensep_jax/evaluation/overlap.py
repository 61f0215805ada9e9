"""Which clips of a data set were in a training set: by their sound, not by their names."""

from opensep_jax.data.records import PreparedDataset


def overlapping_clips(dataset: PreparedDataset, train: PreparedDataset) -> list[int]:
    """Clips that hold the same samples as a training clip.

    Clips are compared by the hash of their PCM16 samples, however these are stored. A recording
    that was cut, scaled or resampled in another way is not found.

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
    known = {clip.sha256 for clip in train.clips}
    return [index for index, clip in enumerate(dataset.clips) if clip.sha256 in known]


def names_of(dataset: PreparedDataset) -> frozenset[str]:
    """Names of all sources: the classes that were seen in training."""
    return frozenset(source.name for clip in dataset.clips for source in clip.sources)
