"""The door `infer`: what it leaves on disk, reruns, shards, and inputs that are no sound."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import Separator, __version__, infer
from opensep_jax.batch import results
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import run
from opensep_jax.separation.stemfiles import StemFiles, slug
from opensep_jax.signal.audio import AudioError
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.usefixtures("compile_once")
QUERIES = ["A dog barks!", "cello"]
STEMS = ["01_a-dog-barks", "02_cello", "residual"]
# Relative result folder: channels, samples, sample rate; "silent" has no sound.
INPUTS = {
    "mix": (2, 20_000, 16_000),
    "deep/eight": (8, 700, 1000),
    "deep/fast": (1, 40_000, 192_000),
    "short": (1, 1600, 16_000),
    "silent": (1, 4000, 22_050),
}
KEYS = {
    "input", "sample_rate_hz", "channels", "seconds", "caption", "sources", "residual", "models",
    "timings_s", "version",
}  # fmt: skip


@functools.cache
def _loaded() -> Separator:
    return Separator.from_pretrained(shared_checkpoint())


@pytest.fixture(autouse=True)
def _load_once(monkeypatch: pytest.MonkeyPatch):
    """Loading and compiling the text encoder takes longer than all that is tested here."""
    real = Separator.from_pretrained

    def load(name: str, **options: object) -> Separator:
        return _loaded() if name == str(shared_checkpoint()) else real(name, **options)

    _loaded()
    monkeypatch.setattr(infer.Separator, "from_pretrained", load)


def _infer(*argv: object, queries: list[str] = QUERIES) -> int:
    flags = [str(arg) for arg in argv] + ["--checkpoint", str(shared_checkpoint())]
    flags += [part for query in queries for part in ("--query", query)]
    return run(infer.main, infer.parser(), (ValueError, WeightsError), flags)


def _write(folder: Path, names: dict = INPUTS, subtype: str = "FLOAT") -> Path:
    for seed, (name, (channels, samples, rate_hz)) in enumerate(names.items()):
        rng = np.random.default_rng(seed)
        samples_TC = 0.0 if name == "silent" else 0.2
        samples_TC = samples_TC * rng.standard_normal((samples, channels))
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples_TC, rate_hz, subtype=subtype)
    return folder


def _read(path: Path) -> np.ndarray:
    return soundfile.read(path, always_2d=True, dtype="float64")[0].T


def _manifest(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    """All files but manifests, with JSON without its times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("manifest"):
            content = path.read_bytes()
            if path.name == "separation.json":
                record = json.loads(content)
                assert record.pop("timings_s").keys() == {"read", "separate", "write"}
                content = json.dumps(record).encode()
            found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def done(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert _infer(inputs, "--out", out) == 0
    return out


def test_layout_and_record_are_the_contract(done: Path, inputs: Path):
    want = {f"{n}/{s}.wav" for n in INPUTS for s in STEMS} | {
        f"{n}/separation.json" for n in INPUTS
    }
    assert _files(done).keys() == want
    assert sorted(path.name for path in done.iterdir()) == [
        "deep", "manifest.jsonl", "mix", "short", "silent",
    ]  # fmt: skip
    for name, (channels, samples, rate_hz) in INPUTS.items():
        record = json.loads((done / name / "separation.json").read_text())
        assert record.keys() >= KEYS
        assert record["input"] == str(inputs / f"{name}.wav")
        assert (record["channels"], record["sample_rate_hz"]) == (channels, rate_hz)
        assert record["seconds"] == samples / rate_hz
        assert record["caption"] is None and record["version"] == __version__
        assert record["residual"] == {"file": "residual.wav"}
        assert [source["file"] for source in record["sources"]] == [f"{s}.wav" for s in STEMS[:2]]
        for source, query in zip(record["sources"], QUERIES, strict=True):
            keys = {"name", "prompt", "properties", "file", "energy_share"}
            assert source.keys() == keys | {"overlap", "agreement", "confidence"}
            assert source["name"] == source["prompt"] == query and source["properties"] == {}
            assert 0 <= source["energy_share"] <= 1
        assert any("above 8000 Hz" in note for note in record["notes"]) == (rate_hz > 16_000)
    lines = _manifest(done / "manifest.jsonl")
    assert {line["output"]: line["status"] for line in lines} == dict.fromkeys(INPUTS, "ok")


def test_stems_and_residual_are_the_input(done: Path, inputs: Path):
    for name, (channels, samples, rate_hz) in INPUTS.items():
        input_CT = _read(inputs / f"{name}.wav")
        parts = [_read(done / name / f"{stem}.wav") for stem in STEMS]
        assert {part.shape for part in parts} == {(channels, samples)}
        assert soundfile.info(done / name / "01_a-dog-barks.wav").samplerate == rate_hz
        assert np.abs(sum(parts) - input_CT).max() <= 1e-6 * np.abs(input_CT).max()
        assert name == "silent" or min(np.abs(part).max() for part in parts[:2]) > 1e-3
        assert name != "silent" or not any(part.any() for part in parts)


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_pcm_sums_exactly(tmp_path: Path, format: str, subtype: str):
    inputs = _write(tmp_path / "in", {"x": (2, 9000, 16_000)}, subtype)
    assert _infer(inputs, "--out", tmp_path, "--format", format, "--subtype", subtype) == 0
    parts = [_read(tmp_path / "x" / f"{stem}.{format}") for stem in STEMS]
    clipping = json.loads((tmp_path / "x" / "separation.json").read_text())["clipping"]
    assert clipping == {"policy": "clamp", "gain": 1.0, "samples": 0}
    np.testing.assert_array_equal(sum(parts), _read(inputs / "x.wav"))


@pytest.mark.parametrize("policy", ["clamp", "rescale"])
def test_clipping_is_reported(tmp_path: Path, policy: str):
    loud = 3 * np.random.default_rng(0).standard_normal(5000)
    soundfile.write(tmp_path / "loud.wav", loud, 16_000, subtype="FLOAT")
    flags = ("--out", tmp_path / "out", "--subtype", "PCM_16", "--clip", policy)
    assert _infer(tmp_path / "loud.wav", *flags) == 0
    record = json.loads((tmp_path / "out" / "loud" / "separation.json").read_text())
    total = sum(_read(tmp_path / "out" / "loud" / f"{stem}.wav") for stem in STEMS)[0]
    clipping, step = record["clipping"], 2.0**-15
    if policy == "rescale":
        assert clipping["samples"] == 0 and 0 < clipping["gain"] < 0.5
        np.testing.assert_allclose(total, loud * clipping["gain"], atol=3 * step)
        assert "sum to the input times" in record["notes"][-1]
    else:
        assert clipping["gain"] == 1 and clipping["samples"] >= np.sum(np.abs(loud) > 1)
        assert "cut off" in record["notes"][-1]
    nothing_lost = tmp_path / "float"  # a float file holds it all
    assert _infer(tmp_path / "loud.wav", "--out", nothing_lost, "--clip", policy) == 0
    total = sum(_read(nothing_lost / "loud" / f"{stem}.wav") for stem in STEMS)[0]
    np.testing.assert_allclose(total, loud, atol=1e-6 * np.abs(loud).max())


@pytest.mark.parametrize("format", ["ogg", "mp3"])
def test_lossy_formats(tmp_path: Path, format: str):
    inputs = _write(tmp_path / "in", {"x": (2, 9000, 16_000)})
    assert _infer(inputs, "--out", tmp_path / "out", "--format", format) == 0
    parts = [_read(tmp_path / "out" / "x" / f"{stem}.{format}") for stem in STEMS]
    assert all(part.shape[1] >= 9000 and part.any() for part in parts)


@pytest.mark.parametrize("policy, gain", [("clamp", 1.0), ("rescale", 0.2)])
def test_lossy_formats_report_clipping(tmp_path: Path, policy: str, gain: float):
    wave_T = 5 * np.sin(np.arange(8000) * 0.2)
    soundfile.write(tmp_path / "loud.wav", wave_T, 16_000, subtype="FLOAT")
    out = tmp_path / "out"
    assert _infer(tmp_path / "loud.wav", "--out", out, "--format", "ogg", "--clip", policy) == 0
    record = json.loads((out / "loud" / "separation.json").read_text())
    # Stems and residual may be louder than the input.
    assert record["clipping"]["gain"] <= 1.001 * gain
    assert (record["clipping"]["samples"] > 0) == (policy == "clamp")
    assert any(("cut off" if policy == "clamp" else "times") in note for note in record["notes"])


def _bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be separated, and a word of what is said of each."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound")
    soundfile.write(folder / "none.wav", np.zeros((0, 1)), 16_000)
    broken = np.array([0.1, np.nan, np.inf])
    soundfile.write(folder / "broken.wav", broken, 16_000, subtype="FLOAT")
    (folder / "locked").mkdir()
    os.mkfifo(folder / "pipe.wav")
    return {
        "empty.wav": "empty",
        "text.wav": "libsndfile: ",
        "none.wav": "holds no samples",
        "broken.wav": "2 of 3 samples are NaN or infinite",
        "locked": "no audio file in this folder",
        "pipe.wav": "not a regular file (a pipe or device)",
        "missing.wav": "no such file or folder",
        "*.nothing": "no audio file matches",
    }


def test_bad_inputs_do_not_stop_the_good_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    bad = _bad_files(tmp_path)
    _write(tmp_path, {"good": INPUTS["short"]})
    paths = [tmp_path / name for name in bad]
    assert _infer(*paths[:4], tmp_path / "good.wav", *paths[4:], "--out", tmp_path / "out") == 1
    lines = {Path(line["input"]).name: line for line in _manifest(tmp_path / "out/manifest.jsonl")}
    said = capsys.readouterr().err
    assert lines.pop("good.wav")["status"] == "ok"
    for name, word in bad.items():
        assert lines[name]["status"] == "error"
        assert word in lines[name]["error"] and name in lines[name]["error"]
        assert lines[name]["error"] in said
    assert lines.keys() == bad.keys() and "Traceback" not in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good", "manifest.jsonl"]


def test_an_unwritable_folder_stops_the_run(tmp_path: Path, inputs: Path, capsys):
    (tmp_path / "file").write_text("")
    assert _infer(inputs, "--out", tmp_path / "file" / "out") == 2
    assert f"--out {tmp_path / 'file' / 'out'} cannot be written" in capsys.readouterr().err


def test_a_full_disk_stops_the_run(tmp_path: Path, inputs: Path, monkeypatch, capsys):
    def full(*_: object) -> int:
        raise AudioError("x.wav", "cannot be written: No space left") from OSError(28, "full")

    monkeypatch.setattr(StemFiles, "write", full)
    assert _infer(inputs, "--out", tmp_path) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".manifest.jsonl.part", "manifest.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--checkpoint", "nothing"], "unknown checkpoint 'nothing'"),
        (["--format", "flac", "--subtype", "FLOAT"], "format flac cannot hold subtype FLOAT"),
        (["--num_shards", "2", "--shard", "2"], "--shard 2 is not within --num_shards 2"),
        (["--query", " "], "--query may not be empty"),
    ],
)
def test_runs_that_cannot_start(tmp_path: Path, inputs: Path, capsys, flags, message):
    argv = [str(inputs), "--out", str(tmp_path), "--query", "dog"]
    assert run(infer.main, infer.parser(), (ValueError,), argv + flags) == 2
    assert message in capsys.readouterr().err


def test_a_rerun_skips_what_is_done(tmp_path: Path, inputs: Path, monkeypatch):
    assert _infer(inputs / "mix.wav", "--out", tmp_path) == 0
    before = (tmp_path / "mix" / "separation.json").read_bytes()
    assert _infer(inputs / "mix.wav", inputs / "short.wav", "--out", tmp_path) == 0
    assert (tmp_path / "mix" / "separation.json").read_bytes() == before
    lines = _manifest(tmp_path / "manifest.jsonl")
    assert [line["status"] for line in lines] == ["ok", "ok"]  # an earlier ok stays ok
    (tmp_path / "manifest.jsonl").unlink()
    assert _infer(inputs / "mix.wav", "--out", tmp_path) == 0
    assert [line["status"] for line in _manifest(tmp_path / "manifest.jsonl")] == ["skipped"]
    monkeypatch.chdir(inputs)  # the same file by another path is the same input
    assert _infer("mix.wav", "--out", tmp_path) == 0
    assert (tmp_path / "mix" / "separation.json").read_bytes() == before


def test_other_options_need_overwrite(tmp_path: Path, inputs: Path, capsys):
    short = inputs / "short.wav"
    assert _infer(short, "--out", tmp_path) == 0
    before = _files(tmp_path)
    assert _infer(short, "--out", tmp_path, queries=["bark", "cello"]) == 1
    assert "holds a result with other queries; --overwrite" in capsys.readouterr().err
    assert _files(tmp_path) == before
    assert _infer(short, "--out", tmp_path, "--overwrite", queries=["bark", "cello"]) == 0
    assert sorted(path.name for path in (tmp_path / "short").iterdir()) == [
        "01_bark.wav", "02_cello.wav", "residual.wav", "separation.json",
    ]  # fmt: skip


def test_an_unfinished_result_is_made_again(tmp_path: Path, inputs: Path):
    assert _infer(inputs / "short.wav", "--out", tmp_path) == 0
    want = _files(tmp_path)
    for lost in ("separation.json", "residual.wav"):
        (tmp_path / "short" / lost).unlink()
        (tmp_path / ".manifest.jsonl.part").write_text('{"input": "x", "output": "x", "sta')
        assert _infer(inputs / "short.wav", "--out", tmp_path) == 0
        assert _files(tmp_path) == want


def test_an_interrupted_run_goes_on(tmp_path: Path, inputs: Path, done: Path, monkeypatch):
    calls = []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(*args)

    real = StemFiles.write
    monkeypatch.setattr(StemFiles, "write", interrupted)
    assert _infer(inputs, "--out", tmp_path) == 2
    assert 1 <= len(_manifest(tmp_path / "manifest.jsonl")) < 5
    assert [path.name for path in tmp_path.glob(".*.part")] == [".manifest.jsonl.part"]
    monkeypatch.setattr(StemFiles, "write", real)
    assert _infer(inputs, "--out", tmp_path) == 0
    assert _files(tmp_path) == _files(done)
    assert _sorted(tmp_path / "manifest.jsonl") == _sorted(done / "manifest.jsonl")


def _sorted(file: Path) -> list[str]:
    return sorted(file.read_text().splitlines())


def test_shards_together_are_one_run(tmp_path: Path, inputs: Path, done: Path, capsys):
    assert _infer(inputs, "--out", tmp_path, "--num_shards", 2, "--shard", 1) == 0
    assert _infer("--merge", tmp_path) == 2
    assert "missing or not finished: manifest-0-of-2.jsonl" in capsys.readouterr().err
    assert _infer(inputs, "--out", tmp_path, "--num_shards", 2, "--shard", 0) == 0
    assert _infer("--merge", tmp_path) == 0
    assert _files(tmp_path) == _files(done)
    assert _sorted(tmp_path / "manifest.jsonl") == _sorted(done / "manifest.jsonl")


def test_merge_says_what_failed_and_what_is_missing(tmp_path: Path, capsys):
    assert _infer("--merge", tmp_path) == 2
    assert _infer(tmp_path / "no.wav", "--out", tmp_path, "--num_shards", 2, "--shard", 0) == 1
    assert _infer(tmp_path / "no.wav", "--out", tmp_path, "--num_shards", 2, "--shard", 1) == 0
    assert _infer("--merge", tmp_path) == 1
    assert len(_manifest(tmp_path / "manifest.jsonl")) == 1
    said = capsys.readouterr().err
    assert "manifest.jsonl: 1 inputs of 2 shards" in said
    assert f"failed: {tmp_path / 'no.wav'}" in said
    (tmp_path / "manifest-0-of-3.jsonl").write_text("")
    assert _infer("--merge", tmp_path) == 2
    assert "found those of 2 and of 3 shards" in capsys.readouterr().err


def test_lists_carry_queries(tmp_path: Path, inputs: Path, monkeypatch, capsys):
    _write(tmp_path / "sub", {"here": INPUTS["short"]})
    rows = [
        {"input": str(inputs / "short.wav"), "queries": ["low cello", "soft bark"]},
        {"input": str(inputs / "short.wav"), "queries": ["loud dog", "cello"]},
        {"input": "here.wav"},
    ]
    text = "\n".join(json.dumps(row) for row in rows) + '\n\n{"input": 3}\nnonsense\n'
    (tmp_path / "sub" / "list.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert _infer("sub/list.jsonl", "--out", "out") == 1
    names = {p.parent.name: [] for p in Path("out").rglob("*.wav")}
    for path in sorted(Path("out").rglob("0*.wav")):
        names[path.parent.name].append(path.stem)
    assert names == {
        "short": ["01_low-cello", "02_soft-bark"],
        "short-2": ["01_loud-dog", "02_cello"],
        "here": STEMS[:2],
    }
    said = capsys.readouterr().err
    assert 'sub/list.jsonl:5: not an object with "input"' in said
    assert "sub/list.jsonl:6: not valid JSON" in said


def test_results_inside_results(tmp_path: Path):
    """`a.wav` beside a folder `a`: both results survive, in whatever order they are made."""
    _write(tmp_path / "in", {"a": INPUTS["short"], "a/b": INPUTS["short"]})
    out = tmp_path / "out"
    assert _infer(tmp_path / "in", "--out", out) == 0
    want = _files(out)
    assert len(want) == 8
    (out / "a" / "separation.json").unlink()
    assert _infer(tmp_path / "in", "--out", out) == 0
    assert _infer(tmp_path / "in", "--out", out, "--overwrite") == 0
    assert _files(out) == want


def test_results_beside_inputs(tmp_path: Path):
    """`a.wav` beside `a/b.wav`, results in the folder of both: no input is taken for a result."""
    _write(tmp_path, {"a": INPUTS["short"], "a/b": INPUTS["short"]})
    for _ in range(2):
        assert _infer(tmp_path, "--out", tmp_path) == 0
        lines = _manifest(tmp_path / "manifest.jsonl")
        assert {line["output"]: line["status"] for line in lines} == {"a": "ok", "a/b": "ok"}
        shutil.rmtree(tmp_path / "a" / "b")  # fails if it was not made, or not again


def test_nothing_of_a_torn_result_stays(tmp_path: Path, inputs: Path):
    """Its record still tells which files are its own."""
    assert _infer(inputs / "short.wav", "--out", tmp_path) == 0
    (tmp_path / "short" / "residual.wav").unlink()
    assert _infer(inputs / "short.wav", "--out", tmp_path, queries=["bark"]) == 0
    assert sorted(path.name for path in (tmp_path / "short").iterdir()) == [
        "01_bark.wav", "residual.wav", "separation.json",
    ]  # fmt: skip


def test_a_kill_between_the_files_of_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are moved into a folder that is there: what has come so far is known as a result."""
    _write(tmp_path, {"a": INPUTS["short"], "a/b": INPUTS["short"]})
    moves, replace = [], os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path / "a":
            moves.append(target.name)
            if len(moves) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(results.os, "replace", killed)
    assert _infer(tmp_path, "--out", tmp_path) == 2
    monkeypatch.setattr(results.os, "replace", replace)
    assert moves == ["separation.json", "01_a-dog-barks.wav", "02_cello.wav"]
    assert _infer(tmp_path, "--out", tmp_path) == 0
    assert {p.name for p in (tmp_path / "a").glob("*.wav")} == {f"{s}.wav" for s in (*STEMS, "b")}
    assert not list(tmp_path.glob("0*")) and len(_manifest(tmp_path / "manifest.jsonl")) == 2


def test_another_process_makes_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A shard with an input of `a/` comes between: the result moves in beside."""
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(results.os, "rename", late)
    with results.staged(tmp_path, "a") as scratch:
        (scratch / "separation.json").write_text("{}")
    monkeypatch.undo()
    assert (tmp_path / "a" / "separation.json").exists() and (tmp_path / "a" / "b").is_dir()
    (tmp_path / "c").touch()
    with pytest.raises(NotADirectoryError), results.staged(tmp_path, "c"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_a_torn_line_costs_no_other(tmp_path: Path):
    """A run that is killed after it went on behind a half line has lost nothing."""
    (tmp_path / ".manifest.jsonl.part").write_text('{"input": "x", "output": "x", "sta')
    killed = results.Manifest(tmp_path)
    killed.add("a.wav", "a", "ok")
    killed._stream.close()
    again = results.Manifest(tmp_path)
    again.close()
    (line,) = _manifest(again.path)
    assert line == {"input": "a.wav", "output": "a", "status": "ok", "version": __version__}


@pytest.mark.parametrize(
    "text, want",
    [
        ("A dog barks!", "a-dog-barks"),
        ("Café --- ÉTÉ", "cafe-ete"),
        ("../../etc/passwd", "etc-passwd"),
        ("犬", "source"),
        ("x" * 39 + " y and more", "x" * 39),
    ],
)
def test_slugs(text: str, want: str):
    assert slug(text) == want


def test_the_command_itself(tmp_path: Path, inputs: Path):
    command = [sys.executable, "-m", "opensep_jax.infer"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and "--query TEXT" in shown.stdout
    argv = [*command, str(inputs), "--out", str(tmp_path), "--query", "dog", "--checkpoint", "x"]
    failed = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert failed.returncode == 2 and "unknown checkpoint 'x'" in failed.stderr
    assert "Traceback" not in failed.stderr
