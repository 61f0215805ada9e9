"""Changing the sample rate, of whole signals and of signals that come in blocks.

Samples are `[C, T]`: C channels, T samples per channel.
"""

import numpy as np
import soxr


class Resampler:
    """Changes the sample rate of a signal that comes in blocks; `resample` of the whole, exactly.

    The filter is linear-phase and band-limited, without delay: silence is assumed around the
    signal. Source: libsoxr, quality VHQ.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int):
        """Rates in Hz.

        Raises:
            ValueError: if a rate is not positive.
        """
        if from_hz <= 0 or to_hz <= 0:
            raise ValueError(f"sample rates must be positive, got {from_hz} Hz and {to_hz} Hz")
        self._rates, self._channels = (from_hz, to_hz), channels
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, "float32", "VHQ")
        self._taken = self._given = 0

    def push(self, samples_CT: np.ndarray) -> np.ndarray:
        """Takes a block, float32 [C, n], and gives what is known of the result, [C, m], m >= 0."""
        self._taken += samples_CT.shape[1]
        result_CT = self._convert(samples_CT, last=False)
        self._given += result_CT.shape[1]
        return result_CT

    def finish(self, length: int | None = None) -> np.ndarray:
        """The rest, [C, m].

        Args:
            length: samples per channel of the whole result, no less than was given before;
                default ceil(T * to_hz / from_hz) of the T samples taken. The filter's ringing and
                then zeros go beyond.
        """
        from_hz, to_hz = self._rates
        length = -(-self._taken * to_hz // from_hz) if length is None else length
        # libsoxr rounds the length of its result, to nothing for a few samples: zeros after the
        # end make it long enough for its own filter to supply the last samples.
        enough = -(-(length + 1) * from_hz // to_hz) if self._stream else 0
        zeros_CT = np.zeros((self._channels, max(0, enough - self._taken)), np.float32)
        rest_CT = self._convert(zeros_CT, last=True)[:, : length - self._given]
        missing = length - self._given - rest_CT.shape[1]
        return np.pad(rest_CT, ((0, 0), (0, missing))) if missing else rest_CT

    def _convert(self, samples_CT: np.ndarray, last: bool) -> np.ndarray:
        if self._stream is None:
            return samples_CT
        samples_TC = np.ascontiguousarray(samples_CT.T, np.float32)
        return np.ascontiguousarray(self._stream.resample_chunk(samples_TC, last=last).T)


def resample(
    samples_CT: np.ndarray, from_hz: int, to_hz: int, length: int | None = None
) -> np.ndarray:
    """Changes the sample rate with a linear-phase band-limited filter, without delay.

    Args:
        samples_CT: float32 [C, T]; silence is assumed around it.
        from_hz: rate of the input, Hz.
        to_hz: rate of the result, Hz.
        length: samples per channel of the result: cut, or continued with what the filter rings
            and then zeros. Default ceil(T * to_hz / from_hz).

    Returns:
        float32 [C, length]; the input itself where nothing changes.

    Raises:
        ValueError: if a rate is not positive or `samples_CT` is not [C, T].

    Source: libsoxr, quality VHQ.
    """
    if samples_CT.ndim != 2:
        raise ValueError(f"need samples [C, T], got shape {samples_CT.shape}")
    resampler = Resampler(from_hz, to_hz, samples_CT.shape[0])
    if from_hz == to_hz and length in (None, samples_CT.shape[1]):
        return samples_CT.astype(np.float32, copy=False)
    if length is None:
        length = -(-samples_CT.shape[1] * to_hz // from_hz)
    if not samples_CT.shape[1]:
        return np.zeros((samples_CT.shape[0], length), np.float32)
    start_CT = resampler.push(samples_CT.astype(np.float32, copy=False))
    if start_CT.shape[1] >= length:
        return start_CT[:, :length]
    return np.concatenate([start_CT, resampler.finish(length)], axis=1)
