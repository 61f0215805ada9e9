"""Windows with overlap-add: what is planned, and that nothing is heard of them."""

import jax
import numpy as np
import pytest

from opensep_jax.signal.stft import Stft, istft, stft
from opensep_jax.signal.streaming import Windows, overlap_add, separate_windows

SPEC = Stft(128, 32)
WINDOWS = Windows(window_samples=1024, overlap_samples=384, guard_samples=128, hop_samples=32)
LENGTHS = (1, 31, 1024, 1025, 1056, 1057, 1664, 1665, 1700, 2304, 2305, 5000)


@pytest.mark.parametrize("samples", LENGTHS)
def test_weights_sum_to_one_exactly_and_spare_the_guards(samples: int):
    starts, joins = WINDOWS.starts(samples), WINDOWS.joins(samples)
    assert all(start % WINDOWS.hop_samples == 0 for start in starts)
    assert starts[0] == joins[0] == 0 and starts[-1] + 1024 >= samples
    assert len(starts) == 1 or 0 <= starts[-1] + 1024 - samples < WINDOWS.hop_samples
    total = np.zeros(samples, np.float32)
    for row in range(len(starts)):
        one = [np.full(1024, float(i == row), np.float32) for i in range(len(starts))]
        weight = np.concatenate(list(overlap_add(one, WINDOWS, samples)))
        used = np.flatnonzero(weight) - starts[row]
        assert row == 0 or used[0] >= WINDOWS.guard_samples
        assert row == len(starts) - 1 or used[-1] < 1024 - WINDOWS.guard_samples
        total += weight
    np.testing.assert_array_equal(total, 1.0)  # no taper at the beginning and the end either


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_identity_returns_the_signal(samples: int, batch: int):
    wave_CT = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    shapes = set()

    def two_gains(block_WCT: np.ndarray) -> np.ndarray:
        shapes.add(block_WCT.shape)
        return block_WCT[:, None] * np.array([1, -2], np.float32)[:, None, None]

    blocks = list(separate_windows(wave_CT, WINDOWS, two_gains, batch))
    assert shapes == {(batch, 2, 1024)}
    assert len(blocks) == len(WINDOWS.starts(samples))
    out_PCT = np.concatenate(blocks, axis=-1)
    np.testing.assert_allclose(out_PCT, np.stack([wave_CT, -2 * wave_CT]), atol=1e-6)


@pytest.mark.parametrize("samples", [1056, 4000, 20000])
def test_chunked_equals_whole_for_a_mask_of_single_frames(samples: int):
    wave_CT = np.random.default_rng(1).standard_normal((1, samples)).astype(np.float32)

    @jax.jit
    def process(wave_WCT: jax.Array) -> jax.Array:
        spectrum = stft(wave_WCT, SPEC)
        power = abs(spectrum) ** 2
        mask = power > power.mean(-2, keepdims=True)  # far from constant over time
        return istft(mask * spectrum, SPEC, wave_WCT.shape[-1])[:, None]

    # Whole: one window, so that both have the frames that reach over the end.
    padded_CT = np.pad(wave_CT, ((0, 0), (0, -samples % SPEC.hop_samples)))
    whole = process(padded_CT[None])[0, 0, 0, :samples]
    chunked = np.concatenate(list(separate_windows(wave_CT, WINDOWS, process, 2)), axis=-1)[0, 0]
    error_db = 10 * np.log10(np.sum((chunked - whole) ** 2) / np.sum(whole**2))
    assert error_db < -100
    # The same without a guard is worse than what is promised: the guard is what does it.
    bare = Windows(1024, 128, 0, 32)
    joined = np.concatenate(list(separate_windows(wave_CT, bare, process, 2)), axis=-1)[0, 0]
    assert samples < 2000 or 10 * np.log10(np.sum((joined - whole) ** 2) / np.sum(whole**2)) > -60


def test_windows_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="multiples of hop_samples=32"):
        Windows(1000, 384, 128, 32)
    with pytest.raises(ValueError, match="more than twice guard_samples=192"):
        Windows(1024, 384, 192, 32)
    with pytest.raises(ValueError, match="half of window_samples=1024"):
        Windows(1024, 544, 128, 32)
