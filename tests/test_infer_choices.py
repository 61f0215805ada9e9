"""The door `infer`: what is kept, left out and said; dry runs and lines for machines."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import Separator, __version__, infer
from opensep_jax.batch.inputs import Job
from opensep_jax.batch.progress import Progress
from opensep_jax.batch.report import write_report
from opensep_jax.batch.results import Manifest
from opensep_jax.batch.work import Work
from opensep_jax.cli import run
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.usefixtures("compile_once")


@functools.cache
def _separator() -> Separator:
    return Separator.from_pretrained(shared_checkpoint())


@pytest.fixture(autouse=True)
def _loaded(monkeypatch: pytest.MonkeyPatch):
    separator = _separator()
    monkeypatch.setattr(infer.Separator, "from_pretrained", lambda name, **options: separator)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    samples_TC = 0.1 * np.random.default_rng(0).standard_normal((20_000, 2))
    soundfile.write(tmp_path / "mix.wav", samples_TC, 16000, subtype="FLOAT")
    return tmp_path / "mix.wav"


def _infer(*argv: object, code: int = 0) -> None:
    assert run(infer.main, infer.parser(), (ValueError,), [str(arg) for arg in argv]) == code


def _read(path: Path) -> np.ndarray:
    return soundfile.read(path, always_2d=True, dtype="float64")[0]


def _result(out: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and files of `mix`."""
    folder = out / "mix"
    return json.loads((folder / "separation.json").read_text()), {
        path.stem: _read(path) for path in folder.glob("*.wav")
    }


QUERIES = ("--query", "dog", "--query", "cello", "--query", "the bark")


def test_without_a_source(tmp_path: Path, sound: Path):
    _infer(sound, "--out", tmp_path / "one", "--not", "dog")
    record, files = _result(tmp_path / "one")
    assert files.keys() == {"01_dog", "residual", "without"}
    assert record["without"] == {"file": "without.wav", "names": ["dog"]}
    np.testing.assert_allclose(files["without"], _read(sound) - files["01_dog"], atol=1e-6)
    argv = ("--query", "dog", "--query", "cello", "--not", "dog", "--not", "bark")
    _infer(sound, "--out", tmp_path / "two", *argv)
    record, files = _result(tmp_path / "two")
    assert [source["name"] for source in record["sources"]] == ["dog", "cello", "bark"]
    gone = files["01_dog"] + files["03_bark"]
    np.testing.assert_allclose(files["without"], _read(sound) - gone, atol=1e-6)


def test_what_is_kept(tmp_path: Path, sound: Path):
    _infer(sound, "--out", tmp_path / "all", *QUERIES)
    record, files = _result(tmp_path / "all")
    shares = {source["name"]: source["energy_share"] for source in record["sources"]}
    sure = {source["name"]: source["confidence"] for source in record["sources"]}
    for source in record["sources"]:
        share, overlap = source["energy_share"], source["overlap"]
        assert source["confidence"] == pytest.approx(share / (share + 0.05) * np.sqrt(1 - overlap))
        assert 0 < source["overlap"] < 1 and source["agreement"] is None
    loudest, middle = sorted(shares, key=shares.get)[:0:-1]
    surest = max(sure, key=sure.get)
    choices = [
        (("--max_sources", 1), [loudest]),
        (("--only", "barks", "--only", "dog"), ["dog", "the bark"]),
        (("--min_confidence", sure[surest] - 1e-9), [surest]),
        (("--max_sources", 2, "--no-residual"), sorted((loudest, middle), key=list(shares).index)),
    ]
    for number, (flags, want) in enumerate(choices):
        out = tmp_path / str(number)
        _infer(sound, "--out", out, *QUERIES, *flags)
        chosen, parts = _result(out)
        assert [source["name"] for source in chosen["sources"]] == want
        assert {s["name"] for s in chosen["dropped"]} == shares.keys() - set(want)
        assert ("residual" in parts) == (chosen["residual"] is not None)
        assert ("residual" in parts) != ("--no-residual" in flags)
        if "residual" in parts:  # what is dropped is in it
            np.testing.assert_allclose(sum(parts.values()), _read(sound), atol=1e-6)
        for source in chosen["sources"]:
            old = next(s["file"] for s in record["sources"] if s["name"] == source["name"])
            np.testing.assert_array_equal(parts[source["file"][:-4]], files[old[:-4]])
    _infer(sound, "--out", tmp_path / "0", *QUERIES, "--max_sources", 1)  # done before
    _infer(sound, "--out", tmp_path / "0", *QUERIES, code=1)
    _infer(sound, "--out", tmp_path / "nothing", *QUERIES, "--only", "organ")
    chosen, parts = _result(tmp_path / "nothing")
    assert parts.keys() == {"residual"} and "nothing like 'organ' is in it" in chosen["notes"]


def test_lines_for_machines(tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture):
    argv = (sound, tmp_path / "no.wav", "--out", tmp_path / "out", "--query", "dog", "--log_json")
    _infer(*argv, code=1)
    start, *inputs, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert (start["event"], start["inputs"]) == ("start", 2)
    by_status = {line["status"]: line for line in inputs}
    assert by_status["ok"]["output"] == "mix" and by_status["ok"]["timings_s"]["separate"] >= 0
    assert "no such file" in by_status["error"]["error"]
    assert [line["done"] for line in inputs] == [1, 2] and inputs[-1]["eta_s"] == 0
    assert end["counts"] == {"ok": 1, "error": 1} and end["real_time_factor"] > 0
    assert 0 <= end["padding"] < 1
    _infer(*argv, code=1)
    assert '"status": "skipped"' in capsys.readouterr().out


def test_a_dry_run_only_tells(tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    argv = (sound, tmp_path / "broken.wav", "--out", tmp_path / "out", "--dry_run")
    _infer(*argv, "--query", "dog", "--not", "cello", code=1)
    said = capsys.readouterr().out
    assert "mix.wav: 1.2 s, 2 channel(s), 16000 Hz, 4 windows, 2 prompts" in said
    assert "error    " in said and "1 inputs, 0.0 min of sound, 1 errors" in said
    # Two stems, the residual and the input without: 8 bytes for each of 20,000 samples.
    assert f"about {4 * 8 * 20_000 / 2**30:.3f} GiB" in said and "GiB\n" in said
    assert "x real time)" in said and not (tmp_path / "out").exists()
    _infer(sound, "--out", tmp_path / "out", "--query", "dog")
    _infer(*argv[:1], *argv[2:], "--query", "dog")
    assert "done     " in capsys.readouterr().out
    _infer(*argv[:1], *argv[2:], "--query", "cello", code=1)  # as the run would
    said = capsys.readouterr().out
    assert "error    " in said and "holds a result with other queries" in said


def test_a_dry_run_counts_what_is_needed_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Of names that are no text, too; nobody knows how many sources there will be."""
    samples_TC = np.zeros((400_000, 2))
    for name in (b"caf\xe9.wav", b"b.wav"):
        file = tmp_path / "in" / os.fsdecode(name)
        file.parent.mkdir(exist_ok=True)
        soundfile.write(os.fsencode(file), samples_TC, 16000, format="WAV")
    argv = (tmp_path / "in", "--out", tmp_path / "out", "--dry_run", "--subtype", "PCM_16")
    _infer(*argv)
    said = capsys.readouterr().out
    assert "caf\\udce9.wav: 25.0 s" in said and f"opensep_jax {__version__}" in said
    # Twice three stems and a residual of 2 bytes; once the input and three stems of 4.
    disk = (2 * 4 * 2 + 4 * 4) * 2 * 400_000
    assert f"about {disk / 2**30:.3f} GiB in {tmp_path / 'out'}, if 3 sources are in each" in said
    assert "GiB, and what captioner and language model need\n" in said
    _infer(*argv, "--query", "dog", "--max_sources", 1)
    disk = (2 * 2 * 2 + 4 * 2) * 2 * 400_000
    assert f"about {disk / 2**30:.3f} GiB in {tmp_path / 'out'}\n" in capsys.readouterr().out


def test_the_page_finds_inputs_from_elsewhere(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
):
    """The record has the input as it was given, in another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    _infer("mix.wav", "--out", "out", "--query", "dog")
    monkeypatch.chdir(tmp_path / "elsewhere")
    page = write_report(tmp_path / "out").read_text()
    assert "data-src='../mix.wav'" in page and "not there any more" not in page


def test_the_bar_of_a_sound_of_unknown_length(tmp_path: Path):
    manifest = Manifest(tmp_path)
    with Progress(2, manifest) as progress:
        for length_s, total in ((7.0, 7), (None, None)):
            work = Work(Job(Path("x.wav"), "x"), length_s=length_s, sample_rate_hz=100)
            progress.wrote(work, 50)
            assert progress._sound.total == total
    manifest.close()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--not", " "], "--not may not be empty"),
        (["--only", ""], "--only may not be empty"),
        (["--max_sources", "0"], '"max_sources" is no positive number'),
        (["--min_confidence", "2"], '"min_confidence" is not within 0 and 1'),
    ],
)
def test_choices_that_cannot_be(tmp_path: Path, sound: Path, capsys, flags, message):
    _infer(sound, "--out", tmp_path / "out", "--query", "dog", *flags, code=2)
    assert message in capsys.readouterr().err
