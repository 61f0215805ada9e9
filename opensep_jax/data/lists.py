"""Seeded lists of validation mixtures: the same items wherever and whenever they are made."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from opensep_jax.data.pipeline import crop
from opensep_jax.data.records import PreparedDataset, RecordError

PARTNERS = ("families", "names", "any")
CROPS = ("sounding", "centre", "centre_padded", "start")
LEVELS = ("equal_rms", "as_recorded", "as_published", "snr")
PUBLISHED_GAIN = 0.5  # of the records of a published mixture, so that none is beyond full scale


@dataclasses.dataclass(frozen=True)
class ListedMixture:
    """One mixture.

    Attributes:
        clips: indices into the data set.
        seed: of the crops and levels.
        levels_db: of the first clip over each other one, where a published list tells; else drawn.
        texts: prompts of the clips, where a published list tells; an empty one is that of the kind
            that is asked for.
    """

    clips: tuple[int, ...]
    seed: tuple[int, ...]
    levels_db: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


def list_mixtures(
    dataset: PreparedDataset,
    number: int,
    sources: int,
    seed: int,
    partners: str = "families",
    without: frozenset[int] = frozenset(),
) -> list[ListedMixture]:
    """Mixtures of clips that may meet, seeded.

    Args:
        dataset: clips and families.
        number: how many mixtures.
        sources: clips in each.
        seed: of the list.
        partners: `families`: names of clips are drawn first, so every class counts alike, and
            come from different families; a name in no family is one by itself. `names`: the same
            with every name a family. Both use clips of one source. `any`: clips of any number of
            sources are drawn uniformly, whatever they hold.
        without: clips that are not used.

    Source: ours.
    """
    if partners not in PARTNERS:
        raise ValueError(f"partners={partners!r} is not known; known are {', '.join(PARTNERS)}")
    if partners == "any":
        return _any_mixtures(dataset, number, sources, seed, without)
    family = _family_of(dataset.info["families"]) if partners == "families" else {}
    clips_of: dict[str, list[int]] = {}
    for index in range(len(dataset.table)):
        name_ids = dataset.table.name_ids(index)
        if len(name_ids) == 1 and index not in without:
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


def _any_mixtures(
    dataset: PreparedDataset, number: int, sources: int, seed: int, without: frozenset[int]
) -> list[ListedMixture]:
    table = dataset.table
    usable = [i for i in range(len(table)) if i not in without and len(table.sources(i))]
    if len(usable) < sources:
        raise RecordError(
            f"{dataset.folder}: split {dataset.split} has {len(usable)} clips with words; "
            f"mixtures of {sources} need as many"
        )
    mixtures = []
    for item in range(number):
        chosen = np.random.default_rng([seed, sources, item]).choice(usable, sources, replace=False)
        mixtures.append(ListedMixture(tuple(map(int, chosen)), (seed, sources, item, 1)))
    return mixtures


def write_list(
    file: Path, dataset: PreparedDataset, lists: Mapping[int, Sequence[ListedMixture]]
) -> None:
    """Writes mixtures by the paths and hashes of their clips, to score the same ones anywhere.

    Args:
        file: JSON: `clips` [[path, start in samples, hash of the PCM16 samples]], and `mixtures`
            by number of sources, [[seed, [numbers of clips], levels in dB, texts]].
        dataset: which the clips are of.
        lists: mixtures by number of sources.
    """
    used = sorted({clip for mixtures in lists.values() for m in mixtures for clip in m.clips})
    row = {clip: number for number, clip in enumerate(used)}
    clips = [_clip_key(dataset, clip) for clip in used]
    mixtures = {
        str(n): [[m.seed, [row[clip] for clip in m.clips], *_told(m)] for m in mixtures]
        for n, mixtures in lists.items()
    }
    parts = [f'"clips": [\n{_lines(clips)}\n]', '"mixtures": {']
    parts[1] += ",".join(f'\n"{n}": [\n{_lines(rows)}\n]' for n, rows in mixtures.items()) + "\n}"
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def read_list(name_or_file: str, dataset: PreparedDataset) -> dict[int, list[ListedMixture]]:
    """Mixtures of a list of the package (`assets/lists`) or of a file, by number of sources.

    Raises:
        RecordError: the file cannot be read, or names clips that the data set does not have with
            this very sound.
    """
    shipped = resources.files("opensep_jax").joinpath(f"assets/lists/{name_or_file}.json")
    file = shipped if shipped.is_file() else Path(name_or_file)
    known = {tuple(_clip_key(dataset, index)): index for index in range(len(dataset))}
    try:
        content = json.loads(file.read_text("utf-8"))
        wanted = [tuple(clip) for clip in content["clips"]]
        lists = {
            int(n): [
                (tuple(wanted[i] for i in clips), tuple(seed), *map(tuple, told))
                for seed, clips, *told in rows
            ]
            for n, rows in content["mixtures"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RecordError(f"list {name_or_file} cannot be read: {error!r}") from error
    missing = [clip for clip in wanted if clip not in known]
    if missing:
        raise RecordError(
            f"list {name_or_file}: {len(missing)} of {len(wanted)} clips are not in split "
            f"{dataset.split} of {dataset.folder}, or sound otherwise; the first is {missing[0][0]}"
        )
    return {
        n: [ListedMixture(tuple(known[clip] for clip in clips), *rest) for clips, *rest in rows]
        for n, rows in lists.items()
    }


def digest(dataset: PreparedDataset, mixtures: Sequence[ListedMixture]) -> str:
    """Hash of what a list mixes: the clips' paths and sounds, crops and levels; 16 hex digits."""
    rows = [[m.seed, [_clip_key(dataset, clip) for clip in m.clips], *_told(m)] for m in mixtures]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _told(mixture: ListedMixture) -> list:
    """What only published lists tell."""
    told = mixture.levels_db or mixture.texts
    return [mixture.levels_db, mixture.texts] if told else []


def _clip_key(dataset: PreparedDataset, index: int) -> list:
    clip = dataset.clips[index]
    return [clip.path, clip.start_samples, clip.sha256]


def _lines(rows: Sequence[object]) -> str:
    return ",\n".join(json.dumps(row) for row in rows)


def render(
    dataset: PreparedDataset, mixture: ListedMixture, samples: int, level_db: float
) -> np.ndarray:
    """Sources of a mixture, float32 [S, T]: cropped, equal RMS within +- `level_db`.

    The sum is scaled to a peak of 0.9 where it would exceed that.
    """
    return render_by(dataset, mixture, samples, "sounding", "equal_rms", (-level_db, level_db))


def render_by(
    dataset: PreparedDataset,
    mixture: ListedMixture,
    samples: int,
    crops: str,
    levels: str,
    range_db: tuple[float, float],
) -> np.ndarray:
    """Sources of a mixture by the rules of a protocol, float32 [S, T].

    Args:
        dataset: of the clips.
        mixture: clips and seed.
        samples: T.
        crops: `sounding`: where there is sound, a short clip in silence at a random place;
            `centre`: the middle, a short clip repeated; `centre_padded`: the middle, a short clip
            between silences; `start`: the beginning, silence after.
        levels: `equal_rms`: each clip by `range_db` around an RMS of 0.1, the sum scaled to a peak
            of 0.9 where it would exceed that; `as_recorded`: each over the number of clips;
            `as_published`: the same, but the clips of a published mixture sum to it; `snr`: the
            first clip over each other one, within `range_db`, the sum scaled to a peak of 0.9
            where it would exceed full scale.
        range_db: lowest and highest.
    """
    rng = np.random.default_rng(mixture.seed)
    sources: list[np.ndarray] = []
    for clip in mixture.clips:
        wave_T = _cropped(dataset.audio(clip), samples, crops, rng).astype(np.float32) / 32768.0
        rms = max(float(np.sqrt(np.mean(wave_T**2))), 1e-4)
        gain = 1 / len(mixture.clips)
        if levels == "equal_rms":
            gain = 0.1 * 10 ** (rng.uniform(*range_db) / 20) / rms
        elif levels == "as_published" and mixture.texts:
            gain = 1 / PUBLISHED_GAIN
        elif levels == "snr":
            gain = 1.0
            if sources:
                told = mixture.levels_db
                below_db = told[len(sources) - 1] if told else rng.uniform(*range_db)
                gain = float(np.sqrt(np.mean(sources[0] ** 2))) / rms * 10 ** (-below_db / 20)
        sources.append(wave_T * gain)
    sources_ST = np.stack(sources)
    peak = float(np.abs(sources_ST.sum(0)).max())
    if peak > {"equal_rms": 0.9, "as_published": np.inf}.get(levels, 1.0):
        sources_ST = sources_ST * (0.9 / peak)
    return sources_ST.astype(np.float32)


def _cropped(clip_T: np.ndarray, samples: int, rule: str, rng: np.random.Generator) -> np.ndarray:
    if rule == "sounding":
        return crop(clip_T, samples, rng)
    if rule == "centre":
        clip_T = np.tile(clip_T, -(-samples // len(clip_T)))
        start = (len(clip_T) - samples) // 2
        return clip_T[start : start + samples]
    if rule == "centre_padded":
        start, missing = max(0, len(clip_T) - samples) // 2, max(0, samples - len(clip_T))
        clip_T = clip_T[start : start + samples]
        return np.pad(clip_T, (missing - missing // 2, missing // 2))
    return np.pad(clip_T[:samples], (0, max(0, samples - len(clip_T))))


def text_ids(dataset: PreparedDataset, mixture: ListedMixture, wording: str) -> list[int]:
    """Text id of each clip's first prompt of a kind."""
    return [_text_ids_of(dataset, clip, wording)[0] for clip in mixture.clips]


def prompts(dataset: PreparedDataset, mixture: ListedMixture, wording: str) -> list[list[str]]:
    """What each clip is asked for with: the text of the list, where it tells one; the caption of
    a clip of several sources; else the first prompt of each of its sources.
    """
    asked = []
    for place, clip in enumerate(mixture.clips):
        told = mixture.texts[place] if mixture.texts else ""
        if not told and wording == "caption" and len(dataset.table.sources(clip)) > 1:
            told = next(iter(dataset.clips[clip].captions), "")
        ids = [] if told else _text_ids_of(dataset, clip, wording)
        asked.append([told] if told else [dataset.text.prompts[i] for i in ids])
    return asked


def _text_ids_of(dataset: PreparedDataset, clip: int, wording: str) -> list[int]:
    """Text id of the first prompt of a kind of each source of a clip."""
    ids = []
    for source in dataset.table.sources(clip):
        prompts = dataset.table.text_ids(source, wording)
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
