"""Short-time Fourier transform and its inverse, inside jit, equal to librosa's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Else no program with a spectrogram in it is found again in JAX's compilation cache.
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


@dataclasses.dataclass(frozen=True)
class Stft:
    """Analysis and synthesis settings; frames are centred and the signal is zero-padded.

    Attributes:
        n_fft_samples: window and transform length, even.
        hop_samples: distance of frames; at most half of `n_fft_samples`.
    """

    n_fft_samples: int
    hop_samples: int

    def __post_init__(self):
        if self.n_fft_samples % 2 or not 0 < self.hop_samples <= self.n_fft_samples // 2:
            raise ValueError(
                f"stft.n_fft_samples must be even and stft.hop_samples at most its half, got "
                f"{self.n_fft_samples} and {self.hop_samples}"
            )

    @property
    def bins(self) -> int:
        """Number of frequency bins F."""
        return self.n_fft_samples // 2 + 1

    def frames(self, samples: int) -> int:
        """Number of frames N of a signal of `samples` samples."""
        return samples // self.hop_samples + 1

    @property
    def window(self) -> np.ndarray:
        """Periodic Hann window, float32 [n_fft_samples]."""
        n = np.arange(self.n_fft_samples)
        return (0.5 - 0.5 * np.cos(2 * np.pi * n / self.n_fft_samples)).astype(np.float32)


def stft(wave_T: jax.Array, spec: Stft) -> jax.Array:
    """Complex spectrogram, as `librosa.stft(center=True, pad_mode="constant")`.

    Args:
        wave_T: float32 [..., T], any range.
        spec: window and hop.

    Returns:
        complex64 [..., F, N], N = T // hop + 1. Source: librosa 0.11.
    """
    half, hop, size = spec.n_fft_samples // 2, spec.hop_samples, spec.n_fft_samples
    n_frames = spec.frames(wave_T.shape[-1])
    padded_T = jnp.pad(wave_T, [(0, 0)] * (wave_T.ndim - 1) + [(half, half)])
    index_NW = np.arange(n_frames)[:, None] * hop + np.arange(size)[None, :]
    frames_NW = padded_T[..., index_NW]
    frames_NW = frames_NW * _like(spec.window, frames_NW)
    return jnp.swapaxes(_rfft(frames_NW), -1, -2)


def istft(spectrum_FN: jax.Array, spec: Stft, samples: int) -> jax.Array:
    """Waveform of `samples` samples, as `librosa.istft(center=True, length=samples)`.

    Args:
        spectrum_FN: complex64 [..., F, N].
        spec: window and hop of the analysis.
        samples: length of the result; frames must cover it (`spec.frames(samples) <= N`).

    Returns:
        float32 [..., T]; the exact input of `stft` when the spectrum was not changed.
    """
    hop, size = spec.hop_samples, spec.n_fft_samples
    n_frames = spec.frames(samples)
    spectrum_FN = spectrum_FN[..., :n_frames]
    frames_NW = jnp.fft.irfft(jnp.swapaxes(spectrum_FN, -1, -2), n=size, axis=-1)
    wave_T = _overlap_add(frames_NW * _like(spec.window, frames_NW), hop)
    wave_T = wave_T / _like(np.maximum(_window_power(spec, n_frames), 1e-8), wave_T)
    wave_T = wave_T[..., size // 2 : size // 2 + samples]
    missing = samples - wave_T.shape[-1]
    return jnp.pad(wave_T, [(0, 0)] * (wave_T.ndim - 1) + [(0, max(missing, 0))])


def _rfft(frames_NW: jax.Array) -> jax.Array:
    """`jnp.fft.rfft` of rows where they are.

    Elsewhere than on TPUs XLA gathers the rows of all devices, and each transforms them all.
    """
    return jax.lax.platform_dependent(frames_NW, tpu=jnp.fft.rfft, default=_rfft_in_place)


@jax.custom_vjp
def _rfft_in_place(frames_NW: jax.Array) -> jax.Array:
    return _partitioned_rfft(frames_NW)


def _rfft_forward(frames_NW: jax.Array) -> tuple[jax.Array, None]:
    return _partitioned_rfft(frames_NW), None


def _rfft_backward(_: None, gradient_NF: jax.Array) -> tuple[jax.Array]:
    *lead, bins = gradient_NF.shape
    frames_NW = jax.ShapeDtypeStruct((*lead, 2 * (bins - 1)), jnp.float32)
    return jax.linear_transpose(jnp.fft.rfft, frames_NW)(gradient_NF)


_rfft_in_place.defvjp(_rfft_forward, _rfft_backward)


@custom_partitioning
def _partitioned_rfft(frames_NW: jax.Array) -> jax.Array:
    return jnp.fft.rfft(frames_NW)


def _partition(mesh: Mesh, arguments: tuple, result: object) -> tuple:
    (frames_NW,) = arguments
    leading = frames_NW.sharding.spec[: len(frames_NW.shape) - 1]
    rows = NamedSharding(mesh, PartitionSpec(*leading))
    return mesh, jnp.fft.rfft, rows, (rows,)


_partitioned_rfft.def_partition(
    partition=_partition, sharding_rule="... w -> ... f", need_replication_factors=("w", "f")
)


def _like(values_T: np.ndarray, array: jax.Array) -> np.ndarray:
    """Leading axes for values along the last axis of an array."""
    return values_T.reshape((1,) * (array.ndim - 1) + values_T.shape)


def _overlap_add(frames_NW: jax.Array, hop: int) -> jax.Array:
    """Sum of frames at multiples of `hop`: reshaped adds, no scatter (fast on TPU and CPU)."""
    *lead, n_frames, size = frames_NW.shape
    parts = -(-size // hop)
    pad_width = [(0, 0)] * len(lead) + [(0, 0), (0, parts * hop - size)]
    blocks = jnp.pad(frames_NW, pad_width).reshape(*lead, n_frames, parts, hop)
    total = jnp.zeros((*lead, n_frames + parts - 1, hop), frames_NW.dtype)
    for part in range(parts):
        total = total.at[..., part : part + n_frames, :].add(blocks[..., part, :])
    return total.reshape(*lead, (n_frames + parts - 1) * hop)


def _window_power(spec: Stft, n_frames: int) -> np.ndarray:
    """Sum of squared windows where `_overlap_add` puts them, float32."""
    hop, size = spec.hop_samples, spec.n_fft_samples
    parts = -(-size // hop)
    total = np.zeros((n_frames + parts - 1) * hop)
    squared = spec.window.astype(np.float64) ** 2
    for n in range(n_frames):
        total[n * hop : n * hop + size] += squared
    return total.astype(np.float32)
