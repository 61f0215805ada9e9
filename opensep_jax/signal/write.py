"""Float32 arrays to audio files, deterministic: the same samples give the same bytes.

Samples are `[C, T]`: C channels, T samples per channel.
"""

import os
import secrets
import zlib
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.io import wavfile

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


def write_audio(
    path: str | os.PathLike,
    samples_CT: np.ndarray,
    sample_rate_hz: int,
    subtype: str | None = None,
) -> int:
    """Writes a file in one step: it appears complete under its name or not at all.

    Args:
        path: target; its suffix picks the format, one of WRITE_FORMATS. The folder must exist.
        samples_CT: float32 [C, T], T >= 1, finite. "FLOAT" keeps every bit; PCM rounds to the
            nearest step and clips outside [-1, 1).
        sample_rate_hz: samples per second and channel.
        subtype: one of the format's in WRITE_FORMATS, by default its first.

    Returns:
        How many samples the PCM grid clipped; 0 for float and lossy formats.

    Raises:
        AudioError: if the format cannot hold these channels, rate or samples, or the system
            refuses the write; the message says what would work.

    Source: ours.
    """
    path = Path(path)
    samples_CT = np.asarray(samples_CT, np.float32)
    subtype = _check_writable(path, samples_CT, sample_rate_hz, subtype)
    clipped = 0
    samples_TC = samples_CT.T
    if subtype in _PCM_BITS:
        grid, clipped = quantize(samples_TC, subtype)
        dtype = np.int16 if subtype == "PCM_16" else np.int32  # soundfile: int32 is top-aligned
        samples_TC = (grid * 2.0 ** (np.iinfo(dtype).bits - 1)).astype(dtype)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if subtype == "FLOAT":
            # Not libsndfile: its float WAV carries the time of writing in a PEAK chunk.
            wavfile.write(part, sample_rate_hz, samples_TC)
        else:
            name = WRITE_FORMATS[path.suffix.lower()].name
            _encode_libsndfile(part, samples_TC, sample_rate_hz, name, subtype)
        os.replace(part, path)
    except OSError as err:
        raise AudioError(path, f"cannot be written: {err.strerror}") from err
    except (soundfile.LibsndfileError, AssertionError) as err:
        # soundfile asserts that every sample went out: a full disk ends there.
        reason = getattr(err, "error_string", "the write was cut short")
        raise AudioError(path, f"cannot be written ({reason}): is the disk full?") from err
    finally:
        part.unlink(missing_ok=True)
    return clipped


def _check_writable(
    path: Path, samples_CT: np.ndarray, sample_rate_hz: int, subtype: str | None
) -> str:
    """Raises AudioError for what the format cannot hold; returns the subtype to write."""
    kind = WRITE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise AudioError(path, f"cannot write this suffix; use {', '.join(WRITE_FORMATS)}")
    subtype = subtype or kind.subtypes[0]
    if subtype not in kind.subtypes:
        raise AudioError(path, f"{kind.name} cannot hold {subtype}; use {kind.subtypes}")
    if samples_CT.ndim != 2 or not samples_CT.size:
        raise AudioError(path, f"need samples [C, T] with T >= 1, got shape {samples_CT.shape}")
    bad = np.count_nonzero(~np.isfinite(samples_CT))
    if bad:
        raise AudioError(path, f"{bad} of {samples_CT.size} samples are NaN or infinite")
    channels = samples_CT.shape[0]
    remedy = "" if kind.name == "WAV" else "; write .wav instead"
    if channels > kind.max_channels:
        limit = f"{kind.name} holds at most {kind.max_channels} channels"
        raise AudioError(path, f"{limit}, got {channels}{remedy}")
    if sample_rate_hz not in kind.rates_hz:
        limit = f"{kind.name} holds sample rates of {kind.rates_text}"
        raise AudioError(path, f"{limit}, got {sample_rate_hz} Hz{remedy}")
    if kind.name == "WAV" and samples_CT.size * _BYTES[subtype] > _MAX_WAV_BYTES:
        raise AudioError(path, "WAV holds at most 4 GiB; write .flac instead, or shorter pieces")
    return subtype


def _encode_libsndfile(
    path: Path, samples_TC: np.ndarray, rate_hz: int, name: str, subtype: str
) -> None:
    channels = samples_TC.shape[1]
    raw = os.fsencode(path)  # which need not be UTF-8
    with soundfile.SoundFile(raw, "w", rate_hz, channels, subtype, format=name) as file:
        for start in range(0, len(samples_TC), _BLOCK_FRAMES):
            file.write(samples_TC[start : start + _BLOCK_FRAMES])
    if name == "OGG":
        path.write_bytes(_ogg_without_serial(path.read_bytes()))


def _ogg_without_serial(data: bytes) -> bytes:
    """Sets the stream number, which libsndfile draws from the clock, to 0 on every page."""
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    pages, start = [], 0
    while start < len(data):
        # Page (RFC 3533): 14 bytes, serial, sequence number, checksum, segment table, segments.
        table_end = start + 27 + data[start + 26]
        end = table_end + sum(data[start + 27 : table_end])
        page = bytearray(data[start:end])
        page[14:18] = page[22:26] = bytes(4)
        # Ogg's CRC is zlib's polynomial on mirrored bits, starting at 0 and not inverted.
        crc = zlib.crc32(page.translate(reverse), 0xFFFFFFFF) ^ 0xFFFFFFFF
        page[22:26] = crc.to_bytes(4, "little").translate(reverse)[::-1]
        pages.append(page)
        start = end
    return b"".join(pages)
