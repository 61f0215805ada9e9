"""How well captions name the sources of fixed mixtures: precision, recall and count."""

from collections.abc import Callable, Mapping, Sequence, Set

import jax
import numpy as np

from opensep_jax.data.lists import ListedMixture, render
from opensep_jax.data.records import PreparedDataset
from opensep_jax.sharding import batch_sharding, place, replicated
from opensep_jax.text.compose import split_clauses
from opensep_jax.text.listener import Listener, caption


def caption_mixtures(
    listener: Listener,
    params: dict,
    dataset: PreparedDataset,
    mixtures: Sequence[ListedMixture],
    *,
    mesh: jax.sharding.Mesh,
    seconds: float,
    level_db: float,
    batch: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[str], np.ndarray]:
    """Captions of listed mixtures, and their tag logits, float32 [M, K].

    Args:
        listener: network, spectrogram and words.
        params: of the network, whole on every device.
        dataset: clips of the list.
        mixtures: the list.
        mesh: its devices share the mixtures.
        seconds: length of a mixture.
        level_db: levels around equal RMS, +-.
        batch: mixtures at a time, a multiple of the devices.
        check: called before every batch; may raise.
    """
    captions, tags = [], []
    for first in range(0, len(mixtures), batch):
        check()
        rows = mixtures[first : first + batch]
        waves = [mixture_wave(dataset, row, seconds, level_db) for row in rows]
        waves += [waves[0]] * (batch - len(waves))
        placed = place(np.stack(waves), batch_sharding(mesh))
        said, tag_BK = caption(listener, params, placed, replicated(mesh))
        captions += said[: len(rows)]
        tags.append(tag_BK[: len(rows)])
    return captions, np.concatenate(tags)


def mixture_wave(
    dataset: PreparedDataset, mixture: ListedMixture, seconds: float, level_db: float
) -> np.ndarray:
    """A listed mixture, float32 [T]."""
    samples = round(seconds * dataset.sample_rate_hz)
    return render(dataset, mixture, samples, level_db).sum(0)


def true_names(dataset: PreparedDataset, mixture: ListedMixture) -> set[str]:
    """Names of the sources of a mixture."""
    return {source.name for clip in mixture.clips for source in dataset.clips[clip].sources}


def names_said(caption: str, clauses: Mapping[str, str]) -> set[str]:
    """Names of the sources that a caption names; a clause of no name stands for itself."""
    names = {said.casefold(): name for name, said in clauses.items()}
    return {names.get(part.casefold(), part) for part in split_clauses(caption)}


def name_scores(said: Sequence[Set[str]], true: Sequence[Set[str]]) -> dict[str, float]:
    """Scores of names, pooled over mixtures.

    Returns:
        `precision` and `recall` (of nothing said: 0), their harmonic mean `f1`, the mean absolute
        error of the number of sources `count_error`, and `exact`, the share of whole sets.
    """
    right = sum(len(s & t) for s, t in zip(said, true, strict=True))
    precision = right / max(1, sum(map(len, said)))
    recall = right / max(1, sum(map(len, true)))
    counts = [abs(len(s) - len(t)) for s, t in zip(said, true, strict=True)]
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "count_error": float(np.mean(counts)),
        "exact": float(np.mean([s == t for s, t in zip(said, true, strict=True)])),
    }
