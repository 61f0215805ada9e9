"""What is found in captions, and which names are one source."""

from pathlib import Path

import numpy as np
import pytest

from opensep_jax.discovery import Discovery
from opensep_jax.text.caption import Captioner, WrittenCaptions
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank


class Ear:
    """Says how loud a window is."""

    id, sample_rate_hz, window_s, padding = "ear", 100, 1.0, "zeros"

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["rain falling" if wave_T.max() > 0.5 else "a dog barks" for wave_T in waves_BT]


class Mute(Ear):
    """Says nothing that has a word."""

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["\u266a\u266a"] * len(waves_BT)


def _discovery(**options: object) -> Discovery:
    return Discovery(Captioner(Ear()), Parser(None, letter_bank(), {}), **options)


def test_recordings_and_known_captions_in_one_batch():
    discovery = _discovery()
    loud, soft = (discovery.hear(np.full(100, level), 100) for level in (0.9, 0.2))
    silent = discovery.hear(np.zeros(100), 100)
    found = discovery.find([loud, "A bell rings and a cat meows", silent, soft])
    assert [part.caption for part in found] == [
        "rain falling", "A bell rings and a cat meows", "", "a dog barks"
    ]  # fmt: skip
    names = [[source.name for source in part.sources] for part in found]
    assert names == [["rain falling"], ["bell ringing", "cat meowing"], [], ["dog barking"]]


def test_names_that_mean_the_same_are_one_source():
    caption = "A rat, then tar, then a cello plays"  # the bank of these tests compares letters
    (apart,) = _discovery(merge_similarity=1.1).read([caption])
    (together,) = _discovery().read([caption])
    assert [source.name for source in apart.sources] == ["rat", "tar", "cello"]
    assert [source.name for source in together.sources] == ["rat", "cello"]
    assert together.merged == (("tar", "rat"),)


def test_what_a_stem_sounds_like():
    names = ["rain falling", "dog", "dog barking"]
    stems_ST = [np.full(100, level) for level in (0.9, 0.2, 0.0)]  # the last one is silent
    rain, dog, silent = _discovery().agreements(names, stems_ST, 100)
    assert rain == pytest.approx(1, abs=1e-6) and 0.3 < dog < 1 and silent == 0
    silent = Discovery(Captioner(Mute()), Parser(None, letter_bank(), {}))
    assert silent.agreements(names, stems_ST, 100) == [0.0] * 3
    known = Discovery(None, Parser(None, letter_bank(), {}))
    assert known.agreements(names, stems_ST, 100) == [None] * 3


def test_captions_from_a_file_cannot_listen(tmp_path: Path):
    (tmp_path / "captions.jsonl").write_text("")
    written = WrittenCaptions(tmp_path / "captions.jsonl")
    with pytest.raises(ValueError, match="captions from a file know paths alone"):
        Discovery(written, Parser(None, letter_bank(), {})).hear(np.zeros((1, 9)), 100)
