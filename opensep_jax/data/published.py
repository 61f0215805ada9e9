"""MUSIC, VGGSound and AudioCaps as labs have them on disk: the published lists, and whatever is
left of the videos.

A list says which clips there are and in which split; a file is found by its name anywhere under
the root, as audio or as video. What is listed but missing stays in the data set with no path, so
that records keep their places when it turns up later.
"""

import collections
import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from opensep_jax.data.datasets import Clip, ClipSource, Dataset, read_folder
from opensep_jax.signal.files import AUDIO_SUFFIXES

MUSIC_LISTS = ("MUSIC21_solo_videos.json", "MUSIC_solo_videos.json", "MUSIC_duet_videos.json")
AUDIOCAPS_FOLDERS = (".", "dataset", "annotations", "csv", "metadata", "dataset2.0")
AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_BETTER_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # first what needs no ffmpeg
_SEED = 0  # of validation and test parts that no published list has


def read_music(root: Path) -> Dataset:
    """Reads MUSIC (Sound of Pixels, 11 instruments) or MUSIC-21, solos and duets.

    The lists are those of `MUSIC_LISTS` that lie in the root (`{"videos": {class: [id, ...]}}`);
    without any, the class of a file is the name of its folder. A video is `<id>.<suffix>`. The
    authors publish no split: of the solos a tenth each, chosen by a hash of the id, is `val` and
    `test`; duets are a split of their own, `duet`, with two sources each.

    Raises:
        ValueError: naming what is wrong with a list, or that there is nothing.
    """
    stems, unseen = _files_by_stem(root), unseen_classes("music")
    listed, notes = {}, collections.defaultdict(list)
    for name in MUSIC_LISTS:
        if (root / name).exists():
            for classes, video in _music_list(root / name):
                if listed.setdefault(video, classes) != classes:
                    notes["listed_twice"].append(f"{name}: {video} is also {listed[video]}")
    if not any((root / name).exists() for name in MUSIC_LISTS):
        listed = {s: (Path(p).parent.name,) for s, p in stems.items() if Path(p).parent.name}
    clips = []
    for video, classes in listed.items():
        split = split_of(video, {"val": 10, "test": 10}) if len(classes) == 1 else "duet"
        labels = [name.replace("_", " ") for name in classes]
        clips.append(_labelled(video, stems.pop(video, None), split, labels, unseen))
    return _dataset("music", root, clips, stems, notes)


def read_vggsound(root: Path) -> Dataset:
    """Reads VGGSound: `vggsound.csv` with rows `id,start second,label,split` and no header.

    A clip is `<id>_<start, six digits>.<suffix>`; `<id>.<suffix>` is taken for it where an id has
    one clip. `test` is the official one; a fiftieth of the official training rows, chosen by a
    hash of the video's id, is `val`.

    Raises:
        ValueError: if there is no list, or nothing in it.
    """
    stems, unseen = _files_by_stem(root), unseen_classes("vggsound")
    rows, notes = {}, collections.defaultdict(list)
    place = _find(root, "vggsound.csv", (".", "data", "annotations"))
    for number, row in _csv_rows(place):
        try:
            video, start, label, split = (column.strip() for column in row)
            key = f"{video}_{int(float(start)):06d}"
            if not video or not label or split not in ("train", "test"):
                raise ValueError(f"unexpected {row}")
        except (ValueError, OverflowError) as error:
            if number > 1 or row[:1] not in (["youtube_id"], ["# YouTube ID"]):  # a header
                notes["bad_rows"].append(f"{place.name}:{number}: {error}")
            continue
        if key in rows:
            notes["listed_twice"].append(f"{place.name}:{number}: {key}")
            continue
        split = split_of(video, {"val": 2}) if split == "train" else split
        rows[key] = video, label, split
    of_video = collections.Counter(video for video, _, _ in rows.values())
    clips = []
    for key, (video, label, split) in rows.items():
        names = (key, video) if of_video[video] == 1 else (key,)
        clips.append(_labelled(key, _take(stems, names), split, [label], unseen))
    return _dataset("vggsound", root, clips, stems, notes)


def read_audiocaps(root: Path) -> Dataset:
    """Reads AudioCaps: `train.csv`, `val.csv`, `test.csv` with `AUDIOCAPS_COLUMNS`.

    The lists lie in the root or a folder of `AUDIOCAPS_FOLDERS`. Rows of one video and start are
    one clip with several captions (five each in val and test). Its file is `<id>_<start>`,
    `<id>_<start, six digits>`, `<audiocap_id>`, `<id>` or `Y<id>`, with any suffix.

    Raises:
        ValueError: if there is no list, a column is missing, or no row is usable.
    """
    stems = _files_by_stem(root)
    notes: dict[str, list[str]] = collections.defaultdict(list)
    found: dict[tuple[str, int], dict] = {}
    seen: set[str] = set()
    for split in ("test", "val", "train"):  # what is in several is not trained on
        place = _find(root, f"{split}.csv", AUDIOCAPS_FOLDERS, required=False)
        if place is None:
            notes["missing_lists"].append(f"{split}.csv")
            continue
        for where, row in _caption_rows(place, notes):
            if row["audiocap_id"] in seen:
                notes["listed_twice"].append(f"{where}: audiocap_id {row['audiocap_id']}")
                continue
            seen.add(row["audiocap_id"])
            key = row["youtube_id"], int(float(row["start_time"]))
            clip = found.setdefault(key, {"split": split, "ids": [], "captions": []})
            if clip["split"] != split:
                notes["in_two_splits"].append(f"{where}: {key[0]} is in {clip['split']}")
                continue
            clip["ids"].append(row["audiocap_id"])
            clip["captions"].append(row["caption"])
    if len(notes["missing_lists"]) == 3:
        raise ValueError(f"{root}: none of train.csv, val.csv, test.csv with captions")
    if not notes["missing_lists"]:
        del notes["missing_lists"]
    clips = []
    for (video, start), clip in found.items():
        names = (f"{video}_{start}", f"{video}_{start:06d}", *clip["ids"], video, f"Y{video}")
        path, captions = _take(stems, names), tuple(dict.fromkeys(clip["captions"]))
        extra = {"youtube_id": video, "start_time": str(start)}
        clips.append(Clip(f"{video}_{start}", path, clip["split"], (), captions, extra))
    return _dataset("audiocaps", root, clips, stems, notes)


def unseen_classes(name: str) -> frozenset[str]:
    """Labels that are kept out of training, of `assets/splits/<name>.json`."""
    file = resources.files("opensep_jax").joinpath(f"assets/splits/{name}.json")
    return frozenset(json.loads(file.read_text("utf-8"))["unseen"])


def choose_unseen(labels: Iterable[str], number: int, seed: int) -> list[str]:
    """The `number` labels whose hash with the seed comes first, sorted; how the lists were made."""
    return sorted(sorted(labels, key=lambda label: _hash(f"{seed}:{label}"))[:number])


def split_of(id: str, percent: dict[str, int]) -> str:
    """Split of a video where none is published, by a hash of its id, whatever else is there.

    Args:
        id: of the video.
        percent: share of each split; the rest is `train`.
    """
    place = int(_hash(f"{_SEED}:{id}")[:8], 16) % 100
    for split, share in percent.items():
        if place < share:
            return split
        place -= share
    return "train"


def _dataset(
    name: str, root: Path, clips: list[Clip], left: dict[str, str], notes: dict[str, list[str]]
) -> Dataset:
    if not clips:
        raise ValueError(f"{root}: no clips of {name}: neither a usable list nor audio files")
    if left:
        notes["not_listed"] = sorted(left.values())
    clips = sorted(clips, key=lambda c: (c.split, c.id))
    return Dataset(root, tuple(clips), families={}, notes=dict(notes))


def _labelled(
    id: str, path: str | None, split: str, labels: list[str], unseen: frozenset[str]
) -> Clip:
    """A clip; one with a class that is kept for testing is in a split `..._unseen`."""
    sources = tuple(ClipSource(label, "") for label in labels)
    split = f"{split}_unseen" if unseen & frozenset(labels) else split
    return Clip(id, path, split, sources, (), {})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files_by_stem(root: Path) -> dict[str, str]:
    """Path relative to the root of every audio or video file, by its name without suffix."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder (--root)")
    best: dict[str, tuple] = {}
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):  # parts lie on other disks
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."):
                rank = (*_BETTER_SUFFIXES, suffix.lower()).index(suffix.lower())
                path = os.path.relpath(os.path.join(folder, name), root)
                best[stem] = min(best.get(stem, (rank, path)), (rank, path))
    return {stem: path for stem, (_, path) in best.items()}


def _take(stems: dict[str, str], names: Iterable[str]) -> str | None:
    """Removes and returns the first of these names that is there."""
    return next((stems.pop(name) for name in names if name in stems), None)


def _find(root: Path, name: str, folders: Iterable[str], required: bool = True) -> Path | None:
    for folder in folders:
        if (root / folder / name).is_file():
            return root / folder / name
    if required:
        raise ValueError(f"{root}: no {name}, neither there nor in {', '.join(folders)}")
    return None


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and columns of the rows that are not empty.

    A row is a line: else a quote that is never closed would swallow the rest of the file.
    """
    text = file.read_text("utf-8-sig", errors="replace")
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = next(csv.reader([line.rstrip("\r")], strict=True), [])
        except csv.Error:
            row = [line]
        if row:
            yield number, row


def _caption_rows(file: Path, notes: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Places and columns of the usable rows of a list of AudioCaps."""
    rows = _csv_rows(file)
    _, header = next(rows, (1, ["nothing"]))
    missing = [column for column in AUDIOCAPS_COLUMNS if column not in header]
    if missing:
        raise ValueError(
            f"{file}: column {' and '.join(missing)} missing; found {', '.join(header)}"
        )
    for number, row in rows:
        known = dict(zip(header, (column.strip() for column in row), strict=False))
        try:
            usable = len(row) == len(header) and 0 <= float(known["start_time"]) < math.inf
        except ValueError:
            usable = False
        if usable and all(known[column] for column in AUDIOCAPS_COLUMNS):
            yield f"{file.name}:{number}", known
        else:
            notes["bad_rows"].append(f"{file.name}:{number}: {row}")


def _music_list(file: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Classes (two of a duet) and video ids of a list."""
    try:
        videos = json.loads(file.read_text("utf-8"))["videos"]
        rows = [(tuple(name.split()), video) for name, ids in videos.items() for video in ids]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file}: not of the form {{"videos": {{class: [id, ...]}}}}') from error
    if not all(isinstance(video, str) for _, video in rows):
        raise ValueError(f"{file}: a video id is not a text")
    yield from rows


READERS = {
    "audiocaps": read_audiocaps,
    "folder": read_folder,
    "music": read_music,
    "vggsound": read_vggsound,
}
