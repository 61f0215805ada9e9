"""Rooms, microphones and holes: within their ranges, and each example for itself."""

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.data.mel_augment import MelAugment, random_holes, random_microphone, random_room
from opensep_jax.data.mix import example_keys

AUGMENT = MelAugment(
    tilt=0.4, echo=0.5, echo_s=0.02, eq_db=0.0, noise_db=(-20.0, -10.0), mask_bands=4,
    mask_frames=6, masks=1,
)  # fmt: skip
KEYS = example_keys(jax.random.key(0), jnp.arange(16))


def test_a_room_keeps_the_level_and_adds_what_came_before():
    wave = np.zeros((16, 2, 800), np.float32)
    wave[:, :, 100] = 1.0
    made = np.asarray(jax.jit(lambda w: random_room(w, KEYS, AUGMENT, 8000))(wave))
    np.testing.assert_allclose((made**2).mean(-1), (wave**2).mean(-1), rtol=1e-5)
    scaled = made / made[:, :, 100:101]  # impulse responses
    assert (np.count_nonzero(np.abs(scaled) > 1e-6, axis=-1) <= 3).all()
    assert np.abs(scaled[:, :, 101]).max() <= 0.9 + 1e-5  # tilt, and an echo of one sample
    later = np.abs(scaled[:, :, 102:])
    assert 0.3 < later.max() <= 0.5 + 1e-5 and not later[:, :, 160:].any()
    assert np.ptp(scaled[:, :, 101]) > 0.3
    silent = random_room(jnp.zeros((16, 1, 800)), KEYS, AUGMENT, 8000)
    assert np.isfinite(silent).all()


def test_noise_has_the_level_that_was_asked_for():
    made = random_microphone(jnp.zeros((16, 200, 8)), np.full(8, 3.0, np.float32), KEYS, AUGMENT)
    level_db = 10 * np.log10(np.asarray(made).mean((1, 2)) / 3)
    assert -20.3 < level_db.min() < -18 and -12 < level_db.max() < -9.7


def test_holes_are_blank_and_small():
    level = np.random.default_rng(0).standard_normal((16, 30, 20)).astype(np.float32)
    made = np.asarray(random_holes(level, KEYS, AUGMENT))
    hole = made != level
    assert hole.any()
    for row, blank, mean in zip(hole, made, level.mean((1, 2)), strict=True):
        np.testing.assert_allclose(blank[row], mean, atol=1e-6)
        bands, frames = row.all(0), row.all(1)
        assert bands.sum() <= 4 and frames.sum() <= 6
        np.testing.assert_array_equal(row, bands[None] | frames[:, None])


def test_an_example_does_not_depend_on_its_row():
    order = np.random.default_rng(0).permutation(16)
    power = np.random.default_rng(1).uniform(size=(16, 30, 20)).astype(np.float32)
    white = np.ones(20, np.float32)
    for change in (
        lambda x, keys: random_microphone(x, white, keys, AUGMENT),
        lambda x, keys: random_holes(x, keys, AUGMENT),
    ):
        np.testing.assert_allclose(
            change(power[order], KEYS[order]), change(power, KEYS)[order], rtol=1e-6
        )
