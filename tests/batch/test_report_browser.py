"""The page of results in a real browser, from the file system."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from opensep_jax.batch.report import write_report
from tests.chromium import Chromium, find_chromium

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here"),
]
FILES = 300
GONE, STRANGE = 150, 3  # those whose input is gone, or of a kind that browsers do not know
RATE_HZ = 8000
# Records every sound that the page makes; the page itself keeps them to itself.
SPY = """
window.sounds = [];
const RealAudio = window.Audio;
window.Audio = function (...args) {
  const sound = new RealAudio(...args);
  window.sounds.push(sound);
  return sound;
};
window.heard = () => window.sounds
  .filter((s) => s.hasAttribute("src") && !s.paused && !s.muted)
  .map((s) => decodeURIComponent(s.src.split("/").pop()));
window.spread_s = () => {
  const times = window.openSounds().map((s) => s.currentTime);
  return Math.max(...times) - Math.min(...times);
};
window.openSounds = () => window.sounds.filter((s) => s.hasAttribute("src"));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of 300 files: one of 8 s, the others short; two inputs are gone or foreign."""
    root = tmp_path_factory.mktemp("page")
    _write_result(root, "000 long #1", 8.0)
    for number in range(1, FILES):
        _write_result(root, f"{number:03d} short", 2.0)
    (root / "inputs" / f"{GONE - 1:03d} short.wav").unlink()
    strange = root / "inputs" / f"{STRANGE - 1:03d} short.wav"
    soundfile.write(strange, np.zeros(2 * RATE_HZ), RATE_HZ, format="CAF")
    return write_report(root / "out")


def _write_result(root: Path, name: str, seconds: float) -> None:
    folder, time_s = root / "out" / name, np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    folder.mkdir(parents=True)
    (root / "inputs").mkdir(exist_ok=True)
    parts = [0.2 * np.sin(2 * np.pi * hz * time_s) for hz in (440, 1200, 3000)]
    names = ("01_dog.wav", "02_cello.wav", "residual.wav")
    for file, part_T in zip(names, parts, strict=True):
        soundfile.write(folder / file, part_T, RATE_HZ, "FLOAT")
    soundfile.write(root / "inputs" / f"{name}.wav", sum(parts), RATE_HZ, "PCM_16")
    record = {
        "input": str(root / "inputs" / f"{name}.wav"), "sample_rate_hz": RATE_HZ, "channels": 1,
        "seconds": seconds, "caption": "A dog barks while a cello plays.", "notes": [],
        "sources": [
            {
                "name": stem, "file": file, "prompt": f"{stem}: a rough bark, 100 Hz to 2 kHz",
                "properties": {"timbre": "rough", "nearest": stem}, "energy_share": 0.3,
                "confidence": 0.8, "overlap": 0.1,
            }
            for stem, file in (("dog barking", names[0]), ("cello", names[1]))
        ],
        "residual": {"file": names[2]}, "timings_s": {"separate": 0.2}, "models": {},
    }  # fmt: skip
    (folder / "separation.json").write_text(json.dumps(record))


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Chromium]:
    """The page, open; at the end nothing must have gone wrong, or over the network."""
    with Chromium(PROGRAM, tmp_path / "profile") as chromium:
        chromium.send("Page.addScriptToEvaluateOnNewDocument", source=SPY)
        chromium.open(page)
        yield chromium
        assert not chromium.problems
        assert all(url.startswith(("file:", "data:")) for url in chromium.requests)


def _position(browser: Chromium) -> float:
    return float(browser.run("document.querySelector('.seek').value"))


def test_it_plays_in_sync_and_switches(browser: Chromium):
    browser.key(" ")
    browser.until("Number(document.querySelector('.seek').value) > 0.3")
    assert browser.run("heard()") == ["000 long #1.wav"]  # the mixture at first
    assert browser.run("openSounds().length") == 4
    browser.until("openSounds().every((s) => !s.paused && s.currentTime > 0)")
    browser.until("spread_s() < 0.06")
    browser.key("1")
    assert browser.run("heard()") == ["01_dog.wav"]
    browser.key("2")
    assert browser.run("heard()") == ["02_cello.wav"]
    browser.key("2")  # no solo: the parts of the mixture, without the mixture
    assert browser.run("heard()") == ["01_dog.wav", "02_cello.wav", "residual.wav"]
    browser.key("m")
    assert browser.run("heard()") == ["01_dog.wav", "residual.wav"]
    browser.click(".file .track[data-key='1'] .solo")
    assert browser.run("heard()") == ["01_dog.wav"]
    pressed = "document.querySelector(\".track[data-key='1'] .solo\").ariaPressed"
    assert browser.run(pressed) == "true"
    browser.key(" ")  # after a mouse it plays and pauses, and does not press the button again
    assert browser.run("heard()") == [] and browser.run(pressed) == "true"
    still = _position(browser)
    time.sleep(0.3)
    assert _position(browser) == still > 0.3


def test_it_moves_and_ends(browser: Chromium):
    browser.key("ArrowRight")
    assert _position(browser) == 5
    browser.key("ArrowLeft")
    assert _position(browser) == 0
    browser.click(".picture")
    assert abs(_position(browser) - 4) < 0.1
    browser.key("ArrowRight")
    assert _position(browser) == 8
    browser.run("document.querySelector('.seek').value = 7.6")
    browser.click(".play")
    browser.until("document.querySelector('.play').textContent === 'Play'")
    assert _position(browser) == 8 and browser.run("heard()") == []
    browser.key(" ")  # again from the beginning
    browser.until("heard().length === 1")
    assert _position(browser) < 4


def test_hundreds_of_files_stay_usable(browser: Chromium, page: Path):
    assert page.stat().st_size < 20e6
    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert browser.run(timing) < 5000
    assert browser.run("document.querySelectorAll('.file').length") == FILES
    assert browser.run("sounds.length") == 0  # none is opened unasked
    loaded = "document.querySelectorAll('img[src]').length"
    browser.until(f"{loaded} > 0")
    assert browser.run(loaded) < 40
    other = f"document.querySelector('#file-{GONE}')"
    browser.run(f"{other}.scrollIntoView()")
    browser.until(f"[...{other}.querySelectorAll('img')].every((i) => i.naturalWidth)")
    assert browser.run(loaded) < 80
    browser.key(" ")  # what is in sight plays; where the input is gone, its parts
    browser.until("heard().length === 3")
    assert browser.run("openSounds().length") == 3
    browser.run("scrollTo(0, 0)")
    browser.click("#file-1 .play")
    browser.until("heard().length === 1")
    assert browser.run("openSounds().length") == 4  # the others were closed
    browser.key("ArrowDown")
    browser.until("heard().includes('001 short.wav')")
    browser.click("#find")
    begun = time.monotonic()
    for letter in "042":
        browser.key(letter)
    assert browser.run("document.querySelector('#count').textContent") == f"1 of {FILES} files"
    assert time.monotonic() - begun < 3
    shown = "[...document.querySelectorAll('.file')].filter((s) => s.offsetHeight).map((s) => s.id)"
    assert browser.run(shown) == ["file-43"]


def test_what_a_browser_cannot_play_does_not_stop_the_rest(browser: Chromium):
    browser.click(f"#file-{STRANGE} .play")
    browser.until("heard().length === 3")
    row = f"document.querySelector('#file-{STRANGE} .track')"
    assert browser.run(f"{row}.querySelector('.told').textContent").endswith("cannot play it")
    assert browser.run(f"{row}.querySelector('.solo').disabled")
    for _ in range(5):
        browser.key(" ")  # faster than sounds open
    browser.until("heard().length === 0")
    browser.key(" ")
    browser.until("heard().length === 3")


def test_it_has_names_and_follows_the_light(browser: Chromium):
    browser.until("document.querySelectorAll('img[src]').length > 0")
    unnamed = """[...document.querySelectorAll('button, input, img[src]')].filter((one) =>
      !(one.ariaLabel || one.alt || one.textContent.trim())).length"""
    assert browser.run(unnamed) == 0
    ids = "[...document.querySelectorAll('[id]')].map((one) => one.id)"
    assert len(set(browser.run(ids))) == len(browser.run(ids))
    light, dark = (
        np.asarray(Image.open(io.BytesIO(browser.screenshot(scheme))).convert("L"))
        for scheme in ("light", "dark")
    )
    assert np.median(light) > 230 and np.median(dark) < 40
