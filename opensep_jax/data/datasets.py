"""Folders of recordings, read into clips; nothing is decoded here."""

import collections
import csv
import dataclasses
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path

from opensep_jax.signal.files import AUDIO_SUFFIXES, list_audio_files

logger = logging.getLogger("opensep_jax")

MANIFEST_COLUMNS = ("path", "label", "caption", "split")


@dataclasses.dataclass(frozen=True, slots=True)  # there are millions of them
class ClipSource:
    """One named source within a clip.

    Attributes:
        name: class name or parsed name; sources of one name never meet in a mixture.
        caption: sentence about this source; may be empty.
    """

    name: str
    caption: str


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """An audio file with what is known of it.

    Attributes:
        id: what the data set's own list calls it; its place in the records depends on nothing else.
        path: relative to the root of the data set; None if it is listed but not there.
        split: `train`, `val`, ...
        sources: what is heard in it as its label has it; empty if nobody says.
        captions: sentences about all of it.
        extra: further columns (licence, origin, ...), kept in the record.
    """

    id: str
    path: str | None
    split: str
    sources: tuple[ClipSource, ...]
    captions: tuple[str, ...]
    extra: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Clips under a root, sorted by split and id.

    Attributes:
        root: folder of the audio files.
        clips: all clips, those included that are not there.
        families: labels that are hard to tell apart, by the name of their family; evaluation
            never mixes two of a family. May be empty.
        scenes: labels that are heard together, by the name of their scene; training may mix only
            those. May be empty, and a label may be in several.
        notes: what was odd about its lists and files, such as `{"bad_rows": ["train.csv:7: ..."]}`;
            part of the coverage report.
    """

    root: Path
    clips: tuple[Clip, ...]
    families: dict[str, list[str]]
    scenes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def read_folder(root: Path, val_every: int = 10) -> Dataset:
    """Reads a folder with `manifest.csv`, or with one subfolder per class.

    The manifest has the columns path, label, caption, split (others are kept as they are); rows
    that cannot be used are noted.
    Without a manifest the class is the name of the top subfolder (underscores become spaces),
    there is no caption, and every `val_every`-th file of a class is validation; the last one of a
    class that has fewer, but more than one. Files in no subfolder have no label: only a captioner
    can tell what they are. `families.json` and `scenes.json` beside them, `{name: [label, ...]}`,
    are optional.

    Raises:
        ValueError: naming the file and row or column that is wrong.
    """
    manifest = root / "manifest.csv"
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder (--root)")
    notes: dict[str, list[str]] = collections.defaultdict(list)
    if manifest.exists():
        clips = _from_manifest(manifest, notes)
    else:
        clips = _from_subfolders(root, val_every, notes)
    if not clips:
        told = "".join(f"; {kind}: {found[0]}" for kind, found in notes.items())
        raise ValueError(f"{root}: no clips: neither manifest.csv rows nor audio files{told}")
    families, scenes = (_read_groups(root / f"{kind}.json") for kind in ("families", "scenes"))
    counts = Counter(label for labels in families.values() for label in labels)
    repeated = [label for label, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{root / 'families.json'}: in several families: {', '.join(repeated)}")
    clips = tuple(sorted(clips, key=lambda c: (c.split, c.id)))
    return Dataset(root, clips, families, scenes, dict(notes))


def _from_manifest(manifest: Path, notes: dict[str, list[str]]) -> list[Clip]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{manifest}: not a CSV file in UTF-8: {error}") from error
    missing = [c for c in ("path", "label") if c not in columns]
    if missing:
        raise ValueError(
            f"{manifest}: column {' and '.join(missing)} missing; found {', '.join(columns)}"
        )
    clips, seen = [], {}
    for number, row in enumerate(rows, 2):
        known = {column: (row.get(column) or "").strip() for column in MANIFEST_COLUMNS}
        path, label, split = known["path"], known["label"], known["split"] or "train"
        if not path or not label:
            notes["bad_rows"].append(f"{manifest.name}:{number}: empty path or label: {row}")
            continue
        if path in seen:
            notes["listed_twice"].append(f"{manifest.name}:{number}: {path} is in row {seen[path]}")
            continue
        if not re.fullmatch(r"\w+", split):
            notes["bad_rows"].append(f"{manifest.name}:{number}: split {split!r} is no word")
            continue
        seen[path] = number
        extra = {k: v for k, v in row.items() if k and k not in MANIFEST_COLUMNS and v}
        source, captions = ClipSource(label, known["caption"]), (known["caption"],)
        clips.append(Clip(path, path, split, (source,), captions if captions[0] else (), extra))
    return clips


def _read_groups(file: Path) -> dict[str, list[str]]:
    if not file.exists():
        return {}
    try:
        groups = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(groups, dict) or not all(
        isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        for labels in groups.values()
    ):
        raise ValueError(f"{file}: not of the form {{name: [label, ...]}}")
    return groups


def _from_subfolders(root: Path, val_every: int, notes: dict[str, list[str]]) -> list[Clip]:
    loose = [p.name for p in root.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()]
    if loose:
        logger.warning("%s: %d files are in no class folder: they have no label", root, len(loose))
    clips = [Clip(name, name, "train", (), (), {}) for name in sorted(loose)]
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        source = ClipSource(folder.name.replace("_", " "), "")
        listed = list_audio_files([folder])
        files = [file for file in listed if file.problem is None]
        notes["unreadable"] += [f"{f.path}: {f.problem}" for f in listed if f.problem is not None]
        for number, file in enumerate(files):
            is_val = number % val_every == min(val_every, len(files)) - 1 and len(files) > 1
            path = str(file.path.relative_to(root))
            clips.append(Clip(path, path, "val" if is_val else "train", (source,), (), {}))
    if not notes["unreadable"]:
        del notes["unreadable"]
    return clips


def coverage(dataset: Dataset) -> dict:
    """How much of what is listed is there.

    Returns:
        `splits`: by split `listed`, `found` and `missing` clips; `missing`: their ids; and the
        data set's notes.
    """
    splits: dict[str, dict[str, int]] = {}
    missing = []
    for clip in dataset.clips:
        counts = splits.setdefault(clip.split, {"listed": 0, "found": 0, "missing": 0})
        counts["listed"] += 1
        if clip.path is not None and os.path.exists(dataset.root / clip.path):
            counts["found"] += 1
        else:
            counts["missing"] += 1
            missing.append(clip.id)
    return {"splits": splits, "missing": missing, **dataset.notes}
