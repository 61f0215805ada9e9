"""Audio files to clips: mono, at one rate, cut into parts of a length, silence left out."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from opensep_jax.signal.audio import AudioError, read_audio, resample

_READ_S = 600.0  # of a file at a time, about: a recording of ten hours needs no more memory
_SILENT = 1e-6  # power relative to the mean of the file: -60 dB
_LEAST_WHOLE = 0.97  # of the samples that the header promises; encoders pad a little
_UNKNOWN_FRAMES = 1 << 62
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
        path: any file that `read_audio` reads.
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
    at_once = longest * max(1, math.ceil(_READ_S / max_seconds))  # a whole number of clips
    heard, read, part_s = False, 0, at_once * speed / sample_rate_hz
    clipped, louder = counts.clipped, counts.louder
    for number in itertools.count():
        audio = read_audio(path, number * part_s, part_s)
        read += audio.samples_CT.shape[1]
        is_last = audio.samples_CT.shape[1] < round(part_s * audio.sample_rate_hz) - 1
        # Some decoders do not mind; but what the label names may be in the part that is gone.
        if is_last and read < _LEAST_WHOLE * (promised := _promised_frames(path)):
            raise AudioError(path, f"cut short: {read} of {promised} samples")
        if not audio.samples_CT.size:
            break
        if _is_clipped(audio.samples_CT):
            counts.clipped = clipped + 1
        mono_1T = audio.samples_CT.mean(0, keepdims=True)
        wave_T = resample(mono_1T, round(audio.sample_rate_hz * speed), sample_rate_hz)[0]
        peak = float(np.abs(wave_T).max())
        if peak > 1:
            counts.louder = louder + 1
        pcm_T = np.round(wave_T * (32767 / max(1.0, peak))).astype(np.int16)
        heard |= bool(pcm_T.any())
        yield from _parts(pcm_T[:at_once], number * at_once, longest, sample_rate_hz, counts)
        if is_last:
            break
    if not heard:
        raise AudioError(path, "digital silence")


def _promised_frames(path: Path) -> int:
    """Samples that a file's header promises, 0 if it does not."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames if file.frames < _UNKNOWN_FRAMES else 0
    except (soundfile.LibsndfileError, TypeError, OSError):
        return 0  # another decoder reads it, or says why not


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
