"""The published layouts are read to the letter, and what rots is counted, not fatal."""

import json
from collections import Counter
from importlib import resources

import pytest

from opensep_jax.data.datasets import ClipSource, coverage
from opensep_jax.data.published import (
    choose_unseen,
    read_audiocaps,
    read_music,
    read_vggsound,
    unseen_classes,
)
from tests.tiny_published import CAPTIONS, write_audiocaps, write_music, write_vggsound


def _splits(dataset) -> Counter:
    return Counter(clip.split for clip in dataset.clips)


def _by_id(dataset) -> dict:
    return {clip.id: clip for clip in dataset.clips}


@pytest.mark.parametrize("name, labels, unseen", [("music", 21, 5), ("vggsound", 309, 62)])
def test_the_committed_class_lists_are_what_their_seed_gives(name, labels, unseen):
    text = resources.files("opensep_jax").joinpath(f"assets/splits/{name}.json").read_text()
    lists = json.loads(text)
    every = sorted(lists["seen"] + lists["unseen"])
    assert len(every) == len(set(every)) == labels and len(lists["unseen"]) == unseen
    assert choose_unseen(every, unseen, lists["seed"]) == lists["unseen"]
    assert unseen_classes(name) == set(lists["unseen"])


def test_music(tmp_path):
    dataset = read_music(write_music(tmp_path))
    clips = _by_id(dataset)
    guitar = clips["acous-00001"]
    assert guitar.path == "solo/audio/acoustic_guitar/acous-00001.wav"
    assert guitar.sources == (ClipSource("acoustic guitar", ""),)
    assert clips["acous-00000"].path is None
    assert clips["duet_000000"].sources == (ClipSource("flute", ""), ClipSource("violin", ""))
    splits = _splits(dataset)
    assert splits["duet"] == splits["duet_unseen"] == 1
    assert sum(n for split, n in splits.items() if "unseen" in split) == 12 + 1  # tuba
    assert splits["train"] > 40 and splits["val"] and splits["test"]
    report = coverage(dataset)
    assert len(report["missing"]) == 6 and report["splits"]["duet"]["found"] == 1
    assert [clip.id for clip in read_music(tmp_path).clips] == [clip.id for clip in dataset.clips]


def test_music_without_lists_takes_class_folders(tmp_path):
    write_music(tmp_path)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    dataset = read_music(tmp_path)
    assert len(dataset.clips) == 6 * 11 + 2
    assert _by_id(dataset)["acous-00001"].sources[0].name == "acoustic guitar"


def test_a_split_of_music_does_not_depend_on_what_is_missing(tmp_path):
    before = {clip.id: clip.split for clip in read_music(write_music(tmp_path)).clips}
    for file in (tmp_path / "solo" / "audio" / "cello").iterdir():
        file.unlink()
    assert {clip.id: clip.split for clip in read_music(tmp_path).clips} == before


def test_vggsound(tmp_path):
    dataset = read_vggsound(write_vggsound(tmp_path))
    clips = _by_id(dataset)
    bird = clips["-v0_0000300_000030"]
    assert bird.path == "video/-v0_0000300_000030.wav" and bird.split == "train"
    assert bird.sources == (ClipSource("bird chirping, tweeting", ""),)
    assert clips["-v0_0000000_000000"].path is None
    assert _splits(dataset) == {
        "train": 30, "val": 5, "test": 5, "train_unseen": 6, "val_unseen": 1, "test_unseen": 1,
    }  # fmt: skip
    assert {c.split for c in dataset.clips if c.sources[0].name == "owl hooting"} <= {
        "train_unseen", "val_unseen", "test_unseen",
    }  # fmt: skip


def test_rotten_rows_of_vggsound_are_counted(tmp_path):
    write_vggsound(tmp_path)
    good = len(read_vggsound(tmp_path).clips)
    with (tmp_path / "vggsound.csv").open("a") as file:
        file.write('abc,ten,dog barking,train\nabc,10\nabc,inf,x,train\n"abc,10,x,train\n\n')
        file.write("abc,10,dog barking,validation\n-v3_0000300,30,dog barking,train\n")
        file.write('ümläut_id__,7,"犬, ""Käse""",train\r\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "ümläut_id__.MP4").touch()  # the only clip of its video
    (tmp_path / "more" / "stranger.wav").touch()
    dataset = read_vggsound(tmp_path)
    assert len(dataset.clips) == good + 1
    clip = _by_id(dataset)["ümläut_id___000007"]
    assert clip.path == "more/ümläut_id__.MP4" and clip.sources[0].name == '犬, "Käse"'
    assert len(dataset.notes["bad_rows"]) == 5 and len(dataset.notes["listed_twice"]) == 1
    assert dataset.notes["not_listed"] == ["more/stranger.wav"]


def test_audio_is_preferred_to_video_and_links_are_followed_once(tmp_path):
    write_vggsound(tmp_path)
    (tmp_path / "video" / "-v1_0000200_000020.mp4").touch()
    (tmp_path / "video" / "again").symlink_to(tmp_path, target_is_directory=True)
    clip = _by_id(read_vggsound(tmp_path))["-v1_0000200_000020"]
    assert clip.path.endswith("-v1_0000200_000020.wav")


def test_audiocaps(tmp_path):
    dataset = read_audiocaps(write_audiocaps(tmp_path))
    assert _splits(dataset) == {"train": 30, "val": 6, "test": 6}
    clips = _by_id(dataset)
    train, test = clips["Qtr1_000002_60"], clips["Qte1_000000_0"]
    assert train.captions == (CAPTIONS[1],) and train.path == "train/Qtr1_000002_60.wav"
    assert len(test.captions) == 5 and test.captions[0] == CAPTIONS[1]
    assert train.extra == {"youtube_id": "Qtr1_000002", "start_time": "60"}


@pytest.mark.parametrize("name", ["Qva0_000000", "YQva0_000000", "30", "Qva0_000000_000000"])
def test_other_file_names_of_audiocaps(tmp_path, name):
    write_audiocaps(tmp_path)
    (tmp_path / "val" / "Qva0_000000_0.wav").rename(tmp_path / f"{name}.flac")
    assert _by_id(read_audiocaps(tmp_path))["Qva0_000000_0"].path == f"{name}.flac"


def test_rotten_rows_of_audiocaps_are_counted(tmp_path):
    write_audiocaps(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write('900,abc,20,"He says ""hé"", 犬, and leaves"\n900,abc,30,Same id\n')
        file.write('901,,20,No video\n902,abc,soon,No time\n903,abc,20\n904,abc,50,"Open quote\n')
        file.write("905,Qva0_000000,0,In two splits\n906,def,1e400,Too late\n")
    dataset = read_audiocaps(tmp_path)
    assert _by_id(dataset)["abc_20"].captions == ('He says "hé", 犬, and leaves',)
    assert {kind: len(found) for kind, found in dataset.notes.items()} == {
        "listed_twice": 1, "bad_rows": 5, "in_two_splits": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "reader, file, content, message",
    [
        (read_audiocaps, "train.csv", "youtube_id,caption\na,b\n", "audiocap_id and start_time"),
        (read_audiocaps, "train.csv", "", "found nothing"),
        (read_audiocaps, "x.csv", "", "none of train.csv"),
        (read_vggsound, "x.csv", "", "no vggsound.csv"),
        (read_vggsound, "vggsound.csv", "a,b\n", "no clips of vggsound"),
        (read_music, "MUSIC_solo_videos.json", '["x"]', "not of the form"),
        (read_music, "MUSIC_solo_videos.json", '{"videos": {"a": [1]}}', "is not a text"),
        (read_music, "x", "", "no clips of music"),
    ],
)
def test_what_cannot_be_read_at_all_is_named(tmp_path, reader, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        reader(tmp_path)
