"""What `infer` is given: paths, globs and .jsonl lists as files, with what is wanted of each."""

import dataclasses
import difflib
import json
import os
from collections import Counter
from pathlib import Path

from opensep_jax.signal.files import list_audio_files


@dataclasses.dataclass(frozen=True)
class Request:
    """What is wanted of an input.

    Attributes:
        queries: texts of its sources; empty where a caption names them.
        caption: what is heard in it; without queries either, it will be listened to.
        suppressed: texts of sources; the input is written without them besides.
        only: texts; of the sources those are kept that one of these means; empty: all.
        max_sources: the loudest so many are kept; None: all.
        min_confidence: sources with less stay in the residual.
    """

    queries: tuple[str, ...] = ()
    caption: str | None = None
    suppressed: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    max_sources: int | None = None
    min_confidence: float = 0.0

    def __post_init__(self):
        for key in ("queries", "suppressed", "only"):
            texts = getattr(self, key)
            is_tuple = isinstance(texts, tuple)
            if not is_tuple or not all(isinstance(q, str) and q.strip() for q in texts):
                raise ValueError(f"{_NAMES[key]} is not a list of texts, none of them empty")
        if self.caption is not None and not (
            isinstance(self.caption, str) and self.caption.strip()
        ):
            raise ValueError(f"{_NAMES['caption']} is no text, or an empty one")
        most, least = self.max_sources, self.min_confidence
        if most is not None and (type(most) is not int or most < 1):  # True is an int
            raise ValueError(f"{_NAMES['max_sources']} is no positive number: {most!r}")
        if type(least) not in (int, float) or not 0 <= least <= 1:
            raise ValueError(f"{_NAMES['min_confidence']} is not within 0 and 1: {least!r}")

    @property
    def worded(self) -> bool:
        """Whether its sources are found in a caption, its own or a captioner's.

        A request for nothing but to be without something needs none.
        """
        takes_out = self.suppressed and self.caption is None and not self.only
        return not self.queries and not takes_out

    @property
    def listens(self) -> bool:
        """Whether a captioner must say what is in it."""
        return self.worded and self.caption is None


# Names of the attributes in flags and lists.
_NAMES = {f.name: f'"{f.name}"' for f in dataclasses.fields(Request)} | {"suppressed": '"not"'}
_KEYS = {name.strip('"'): key for key, name in _NAMES.items()}
_MISTAKEN = {"query": "queries", "suppressed": "not", "without": "not"}
_ALIKE = 0.9  # of two spellings, by difflib, from which on one is taken for a slip


@dataclasses.dataclass(frozen=True)
class Job:
    """One input.

    Attributes:
        path: as the user gave it.
        relative: where its results go below the output folder; None if there is a problem.
        request: what is wanted of it.
        problem: why it cannot be separated.
    """

    path: Path
    relative: str | None
    request: Request = Request()
    problem: str | None = None


def plan_jobs(inputs: list[str], request: Request, out: Path) -> list[Job]:
    """Inputs as single files, in an order and with names that do not depend on the shard.

    Args:
        inputs: what the user gave.
        request: of files that are given directly, and of rows of a list that say nothing else.
        out: folder that is never searched for inputs.

    Returns:
        A job per file and distinct request; unreadable inputs and lines are jobs with a problem.
    """
    paths: list[str] = []
    wanted: dict[str, list[Request]] = {}  # by absolute path
    broken: list[Job] = []

    def add(path: str, own: Request) -> None:
        paths.append(path)
        for file in list_audio_files([path], out):
            requests = wanted.setdefault(os.path.abspath(file.path), [])
            if own not in requests:
                requests.append(own)

    for given in inputs:
        if not (given.lower().endswith(".jsonl") and Path(given).is_file()):
            add(given, request)
            continue
        for number, text in enumerate(Path(given).read_bytes().splitlines(), 1):
            if text.strip():
                try:
                    add(*_read_row(text, Path(given).parent, request))
                except ValueError as error:
                    broken.append(Job(Path(f"{given}:{number}"), None, problem=str(error)))
    jobs = []
    for file in list_audio_files(paths, out):
        for number, own in enumerate(wanted.get(os.path.abspath(file.path), [request]), 1):
            relative = f"{file.relative}-{number}" if number > 1 else str(file.relative)
            jobs.append(Job(file.path, None if file.problem else relative, own, file.problem))
    return _apart([*jobs, *broken])


def _read_row(text: bytes, folder: Path, request: Request) -> tuple[str, Request]:
    """Path and request of a line of a list; what it does not say is as in `request`."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not row["input"]:
        raise ValueError('not an object with "input": a path')
    own = {}
    for name, value in row.items():
        if name not in _KEYS and (meant := _meant(name)) and meant not in row:
            raise ValueError(f'"{name}" is not known; is "{meant}" meant?')
        if name in _KEYS and value is not None:
            if isinstance(value, list):
                value = tuple(value)
            own[_KEYS[name]] = value
    if own.get("queries") or "caption" in own:  # a row with words of its own takes no others
        own = {"queries": (), "caption": None} | own
    elif "queries" in own:
        del own["queries"]
    path = row["input"]
    if not os.path.isabs(path) and not os.path.lexists(path) and os.path.lexists(folder / path):
        path = str(folder / path)
    return path, dataclasses.replace(request, **own)


def _meant(name: str) -> str | None:
    """The key that an unknown one looks like; None where it is something of the user's own."""
    near = difflib.get_close_matches(name.lower(), _KEYS, 1, _ALIKE)
    return _MISTAKEN.get(name.lower(), near[0] if near else None)


def _apart(jobs: list[Job]) -> list[Job]:
    """Refuses jobs whose results would share a folder (numbered ones may meet another's name)."""
    count = Counter(job.relative.casefold() for job in jobs if job.relative)
    problem = "another input has the same name for its results"
    return [
        dataclasses.replace(job, relative=None, problem=problem)
        if job.relative and count[job.relative.casefold()] > 1
        else job
        for job in jobs
    ]
