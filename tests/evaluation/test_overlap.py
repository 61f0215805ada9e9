"""Clips of a training set are found by their sound."""

import shutil
from pathlib import Path

from opensep_jax.data.records import PreparedDataset
from opensep_jax.evaluation.overlap import names_of, overlapping_clips
from tests.tiny_dataset import SOUNDS, prepare_folder


def test_renamed_clips_are_found_and_others_are_not(
    tiny_sounds: Path, tiny_dataset: Path, tiny_encoder: Path, tmp_path: Path
):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(tiny_sounds / "hum-1.wav", root / "renamed.wav")
    shutil.copy(tiny_sounds / "hum-3.wav", root / "new.wav")
    (root / "manifest.csv").write_text(
        "path,label,caption,split\nrenamed.wav,hum,,val\nnew.wav,hum,,val\n"
    )
    assert prepare_folder(root, tmp_path / "out", tiny_encoder) == 0
    train, other = PreparedDataset(tiny_dataset, "train"), PreparedDataset(tmp_path / "out", "val")
    found = [other.clips[index].path for index in overlapping_clips(other, train)]
    assert found == ["renamed.wav"]
    assert overlapping_clips(PreparedDataset(tiny_dataset, "val"), train) == []
    assert names_of(train) == set(SOUNDS)


def test_clips_are_found_however_they_are_stored(
    tiny_sounds: Path, tiny_dataset: Path, tiny_encoder: Path, tmp_path: Path
):
    assert prepare_folder(tiny_sounds, tmp_path, tiny_encoder, "--audio", "flac") == 0
    train, packed = PreparedDataset(tiny_dataset, "train"), PreparedDataset(tmp_path, "train")
    assert packed.clips[0].crc32 != train.clips[0].crc32
    assert overlapping_clips(packed, train) == list(range(len(train)))
