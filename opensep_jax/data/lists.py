"""Seeded lists of validation mixtures: the same items wherever and whenever they are made."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from opensep_jax.data.pipeline import crop
from opensep_jax.data.records import PreparedDataset, RecordError


@dataclasses.dataclass(frozen=True)
class ListedMixture:
    """One mixture.

    Attributes:
        clips: indices into the data set.
        seed: of the crops and levels.
    """

    clips: tuple[int, ...]
    seed: tuple[int, ...]


def list_mixtures(
    dataset: PreparedDataset, number: int, sources: int, seed: int
) -> list[ListedMixture]:
    """Mixtures of clips whose names come from different families.

    Names are drawn first, so every class counts alike. A name in no family is one by itself.
    Source: ours.

    Args:
        dataset: clips and families.
        number: how many mixtures.
        sources: clips in each.
        seed: of the list.
    """
    family = _family_of(dataset.info["families"])
    clips_of: dict[str, list[int]] = {}
    for index in range(len(dataset.table)):
        name_ids = dataset.table.name_ids(index)
        if len(name_ids) == 1:
            clips_of.setdefault(dataset.table.names[name_ids[0]], []).append(index)
    names = sorted(clips_of)
    families = {family.get(name, name) for name in names}
    if len(families) < sources:
        raise RecordError(
            f"{dataset.folder}: split {dataset.split} has {len(families)} families of sounds; "
            f"mixtures of {sources} need as many"
        )
    mixtures = []
    for item in range(number):
        rng = np.random.default_rng([seed, sources, item])
        chosen: list[str] = []
        for name in rng.permutation(names):
            if family.get(name, name) not in {family.get(n, n) for n in chosen}:
                chosen.append(str(name))
            if len(chosen) == sources:
                break
        clips = tuple(clips_of[name][rng.integers(len(clips_of[name]))] for name in chosen)
        mixtures.append(ListedMixture(clips, (seed, sources, item, 1)))
    return mixtures


def render(
    dataset: PreparedDataset, mixture: ListedMixture, samples: int, level_db: float
) -> np.ndarray:
    """Sources of a mixture, float32 [S, T]: cropped, equal RMS within +- `level_db`.

    The sum is scaled to a peak of 0.9 where it would exceed that.
    """
    rng = np.random.default_rng(mixture.seed)
    sources = []
    for clip in mixture.clips:
        wave_T = crop(dataset.audio(clip), samples, rng).astype(np.float32) / 32768.0
        level = 0.1 * 10 ** (rng.uniform(-level_db, level_db) / 20)
        sources.append(wave_T * (level / max(float(np.sqrt(np.mean(wave_T**2))), 1e-4)))
    sources_ST = np.stack(sources)
    peak = float(np.abs(sources_ST.sum(0)).max())
    return (sources_ST * min(1.0, 0.9 / max(peak, 1e-9))).astype(np.float32)


def text_ids(dataset: PreparedDataset, mixture: ListedMixture, wording: str) -> list[int]:
    """Text id of each clip's first prompt of a kind."""
    ids = []
    for clip in mixture.clips:
        prompts = dataset.table.text_ids(dataset.table.sources(clip)[0], wording)
        if not len(prompts):
            known = dataset.clips[clip]
            raise RecordError(
                f"{dataset.folder}: {known.path} has no prompt of kind {wording!r}, "
                f"only {', '.join(known.sources[0].prompts)}"
            )
        ids.append(int(prompts[0]))
    return ids


def pad_texts(states: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks unpadded [L, C] states to [P, length, C] with a mask [P, length]."""
    padded = np.zeros((len(states), length, states[0].shape[1]), states[0].dtype)
    mask = np.zeros((len(states), length), bool)
    for row, states_LC in enumerate(states):
        padded[row, : len(states_LC)] = states_LC
        mask[row, : len(states_LC)] = True
    return padded, mask


def _family_of(families: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {label: family for family, labels in families.items() for label in labels}
