"""Losses of the separator, each a value per prompt; all in float32."""

import jax
import jax.numpy as jnp


def negative_snr(
    target_BPFN: jax.Array, mask_BPFN: jax.Array, mix_B1FN: jax.Array, floor: float = 1e-3
) -> jax.Array:
    """Negative signal-to-noise ratio in dB over the complex spectrogram.

    Parseval makes it the SNR of the waveform up to the window's overlap, without an inverse STFT.
    `floor` (of the target's energy) is added to the error, so no more than 30 dB is asked for. A
    target fainter than that below its mixture counts as if it were as loud, so silence is asked
    for within the same bounds.

    Args:
        target_BPFN: complex spectra of the targets.
        mask_BPFN: float32 masks.
        mix_B1FN: complex spectra of the mixtures.
        floor: lowest relative error that still matters.

    Returns:
        dB, float32 [B, P], minus the (bounded) SNR. Source: ours; perch bounds its waveform SNR
        likewise.
    """
    error = target_BPFN - mask_BPFN * mix_B1FN
    axes = (-2, -1)
    error_BP = jnp.sum(jnp.real(error) ** 2 + jnp.imag(error) ** 2, axis=axes)
    energy_BP = jnp.sum(jnp.real(target_BPFN) ** 2 + jnp.imag(target_BPFN) ** 2, axis=axes)
    mix_B1 = jnp.sum(jnp.real(mix_B1FN) ** 2 + jnp.imag(mix_B1FN) ** 2, axis=axes)
    energy_BP = jnp.maximum(energy_BP, jnp.maximum(floor * mix_B1, 1e-8))
    return 10 * jnp.log10((error_BP + floor * energy_BP) / energy_BP)


def magnitude_l1(target_BPFN: jax.Array, mask_BPFN: jax.Array, mix_B1FN: jax.Array) -> jax.Array:
    """Magnitude L1 weighted by the mixture's log magnitude, mean over bins and frames, [B, P].

    Source: microsoft/BiModalAudioSeparation (weight clip(log1p(mag), 1e-3, 10)); it depends on
    the scale of the mixture, which `make_targets` brings to the network's `training_rms`.
    """
    mag_B1FN = jnp.abs(mix_B1FN)
    weight_B1FN = jnp.clip(jnp.log1p(mag_B1FN), 1e-3, 10.0)
    error = jnp.abs(mask_BPFN * mag_B1FN - jnp.abs(target_BPFN))
    return jnp.mean(weight_B1FN * error, axis=(-2, -1))


LOSSES = {"negative_snr": negative_snr, "magnitude_l1": magnitude_l1}
