r"""Signals of any length in windows of one length, cross-faded where they overlap.

    window 0  |=================\.....|
    window 1             |...../===============\.....|
    window 2                              |...../================|
                                guard ->  |.....|

A window's outermost `guard` samples are not used where it has a neighbour: the frames of a
spectrogram that reach over the edge saw zeros there. Next to them the neighbours are cross-faded.
Starts lie on the hop grid, so that a frame of a window is a frame of the whole signal.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from opensep_jax.signal.stft import Stft


@dataclasses.dataclass(frozen=True)
class Windows:
    """How signals are cut; all in samples. Source: ours, after demucs' `apply.py`.

    Attributes:
        window_samples: length of every window, a multiple of the hop.
        overlap_samples: what neighbours share at least, a multiple of the hop, at most half of a
            window.
        guard_samples: unused at inner edges; with the length of a frame or more, a mask that looks
            at single frames gives the same result as without windows.
        hop_samples: the grid of starts.
    """

    window_samples: int
    overlap_samples: int
    guard_samples: int
    hop_samples: int

    def __post_init__(self):
        if self.window_samples % self.hop_samples or self.overlap_samples % self.hop_samples:
            raise ValueError(
                f"window_samples={self.window_samples} and overlap_samples={self.overlap_samples} "
                f"must be multiples of hop_samples={self.hop_samples}"
            )
        if not 2 * self.guard_samples < self.overlap_samples <= self.window_samples // 2:
            raise ValueError(
                f"overlap_samples={self.overlap_samples} must be more than twice "
                f"guard_samples={self.guard_samples} and at most half of "
                f"window_samples={self.window_samples}"
            )

    @property
    def fade_samples(self) -> int:
        """Length of a cross-fade."""
        return self.overlap_samples - 2 * self.guard_samples

    def starts(self, samples: int) -> list[int]:
        """First sample of each window of a signal of `samples` samples.

        Every window but the last starts one step after the one before. The last is moved back to
        end with the signal (less than a hop later), so that it too is full of sound.
        """
        step = self.window_samples - self.overlap_samples
        beyond = max(0, samples - self.window_samples)
        last = -(-beyond // self.hop_samples) * self.hop_samples
        return [*range(0, last, step), last]

    def joins(self, samples: int) -> list[int]:
        """Where each window's cross-fade with the one before begins (the first: 0)."""
        used = self.window_samples - self.guard_samples - self.fade_samples
        return [0, *(start + used for start in self.starts(samples)[:-1])]

    def fade_in(self) -> np.ndarray:
        """Weights of the later window in a cross-fade, float32 [fade_samples] within (0, 1).

        They are multiples of 2**-24, so `1 - fade_in` is exact: both weights sum to one exactly.
        """
        phase = (np.arange(self.fade_samples) + 0.5) / self.fade_samples
        raised_cosine = 0.5 - 0.5 * np.cos(np.pi * phase)
        return (np.rint(raised_cosine * 2.0**24) / 2.0**24).astype(np.float32)


def windows_for(spec: Stft, window_samples: int) -> Windows:
    """Windows for what looks at a spectrogram, of at least `window_samples` samples.

    A quarter overlaps, or more where the guard of a whole frame needs it. Source: ours.
    """
    hop, guard = spec.hop_samples, spec.n_fft_samples
    window = -(-window_samples // hop) * hop
    overlap = -(-max(window // 4, 2 * guard + 1) // hop) * hop
    return Windows(window, overlap, guard, hop)


def separate_windows(
    wave_CT: np.ndarray,
    windows: Windows,
    process_batch: Callable[[np.ndarray], np.ndarray],
    batch: int,
) -> Iterator[np.ndarray]:
    """Processes a signal window by window; what comes out is finished and in order.

    Memory does not grow with the length: `wave_CT` needs only `shape` and slices of its last axis.

    Args:
        wave_CT: float32 [C, T], T >= 1.
        windows: how it is cut.
        process_batch: maps float32 [batch, C, window] to [batch, P, C, window], rows independently.
            Missing samples and rows are zero.
        batch: windows per call.

    Yields:
        float32 [P, C, n], one block per window, whose lengths n sum to T.
    """
    samples = wave_CT.shape[-1]
    outputs = _process(wave_CT, windows, process_batch, batch)
    yield from overlap_add(outputs, windows, samples)


def overlap_add(
    outputs: Iterable[np.ndarray], windows: Windows, samples: int
) -> Iterator[np.ndarray]:
    """Joins processed windows.

    Args:
        outputs: float32 [..., window] of each of `windows.starts(samples)`, in order.
        windows: how the signal was cut.
        samples: length T of the signal.

    Yields:
        float32 [..., n], one block per window, whose lengths n sum to T.
    """
    fade_in = windows.fade_in()
    fade = len(fade_in)
    starts, joins = windows.starts(samples), [*windows.joins(samples), samples]
    tail = None
    for i, (start, output) in enumerate(zip(starts, outputs, strict=True)):
        block = np.array(output[..., joins[i] - start : joins[i + 1] - start], np.float32)
        if tail is not None:
            block[..., :fade] *= fade_in
            block[..., :fade] += tail
        end = joins[i + 1] - start
        tail = (
            np.array(output[..., end : end + fade] * (1 - fade_in)) if start < starts[-1] else None
        )
        yield block


def _process(
    wave_CT: np.ndarray,
    windows: Windows,
    process_batch: Callable[[np.ndarray], np.ndarray],
    batch: int,
) -> Iterator[np.ndarray]:
    """Processed windows [P, C, window], in order."""
    channels, samples = wave_CT.shape
    starts = windows.starts(samples)
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        block_WCT = np.zeros((batch, channels, windows.window_samples), np.float32)
        for row, start in enumerate(group):
            part_CT = wave_CT[:, start : start + windows.window_samples]
            block_WCT[row, :, : part_CT.shape[-1]] = part_CT
        yield from np.asarray(process_batch(block_WCT))[: len(group)]
