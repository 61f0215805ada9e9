"""Random changes of what a captioner hears, on the device: rooms, microphones, noise and holes.

Like `mix`, pure functions of arrays and of one key per example.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.data import mix


@dataclasses.dataclass(frozen=True)
class MelAugment:
    """Ranges of the random changes.

    Attributes:
        tilt: largest gain of the sample before, added to every clip: a slope of its spectrum.
        echo: largest gain of one reflection, added to every clip.
        echo_s: longest delay of the reflection, seconds.
        eq_db: standard deviation in dB of a smooth random response to the mixture (0: off).
        noise_db: lowest and highest level of white noise, dB relative to the mixture.
        mask_bands: most neighbouring mel bands that are blanked.
        mask_frames: most neighbouring frames that are blanked.
        masks: how often either is blanked.
    """

    tilt: float
    echo: float
    echo_s: float
    eq_db: float
    noise_db: tuple[float, float]
    mask_bands: int
    mask_frames: int
    masks: int


def random_room(
    sources_BST: jax.Array, keys_B: jax.Array, augment: MelAugment, sample_rate_hz: int
) -> jax.Array:
    """Tilts the spectrum of each clip and adds one reflection to it, [B, S, T]; RMS is kept."""
    longest = max(1, round(augment.echo_s * sample_rate_hz))

    def one(wave_T, key):
        tilt_key, gain_key, delay_key = jax.random.split(key, 3)
        tilt = jax.random.uniform(tilt_key, minval=-augment.tilt, maxval=augment.tilt)
        gain = jax.random.uniform(gain_key, minval=-augment.echo, maxval=augment.echo)
        delay = jax.random.randint(delay_key, (), 1, longest + 1)
        padded = jnp.pad(wave_T, (longest, 0))
        samples = len(wave_T)
        before_T = padded[longest - 1 : longest - 1 + samples]
        echo_T = jax.lax.dynamic_slice(padded, (longest - delay,), (samples,))
        out_T = wave_T + tilt * before_T + gain * echo_T
        power, changed = jnp.mean(wave_T**2), jnp.mean(out_T**2)
        return out_T * jnp.sqrt(power / jnp.maximum(changed, 1e-12))

    def example(sources_ST, key):
        keys_S = jax.random.split(jax.random.fold_in(key, mix.ROOM), len(sources_ST))
        return jax.vmap(one)(sources_ST, keys_S)

    return jax.vmap(example)(sources_BST, keys_B)


def random_microphone(
    power_BNM: jax.Array, white_M: np.ndarray, keys_B: jax.Array, augment: MelAugment
) -> jax.Array:
    """White noise and a smooth response of frequency on mel power, float32 [B, N, M].

    Args:
        power_BNM: of mixtures whose RMS is one.
        white_M: mean power of white noise whose RMS is one.
        keys_B: one key per example.
        augment: ranges.
    """
    bands = power_BNM.shape[-1]

    def noise(key):
        level_key, cell_key = jax.random.split(jax.random.fold_in(key, mix.NOISE))
        low, high = augment.noise_db
        level = 10 ** (jax.random.uniform(level_key, minval=low, maxval=high) / 10)
        return level * jax.random.exponential(cell_key, power_BNM.shape[1:])

    power_BNM = power_BNM + white_M[None, None] * jax.vmap(noise)(keys_B)
    response_BM = mix.random_eq(keys_B, 1, bands, augment.eq_db)[:, 0, :, 0]
    return power_BNM * response_BM[:, None] ** 2


def random_holes(level_BNM: jax.Array, keys_B: jax.Array, augment: MelAugment) -> jax.Array:
    """Blanks random runs of bands and of frames with the mean level of the example.

    Source: SpecAugment (Park et al. 2019), without its warping.
    """
    frames, bands = level_BNM.shape[1:]

    def run(key, length, most):
        size_key, start_key = jax.random.split(key)
        size = jax.random.randint(size_key, (), 0, most + 1)
        start = jax.random.randint(start_key, (), 0, length - size + 1)
        place = jnp.arange(length)
        return (place >= start) & (place < start + size)

    def one(level_NM, key):
        keys = jax.random.split(jax.random.fold_in(key, mix.MASK), 2 * augment.masks)
        hole_NM = jnp.zeros(level_NM.shape, bool)
        for band_key, frame_key in zip(keys[::2], keys[1::2], strict=True):
            hole_NM |= run(band_key, bands, min(augment.mask_bands, bands))[None]
            hole_NM |= run(frame_key, frames, min(augment.mask_frames, frames))[:, None]
        return jnp.where(hole_NM, jnp.mean(level_NM), level_NM)

    return jax.vmap(one)(level_BNM, keys_B)
