"""What `prepare` meets on real disks: it is named, counted, and the rest goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import cli, prepare
from opensep_jax.data import cutting
from opensep_jax.data.cutting import CutCounts, cut_file
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.signal.audio import AudioError
from tests.tiny_published import cached_encoder, write_sound

RATE_HZ = 16000


def _run(root: Path, out: Path, encoder: Path, *flags: object) -> int:
    """As from the command line; nothing is parsed."""
    given = ["--dataset", "folder", "--root", root, "--out", out, "--text_encoder", encoder, *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "load_text_encoder", cached_encoder)
        return cli.run(
            prepare.main, prepare.parser(), (RecordError, ValueError), list(map(str, given))
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three good files of one class."""
    for take in range(3):
        write_sound(tmp_path / "root" / "hum" / f"good-{take}.wav", 4, take)
    return tmp_path / "root"


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_rotten_files_are_named_and_counted(root, tmp_path, tiny_encoder, capsys):
    hum = root / "hum"
    noise_T = 0.3 * np.random.default_rng(0).standard_normal(2 * RATE_HZ)
    for name in ("short.flac", "short.mp3", "short.ogg"):
        soundfile.write(hum / name, noise_T, RATE_HZ)
        _cut_short(hum / name)
    soundfile.write(hum / "really.wav", noise_T, RATE_HZ)
    (hum / "really.wav").rename(hum / "wave.mp3")  # only its name is wrong
    (hum / "text.wav").write_text("path,label\n")
    (hum / "empty.flac").touch()
    (hum / "folder.wav").mkdir()
    soundfile.write(hum / "clipped.wav", np.clip(9 * noise_T, -1, 1), RATE_HZ)
    shutil.copy(hum / "good-0.wav", hum / "twice.wav")
    assert _run(root, tmp_path / "out", tiny_encoder) == 1
    log = capsys.readouterr().err
    for name in ("short.flac", "short.mp3", "text.wav", "empty.flac"):
        assert f"{name}: " in log, log
    assert "short.mp3: cut short: " in log
    paths = {Path(clip.path).name for s in ("train", "val") for clip in
             PreparedDataset(tmp_path / "out", s).clips}  # fmt: skip
    assert paths >= {"good-0.wav", "good-1.wav", "good-2.wav", "wave.mp3", "clipped.wav"}
    assert not paths & {"text.wav", "empty.flac", "short.flac", "short.mp3"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["files"]["clipped"] == 1
    reasons = {why: n for split in summary["splits"].values() for why, n in
               split["rejected"].items()}  # fmt: skip
    assert reasons["the file is empty"] == 1 and sum(reasons.values()) >= 4
    twice = ("duplicates", "also_in_another_split")
    assert sum(split[key] for split in summary["splits"].values() for key in twice) == 1


def test_what_was_heard_of_a_long_file_before_its_damage_is_kept(
    root, tmp_path, tiny_encoder, monkeypatch, capsys
):
    monkeypatch.setattr(cutting, "_PART_S", 1.0)
    noise_T = 0.3 * np.random.default_rng(0).standard_normal(60 * RATE_HZ)
    soundfile.write(root / "hum" / "a_long.flac", noise_T, RATE_HZ)
    _cut_short(root / "hum" / "a_long.flac")
    assert _run(root, tmp_path / "out", tiny_encoder, "--max_seconds", "0.5") == 1
    clips = PreparedDataset(tmp_path / "out", "train").clips
    kept = sum(Path(clip.path).name == "a_long.flac" for clip in clips)
    assert kept > 1 and f"; {kept} clips from before that are kept" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(root, tmp_path, tiny_encoder, capsys):
    (root / "hum" / "good-1.wav").chmod(0)
    assert _run(root, tmp_path / "out", tiny_encoder) == 1
    assert "good-1.wav: no permission to read it" in capsys.readouterr().err


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(
    root, tmp_path, tiny_encoder, small_disk, capsys
):
    out = small_disk / "out"
    blocker = small_disk / "others"
    blocker.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**15))
    assert _run(root, out, tiny_encoder) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (out / "dataset.json").exists()
    blocker.unlink()
    assert _run(root, out, tiny_encoder) == 0
    assert _run(root, tmp_path / "straight", tiny_encoder) == 0
    for file in (tmp_path / "straight").rglob("*"):
        if file.is_file():
            same = out / file.relative_to(tmp_path / "straight")
            assert same.read_bytes() == file.read_bytes()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_sound_of_a_video(root, tmp_path):
    video, wave = tmp_path / "clip.mp4", root / "hum" / "good-0.wav"
    picture = ["-f", "lavfi", "-i", "color=black:s=64x64:d=1"]
    command = ["ffmpeg", "-v", "error", *picture, "-i", wave, "-c:a", "aac", "-shortest", video]
    subprocess.run(list(map(str, command)), check=True)
    ((start, pcm_T),) = cut_file(video, RATE_HZ, 30.0, CutCounts())
    wave_T, _ = soundfile.read(wave, dtype="float32")
    assert start == 0 and abs(len(pcm_T) - len(wave_T)) < 3000
    size = min(len(pcm_T), len(wave_T))
    assert np.corrcoef(pcm_T[:size] / 32768, wave_T[:size])[0, 1] > 0.9


# Long files are read in parts


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_parts_of_a_long_file_are_the_whole(tmp_path, monkeypatch, suffix):
    time_s = np.arange(int(5.3 * 8000)) / 8000
    wave_T = 0.5 * np.sin(2 * np.pi * (200 + 20 * time_s) * time_s)
    file = tmp_path / f"long.{suffix}"
    soundfile.write(file, wave_T, 8000)
    whole = list(cut_file(file, RATE_HZ, 0.5, CutCounts()))
    monkeypatch.setattr(cutting, "_PART_S", 1.4)  # three clips at a time
    counts = CutCounts()
    parts = list(cut_file(file, RATE_HZ, 0.5, counts))
    assert counts.short == 1
    assert [start for start, _ in parts] == [start for start, _ in whole]
    for (_, part_T), (_, whole_T) in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part_T, whole_T)


def test_a_file_may_end_with_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "_PART_S", 1.0)
    soundfile.write(tmp_path / "a.wav", np.full(2 * RATE_HZ, 0.1), RATE_HZ)
    assert len(list(cut_file(tmp_path / "a.wav", RATE_HZ, 0.5, CutCounts()))) == 4
    soundfile.write(tmp_path / "b.wav", np.zeros(2 * RATE_HZ), RATE_HZ)
    with pytest.raises(AudioError, match="b.wav: digital silence"):
        list(cut_file(tmp_path / "b.wav", RATE_HZ, 0.5, CutCounts()))


def test_speed_changes_pitch_and_length(tmp_path):
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time_s), RATE_HZ)
    ((_, fast_T),) = cut_file(tmp_path / "a.wav", RATE_HZ, 30.0, CutCounts(), speed=1.25)
    assert len(fast_T) == int(2 * RATE_HZ / 1.25)
    peak_hz = np.argmax(np.abs(np.fft.rfft(fast_T))) * RATE_HZ / len(fast_T)
    assert abs(peak_hz - 1250) < 2


@pytest.mark.slow
def test_ten_hours_need_little_memory(tmp_path):
    """A sparse file: silence but for two short sounds."""
    file, seconds = tmp_path / "ten_hours.wav", 36_000
    sound_T = (9000 * np.random.default_rng(0).standard_normal(8000)).astype("<i2")
    soundfile.write(file, sound_T, 8000, "PCM_16")
    header = file.read_bytes()[:-16_000]
    size = 2 * 8000 * seconds
    sizes = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    with file.open("wb") as stream:
        stream.write(header[:4] + sizes[0] + header[8:-4] + sizes[1] + sound_T.tobytes())
        stream.seek(len(header) + size - 16_000)
        stream.write(sound_T.tobytes())
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from opensep_jax.data.cutting import CutCounts, cut_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "starts = [s / 16000 for s, _ in cut_file(Path(sys.argv[1]), 16000, 30.0, CutCounts())]\n"
        "print(starts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
    starts, kilobytes = run.stdout.rsplit(maxsplit=1)
    assert json.loads(starts) == [0.0, 35_970.0]
    assert int(kilobytes) < 600_000
