"""Records: what is written is read, and whatever does not fit is named."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from opensep_jax.data import records
from opensep_jax.data.records import ClipEntry, PreparedDataset, RecordError, SourceEntry

ENCODER = "bert-2x4-0123"
PROMPTS = ("dog", "a dog barks", "Käse „brät“ 🐕")


def _entry(path: str, pcm_T: np.ndarray, prompts=PROMPTS) -> ClipEntry:
    keys = [records.prompt_key(prompt, ENCODER) for prompt in prompts]
    source = SourceEntry("dog", {"label": keys[:1], "caption": keys[1:]})
    return ClipEntry(path, 0, len(pcm_T), [source], {"licence": "CC0"}, 0)


def _clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(-32768, 32768, n).astype(np.int16) for n in (4000, 1, 12_345, 777)]


def _states() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        prompt: rng.standard_normal((3 + len(prompt) % 4, 4)).astype(ml_dtypes.bfloat16)
        for prompt in PROMPTS
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four clips in two shards, three prompts in two."""
    clips = [(_entry(f"sub/ü {i}.wav", pcm_T), pcm_T) for i, pcm_T in enumerate(_clips())]
    for shard in range(2):
        stem = tmp_path / records.shard_name("clips-train", shard, 2)
        records.write_clip_shard(
            stem, clips[2 * shard : 2 * shard + 2], [{"path": "x", "why": "y"}]
        )
    rows = [(records.prompt_key(p, ENCODER), p, states) for p, states in _states().items()]
    records.write_text_shard(tmp_path / records.shard_name("text", 0, 2), rows[:2])
    records.write_text_shard(tmp_path / records.shard_name("text", 1, 2), rows[2:])
    info = {
        "schema": records.SCHEMA_VERSION,
        "sample_rate_hz": 16000,
        "splits": {"train": {"shards": 2}},
        "text": {"shards": 2, "width": 4},
        "families": {},
    }
    records.write_json(tmp_path / "dataset.json", info)
    return tmp_path


def _damage(file: Path, at: bytes) -> None:
    """Turns a byte around where a file holds these bytes."""
    data = bytearray(file.read_bytes())
    data[data.index(at) + len(at) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def test_round_trip(folder: Path):
    dataset = PreparedDataset(folder, "train")
    assert len(dataset) == 4 and dataset.sample_rate_hz == 16000
    for i, pcm_T in enumerate(_clips()):
        clip = dataset.clips[i]
        assert (clip.path, clip.samples, clip.extra) == (
            f"sub/ü {i}.wav",
            len(pcm_T),
            {"licence": "CC0"},
        )
        read_T = dataset.audio(i)
        assert read_T.dtype == np.int16
        np.testing.assert_array_equal(read_T, pcm_T)
    source = dataset.clips[0].sources[0]
    assert source.name == "dog" and list(source.prompts) == ["label", "caption"]
    for prompt, states_LC in _states().items():
        text_id = dataset.text.ids[records.prompt_key(prompt, ENCODER)]
        assert dataset.text.prompts[text_id] == prompt
        assert dataset.text.states(text_id).dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(dataset.text.states(text_id), states_LC)
    assert dataset.text.longest == max(map(len, _states().values()))
    assert records.read_index(folder / "clips-train-00001-of-00002")["rejected"] == [
        {"path": "x", "why": "y"}
    ]
    assert not list(folder.glob(".*"))


def test_text_ids_are_ranks_of_keys_whatever_the_shards(folder: Path, tmp_path: Path):
    keys = sorted(records.prompt_key(prompt, ENCODER) for prompt in PROMPTS)
    assert PreparedDataset(folder, "train").text.ids == {key: i for i, key in enumerate(keys)}
    assert records.prompt_key("dog", "bert") != records.prompt_key("dog", "roberta")
    # Golden: another hash would orphan every text table on disk.
    assert records.prompt_key("dog", "bert") == "c79dafe76b8e157596e64577bd6149f8"


def test_bytes_do_not_depend_on_when_they_are_written(folder: Path, tmp_path: Path):
    stem = folder / records.shard_name("clips-train", 0, 2)
    before = stem.with_suffix(".arrayrecord").read_bytes()
    clips = [(_entry(f"sub/ü {i}.wav", pcm_T), pcm_T) for i, pcm_T in enumerate(_clips()[:2])]
    records.write_clip_shard(stem, clips, [])
    assert stem.with_suffix(".arrayrecord").read_bytes() == before
    rows = [(records.prompt_key(p, ENCODER), p, states) for p, states in _states().items()]
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        records.write_text_shard(tmp_path / name, ordered)
    assert (tmp_path / "a.arrayrecord").read_bytes() == (tmp_path / "b.arrayrecord").read_bytes()


def test_a_damaged_record_is_named_and_the_others_are_read(folder: Path):
    file = folder / "clips-train-00001-of-00002.arrayrecord"
    _damage(file, _clips()[2].tobytes())
    dataset = PreparedDataset(folder, "train")
    np.testing.assert_array_equal(dataset.audio(3), _clips()[3])
    with pytest.raises(RecordError, match=r"record 2 of split train \(sub/ü 2.wav\) is damaged"):
        dataset.audio(2)


def test_a_record_of_another_clip_is_noticed(folder: Path):
    stem = folder / "clips-train-00000-of-00002"
    other = stem.with_name("other")
    swapped = [(_entry("a", pcm_T), pcm_T) for pcm_T in _clips()[1::-1]]
    records.write_clip_shard(other, swapped, [])
    shutil.move(other.with_suffix(".arrayrecord"), stem.with_suffix(".arrayrecord"))
    with pytest.raises(RecordError, match="record 0 .* is damaged"):
        PreparedDataset(folder, "train").audio(0)


def test_damaged_files_are_named(folder: Path, tmp_path: Path):
    def fails(name, damage, message):
        file = folder / name
        whole = file.read_bytes()
        damage(file)
        with pytest.raises(RecordError, match=message):
            PreparedDataset(folder, "train")
        file.write_bytes(whole)

    clips, index, text, info = (
        "clips-train-00001-of-00002.arrayrecord",
        "clips-train-00001-of-00002.index",
        "text-00001-of-00002.arrayrecord",
        "dataset.json",
    )
    again = "prepare this folder again"
    fails(clips, lambda f: f.write_bytes(f.read_bytes()[:-50_000]), f"{clips}: damaged .*{again}")
    fails(clips, lambda f: f.write_bytes(b""), f"{clips}: damaged .*{again}")
    fails(clips, Path.unlink, f"{clips}: missing; {again}")
    fails(index, lambda f: f.write_bytes(f.read_bytes()[:-9]), f"{index}: damaged .*{again}")
    fails(index, lambda f: f.write_bytes(_index_of(f, 1)), f"4 records, .* name 3 clips; {again}")
    states = _states()[PROMPTS[2]].tobytes()
    fails(text, lambda f: _damage(f, states), f"{text}: damaged")
    fails(text, Path.unlink, f"{text}: missing; {again}")
    fails(info, lambda f: f.write_text("{"), f"{info}: not valid JSON")
    PreparedDataset(folder, "train")


def _index_of(file: Path, clips: int) -> bytes:
    content = msgpack.unpackb(file.read_bytes())
    return msgpack.packb({**content, "clips": content["clips"][:clips]})


def test_prompts_that_are_not_in_the_table_are_named(folder: Path):
    pcm_T = _clips()[0]
    stem = folder / "clips-train-00000-of-00002"
    records.write_clip_shard(stem, [(_entry("new.wav", pcm_T, ("cat", "dog")), pcm_T)], [])
    with pytest.raises(RecordError, match="label prompts of new.wav are not in the text table"):
        PreparedDataset(folder, "train")


def test_a_shard_may_be_empty(folder: Path):
    records.write_clip_shard(folder / "clips-train-00000-of-00002", [], [])
    dataset = PreparedDataset(folder, "train")
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset.audio(0), _clips()[2])


def test_an_unfinished_or_foreign_folder_is_named(folder: Path):
    with pytest.raises(RecordError, match="no split 'test'; it has train"):
        PreparedDataset(folder, "test")
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "schema": 7}))
    with pytest.raises(RecordError, match="dataset.json: schema 7, this version reads 1"):
        PreparedDataset(folder, "train")
    (folder / "dataset.json").unlink()
    with pytest.raises(RecordError, match="no dataset.json: not a prepared data set, or"):
        PreparedDataset(folder, "train")


def test_unknown_entries_are_ignored(folder: Path):
    """Later versions add entries; this one reads what it knows."""
    file = folder / "clips-train-00000-of-00002.index"
    content = msgpack.unpackb(file.read_bytes())
    for clip in content["clips"]:
        clip["loudness_db"] = -20.0
        clip["sources"][0]["properties"] = ["loud"]
    file.write_bytes(msgpack.packb({**content, "made_by": "a later version"}))
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "later": True}))
    assert len(PreparedDataset(folder, "train")) == 4
