"""Source distribution and wheel: built, installed where nothing else is, and run."""

import email
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import __version__
from opensep_jax.cli import VERSION
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
# What git has but nobody needs who installs the wheel.
_OUTSIDE = ("tests/", "benchmarks/", "configs/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution of what git has, and the wheel that is built from it."""
    source = tmp_path_factory.mktemp("source")
    names = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    for name in map(os.fsdecode, names.split(b"\0")[:-1]):
        if not name.startswith(_OUTSIDE) and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {file.suffix: file for file in out.iterdir()}


@pytest.fixture(scope="module")
def commands(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of a fresh environment.

    The wheel alone is installed; its dependencies are those of the environment of the tests, which
    comes last in the path and whose editable installation of this package is not seen.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", built[".whl"]], check=True)
    (inside,) = folder.glob("lib/python*/site-packages")
    (inside / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def _run(command: list, cwd: Path) -> subprocess.CompletedProcess:
    hidden = {"PYTHONPATH", "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "VIRTUAL_ENV"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_archives_hold_what_is_needed(built: dict[str, Path]):
    with zipfile.ZipFile(built[".whl"]) as wheel:
        inside = set(wheel.namelist())
        (metadata,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(wheel.read(metadata))
    with tarfile.open(built[".gz"]) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    package = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "opensep_jax").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert package <= inside and package <= source
    assert {name.split("/")[0] for name in inside} == {"opensep_jax", metadata.split("/")[0]}
    assert told["Version"] == __version__ and told["License-Expression"] == "Apache-2.0"
    assert {"LICENSE", "README.md", "pyproject.toml"} <= source


def test_every_command_tells_its_version(commands: Path, tmp_path: Path):
    names = sorted(file.name for file in commands.glob("opensep-*"))
    doors = "doctor evaluate import-predecessor infer parse plan prepare train".split()
    assert names == [f"opensep-{door}" for door in doors]
    for name in names:
        done = _run([commands / name, "--version"], tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{VERSION}\n"), done.stderr


def test_installed_package_separates(commands: Path, tmp_path: Path, noise_T: np.ndarray):
    soundfile.write(tmp_path / "noise.wav", noise_T, 16000)
    flags = ["--checkpoint", shared_checkpoint(), "--query", "a dog barks", "--report"]
    done = _run([commands / "opensep-infer", "noise.wav", "--out", "out", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "noise" / "01_a-dog-barks.wav").exists()
    assert "class='track'" in (tmp_path / "out" / "index.html").read_text()
    where = [commands / "python", "-c", "import opensep_jax; print(opensep_jax.__file__)"]
    assert str(commands.parent) in _run(where, tmp_path).stdout


def test_doctor_examines_the_installed_package(commands: Path, tmp_path: Path):
    done = _run([commands / "opensep-doctor"], tmp_path)
    assert "separator 'demo': shipped" in done.stdout and "dependencies fit" in done.stdout
    assert done.returncode == ("PROBLEM" in done.stdout), done.stderr


def test_flags_are_completed(commands: Path, tmp_path: Path):
    """As a shell asks: which flags of `opensep-infer` begin with `--cap`?"""
    pytest.importorskip("argcomplete")
    line, answer = "opensep-infer --cap", tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    setting = ["env", *(f"{key}={value}" for key, value in asked.items())]
    done = _run([*setting, commands / "opensep-infer"], tmp_path)
    assert done.returncode == 0, done.stderr
    found = {word.strip() for word in answer.read_text().split("\n")}
    assert found == {"--caption", "--captioner", "--caption_policy", "--caption_windows"}
