"""Pictures of spectra, for reports and TensorBoard."""

import itertools
from collections.abc import Iterable

import matplotlib
import numpy as np
from PIL import Image

from opensep_jax.signal.stft import Stft

_RANGE_DB = 70.0  # what lies further below the reference is black


def spectrogram_db(wave_T: np.ndarray, spec: Stft, frames: int) -> np.ndarray:
    """Level of a signal by bin and time, at most `frames` columns, float32 [F, N] in dB.

    Long signals are looked at every so often, so the cost does not grow with the length.
    """
    return streamed_spectrogram_db([wave_T], len(wave_T), spec, frames)


def streamed_spectrogram_db(
    blocks: Iterable[np.ndarray], samples: int, spec: Stft, frames: int
) -> np.ndarray:
    """As `spectrogram_db`, of a signal that comes in blocks, in little memory.

    Args:
        blocks: float32 [n] each.
        samples: in all blocks together; columns beyond the end of the blocks are left out.
        spec: size and window of the frames.
        frames: largest number of columns.
    """
    size, half = spec.n_fft_samples, spec.n_fft_samples // 2
    starts = np.linspace(0, samples + 2 * half - size, min(frames, spec.frames(samples)))
    starts = starts.astype(int)  # in the padded signal
    columns: list[np.ndarray] = []
    waiting_T, first = np.zeros(half, np.float32), 0
    for block_T in itertools.chain(blocks, [np.zeros(half, np.float32)]):
        waiting_T = np.concatenate([waiting_T, block_T])
        whole = np.searchsorted(starts + size, first + len(waiting_T), "right")
        begins = starts[len(columns) : whole] - first
        frames_NW = waiting_T[begins[:, None] + np.arange(size)] * spec.window
        columns.extend(np.abs(np.fft.rfft(frames_NW, axis=-1)) ** 2)
        needed = (starts[whole] if whole < len(starts) else samples + 2 * half) - first
        gone = min(int(needed), len(waiting_T))
        waiting_T, first = waiting_T[gone:], first + gone
    return (10 * np.log10(np.stack(columns, 1) + 1e-12)).astype(np.float32)


def level_image(level_db_FN: np.ndarray, reference_db: float, height: int = 160) -> Image.Image:
    """Levels from `reference_db` (white) down to 70 dB below it (black), low bins at the bottom."""
    unit_FN = 1 + (level_db_FN - reference_db) / _RANGE_DB
    return unit_image(unit_FN, height)


def unit_image(unit_FN: np.ndarray, height: int = 160) -> Image.Image:
    """Values in [0, 1] (clipped) in the colours of `magma`, low bins at the bottom."""
    colours = matplotlib.colormaps["magma"](np.clip(unit_FN[::-1], 0, 1), bytes=True)
    image = Image.fromarray(colours[..., :3])
    return image.resize((image.width, height), Image.Resampling.BILINEAR)
