"""Prepared clips -> training examples, in an order that is a pure function of (seed, step, row).

Example j of step s depends on nothing else: not on how many processes run, not on what was read
before. So there is no iterator state to save, and a run resumes on any other topology.
"""

import dataclasses
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from opensep_jax.data.clip_table import ClipTable
from opensep_jax.data.records import DamagedRecord, PreparedDataset, RecordError
from opensep_jax.data.union import PreparedUnion

logger = logging.getLogger("opensep_jax")

DAMAGED = ("stop", "skip")
_REDRAWS = 100  # of an example whose clips are damaged
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
        weights: probability of each of several data sets that a clip is drawn from; empty: all of
            them are one.
        scenes: mix only names of one scene (`scenes.json`), drawn first.
        families_apart: names of one family (`families.json`) do not meet either.
        damaged: what a damaged record does, a name of `DAMAGED`: stop the run, or have the example
            drawn again, with a warning that names the record.
    """

    samples: int
    counts: Mapping[int, float]
    wordings: Mapping[str, float]
    balance_labels: bool
    max_names: int
    seed: int
    weights: tuple[float, ...] = ()
    scenes: bool = False
    families_apart: bool = False
    damaged: str = "stop"

    @property
    def slots(self) -> int:
        """S, clips of an example at most."""
        return max(self.counts)

    @property
    def mean_clips(self) -> float:
        """Clips of an example, on average."""
        return sum(n * p for n, p in self.counts.items()) / sum(self.counts.values())


class MixtureExamples:
    """Random access to examples: `examples[step * batch + row]`.

    An example is a dict: `clips` int16 [S, T], `text_id` int32 [S, K] (-1: none), `count` int32
    (clips that are mixed) and `example` int32, its own index.
    """

    def __init__(self, dataset: PreparedDataset | PreparedUnion, rule: MixtureRule, length: int):
        """Builds the look-up from names to clips.

        Args:
            dataset: clips and prompts.
            rule: how an example is drawn.
            length: number of examples (steps times global batch).

        Raises:
            RecordError: if there are fewer names than clips in a mixture.
            ValueError: if the rule does not fit the data.
        """
        self._dataset, self._rule, self._length = dataset, rule, length
        if rule.damaged not in DAMAGED:
            raise ValueError(f"data.damaged={rule.damaged!r} is not known, unlike {DAMAGED}")
        parts = getattr(dataset, "parts", [(0, len(dataset))])
        if rule.weights and len(rule.weights) != len(parts):
            raise ValueError(
                f"data.weights={rule.weights} for {len(parts)} data sets: give one for each"
            )
        self._group_N = _groups(dataset, rule.families_apart)
        parts = parts if rule.weights else [(0, len(dataset))]
        pools = [
            [_Pool.of(dataset.table, first, last, names) for first, last in parts]
            for names in _scenes(dataset, rule.scenes)
        ]
        groups = [self._groups_of(own) for own in pools]
        self._pools = [
            own for own, n in zip(pools, groups, strict=True)
            if n >= rule.slots and all(len(pool.clips) for pool in own)
        ]  # fmt: skip
        self._warned: set[str] = set()
        if not self._pools:
            kind = "families" if rule.families_apart else "names"
            place = " of any scene" if rule.scenes else ""
            raise RecordError(
                f"{dataset.folder}: {max(groups, default=0)} {kind}{place} in split "
                f"{dataset.split}, but mix.counts asks for {rule.slots} distinct ones in a mixture"
            )

    def _groups_of(self, pools: "Sequence[_Pool]") -> int:
        """How many names that may meet these clips have."""
        return len(set(self._group_N[np.concatenate([pool.names for pool in pools])].tolist()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._rule.seed, int(index)])
        for _ in range(_REDRAWS):
            try:
                return self._draw(rng, index)
            except DamagedRecord as error:
                if self._rule.damaged == "stop":
                    raise
                if str(error) not in self._warned:
                    self._warned.add(str(error))
                    logger.warning("%s; skipped", error)
        raise RecordError(f"{self._dataset.folder}: {_REDRAWS} examples in a row are damaged")

    def _draw(self, rng: np.random.Generator, index: int) -> dict[str, np.ndarray]:
        rule = self._rule
        numbers, weights = zip(*sorted(rule.counts.items()), strict=True)
        count = int(rng.choice(numbers, p=np.divide(weights, sum(weights))))
        clips_ST = np.zeros((rule.slots, rule.samples), np.int16)
        text_id_SK = np.full((rule.slots, rule.max_names), -1, np.int32)
        for slot, clip in enumerate(self._draw_clips(rng, count)):
            clips_ST[slot] = crop(self._dataset.audio(clip), rule.samples, rng)
            ids = draw_text_ids(self._dataset, clip, rule.wordings, rng)
            text_id_SK[slot, : len(ids)] = ids[: rule.max_names]
        return {
            "clips": clips_ST,
            "text_id": text_id_SK,
            "count": np.int32(count),
            "example": np.uint32(index & 0xFFFFFFFF),
        }

    def _draw_clips(self, rng: np.random.Generator, count: int) -> list[int]:
        """Clips without a common name."""
        weights = np.divide(self._rule.weights, sum(self._rule.weights or (1.0,)))
        for draw in range(100 * count):
            if draw % (10 * count) == 0:  # what was chosen may rule out all others: start again
                chosen: list[int] = []
                taken: set[int] = set()
                scene = rng.integers(len(self._pools)) if self._rule.scenes else 0
            pools = self._pools[scene]
            pool = pools[rng.choice(len(pools), p=weights) if len(weights) else 0]
            clip = pool.draw(rng, self._rule.balance_labels)
            groups = set(self._group_N[self._dataset.table.name_ids(clip)].tolist())
            if groups and not groups & taken:
                chosen.append(clip)
                taken |= groups
            if len(chosen) == count:
                return chosen
        raise RecordError(
            f"{self._dataset.folder}: found no {count} clips with distinct names in 100 draws each"
        )


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Clips that are drawn from, by name.

    Attributes:
        clips: all of them.
        names: names that occur.
        first_clip_N: int64 [N + 1], where the clips of each begin in `clip_J`.
        clip_J: clips by name.
    """

    clips: np.ndarray | range
    names: np.ndarray
    first_clip_N: np.ndarray
    clip_J: np.ndarray

    @classmethod
    def of(cls, table: ClipTable, first: int, last: int, allowed_N: np.ndarray | None) -> "_Pool":
        """Clips `first` to `last` of a table, or those of them that have allowed names only."""
        start_I = table.first_source_I[first : last + 1]
        name_J = table.name_R[table.source_J[start_I[0] : start_I[-1]]]
        clip_J, clips = np.repeat(np.arange(first, last), np.diff(start_I)), range(first, last)
        if allowed_N is not None:
            outside = np.unique(clip_J[~allowed_N[name_J]])
            kept_J = ~np.isin(clip_J, outside)
            name_J, clip_J = name_J[kept_J], clip_J[kept_J]
            clips = np.unique(clip_J)
        order = np.argsort(name_J, kind="stable")
        names, begin = np.unique(name_J[order], return_index=True)
        return cls(clips, names, np.append(begin, len(name_J)), clip_J[order])

    def draw(self, rng: np.random.Generator, by_name: bool) -> int:
        """A clip of a random name, or any clip."""
        if not by_name:
            return int(self.clips[rng.integers(len(self.clips))])
        name = rng.integers(len(self.names))
        begin, end = self.first_clip_N[name], self.first_clip_N[name + 1]
        return int(self.clip_J[begin + rng.integers(end - begin)])


def _scenes(dataset: PreparedDataset | PreparedUnion, scenes: bool) -> list[np.ndarray | None]:
    """Allowed names of each scene, bool [N]; None allows all."""
    if not scenes:
        return [None]
    return [np.isin(dataset.table.names, labels) for labels in dataset.info["scenes"].values()]


def _groups(dataset: PreparedDataset | PreparedUnion, families_apart: bool) -> np.ndarray:
    """Number by name; names of the same number never meet in a mixture."""
    family = {}
    if families_apart:
        for number, labels in enumerate(
            dataset.info["families"].values(), len(dataset.table.names)
        ):
            family |= dict.fromkeys(labels, number)
    return np.array([family.get(name, i) for i, name in enumerate(dataset.table.names)], np.int64)


def draw_text_ids(
    dataset: PreparedDataset | PreparedUnion,
    clip: int,
    wordings: Mapping[str, float],
    rng: np.random.Generator,
) -> list[int]:
    """One text id per source of a clip, its kind of wording drawn among those it has."""
    table, ids = dataset.table, []
    for source in table.sources(clip):
        has = {kind: table.text_ids(source, kind) for kind in wordings if wordings[kind] > 0}
        kinds = [kind for kind, prompts in has.items() if len(prompts)]
        if not kinds:
            raise RecordError(
                f"{dataset.folder}: {dataset.clips[clip].path} has prompts of kind "
                f"{', '.join(dataset.clips[clip].sources[0].prompts)} but none of data.wordings "
                f"({', '.join(wordings)})"
            )
        weight = np.array([wordings[kind] for kind in kinds])
        prompts = has[kinds[rng.choice(len(kinds), p=weight / weight.sum())]]
        ids.append(int(prompts[rng.integers(len(prompts))]))
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

    Raises:
        RecordError: while it is iterated over, if a reader process is lost.
    """
    if global_batch % processes:
        raise ValueError(f"train.batch={global_batch} is not divisible by {processes} processes")
    start = first_step * global_batch + process
    # Batched before it is iterated over: worker processes then take turns by batch, not by row.
    dataset = grain.MapDataset.source(examples)[start::processes]
    dataset = dataset.batch(global_batch // processes, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    stream = dataset.to_iter_dataset(options)
    if not workers:
        return iter(stream)
    options = grain.MultiprocessingOptions(num_workers=workers)
    return _of_workers(iter(stream.mp_prefetch(options, worker_init_fn=_ignore_sigterm)))


def _ignore_sigterm(worker: int, workers: int) -> None:
    """Schedulers send it to all processes of a run, which ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _of_workers(stream: Iterator[dict]) -> Iterator[dict]:
    """The same, where a worker that is lost is an error of the data."""
    try:
        yield from stream
    except RuntimeError as error:
        raise RecordError(f"a reader process (data.workers) has failed: {error}") from error
