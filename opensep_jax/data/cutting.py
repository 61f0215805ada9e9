"""Audio files to clips: mono, at one rate, cut into parts of a length, silence left out."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from opensep_jax.signal.audio import AudioError, AudioReader
from opensep_jax.signal.resampling import Resampler

_PART_S = 600.0  # of a file in memory, about, however many hours it has
_SILENT = 1e-6  # power relative to the mean of such a part: -60 dB
_FULL_SCALE = 32767 / 32768
_CLIPPED_RUN = 3  # samples in a row at full scale


@dataclasses.dataclass
class CutCounts:
    """What was noticed while files were cut.

    Attributes:
        silent: parts that were left out since nothing is heard in them.
        short: rests at the end of files, below a second, that were left out.
        clipped: files with several samples in a row at full scale.
        louder: files that were turned down since resampling or mixing exceeded full scale.
    """

    silent: int = 0
    short: int = 0
    clipped: int = 0
    louder: int = 0


def cut_file(
    path: Path, sample_rate_hz: int, max_seconds: float, counts: CutCounts, speed: float = 1.0
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes a file into clips.

    Args:
        path: any file that `AudioReader` reads.
        sample_rate_hz: rate of the clips.
        max_seconds: their longest length.
        counts: is added to.
        speed: playback speed, which changes pitch and length.

    Yields:
        First sample (at the clips' rate and speed) and int16 [T] samples.

    Raises:
        AudioError: the file cannot be read or is cut short, or nothing is heard in it.
    """
    longest = int(max_seconds * sample_rate_hz)
    at_once = longest * max(1, math.ceil(_PART_S / max_seconds))  # a whole number of clips
    heard, first, louder = False, 0, counts.louder
    with AudioReader(path) as reader:
        for wave_T in _in_lengths(_mono(reader, sample_rate_hz, speed, counts), at_once):
            peak = float(np.abs(wave_T).max())
            if peak > 1:
                counts.louder = louder + 1
            pcm_T = np.round(wave_T * (32767 / max(1.0, peak))).astype(np.int16)
            heard |= bool(pcm_T.any())
            yield from _parts(pcm_T, first, longest, sample_rate_hz, counts)
            first += len(pcm_T)
    if not heard:
        raise AudioError(path, "digital silence")


def _mono(
    reader: AudioReader, sample_rate_hz: int, speed: float, counts: CutCounts
) -> Iterator[np.ndarray]:
    """Mean of the channels at another rate and speed, float32 [n], block by block."""
    resampler = Resampler(round(reader.sample_rate_hz * speed), sample_rate_hz, 1)
    clipped = False
    for block_CT in reader.blocks():
        clipped |= _is_clipped(block_CT)
        yield resampler.push(block_CT.mean(0, keepdims=True))[0]
    counts.clipped += clipped
    yield resampler.finish()[0]


def _in_lengths(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of a length, the last of which may be shorter."""
    held, count = [], 0
    for block_T in blocks:
        held.append(block_T)
        count += len(block_T)
        while count > length:
            whole_T = np.concatenate(held)
            yield whole_T[:length]
            held, count = [whole_T[length:]], count - length
    if count:
        yield np.concatenate(held)


def _parts(
    pcm_T: np.ndarray, first: int, longest: int, sample_rate_hz: int, counts: CutCounts
) -> Iterator[tuple[int, np.ndarray]]:
    """Clips of a part of a file that begins at sample `first`."""
    mean_power = _power(pcm_T)
    for start in range(0, len(pcm_T), longest):
        part_T = pcm_T[start : start + longest]
        if _power(part_T) <= _SILENT * mean_power:
            counts.silent += 1
        elif first + start and len(part_T) < min(sample_rate_hz, longest):  # a rest
            counts.short += 1
        else:
            yield first + start, part_T


def _is_clipped(samples_CT: np.ndarray) -> bool:
    full_CT = np.abs(samples_CT) >= _FULL_SCALE
    run_CT = full_CT
    for shift in range(1, _CLIPPED_RUN):
        run_CT = run_CT[:, :-1] & full_CT[:, shift:]
    return bool(run_CT.any())


def _power(pcm_T: np.ndarray) -> float:
    return float(np.mean(np.square(pcm_T, dtype=np.float64)))
