"""The embedded captioner as a backend: from an export to captions of windows."""

from pathlib import Path

import numpy as np
import pytest

from opensep_jax.checkpoint import shipped
from opensep_jax.signal.audio import read_audio
from opensep_jax.text import demo_captioner
from opensep_jax.text.caption import load_captioner
from tests import tiny_captioner

pytestmark = pytest.mark.usefixtures("compile_once")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAVES = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_captioner.start(tiny_dataset)
    return tiny_captioner.write_checkpoint(run, tmp_path_factory.mktemp("captioner") / "export")


@pytest.fixture(scope="module")
def backend(folder: Path) -> demo_captioner.DemoCaptioner:
    return demo_captioner.load(str(folder))


def test_captions_do_not_depend_on_gain(backend: demo_captioner.DemoCaptioner):
    assert backend.id.startswith("demo-") and backend.padding == "repeat"
    assert (backend.sample_rate_hz, backend.window_s) == (16000, 0.25)
    captions = backend.caption_windows(WAVES)
    assert len(captions) == 3 and all(caption.endswith(".") for caption in captions)
    assert len(captions[0].split()) > 1
    assert backend.caption_windows(WAVES * np.array([[0.01], [1.0], [3.0]], np.float32)) == captions
    assert all(isinstance(said, str) for said in backend.caption_windows(np.zeros_like(WAVES)))


def test_windows_of_another_length_are_refused(backend: demo_captioner.DemoCaptioner):
    with pytest.raises(ValueError, match=r"need windows \[B, 4000\], got shape \(2, 3999\)"):
        backend.caption_windows(WAVES[:2, :3999])


@pytest.mark.slow
def test_the_shipped_captioner_hears_the_examples():
    captioner = load_captioner("demo")
    audio = read_audio(EXAMPLES / "dog_and_cello.flac")
    (said,) = captioner.caption([audio.samples_CT], audio.sample_rate_hz)
    assert said == "A cello plays a melody while a dog barks."


def test_a_separator_is_no_captioner(folder: Path):
    with pytest.raises(ValueError, match="needed are schema 1 and task 'separator'"):
        shipped.load(folder, lambda config: {})


def test_a_config_without_clauses_is_refused(folder: Path, tmp_path: Path):
    config, _, params = demo_captioner.load_captioner(folder)
    config.pop("weights_sha256")
    for clauses, message in (({}, "clauses={} is not a table of texts"), ({"dog": 3}, "'dog': 3")):
        with pytest.raises(ValueError, match=message):
            shipped.export(tmp_path / "x", params, config | {"clauses": clauses})
    with pytest.raises(ValueError, match="mel.bands is not known"):
        shipped.export(tmp_path / "x", params, config | {"mel": config["mel"] | {"bands": 3}})
