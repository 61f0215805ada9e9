"""The resampler of published networks against recorded results of torchaudio."""

from pathlib import Path

import numpy as np

from opensep_jax.signal.sinc import resample_sinc

GOLDEN = np.load(Path(__file__).parents[1] / "golden/resample.npz")
PAIRS = [tuple(map(int, name.split("_")[1:])) for name in GOLDEN if name.startswith("in_")]


def test_equals_torchaudio():
    """Of the noises only the first samples are recorded, of the results every 53rd."""
    assert len(PAIRS) == 6
    rng = np.random.default_rng(0)
    for from_hz, to_hz in PAIRS:
        noise_T = rng.standard_normal(4000).astype(np.float32)
        np.testing.assert_array_equal(noise_T[:64], GOLDEN[f"in_{from_hz}_{to_hz}"])
        ours_CT = resample_sinc(np.stack([noise_T, -2 * noise_T]), from_hz, to_hz)
        assert ours_CT.dtype == np.float32
        assert ours_CT.shape == (2, -(-4000 * to_hz // from_hz))
        wanted_T = GOLDEN[f"out_{from_hz}_{to_hz}"]
        np.testing.assert_allclose(ours_CT[0, ::53], wanted_T, rtol=0, atol=4e-5)
        np.testing.assert_allclose(ours_CT[1], -2 * ours_CT[0], rtol=0, atol=1e-6)


def test_the_same_rate_changes_nothing():
    samples_CT = np.ones((1, 5), np.float32)
    assert resample_sinc(samples_CT, 44_100, 44_100) is samples_CT
