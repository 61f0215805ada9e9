"""Records: what is written is read, and whatever does not fit is named."""

import json
import pickle
import shutil
from pathlib import Path

import fsspec
import ml_dtypes
import msgpack
import numpy as np
import pytest

from opensep_jax.data import shards
from opensep_jax.data.records import PreparedDataset, RecordError, SourceEntry
from opensep_jax.data.storage import write_json
from opensep_jax.data.text_table import write_text_shard

ENCODER = "bert-2x4-0123"
PROMPTS = ("dog", "a dog barks", "Käse „brät“ 🐕")


def _write_clips(stem: Path, clips: dict[str, np.ndarray], prompts=PROMPTS, codec="pcm16") -> None:
    """A shard of clips, by path, each with one source."""
    keys = [shards.prompt_key(prompt, ENCODER) for prompt in prompts]
    source = SourceEntry("dog", {"label": keys[:1], "caption": keys[1:]})
    known = [({"path": path, "start_samples": 0}, pcm_T) for path, pcm_T in clips.items()]
    rows = shards.write_audio(stem.with_suffix(".arrayrecord"), known, codec, 16000)
    entries = [(row, [source], ["A dog barks."], {"licence": "CC0"}) for row in rows]
    content = shards.pack_index(stem, entries, [{"path": "x", "why": "y"}])
    stem.with_suffix(".index").write_bytes(content)


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
    for shard in range(2):
        stem = tmp_path / shards.shard_name("clips-train", shard, 2)
        parts = list(enumerate(_clips()))[2 * shard : 2 * shard + 2]
        _write_clips(stem, {f"sub/ü {i}.wav": pcm_T for i, pcm_T in parts})
    rows = [(shards.prompt_key(p, ENCODER), p, states) for p, states in _states().items()]
    write_text_shard(tmp_path / shards.shard_name("text", 0, 2), rows[:2])
    write_text_shard(tmp_path / shards.shard_name("text", 1, 2), rows[2:])
    info = {
        "schema": shards.SCHEMA_VERSION,
        "sample_rate_hz": 16000,
        "audio": "pcm16",
        "splits": {"train": {"shards": 2, "clips": 4}},
        "text": {"shards": 2, "width": 4},
        "families": {},
        "scenes": {},
    }
    write_json(tmp_path / "dataset.json", info)
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
        text_id = dataset.text.ids[shards.prompt_key(prompt, ENCODER)]
        assert dataset.text.prompts[text_id] == prompt
        assert dataset.text.states(text_id).dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(dataset.text.states(text_id), states_LC)
    assert dataset.text.longest == max(map(len, _states().values()))
    assert shards.read_index(folder / "clips-train-00001-of-00002")["rejected"] == [
        {"path": "x", "why": "y"}
    ]
    assert not list(folder.glob(".*"))


def test_text_ids_are_ranks_of_keys_whatever_the_shards(folder: Path, tmp_path: Path):
    keys = sorted(shards.prompt_key(prompt, ENCODER) for prompt in PROMPTS)
    assert PreparedDataset(folder, "train").text.ids == {key: i for i, key in enumerate(keys)}
    assert shards.prompt_key("dog", "bert") != shards.prompt_key("dog", "roberta")
    # Golden: another hash would orphan every text table on disk.
    assert shards.prompt_key("dog", "bert") == "c79dafe76b8e157596e64577bd6149f8"


def test_bytes_do_not_depend_on_when_they_are_written(folder: Path, tmp_path: Path):
    stem = folder / shards.shard_name("clips-train", 0, 2)
    before = stem.with_suffix(".arrayrecord").read_bytes()
    _write_clips(stem, {f"sub/ü {i}.wav": pcm_T for i, pcm_T in enumerate(_clips()[:2])})
    assert stem.with_suffix(".arrayrecord").read_bytes() == before
    rows = [(shards.prompt_key(p, ENCODER), p, states) for p, states in _states().items()]
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        write_text_shard(tmp_path / name, ordered)
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
    before = stem.with_suffix(".arrayrecord").stat().st_size
    same = {f"sub/ü {i}.wav": np.ascontiguousarray(pcm_T[::-1]) for i, pcm_T in
            enumerate(_clips()[:2])}  # fmt: skip
    _write_clips(other, same)
    assert other.with_suffix(".arrayrecord").stat().st_size == before
    shutil.move(other.with_suffix(".arrayrecord"), stem.with_suffix(".arrayrecord"))
    with pytest.raises(RecordError, match="record 0 .* is damaged"):
        PreparedDataset(folder, "train").audio(0)


def test_damaged_files_are_named(folder: Path, tmp_path: Path):
    def fails(name, damage, message):
        file = folder / name
        whole = file.read_bytes()
        damage(file)
        with pytest.raises(RecordError, match=message):
            PreparedDataset(folder, "train").text.states(0)
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
    fails(index, lambda f: f.write_bytes(_index_of(f, 1)), f"name 3 clips, dataset.json 4; {again}")
    states = _states()[PROMPTS[2]].tobytes()
    fails(text, lambda f: _damage(f, states), f"{text}: damaged")
    fails(text, Path.unlink, f"{text}: missing; {again}")
    fails(info, lambda f: f.write_text("{"), f"{info}: not valid JSON")
    PreparedDataset(folder, "train")


def _index_of(file: Path, clips: int) -> bytes:
    content = msgpack.unpackb(file.read_bytes())
    return msgpack.packb({**content, "clips": content["clips"][:clips]})


def test_prompts_that_are_not_in_the_table_are_named(folder: Path):
    stem = folder / "clips-train-00000-of-00002"
    _write_clips(stem, {"new.wav": _clips()[0], "more.wav": _clips()[1]}, ("cat", "dog"))
    with pytest.raises(RecordError, match="prompts of 'dog' are not in the text table"):
        PreparedDataset(folder, "train")


def test_a_shard_may_be_empty(folder: Path):
    _write_clips(folder / "clips-train-00000-of-00002", {})
    info = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", info | {"splits": {"train": {"shards": 2, "clips": 2}}})
    dataset = PreparedDataset(folder, "train")
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset.audio(0), _clips()[2])


def test_an_unfinished_or_foreign_folder_is_named(folder: Path):
    with pytest.raises(RecordError, match="no split 'test'; it has train"):
        PreparedDataset(folder, "test")
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "schema": 7}))
    with pytest.raises(RecordError, match="dataset.json: schema 7, this version reads 2"):
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
    content["sources"][0]["properties"] = ["loud"]
    file.write_bytes(msgpack.packb({**content, "made_by": "a later version"}))
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "later": True}))
    assert len(PreparedDataset(folder, "train")) == 4


def test_flac_is_the_same_samples_in_less_room(folder: Path):
    time_s = np.arange(80000) / 16000
    clips = {f"{hz}": (9000 * np.sin(2 * np.pi * hz * time_s)).astype(np.int16) for hz in (90, 500)}
    for split, codec in (("pcm", "pcm16"), ("flac", "flac")):
        _write_clips(folder / f"clips-{split}-00000-of-00001", clips, codec=codec)
        info = json.loads((folder / "dataset.json").read_text())
        info |= {"audio": codec, "splits": {split: {"shards": 1, "clips": 2}}}
        write_json(folder / "dataset.json", info)
        dataset = PreparedDataset(folder, split)
        for i, pcm_T in enumerate(clips.values()):
            np.testing.assert_array_equal(dataset.audio(i), pcm_T)
            assert dataset.audio(i).dtype == np.int16
    size = {s: (folder / f"clips-{s}-00000-of-00001.arrayrecord").stat().st_size for s in
            ("pcm", "flac")}  # fmt: skip
    assert size["flac"] < 0.7 * size["pcm"]


def test_a_worker_gets_no_token_states(folder: Path):
    dataset = PreparedDataset(folder, "train")
    assert len(dataset.text.tokens_MC)
    dataset.audio(0)
    small = pickle.dumps(dataset)
    assert len(small) < 6000 and dataset.text.tokens_MC.tobytes()[:32] not in small
    again = pickle.loads(small)
    np.testing.assert_array_equal(again.audio(3), dataset.audio(3))
    assert again.text.keys == dataset.text.keys


def test_the_table_of_one_split_serves_the_other(folder: Path, monkeypatch):
    train = PreparedDataset(folder, "train")
    assert len(train.text.keys) == 3
    monkeypatch.setattr("opensep_jax.data.records.read_text", None)
    monkeypatch.setattr("opensep_jax.data.records.read_keys", None)
    other = PreparedDataset(folder, "train", train.text)
    assert other.text is train.text and len(other.clips[3].sources) == 1


def test_records_in_an_object_store(folder: Path, tmp_path: Path, monkeypatch):
    """Shards are fetched when they are asked for, once."""
    monkeypatch.setenv("OPENSEP_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/lab/records", recursive=True)
    dataset = PreparedDataset("memory://lab/records", "train")
    fetched = lambda: sorted(f.name for f in tmp_path.rglob("cache/**/clips*.arrayrecord"))  # noqa: E731
    assert len(dataset) == 4 and not fetched()
    np.testing.assert_array_equal(dataset.audio(3), _clips()[3])
    assert fetched() == ["clips-train-00001-of-00002.arrayrecord"]
    assert dataset.text.prompts == PreparedDataset(folder, "train").text.prompts
    store.rm("/lab/records/clips-train-00001-of-00002.arrayrecord")
    again = PreparedDataset("memory://lab/records/", "train")
    np.testing.assert_array_equal(again.audio(2), _clips()[2])
    store.rm("/lab/records/clips-train-00000-of-00002.arrayrecord")
    with pytest.raises(RecordError, match="memory://lab/records/clips-train-00000.*: missing"):
        again.audio(0)
    with pytest.raises(RecordError, match="memory://elsewhere: no dataset.json"):
        PreparedDataset("memory://elsewhere", "train")
    with pytest.raises(RecordError, match="kazoo://x: cannot be read: Protocol not known"):
        PreparedDataset("kazoo://x", "train")
