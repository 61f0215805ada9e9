"""The doctor finds what is wrong, and says what to do about it."""

import importlib.metadata
import sys
from pathlib import Path

import jax
import pytest

from opensep_jax import api, cli, doctor
from opensep_jax.checkpoint import shipped
from opensep_jax.doctor import HINT, OK, PROBLEM
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.usefixtures("compile_once")


def _installed(name: str) -> str:
    versions = {"jax": "0.9.0", "numpy": "2.4.1"}
    if name not in versions:
        raise importlib.metadata.PackageNotFoundError(name)
    return versions[name]


def test_versions_that_do_not_fit_are_named():
    needed = ["jax>=0.10.2,<0.13", "numpy>=2.4", "flax", "torch; extra == 'test'"]
    old, missing = doctor.check_versions(needed, _installed)
    assert old.state == PROBLEM and "jax 0.9.0" in old.told
    assert old.remedy == "pip install 'jax<0.13,>=0.10.2'"
    assert missing.told.startswith("flax is missing")
    (fine,) = doctor.check_versions(["numpy>=2.4"], _installed)
    assert fine.state == OK


def test_an_accelerator_that_jax_does_not_use_is_a_problem():
    assert doctor.check_devices(jax.devices(), []).state == OK
    found = doctor.check_devices(jax.devices(), ["cuda"])
    assert found.state == PROBLEM and "opensep-jax[cuda]" in found.remedy


def test_codecs():
    formats = ["WAV", "FLAC", "OGG", "MP3"]
    states = [found.state for found in doctor.check_codecs(formats, "ffmpeg version 5")]
    assert states == [OK, OK]
    library, program = doctor.check_codecs(["WAV"], None)
    assert library.state == PROBLEM and "without FLAC, OGG, MP3" in library.told
    assert program.state == HINT and "ffmpeg" in program.remedy


def test_cache(tmp_path: Path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "model").write_bytes(bytes(2_500_000))
    found = doctor.check_cache(tmp_path, lambda folder: 5 * 10**9)
    assert found.state == OK and "wheels 2.5 MB; 5 GB are free" in found.told
    assert doctor.check_cache(tmp_path, lambda folder: 10**6).state == HINT
    found = doctor.check_cache(tmp_path / "wheels" / "model", lambda folder: 5 * 10**9)
    assert found.state == PROBLEM and "OPENSEP_CACHE" in found.remedy


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENSEP_CACHE", str(tmp_path))
    states = {found.topic: found.state for found in doctor.check_models(fetch=False)}
    assert states == {
        "separator 'demo'": OK, "captioner 'demo'": OK,
        "text encoder 'minilm'": HINT, "language model 'smollm2'": HINT,
    }  # fmt: skip
    monkeypatch.setitem(shipped.SHIPPED, "captioner", {"demo": "assets/gone"})
    damaged = next(found for found in doctor.check_models(False) if found.state == PROBLEM)
    assert "not part of this installation" in damaged.told and "reinstall" in damaged.remedy


def test_whole_examination(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    flags = ["--checkpoint", str(shared_checkpoint())]
    code = cli.run(doctor.main, doctor.parser(), argv=flags)
    said = capsys.readouterr().out
    assert "self-test: 2 s of sound" in said and "opensep_jax: 0." in said
    assert code == ("PROBLEM" in said)
    monkeypatch.setattr(api, "residual_of", lambda input_CT, stems: 0.9 * input_CT)
    assert cli.run(doctor.main, doctor.parser(), argv=flags) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  self-test" in said and "more than 1e-06\n" in said


def test_a_library_that_is_missing_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The others are still checked; without a text encoder nothing is separated or downloaded."""
    monkeypatch.setenv("OPENSEP_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert cli.run(doctor.main, doctor.parser(), argv=[]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  codecs: ModuleNotFoundError: import of soundfile" in said
    assert "ok       separator 'demo': shipped" in said and "hint     self-test: not run" in said


def test_every_door_tells_its_version(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        cli.run(doctor.main, doctor.parser(), argv=["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{cli.VERSION}\n"
