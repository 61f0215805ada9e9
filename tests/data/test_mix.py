"""Levels, targets and texts of training mixtures: sums are exact, rows are independent."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs import debug
from opensep_jax.data import mix
from opensep_jax.data.mix import Augment
from opensep_jax.tasks import build_task
from opensep_jax.training.separator_task import make_targets

PLAIN = Augment(level_db=5.0, speed=0.0, eq_db=0.0)
SAMPLES = 2000


def _clips(batch: int, slots: int, samples: int = SAMPLES) -> np.ndarray:
    """Noise of very different levels, int16 [B, S, T]."""
    rng = np.random.default_rng(0)
    level = 10 ** rng.uniform(1.5, 3.5, (batch, slots, 1))
    return (level * rng.standard_normal((batch, slots, samples))).astype(np.int16)


def _keys(ids: np.ndarray, seed: int = 3) -> jax.Array:
    return mix.example_keys(jax.random.key(seed), jnp.asarray(ids, jnp.int32))


def _draw(clips_BST, count_B, ids_B, augment=PLAIN, samples=SAMPLES) -> np.ndarray:
    draw = jax.jit(mix.draw_sources, static_argnums=(3, 4))
    return np.asarray(draw(clips_BST, jnp.asarray(count_B), _keys(ids_B), augment, samples))


def _decibel(ratio: np.ndarray) -> np.ndarray:
    return 20 * np.log10(ratio)


# Sources


def test_levels_stay_within_the_range_of_equal_loudness():
    count_B = np.array([4, 3, 2] * 100)
    sources_BST = _draw(_clips(300, 4), count_B, np.arange(300))
    rms_BS = np.sqrt(np.mean(sources_BST**2, axis=-1))
    mixed_BS = np.arange(4) < count_B[:, None]
    assert not rms_BS[~mixed_BS].any()
    db = _decibel((rms_BS * np.sqrt(count_B)[:, None])[mixed_BS])
    assert -5 - 1e-3 <= db.min() < -4.8 and 4.8 < db.max() <= 5 + 1e-3
    assert abs(db.mean()) < 0.3  # uniform: its error is 0.1
    # So a mixture has an RMS of about one, however many clips it has.
    mixture_rms_B = np.sqrt(np.mean(sources_BST.sum(1) ** 2, axis=-1))
    for count in (2, 3, 4):
        assert 0.9 < np.sqrt(np.mean(mixture_rms_B[count_B == count] ** 2)) < 1.2
    polarity = np.sign(np.sum(sources_BST * _clips(300, 4), axis=-1))[mixed_BS]
    assert 0.4 < np.mean(polarity > 0) < 0.6


def test_silent_clips_stay_silent_and_finite():
    clips_BST = _clips(2, 3)
    clips_BST[0, 1] = 0
    sources_BST = _draw(clips_BST, [3, 3], [0, 1])
    assert np.isfinite(sources_BST).all() and not sources_BST[0, 1].any()


def test_float_clips_are_taken_as_they_are():
    clips_BST = _clips(2, 3)
    as_float = clips_BST.astype(np.float32) / 32768
    np.testing.assert_array_equal(_draw(clips_BST, [3, 3], [0, 1]), _draw(as_float, [3, 3], [0, 1]))


def test_a_result_depends_on_the_example_not_on_its_row():
    augment = Augment(level_db=5.0, speed=0.06, eq_db=2.0)
    clips_BST = _clips(6, 4, augment.raw_samples(SAMPLES))
    count_B, ids_B = np.array([2, 3, 4, 4, 3, 2]), np.array([100, 7, 8, 9, 10, 3])
    order = np.array([3, 5, 0, 1, 4, 2])
    members_QS = mix.candidate_targets(4, "all")

    @jax.jit
    def run(clips_BST, count_B, ids_B):
        keys_B = mix.example_keys(jax.random.key(3), ids_B)
        return (
            mix.draw_sources(clips_BST, count_B, keys_B, augment, SAMPLES),
            mix.random_eq(keys_B, 4, 33, 2.0),
            *mix.choose_targets(members_QS, count_B, keys_B, 3),
        )

    def of_rows(rows):
        return jax.device_get(run(clips_BST[rows], count_B[rows], ids_B[rows]))

    straight, permuted, among_others = (of_rows(rows) for rows in (np.arange(6), order, [2] * 6))
    for a, b, c in zip(straight, permuted, among_others, strict=True):
        np.testing.assert_array_equal(a[order], b)
        np.testing.assert_array_equal(c, np.broadcast_to(a[2], c.shape))


def test_random_changes_are_independent_of_each_other():
    """No two uses of an example's key share random bits."""
    keys_B = _keys(np.arange(2000))
    samples, slots = 64, 2
    clips_BST = np.ones((2000, slots, samples), np.float32)
    members_QS = mix.candidate_targets(slots, "none")

    @jax.jit
    def run(keys_B):
        return (
            mix.draw_sources(clips_BST, jnp.full(2000, slots), keys_B, PLAIN, samples)[..., 0],
            mix.random_eq(keys_B, slots, 5, 2.0)[:, :, 0, 0],
            mix.choose_targets(members_QS, jnp.full(2000, 3), keys_B, 1)[0][:, 0],
        )

    level_BS, eq_BS, index_B = jax.device_get(run(keys_B))
    drawn = [
        *np.log(np.abs(level_BS)).T,
        *np.sign(level_BS).T,
        *np.log(eq_BS).T,
        index_B.astype(float),
    ]
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 0.1  # four standard errors are 0.09


def test_speed_moves_a_sine_by_its_factor():
    """Reading a clip faster raises its pitch; nothing else changes."""
    rate_hz, sine_hz, samples, speed = 16000, 1000.0, 8000, 0.25
    augment = Augment(level_db=0.0, speed=speed, eq_db=0.0)
    raw = augment.raw_samples(samples)
    clip_T = np.sin(2 * np.pi * sine_hz * np.arange(raw) / rate_hz).astype(np.float32)
    clips_BST = np.broadcast_to(clip_T, (40, 2, raw))
    sources_BST = _draw(clips_BST, np.full(40, 2), np.arange(40), augment, samples)
    spectrum = np.abs(np.fft.rfft(sources_BST * np.hanning(samples), n=4 * samples))
    factor = spectrum.argmax(-1) * rate_hz / (4 * samples) / sine_hz
    assert 1 / (1 + speed) - 1e-3 <= factor.min() < 0.85 and 1.18 < factor.max() < 1 + speed + 1e-3
    assert abs(np.log(factor).mean()) < 0.06  # symmetric in log, standard error 0.015
    same = mix._change_speed(jnp.asarray(clip_T), 1.0, samples)
    np.testing.assert_allclose(same, clip_T[:samples])
    half = mix._change_speed(jnp.arange(100.0), jnp.float32(0.5), 20)
    np.testing.assert_allclose(half, np.arange(20) / 2)


@pytest.mark.parametrize("speed", [0.0, 0.06, 0.5])
def test_raw_clips_are_long_enough_for_the_highest_speed(speed):
    raw = Augment(level_db=0.0, speed=speed, eq_db=0.0).raw_samples(SAMPLES)
    last = int((SAMPLES - 1) * (1 + speed))
    assert raw == SAMPLES if not speed else last + 1 < raw < last + 5


def test_random_eq_has_the_asked_spread_and_is_smooth():
    random_eq = jax.jit(mix.random_eq, static_argnums=(1, 2, 3))
    response = np.asarray(random_eq(_keys(np.arange(200)), 4, 513, 2.0))
    assert response.shape == (200, 4, 513, 1) and response.dtype == np.float32
    db = _decibel(response[..., 0]).reshape(-1, 513)
    assert abs(db.mean()) < 0.15
    assert 1.7 < np.sqrt(np.mean(db**2)) < 2.5
    assert np.abs(np.diff(db[:, 8:], axis=1)).max() < 1.0  # from bin to bin, above the lowest


# Targets


def _target_sums(members_QS, sources_ST):
    return members_QS.astype(np.float32) @ sources_ST


@pytest.mark.parametrize("pairs, factor", [("none", None), ("complementary", 1), ("all", 3)])
def test_targets_sum_to_the_mixture(pairs, factor):
    sources_ST = _draw(_clips(1, 4), [4], [5])[0]
    mixture_T = sources_ST.sum(0)
    members_QS = mix.candidate_targets(4, pairs)
    targets_QT = _target_sums(members_QS, sources_ST)
    scale = np.abs(mixture_T).max()
    np.testing.assert_allclose(targets_QT[:4].sum(0), mixture_T, atol=1e-6 * scale)
    if factor:
        np.testing.assert_allclose(
            targets_QT[4:].sum(0), factor * mixture_T, atol=1e-6 * factor * scale
        )


def test_candidates_by_hand():
    assert mix.candidate_targets(3, "complementary").astype(int).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [1, 1, 0],
    ]
    assert mix.candidate_targets(4, "all")[4:].sum(1).tolist() == [2] * 6
    assert len({tuple(row) for row in mix.candidate_targets(4, "all").tolist()}) == 10
    assert len(mix.candidate_targets(6, "complementary")) == 6 + 3
    with pytest.raises(ValueError, match="mix.pairs='both'.*none, complementary, all"):
        mix.candidate_targets(4, "both")


def test_all_candidates_in_their_order_where_none_are_drawn():
    members_QS = mix.candidate_targets(4, "complementary")
    count_B = jnp.array([2, 3, 4])
    index_BP, possible_BP = mix.choose_targets(members_QS, count_B, _keys(np.arange(3)), 0)
    np.testing.assert_array_equal(index_BP, np.broadcast_to(np.arange(6), (3, 6)))
    # Two clips: the pair is the mixture itself. Three: (0, 1) is a target, (2, 3) is not there.
    assert np.asarray(possible_BP).astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("pairs", ["none", "complementary", "all"])
def test_drawn_targets_are_distinct_and_possible_where_there_are_enough(pairs):
    members_QS = mix.candidate_targets(4, pairs)
    count_B = np.repeat([2, 3, 4], 200)
    keys_B = _keys(np.arange(600))
    _, all_possible = mix.choose_targets(members_QS, jnp.asarray(count_B), keys_B, 0)
    index_BP, possible_BP = mix.choose_targets(members_QS, jnp.asarray(count_B), keys_B, 3)
    index_BP, possible_BP = np.asarray(index_BP), np.asarray(possible_BP)
    assert all(len(set(row)) == 3 for row in index_BP.tolist())
    np.testing.assert_array_equal(
        possible_BP, np.take_along_axis(np.asarray(all_possible), index_BP, 1)
    )
    enough = np.minimum(np.asarray(all_possible).sum(1), 3)
    np.testing.assert_array_equal(possible_BP.sum(1), enough)
    # Every candidate of a full mixture is drawn about equally often.
    often = np.bincount(index_BP[count_B == 4].ravel(), minlength=len(members_QS)) / 600
    assert np.abs(often - 1 / len(members_QS)).max() < 0.06


def test_more_targets_than_candidates_are_refused():
    with pytest.raises(ValueError, match=r"mix.targets=7, but 4 clips .* give 6 targets"):
        mix.choose_targets(mix.candidate_targets(4, "complementary"), jnp.array([4]), _keys([0]), 7)


# Text


@pytest.fixture
def table() -> tuple[np.ndarray, np.ndarray]:
    """States of texts of 3, 1, 5 and 2 tokens: token states [M, 4] and starts."""
    start_V = np.array([0, 3, 4, 9, 11], np.int32)
    states = np.random.default_rng(0).standard_normal((11, 4)).astype(ml_dtypes.bfloat16)
    return states, start_V


def test_gathered_text_is_the_tables(table):
    tokens_MC, start_V = table
    ids = np.array([[0, 3], [2, -1], [-1, -1]], np.int32)
    states, mask = jax.jit(mix.gather_text, static_argnums=3)(tokens_MC, start_V, ids, 4)
    assert states.shape == (3, 8, 4) and mask.shape == (3, 8) and states.dtype == jnp.bfloat16
    assert np.asarray(mask).astype(int).tolist() == [
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],  # five tokens, cut to four
        [0] * 8,
    ]
    for row, expected in enumerate(([0, 1, 2, 9, 10], [4, 5, 6, 7], [])):
        np.testing.assert_array_equal(states[row][mask[row]], tokens_MC[expected])


def test_the_text_of_a_pair_is_that_of_its_clips(table):
    tokens_MC, start_V = table
    members_QS = mix.candidate_targets(4, "complementary")
    text_id_BSK = np.array([[[0, -1], [1, 3], [2, -1], [3, -1]]], np.int32)
    index_BP = jnp.array([[1, 4, 5]])
    ids = mix.target_text_ids(members_QS, index_BP, jnp.asarray(text_id_BSK))
    assert ids.tolist() == [[[1, 3, -1, -1], [0, -1, 1, 3], [2, -1, 3, -1]]]
    states, mask = mix.gather_text(tokens_MC, start_V, ids, 5)
    single, single_mask = mix.gather_text(tokens_MC, start_V, jnp.asarray(text_id_BSK), 5)
    real = [np.asarray(single[0, slot][single_mask[0, slot]]) for slot in range(4)]
    for row, slots in enumerate(([1], [0, 1], [2, 3])):
        np.testing.assert_array_equal(
            states[0, row][mask[0, row]], np.concatenate([real[slot] for slot in slots])
        )


# All together


@functools.cache
def _spectra(folder: Path, targets: int) -> tuple[dict, dict, object]:
    config = debug.get_config()
    config.data.folder = str(folder)
    config.mix.counts.update({"2": 0.3, "3": 0.3, "4": 0.4})
    config.mix.update({"speed": 0.06, "eq_db": 2.0, "targets": targets, "pairs": "all"})
    task = build_task(config)
    batch = next(
        task.batches(
            steps=1, global_batch=16, first_step=0, process=0, processes=1, workers=0, threads=1
        )
    )
    step = jax.jit(functools.partial(make_targets, task))
    return batch, jax.device_get(step(batch, jax.random.key(0))), task


def test_spectra_of_targets_sum_to_the_mixture_with_everything_on(tiny_dataset):
    batch, made, task = _spectra(tiny_dataset, 0)
    mixture, target = made["mix"], made["target"]
    assert mixture.shape == (16, task.net.stft.bins, task.net.stft.frames(task.samples))
    assert np.isfinite(target).all()
    scale = np.abs(mixture).max()
    np.testing.assert_allclose(target[:, :4].sum(1), mixture, atol=1e-6 * scale)
    members_QS = task.members_QS
    for pair in range(4, 10):
        first, second = np.flatnonzero(members_QS[pair])
        np.testing.assert_allclose(
            target[:, pair], target[:, first] + target[:, second], atol=1e-6 * scale
        )
    np.testing.assert_allclose(target[:, 4:].sum(1), 3 * mixture, atol=3e-6 * scale)
    assert set(batch["count"].tolist()) == {2, 3, 4}
    # Clips that are not mixed are no targets, and silent.
    absent = np.arange(4) >= batch["count"][:, None]
    assert not target[:, :4][absent].any() and not made["possible"][:, :4][absent].any()
    assert made["is_pair"].tolist() == [[False] * 4 + [True] * 6] * 16


def test_drawn_targets_are_those_of_the_full_set(tiny_dataset):
    batch, everything, task = _spectra(tiny_dataset, 0)
    _, some, task = _spectra(tiny_dataset, 3)
    index_BP, _ = mix.choose_targets(
        task.members_QS,
        jnp.asarray(batch["count"]),
        mix.example_keys(jax.random.key(0), jnp.asarray(batch["example"])),
        3,
    )
    rows = np.arange(16)[:, None]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    for name in ("target", "text_id", "possible", "is_pair"):
        close(some[name], everything[name][rows, index_BP])
    close(some["mix"], everything["mix"])
    assert some["possible"][batch["count"] > 2].all()
