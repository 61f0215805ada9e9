"""Tests of listing the inputs of a command."""

import json
from pathlib import Path

from opensep_jax.signal.files import list_audio_files


def make(root, *names):
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def record(folder, *stems):
    content = {"sources": [{"file": stem} for stem in stems], "residual": {"file": "residual.wav"}}
    (folder / "separation.json").write_text(json.dumps(content))


def names(files):
    return [str(file.relative) for file in files]


def test_a_folder_is_listed_sorted_without_hidden_files_and_earlier_results(tmp_path):
    make(tmp_path, "b.WAV", "a.mp4", "sub/c.d.flac", "notes.txt", ".hidden.wav", ".git/x.wav")
    make(tmp_path, "out/b/01_dog.wav", "out/b/residual.wav", "stems/x.wav")
    record(tmp_path / "out/b", "01_dog.wav")
    files = list_audio_files([tmp_path], exclude=tmp_path / "stems")
    assert names(files) == ["a", "b", "sub/c.d"]
    assert files[2].path == tmp_path / "sub/c.d.flac"
    assert all(file.problem is None for file in files)
    # Asked for by name, an earlier result, or the excluded folder itself, is an input.
    assert names(list_audio_files([tmp_path / "out/b"])) == ["01_dog", "residual"]
    assert names(list_audio_files([tmp_path / "stems"], exclude=tmp_path / "stems")) == ["x"]


def test_inputs_beside_results_are_listed(tmp_path):
    """As where results of song.wav went into a folder that was there."""
    make(tmp_path, "song.wav", "song/b.wav", "song/01_dog.wav", "song/residual.wav", "song/x/c.wav")
    record(tmp_path / "song", "01_dog.wav")
    assert names(list_audio_files([tmp_path])) == ["song", "song/b", "song/x/c"]
    (tmp_path / "song/separation.json").write_text("{")
    assert len(list_audio_files([tmp_path])) == 5  # rather too many than too few


def test_files_globs_and_what_is_missing_keep_their_place(tmp_path, monkeypatch):
    make(tmp_path, "x/b.wav", "x/a.wav", "x/a.txt", "take [1].wav", "odd.bin", "empty/notes.txt")
    monkeypatch.chdir(tmp_path)
    given = ["odd.bin", "no.wav", "x/*", "take [1].wav", "empty", "*.xyz", "x/a.wav", "./odd.bin"]
    files = list_audio_files(given)
    assert names(files) == ["odd", "no", "a", "b", "take [1]", "empty", "*"]
    problems = [file.problem for file in files]
    assert problems[1] == "no such file or folder"
    assert problems[5] == "no audio file in this folder"
    assert problems[6] == "no audio file matches this pattern"
    assert problems[0] is problems[2] is problems[3] is problems[4] is None
    assert names(list_audio_files(["**/*.wav"])) == ["take [1]", "a", "b"]
    assert list_audio_files([]) == []


def test_colliding_names_are_told_apart_whatever_the_order(tmp_path):
    make(tmp_path, "a.wav", "a.flac", "x/a.wav", "y/a.wav", "y/A.wav", "y/b.wav", "q/y/b.wav")
    make(tmp_path, "c.wav", "c.flac", "c-wav.ogg")
    given = [tmp_path / name for name in ("x/a.wav", "y/a.wav", "y/b.wav", "q/y/b.wav")]
    expected = ["x/a-wav", "y/a-wav", f"{tmp_path.name}/y/b-wav", "q/y/b-wav"]
    assert names(list_audio_files(given)) == expected
    assert names(list_audio_files(given[::-1])) == expected[::-1]
    assert names(list_audio_files([tmp_path / "a.wav", tmp_path / "a.flac"])) == [
        "a-wav",
        "a-flac",
    ]
    # A missing file does not take a name from one that is there.
    assert names(list_audio_files([tmp_path / "a.mp3", tmp_path / "a.wav"])) == ["a", "a"]
    everything = names(list_audio_files([tmp_path, *given, tmp_path / "x"]))
    assert len(everything) == len(set(everything)) == 10


def test_a_relative_name_never_leaves_the_output_folder(tmp_path, monkeypatch):
    make(tmp_path, "a.wav", "here/b.wav")
    monkeypatch.chdir(tmp_path / "here")
    assert names(list_audio_files(["../a.wav", ".", ".."])) == ["a", "b"]
