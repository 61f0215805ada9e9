"""Tests of quantizing and writing: exact, deterministic, in one step, limits named."""

import os
import shutil
import struct
import subprocess
import time

import numpy as np
import pytest
import soundfile
from scipy.io import wavfile

from opensep_jax.signal import audio, write
from opensep_jax.signal.audio import AudioError


def noise(channels=2, frames=5000, scale=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((channels, frames))).astype(np.float32)


@pytest.mark.parametrize(
    "channels, rate_hz",
    [(1, 1), (1, 1000), (2, 44_100), (8, 192_000), (1024, 8000), (3, 1_000_000)],
)
def test_float_wav_keeps_every_bit(tmp_path, channels, rate_hz):
    samples = noise(channels, 777, scale=2.0)  # beyond full scale too
    samples[0, :4] = [0.0, -0.0, 1e-42, 3e38]
    assert write.write_audio(tmp_path / "x.wav", samples, rate_hz) == 0
    back = audio.read_audio(tmp_path / "x.wav")
    assert back.samples_CT.dtype == np.float32 and back.samples_CT.flags.c_contiguous
    assert back.samples_CT.tobytes() == samples.tobytes()
    assert (back.sample_rate_hz, back.subtype) == (rate_hz, "FLOAT")
    info = audio.audio_info(tmp_path / "x.wav")
    assert info == audio.AudioInfo(777, rate_hz, channels) and info.seconds == 777 / rate_hz


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_pcm_holds_exactly_the_quantized_samples(tmp_path, name, subtype):
    samples = noise(scale=0.4)
    samples[1, :3] = [1.0, -1.0, -7.0]
    grid, clipped = write.quantize(samples, subtype)
    assert write.write_audio(tmp_path / name, samples, 48_000, subtype) == clipped >= 2
    back = audio.read_audio(tmp_path / name)
    np.testing.assert_array_equal(back.samples_CT, grid)
    assert back.subtype == subtype
    # What was read is written again without a change: to the byte.
    write.write_audio(tmp_path / f"again-{name}", back.samples_CT, 48_000, subtype)
    assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["x.ogg", "x.mp3"])
def test_lossy_formats_keep_length_and_sound(tmp_path, name):
    seconds = np.arange(200_000) / 44_100  # longer than a block
    samples = (
        np.stack([np.sin(2 * np.pi * f * seconds) for f in (440, 1000)]).astype(np.float32) / 2
    )
    write.write_audio(tmp_path / name, samples, 44_100)
    back = audio.read_audio(tmp_path / name)
    assert back.samples_CT.shape == samples.shape and back.sample_rate_hz == 44_100
    error = np.sum((back.samples_CT - samples) ** 2)
    assert 10 * np.log10(np.sum(samples**2) / error) > 30


def test_the_same_samples_give_the_same_bytes(tmp_path):
    samples = noise(frames=100_000)
    written = {}
    for name, subtype in (
        ("f.wav", "FLOAT"),
        ("p.wav", "PCM_16"),
        ("x.flac", "PCM_24"),
        ("x.ogg", None),
        ("x.mp3", None),
    ):
        write.write_audio(tmp_path / name, samples, 48_000, subtype)
        written[name] = (tmp_path / name).read_bytes(), subtype
    # libsndfile would stamp float WAV and Ogg with the time; let the second change.
    time.sleep(1.1)
    for name, (first, subtype) in written.items():
        write.write_audio(tmp_path / name, samples, 48_000, subtype)
        assert (tmp_path / name).read_bytes() == first, name


def test_ogg_pages_stay_valid_after_the_serial_is_zeroed(tmp_path):
    """The checksums equal a bit-by-bit computation of RFC 3533's CRC."""
    write.write_audio(tmp_path / "x.ogg", noise(1, 3000), 16_000)
    data = (tmp_path / "x.ogg").read_bytes()
    starts = [i for i in range(len(data)) if data[i : i + 5] == b"OggS\0"]
    assert len(starts) >= 3
    for start, end in zip(starts, starts[1:] + [len(data)], strict=True):
        page = bytearray(data[start:end])
        assert page[14:18] == bytes(4)
        stored = struct.unpack_from("<I", page, 22)[0]
        page[22:26] = bytes(4)
        crc = 0
        for byte in page:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
        assert crc == stored


def test_a_write_replaces_in_one_step_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.wav"
    write.write_audio(path, noise(seed=1), 16_000)
    before = path.read_bytes()
    os.link(path, tmp_path / "other-name")
    write.write_audio(path, noise(seed=2), 16_000)
    # A new file took the name: the old one was never opened for writing.
    assert (tmp_path / "other-name").read_bytes() == before != path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["other-name", "x.wav"]
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="folder.wav: cannot be written: Is a directory"):
        write.write_audio(tmp_path / "folder.wav", noise(), 16_000)
    assert sorted(os.listdir(tmp_path)) == ["folder.wav", "other-name", "x.wav"]


@pytest.mark.parametrize(
    "name, subtype", [("x.wav", "FLOAT"), ("x.wav", "PCM_16"), ("x.ogg", None)]
)
def test_a_full_disk_is_named(tmp_path, name, subtype):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(AudioError, match=f"{name}: cannot be written"):
            write.write_audio(tmp_path / name, noise(2, 300_000), 16_000, subtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name, subtype",
    [("x.wav", "FLOAT"), ("x.wav", "PCM_24"), ("x.flac", "PCM_16"), ("x.ogg", None)],
)
def test_blocks_make_the_same_file(tmp_path, name, subtype):
    samples = noise(2, 150_000)
    write.write_audio(tmp_path / name, samples, 44_100, subtype)
    with write.AudioWriter(tmp_path / f"b{name}", 44_100, 2, subtype) as writer:
        for start in range(0, 150_000, 7001):
            writer.write(samples[:, start : start + 7001])
        assert not (tmp_path / f"b{name}").exists()
    assert (tmp_path / f"b{name}").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("subtype, dtype", [("FLOAT", np.float32), ("PCM_16", np.int16)])
def test_wav_is_what_scipy_writes(tmp_path, subtype, dtype):
    """But for a chunk of junk, which RF64 needs the room of."""
    samples = noise(3, 1000)
    write.write_audio(tmp_path / "x.wav", samples, 44_100, subtype)
    grid = write.quantize(samples, subtype)[0].T * (2**15 if subtype == "PCM_16" else 1)
    wavfile.write(tmp_path / "y.wav", 44_100, grid.astype(dtype))
    data, want = ((tmp_path / name).read_bytes() for name in ("x.wav", "y.wav"))
    assert data[12:48] == b"JUNK" + struct.pack("<I", 28) + bytes(28)
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    assert data[8:12] + data[48:] == want[8:]


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("limit, name", [(2**32 - 1, b"RIFF"), (20_000, b"RF64")])
def test_more_than_a_wav_holds(tmp_path, monkeypatch, subtype, limit, name):
    """Nobody says how long it will be; the sizes of RF64 are read from a chunk of their own."""
    monkeypatch.setattr(write, "_MAX_RIFF_BYTES", limit)
    samples = noise(3, 7001)  # 24 bits: an odd number of bytes
    with write.AudioWriter(tmp_path / "x.wav", 44_100, 3, subtype) as writer:
        for start in range(0, 7001, 900):
            writer.write(samples[:, start : start + 900])
    data = (tmp_path / "x.wav").read_bytes()
    assert data[:4] == name and len(data) % 2 == 0
    info = soundfile.info(tmp_path / "x.wav")
    assert (info.frames, info.format, info.subtype) == (
        7001, "RF64" if name == b"RF64" else "WAV", subtype
    )  # fmt: skip
    back = audio.read_audio(tmp_path / "x.wav")
    np.testing.assert_array_equal(back.samples_CT, write.quantize(samples, subtype)[0])
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", tmp_path / "y.flac"]
        subprocess.run(command, check=True)
        assert audio.audio_info(tmp_path / "y.flac").frames == 7001


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        with write.AudioWriter(tmp_path / "x.flac", 44_100, 1) as writer:
            writer.write(noise(1, 100))
            raise KeyError
    with pytest.raises(AudioError, match=r"need samples \[1, n\], got shape \(2, 100\)"):
        with write.AudioWriter(tmp_path / "x.flac", 44_100, 1) as writer:
            writer.write(noise(2, 100))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name, channels, rate_hz, subtype, message",
    [
        ("x.flac", 9, 48_000, None, "FLAC holds at most 8 channels, got 9; write .wav instead"),
        ("x.flac", 1, 700_000, None, "by tens to 655350 Hz, got 700000 Hz; write .wav"),
        ("x.flac", 1, 96_001, None, "by tens to 655350 Hz, got 96001 Hz; write .wav"),
        ("x.mp3", 3, 48_000, None, "MP3 holds at most 2 channels, got 3; write .wav"),
        ("x.mp3", 2, 96_000, None, "44100, 48000 Hz, got 96000 Hz; write .wav"),
        ("x.ogg", 256, 48_000, None, "OGG holds at most 255 channels, got 256; write .wav"),
        ("x.ogg", 1, 200_001, None, "1 to 200000 Hz, got 200001 Hz; write .wav"),
        ("x.wav", 1025, 48_000, None, "WAV holds at most 1024 channels, got 1025"),
        ("x.wav", 1, 0, None, "got 0 Hz"),
        ("x.wav", 1, 48_000, "VORBIS", "WAV cannot hold VORBIS; use .*PCM_24"),
        ("x.flac", 1, 48_000, "FLOAT", "FLAC cannot hold FLOAT"),
        ("x.txt", 1, 48_000, None, "cannot write this suffix; use .wav, .flac, .ogg, .mp3"),
        ("missing/x.wav", 1, 48_000, None, "No such file or directory"),
        ("missing/x.flac", 1, 48_000, None, "cannot be written"),
    ],
)
def test_what_a_format_cannot_hold_is_named(tmp_path, name, channels, rate_hz, subtype, message):
    with pytest.raises(AudioError, match=f"{name}: .*{message}"):
        write.write_audio(tmp_path / name, noise(channels, 100), rate_hz, subtype)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name, channels, rate_hz", [("x.ogg", 255, 8000), ("x.ogg", 1, 200_000)])
def test_the_largest_that_vorbis_holds(tmp_path, name, channels, rate_hz):
    write.write_audio(tmp_path / name, noise(channels, 3000), rate_hz)
    assert audio.audio_info(tmp_path / name) == audio.AudioInfo(3000, rate_hz, channels)


def test_samples_that_cannot_be_written(tmp_path):
    broken = noise()
    broken[1, 3] = np.inf
    for samples, message in (
        (broken, "1 of 10000 samples are NaN or infinite"),
        (np.zeros((2, 0), np.float32), r"T >= 1, got shape \(2, 0\)"),
        (np.zeros(100, np.float32), r"got shape \(100,\)"),
    ):
        with pytest.raises(AudioError, match=message):
            write.write_audio(tmp_path / "x.wav", samples, 16_000)


# Quantizing


def test_quantize_by_hand():
    step = 2.0**-15
    samples = np.array([0.4 * step, 0.6 * step, -0.6 * step, 1.0, -1.0, 1.0 - step, 5.0, -5.0])
    result, clipped = write.quantize(samples, "PCM_16")
    assert result.dtype == np.float64 and clipped == 3
    np.testing.assert_array_equal(result, [0, step, -step, 1 - step, -1, 1 - step, 1 - step, -1])
    same, clipped = write.quantize(samples, "FLOAT")
    np.testing.assert_array_equal(same, samples.astype(np.float32))
    assert clipped == 0
    with pytest.raises(ValueError, match="NaN"):
        write.quantize(np.array([np.nan]), "PCM_16")


@pytest.mark.parametrize("subtype, step", [("PCM_16", 2.0**-15), ("PCM_24", 2.0**-23)])
def test_written_stems_and_residual_sum_to_the_input(tmp_path, subtype, step):
    stems = [noise(seed=seed) for seed in range(4)]
    mixture = sum(stems) + noise(seed=9, scale=0.01)
    target = write.quantize(mixture, subtype)[0]
    residual = target - sum(write.quantize(stem, subtype)[0] for stem in stems)
    total = 0.0
    for i, samples in enumerate([*stems, residual]):
        assert write.write_audio(tmp_path / f"{i}.wav", samples, 16_000, subtype) == 0
        total = total + audio.read_audio(tmp_path / f"{i}.wav").samples_CT.astype(np.float64)
    np.testing.assert_array_equal(total, target)
    assert np.abs(total - mixture).max() <= step / 2 + 1e-7
