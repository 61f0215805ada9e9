"""Float32 arrays to audio files, deterministic: the same samples give the same bytes.

Samples are `[C, T]`: C channels, T samples per channel.
"""

import contextlib
import os
import secrets
import struct
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from opensep_jax.signal.audio import AudioError


class WriteFormat(NamedTuple):
    """What a written format can hold; `subtypes` has the default first."""

    name: str
    subtypes: tuple[str, ...]
    max_channels: int
    rates_hz: Container[int]
    rates_text: str


_FLAC_HZ = frozenset(range(1, 65_536)) | frozenset(range(65_540, 655_351, 10))
_MP3_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# Ogg's limits matter: beyond them libsndfile crashes the process.
WRITE_FORMATS = {
    ".wav": WriteFormat(
        "WAV", ("FLOAT", "PCM_16", "PCM_24"), 1024, range(1, 1_000_001), "1 Hz to 1 MHz"
    ),
    ".flac": WriteFormat(
        "FLAC", ("PCM_16", "PCM_24"), 8, _FLAC_HZ, "1 to 65535 Hz, by tens to 655350 Hz"
    ),
    ".ogg": WriteFormat("OGG", ("VORBIS",), 255, range(1, 200_001), "1 to 200000 Hz"),
    ".mp3": WriteFormat("MP3", ("MPEG_LAYER_III",), 2, _MP3_HZ, f"{str(_MP3_HZ)[1:-1]} Hz"),
}
_PCM_BITS = {"PCM_16": 16, "PCM_24": 24}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_BLOCK_FRAMES = 1 << 16  # libsndfile's Vorbis writer overflows its stack on very long writes
_MAX_WAV_BYTES = 2**32 - 4096
_NO_LIMIT = 2**63
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def quantize(samples: np.ndarray, subtype: str) -> tuple[np.ndarray, int]:
    """Rounds samples to the values that a file of this subtype can hold.

    A residual made as quantize(input) - sum(quantize(stems)) is on the grid too, so that the
    written stems and residual sum to the input exactly, up to clipping.

    Args:
        samples: float, any shape, full scale [-1, 1).
        subtype: "PCM_16" (step 2**-15) or "PCM_24" (2**-23); others, such as "FLOAT", round to
            float32.

    Returns:
        The rounded samples as float64, in which sums of them are exact, and how many samples
        outside the range were clipped to its ends.

    Raises:
        ValueError: if a sample is NaN or infinite.

    Source: ours; full scale 2**(bits - 1) is libsndfile's when reading, so read(write(x)) == x.
    """
    if not np.isfinite(samples).all():
        raise ValueError(f"cannot round to {subtype}: NaN or infinite samples")
    if subtype not in _PCM_BITS:
        return np.asarray(samples, np.float32).astype(np.float64), 0
    full = 2.0 ** (_PCM_BITS[subtype] - 1)
    steps = np.rint(np.asarray(samples, np.float64) * full)
    clipped = np.count_nonzero((steps < -full) | (steps > full - 1))
    return np.clip(steps, -full, full - 1) / full, int(clipped)


class AudioWriter:
    """An audio file that is written block by block; a context manager.

    It appears complete under its name when the context ends, or not at all if an error ended it.

    Attributes:
        clipped: how many samples the PCM grid has clipped so far; 0 for float and lossy formats.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        sample_rate_hz: int,
        channels: int,
        subtype: str | None = None,
        frames: int = 0,
    ):
        """Opens a file.

        Args:
            path: target; its suffix picks the format, one of WRITE_FORMATS. The folder must exist.
            sample_rate_hz: samples per second and channel.
            channels: number of them.
            subtype: one of the format's in WRITE_FORMATS, by default its first.
            frames: samples per channel that are expected; WAV of more than 4 GiB becomes RF64.

        Raises:
            AudioError: if the format cannot hold these channels or this rate, or the system refuses
                the write; the message says what would work.
        """
        self._path = Path(path)
        self._kind = WRITE_FORMATS.get(self._path.suffix.lower())
        self._subtype = _check_writable(self._path, self._kind, channels, sample_rate_hz, subtype)
        self._channels, self.clipped = channels, 0
        self._held: list[np.ndarray] = []  # blocks that are not written yet
        self._size = channels * _BYTES.get(self._subtype, 0)  # of a frame; lossy: no matter
        self._room = _MAX_WAV_BYTES if self._kind.name == "WAV" else _NO_LIMIT
        is_long = frames * self._size > self._room
        self._room = _NO_LIMIT if is_long else self._room
        self._part = self._path.with_name(f".{secrets.token_hex(8)}.part")
        with self._named():
            if self._subtype == "FLOAT":
                # Not libsndfile: its float WAV carries the time of writing in a PEAK chunk.
                self._file = _FloatWav(self._part, sample_rate_hz, channels, is_long)
            else:
                raw = os.fsencode(self._part)  # which need not be UTF-8
                options = {
                    "subtype": self._subtype,
                    "format": "RF64" if is_long else self._kind.name,
                }
                self._file = soundfile.SoundFile(raw, "w", sample_rate_hz, channels, **options)

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._named():
                try:
                    if kind is None:
                        self._flush(1)
                finally:
                    self._file.close()
                if kind is None:
                    if self._kind.name == "OGG":
                        _zero_ogg_serial(self._part)
                    os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, samples_CT: np.ndarray) -> None:
        """Appends a block.

        Args:
            samples_CT: float32 [C, n], finite. "FLOAT" keeps every bit; PCM rounds to the nearest
                step and clips outside [-1, 1).

        Raises:
            AudioError: if samples are not as above, or the system refuses the write.
        """
        bad = np.count_nonzero(~np.isfinite(samples_CT))
        if bad or len(samples_CT) != self._channels:
            problem = f"{bad} of {samples_CT.size} samples are NaN or infinite"
            shape = f"need samples [{self._channels}, n], got shape {samples_CT.shape}"
            raise AudioError(self._path, problem if bad else shape)
        self._room -= samples_CT.shape[1] * self._size
        if self._room < 0:
            raise AudioError(self._path, "WAV of unknown length holds at most 4 GiB; write .flac")
        samples_TC = samples_CT.T
        if self._subtype in _PCM_BITS:
            grid, clipped = quantize(samples_TC, self._subtype)
            self.clipped += clipped
            dtype = np.int16 if self._subtype == "PCM_16" else np.int32  # which is top-aligned
            samples_TC = (grid * 2.0 ** (np.iinfo(dtype).bits - 1)).astype(dtype)
        self._held.append(samples_TC)
        if sum(map(len, self._held)) >= _BLOCK_FRAMES:
            self._flush(_BLOCK_FRAMES)

    def _flush(self, least: int) -> None:
        """Writes what is held in blocks of one size: Vorbis files depend on it."""
        held_TC = np.concatenate(self._held) if self._held else np.zeros((0, self._channels))
        with self._named():
            while len(held_TC) >= least:
                self._file.write(held_TC[:_BLOCK_FRAMES])
                held_TC = held_TC[_BLOCK_FRAMES:]
        self._held = [held_TC]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Names the file in what goes wrong, and leaves nothing of it behind."""
        try:
            try:
                yield
            except OSError as err:
                raise AudioError(self._path, f"cannot be written: {err.strerror}") from err
            except (soundfile.LibsndfileError, AssertionError) as err:
                # soundfile asserts that every sample went out: a full disk ends there.
                reason = getattr(err, "error_string", "the write was cut short")
                why = f"cannot be written ({reason}): is the disk full?"
                raise AudioError(self._path, why) from err
        except AudioError:
            self._part.unlink(missing_ok=True)
            raise


def write_audio(
    path: str | os.PathLike,
    samples_CT: np.ndarray,
    sample_rate_hz: int,
    subtype: str | None = None,
) -> int:
    """Writes a whole file; see `AudioWriter`.

    Args:
        path: target.
        samples_CT: float32 [C, T], T >= 1, finite.
        sample_rate_hz: samples per second and channel.
        subtype: one of the format's in WRITE_FORMATS, by default its first.

    Returns:
        How many samples the PCM grid clipped; 0 for float and lossy formats.

    Raises:
        AudioError: if the format cannot hold these channels, rate or samples, or the system
            refuses the write; the message says what would work.
    """
    samples_CT = np.asarray(samples_CT, np.float32)
    if samples_CT.ndim != 2 or not samples_CT.size:
        raise AudioError(path, f"need samples [C, T] with T >= 1, got shape {samples_CT.shape}")
    channels, frames = samples_CT.shape
    with AudioWriter(path, sample_rate_hz, channels, subtype, frames) as writer:
        writer.write(samples_CT)
    return writer.clipped


def _check_writable(
    path: Path, kind: WriteFormat | None, channels: int, sample_rate_hz: int, subtype: str | None
) -> str:
    """Raises AudioError for what the format cannot hold; returns the subtype to write."""
    if kind is None:
        raise AudioError(path, f"cannot write this suffix; use {', '.join(WRITE_FORMATS)}")
    subtype = subtype or kind.subtypes[0]
    if subtype not in kind.subtypes:
        raise AudioError(path, f"{kind.name} cannot hold {subtype}; use {kind.subtypes}")
    remedy = "" if kind.name == "WAV" else "; write .wav instead"
    if channels > kind.max_channels:
        limit = f"{kind.name} holds at most {kind.max_channels} channels"
        raise AudioError(path, f"{limit}, got {channels}{remedy}")
    if sample_rate_hz not in kind.rates_hz:
        limit = f"{kind.name} holds sample rates of {kind.rates_text}"
        raise AudioError(path, f"{limit}, got {sample_rate_hz} Hz{remedy}")
    return subtype


class _FloatWav:
    """A WAV file of float32 samples: RIFF, or RF64 (EBU Tech 3306) for more than 4 GiB."""

    def __init__(self, path: Path, sample_rate_hz: int, channels: int, is_long: bool):
        self._stream = path.open("wb")
        self._rate_hz, self._channels, self._is_long, self._frames = (
            sample_rate_hz, channels, is_long, 0,
        )  # fmt: skip
        self._stream.write(self._header())

    def write(self, samples_TC: np.ndarray) -> None:
        self._stream.write(np.ascontiguousarray(samples_TC, "<f4").data)
        self._frames += len(samples_TC)

    def close(self) -> None:
        with self._stream:
            self._stream.seek(0)
            self._stream.write(self._header())

    def _header(self) -> bytes:
        size, rate_hz = 4 * self._channels, self._rate_hz
        data = self._frames * size
        form = struct.pack("<HHIIHHH", 3, self._channels, rate_hz, rate_hz * size, size, 32, 0)
        fact = struct.pack("<4sII", b"fact", 4, min(self._frames, 2**32 - 1))
        chunks = b"WAVE%sfmt " + struct.pack("<I", len(form)) + form + fact + b"data"
        if not self._is_long:
            body = chunks % b""
            return (
                b"RIFF" + struct.pack("<I", len(body) + 4 + data) + body + struct.pack("<I", data)
            )
        sizes = struct.pack("<4sIQQQI", b"ds64", 28, 0, data, self._frames, 0)
        body = chunks % sizes
        sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(body) + 4 + data, data, self._frames, 0)
        return b"RF64" + b"\xff" * 4 + chunks % sizes + b"\xff" * 4


def _zero_ogg_serial(path: Path) -> None:
    """Sets the stream number, which libsndfile draws from the clock, to 0 on every page."""
    with path.open("r+b") as stream:
        while page := _next_page(stream):
            page[14:18] = page[22:26] = bytes(4)
            # Ogg's CRC is zlib's polynomial on mirrored bits, starting at 0 and not inverted.
            crc = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
            page[22:26] = crc.to_bytes(4, "little").translate(_MIRRORED)[::-1]
            stream.seek(-len(page), os.SEEK_CUR)
            stream.write(page)


def _next_page(stream: BinaryIO) -> bytearray:
    """A page of an Ogg stream; empty at its end."""
    # RFC 3533: 14 bytes, serial, sequence number, checksum, segment table, segments.
    page = bytearray(stream.read(27))
    if page:
        page += stream.read(page[26])
        page += stream.read(sum(page[27:]))
    return page
