"""The audio files that the inputs of a command stand for, with names for their results."""

import dataclasses
import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .aac .aif .aiff .aifc .au .snd .caf .w64 .rf64 .wma .ac3"
    " .mp4 .m4v .mkv .mka .mov .webm .avi .mpg .mpeg .wmv .flv .ts .3gp".split()
)
_RECORD = "separation.json"


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """One input of a command.

    Attributes:
        path: where it is, as the user gave it.
        relative: where its results go below an output folder; no two readable files of a list
            share it.
        problem: why there is nothing to read, for example "no such file"; None if there is.
    """

    path: Path
    relative: PurePosixPath
    problem: str | None = None


def list_audio_files(
    inputs: Sequence[str | os.PathLike], exclude: str | os.PathLike | None = None
) -> list[AudioFile]:
    """Expands files, folders and globs to single files with distinct result names.

    A file given directly may have any suffix, one matched by a glob must have one of
    AUDIO_SUFFIXES; `relative` is its name without the suffix. A folder is searched recursively,
    sorted, for AUDIO_SUFFIXES; `relative` starts below it. Hidden files and folders, linked
    folders, and what a `separation.json` in a folder below it names (an earlier result) are left
    out. A file reached twice is listed once.

    Names that collide, also in case only, are told apart whatever the order of the inputs: by the
    suffix (a.wav and a.flac become a-wav and a-flac), then by as many parent folders as it takes
    (x/a.wav and y/a.wav become x/a-wav and y/a-wav).

    Args:
        inputs: paths and glob patterns (`**` is recursive). What exists is not taken as a pattern.
        exclude: folder that is never entered from above, such as the output folder.

    Returns:
        The files in order of the inputs. An input that leads to nothing is in its place with
        `problem` set; nothing is raised.

    Source: ours.
    """
    found: dict[str, AudioFile] = {}
    for given in inputs:
        path = Path(given)
        if os.path.lexists(path) or not glob.has_magic(str(given)):
            files = _expand(path, exclude)
        else:
            matches = sorted(map(Path, glob.glob(str(given), recursive=True)))
            matches = [m for m in matches if m.is_dir() or m.suffix.lower() in AUDIO_SUFFIXES]
            files = [file for match in matches for file in _expand(match, exclude)]
            files = [file for file in files if file.problem is None]
            if not files:
                files = [AudioFile(path, _plain(path), "no audio file matches this pattern")]
        for file in files:
            found.setdefault(os.path.abspath(file.path), file)
    return _distinct(list(found.values()))


def named_files(record: dict) -> list[str]:
    """Audio files that a `separation.json` names, without any path."""
    files = [source["file"] for source in record.get("sources", [])]
    files += [record[key]["file"] for key in ("residual", "without") if record.get(key)]
    return [Path(file).name for file in files]


def _expand(path: Path, exclude: str | os.PathLike | None) -> list[AudioFile]:
    """Lists one existing or missing file or folder, `relative` still with its suffix."""
    if not path.is_dir():
        problem = None if os.path.exists(path) else "no such file or folder"
        return [AudioFile(path, _plain(path), problem)]
    files, errors = [], []
    excluded = os.path.realpath(exclude) if exclude is not None else None
    for folder, subfolders, names in os.walk(path, onerror=errors.append):
        inside = Path(folder) != path
        if inside and os.path.realpath(folder) == excluded:
            subfolders.clear()
            continue
        if inside and _RECORD in names:  # there may be inputs beside the result of another one
            names = set(names) - _results(Path(folder, _RECORD))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.suffix.lower() in AUDIO_SUFFIXES:
                files.append(AudioFile(file, PurePosixPath(file.relative_to(path).as_posix())))
    for error in errors:
        files.append(AudioFile(Path(error.filename), _plain(error.filename), error.strerror))
    return files or [AudioFile(path, _plain(path), "no audio file in this folder")]


def _results(record: Path) -> set[str]:
    """Names of the files of an earlier result; none where its record is damaged."""
    try:
        return set(named_files(json.loads(record.read_text())))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def _plain(path: str | os.PathLike) -> PurePosixPath:
    return PurePosixPath(os.path.basename(os.path.abspath(path)) or "input")


def _distinct(files: list[AudioFile]) -> list[AudioFile]:
    """Takes the suffix off `relative`, and keeps the names of readable files distinct."""
    choices = []
    for file in files:
        name = file.relative
        tagged = f"{name.stem}-{name.suffix[1:]}" if name.suffix else name.name
        folders = Path(os.path.abspath(file.path)).parts[1:-1]
        further = [PurePosixPath(*folders[-n:], tagged) for n in range(1, len(folders) + 1)]
        options = [name.with_suffix(""), name.with_name(tagged), *further]
        choices.append(options if file.problem is None else options[:1])
    level = [0] * len(files)
    while True:
        names = [options[n] for options, n in zip(choices, level, strict=True)]
        rows = list(zip(files, names, strict=True))
        count = Counter(str(name).casefold() for file, name in rows if file.problem is None)
        clashes = [i for i, name in enumerate(names) if count[str(name).casefold()] > 1]
        movable = [i for i in clashes if level[i] + 1 < len(choices[i])]
        if not movable:
            return [dataclasses.replace(file, relative=name) for file, name in rows]
        for i in movable:
            level[i] += 1
