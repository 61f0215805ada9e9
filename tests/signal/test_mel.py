"""Log-mel features: equal to librosa's under the settings of every captioner."""

import jax
import librosa
import numpy as np
import pytest

from opensep_jax.signal.mel import Mel, decibels, mel_power

SETTINGS = {
    "clapcap": (Mel(32_000, 1024, 320, 64, 50, 14_000), 1e-10, None),
    "whisper": (Mel(16_000, 400, 160, 80, 0, 8_000), 1e-10, 80.0),
    "act": (Mel(32_000, 1024, 640, 64, 0, 16_000), 1e-10, 80.0),
    "demo": (Mel(16_000, 1024, 640, 64, 40, 8_000, "constant"), 1e-8, None),
}


def _clips() -> np.ndarray:
    """A loud clip and one 60 dB below it, [2, T]: 80 dB below the loudest differ between them."""
    rng = np.random.default_rng(0)
    time = np.arange(8_000)
    tone_T = np.sin(0.3 * time) * np.exp(-time / 800)
    noise_BT = rng.standard_normal((2, 8_000)) * np.array([[1e-4], [1e-5]])
    return (np.array([[1.0], [1e-3]]) * tone_T + noise_BT).astype(np.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_librosa(name: str):
    spec, floor, top_db = SETTINGS[name]
    clips_BT = _clips()
    ours_BNM = jax.jit(lambda x: decibels(mel_power(x, spec), floor, top_db))(clips_BT)
    for ours_NM, clip_T in zip(np.asarray(ours_BNM), clips_BT, strict=True):
        power_MN = librosa.feature.melspectrogram(
            y=clip_T.astype(np.float64),
            sr=spec.sample_rate_hz,
            n_fft=spec.n_fft_samples,
            hop_length=spec.hop_samples,
            n_mels=spec.bands,
            fmin=spec.low_hz,
            fmax=spec.high_hz,
            pad_mode=spec.pad_mode,
        )
        theirs_NM = librosa.power_to_db(power_MN, amin=floor, top_db=top_db).T
        assert ours_NM.shape == (spec.frames(8_000), spec.bands)
        np.testing.assert_allclose(ours_NM, theirs_NM, rtol=0, atol=2e-2)
        assert np.abs(ours_NM - theirs_NM).mean() < 1e-4


def test_filters_of_a_checkpoint_replace_the_computed_ones():
    spec = SETTINGS["whisper"][0]
    ones_FM = np.ones((201, 3), np.float32)
    power_BNM = mel_power(_clips(), spec, ones_FM)
    spectrum_FN = librosa.stft(_clips()[0], n_fft=400, hop_length=160, pad_mode="reflect")
    total_N = (np.abs(spectrum_FN) ** 2).sum(axis=0)
    np.testing.assert_allclose(power_BNM[0, :, 2], total_N, rtol=1e-4)


def test_bands_beyond_half_the_rate_are_refused():
    with pytest.raises(ValueError, match="9000 Hz do not lie within 0 and half .*=16000"):
        Mel(16_000, 400, 160, 80, 0, 9_000)
