"""Captions of any recording: which windows are heard, how they are joined, what is looked up."""

import json
from pathlib import Path

import numpy as np
import pytest

from opensep_jax.signal.write import write_audio
from opensep_jax.text.caption import (
    POLICIES,
    Captioner,
    WrittenCaptions,
    join_captions,
    load_captioner,
)

RATE_HZ = 1000


class Ear:
    """A backend of one-second windows that says how loud they are, and keeps them."""

    id, sample_rate_hz, window_s, padding = "ear", RATE_HZ, 1.0, "zeros"

    def __init__(self, padding: str = "zeros"):
        self.padding, self.heard = padding, []

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        assert waves_BT.dtype == np.float32 and waves_BT.shape[1] == RATE_HZ
        self.heard.append(waves_BT)
        return [f"peak {np.abs(wave_T).max():.2f}" for wave_T in waves_BT]


def _noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def _steps(seconds: int) -> np.ndarray:
    """A recording whose second i has the level (i + 1) / 100."""
    return np.repeat(np.arange(1, seconds + 1, dtype=np.float32) / 100, RATE_HZ)


@pytest.mark.parametrize(
    "policy, seconds, levels",
    [
        ("start", 9, [1]),
        ("centre", 9, [5]),
        ("multi", 1, [1]),
        ("multi", 3, [1, 2, 3]),
        ("multi", 9, [1, 5, 9]),
    ],
)
def test_policies_choose_windows(policy: str, seconds: int, levels: list[int]):
    captioner = Captioner(Ear(), policy=policy, max_windows=3)
    peaks = [f"Peak 0.0{level}." for level in levels]
    want = " ".join(peaks) if len(peaks) > 1 else f"peak 0.0{levels[0]}"
    assert captioner.caption([_steps(seconds)], RATE_HZ) == [want]


def test_seeded_windows_are_a_function_of_seed_and_content():
    wave_T, other_T = _steps(99), np.flip(_steps(99)).copy()

    def hear(seed: int, *waves: np.ndarray) -> list[str]:
        return Captioner(Ear(), policy="seeded", seed=seed).caption(waves, RATE_HZ)

    assert hear(0, wave_T, other_T) == hear(0, other_T, wave_T)[::-1]
    assert len({hear(seed, wave_T)[0] for seed in range(8)}) > 4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seconds", [0.5, 7.25])
def test_a_file_is_heard_as_its_samples_are(tmp_path: Path, policy: str, seconds: float):
    """From a stream of blocks, with only the windows in memory."""
    wave_CT = np.stack([_noise(round(seconds * 2000), seed) for seed in range(2)])
    write_audio(tmp_path / "x.wav", wave_CT, 2000)
    captioner = Captioner(Ear(), policy=policy, max_windows=3)
    heard = captioner.hear_file(tmp_path / "x.wav")
    assert len(heard) == (3 if policy == "multi" and seconds > 1 else 1)
    np.testing.assert_array_equal(heard, captioner.hear(wave_CT, 2000))


def test_last_window_of_multi_ends_with_the_recording():
    ear = Ear()
    wave_T = _noise(3 * RATE_HZ + 1)
    Captioner(ear, max_windows=8, batch=8).caption([wave_T], RATE_HZ)
    (heard_BT,) = ear.heard
    assert heard_BT.shape == (8, RATE_HZ)
    np.testing.assert_array_equal(heard_BT[0], wave_T[:RATE_HZ])
    np.testing.assert_array_equal(heard_BT[3], wave_T[-RATE_HZ:])
    assert np.array_equal(heard_BT[4:], np.repeat(heard_BT[3:4], 4, 0))  # fills the batch


@pytest.mark.parametrize("padding", ["zeros", "repeat"])
def test_a_click_is_padded_as_the_network_was_trained(padding: str):
    ear, click_T = Ear(padding), _noise(50)
    Captioner(ear).caption([click_T], RATE_HZ)
    want_T = np.tile(click_T, 20) if padding == "repeat" else np.pad(click_T, (0, 950))
    np.testing.assert_array_equal(ear.heard[0][0], want_T)


def test_silence_is_not_captioned():
    ear = Ear()
    captioner = Captioner(ear)
    silence_T = np.zeros(5 * RATE_HZ, np.float32)
    dither_T = np.float32(2**-15) * np.sign(_noise(5 * RATE_HZ))
    assert captioner.caption([silence_T, dither_T], RATE_HZ) == ["", ""]
    assert not ear.heard
    silence_T[2500] = 0.25
    assert captioner.caption([silence_T], RATE_HZ) == ["peak 0.25"]
    assert len(ear.heard) == 1


def test_channels_are_averaged_and_do_not_cancel():
    wave_T, captioner = _steps(1), Captioner(Ear())
    stereo_CT = np.stack([wave_T, 3 * wave_T])
    opposite_CT = np.stack([wave_T, -wave_T])
    want = ["peak 0.02", "peak 0.01"]
    assert captioner.caption([stereo_CT, opposite_CT], RATE_HZ) == want


def test_beyond_full_scale_is_scaled_down():
    assert Captioner(Ear()).caption([1e30 * _steps(1)], RATE_HZ) == ["peak 1.00"]


def test_windows_are_resampled():
    ear, time_s = Ear(), np.arange(44_100) / 44_100
    Captioner(ear).caption([0.5 * np.sin(2 * np.pi * 100 * time_s)], 44_100)
    want_T = 0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE_HZ) / RATE_HZ)
    np.testing.assert_allclose(ear.heard[0][0][50:-50], want_T[50:-50], atol=2e-3)


def test_batches_do_not_depend_on_company():
    """Always the same number of rows, and each recording's windows as if it were alone."""
    waves = [_noise(1500, seed=1), _noise(10, seed=2), _noise(9999, seed=3)]
    ear = Ear()
    together = Captioner(ear, max_windows=4, batch=3).caption(waves, RATE_HZ)
    assert [len(heard_BT) for heard_BT in ear.heard] == [3, 3, 3]
    alone = [Captioner(Ear(), max_windows=4, batch=3).caption([w], RATE_HZ)[0] for w in waves]
    assert together == alone


def test_two_hours_are_not_copied():
    """Nothing but the chosen windows is touched: the recording lies in no memory."""
    length = 2 * 3600 * RATE_HZ
    wave_CT = np.broadcast_to(np.float32(0.5), (64, length))  # 1.8 GB if it were copied
    ear = Ear()
    assert Captioner(ear, max_windows=5).caption([wave_CT], RATE_HZ) == ["peak 0.50"]
    assert sum(len(heard_BT) for heard_BT in ear.heard) == 5


@pytest.mark.parametrize(
    "wave, message",
    [
        (np.array([0.1, np.nan]), "samples are NaN or infinite"),
        (np.array([np.inf, 0.0]), "samples are NaN or infinite"),
        (np.zeros(5, np.int16), r"need float samples .*int16 \(5,\)"),
        (np.zeros((2, 0)), r"need float samples .*\(2, 0\)"),
        (np.zeros((1, 2, 3)), r"need float samples .*\(1, 2, 3\)"),
    ],
)
def test_bad_recordings_are_named(wave: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        Captioner(Ear()).caption([_noise(5), wave], RATE_HZ)


@pytest.mark.parametrize("options", [{"policy": "all"}, {"max_windows": 0}, {"batch": 0}])
def test_bad_settings_are_refused(options: dict):
    (value,) = options.values()
    with pytest.raises(ValueError, match=f"{next(iter(options))}={value!r}"):
        Captioner(Ear(), **options)


@pytest.mark.parametrize(
    "captions, want",
    [
        ([], ""),
        (["", " . "], ""),
        (["\u266a\u266a", "???", "a dog barks"], "a dog barks"),
        ([" a dog  barks. "], "a dog barks."),
        (["a dog barks", "A dog barks."], "a dog barks"),
        (["a dog barks", "", "rain falls.", "a dog barks"], "A dog barks. Rain falls."),
    ],
)
def test_captions_are_joined(captions: list[str], want: str):
    assert join_captions(captions) == want


def _write(file: Path, *rows: tuple[str, str]) -> str:
    lines = [json.dumps({"input": path, "caption": caption}) for path, caption in rows]
    file.write_text("\n".join(lines) + "\n\n")
    return f"file:{file}"


def test_captions_from_a_file(tmp_path: Path, monkeypatch):
    rows = [("a/x.wav", "a dog"), ("b/x.wav", "a cat "), ("/far/y.wav", "rain"), ("z.wav", "???")]
    captioner = load_captioner(_write(tmp_path / "captions.jsonl", *rows))
    assert isinstance(captioner, WrittenCaptions)

    def told(*keys: str) -> list[str]:
        return captioner.tell([captioner.hear_file(key) for key in keys])

    keys = (str(tmp_path / "a/x.wav"), str(tmp_path / "b/x.wav"), "near/y.wav", "z.wav")
    assert told(*keys) == ["a dog", "a cat", "rain", ""]
    monkeypatch.chdir(tmp_path / "..")
    assert told(f"{tmp_path.name}/a/x.wav") == ["a dog"]
    with pytest.raises(ValueError, match="captions.jsonl: 2 captions of that name for c/x.wav"):
        told("c/x.wav")
    with pytest.raises(ValueError, match="captions.jsonl: no caption for new.wav; add a line"):
        told("new.wav")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "captions.jsonl:1: not valid JSON"),
        ('{"input": "a.wav"}', 'captions.jsonl:1: not an object with texts "input" and "caption"'),
        (
            '{"input": "a", "caption": "x"}\n{"input": "a", "caption": "y"}',
            "captions.jsonl:2: a has another caption above",
        ),
    ],
)
def test_bad_caption_files_are_named(tmp_path: Path, content: str, message: str):
    (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_captioner(f"file:{tmp_path / 'captions.jsonl'}")


def test_unknown_captioners_list_what_is_known(tmp_path: Path):
    with pytest.raises(
        ValueError, match="captioner 'gpt' is not known; known are demo, demo:<folder>, clapcap"
    ):
        load_captioner("gpt")
    with pytest.raises(ValueError, match="none.jsonl: captions cannot be read: No such file"):
        load_captioner(f"file:{tmp_path}/none.jsonl")
