"""The door `parse`: its inputs, lines, shards, reruns and errors."""

import functools
import json
from pathlib import Path

import pytest

from opensep_jax import __version__, parse
from opensep_jax.cli import run
from opensep_jax.text.parse import Parser
from opensep_jax.text.prompts import load_tasks
from tests.scripted_model import ScriptedModel, letter_bank

CAPTIONS = [
    "A dog barks while rain falls",
    "two cats meow",
    'He said: "woof", 🐶',
    "ein Hund bellt",
]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Options of each parser that the door has loaded."""
    options: list[dict] = []

    def load_parser(**given: object) -> Parser:
        options.append(given)
        model = None if given["language_model"] == "none" else ScriptedModel()
        return Parser(model, letter_bank(), load_tasks(given["prompts"]), style=given["style"])

    monkeypatch.setattr(parse, "load_parser", load_parser)
    return options


def _parse(*argv: object) -> int:
    return run(parse.main, parse.parser(), (ValueError,), [str(arg) for arg in argv])


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _write(folder: Path, suffix: str) -> Path:
    file = folder / f"captions{suffix}"
    if suffix == ".txt":
        file.write_text("\n\n".join(CAPTIONS) + "\n", "utf-8")
    elif suffix == ".csv":
        quoted = (caption.replace('"', '""') for caption in CAPTIONS)
        file.write_text("id,caption\n" + "".join(f'1,"{c}"\n' for c in quoted), "utf-8-sig")
    else:
        rows = [CAPTIONS[0], *({"caption": caption, "id": 7} for caption in CAPTIONS[1:])]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("suffix", parse.SUFFIXES)
def test_a_line_for_each_caption(tmp_path: Path, suffix: str):
    out = tmp_path / "new" / "sources.jsonl"
    assert _parse(_write(tmp_path, suffix), "--out", out) == 0
    lines = _lines(out)
    assert [line["caption"] for line in lines] == CAPTIONS
    assert [source["name"] for source in lines[0]["sources"]] == ["dog barking", "rain falling"]
    for line in lines:
        assert line["step"] == "constrained" and line["sources"] and "error" not in line
        assert line["version"] == __version__
        assert all(set(source) == {"name", "properties", "prompt"} for source in line["sources"])


def test_shards_share_the_captions(tmp_path: Path):
    captions, out = _write(tmp_path, ".txt"), tmp_path / "out.jsonl"
    for shard in range(3):
        assert _parse(captions, "--out", out, "--num_shards", 3, "--shard", shard) == 0
    shards = [_lines(tmp_path / f"out-{i}-of-3.jsonl") for i in range(3)]
    assert [[line["caption"] for line in lines] for lines in shards] == [
        CAPTIONS[0::3], CAPTIONS[1::3], CAPTIONS[2::3]
    ]  # fmt: skip
    assert _parse(captions, "--out", out, "--num_shards", 2, "--shard", 2) == 2


@pytest.mark.parametrize("kept", [0, 40, -1, -30])
def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
):
    captions, out = _write(tmp_path, ".txt"), tmp_path / "out.jsonl"
    assert _parse(captions, "--out", out) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:kept])
    done = whole[:kept].count(b"\n")
    asked = []
    real = Parser.parse
    monkeypatch.setattr(Parser, "parse", lambda self, c: asked.extend(c) or real(self, c))
    assert _parse(captions, "--out", out) == 0
    assert out.read_bytes() == whole and asked == CAPTIONS[done:]


def test_lines_of_other_captions_or_settings_are_kept_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    captions, out = _write(tmp_path, ".txt"), tmp_path / "out.jsonl"
    assert _parse(captions, "--out", out, "--language_model", "none") == 0
    whole = out.read_bytes()
    assert _parse(captions, "--out", out) == 2
    assert "lines of the parser rule-" in capsys.readouterr().err
    captions.write_text("something else\n")
    assert _parse(captions, "--out", out, "--language_model", "none") == 2
    assert "holds other lines" in capsys.readouterr().err and out.read_bytes() == whole
    assert _parse(captions, "--out", out, "--overwrite") == 0
    assert [line["caption"] for line in _lines(out)] == ["something else"]


def test_captions_without_words_are_named_and_fail(tmp_path: Path, capsys: pytest.CaptureFixture):
    captions, out = tmp_path / "some.jsonl", tmp_path / "out.jsonl"
    captions.write_text("".join(json.dumps(c) + "\n" for c in ("a dog", "", "?!", "a \udc80", "x")))
    assert _parse(captions, "--out", out) == 1
    lines = _lines(out)
    assert ["error" in line for line in lines] == [False, True, True, True, False]
    assert "caption 3: caption '?!' has no words" in capsys.readouterr().err
    assert _parse(captions, "--out", out) == 1 and _lines(out) == lines


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.md", b"a dog", "come as .txt"),
        ("a.csv", b"id,text\n1,x\n", "no column 'caption'"),
        ("a.jsonl", b'"a dog"\n{"caption": 3}\n', "a.jsonl:2: neither a text"),
        ("a.jsonl", b'"a dog"\n{"capt\n', "a.jsonl:2: not valid JSON"),
        ("a.txt", b"a d\xff", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_stops_the_run(
    tmp_path: Path, name: str, text: bytes, expected: str, capsys: pytest.CaptureFixture
):
    (tmp_path / name).write_bytes(text)
    assert _parse(tmp_path / name, "--out", tmp_path / "out.jsonl") == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
    assert _parse(tmp_path / "absent.txt", "--out", tmp_path / "out.jsonl") == 2


def test_flags_reach_the_parser(tmp_path: Path, loaded: list[dict]):
    run_with = functools.partial(_parse, _write(tmp_path, ".txt"), "--out", tmp_path / "o.jsonl")
    assert run_with("--shots", "1,3", "--properties", "llm", "--prompt_style", "completion") == 0
    assert loaded[-1]["shots"] == [1, 3] and loaded[-1]["properties"] == "llm"
    assert run_with("--shots", "2") == 0 and loaded[-1]["shots"] == 2
    assert [run_with("--shots", wrong) for wrong in ("some", "0,1", "-1", "")] == [2] * 4
