"""Tests of reading: hostile files are named, blocks are the file."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from opensep_jax.signal import audio, write
from opensep_jax.signal.audio import AudioError

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on PATH")


def noise(channels=2, frames=5000, scale=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((channels, frames))).astype(np.float32)


def problem(path):
    with pytest.raises(AudioError) as caught:
        audio.read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


# Hostile files


def test_missing_folder_and_empty(tmp_path):
    assert "no such file" in problem(tmp_path / "no.wav")
    assert "is a folder" in problem(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "empty (0 bytes)" in problem(tmp_path / "empty.wav")
    assert "no such file" in problem(tmp_path / "empty.wav" / "below")
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in problem(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        audio.check_readable(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="no such file"):
        audio.audio_info(tmp_path / "no.wav")


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text.mp3", "text"])
def test_text_says_that_ffmpeg_is_absent(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).write_text("This is no sound. " * 50)
    message = problem(tmp_path / name)
    assert "libsndfile: " in message and "ffmpeg was not tried, it is not on PATH" in message


@needs_ffmpeg
@pytest.mark.parametrize("name", ["text.wav", "text.txt", "text.m3u8"])
def test_text_says_what_ffmpeg_said(tmp_path, name):
    (tmp_path / name).write_text("#EXTM3U\nhttp://localhost/x.ts\n")
    assert "; ffmpeg: " in problem(tmp_path / name)


def test_a_header_without_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros((0, 2)), 16_000)
    assert "valid header but holds no samples" in problem(tmp_path / "x.wav")
    assert audio.audio_info(tmp_path / "x.wav").frames == 0


def test_nan_and_infinite_samples_are_counted_and_placed(tmp_path):
    samples_TC = noise().T.copy()
    samples_TC[[4000, 17, 30], [0, 1, 0]] = [np.nan, np.inf, -np.inf]
    soundfile.write(tmp_path / "x.wav", samples_TC, 16_000, "FLOAT")
    message = problem(tmp_path / "x.wav")
    assert "3 of 10000 samples are NaN or infinite, the first at sample 17 of channel 1" in message


def test_a_file_without_permission(tmp_path):
    path = tmp_path / "x.wav"
    write.write_audio(path, noise(), 16_000)
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # root may read everything
    try:
        message = problem(path)
    finally:
        if is_root:
            os.seteuid(0)
    assert "no permission" in message


def test_a_truncated_wav_gives_what_is_there(tmp_path):
    samples = noise(1, 5000)
    write.write_audio(tmp_path / "x.wav", samples, 16_000)
    data = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(data[: len(data) - 8000])
    np.testing.assert_array_equal(
        audio.read_audio(tmp_path / "x.wav").samples_CT, samples[:, :3000]
    )


def test_a_flac_stream_without_a_length(tmp_path):
    samples = noise(2, 1_200_000)
    write.write_audio(tmp_path / "x.flac", samples, 16_000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 for unknown
    data[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(data)
    back = audio.read_audio(tmp_path / "x.flac").samples_CT
    np.testing.assert_array_equal(back, write.quantize(samples, "PCM_16")[0])
    assert audio.audio_info(tmp_path / "x.flac").frames == 1_200_000


@pytest.mark.parametrize("subtype, step", [("PCM_U8", 2**-7), ("PCM_32", 2**-31), ("ULAW", 2**-4)])
def test_other_subtypes_are_read(tmp_path, subtype, step):
    samples = noise()
    soundfile.write(tmp_path / "x.wav", samples.T, 22_050, subtype)
    back = audio.read_audio(tmp_path / "x.wav")
    np.testing.assert_allclose(back.samples_CT, samples, atol=step + 1e-7)
    assert back.subtype == subtype


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_ffmpeg_decodes_what_libsndfile_does_not(tmp_path, channels):
    samples = noise(channels, 20_000)
    write.write_audio(tmp_path / "x.wav", samples, 44_100)
    path = tmp_path / "-x [0]: a.mka"  # lossless sound in a container libsndfile does not know
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", "-c:a", "pcm_f32le"]
    subprocess.run([*command, f"file:{path}"], check=True)
    back = audio.read_audio(path)
    np.testing.assert_array_equal(back.samples_CT, samples)
    assert (back.sample_rate_hz, back.subtype) == (44_100, None)
    assert audio.audio_info(path) == audio.AudioInfo(20_000, 44_100, channels)


@needs_ffmpeg
def test_the_sound_of_a_video(tmp_path):
    path = tmp_path / "x.mp4"
    sources = "-f lavfi -i testsrc=size=64x64:duration=1 -f lavfi -i sine=440:duration=1:r=32000"
    command = f"ffmpeg -v error {sources} -c:v mpeg4 -c:a aac {path}"
    subprocess.run(command.split(), check=True)
    back = audio.read_audio(path)
    assert back.samples_CT.shape[0] == 1 and back.sample_rate_hz == 32_000
    assert abs(back.samples_CT.shape[1] - 32_000) <= 1024  # AAC frames
    subprocess.run(f"ffmpeg -v error -y -i {path} -an -c:v copy {path}.mp4".split(), check=True)
    assert "; ffmpeg: " in problem(tmp_path / "x.mp4.mp4")


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.flac")
    write.write_audio(path, np.full((1, 100), 0.25, np.float32), 8000, "PCM_16")
    assert audio.read_audio(path).samples_CT.shape == (1, 100)


# Blocks and parts


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mka"])
def test_blocks_and_parts_are_the_file(tmp_path, monkeypatch, name):
    if name == "x.mka" and not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg on PATH")
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 1000)
    samples = noise(2, 4500)
    source = tmp_path / ("y.flac" if name == "x.mka" else name)
    write.write_audio(source, samples, 16_000, "PCM_16")
    if name == "x.mka":
        command = ["ffmpeg", "-v", "error", "-i", source, "-c:a", "pcm_f32le", tmp_path / name]
        subprocess.run(command, check=True)
    whole = write.quantize(samples, "PCM_16")[0]
    with audio.AudioReader(tmp_path / name) as reader:
        blocks = list(reader.blocks())
        assert reader.frames in (4500, None)
    assert [block.shape[1] for block in blocks] == [1000] * 4 + [500]
    np.testing.assert_array_equal(np.concatenate(blocks, 1), whole)
    parts = audio.read_parts(tmp_path / name, [0, 1700, 900, 4000, 9000], 1500)
    for part, start in zip(parts, [0, 1700, 900, 4000, 9000], strict=True):
        np.testing.assert_array_equal(part, whole[:, start : start + 1500])


def test_a_file_that_breaks_off_is_named(tmp_path):
    """FLAC frames have checksums: what follows a damaged one is no sound."""
    write.write_audio(tmp_path / "x.flac", noise(1, 400_000), 16_000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (tmp_path / "x.flac").write_bytes(data)
    assert "is damaged" in problem(tmp_path / "x.flac")


def test_an_mp3_cut_to_half_is_named(tmp_path):
    """Its decoder ends there without a word."""
    path = tmp_path / "x.mp3"
    write.write_audio(path, noise(1, 200_000), 16_000)
    assert audio.read_audio(path).samples_CT.shape[1] == 200_000
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "cut short: " in problem(path) and "of 200000 samples" in problem(path)
    (start,) = audio.read_parts(path, [0], 30_000)  # what is there can still be heard
    assert start.shape == (1, 30_000)


@pytest.mark.parametrize("frames", [1, 100, 1152, 5000])
def test_short_mp3s_are_whole(tmp_path, frames):
    write.write_audio(tmp_path / "x.mp3", noise(1, frames), 16_000)
    assert audio.read_audio(tmp_path / "x.mp3").samples_CT.shape[1] >= frames


def test_the_guessed_length_of_an_mp3_is_no_promise(tmp_path):
    """Without a count libsndfile takes the first bit rate for that of all, here a sixth of it."""
    wave_T, streams = noise(1, 100_000)[0], []
    for level in (0.9, 0.0):
        options = {"compression_level": level, "bitrate_mode": "CONSTANT"}
        soundfile.write(tmp_path / "x.mp3", wave_T, 44_100, format="MP3", **options)
        data = (tmp_path / "x.mp3").read_bytes()
        streams.append(data[data.index(data[:2], 4) :])  # without the frame that has the count
    tag = b"ID3\3\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    (tmp_path / "x.mp3").write_bytes(tag + b"".join(streams))
    with soundfile.SoundFile(tmp_path / "x.mp3") as file:
        assert file.frames > 300_000
    with audio.AudioReader(tmp_path / "x.mp3") as reader:
        assert reader.frames is None
    assert 190_000 < audio.audio_info(tmp_path / "x.mp3").frames < 210_000
