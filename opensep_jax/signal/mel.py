"""Log-mel features inside jit: what every captioner hears, each with settings of its own.

A front end composes the two functions, as in `decibels(mel_power(wave_T, WHISPER)[..., :-1, :])`:
networks differ in whether the last frame is dropped before or after the logarithm, and in scale.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Mel:
    """Settings of a mel spectrogram: Slaney's mel scale, triangles of equal area.

    Attributes:
        sample_rate_hz: rate that the filters are made for. A published network may use filters
            made for another rate than that of the sound it is given.
        n_fft_samples: transform length, even; the window is a periodic Hann window of this length.
        hop_samples: distance of frames.
        bands: number of mel bands M.
        low_hz: lower edge of the first band.
        high_hz: upper edge of the last band.
        pad_mode: what lies outside of the signal, "reflect" or "constant" (zeros); frames are
            centred.
    """

    sample_rate_hz: int
    n_fft_samples: int
    hop_samples: int
    bands: int
    low_hz: float
    high_hz: float
    pad_mode: str = "reflect"

    def __post_init__(self):
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"mel bands from {self.low_hz} Hz to {self.high_hz} Hz do not lie within 0 and "
                f"half of sample_rate_hz={self.sample_rate_hz}"
            )

    def frames(self, samples: int) -> int:
        """Number of frames N of a signal of `samples` samples."""
        return samples // self.hop_samples + 1

    @property
    def filters_FM(self) -> np.ndarray:
        """Weights of the bins in each band, float32 [n_fft_samples // 2 + 1, M]."""
        import librosa  # lazily: importing this module stays cheap

        filters_MF = librosa.filters.mel(
            sr=self.sample_rate_hz,
            n_fft=self.n_fft_samples,
            n_mels=self.bands,
            fmin=self.low_hz,
            fmax=self.high_hz,
        )
        return np.ascontiguousarray(filters_MF.T)


def mel_power(wave_T: jax.Array, spec: Mel, filters_FM: jax.Array | None = None) -> jax.Array:
    """Power in mel bands, as `librosa.feature.melspectrogram`.

    Args:
        wave_T: float32 [..., T], any range; with pad_mode "reflect" more than n_fft / 2 samples.
        spec: the settings.
        filters_FM: float32 [F, M], filters to use instead of those of `spec`, such as a
            checkpoint's own.

    Returns:
        float32 [..., N, M], N = T // hop + 1, not negative. Source: librosa 0.11.
    """
    filters_FM = spec.filters_FM if filters_FM is None else filters_FM
    half, size = spec.n_fft_samples // 2, spec.n_fft_samples
    padding = [(0, 0)] * (wave_T.ndim - 1) + [(half, half)]
    padded_T = jnp.pad(wave_T, padding, mode=spec.pad_mode)
    starts_N = np.arange(spec.frames(wave_T.shape[-1])) * spec.hop_samples
    frames_NW = padded_T[..., starts_N[:, None] + np.arange(size)]
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    spectrum_NF = jnp.fft.rfft(frames_NW * window_W.reshape((1,) * (frames_NW.ndim - 1) + (size,)))
    power_NF = jnp.real(spectrum_NF) ** 2 + jnp.imag(spectrum_NF) ** 2
    # In full precision: the reduced one of accelerators costs decibels in quiet bands.
    return jnp.matmul(power_NF, filters_FM, precision=jax.lax.Precision.HIGHEST)


def decibels(power_NM: jax.Array, floor: float = 1e-10, top_db: float | None = None) -> jax.Array:
    """Power to decibels, as `librosa.power_to_db`.

    Args:
        power_NM: float32 [..., N, M], not negative.
        floor: lower powers are raised to this one.
        top_db: where given, nothing lies further than this below the loudest cell of a clip [N, M].

    Returns:
        float32 [..., N, M]; 0 dB is a power of 1. Source: librosa 0.11.
    """
    level_NM = 10.0 * jnp.log10(jnp.maximum(power_NM, floor))
    if top_db is not None:
        loudest = jnp.max(level_NM, axis=(-2, -1), keepdims=True)
        level_NM = jnp.maximum(level_NM, loudest - top_db)
    return level_NM
