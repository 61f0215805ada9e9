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
_WAV_TYPES = {"PCM_16": "<i2", "PCM_24": "<i4", "FLOAT": "<f4"}
_BLOCK_FRAMES = 1 << 16  # libsndfile's Vorbis writer overflows its stack on very long writes
_MAX_RIFF_BYTES = 2**32 - 1  # behind the first 8
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
    ):
        """Opens a file.

        Args:
            path: target; its suffix picks the format, one of WRITE_FORMATS; WAV of more than 4 GiB
                becomes RF64. The folder must exist.
            sample_rate_hz: samples per second and channel.
            channels: number of them.
            subtype: one of the format's in WRITE_FORMATS, by default its first.

        Raises:
            AudioError: if the format cannot hold these channels or this rate, or the system refuses
                the write; the message says what would work.
        """
        self._path = Path(path)
        self._kind = WRITE_FORMATS.get(self._path.suffix.lower())
        self._subtype = _check_writable(self._path, self._kind, channels, sample_rate_hz, subtype)
        self._channels, self.clipped = channels, 0
        self._held: list[np.ndarray] = []  # blocks that are not written yet
        self._part = self._path.with_name(f".{secrets.token_hex(8)}.part")
        with self._named():
            if self._kind.name == "WAV":
                self._file = _Wav(self._part, sample_rate_hz, channels, self._subtype)
            else:
                raw = os.fsencode(self._part)  # which need not be UTF-8
                self._file = soundfile.SoundFile(
                    raw, "w", sample_rate_hz, channels, self._subtype, format=self._kind.name
                )

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
    with AudioWriter(path, sample_rate_hz, len(samples_CT), subtype) as writer:
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


class _Wav:
    """A WAV file: RIFF, or RF64 (EBU Tech 3306) if it has become too long for that.

    Not libsndfile's: that must know beforehand which of them, and its float WAV carries the time of
    writing.
    """

    def __init__(self, path: Path, sample_rate_hz: int, channels: int, subtype: str):
        self._rate_hz, self._channels, self._subtype = sample_rate_hz, channels, subtype
        self._frames, self._stream = 0, path.open("wb")
        self._stream.write(self._header())

    def write(self, samples_TC: np.ndarray) -> None:
        """Appends samples: float, int16, or for PCM_24 int32 of which the top is written."""
        parts = np.ascontiguousarray(samples_TC, _WAV_TYPES[self._subtype])
        if self._subtype == "PCM_24":
            parts = np.ascontiguousarray(parts.view(np.uint8).reshape(-1, 4)[:, 1:])
        self._stream.write(parts.data)
        self._frames += len(samples_TC)

    def close(self) -> None:
        with self._stream:
            self._stream.write(bytes(self._data_bytes % 2))  # chunks have even lengths
            self._stream.seek(0)
            self._stream.write(self._header())

    @property
    def _data_bytes(self) -> int:
        return self._frames * self._channels * _BYTES[self._subtype]

    def _header(self) -> bytes:
        """All up to the samples, always of one length: what RF64 needs room for is JUNK in RIFF."""
        size, rate_hz, data = _BYTES[self._subtype], self._rate_hz, self._data_bytes
        frame, is_float = self._channels * size, self._subtype == "FLOAT"
        form = struct.pack(
            "<HHIIHH", 3 if is_float else 1, self._channels, rate_hz, rate_hz * frame, frame,
            8 * size,
        )  # fmt: skip
        chunks = _chunk(b"fmt ", form)
        if is_float:
            fact = struct.pack("<I", min(self._frames, 2**32 - 1))
            chunks = _chunk(b"fmt ", form + bytes(2)) + _chunk(b"fact", fact)
        whole = 4 + len(_chunk(b"ds64", bytes(28))) + len(chunks) + 8 + data + data % 2
        if whole <= _MAX_RIFF_BYTES:
            name, whole_32, data_32, room = b"RIFF", whole, data, _chunk(b"JUNK", bytes(28))
        else:
            name, whole_32, data_32 = b"RF64", 2**32 - 1, 2**32 - 1
            room = _chunk(b"ds64", struct.pack("<QQQI", whole, data, self._frames, 0))
        start = name + struct.pack("<I", whole_32) + b"WAVE"
        return start + room + chunks + b"data" + struct.pack("<I", data_32)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


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
