"""The separator's training step: the same on any mesh, compiled once, and it learns."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import sharding, training_run
from opensep_jax.data.records import RecordError
from opensep_jax.signal.stft import istft
from opensep_jax.training import separator_task
from opensep_jax.training.losses import magnitude_l1
from opensep_jax.training.separator_task import make_targets
from opensep_jax.training.step import init_state, step_key
from opensep_jax.training.validation import mean_score
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("compile_once")
MESHES = [(8, 1), (4, 2)]  # data, fsdp


@pytest.mark.parametrize("data, fsdp", MESHES)
def test_eight_devices_give_the_losses_of_one(tiny_dataset: Path, data: int, fsdp: int):
    run, _ = tiny_run.stepper(tiny_dataset, data, fsdp)
    split = [not s.is_fully_replicated for s in jax.tree.leaves(run.layout.params)]
    assert sum(split) > 30 if fsdp > 1 else not any(split)
    expected, state_of_one = tiny_run.steps(tiny_dataset, 10)
    losses, state = tiny_run.steps(tiny_dataset, 10, data, fsdp)
    assert np.ptp(expected) > 0.5 and run.config.optim.learning_rate > 0
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    others = jax.tree.leaves(state_of_one.params)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state.params), others, strict=True):
        name = jax.tree_util.keystr(path)
        if "_k'" not in name or "bias" not in name:  # softmax ignores it: its gradient is noise
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    if fsdp > 1:  # parameters, moments and average stay split
        kernel = state.params["bottom_film"]["conv0"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // fsdp


def test_the_step_is_compiled_once(tiny_dataset: Path):
    run = tiny_run.start(tiny_dataset)
    step_fn, state = training_run.jit_step(run), tiny_run.first_state(run, tiny_dataset)
    with tiny_run.count_compilations("train_step") as events:
        for _, batch in zip(range(4), run.batches(0), strict=False):
            batch = sharding.shard_batch(batch, run.mesh)
            state, _ = step_fn(state, batch, run.constants, run.key)
    assert sorted(events) == ["compile", "trace"]


def test_the_loss_falls_on_one_batch(tiny_dataset: Path):
    run, step_fn = tiny_run.stepper(tiny_dataset)
    state = tiny_run.first_state(run, tiny_dataset)
    batch = sharding.shard_batch(next(run.batches(0)), run.mesh)
    losses = []
    for _ in range(tiny_run.STEPS):
        state, metrics = step_fn(state, batch, run.constants, run.key)
        losses.append(float(metrics["loss"]))
    # Gains and targets are drawn anew in every step, so single losses scatter.
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_recomputing_activations_changes_nothing(tiny_dataset: Path):
    expected, _ = tiny_run.steps(tiny_dataset, 4)
    losses, _ = tiny_run.steps(tiny_dataset, 4, model__remat=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("targets", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(
    tiny_dataset: Path, targets: int, monkeypatch: pytest.MonkeyPatch
):
    """With mixtures of two to four clips, which have different numbers of targets."""

    def masks(net: object, params: dict, power_BFN: jax.Array, text_BPLC: jax.Array, _: object):
        prompt_BP = text_BPLC.astype(jnp.float32).mean((2, 3))
        return jax.nn.sigmoid(jnp.log1p(power_BFN)[:, None] * prompt_BP[..., None, None]), {}

    monkeypatch.setattr(separator_task, "training_masks", masks)  # cheaper than the network
    counts = {f"mix__counts__{n}": 1 / 3 for n in "234"}
    run = tiny_run.start(tiny_dataset, mix__targets=targets, mix__pairs="all", **counts)
    batch = next(run.batches(0))
    assert len(set(batch["count"])) == 3
    loss_fn = jax.jit(run.task.loss)

    def in_parts(number: int) -> tuple[float, dict[str, float]]:
        parts = [{k: v[i::number] for k, v in batch.items()} for i in range(number)]
        losses, metrics = zip(
            *(loss_fn({}, part, run.constants, run.key) for part in parts), strict=True
        )
        sums = {k: np.sum([metric[k] for metric in metrics], axis=0) for k in metrics[0]}
        return np.mean(losses), {k: total / weight for k, (total, weight) in sums.items()}

    expected, expected_metrics = in_parts(1)
    for number in (2, 4):
        loss, metrics = in_parts(number)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(1, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_gives_the_losses_of_one_part(
    tiny_dataset: Path, data: int, fsdp: int, accumulation: int
):
    expected, _ = tiny_run.steps(tiny_dataset, 10, train__batch=16)
    losses, _ = tiny_run.steps(
        tiny_dataset, 10, data, fsdp, train__batch=16, train__accumulation=accumulation
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_validation_is_the_same_on_eight_devices(tiny_dataset: Path):
    params, found = tiny_run.params_of(tiny_dataset), []
    for data in (1, 8):
        run = tiny_run.start(tiny_dataset, data)
        found.append(run.task.validate(params, run.mesh))
    (scores, exhibit), (other_scores, other) = found
    assert set(scores) == {
        "val/si_sdri",
        *(f"val/si_sdri_{rule}/2_sources" for rule in ("none", "limit", "normalise")),
    }
    for name, value in scores.items():
        np.testing.assert_allclose(other_scores[name], value, atol=1e-3)
    assert list(exhibit.pictures) == ["2_sources/0"]
    assert len(exhibit.sounds) == 5 and exhibit.sounds.keys() == other.sounds.keys()
    for name, wave_T in exhibit.sounds.items():
        assert wave_T.shape == (4000,)
        np.testing.assert_allclose(other.sounds[name], wave_T, atol=1e-5)


def test_a_source_without_sound_has_no_part_in_the_mean():
    assert mean_score(np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, 7.0]])) == 3
    assert np.isnan(mean_score(np.full((2, 2), np.nan)))


@pytest.mark.parametrize("size, rms", [("debug", 1.0), ("paper_debug", 0.1)])
def test_mixtures_have_the_loudness_that_the_network_learns_from(
    tiny_dataset: Path, size: str, rms: float, monkeypatch: pytest.MonkeyPatch
):
    """For the loss and for the network, which is not run here."""
    heard = []

    def masks(net: object, params: dict, power_BFN: jax.Array, text_BPLC: jax.Array, _: object):
        heard.append(power_BFN)
        return jnp.zeros((*text_BPLC.shape[:2], *power_BFN.shape[1:])), {}

    monkeypatch.setattr(separator_task, "training_masks", masks)
    run = tiny_run.start(tiny_dataset, model__size=size, loss__magnitude_l1=1.0)
    batch, constants = next(run.batches(0)), jax.device_get(run.constants)
    key = jax.random.key(0)
    targets = make_targets(run.task, batch, key)
    spec = run.task.net.stft
    wave_BT = istft(targets["mix"], spec, run.task.samples)
    assert np.sqrt(np.mean(np.square(wave_BT))) == pytest.approx(rms, rel=0.3)
    _, metrics = run.task.loss({}, batch, constants, key)
    np.testing.assert_allclose(heard[0], np.abs(targets["mix"]) ** 2, rtol=1e-5)
    # Silent masks are wrong by the target.
    expected = magnitude_l1(
        targets["target"], jnp.zeros(targets["target"].shape), targets["mix"][:, None]
    )
    total, weight = metrics["loss/magnitude_l1/single"]
    single = np.asarray(expected)[np.asarray(targets["possible"] & ~targets["is_pair"])]
    assert total / weight == pytest.approx(single.mean(), rel=1e-5)


def test_records_of_another_rate_are_refused(tiny_dataset: Path):
    with pytest.raises(RecordError, match="records at 16000 Hz, but sample_rate_hz=8000"):
        tiny_run.start(tiny_dataset, sample_rate_hz=8000)


def test_clips_of_an_example_on_average(tiny_dataset: Path):
    run = tiny_run.start(tiny_dataset, mix__counts__2=1.0, mix__counts__4=3.0)
    assert run.task.clips_per_example == pytest.approx(3.5)


def _start_paper(folder: Path, data: int) -> training_run.Run:
    return tiny_run.start(folder, data, model__size="paper_debug", optim__b2=0.9)


def _level(run: training_run.Run, batch: dict, step: int) -> np.ndarray:
    """What the network sees of a batch: 65 bins, filled up to 96."""
    draw = jax.jit(functools.partial(separator_task.make_targets, run.task))
    targets = draw(batch, step_key(jax.device_get(run.key), step))
    level_BFN = np.log1p(np.abs(targets["mix"]))
    return np.pad(level_BFN, ((0, 0), (0, 31), (0, 0)))


def test_batch_normalisation_is_measured_by_the_loss(tiny_dataset: Path):
    run = _start_paper(tiny_dataset, 1)
    params, batch = jax.jit(run.task.init)(jax.random.key(0)), next(run.batches(0))
    key = step_key(jax.device_get(run.key), 0)
    _, metrics = jax.jit(run.task.loss)(params, batch, jax.device_get(run.constants), key)
    level = _level(run, batch, 0)
    mean, weight = metrics["measured/input_norm/mean"]
    np.testing.assert_allclose(mean, [level.mean()], rtol=1e-4)
    np.testing.assert_allclose(metrics["measured/input_norm/var"][0], [level.var()], rtol=1e-4)
    statistics = {name.removeprefix("measured/") for name in metrics if "measured/" in name}
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    names = {"/".join(key.key for key in path) for path in paths}
    assert weight == 1 and statistics == {n for n in names if n.endswith(("/mean", "/var"))}


@pytest.mark.slow
def test_batch_normalisation_trains(tiny_dataset: Path):
    """What it measures is of all devices' rows and enters the state; the loss falls."""
    run = _start_paper(tiny_dataset, 2)
    step_fn, batch, losses = training_run.jit_step(run), next(run.batches(0)), []
    init = jax.jit(lambda key: init_state(run.task.init(key), run.tx), out_shardings=run.layout)
    state = init(jax.random.key(0))
    for _ in range(8):
        rows = sharding.shard_batch(batch, run.mesh)
        state, metrics = step_fn(state, rows, run.constants, run.key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    norm, level = jax.device_get(state.params["input_norm"]), _level(run, batch, 7)
    np.testing.assert_allclose(norm["mean"], [level.mean()], rtol=1e-4)
    np.testing.assert_allclose(norm["var"], [level.var()], rtol=1e-4)
    scores, _ = run.task.validate(
        jax.device_put(state.ema, sharding.replicated(run.mesh)), run.mesh
    )
    assert np.isfinite(scores["val/si_sdri"])
