"""Checkpoints on disk: whole, kept, damaged, and a disk that is full."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import sharding
from opensep_jax.checkpoint.state import (
    CheckpointError,
    Checkpoints,
    load_params,
    read_config,
    write_config,
)
from opensep_jax.processes import check_shared
from tests.memory_store import memory_store
from tests.several_processes import codes, started

CONFIG = {"schema": 1, "nested": {"rate": 1e-3, "counts": [2, 3]}}


def _state(value: float, size: int = 8) -> dict:
    return {"step": jnp.int32(value), "params": {"kernel": jnp.full((size, 4), value)}}


def _ema(value: float) -> dict:
    return {"dense": {"kernel": jnp.full((4,), value), "bias": jnp.zeros(2)}}


def _open(workdir: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(workdir, CONFIG, keep, "score")


def _save(workdir: Path, scores: dict[int, float | None], keep: int = 2) -> None:
    """Saves steps one after the other and closes."""
    saved = _open(workdir, keep)
    for step, score in scores.items():
        saved.save(step, _state(step), _ema(step))
        if score is not None:
            saved.add_scores(step, {"score": score})
    saved.close()


def _restored_step(workdir: Path) -> int | None:
    """Step of what is restored, its arrays checked."""
    saved = _open(workdir)
    restored = saved.restore_newest(_state(0), _ema(0))
    saved.close()
    if restored is None:
        return None
    step, state, ema = restored
    jax.tree.map(np.testing.assert_array_equal, state, _state(step))
    jax.tree.map(np.testing.assert_array_equal, ema, _ema(step))
    return step


def test_nothing_to_restore(tmp_path: Path):
    assert _restored_step(tmp_path) is None


def test_newest_is_restored(tmp_path: Path):
    _save(tmp_path, {1: None, 2: None})
    assert _restored_step(tmp_path) == 2


@pytest.mark.parametrize(
    "scores, kept",
    [
        ({1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2, 5: 0.3}, [2, 4, 5]),  # the best and the newest two
        ({1: -3.0, 2: -9.0, 3: None, 4: None, 5: None}, [1, 4, 5]),
        ({1: None, 2: None, 3: None, 4: None}, [3, 4]),
    ],
)
def test_newest_and_best_are_kept(tmp_path: Path, scores: dict, kept: list[int]):
    _save(tmp_path, scores)
    assert _open(tmp_path).steps == kept


def test_best_is_kept_after_reopening(tmp_path: Path):
    _save(tmp_path, {1: 0.9, 2: 0.1})
    _save(tmp_path, {3: None, 4: 0.3, 5: 0.2})
    assert _open(tmp_path).steps == [1, 4, 5]


def test_config_is_json_for_people_in_every_checkpoint(tmp_path: Path):
    _save(tmp_path, {3: None})
    file = tmp_path / "checkpoints" / "3" / "config" / "config.json"
    assert json.loads(file.read_text()) == CONFIG


def test_no_warnings_in_normal_use(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        _save(tmp_path, {1: None, 2: 0.5})
        assert _restored_step(tmp_path) == 2
        load_params(tmp_path)
    slow = "Waiting for previous save"  # on a busy machine that is true, and no fault
    assert not [record for record in caplog.records if slow not in record.getMessage()]


@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/2"])
def test_load_params(tmp_path: Path, part: str):
    _save(tmp_path, {1: None, 2: None})
    config, params = load_params(tmp_path / part)
    assert config == CONFIG | {"step": 2}
    jax.tree.map(np.testing.assert_array_equal, params, _ema(2))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_load_params_of_an_older_step(tmp_path: Path):
    _save(tmp_path, {1: None, 2: None})
    config, params = load_params(tmp_path / "checkpoints" / "1")
    assert config["step"] == 1 and params["dense"]["kernel"][0] == 1


@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/7"])
def test_load_params_where_there_is_nothing(tmp_path: Path, part: str):
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        load_params(tmp_path / part)
    _save(tmp_path, {1: None})
    with pytest.raises(CheckpointError, match=r"no whole checkpoint here; steps: \[1\]"):
        load_params(tmp_path / "checkpoints" / "7")


def test_reading_leaves_a_running_save_alone(tmp_path: Path):
    _save(tmp_path, {1: None})
    running = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    running.mkdir()
    assert load_params(tmp_path)[0]["step"] == 1
    assert running.exists()


def test_what_a_killed_save_left_is_removed(tmp_path: Path):
    _save(tmp_path, {1: None})
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", left)
    (left / "commit_success.txt").unlink()
    _save(tmp_path, {2: None})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_restore_onto_another_mesh(tmp_path: Path):
    _save(tmp_path, {3: None})
    mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)
    layout = sharding.param_sharding(_state(0), mesh, min_size=8)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _state(0), layout
    )
    _, state, _ = _open(tmp_path).restore_newest(target, _ema(0))
    kernel = state["params"]["kernel"]
    assert kernel.sharding == layout["params"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(kernel, _state(3)["params"]["kernel"])


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def _arrays(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if "d" in p.parts[-2:-1]]


DAMAGE = {
    "all files cut short": _files,
    "arrays cut short": _arrays,
    "config cut short": lambda folder: [folder / "config" / "config.json"],
    "scores cut short": lambda folder: [folder / "metrics" / "metrics"],
    "metadata cut short": lambda folder: list(folder.glob("state/_METADATA")),
}


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_checkpoint(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    _save(tmp_path, {1: 0.2, 2: 0.3})
    damaged = tmp_path / "checkpoints" / "2"
    files = DAMAGE[kind](damaged)
    assert files
    for file in files:
        _cut(file)
    with caplog.at_level(logging.WARNING, "opensep_jax"):
        assert _restored_step(tmp_path) == 1
    assert f"{damaged} cannot be read" in caplog.text
    # The run goes on and saves that step again; what was damaged is still there to look at.
    _save(tmp_path, {2: None})
    assert _restored_step(tmp_path) == 2
    assert len(list((tmp_path / "checkpoints").glob("2.damaged*"))) == 1


# Saves two steps, then a process cannot read its part of the second one.
ONE_OF_TWO_IS_BLIND = """
import logging, os, pathlib, sys
import jax, jax.numpy as jnp, orbax.checkpoint as ocp
from opensep_jax import processes, sharding
from opensep_jax.checkpoint.state import Checkpoints

address, count, process = (flag.split("=")[1] for flag in sys.argv[1:])
processes.join(address, int(count), int(process))
mesh = sharding.make_mesh(data=1, fsdp=2, tensor=1)
shapes = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
layout = sharding.param_sharding(shapes, mesh, min_size=8)
fill = jax.jit(lambda x: {"kernel": jnp.full((8, 4), x)}, out_shardings=layout)
saved = Checkpoints(pathlib.Path(os.environ["WORKDIR"]), {}, 2, "score")
for step in (1, 2):
    saved.save(step, fill(float(step)), fill(float(step)))
saved.wait()

read = ocp.StandardCheckpointHandler.restore

def fail(self, directory, *args, **kwargs):
    if process == os.environ["BLIND"] and directory.parent.name == "2":
        raise OSError(5, "Input/output error")
    return read(self, directory, *args, **kwargs)

ocp.StandardCheckpointHandler.restore = fail
target = sharding.shapes(shapes, layout)
step, state, ema = saved.restore_newest(target, target)
assert step == 1 and float(fill(1.0)["kernel"].sum()) == float(state["kernel"].sum()), step
saved.close()
"""


@pytest.mark.parametrize("blind", [0, 1])
def test_what_one_process_cannot_read_is_read_by_none(tmp_path: Path, blind: int):
    logs = tmp_path / "logs"
    variables = {"WORKDIR": str(tmp_path), "BLIND": str(blind)}
    with started(["-c", ONE_OF_TWO_IS_BLIND], 2, 1, logs, **variables) as children:
        ended = codes(children, timeout_s=90)
    said = [(logs / f"{process}.log").read_text() for process in range(2)]
    assert ended == [0, 0], said
    name = f"{tmp_path}/checkpoints/2 cannot be read: "
    assert f"{name}OSError: [Errno 5] Input/output error" in said[blind]
    assert f"{name}another process could not" in said[1 - blind]
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()


def test_load_params_goes_back_to_a_whole_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    _save(tmp_path, {1: None, 2: None})
    for file in _arrays(tmp_path / "checkpoints" / "2" / "ema"):
        _cut(file)
    assert load_params(tmp_path)[0]["step"] == 1
    assert "checkpoints/2 cannot be read" in caplog.text
    assert (tmp_path / "checkpoints" / "2").exists()  # readers move nothing
    with pytest.raises(CheckpointError, match="checkpoints/2 cannot be read"):
        load_params(tmp_path / "checkpoints" / "2")


def test_nothing_is_moved_when_no_config_can_be_read(tmp_path: Path):
    _save(tmp_path, {1: None, 2: None})
    files = [tmp_path / "checkpoints" / step / "config" / "config.json" for step in "12"]
    for file in files:
        _cut(file)
    with pytest.raises(CheckpointError, match=r"1 cannot be read: .*; .*2 cannot be read: "):
        _open(tmp_path)
    assert all(file.exists() for file in files)


def test_nothing_is_moved_when_no_checkpoint_can_be_read(tmp_path: Path):
    _save(tmp_path, {1: None, 2: None})
    saved = _open(tmp_path)
    other = {"step": jnp.int32(0), "params": {"renamed": jnp.zeros((8, 4))}}
    with pytest.raises(CheckpointError, match=r"2 cannot be read: .*; .*1 cannot be read: "):
        saved.restore_newest(other, _ema(0))
    saved.close()
    assert _restored_step(tmp_path) == 2


def _save_too_much(workdir: Path) -> str:
    """The message of a save that does not fit."""
    saved = _open(workdir)
    with pytest.raises(CheckpointError) as caught:
        saved.save(2, {"noise": np.random.default_rng(0).normal(size=10**6)}, _ema(2))
        saved.close()
    saved.close()  # does not raise again over what it has said
    return str(caught.value)


def test_full_disk(small_disk: Path):
    _save(small_disk, {1: None})
    message = _save_too_much(small_disk)
    assert f"{small_disk}/checkpoints/2 cannot be written" in message
    assert "No space left on device" in message
    assert message.endswith("whole checkpoints: 1")
    assert _restored_step(small_disk) == 1


def test_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a full disk, where none can be mounted."""
    _save(tmp_path, {1: None})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(CheckpointError) as caught:
            _open(tmp_path).save(2, _state(2), _ema(2))
    assert str(caught.value).endswith("No space left on device; whole checkpoints: 1")
    assert _restored_step(tmp_path) == 1


def test_config_of_a_workdir_in_an_object_store():
    with memory_store() as bucket:
        workdir = bucket / "runs" / "new"
        check_shared(workdir)
        assert read_config(workdir) is None
        for config in (CONFIG, CONFIG | {"task": "separator"}):
            write_config(workdir, config)
            assert read_config(workdir) == config
        assert [file.name for file in workdir.iterdir()] == ["config.json"]


def test_config_of_a_workdir(tmp_path: Path):
    workdir = tmp_path / "new" / "run"
    assert read_config(workdir) is None
    _save(workdir, {1: None})
    assert read_config(workdir) == CONFIG  # as in the checkpoint
    write_config(workdir, CONFIG | {"task": "separator"})
    assert read_config(workdir)["task"] == "separator"
    (workdir / "config.json").write_text('{"task')
    with pytest.raises(CheckpointError, match="config.json is not valid JSON"):
        read_config(workdir)
