"""Resampling as torchaudio does it, for networks that were trained on its results.

Everything else uses `opensep_jax.signal.resampling.resample`, whose filter is far longer.
"""

import math

import numpy as np
import scipy.signal

_ZEROS = 6  # zero crossings on each side of the filter: torchaudio's lowpass_filter_width
_ROLLOFF = 0.99  # cutoff over the lower of the two Nyquist frequencies


def resample_sinc(samples_CT: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Changes the sample rate with a Hann-windowed sinc of a few zero crossings.

    Args:
        samples_CT: float32 [C, T]; silence is assumed around it.
        from_hz: rate of the input, Hz.
        to_hz: rate of the result, Hz.

    Returns:
        float32 [C, ceil(T * to_hz / from_hz)]; the input itself where nothing changes.

    Source: torchaudio 2.11, `transforms.Resample` with its defaults; equal to about 4e-5 of the
        signal, as its filter is partly computed in float32.
    """
    if from_hz == to_hz:
        return samples_CT
    divisor = math.gcd(from_hz, to_hz)
    down, up = from_hz // divisor, to_hz // divisor
    length = -(-samples_CT.shape[1] * up // down)
    # On the grid of rate from_hz * up, in units of zero crossings.
    cutoff = _ROLLOFF * min(down, up) / (down * up)
    half = math.ceil(_ZEROS / cutoff / down) * down
    x = np.clip(np.arange(-half, half + 1) * cutoff, -_ZEROS, _ZEROS)
    filter_T = np.sinc(x) * np.cos(np.pi * x / (2 * _ZEROS)) ** 2 * cutoff * up
    resampled_CT = scipy.signal.upfirdn(filter_T, samples_CT, up, down, axis=1)
    delay = half // down
    return resampled_CT[:, delay : delay + length].astype(np.float32)
