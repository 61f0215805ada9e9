"""Prepared clips -> training examples, in an order that is a pure function of (seed, step, row).

Example j of step s depends on nothing else: not on how many processes run, not on what was read
before. So there is no iterator state to save, and a run resumes on any other topology.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from opensep_jax.data.records import ClipEntry, PreparedDataset, RecordError

_CROP_TRIES = 6  # a crop is redrawn this often while it is much quieter than its clip
_BLOCK_SAMPLES = 256  # resolution at which loudness is looked at


@dataclasses.dataclass(frozen=True)
class MixtureRule:
    """How an example is drawn.

    Attributes:
        samples: length of the raw clips.
        counts: probability of mixing n clips, by n; the largest n is S.
        wordings: probability of each kind of prompt (`text.wordings.WORDINGS`).
        balance_labels: draw a name first, then a clip of it; else draw clips uniformly.
        max_names: K, named sources of one clip at most; further ones are not queried.
        seed: of the whole order.
    """

    samples: int
    counts: Mapping[int, float]
    wordings: Mapping[str, float]
    balance_labels: bool
    max_names: int
    seed: int

    @property
    def slots(self) -> int:
        """S, clips of an example at most."""
        return max(self.counts)


class MixtureExamples:
    """Random access to examples: `examples[step * batch + row]`.

    An example is a dict: `clips` int16 [S, T], `text_id` int32 [S, K] (-1: none), `count` int32
    (clips that are mixed) and `example` int32, its own index.
    """

    def __init__(self, dataset: PreparedDataset, rule: MixtureRule, length: int):
        """Builds the look-up from names to clips.

        Args:
            dataset: clips and prompts.
            rule: how an example is drawn.
            length: number of examples (steps times global batch).

        Raises:
            RecordError: if there are fewer names than clips in a mixture.
        """
        self._dataset, self._rule, self._length = dataset, rule, length
        self._clips_of: dict[str, list[int]] = {}
        for index, clip in enumerate(dataset.clips):
            for source in clip.sources:
                self._clips_of.setdefault(source.name, []).append(index)
        self._names = sorted(self._clips_of)
        if len(self._names) < rule.slots:
            raise RecordError(
                f"{dataset.folder}: {len(self._names)} names in split {dataset.split}, but "
                f"mix.counts asks for {rule.slots} distinct ones in a mixture"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rule = self._rule
        rng = np.random.default_rng([rule.seed, int(index)])
        numbers, weights = zip(*sorted(rule.counts.items()), strict=True)
        count = int(rng.choice(numbers, p=np.divide(weights, sum(weights))))
        clips_ST = np.zeros((rule.slots, rule.samples), np.int16)
        text_id_SK = np.full((rule.slots, rule.max_names), -1, np.int32)
        for slot, clip in enumerate(self._draw_clips(rng, count)):
            clips_ST[slot] = crop(self._dataset.audio(clip), rule.samples, rng)
            ids = draw_text_ids(self._dataset, self._dataset.clips[clip], rule.wordings, rng)
            text_id_SK[slot, : len(ids)] = ids[: rule.max_names]
        return {
            "clips": clips_ST,
            "text_id": text_id_SK,
            "count": np.int32(count),
            "example": np.uint32(index & 0xFFFFFFFF),
        }

    def _draw_clips(self, rng: np.random.Generator, count: int) -> list[int]:
        """Clips without a common name."""
        for draw in range(100 * count):
            if draw % (10 * count) == 0:  # what was chosen may rule out all others: start again
                chosen: list[int] = []
                taken: set[str] = set()
            if self._rule.balance_labels:
                of_name = self._clips_of[self._names[rng.integers(len(self._names))]]
                clip = of_name[rng.integers(len(of_name))]
            else:
                clip = int(rng.integers(len(self._dataset)))
            names = {source.name for source in self._dataset.clips[clip].sources}
            if not names & taken:
                chosen.append(clip)
                taken |= names
            if len(chosen) == count:
                return chosen
        raise RecordError(
            f"{self._dataset.folder}: found no {count} clips with distinct names in 100 draws each"
        )


def draw_text_ids(
    dataset: PreparedDataset,
    clip: ClipEntry,
    wordings: Mapping[str, float],
    rng: np.random.Generator,
) -> list[int]:
    """One text id per source of a clip, its kind of wording drawn among those it has."""
    ids = []
    for source in clip.sources:
        kinds = [kind for kind in wordings if kind in source.prompts and wordings[kind] > 0]
        if not kinds:
            raise RecordError(
                f"{dataset.folder}: {clip.path} has prompts of kind "
                f"{', '.join(source.prompts)} but none of data.wordings ({', '.join(wordings)})"
            )
        weight = np.array([wordings[kind] for kind in kinds])
        keys = source.prompts[kinds[rng.choice(len(kinds), p=weight / weight.sum())]]
        ids.append(dataset.text.ids[keys[rng.integers(len(keys))]])
    return ids


def crop(clip_T: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Part of a clip where there is sound; shorter clips lie at a random place in silence.

    The first of six draws whose mean power is at least a quarter of the clip's is taken, else one
    around a place drawn in proportion to its power. Returns int16 [samples].
    """
    room = len(clip_T) - samples
    if room <= 0:
        before = int(rng.integers(-room + 1))
        return np.pad(clip_T, (before, -room - before))
    blocks = len(clip_T) // _BLOCK_SAMPLES
    power = np.square(clip_T[: blocks * _BLOCK_SAMPLES].astype(np.float32))
    total = np.concatenate([[0.0], np.cumsum(power.reshape(blocks, -1).sum(1, dtype=np.float64))])
    for start in rng.integers(room + 1, size=_CROP_TRIES):
        first, last = -(-start // _BLOCK_SAMPLES), (start + samples) // _BLOCK_SAMPLES  # whole ones
        mean_power = (total[last] - total[first]) / max(last - first, 1)
        if mean_power >= 0.25 * total[-1] / blocks:
            return clip_T[start : start + samples]
    block = int(np.searchsorted(total, rng.uniform(0, total[-1]), side="right")) - 1
    middle = block * _BLOCK_SAMPLES + _BLOCK_SAMPLES // 2
    start = min(max(middle - samples // 2, 0), room)
    return clip_T[start : start + samples]


def batches(
    examples: MixtureExamples,
    *,
    global_batch: int,
    first_step: int,
    process: int,
    processes: int,
    workers: int,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every batch from `first_step` on.

    Process p of n takes the rows j = p mod n of the global batch.

    Args:
        examples: random access to examples.
        global_batch: rows of a step over all processes.
        first_step: step to begin with.
        process: p.
        processes: n; must divide `global_batch`.
        workers: processes that read ahead (0: threads of this one only).
        threads: reader threads.
    """
    if global_batch % processes:
        raise ValueError(f"train.batch={global_batch} is not divisible by {processes} processes")
    start = first_step * global_batch + process
    # Batched before it is iterated over: worker processes then take turns by batch, not by row.
    dataset = grain.MapDataset.source(examples)[start::processes]
    dataset = dataset.batch(global_batch // processes, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    stream = dataset.to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)
