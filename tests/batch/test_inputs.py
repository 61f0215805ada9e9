"""What is wanted of which file: flags, lists, and both at once."""

import json
from pathlib import Path

import pytest
import soundfile

from opensep_jax.batch.inputs import Request, plan_jobs

FLAGS = Request(queries=("dog",), max_sources=3)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", [0.0, 0.1], 8000)
    return tmp_path


def _list(folder: Path, *rows: dict) -> str:
    file = folder / "list.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_file_and_its_row_in_a_list_are_two_jobs(sounds: Path):
    rows = [{"input": "a.wav", "queries": ["rain"]}, {"input": "a.wav"}, {"input": "b.wav"}]
    given = [str(sounds / "a.wav"), _list(sounds, *rows)]
    jobs = plan_jobs(given, FLAGS, sounds / "out")
    assert [(job.relative, job.request.queries) for job in jobs] == [
        ("a", ("dog",)), ("a-2", ("rain",)), ("b", ("dog",)),
    ]  # fmt: skip


def test_a_row_replaces_what_it_names(sounds: Path):
    rows = [
        {"input": "a.wav", "caption": "Rain falls", "not": ["wind"], "max_sources": 1},
        {"input": "b.wav", "queries": [], "only": ["dog"], "min_confidence": 0.5},
    ]
    first, second = plan_jobs([_list(sounds, *rows)], FLAGS, sounds / "out")
    assert first.request == Request((), "Rain falls", ("wind",), (), 1, 0.0)
    assert second.request == Request(("dog",), None, (), ("dog",), 3, 0.5)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"queries": "dog"}, '"queries" is not a list of texts'),
        ({"not": [" "]}, '"not" is not a list of texts, none of them empty'),
        ({"max_sources": 0}, '"max_sources" is no positive number: 0'),
        ({"min_confidence": 2}, '"min_confidence" is not within 0 and 1: 2'),
        ({"min_confidence": "much"}, "is not within 0 and 1: 'much'"),
        ({"caption": ""}, '"caption" is no text'),
        ({"queries": 5}, '"queries" is not a list of texts'),
        ({"queries": {"dog": 1}}, '"queries" is not a list of texts'),
        ({"not": True}, '"not" is not a list of texts'),
        ({"max_sources": True}, '"max_sources" is no positive number: True'),
        ({"min_confidence": True}, '"min_confidence" is not within 0 and 1: True'),
        ({"query": ["dog"]}, '"query" is not known; is "queries" meant?'),
        ({"suppressed": ["dog"]}, '"suppressed" is not known; is "not" meant?'),
        ({"Caption": "A dog"}, '"Caption" is not known; is "caption" meant?'),
        ({"max_source": 2}, '"max_source" is not known; is "max_sources" meant?'),
    ],
)
def test_rows_that_cannot_be_meant(sounds: Path, row: dict, message: str):
    (job,) = plan_jobs([_list(sounds, {"input": "a.wav"} | row)], FLAGS, sounds / "out")
    assert message in job.problem and job.relative is None
    assert str(job.path).endswith("list.jsonl:1")


def test_a_row_may_have_keys_of_its_own(sounds: Path):
    """So lists for other programs serve."""
    own = {"id": 7, "split": "test", "reference": ["a.wav"], "note": "x", "num_sources": 2}
    (job,) = plan_jobs([_list(sounds, {"input": "a.wav"} | own)], FLAGS, sounds / "out")
    assert job.problem is None and job.request == FLAGS


@pytest.mark.parametrize(
    "request_, worded, listens",
    [
        (Request(), True, True),
        (Request(queries=("dog",)), False, False),
        (Request(caption="A dog barks"), True, False),
        (Request(suppressed=("wind",)), False, False),
        (Request(suppressed=("wind",), caption="A dog barks"), True, False),
        (Request(only=("dog",)), True, True),
    ],
)
def test_who_needs_words(request_: Request, worded: bool, listens: bool):
    assert (request_.worded, request_.listens) == (worded, listens)
