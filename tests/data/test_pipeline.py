"""The order of examples is a function of (seed, step, row); crops and wordings are fair."""

import gc
import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pytest
from absl import flags

from opensep_jax.data import pipeline
from opensep_jax.data.clip_table import make_table
from opensep_jax.data.pipeline import MixtureExamples, MixtureRule
from opensep_jax.data.records import PreparedDataset, RecordError

RULE = MixtureRule(
    samples=3000,
    counts={2: 0.5, 3: 0.25, 4: 0.25},
    wordings={"caption": 0.5, "label": 0.25, "paraphrase": 0.25, "description": 0.0},
    balance_labels=True,
    max_names=2,
    seed=5,
)
BATCH = 8


@pytest.fixture(scope="module")
def dataset(tiny_dataset) -> PreparedDataset:
    return PreparedDataset(tiny_dataset, "train")


def _rule(**changes) -> MixtureRule:
    return MixtureRule(**{**vars(RULE), **changes})


def _examples(dataset, steps=4, **changes) -> MixtureExamples:
    return MixtureExamples(dataset, _rule(**changes), steps * BATCH)


def _batches(examples, process=0, processes=1, first_step=0, workers=0, threads=2) -> list[dict]:
    return list(
        pipeline.batches(
            examples, global_batch=BATCH, first_step=first_step, process=process,
            processes=processes, workers=workers, threads=threads,
        )
    )  # fmt: skip


def _assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


# Order


def test_batches_have_the_agreed_shapes(dataset):
    batches = _batches(_examples(dataset))
    assert len(batches) == 4
    for step, batch in enumerate(batches):
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "clips": ((BATCH, 4, 3000), "int16"),
            "text_id": ((BATCH, 4, 2), "int32"),
            "count": ((BATCH,), "int32"),
            "example": ((BATCH,), "uint32"),
        }
        np.testing.assert_array_equal(batch["example"], step * BATCH + np.arange(BATCH))
        mixed_BS = np.arange(4) < batch["count"][:, None]
        np.testing.assert_array_equal(batch["clips"].any(-1), mixed_BS)
        np.testing.assert_array_equal((batch["text_id"] >= 0).any(-1), mixed_BS)
        assert (batch["text_id"][..., 1] == -1).all()  # one name for each clip here


@pytest.mark.parametrize("processes", [2, 4])
def test_the_examples_of_a_step_are_the_same_for_any_number_of_processes(dataset, processes):
    examples = _examples(dataset)
    whole = _batches(examples)
    parts = [_batches(examples, process, processes) for process in range(processes)]
    for step in range(4):
        ids = [set(part[step]["example"].tolist()) for part in parts]
        assert sum(map(len, ids)) == BATCH  # disjoint
        assert set.union(*ids) == set(range(step * BATCH, (step + 1) * BATCH))  # covering
        for name in whole[step]:
            rows = np.stack([part[step][name] for part in parts], axis=1)
            np.testing.assert_array_equal(rows.reshape(whole[step][name].shape), whole[step][name])


@pytest.mark.parametrize("first_step", [1, 3])
def test_a_run_that_starts_later_sees_the_same_steps(dataset, first_step):
    examples = _examples(dataset)
    _assert_equal(_batches(examples, first_step=first_step), _batches(examples)[first_step:])
    _assert_equal(
        _batches(examples, 1, 2, first_step=first_step), _batches(examples, 1, 2)[first_step:]
    )


@pytest.mark.parametrize("threads", [0, 7])
def test_threads_change_nothing(dataset, threads):
    _assert_equal(_batches(_examples(dataset), threads=threads), _batches(_examples(dataset)))


def test_worker_processes_change_nothing(dataset):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])  # grain's workers read flags
    examples = _examples(dataset)
    _assert_equal(_batches(examples, workers=2), _batches(examples))
    _assert_equal(_batches(examples, 1, 2, 1, workers=2), _batches(examples, 1, 2, 1))


@pytest.mark.slow
def test_worker_processes_do_not_heed_sigterm_and_end_all_the_same(dataset):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])
    examples = _examples(dataset)
    stream = pipeline.batches(
        examples, global_batch=BATCH, first_step=0, process=0, processes=1, workers=2, threads=1
    )
    read = [next(stream), next(stream)]  # one from each: both have begun
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
    _assert_equal(read + list(stream), _batches(examples))
    del stream
    gc.collect()
    for child in children:
        child.join(30)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_process_that_is_lost_is_an_error_of_the_data(dataset):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])
    stream = pipeline.batches(
        _examples(dataset, steps=400), global_batch=BATCH, first_step=0, process=0, processes=1,
        workers=1, threads=1,
    )  # fmt: skip
    next(stream)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(RecordError, match=r"reader process \(data.workers\) has failed: .*-9"):
        list(stream)


def test_the_length_of_a_run_does_not_change_its_beginning(dataset):
    _assert_equal(_batches(_examples(dataset, steps=2)), _batches(_examples(dataset))[:2])


def test_other_seeds_give_other_examples(dataset):
    a, b = (_batches(_examples(dataset, seed=seed))[0]["clips"] for seed in (5, 6))
    assert not np.array_equal(a, b)


def test_processes_must_divide_the_batch(dataset):
    with pytest.raises(ValueError, match="train.batch=8 is not divisible by 3 processes"):
        _batches(_examples(dataset), 0, 3)


# Choice of clips


class _Chosen:
    """A data set in memory: clips by the names of their sources."""

    def __init__(self, dataset: PreparedDataset, held: list):
        self.folder, self.split, self.info = dataset.folder, dataset.split, dataset.info
        names = sorted({name for own in held for name in own})
        prompts = [{kind: [i] for kind in ("caption", "label", "paraphrase")} for i in range(99)]
        sources = list(zip(names, prompts, strict=False))
        clips = [(3000, [names.index(name) for name in own]) for own in held]
        self.table = make_table(clips, sources)

    def __len__(self):
        return len(self.table.samples_I)

    def audio(self, index):
        return np.full(3000, index + 1, np.int16)


def _names_of_slots(dataset: PreparedDataset | _Chosen, example: dict) -> list[str]:
    """Names of the clips of an example, by the prompts of the table."""
    table, name_of = dataset.table, {}
    for source, name in enumerate(table.name_R):
        for kind in table.kinds:
            name_of |= dict.fromkeys(table.text_ids(source, kind).tolist(), table.names[name])
    return [name_of[i] for i in example["text_id"][:, 0].tolist() if i >= 0]


def test_names_of_a_mixture_are_distinct(dataset):
    examples = _examples(dataset, steps=30)
    for i in range(len(examples)):
        names = _names_of_slots(dataset, examples[i])
        assert len(set(names)) == len(names) == examples[i]["count"]


def test_counts_follow_their_probabilities(dataset):
    examples = _examples(dataset, steps=50)
    counts = Counter(int(examples[i]["count"]) for i in range(400))
    for count, probability in RULE.counts.items():
        assert abs(counts[count] / 400 - probability) < 0.1  # four standard errors


def test_classes_count_alike_unless_clips_are_drawn_uniformly(dataset):
    """A class with one clip left beside seven with three."""
    rare = dataset.clips[0].sources[0].name
    kept = [i for i, clip in enumerate(dataset.clips) if clip.sources[0].name != rare] + [0]

    fewer = _Chosen(dataset, [[dataset.clips[i].sources[0].name] for i in kept])
    fewer.audio = lambda index: dataset.audio(kept[index])

    def share(balance_labels):
        rule = _rule(counts={1: 1.0}, balance_labels=balance_labels)
        examples = MixtureExamples(fewer, rule, 600)
        names = Counter(_names_of_slots(fewer, examples[i])[0] for i in range(600))
        assert len(names) == 8
        return names[rare] / 600

    assert abs(share(True) - 1 / 8) < 0.055  # four standard errors
    assert abs(share(False) - 1 / 22) < 0.035


def test_fewer_names_than_clips_are_refused(dataset):
    with pytest.raises(RecordError, match="8 names in split train, but mix.counts asks for 9"):
        _examples(dataset, counts={9: 1.0})


# Texts


def test_wordings_follow_their_probabilities_among_those_a_source_has(dataset):
    clip = 0
    prompts = dataset.clips[0].sources[0].prompts
    kind_of = {dataset.text.ids[key]: kind for kind, keys in prompts.items() for key in keys}
    rng = np.random.default_rng(0)
    drawn = Counter(
        kind_of[pipeline.draw_text_ids(dataset, clip, RULE.wordings, rng)[0]] for _ in range(1000)
    )
    for kind, probability in RULE.wordings.items():
        assert abs(drawn[kind] / 1000 - probability) < 0.065
    # Without the kinds that a source lacks, the others share.
    lacks = {"description": 0.9, "caption": 0.05, "label": 0.05}
    drawn = Counter(
        kind_of[pipeline.draw_text_ids(dataset, clip, lacks, rng)[0]] for _ in range(500)
    )
    assert set(drawn) == {"caption", "label"} and abs(drawn["label"] / 500 - 0.5) < 0.1
    with pytest.raises(RecordError, match=r"prompts of kind caption, label, paraphrase but none"):
        pipeline.draw_text_ids(dataset, clip, {"description": 1.0}, rng)


def test_each_named_source_of_a_clip_has_its_text(dataset):
    several = _Chosen(dataset, ["AC", "B"])
    rng = np.random.default_rng(0)
    ids = [pipeline.draw_text_ids(several, clip, {"label": 1.0}, rng) for clip in (0, 1)]
    assert ids == [[0, 2], [1]]


def test_clips_of_several_sources_share_no_name(dataset):
    """A clip named {A, B} is mixed with no clip that holds A or B; further names are dropped."""
    held = ("AB", "BC", "C", "D", "ACD", "")  # the last one has no name: it is never drawn
    several = _Chosen(dataset, held)
    examples = MixtureExamples(several, _rule(counts={2: 1.0}, balance_labels=False), 400)
    met = set()
    for i in range(400):
        first, second = (held[int(clip_T[0]) - 1] for clip_T in examples[i]["clips"])
        assert not set(first) & set(second)
        assert (examples[i]["text_id"] >= 0).sum(1).tolist() == [
            min(2, len(names)) for names in (first, second)
        ]
        met.add(frozenset((first, second)))
    assert met == {frozenset(p) for p in (("AB", "C"), ("AB", "D"), ("BC", "D"), ("C", "D"))}
    with pytest.raises(RecordError, match="no 4 clips with distinct names"):
        MixtureExamples(several, _rule(counts={4: 1.0}), 1)[0]


# Crops


def _energy_found(clip_T: np.ndarray, samples: int) -> list[float]:
    """Share of a clip's energy in each of 200 crops."""
    crops = [pipeline.crop(clip_T, samples, np.random.default_rng(i)) for i in range(200)]
    assert {len(crop_T) for crop_T in crops} == {samples}
    total = np.sum(clip_T.astype(float) ** 2)
    return [float(np.sum(crop_T.astype(float) ** 2) / total) for crop_T in crops]


@pytest.mark.parametrize("seconds", [5, 30])
@pytest.mark.parametrize("start_s", [0.0, 2.3, 4.7])
def test_a_crop_finds_the_sound_in_a_mostly_silent_clip(seconds, start_s):
    rng = np.random.default_rng(0)
    clip_T = np.zeros(seconds * 16000, np.int16)
    begin = int(start_s * 16000)
    clip_T[begin : begin + 4800] = (3000 * rng.standard_normal(4800)).astype(np.int16)
    found = _energy_found(clip_T, 16000)
    # At least a quarter of the clip's mean power, but for a block at each end; mostly far more.
    assert min(found) > 0.24 / seconds and np.mean(found) > 0.6


def test_crops_of_steady_sound_are_spread_over_the_clip():
    clip_T = np.arange(1, 20_001, dtype=np.int16)  # a ramp tells where a crop begins
    clip_T[::2] *= -1
    starts = [
        abs(int(pipeline.crop(clip_T // 1, 2000, np.random.default_rng(i))[0])) for i in range(400)
    ]
    assert max(starts) > 17_500 and len(set(starts)) > 300


def test_short_clips_lie_at_a_random_place_in_silence():
    clip_T = np.arange(1, 101, dtype=np.int16)
    starts = set()
    for i in range(200):
        crop_T = pipeline.crop(clip_T, 110, np.random.default_rng(i))
        assert crop_T.dtype == np.int16 and len(crop_T) == 110
        start = int(np.flatnonzero(crop_T)[0])
        np.testing.assert_array_equal(crop_T[start : start + 100], clip_T)
        assert np.count_nonzero(crop_T) == 100
        starts.add(start)
    assert starts == set(range(11))
    exact_T = pipeline.crop(clip_T, 100, np.random.default_rng(0))
    np.testing.assert_array_equal(exact_T, clip_T)


def test_a_silent_clip_has_silent_crops():
    silence_T = np.zeros(5000, np.int16)
    assert pipeline.crop(silence_T, 1000, np.random.default_rng(0)).tolist() == [0] * 1000
