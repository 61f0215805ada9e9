"""The door `infer` with captions, and with queries that are enriched."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import Separator, infer
from opensep_jax.cli import run
from opensep_jax.text.caption import Captioner
from opensep_jax.text.parse import Parser
from opensep_jax.text.prompts import load_tasks
from tests.scripted_model import ScriptedModel, letter_bank
from tests.tiny_checkpoint import shared_checkpoint

CAPTION = "A dog barks while two cats meow"
pytestmark = pytest.mark.usefixtures("compile_once")
NAMES = ["dog barking", "two cats meowing"]
FILES = ["01_dog-barking.wav", "02_two-cats-meowing.wav", "residual.wav", "separation.json"]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Parser]:
    """Parsers that were loaded."""
    parsers: list[Parser] = []

    def load_parser(**options: object) -> Parser:
        tasks = {name: task.choose(options["shots"]) for name, task in load_tasks().items()}
        parsers.append(Parser(ScriptedModel(), letter_bank(), tasks))
        return parsers[-1]

    separator = _separator()
    monkeypatch.setattr(infer, "load_parser", load_parser)
    monkeypatch.setattr(infer.Separator, "from_pretrained", lambda name, **options: separator)
    return parsers


@functools.cache
def _separator() -> Separator:
    return Separator.from_pretrained(shared_checkpoint())


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    samples_T = 0.2 * np.random.default_rng(0).standard_normal(1600)
    soundfile.write(tmp_path / "mix.wav", samples_T, 16000, subtype="FLOAT")
    return tmp_path / "mix.wav"


def _infer(*argv: object) -> int:
    return run(infer.main, infer.parser(), (ValueError,), [str(arg) for arg in argv])


def _record(folder: Path) -> dict:
    return json.loads((folder / "separation.json").read_text())


def test_a_caption_names_the_sources(tmp_path: Path, sound: Path, capsys):
    out = tmp_path / "out"
    assert _infer(sound, "--out", out, "--caption", CAPTION) == 0
    assert sorted(path.name for path in (out / "mix").iterdir()) == FILES
    record = _record(out / "mix")
    assert record["caption"] == CAPTION and record["models"]["parser"]["id"].startswith("scripted-")
    assert [source["name"] for source in record["sources"]] == NAMES
    bark = record["sources"][0]
    assert bark["properties"]["from"] == "bank"
    assert bark["prompt"].startswith("dog barking: rough throaty bark, mid frequency about 300 Hz")
    parts = [soundfile.read(out / "mix" / name, dtype="float64")[0] for name in FILES[:3]]
    np.testing.assert_allclose(sum(parts), soundfile.read(sound)[0], atol=1e-6)
    assert _infer(sound, "--out", out, "--caption", CAPTION) == 0  # done before
    assert _infer(sound, "--out", out, "--caption", "Rain falls") == 1
    assert "holds a result with other caption" in capsys.readouterr().err
    assert _infer(sound, "--out", out, "--caption", CAPTION, "--shots", 2) == 1
    assert "holds a result with other parser" in capsys.readouterr().err
    assert _record(out / "mix") == record


def test_queries_are_enriched_on_demand(tmp_path: Path, sound: Path, loaded: list[Parser]):
    argv = (sound, "--query", "dog", "--query", "rain falling", "--caption", CAPTION)
    assert _infer(*argv, "--out", tmp_path / "plain") == 0 and not loaded
    plain = _record(tmp_path / "plain" / "mix")
    assert [s["prompt"] for s in plain["sources"]] == ["dog", "rain falling"]
    assert plain["caption"] == CAPTION and "parser" not in plain["models"]
    assert _infer(*argv, "--out", tmp_path / "rich", "--enrich") == 0
    dog, rain = _record(tmp_path / "rich" / "mix")["sources"]
    assert dog["name"] == "dog" and dog["prompt"].startswith("dog: ")
    assert rain["properties"]["nearest"] == "rain falling"
    assert _infer(*argv, "--out", tmp_path / "plain", "--enrich") == 1


def test_rows_of_a_list_have_captions_of_their_own(tmp_path: Path, sound: Path, capsys):
    rows = [
        {"input": "mix.wav", "caption": CAPTION},
        {"input": "mix.wav", "queries": ["rain", "wind"], "caption": "Rain falls"},
        {"input": "mix.wav", "caption": "?!"},
        {"input": "mix.wav", "caption": " "},
        {"input": "mix.wav"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert _infer(tmp_path / "list.jsonl", "--out", out, "--caption", "a bell and a gong ring") == 1
    names = {
        folder.name: [source["name"] for source in _record(folder)["sources"]]
        for folder in out.iterdir()
        if folder.is_dir()
    }
    assert names == {"mix": NAMES, "mix-2": ["rain", "wind"], "mix-4": ["bell", "gong ringing"]}
    assert _record(out / "mix-2")["caption"] == "Rain falls"
    said = capsys.readouterr().err
    assert "caption '?!' has no words" in said and 'list.jsonl:4: "caption" is no text' in said


def test_an_empty_caption_stops_the_run(tmp_path: Path, sound: Path, capsys):
    assert _infer(sound, "--out", tmp_path / "out", "--caption", " ") == 2
    assert "--caption may not be empty" in capsys.readouterr().err


def _captions(file: Path, **captions: str) -> str:
    rows = [{"input": f"{name}.wav", "caption": text} for name, text in captions.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{file}"


def test_without_words_it_listens(tmp_path: Path, sound: Path, loaded: list[Parser], capsys):
    """The captioner here reads its captions from a file; one of them says nothing."""
    soundfile.write(tmp_path / "rest.wav", np.full(800, 0.25), 16000, subtype="FLOAT")
    captioner = _captions(tmp_path / "captions.jsonl", mix=CAPTION, rest="")
    argv = (sound, tmp_path / "rest.wav", "--captioner", captioner, "--out", tmp_path / "out")
    assert _infer(*argv, "--min_energy_share", 0) == 0 and len(loaded) == 1
    record, rest = (_record(tmp_path / "out" / name) for name in ("mix", "rest"))
    assert record["caption"] == CAPTION and [s["name"] for s in record["sources"]] == NAMES
    assert record["models"]["captioner"]["id"].startswith("file-") and not record["dropped"]
    assert {"read", "caption", "parse", "separate", "write"} == record["timings_s"].keys()
    assert (rest["caption"], rest["sources"]) == ("", [])
    assert "nothing was heard in it" in rest["notes"]
    residual_T, _ = soundfile.read(tmp_path / "out" / "rest" / "residual.wav")
    np.testing.assert_array_equal(residual_T, 0.25)
    assert _infer(*argv, "--min_energy_share", 0) == 0
    assert _infer(*argv) == 1
    assert "holds a result with other min_energy_share" in capsys.readouterr().err


def test_faint_sources_stay_in_the_residual(tmp_path: Path, sound: Path):
    captioner = _captions(tmp_path / "captions.jsonl", mix=CAPTION)
    argv = (sound, "--captioner", captioner, "--out", tmp_path / "out", "--min_energy_share", 1)
    assert _infer(*argv) == 0
    record = _record(tmp_path / "out" / "mix")
    assert not record["sources"] and [s["name"] for s in record["dropped"]] == NAMES
    residual_T, _ = soundfile.read(tmp_path / "out" / "mix" / "residual.wav", dtype="float32")
    np.testing.assert_array_equal(residual_T, soundfile.read(sound, dtype="float32")[0])


def test_an_input_without_a_caption_does_not_stop_the_others(tmp_path: Path, sound: Path, capsys):
    soundfile.write(tmp_path / "other.wav", np.zeros(160), 16000)
    captioner = _captions(tmp_path / "captions.jsonl", mix=CAPTION)
    argv = (tmp_path / "other.wav", sound, "--captioner", captioner, "--out", tmp_path / "out")
    assert _infer(*argv) == 1
    said = capsys.readouterr().err
    assert "no caption for" in said and "other.wav" in said
    assert _record(tmp_path / "out" / "mix")["caption"] == CAPTION
    assert _infer(sound, "--captioner", "nobody", "--out", tmp_path / "out") == 2
    assert "captioner 'nobody' is not known" in capsys.readouterr().err


def test_words_that_cannot_be_used_do_not_stop_the_others(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
):
    """One caption has no word, one half a character, one a source that cannot be embedded."""
    for name in ("music", "half", "bad"):
        soundfile.write(tmp_path / f"{name}.wav", np.full(800, 0.1), 16000)
    texts = {"music": "\u266a\u266a", "half": "a \ud800 barks", "bad": "A bell rings"}
    captioner = _captions(tmp_path / "captions.jsonl", mix=CAPTION, **texts)
    text_of = Separator.text_of

    def embed(self: Separator, sources: tuple) -> object:
        if any("bell" in source.name for source in sources):
            raise RuntimeError("out of memory")
        return text_of(self, sources)

    monkeypatch.setattr(Separator, "text_of", embed)
    out = tmp_path / "out"
    assert _infer(*sorted(tmp_path.glob("*.wav")), "--captioner", captioner, "--out", out) == 1
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    status = {line["output"]: line["status"] for line in lines}
    assert status == {"mix": "ok", "music": "ok", "half": "error", "bad": "error"}
    errors = {line["output"]: line["error"] for line in lines if line["status"] == "error"}
    assert errors["bad"].endswith("bad.wav: RuntimeError: out of memory")
    assert "half.wav: caption" in errors["half"] and "not valid Unicode" in errors["half"]
    assert "nothing was heard in it" in _record(out / "music")["notes"]


class Ear:
    """Hears a dog everywhere."""

    id, sample_rate_hz, window_s, padding = "ear", 8000, 0.05, "zeros"

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["a dog barks"] * len(waves_BT)


def test_other_windows_of_the_captioner_need_overwrite(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def load_captioner(name: str, **options: object) -> Captioner:
        return Captioner(Ear(), **options)

    monkeypatch.setattr(infer, "load_captioner", load_captioner)
    argv = (sound, "--out", tmp_path / "out", "--min_energy_share", 0)
    assert _infer(*argv) == _infer(*argv) == 0
    options = _record(tmp_path / "out" / "mix")["options"]
    assert (options["caption_policy"], options["caption_windows"]) == ("multi", 8)
    assert _infer(*argv, "--caption_windows", 1) == 1
    assert _infer(*argv, "--caption_policy", "start") == 1
    said = capsys.readouterr().err
    assert "with other caption_windows;" in said
    assert "with other caption_policy, caption_windows;" in said
