"""Tests of resampling: tones stay tones, lengths are exact, blocks make no difference."""

import numpy as np
import pytest

from opensep_jax.signal.resampling import Resampler, resample


def noise(channels, frames):
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal((channels, frames))).astype(np.float32)


@pytest.mark.parametrize(
    "from_hz, to_hz",
    [
        (44_100, 16_000),
        (16_000, 44_100),
        (48_000, 16_000),
        (1000, 16_000),
        (16_000, 1000),
        (192_000, 16_000),
        (16_000, 192_000),
        (11_025, 16_000),
    ],
)
def test_resampling_a_tone_gives_the_tone(from_hz, to_hz):
    tone_hz = 0.3 * min(from_hz, to_hz)

    def tone(rate_hz, frames):
        return np.sin(2 * np.pi * tone_hz * np.arange(frames) / rate_hz)

    frames = 2 * from_hz + 1
    result = resample(tone(from_hz, frames)[None].astype(np.float32), from_hz, to_hz)
    length = -(-frames * to_hz // from_hz)
    assert result.shape == (1, length) and result.dtype == np.float32
    inner = slice(length // 4, -length // 4)  # the tone starts and ends abruptly
    np.testing.assert_allclose(result[0, inner], tone(to_hz, length)[inner], atol=5e-5)


def test_resampling_there_and_back_keeps_length_and_band():
    rng = np.random.default_rng(0)
    low = resample(rng.standard_normal((8, 8001)).astype(np.float32), 16_000, 44_100)
    back = resample(low, 44_100, 16_000, length=8001)
    assert back.shape == (8, 8001)
    again = resample(resample(back, 16_000, 44_100), 44_100, 16_000, length=8001)
    error = np.sum((again - back)[:, 500:-500] ** 2) / np.sum(back[:, 500:-500] ** 2)
    assert 10 * np.log10(error) < -20  # only the filter's edge band, filtered once more, changes


@pytest.mark.parametrize("from_hz, to_hz", [(44_100, 16_000), (1000, 192_000), (192_000, 1000)])
@pytest.mark.parametrize("frames", [0, 1, 2, 3, 193])
def test_resampled_length_is_exact_for_short_inputs(from_hz, to_hz, frames):
    samples = np.ones((2, frames), np.float32)
    assert resample(samples, from_hz, to_hz).shape == (2, -(-frames * to_hz // from_hz))
    for length in (0, 1, 500):
        result = resample(samples, from_hz, to_hz, length)
        assert result.shape == (2, length) and np.isfinite(result).all()


def test_equal_rates_change_nothing_but_the_length():
    samples = noise(2, 5000)
    np.testing.assert_array_equal(resample(samples, 16_000, 16_000), samples)
    longer = resample(samples, 16_000, 16_000, length=6000)
    np.testing.assert_array_equal(longer[:, :5000], samples)
    assert longer.shape == (2, 6000) and not longer[:, 5000:].any()
    assert resample(samples, 16_000, 16_000, length=10).shape == (2, 10)
    for bad in ((0, 16_000), (16_000, -1)):
        with pytest.raises(ValueError, match="must be positive"):
            resample(samples, *bad)
    with pytest.raises(ValueError, match=r"\[C, T\]"):
        resample(samples[0], 16_000, 8000)


@pytest.mark.parametrize("from_hz, to_hz", [(48_000, 16_000), (16_000, 44_100), (8000, 8000)])
@pytest.mark.parametrize("frames", [1, 700, 40_001])
@pytest.mark.parametrize("size", [333, 1 << 16])
def test_blocks_are_resampled_as_the_whole_is(from_hz, to_hz, frames, size):
    samples = noise(3, frames)
    resampler = Resampler(from_hz, to_hz, 3)
    parts = [resampler.push(samples[:, i : i + size]) for i in range(0, frames, size)]
    parts.append(resampler.finish())
    np.testing.assert_array_equal(np.concatenate(parts, 1), resample(samples, from_hz, to_hz))
