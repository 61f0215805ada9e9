"""Lists and mixtures of the field are read, and their levels and captions followed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax.data import lists, published_lists, published_mixtures
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.evaluation.queries import load_queries
from opensep_jax.text.embed import load_text_encoder
from tests.tiny_dataset import prepare_folder


@pytest.fixture
def dataset(tiny_dataset: Path) -> PreparedDataset:
    return PreparedDataset(tiny_dataset, "val")


def _run(module, monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
    return module.main()


def test_levels_and_captions_of_dcase_are_followed(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, out = tmp_path / "lass.csv", tmp_path / "list.json"
    file.write_text(
        "source,noise,snr,caption\nhum-3,clicks-3,-7,a recording of hum\nclicks-3,hum-3,12,clicks\n"
    )
    flags = ["--data", dataset.folder, "--split", "val", "--out", out]
    assert _run(published_lists, monkeypatch, file, *flags) == 0
    (mixtures,) = lists.read_list(str(out), dataset).values()
    for mixture, level_db in zip(mixtures, (-7, 12), strict=True):
        first, other = lists.render_by(dataset, mixture, 4000, "start", "snr", (-15.0, 15.0))
        ratio_db = 10 * np.log10(np.mean(first**2) / np.mean(other**2))
        assert ratio_db == pytest.approx(level_db, abs=1e-3)
    assert [dataset.clips[i].path for i in mixtures[0].clips] == ["hum-3.wav", "clicks-3.wav"]
    asked = lists.prompts(dataset, mixtures[0], "caption")
    assert asked == [["a recording of hum"], ["The sound of clicks, take 1."]]
    states, _ = load_queries(dataset, {2: mixtures}, ["caption"]).states(mixtures[0], "caption")
    expected = dataset.text.states(dataset.text.prompts.index("a recording of hum"))
    np.testing.assert_array_equal(states, expected)
    assert lists.digest(dataset, mixtures) != lists.digest(
        dataset, [lists.ListedMixture(m.clips, m.seed) for m in mixtures]
    )


def test_captions_that_the_records_lack_are_embedded(
    dataset: PreparedDataset, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
):
    mixture = lists.ListedMixture((0, 1), (0,), texts=("Sung by a choir.", ""))
    queries = load_queries(dataset, {2: [mixture]}, ["label"])
    (expected,) = load_text_encoder(str(tiny_encoder), 256).encode(["Sung by a choir."])
    states, known = queries.states(mixture, "label")
    np.testing.assert_array_equal(states, expected)
    batch = queries.padded([mixture], "label", queries.length([mixture], "label"))
    assert batch["text"].shape == (1, 2, 16, 16)
    assert batch["text_mask"].sum(-1).tolist() == [[len(expected), len(known)]]
    monkeypatch.setitem(dataset.info["text_encoder"], "id", "bert-other")
    with pytest.raises(RecordError, match="'Sung by a choir.' are to be embedded .* by bert-other"):
        load_queries(dataset, {2: [mixture]}, ["label"])


def test_what_a_list_lacks_is_named(dataset: PreparedDataset, tmp_path: Path):
    file = tmp_path / "list.csv"
    file.write_text("source,noise,caption\nhum-3,song,x\nhum-3,aria,x\n")
    with pytest.raises(RecordError, match="2 of its clips are not in split val of .* as aria"):
        published_lists.read_csv(file, dataset)
    file.write_text("mixture,caption\n")
    with pytest.raises(RecordError, match="need columns source, noise, caption; it has mixture"):
        published_lists.read_csv(file, dataset)


def test_a_file_that_was_cut_stands_for_its_beginning(
    tiny_sounds: Path, tiny_encoder: Path, tmp_path: Path
):
    """Published lists take the first seconds of a file."""
    prepare_folder(tiny_sounds, tmp_path / "out", tiny_encoder, "--max_seconds", "0.3")
    dataset = PreparedDataset(tmp_path / "out", "val")
    assert max(clip.start_samples for clip in dataset.clips) > 0
    file = tmp_path / "list.csv"
    file.write_text("source,noise,caption\nhum-3,clicks-3,x\n")
    (mixture,) = published_lists.read_csv(file, dataset)
    assert [dataset.clips[clip].start_samples for clip in mixture.clips] == [0, 0]


LAYOUTS = {
    "audiocaps": (
        "idx,caption,labels,src_wav,noise_wav\n7,A dog barks.,Dog,Ya.wav,Yb.wav\n",
        "segment-7.wav", "mixture-7.wav",
    ),
    "audioset": (
        'idx,caption,src_wav,noise_wav\n0,A dog barks.,"e/data/audioset/class_id=0/class_id=0,'
        'index=000,source.wav","e/data/audioset/class_id=0/class_id=0,index=000,mixture.wav"\n',
        "class_id=0/class_id=0,index=000,source.wav", "class_id=0/class_id=0,index=000,mixture.wav",
    ),
    "vggsound": (
        "file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text\n"
        "a+b,data/mix_wav/a.wav,data/s0_wav/a.wav,A dog barks.,data/s1_wav/a.wav,rain\n",
        "data/s0_wav/a.wav", "data/mix_wav/a.wav",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_mixtures_come_out_as_they_are(
    layout: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Through the whole chain: the mixture that is scored is the published one."""
    text, source, mixture = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    waves_2T = rng.uniform(-0.6, 0.6, (2, 8000))  # their sum exceeds full scale in places
    for name, wave_T in ((source, waves_2T[0]), (mixture, waves_2T.sum(0).clip(-1, 1))):
        (tmp_path / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "audio" / name, wave_T, 16_000, "FLOAT")
    metadata, folder, out = tmp_path / "eval.csv", tmp_path / "folder", tmp_path / "out"
    metadata.write_text(text)
    argv = [metadata, "--audio", tmp_path / "audio", "--out", folder]
    assert _run(published_mixtures, monkeypatch, *argv) == 0
    assert prepare_folder(folder, out, tiny_encoder) == 0
    dataset = PreparedDataset(out, "test")
    (listed,) = published_lists.read_csv(folder / "mixtures.csv", dataset)
    sources_2T = lists.render_by(dataset, listed, 8000, "start", "as_published", (0.0, 0.0))
    np.testing.assert_allclose(sources_2T[0], waves_2T[0], atol=8e-5)
    np.testing.assert_allclose(sources_2T.sum(0), waves_2T.sum(0).clip(-1, 1), atol=1.6e-4)
    assert lists.prompts(dataset, listed, "caption")[0] == ["A dog barks."]


def test_mixtures_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    metadata = tmp_path / "eval.csv"
    metadata.write_text("idx,caption,src_wav,noise_wav\n0,Rain,a.wav,b.wav\n1,Rain,a.wav,b.wav\n")
    for name, samples in (("segment-0", 100), ("mixture-0", 90)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(samples), 16_000)
    argv = [metadata, "--audio", tmp_path, "--out", tmp_path / "out"]
    assert _run(published_mixtures, monkeypatch, *argv) == 1
    said = capsys.readouterr()
    assert "100 samples at 16000 Hz, but mixture-0.wav has 90" in said.err
    assert "segment-1.wav" in said.err and "0 mixtures, 2 could not be read" in said.out
    metadata.write_text("file,words\n")
    assert _run(published_mixtures, monkeypatch, *argv) == 2
    assert "no list of AudioSep's evaluation; it has file, words" in capsys.readouterr().err
