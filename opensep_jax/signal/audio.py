"""Audio files of any kind, rate and channel count, to float32 arrays.

Samples are `[C, T]`: C channels, T samples per channel. Nothing here clips what it reads.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import soundfile

BLOCK_FRAMES = 1 << 16  # per read: little memory, and few calls
_UNKNOWN_FRAMES = 1 << 62  # libsndfile gives 2**63 - 1 for a FLAC stream without a length
_LEAST_WHOLE = 0.97  # of the samples that the header promises; encoders pad a little
_MPEG_COUNTS = (b"Xing", b"Info", b"VBRI")  # headers that say how long an MPEG stream is


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


class AudioReader:
    """An audio file of any kind, decoded block by block; a context manager.

    Whatever libsndfile does not know (AAC, video files: their first audio track) goes through the
    `ffmpeg` program, if it is on PATH; ffmpeg may open local files only. PCM up to 24 bits is
    exact in float32, and nothing is clipped. Source: ours.

    Attributes:
        sample_rate_hz: samples per second and channel.
        channels: number of them.
        frames: samples per channel as the header has it; None where it does not say.
        subtype: as in `Audio`.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file with any suffix; the content decides.

        Raises:
            AudioError: if the file is missing, a folder, empty, not permitted, or not audio.
        """
        check_readable(path)
        self._path, self._closing, self.frames = path, contextlib.ExitStack(), None
        try:
            self._open_libsndfile()
        except (soundfile.LibsndfileError, TypeError) as err:  # TypeError: a headerless .raw file
            self._closing.close()
            self._open_ffmpeg(getattr(err, "error_string", "a file without a header"))

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """Decodes the file, once.

        Yields:
            float32 [C, n], n >= 1, at most `BLOCK_FRAMES`, all finite.

        Raises:
            AudioError: if the file is damaged or cut short, has no samples, or has NaN or infinite
                samples (their count and first place).
        """
        position, raw = 0, self._raw()
        for block_CT in raw:
            if not np.isfinite(block_CT).all():
                self._refuse(position, block_CT, raw)
            position += block_CT.shape[1]
            yield block_CT
        if not position:
            raise AudioError(self._path, "the file has a valid header but holds no samples")
        if self.frames and position < _LEAST_WHOLE * self.frames:  # decoders of MPEG do not mind
            raise AudioError(self._path, f"cut short: {position} of {self.frames} samples")

    def _open_libsndfile(self) -> None:
        file = self._closing.enter_context(_Stream(os.fsencode(self._path)))
        guessed = file.subtype.startswith("MPEG") and not _tells_length(self._path)
        self.frames = file.frames if file.frames < _UNKNOWN_FRAMES and not guessed else None
        first_TC = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)  # or ffmpeg may try
        self.sample_rate_hz, self.channels, self.subtype = (
            file.samplerate, file.channels, file.subtype,
        )  # fmt: skip

        def read() -> Iterator[np.ndarray]:
            block_TC = first_TC
            while len(block_TC):
                yield np.ascontiguousarray(block_TC.T)
                try:
                    block_TC = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as err:
                    raise AudioError(self._path, f"is damaged: {err.error_string}") from None

        self._raw = read

    def _open_ffmpeg(self, problem: str) -> None:
        """Has ffmpeg decode the first audio track; `problem` is what libsndfile said."""
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            why = f"libsndfile: {problem.rstrip('.')}; ffmpeg was not tried, it is not on PATH"
            raise AudioError(self._path, f"not an audio format that can be read here ({why})")
        # The whitelist keeps a playlist posing as audio from fetching anything over the network.
        source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{os.fspath(self._path)}"]
        target = ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        command = [ffmpeg, "-nostdin", "-v", "error", *source, *target]
        said = self._closing.enter_context(tempfile.TemporaryFile())
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": said}
        process = self._closing.enter_context(subprocess.Popen(command, **options))
        self._closing.callback(process.kill)

        def check() -> None:
            if process.wait():
                said.seek(0)
                line = said.read().decode(errors="replace").strip().partition("\n")[0]
                line = re.sub(r"^(\[[^]]*\] )+", "", line) or f"exit {process.returncode}"
                why = f"libsndfile: {problem.rstrip('.')}; ffmpeg: {line}"
                raise AudioError(self._path, f"not a readable audio or video file ({why})")

        # AU header: magic, offset of samples, size (unknown in a pipe), encoding, rate, channels.
        header = process.stdout.read(24)
        if len(header) < 24:
            try:
                check()
                raise AudioError(self._path, "its first audio track holds no samples")
            finally:
                self._closing.close()
        _, offset, _, _, self.sample_rate_hz, self.channels = struct.unpack(">4s5I", header)
        process.stdout.read(offset - 24)
        self.subtype = None

        def read() -> Iterator[np.ndarray]:
            size = 4 * self.channels
            while data := process.stdout.read(BLOCK_FRAMES * size):
                samples = np.frombuffer(data, ">f4", len(data) // size * self.channels)
                if samples.size:
                    samples_TC = samples.reshape(-1, self.channels)
                    yield np.ascontiguousarray(samples_TC.T, np.float32)
            check()

        self._raw = read

    def _refuse(self, position: int, block_CT: np.ndarray, rest: Iterator[np.ndarray]) -> None:
        """Says how many samples are not finite, from the first such block to the end."""
        sample, channel = np.argwhere(~np.isfinite(block_CT).T)[0]
        bad, frames = 0, position
        for part_CT in itertools.chain([block_CT], rest):
            bad += np.count_nonzero(~np.isfinite(part_CT))
            frames += part_CT.shape[1]
        raise AudioError(
            self._path,
            f"{bad} of {frames * self.channels} samples are NaN or infinite, the first at "
            f"sample {position + sample} of channel {channel}; repair or cut the file",
        )


def read_audio(path: str | os.PathLike) -> Audio:
    """Reads a whole file at its own rate and channel count; see `AudioReader`.

    Args:
        path: file with any suffix; the content decides.

    Returns:
        The samples, float32 [C, T] with T >= 1, all finite.

    Raises:
        AudioError: if the file is missing, a folder, empty, not permitted, not audio, damaged, cut
            short, has no samples, or has NaN or infinite samples (their count and first place).
    """
    with AudioReader(path) as reader:
        samples_CT = np.concatenate(list(reader.blocks()), axis=1)
        return Audio(samples_CT, reader.sample_rate_hz, reader.subtype)


def read_parts(path: str | os.PathLike, starts: Sequence[int], frames: int) -> list[np.ndarray]:
    """Reads parts of a file, which may overlap; the rest is decoded and forgotten.

    Args:
        path: file as for `read_audio`.
        starts: first sample of each part.
        frames: length of the parts; those that begin near the end of the file are shorter.

    Returns:
        float32 [C, <= frames] for each start.

    Raises:
        AudioError: as `read_audio`, for what comes before the end of the last part.
    """
    pieces: list[list[np.ndarray]] = [[] for _ in starts]
    position = 0
    with AudioReader(path) as reader:
        for block_CT in reader.blocks():
            if position >= max(starts) + frames:
                break
            for part, start in zip(pieces, starts, strict=True):
                piece_CT = block_CT[:, max(0, start - position) : max(0, start + frames - position)]
                part.append(piece_CT.copy())
            position += block_CT.shape[1]
    return [np.concatenate(part, axis=1) for part in pieces]


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
    with AudioReader(path) as reader:
        frames = reader.frames
        if frames is None:
            frames = sum(block_CT.shape[1] for block_CT in reader.blocks())
        return AudioInfo(frames, reader.sample_rate_hz, reader.channels)


def check_readable(path: str | os.PathLike) -> None:
    """Checks what can be seen of a file without opening a pipe, which would wait for a writer.

    Raises:
        AudioError: if it is missing, no regular file, empty, or not permitted.
    """
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


def _tells_length(path: str | os.PathLike) -> bool:
    """Whether an MPEG stream says how long it is; else libsndfile guesses by its first bit rate."""
    with open(path, "rb") as stream:
        head = stream.read(10)  # of a tag: "ID3", version, flags, size in 4 times 7 bits
        size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
        stream.seek(10 + size if head[:3] == b"ID3" else 0)
        first = stream.read(4096)  # the frame that it is in, and some padding
    return any(count in first for count in _MPEG_COUNTS)
