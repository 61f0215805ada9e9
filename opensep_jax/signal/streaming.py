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
from collections.abc import Iterator

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

    @property
    def step_samples(self) -> int:
        """From the start of a window to that of the next."""
        return self.window_samples - self.overlap_samples

    @property
    def used_samples(self) -> int:
        """From the start of a window to where its cross-fade with the next begins."""
        return self.window_samples - self.guard_samples - self.fade_samples

    def starts(self, samples: int) -> list[int]:
        """First sample of each window of a signal of `samples` samples.

        Every window but the last starts one step after the one before. The last is moved back to
        end with the signal (less than a hop later), so that it too is full of sound.
        """
        beyond = max(0, samples - self.window_samples)
        last = -(-beyond // self.hop_samples) * self.hop_samples
        return [*range(0, last, self.step_samples), last]

    def length_of(self, samples: int) -> int:
        """Length of the windows of a signal: a shorter signal has one of fewer quarters."""
        quarter = -(-self.window_samples // (4 * self.hop_samples)) * self.hop_samples
        return min(self.window_samples, -(-samples // quarter) * quarter)

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


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A part of a signal.

    Attributes:
        samples_CT: float32 [C, `Windows.length_of` the signal], zero beyond the signal's end.
        start: its first sample in the signal.
        total: length of the signal with its last window, None with the others.
    """

    samples_CT: np.ndarray
    start: int
    total: int | None = None


class Cutter:
    """Cuts a signal that comes in blocks into the windows of `Windows.starts`.

    It keeps two windows at most, however long the signal is.
    """

    def __init__(self, windows: Windows, channels: int):
        """For signals of `channels` channels."""
        self._windows = windows
        self._kept_CT = np.zeros((channels, 0), np.float32)
        self._first = self._next = 0  # sample that is kept, and start of the next window

    def push(self, samples_CT: np.ndarray) -> Iterator[Window]:
        """Takes a block, float32 [C, n], and gives the windows that are complete."""
        self._kept_CT = np.concatenate([self._kept_CT, samples_CT], axis=1)
        size, step = self._windows.window_samples, self._windows.step_samples
        while self._first + self._kept_CT.shape[1] > self._next + size:
            yield self._window(self._next, size)
            # The last window begins after this one: earlier samples are not needed any more.
            self._kept_CT = self._kept_CT[:, self._next - self._first :]
            self._first, self._next = self._next, self._next + step

    def finish(self) -> Window:
        """The last window of the signal."""
        total = self._first + self._kept_CT.shape[1]
        size = self._windows.length_of(total)
        return self._window(self._windows.starts(total)[-1], size, total)

    def _window(self, start: int, size: int, total: int | None = None) -> Window:
        part_CT = self._kept_CT[:, start - self._first :][:, :size]
        window_CT = np.zeros((len(part_CT), size), np.float32)
        window_CT[:, : part_CT.shape[1]] = part_CT
        return Window(window_CT, start, total)


class OverlapAdd:
    """Joins processed windows; what comes out is finished and in order."""

    def __init__(self, windows: Windows):
        """For signals that `windows` has cut."""
        self._windows, self._fade_in = windows, windows.fade_in()
        self._join, self._tail = 0, None  # where the last cross-fade began, and what it needs

    def push(self, output: np.ndarray, start: int, total: int | None = None) -> np.ndarray:
        """Takes the output of the next window.

        Args:
            output: float32 [..., window].
            start: as of the `Window`.
            total: as of the `Window`.

        Returns:
            float32 [..., n]; the lengths n of all windows sum to `total`.
        """
        fade, end = self._windows.fade_samples, self._windows.used_samples
        end = end if total is None else total - start
        block = np.array(output[..., self._join - start : end], np.float32)
        if self._tail is not None:
            block[..., :fade] *= self._fade_in
            block[..., :fade] += self._tail
        self._tail = output[..., end : end + fade] * (1 - self._fade_in) if total is None else None
        self._join = start + end
        return block
