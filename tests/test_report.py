"""The page of results: every file is linked, names are escaped, pictures are pictures."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import soundfile
from PIL import Image

from opensep_jax.report import write_report
from opensep_jax.signal.pictures import level_image, spectrogram_db
from opensep_jax.signal.stft import Stft


def test_page_links_what_is_there(tmp_path: Path, sine_T: np.ndarray):
    folder = tmp_path / "out" / "C#4"
    folder.mkdir(parents=True)
    for file in (tmp_path / "a song.wav", folder / "01_x.wav", folder / "residual.wav"):
        soundfile.write(file, sine_T, 16000)
    record = {
        "input": str(tmp_path / "a song.wav"), "sample_rate_hz": 16000, "channels": 1,
        "seconds": 1.0, "notes": ["a note"], "caption": "X hums.",
        "residual": {"file": "residual.wav"},
        "sources": [
            {
                "name": "<b>x</b>", "file": "01_x.wav", "energy_share": 0.75,
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
    links = re.findall(r"<audio [^>]*src='([^']*)'", page)
    assert links == ["../a%20song.wav", "C%234/01_x.wav", "C%234/residual.wav"]
    assert all((tmp_path / "out" / unquote(link)).exists() for link in links)
    assert "<b>x" not in page and "&lt;b&gt;x" in page
    assert "75 % of the energy; a dull hum (as of hum)<" in page and "\u201cX hums.\u201d" in page
    assert "0 % of the energy" not in page  # its stem is gone
    assert "75 % of the energy" in page and "not there any more" in page and "a note" in page
    pictures = re.findall(r"src='data:image/png;base64,([^']*)'", page)
    assert len(pictures) == 3
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).height == 160


def test_spectrogram_shows_the_frequency(sine_T: np.ndarray):
    level_db = spectrogram_db(sine_T, Stft(1024, 256), frames=50)
    assert level_db.shape == (513, 50)
    assert (level_db[:, 25].argmax()) == round(440 / 16000 * 1024)
    picture = np.asarray(level_image(level_db, float(level_db.max()), height=513)).sum(-1)
    assert picture.shape == (513, 50)
    assert 512 - picture[:, 25].argmax() == round(440 / 16000 * 1024)  # low bins at the bottom
