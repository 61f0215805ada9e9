"""Pictures of spectra, for reports and TensorBoard."""

import matplotlib
import numpy as np
from PIL import Image

from opensep_jax.signal.stft import Stft

_RANGE_DB = 70.0  # what lies further below the reference is black


def spectrogram_db(wave_T: np.ndarray, spec: Stft, frames: int) -> np.ndarray:
    """Level of a signal by bin and time, at most `frames` columns, float32 [F, N] in dB.

    Long signals are looked at every so often, so the cost does not grow with the length.
    """
    half = spec.n_fft_samples // 2
    padded_T = np.pad(np.asarray(wave_T, np.float32), half)
    steps = min(frames, spec.frames(len(wave_T)))
    starts = np.linspace(0, len(padded_T) - spec.n_fft_samples, steps).astype(int)
    frames_NW = padded_T[starts[:, None] + np.arange(spec.n_fft_samples)] * spec.window
    power_NF = np.abs(np.fft.rfft(frames_NW, axis=-1)) ** 2
    return (10 * np.log10(power_NF.T + 1e-12)).astype(np.float32)


def level_image(level_db_FN: np.ndarray, reference_db: float, height: int = 160) -> Image.Image:
    """Levels from `reference_db` (white) down to 70 dB below it (black), low bins at the bottom."""
    unit_FN = 1 + (level_db_FN - reference_db) / _RANGE_DB
    return unit_image(unit_FN, height)


def unit_image(unit_FN: np.ndarray, height: int = 160) -> Image.Image:
    """Values in [0, 1] (clipped) in the colours of `magma`, low bins at the bottom."""
    colours = matplotlib.colormaps["magma"](np.clip(unit_FN[::-1], 0, 1), bytes=True)
    image = Image.fromarray(colours[..., :3])
    return image.resize((image.width, height), Image.Resampling.BILINEAR)
