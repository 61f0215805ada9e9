"""Every SDR by its name: the same estimate, four different figures."""

import numpy as np
import pytest

from opensep_jax.signal.measures import MEASURES, OVERLAP_STFT, improvement, measure
from opensep_jax.signal.stems import spectral_overlap


@pytest.fixture(scope="module")
def figures() -> dict[str, np.ndarray]:
    """Of a scaled and slightly delayed estimate, and of one with white noise at -20 dB."""
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((2, 8000)).astype(np.float32)
    delayed = np.concatenate([np.zeros(3, np.float32), 0.5 * sources[0, :-3]])
    noisy = sources[1] + 0.1 * rng.standard_normal(8000)
    found = measure(np.stack([delayed, noisy]), sources, MEASURES)
    found["expected_overlap"] = spectral_overlap(np.stack([delayed, noisy]), OVERLAP_STFT)[0, 1]
    return {name: np.asarray(value) for name, value in found.items()}


def test_names_tell_what_is_forgiven(figures: dict[str, np.ndarray]):
    assert figures["bss_sources_512_sdr"][0] > 30  # a filter
    assert figures["si_sdr"][0] < -20  # a gain, but no delay
    assert figures["snr"][0] == pytest.approx(10 * np.log10(1 / 1.25), abs=0.2)
    for name in ("si_sdr", "snr", "bss_sources_512_sdr", "bss_images_512_sdr"):
        assert figures[name][1] == pytest.approx(20, abs=0.5)
    np.testing.assert_allclose(figures["bss_images_512_sdr"], figures["snr"], atol=1e-4)
    assert set(figures) == {
        "si_sdr", "snr", "spectral_overlap", "expected_overlap",
        *(f"bss_sources_512_{k}" for k in ("sdr", "sir", "sar")),
        *(f"bss_images_512_{k}" for k in ("sdr", "isr", "sir", "sar")),
    }  # fmt: skip


def test_overlap_with_the_other_stems(figures: dict[str, np.ndarray]):
    expected = np.full(2, figures["expected_overlap"])
    np.testing.assert_allclose(figures["spectral_overlap"], expected, atol=1e-6)


def test_names_of_improvements_and_unknown_measures():
    assert improvement("bss_sources_512_sdr") == "bss_sources_512_sdri"
    assert improvement("si_sdr") == "si_sdri" and improvement("bss_sources_512_sir") is None
    with pytest.raises(ValueError, match="measure 'sdr' is not known; known are si_sdr, snr"):
        measure(np.ones((2, 9)), np.ones((2, 9)), ["sdr"])
