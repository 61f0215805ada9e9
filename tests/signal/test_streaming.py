"""Windows with overlap-add: what is planned, and that nothing is heard of them."""

import jax
import numpy as np
import pytest

from opensep_jax.signal.stft import Stft, istft, stft
from opensep_jax.signal.streaming import Cutter, OverlapAdd, Window, Windows

SPEC = Stft(128, 32)
WINDOWS = Windows(window_samples=1024, overlap_samples=384, guard_samples=128, hop_samples=32)
LENGTHS = (1, 31, 1024, 1025, 1056, 1057, 1664, 1665, 1700, 2304, 2305, 5000)


def cut(wave_CT: np.ndarray, windows: Windows, block: int = 777) -> list[Window]:
    cutter, found = Cutter(windows, len(wave_CT)), []
    for first in range(0, wave_CT.shape[1], block):
        found += cutter.push(wave_CT[:, first : first + block])
    return [*found, cutter.finish()]


def joined(wave_CT: np.ndarray, windows: Windows, process) -> np.ndarray:
    """`process` maps [1, C, window] to [1, P, C, window]."""
    add = OverlapAdd(windows)
    blocks = [
        add.push(np.asarray(process(part.samples_CT[None]))[0], part.start, part.total)
        for part in cut(wave_CT, windows)
    ]
    return np.concatenate(blocks, axis=-1)


@pytest.mark.parametrize("samples", LENGTHS)
def test_weights_sum_to_one_exactly_and_spare_the_guards(samples: int):
    parts = cut(np.ones((1, samples), np.float32), WINDOWS)
    starts = [part.start for part in parts]
    assert starts == WINDOWS.starts(samples)
    assert all(start % WINDOWS.hop_samples == 0 for start in starts)
    assert starts[0] == 0 and starts[-1] + 1024 >= samples
    assert len(starts) == 1 or 0 <= starts[-1] + 1024 - samples < WINDOWS.hop_samples
    total = np.zeros(samples, np.float32)
    for row, start in enumerate(starts):
        add = OverlapAdd(WINDOWS)
        weight = np.concatenate(
            [add.push(np.full(1024, float(p.start == start)), p.start, p.total) for p in parts]
        )
        used = np.flatnonzero(weight) - start
        assert row == 0 or used[0] >= WINDOWS.guard_samples
        assert row == len(starts) - 1 or used[-1] < 1024 - WINDOWS.guard_samples
        total += weight
    np.testing.assert_array_equal(total, 1.0)  # no taper at the beginning and the end either


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("block", [1000, 10**6])
def test_an_identity_returns_the_signal(samples: int, block: int):
    wave_CT = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    parts = cut(wave_CT, WINDOWS, block)
    assert [part.total for part in parts] == [None] * (len(parts) - 1) + [samples]
    sizes = {part.samples_CT.shape for part in parts}
    assert sizes == {(2, 1024 if samples > 768 else 256)}  # the nearest quarter of a window

    def two_gains(block_WCT: np.ndarray) -> np.ndarray:
        return block_WCT[:, None] * np.array([1, -2], np.float32)[:, None, None]

    out_PCT = joined(wave_CT, WINDOWS, two_gains)
    np.testing.assert_allclose(out_PCT, np.stack([wave_CT, -2 * wave_CT]), atol=1e-6)


def test_what_is_kept_does_not_grow():
    cutter = Cutter(WINDOWS, 1)
    for _ in range(200):
        list(cutter.push(np.ones((1, 500), np.float32)))
        assert cutter._kept_CT.shape[1] <= 2 * WINDOWS.window_samples


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
    chunked = joined(wave_CT, WINDOWS, process)[0, 0]
    error_db = 10 * np.log10(np.sum((chunked - whole) ** 2) / np.sum(whole**2))
    assert error_db < -100
    # The same without a guard is worse than what is promised: the guard is what does it.
    bare = Windows(1024, 128, 0, 32)
    error = np.sum((joined(wave_CT, bare, process)[0, 0] - whole) ** 2) / np.sum(whole**2)
    assert samples < 2000 or 10 * np.log10(error) > -60


def test_windows_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="multiples of hop_samples=32"):
        Windows(1000, 384, 128, 32)
    with pytest.raises(ValueError, match="more than twice guard_samples=192"):
        Windows(1024, 384, 192, 32)
    with pytest.raises(ValueError, match="half of window_samples=1024"):
        Windows(1024, 544, 128, 32)
