"""Published on-disk layouts, read into clips; nothing is decoded here."""

import csv
import dataclasses
import json
import logging
import re
from collections import Counter
from pathlib import Path

from opensep_jax.signal.files import AUDIO_SUFFIXES, list_audio_files

logger = logging.getLogger("opensep_jax")

MANIFEST_COLUMNS = ("path", "label", "caption", "split")


@dataclasses.dataclass(frozen=True)
class ClipSource:
    """One named source within a clip.

    Attributes:
        name: class name or parsed name; sources of one name never meet in a mixture.
        caption: sentence about this source; may be empty.
    """

    name: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """An audio file with what is known of it.

    Attributes:
        path: relative to the root of the data set.
        split: `train`, `val`, ...
        sources: what is heard in it; usually one.
        extra: further columns (licence, origin, ...), kept in the record.
    """

    path: str
    split: str
    sources: tuple[ClipSource, ...]
    extra: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Clips under a root, sorted by split and path.

    Attributes:
        root: folder of the audio files.
        clips: all clips.
        families: labels that are hard to tell apart, by the name of their family; evaluation
            never mixes two of a family. May be empty.
    """

    root: Path
    clips: tuple[Clip, ...]
    families: dict[str, list[str]]


def read_folder(root: Path, val_every: int = 10) -> Dataset:
    """Reads a folder with `manifest.csv`, or with one subfolder per class.

    The manifest has the columns path, label, caption, split (others are kept as they are).
    Without a manifest the class is the name of the top subfolder (underscores become spaces),
    there is no caption, and every `val_every`-th file of a class is validation; the last one of a
    class that has fewer, but more than one. Files in no subfolder are left out, with a warning.
    `families.json` beside them, `{family: [label, ...]}`, is optional.

    Raises:
        ValueError: naming the file and row or column that is wrong.
    """
    manifest = root / "manifest.csv"
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder (--root)")
    clips = _from_manifest(manifest) if manifest.exists() else _from_subfolders(root, val_every)
    if not clips:
        raise ValueError(f"{root}: no clips: neither manifest.csv rows nor audio in subfolders")
    families = _read_families(root / "families.json")
    return Dataset(root, tuple(sorted(clips, key=lambda c: (c.split, c.path))), families)


def _from_manifest(manifest: Path) -> list[Clip]:
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
            raise ValueError(f"{manifest}: row {number} has an empty path or label: {row}")
        if path in seen:
            raise ValueError(f"{manifest}: rows {seen[path]} and {number} are both {path}")
        if not re.fullmatch(r"\w+", split):
            raise ValueError(f"{manifest}: row {number}: split {split!r} is not a single word")
        seen[path] = number
        extra = {k: v for k, v in row.items() if k and k not in MANIFEST_COLUMNS and v}
        clips.append(Clip(path, split, (ClipSource(label, known["caption"]),), extra))
    return clips


def _read_families(file: Path) -> dict[str, list[str]]:
    if not file.exists():
        return {}
    try:
        families = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(families, dict) or not all(
        isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        for labels in families.values()
    ):
        raise ValueError(f"{file}: not of the form {{family: [label, ...]}}")
    counts = Counter(label for labels in families.values() for label in labels)
    repeated = [label for label, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{file}: in several families: {', '.join(repeated)}")
    return families


def _from_subfolders(root: Path, val_every: int) -> list[Clip]:
    loose = [file for file in root.iterdir() if file.suffix.lower() in AUDIO_SUFFIXES]
    if loose:
        logger.warning("%s: %d files are in no class folder and are left out", root, len(loose))
    clips = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        source = ClipSource(folder.name.replace("_", " "), "")
        files = [file for file in list_audio_files([folder]) if file.problem is None]
        for number, file in enumerate(files):
            is_val = number % val_every == min(val_every, len(files)) - 1 and len(files) > 1
            split = "val" if is_val else "train"
            clips.append(Clip(str(file.path.relative_to(root)), split, (source,), {}))
    return clips


READERS = {"folder": read_folder}
