"""Lists of the field are read, and their levels and captions followed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from opensep_jax.data import lists, published_lists
from opensep_jax.data.records import PreparedDataset, RecordError


@pytest.fixture
def dataset(tiny_dataset: Path) -> PreparedDataset:
    return PreparedDataset(tiny_dataset, "val")


def test_levels_and_captions_of_dcase_are_followed(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, out = tmp_path / "lass.csv", tmp_path / "list.json"
    file.write_text(
        "source,noise,snr,caption\nhum-3,clicks-3,-7,a recording of hum\nclicks-3,hum-3,12,clicks\n"
    )
    argv = ["published_lists", file, "--data", dataset.folder, "--out", out]
    monkeypatch.setattr(sys, "argv", [str(part) for part in argv])
    assert published_lists.main() == 0
    (mixtures,) = lists.read_list(str(out), dataset).values()
    for mixture, level_db in zip(mixtures, (-7, 12), strict=True):
        first, other = lists.render_by(dataset, mixture, 4000, "start", "snr", (-15.0, 15.0))
        ratio_db = 10 * np.log10(np.mean(first**2) / np.mean(other**2))
        assert ratio_db == pytest.approx(level_db, abs=1e-3)
    assert [dataset.clips[i].path for i in mixtures[0].clips] == ["hum-3.wav", "clicks-3.wav"]
    asked = lists.prompts(dataset, mixtures[0], "caption")
    assert asked == ["a recording of hum", "The sound of clicks, take 1."]
    states, other = lists.text_states(dataset, mixtures[0], "caption")
    expected = dataset.text.states(dataset.text.prompts.index("a recording of hum"))
    np.testing.assert_array_equal(states, expected)
    assert lists.digest(dataset, mixtures) != lists.digest(
        dataset, [lists.ListedMixture(m.clips, m.seed) for m in mixtures]
    )


def test_two_noises_of_clotho_and_what_is_missing(dataset: PreparedDataset, tmp_path: Path):
    file = tmp_path / "clotho_eval.csv"
    file.write_text(
        "idx,caption,src_wav,noise_wav1,noise_wav1\n0,Sung.,hum-3.wav,clicks-3.wav,low_tone-3.wav\n"
    )
    (mixture,) = published_lists.read_csv(file, dataset)
    assert len(mixture.clips) == 3 and mixture.levels_db == (0.0, 0.0)
    with pytest.raises(RecordError, match="the list asks for 'Sung.', which is no prompt of"):
        lists.text_states(dataset, mixture, "caption")
    file.write_text("source,noise,caption\nhum-3,song,x\nhum-3,aria,x\n")
    with pytest.raises(RecordError, match="2 of its clips are not in split val of .* as aria"):
        published_lists.read_csv(file, dataset)
    file.write_text("mixture,caption\n")
    with pytest.raises(RecordError, match="need columns caption, source or src_wav, and noise"):
        published_lists.read_csv(file, dataset)
