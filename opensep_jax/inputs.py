"""What `infer` is given, as single files with their texts: paths, globs and .jsonl lists."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

from opensep_jax.signal.files import list_audio_files


@dataclasses.dataclass(frozen=True)
class Texts:
    """What is known of an input in words.

    Attributes:
        queries: texts of its sources; empty where a caption names them.
        caption: what is heard in it; without queries either, it will be listened to.
    """

    queries: tuple[str, ...] = ()
    caption: str | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One input.

    Attributes:
        path: as the user gave it.
        relative: where its results go below the output folder; None if there is a problem.
        texts: queries, a caption, or neither.
        problem: why it cannot be separated.
    """

    path: Path
    relative: str | None
    texts: Texts = Texts()
    problem: str | None = None

    @property
    def listens(self) -> bool:
        """Whether a captioner must say what is in it."""
        return self.texts == Texts()


def plan_jobs(inputs: list[str], texts: Texts, out: Path) -> list[Job]:
    """Inputs as single files, in an order and with names that do not depend on the shard.

    Args:
        inputs: what the user gave.
        texts: for files whose list gives none.
        out: folder that is never searched for inputs.

    Returns:
        A job per file and distinct texts; unreadable inputs and lines are jobs with a problem.
    """
    paths: list[str] = []
    listed: dict[str, list[Texts]] = {}  # of a list's rows, by absolute path
    broken: list[Job] = []
    for given in inputs:
        if not (given.lower().endswith(".jsonl") and Path(given).is_file()):
            paths.append(given)
            continue
        for number, text in enumerate(Path(given).read_bytes().splitlines(), 1):
            if not text.strip():
                continue
            try:
                path, own = _read_row(text, Path(given).parent)
                own = texts if own == Texts() else own
            except ValueError as error:
                broken.append(Job(Path(f"{given}:{number}"), None, problem=str(error)))
                continue
            paths.append(path)
            for file in list_audio_files([path], out):
                rows = listed.setdefault(os.path.abspath(file.path), [])
                if own not in rows:
                    rows.append(own)
    jobs = []
    for file in list_audio_files(paths, out):
        for number, own in enumerate(listed.get(os.path.abspath(file.path), [texts]), 1):
            relative = f"{file.relative}-{number}" if number > 1 else str(file.relative)
            jobs.append(Job(file.path, None if file.problem else relative, own, file.problem))
    return _apart([*jobs, *broken])


def _read_row(text: bytes, folder: Path) -> tuple[str, Texts]:
    """Path and texts of a line of a list."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not row["input"]:
        raise ValueError('not an object with "input": a path')
    queries = row.get("queries") or []
    if not isinstance(queries, list) or not all(isinstance(q, str) and q.strip() for q in queries):
        raise ValueError('"queries" is not a list of texts, none of them empty')
    caption = row.get("caption")
    if caption is not None and not (isinstance(caption, str) and caption.strip()):
        raise ValueError('"caption" is no text, or an empty one')
    path = row["input"]
    if not os.path.isabs(path) and not os.path.lexists(path) and os.path.lexists(folder / path):
        path = str(folder / path)
    return path, Texts(tuple(queries), caption)


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
