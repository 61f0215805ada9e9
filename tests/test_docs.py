"""The examples of the documentation run."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from opensep_jax import Separator, api
from opensep_jax.text import caption, parse
from opensep_jax.text.caption import Captioner
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/python.md", "README.md")


class Ear:
    """Hears a dog and a cello."""

    id, sample_rate_hz, window_s, padding = "ear", 8000, 1.0, "zeros"

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["a dog barks while a cello plays"] * len(waves_BT)


def _run(page: str, folder: Path) -> None:
    """Executes the page's blocks in one namespace, with a wave that the README has at hand."""
    (folder / "examples").symlink_to(ROOT / "examples")
    noise_CT = 0.1 * np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)
    names = {"samples_CT": noise_CT, "sample_rate_hz": 16_000}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On networks of random weights, and with the rule in place of a language model."""
    real = Separator.from_pretrained
    parser = Parser(None, letter_bank(), {})
    monkeypatch.setattr(
        Separator, "from_pretrained", lambda name, **options: real(shared_checkpoint(), **options)
    )
    for module in (api, caption):
        monkeypatch.setattr(module, "load_captioner", lambda name, **options: Captioner(Ear()))
    for module in (api, parse):
        monkeypatch.setattr(module, "load_parser", lambda **options: parser)
    monkeypatch.chdir(tmp_path)
    _run(page, tmp_path)


@pytest.mark.real_weights
def test_examples_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _run(PAGES[0], tmp_path)
    assert sorted(os.listdir(tmp_path / "stems"))[-1] == "spectrograms.png"
