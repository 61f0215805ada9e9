"""Folders with a manifest or class-named subfolders; problems are named with their row."""

import csv
import json
from pathlib import Path

import pytest

from opensep_jax.data.datasets import ClipSource, coverage, read_folder


def _manifest(root: Path, *rows: tuple[str, ...], header="path,label,caption,split") -> Path:
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return root


def test_a_manifest_is_read_sorted_with_its_other_columns(tmp_path):
    _manifest(
        tmp_path,
        ("b.wav", "dog", 'A dog, "Rex",\nbarks.', "val", "CC0", ""),
        ("z/ü.ogg", " Käse ", "", "", "CC BY", "https://x"),
        ("a.wav", "dog", "Bark 犬 🐕", "train", "", "y"),
        header="path,label,caption,split,licence,origin",
    )
    dataset = read_folder(tmp_path)
    assert [(clip.split, clip.path) for clip in dataset.clips] == [
        ("train", "a.wav"),
        ("train", "z/ü.ogg"),
        ("val", "b.wav"),
    ]
    first, second, third = dataset.clips
    assert first.sources == (ClipSource("dog", "Bark 犬 🐕"),) and first.extra == {"origin": "y"}
    assert second.sources == (ClipSource("Käse", ""),)
    assert second.extra == {"licence": "CC BY", "origin": "https://x"}
    assert third.sources[0].caption == 'A dog, "Rex",\nbarks.'
    assert dataset.families == {} and dataset.root == tmp_path


def test_path_and_label_are_enough_and_a_byte_order_mark_is_skipped(tmp_path):
    text = "label,path\r\ndog,a.wav\r\n"
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8-sig", newline="")
    (clip,) = read_folder(tmp_path).clips
    assert (clip.path, clip.split, clip.sources) == ("a.wav", "train", (ClipSource("dog", ""),))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([("", "dog")], "no clips: .*bad_rows: manifest.csv:2: empty path or label"),
        ([("a.wav",)], "manifest.csv:2: empty path or label"),
        ([], "no clips: neither manifest.csv rows nor audio files"),
    ],
)
def test_a_manifest_of_nothing_usable_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_folder(_manifest(tmp_path, *rows))


def test_rows_that_cannot_be_used_are_noted_and_missing_files_counted(tmp_path):
    rows = [("a.wav", "dog"), ("b.wav", " "), ("gone.wav", "cat"), ("a.wav", "cat"),
            ("c.wav", "dog", "", "te/st")]  # fmt: skip
    (tmp_path / "a.wav").touch()
    dataset = read_folder(_manifest(tmp_path, *rows))
    assert [clip.path for clip in dataset.clips] == ["a.wav", "gone.wav"]
    report = coverage(dataset)
    assert report["splits"] == {"train": {"listed": 2, "found": 1, "missing": 1}}
    assert report["missing"] == ["gone.wav"]
    assert report["listed_twice"] == ["manifest.csv:5: a.wav is in row 2"]
    bad = [note.split(": ")[0] for note in report["bad_rows"]]
    assert bad == ["manifest.csv:3", "manifest.csv:6"] and "'te/st'" in report["bad_rows"][1]


def test_a_class_folder_without_sound_is_noted(tmp_path):
    for name in ("dog", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "dog" / "a.wav").touch()
    (note,) = read_folder(tmp_path).notes["unreadable"]
    assert note.endswith("notes: no audio file in this folder")


def test_problems_of_a_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="column path and label missing; found file, class"):
        read_folder(_manifest(tmp_path, ("a.wav", "dog"), header="file,class"))
    (tmp_path / "manifest.csv").write_bytes("path,label\na.wav,Käse\n".encode("utf-16"))
    with pytest.raises(ValueError, match="manifest.csv: not a CSV file in UTF-8"):
        read_folder(tmp_path)
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(ValueError, match="column path and label missing"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_folder(tmp_path / "nowhere")


def test_families(tmp_path):
    _manifest(tmp_path, ("a.wav", "dog"))
    file = tmp_path / "families.json"
    file.write_text(json.dumps({"animals": ["dog", "cat"], "käse": []}), encoding="utf-8")
    assert read_folder(tmp_path).families == {"animals": ["dog", "cat"], "käse": []}
    for content, message in (
        ("{", "families.json: not valid JSON"),
        ('["dog"]', "families.json: not of the form"),
        ('{"animals": "dog"}', "families.json: not of the form"),
        ('{"a": ["dog"], "b": ["dog", "cat"]}', "families.json: in several families: dog"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_folder(tmp_path)


def test_class_named_subfolders(tmp_path, caplog):
    for label, number in (("dog", 21), ("crying_baby", 3)):
        for i in range(number):
            file = tmp_path / label / ("deeper" if i % 2 else "") / f"{i:02}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.wav").touch()
    (tmp_path / "loose.wav").touch()
    every = read_folder(tmp_path).clips
    assert [clip.id for clip in every if not clip.sources] == ["loose.wav"]
    clips = [clip for clip in every if clip.sources]
    names = [clip.sources[0] for clip in clips]
    assert names.count(ClipSource("dog", "")) == 21
    assert names.count(ClipSource("crying baby", "")) == 3 and len(clips) == 24
    val = [clip.path for clip in clips if clip.split == "val"]
    # Every tenth of a class, in the order of their paths; the last one of a small class.
    assert val == ["crying_baby/deeper/01.wav", "dog/18.wav", "dog/deeper/17.wav"]
    assert "1 files are in no class folder" in caplog.text
    assert all((tmp_path / clip.path).is_file() for clip in clips)
    assert read_folder(tmp_path).clips == every
