"""The captioner's training: the same on any mesh and in parts, resumable, and it learns."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opensep_jax import sharding, train, training_run
from tests import tiny_captioner, tiny_run

pytestmark = pytest.mark.usefixtures("compile_once")


def test_batches_say_what_is_in_them(tiny_dataset: Path):
    run = tiny_captioner.start(tiny_dataset)
    task, batch = run.task, next(run.batches(0))
    names = [name for name, _ in task.listener.clauses]
    assert names == sorted({s.name for clip in task.train.clips for s in clip.sources})
    counts = set()
    for words_L, tags_K, count in zip(batch["words"], batch["tags"], batch["count"], strict=True):
        tagged = [names[k] for k in np.flatnonzero(tags_K)]
        assert len(tagged) == count
        said = [dict(task.listener.clauses)[name] for name in tagged]
        expected_L = task.listener.vocabulary.encode(said, task.listener.caption_words)
        np.testing.assert_array_equal(words_L, expected_L)
        counts.add(int(count))
    assert len(counts) > 2
    stream = run.batches(0)
    next(stream)
    expected, again = next(stream), next(run.batches(1))  # the data position is the step
    assert again.keys() == expected.keys() == {"clips", "count", "example", "words", "tags"}
    for name, value in expected.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts(tiny_dataset: Path):
    run = tiny_captioner.start(tiny_dataset)
    batch, loss_fn = next(run.batches(0)), jax.jit(run.task.loss)
    params = tiny_captioner.first_state(run).params
    whole, metrics = loss_fn(params, batch, {}, run.key)
    halves = [
        loss_fn(params, {k: v[i::2] for k, v in batch.items()}, {}, run.key) for i in range(2)
    ]
    np.testing.assert_allclose(np.mean([loss for loss, _ in halves]), whole, rtol=1e-5)
    assert abs(halves[0][0] - halves[1][0]) > 1e-3
    for name, total in metrics.items():
        parts = np.sum([part[name] for _, part in halves], axis=0)
        np.testing.assert_allclose(parts, total, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(8, 1), (4, 2)])
def test_eight_devices_give_the_losses_of_one(tiny_dataset: Path, data: int, fsdp: int):
    found = []
    for mesh in ((1, 1), (data, fsdp)):
        run = tiny_captioner.start(tiny_dataset, *mesh)
        step_fn, state, losses = training_run.jit_step(run), tiny_captioner.first_state(run), []
        for _, batch in zip(range(3), run.batches(0), strict=False):
            batch = sharding.shard_batch(batch, run.mesh)
            state, metrics = step_fn(state, batch, run.constants, run.key)
            losses.append(float(metrics["loss"]))
        found.append(losses)
    assert np.ptp(found[0]) > 0.1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_broke_off_goes_on_to_the_last_digit(tiny_dataset: Path, tmp_path: Path):
    """Two steps, then two more after a restart, against four in one go."""
    settings = {"train__steps": 4, "train__save_every_steps": 2, "eval__sources": (2,)}
    config = tiny_run.tiny_config(tiny_dataset, **tiny_captioner.CHANGES | settings)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train.main(config, straight, jax.devices()[:1])
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    train.main(config, resumed, jax.devices()[:1])
    assert tiny_run.read_metrics(resumed) == tiny_run.read_metrics(straight)
    assert len(tiny_run.read_metrics(straight, "val/f1")) == 1
    first, second = (tiny_run.read_state(folder, 4) for folder in (straight, resumed))
    tiny_run.assert_same_arrays(second, first)
    texts = EventAccumulator(str(straight)).Reload().Tags()["tensors"]
    assert "val/2_sources/0" in texts


@pytest.mark.slow
def test_it_learns_one_batch(tiny_dataset: Path):
    run = tiny_captioner.start(tiny_dataset, optim__learning_rate=5e-3, train__steps=40)
    step_fn, state = training_run.jit_step(run), tiny_captioner.first_state(run)
    batch = sharding.shard_batch(next(run.batches(0)), run.mesh)
    found = []
    for _ in range(30):
        state, metrics = step_fn(state, batch, run.constants, run.key)
        found.append(metrics)
    words = [float(m["loss/caption"]) for m in found]
    tags = [float(m["loss/tags"]) for m in found]
    assert np.mean(words[-3:]) < 0.6 * np.mean(words[:3])
    assert np.mean(tags[-3:]) < 0.8 * np.mean(tags[:3])
    assert float(found[-1]["accuracy/words"]) > float(found[0]["accuracy/words"])


def test_validation_names_sources(tiny_dataset: Path):
    run = tiny_captioner.start(tiny_dataset)
    scores, exhibit = run.task.validate(tiny_captioner.first_state(run).params, run.mesh)
    assert run.task.best in scores
    for sources in (1, 2):
        for name in ("precision", "recall", "f1", "count_error", "exact", "tag_f1"):
            assert scores[f"val/{name}/{sources}_sources"] >= 0
    assert list(exhibit.texts) == ["1_sources/0", "2_sources/0"]
    assert "true: The sound of" in exhibit.texts["2_sources/0"]
    assert exhibit.sounds["2_sources/0/mixture"].shape == (4000,)


def test_validation_shows_names_that_training_lacks(tiny_dataset: Path):
    run = tiny_captioner.start(tiny_dataset)
    clauses = tuple((f"trained {name}", said) for name, said in run.task.listener.clauses)
    listener = dataclasses.replace(run.task.listener, clauses=clauses)
    task = dataclasses.replace(run.task, listener=listener)
    _, exhibit = task.validate(tiny_captioner.first_state(run).params, run.mesh)
    true = exhibit.texts["1_sources/0"].partition("true: ")[2].removesuffix(".")
    assert true.lower() in {s.name for clip in task.val.clips for s in clip.sources}


def test_mixtures_are_drawn_by_the_rules_of_the_config(tiny_dataset: Path):
    rules = {"data__damaged": "skip", "data__families_apart": True, "data__weights": (1.0,)}
    rule = tiny_captioner.start(tiny_dataset, **rules).task.rule
    assert (rule.damaged, rule.families_apart, rule.weights) == ("skip", True, (1.0,))
    with pytest.raises(ValueError, match="data.weights=.* for 1 data sets"):
        next(tiny_captioner.start(tiny_dataset, data__weights=(1.0, 2.0)).batches(0))


def test_windows_have_one_length(tiny_dataset: Path):
    with pytest.raises(
        ValueError, match="crop_s=0.25, eval.seconds=0.5 and window_s=0.25 must be eq"
    ):
        tiny_captioner.start(tiny_dataset, eval__seconds=0.5)


def test_captions_that_are_too_long_are_refused(tiny_dataset: Path):
    with pytest.raises(ValueError, match="captions of 12 sources may have 72 words, .* 40 at most"):
        tiny_captioner.start(tiny_dataset, data__max_names=3)
