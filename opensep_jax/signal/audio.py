"""Audio files of any kind, rate and channel count, to float32 arrays; and resampling.

Samples are `[C, T]`: C channels, T samples per channel. Nothing here clips what it reads.
"""

import dataclasses
import os
import re
import shutil
import stat
import struct
import subprocess

import numpy as np
import soundfile
import soxr

_BLOCK_FRAMES = 1 << 20  # per read: a stream may not say how long it is
_UNKNOWN_FRAMES = 1 << 62  # libsndfile gives 2**63 - 1 for a FLAC stream without a length


class AudioError(ValueError):
    """An audio file that cannot be read or written; the message names it and says why."""

    def __init__(self, path: str | os.PathLike, problem: str):
        """Makes the message "`path`: `problem`"."""
        super().__init__(f"{os.fspath(path)}: {problem}")


@dataclasses.dataclass(frozen=True, eq=False)
class Audio:
    """A decoded file.

    Attributes:
        samples_CT: float32 [C, T], full scale is [-1, 1]; float files may go beyond.
        sample_rate_hz: samples per second and channel.
        subtype: sample format of the file as libsndfile names it ("PCM_16", "FLOAT", "VORBIS"),
            None if ffmpeg decoded it.
    """

    samples_CT: np.ndarray
    sample_rate_hz: int
    subtype: str | None = None


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """Size of an audio file: `frames` samples per channel at `sample_rate_hz`."""

    frames: int
    sample_rate_hz: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate_hz


class _Stream(soundfile.SoundFile):
    """A sound file read forward only: soundfile's own seeks fail on streams without a length."""

    def seekable(self) -> bool:
        return False


def read_audio(
    path: str | os.PathLike, start_s: float = 0.0, seconds: float | None = None
) -> Audio:
    """Reads a file, or a part of it, at its own rate and channel count, without clipping.

    Whatever libsndfile does not know (AAC, video files: their first audio track) goes through the
    `ffmpeg` program, if it is on PATH; ffmpeg may open local files only. PCM up to 24 bits is
    exact in float32.

    Args:
        path: file with any suffix; the content decides.
        start_s: where to begin.
        seconds: how much to read; None is all of it. A stream that does not tell its length is
            read from the beginning all the same.

    Returns:
        The samples, float32 [C, T], all finite; T >= 1 unless it begins behind the file's end.

    Raises:
        AudioError: if the file is missing, a folder, empty, not permitted, not audio, damaged, has
            no samples, or has NaN or infinite samples (their count and first place).

    Source: ours.
    """
    _check_readable(path)
    try:
        audio = _decode_libsndfile(path, start_s, seconds)
    except (soundfile.LibsndfileError, TypeError) as err:  # TypeError: a headerless .raw file
        problem = getattr(err, "error_string", "a file without a header")
        audio = _decode_ffmpeg(path, problem, start_s, seconds)
    samples_CT = audio.samples_CT
    if not samples_CT.size and not start_s:
        raise AudioError(path, "the file has a valid header but holds no samples")
    finite_CT = np.isfinite(samples_CT)
    if not finite_CT.all():
        sample, channel = np.argwhere(~finite_CT.T)[0]
        raise AudioError(
            path,
            f"{np.sum(~finite_CT)} of {samples_CT.size} samples are NaN or infinite, the first at "
            f"sample {sample} of channel {channel}; repair or cut the file",
        )
    return audio


def audio_info(path: str | os.PathLike) -> AudioInfo:
    """Reads length, rate and channels from the header; decodes only where the header lacks them.

    Args:
        path: file as for `read_audio`.

    Returns:
        The size; `frames` may be 0, and the samples are not checked.

    Raises:
        AudioError: as `read_audio`, except for what only decoding can tell.

    Source: ours.
    """
    _check_readable(path)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            if file.frames < _UNKNOWN_FRAMES:
                return AudioInfo(file.frames, file.samplerate, file.channels)
    except (soundfile.LibsndfileError, TypeError):
        pass
    audio = read_audio(path)
    return AudioInfo(audio.samples_CT.shape[1], audio.sample_rate_hz, audio.samples_CT.shape[0])


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
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {from_hz} Hz and {to_hz} Hz")
    if samples_CT.ndim != 2:
        raise ValueError(f"need samples [C, T], got shape {samples_CT.shape}")
    num_samples = samples_CT.shape[1]
    if length is None:
        length = -(-num_samples * to_hz // from_hz)
    if from_hz != to_hz and num_samples and length:
        # libsoxr rounds the length of its result, to nothing for a few samples: zeros after the
        # end make it long enough for its own filter to supply the last samples.
        enough = -(-(length + 1) * from_hz // to_hz)
        samples_CT = np.pad(samples_CT, ((0, 0), (0, max(0, enough - num_samples))))
        samples_TC = np.ascontiguousarray(samples_CT.T, np.float32)
        samples_CT = np.ascontiguousarray(soxr.resample(samples_TC, from_hz, to_hz, "VHQ").T)
    samples_CT = samples_CT[:, :length].astype(np.float32, copy=False)
    missing = length - samples_CT.shape[1]
    return np.pad(samples_CT, ((0, 0), (0, missing))) if missing else samples_CT


def _check_readable(path: str | os.PathLike) -> None:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(path, "is a folder, not an audio file")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(path, "is not a regular file (a pipe or device)")
        if not status.st_size:
            raise AudioError(path, "the file is empty (0 bytes)")
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(path, "no such file") from None
    except PermissionError:
        raise AudioError(path, "no permission to read it") from None
    except OSError as err:
        raise AudioError(path, f"cannot be opened: {err.strerror}") from None


def _decode_libsndfile(path: str | os.PathLike, start_s: float, seconds: float | None) -> Audio:
    blocks = []
    with _Stream(os.fsencode(path)) as file:
        rate_hz, subtype, channels = file.samplerate, file.subtype, file.channels
        first = round(start_s * rate_hz)
        left = _UNKNOWN_FRAMES if seconds is None else round((start_s + seconds) * rate_hz) - first
        if first and file.frames < _UNKNOWN_FRAMES:
            left = max(0, min(left, file.frames - first))
            if left:
                soundfile.SoundFile.seek(file, first)
            first = 0
        left += first
        while left and (not blocks or len(blocks[-1]) == _BLOCK_FRAMES):
            size = min(left, _BLOCK_FRAMES)
            blocks.append(file.read(size, dtype="float32", always_2d=True))
            left -= size
    samples_CT = np.empty((channels, sum(map(len, blocks))), np.float32)
    if blocks:
        np.concatenate(blocks, out=samples_CT.T)
    return Audio(samples_CT[:, first:], rate_hz, subtype)


def _decode_ffmpeg(
    path: str | os.PathLike, problem: str, start_s: float, seconds: float | None
) -> Audio:
    """Decodes the first audio track; `problem` is what libsndfile said."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        why = f"libsndfile: {problem.rstrip('.')}; ffmpeg was not tried, it is not on PATH"
        raise AudioError(path, f"not an audio format that can be read here ({why})")
    # The whitelist keeps a playlist posing as audio from fetching anything over the network.
    part = ["-ss", str(start_s)] if start_s else []
    part += ["-t", str(seconds)] if seconds is not None else []
    source = [*part, "-protocol_whitelist", "file,pipe", "-i", f"file:{os.fspath(path)}"]
    target = ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    command = [ffmpeg, "-nostdin", "-v", "error", *source, *target]
    run = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip().partition("\n")[0]
        said = re.sub(r"^(\[[^]]*\] )+", "", said)
        why = f"libsndfile: {problem.rstrip('.')}; ffmpeg: {said or f'exit {run.returncode}'}"
        raise AudioError(path, f"not a readable audio or video file ({why})")
    if len(run.stdout) < 24:
        if start_s:
            return Audio(np.empty((1, 0), np.float32), 1)
        raise AudioError(path, "its first audio track holds no samples")
    # AU header: magic, offset of the samples, size (unknown in a pipe), encoding, rate, channels.
    _, offset, _, _, rate_hz, channels = struct.unpack(">4s5I", run.stdout[:24])
    frames = (len(run.stdout) - offset) // (4 * channels)
    samples = np.frombuffer(run.stdout, ">f4", frames * channels, offset)
    samples_CT = np.ascontiguousarray(samples.reshape(frames, channels).T, np.float32)
    return Audio(samples_CT, rate_hz)
