"""Separation measures in dB: SI-SDR, SNR and their improvement over the mixture.

All functions take float waveforms with time on the last axis; leading axes are a batch and
broadcast against each other (stems `[S, T]` against one mixture `[T]`). They compute in float32,
run under jit, and share these conventions:

- A result lies in [-LIMIT_DB, LIMIT_DB]: beyond it a float32 sum holds only rounding noise.
  Identical signals give +LIMIT_DB; a silent estimate of a sounding reference gives -LIMIT_DB in
  SI-SDR and 0 dB in SNR.
- A silent reference gives NaN, because no ratio is defined: average with `jnp.nanmean`.
- NaN or infinite samples give NaN.
"""

import jax
import jax.numpy as jnp

LIMIT_DB = 100.0

# Below this share of the peak, what is left of a signal after its mean is taken out is rounding
# of float32 (24 bits), not sound.
_SILENCE = 1e-6


def si_sdr(estimate_T: jax.Array, reference_T: jax.Array) -> jax.Array:
    """Returns the scale-invariant signal-to-distortion ratio, both signals made zero-mean.

    Args:
        estimate_T: separated waveform, float [..., T], any scale.
        reference_T: true waveform, float [..., T], any scale; constant counts as silent.

    Returns:
        float32 [...] in dB, within +-LIMIT_DB, NaN where the reference is silent.

    Raises:
        ValueError: if the two lengths T differ or are zero.

    Source: Le Roux, Wisdom, Erdogan, Hershey, "SDR - half-baked or well done?", ICASSP 2019
    (arXiv 1811.02508).
    """
    estimate, reference = _check(estimate_T, reference_T)
    finite = _all_finite(estimate, reference)
    reference, silent = _unit_zero_mean(reference)
    estimate, _ = _unit_zero_mean(estimate)
    energy = _energy(reference)
    # The second projection takes out what rounding left of the reference in the noise.
    target = _project(estimate, reference, energy)
    noise = estimate - target
    rest = _project(noise, reference, energy)
    score_db = ratio_db(_energy(target + rest), _energy(noise - rest))
    return jnp.where(finite & ~jnp.squeeze(silent, -1), score_db, jnp.nan)


def snr(estimate_T: jax.Array, reference_T: jax.Array) -> jax.Array:
    """Returns the signal-to-noise ratio |reference|^2 / |reference - estimate|^2.

    Unlike SI-SDR it counts a wrong gain and a wrong offset as error.

    Args:
        estimate_T: separated waveform, float [..., T], on the reference's scale.
        reference_T: true waveform, float [..., T].

    Returns:
        float32 [...] in dB, within +-LIMIT_DB, NaN where the reference is silent.

    Raises:
        ValueError: if the two lengths T differ or are zero.

    Source: Le Roux et al., ICASSP 2019 (arXiv 1811.02508), the SNR that SI-SDR is contrasted with.
    """
    estimate, reference = _check(estimate_T, reference_T)
    finite = _all_finite(estimate, reference)
    peak = jnp.max(jnp.abs(reference), axis=-1, keepdims=True)
    scale = jnp.where(peak > 0, peak, 1.0)  # squares of very quiet signals would underflow
    score_db = ratio_db(_energy(reference / scale), _energy((reference - estimate) / scale))
    return jnp.where(finite & (jnp.squeeze(peak, -1) > 0), score_db, jnp.nan)


def si_sdr_improvement(
    estimate_T: jax.Array, reference_T: jax.Array, mixture_T: jax.Array
) -> jax.Array:
    """Returns SI-SDR of the estimate minus SI-SDR of the unprocessed mixture.

    Args:
        estimate_T: separated waveform, float [..., T].
        reference_T: true waveform, float [..., T].
        mixture_T: input of the separator, float [..., T].

    Returns:
        float32 [...] in dB, within +-2 LIMIT_DB, NaN where the reference is silent.

    Raises:
        ValueError: if the lengths T differ or are zero.

    Source: Luo and Mesgarani, "Conv-TasNet", IEEE/ACM TASLP 2019 (arXiv 1809.07454), SI-SNRi.
    """
    return si_sdr(estimate_T, reference_T) - si_sdr(mixture_T, reference_T)


def snr_improvement(
    estimate_T: jax.Array, reference_T: jax.Array, mixture_T: jax.Array
) -> jax.Array:
    """Returns SNR of the estimate minus SNR of the unprocessed mixture.

    Args:
        estimate_T: separated waveform, float [..., T], on the reference's scale.
        reference_T: true waveform, float [..., T].
        mixture_T: input of the separator, float [..., T].

    Returns:
        float32 [...] in dB, within +-2 LIMIT_DB, NaN where the reference is silent.

    Raises:
        ValueError: if the lengths T differ or are zero.

    Source: the SNR of Le Roux et al., ICASSP 2019 (arXiv 1811.02508), as a difference.
    """
    return snr(estimate_T, reference_T) - snr(mixture_T, reference_T)


def _check(estimate_T: jax.Array, reference_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    estimate = jnp.asarray(estimate_T, jnp.float32)
    reference = jnp.asarray(reference_T, jnp.float32)
    lengths = [x.shape[-1] if x.ndim else 0 for x in (estimate, reference)]
    if lengths[0] != lengths[1] or not lengths[0]:
        raise ValueError(f"need equal lengths T > 0 on the last axis, got {lengths} samples")
    shape = jnp.broadcast_shapes(estimate.shape, reference.shape)
    return jnp.broadcast_to(estimate, shape), jnp.broadcast_to(reference, shape)


def _all_finite(estimate: jax.Array, reference: jax.Array) -> jax.Array:
    """Asked on the way in, because minimum and maximum of XLA may drop a NaN on CPU."""
    return jnp.all(jnp.isfinite(estimate) & jnp.isfinite(reference), axis=-1)


def _unit_zero_mean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scales to peak 1 without mean; also says where there was no sound, as [..., 1]."""
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(peak > 0, peak, 1.0)
    # Twice: the first float32 mean of a large offset is itself wrong in its last bits.
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    centred = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    silent = centred <= _SILENCE
    return jnp.where(silent, 0.0, x / jnp.where(silent, 1.0, centred)), silent


def _project(x: jax.Array, reference: jax.Array, energy: jax.Array) -> jax.Array:
    """Returns the part of `x` along `reference`, whose energy is given (zero where silent)."""
    dot = jnp.sum(x * reference, axis=-1)
    return (dot / jnp.where(energy > 0, energy, 1.0))[..., None] * reference


def _energy(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=-1)


def ratio_db(signal: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns 10 log10(signal / noise) of energies >= 0, clipped; -LIMIT_DB for a zero signal."""
    tiny = jnp.finfo(signal.dtype).tiny
    ratio = 10.0 * (jnp.log10(jnp.maximum(signal, tiny)) - jnp.log10(jnp.maximum(noise, tiny)))
    return jnp.clip(jnp.where(signal == 0, -LIMIT_DB, ratio), -LIMIT_DB, LIMIT_DB)
