"""The page of results: every file is linked, names are escaped, pictures are pictures."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from PIL import Image

from opensep_jax import __version__
from opensep_jax.batch.report import Track, section, write_report
from opensep_jax.separation.result import SeparatedSource, Separation
from opensep_jax.signal.pictures import level_image, spectrogram_db, streamed_spectrogram_db
from opensep_jax.signal.stft import Stft


def test_page_links_what_is_there(tmp_path: Path, sine_T: np.ndarray):
    folder = tmp_path / "out" / "C#4"
    folder.mkdir(parents=True)
    for file in (tmp_path / "a song.wav", folder / "01_x.wav", folder / "residual.wav"):
        soundfile.write(file, sine_T, 16000)
    record = {
        "input": str(tmp_path / "a song.wav"), "sample_rate_hz": 16000, "channels": 1,
        "seconds": 1.0, "notes": ["a note"], "caption": "X hums.",
        "residual": {"file": "residual.wav"}, "timings_s": {"separate": 0.25},
        "sources": [
            {
                "name": "<b>x</b>", "file": "01_x.wav", "energy_share": 0.75, "confidence": 0.88,
                "prompt": "<b>x</b>: a dull hum", "properties": {"nearest": "hum"},
            },
            {
                "name": "gone", "file": "02_gone.wav", "energy_share": 0.0,
                "prompt": "gone", "properties": {},
            },
        ],
    }  # fmt: skip
    (folder / "separation.json").write_text(json.dumps(record))
    page = write_report(tmp_path / "out").read_text()
    links = re.findall(r"<li [^>]*data-src='([^']*)'", page)
    assert links == ["../a%20song.wav", "C%234/01_x.wav", "C%234/residual.wav"]
    assert all((tmp_path / "out" / unquote(link)).exists() for link in links)
    assert "<b>x" not in page and "&lt;b&gt;x" in page
    assert "75 % of the energy, confidence 0.88<" in page and "\u201cX hums.\u201d" in page
    assert "<dt>nearest</dt><dd>hum</dd>" in page and "<dt>separate</dt><dd>0.25 s</dd>" in page
    assert page.count("not there any more") == 1 and "a note" in page and __version__ in page
    assert "http" not in page  # no network
    pictures = re.findall(r"data-src='data:image/webp;base64,([^']*)'", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert sizes == [(63, 96)] * 3


def test_silence_is_dark(tmp_path: Path, sine_T: np.ndarray):
    lightness = []
    for gain in (0, 1):
        file = tmp_path / f"{gain}.wav"
        soundfile.write(file, gain * sine_T, 16000)
        content = re.search("webp;base64,([^']*)", section(1, "x", [Track("x", file)], tmp_path))[1]
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        lightness.append(np.asarray(picture.convert("L")).max())
    assert lightness[0] < 10 and lightness[1] > 100


def test_damaged_records_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name, content in {"a": "{", "b": "{}", "c": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "separation.json").write_text(content)
    page = write_report(tmp_path).read_text()
    assert "Nothing here yet" in page
    assert len([line for line in caplog.messages if "is not on the page" in line]) == 3


def test_results_saved_from_python_have_no_input(tmp_path: Path, sine_T: np.ndarray):
    stems_SCT = np.stack([0.7 * sine_T, 0.2 * sine_T])[:, None]
    sources = tuple(SeparatedSource(name, name, {}, 0.5) for name in ("a dog", "a cello"))
    Separation(stems_SCT, 0.1 * sine_T[None], 16000, sources).save(tmp_path / "stems")
    page = write_report(tmp_path).read_text()
    assert re.findall(r"data-key='(\d)'", page) == ["1", "2", "3"] and "mixture</div>" not in page
    assert "aria-pressed='true'" not in page  # everything is heard


def test_spectrogram_shows_the_frequency(sine_T: np.ndarray):
    level_db = spectrogram_db(sine_T, Stft(1024, 256), frames=50)
    assert level_db.shape == (513, 50)
    assert (level_db[:, 25].argmax()) == round(440 / 16000 * 1024)
    picture = np.asarray(level_image(level_db, float(level_db.max()), height=513)).sum(-1)
    assert picture.shape == (513, 50)
    assert 512 - picture[:, 25].argmax() == round(440 / 16000 * 1024)  # low bins at the bottom


@pytest.mark.parametrize("samples", [1, 700, 16000])
def test_spectrogram_of_blocks_equals_that_of_the_whole(noise_T: np.ndarray, samples: int):
    wave_T, spec = noise_T[:samples], Stft(512, 128)
    padded_T = np.pad(wave_T, 256)
    starts = np.linspace(0, samples, min(40, spec.frames(samples))).astype(int)
    power = [np.abs(np.fft.rfft(padded_T[s : s + 512] * spec.window)) ** 2 for s in starts]
    expected_db = 10 * np.log10(np.stack(power, 1) + 1e-12)
    for size in (1, 100, 5000):
        blocks = (wave_T[i : i + size] for i in range(0, samples, size))
        level_db = streamed_spectrogram_db(blocks, samples, spec, frames=40)
        np.testing.assert_allclose(level_db, expected_db, atol=1e-3)


def test_spectrogram_of_less_than_promised_is_shorter(noise_T: np.ndarray):
    level_db = streamed_spectrogram_db([noise_T[:4000]], 16000, Stft(512, 128), frames=41)
    assert level_db.shape[1] == 11
