"""Real processes on loopback: one run on any topology, through kills and requests to stop.

No run here comes to its end: each is told to stop, or killed. Only the last test validates.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from opensep_jax import sharding, train
from opensep_jax.cli import EXIT_PREEMPTED
from tests import tiny_run
from tests.several_processes import codes, started

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compile_once")]
SAVED = 10
REFERENCE = 60  # steps that are compared; processes that are told to stop may go on for longer
SETTINGS = {
    "train__steps": 1000,
    "train__save_every_steps": SAVED,
    "train__keep_checkpoints": 1000,
    "eval__every_steps": 1000,
    "eval__sources": (2, 3),  # as in configs/debug.py: a resumed run keeps its validation
    "eval__mixtures": 8,
    "eval__seconds": 0.5,
    "mesh__fsdp_min_size": 64,
}

# The command as it is, but that one process sends itself a signal while it takes the batch of a
# step or of a validation.
COMMAND = """
import json, os, sys
from opensep_jax import sharding, train
from opensep_jax.training import separator_task

hook = json.loads(os.environ["HOOK"])
shard_batch, mixture_batches = sharding.shard_batch, separator_task.mixture_batches
step, mine = hook["first"], f"--process_id={hook['process']}" in sys.argv

def shard(*args):
    global step
    step += 1
    if mine and step == hook["step"]:
        os.kill(os.getpid(), hook["signal"])
    return shard_batch(*args)

def validation(*args, **settings):
    for number, batch in enumerate(mixture_batches(*args, **settings)):
        if mine and number == hook["batch"]:
            os.kill(os.getpid(), hook["signal"])
        yield batch

sharding.shard_batch, separator_task.mixture_batches = shard, validation
train.cli()
"""


def _checkpoints(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())


def _in_process(folder: Path, workdir: Path, last_step: int, data: int, fsdp: int = 1) -> None:
    """Runs on some devices of this process until it is told to stop, after a step."""
    place, step = sharding.shard_batch, max(_checkpoints(workdir), default=0)

    def tell(*args: object) -> dict:
        nonlocal step
        step += 1
        if step == last_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*args)

    config = tiny_run.tiny_config(folder, mesh__data=data, mesh__fsdp=fsdp, **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "shard_batch", tell)
        assert train.main(config, workdir, jax.devices()[: data * fsdp]) == EXIT_PREEMPTED


def _processes(
    folder: Path,
    workdir: Path,
    count: int,
    devices: int,
    step: int,
    send: int,
    *flags: str,
    batch: int = -1,
    process: int = -1,
) -> tuple[list[int], float]:
    """Runs in processes, one of which, by default the last, gets a signal: at a step, or at a
    batch of a validation.

    Returns:
        Exit codes, and seconds from the end of that process to that of all.
    """
    settings = {name.replace("__", "."): value for name, value in SETTINGS.items()}
    settings |= {"data.folder": folder, "data.threads": 1}
    command = ["-c", COMMAND, "--config=configs/debug.py", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()] + list(flags)
    first = max(_checkpoints(workdir), default=0)
    hook = {
        "first": first, "process": process % count, "step": step, "batch": batch,
        "signal": int(send),
    }  # fmt: skip
    with started(command, count, devices, workdir / "logs", HOOK=json.dumps(hook)) as children:
        codes([children[process]])
        begin = time.monotonic()
        return codes(children), time.monotonic() - begin


def _losses(workdir: Path) -> np.ndarray:
    """Of the steps that are compared, which are all there, in order."""
    steps, losses = zip(*tiny_run.read_metrics(workdir), strict=True)
    assert steps == tuple(range(1, len(steps) + 1)) and len(steps) >= 10
    return np.array(losses[:REFERENCE])


def _difference(workdir: Path, reference: Path) -> float:
    """Largest relative difference of losses."""
    losses = _losses(workdir)
    return float(np.max(np.abs(losses / _losses(reference)[: len(losses)] - 1)))


@pytest.fixture(scope="module")
def one_device(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, compile_once: None
) -> Path:
    """Workdir of a run on one device."""
    workdir = tmp_path_factory.mktemp("one_device")
    _in_process(tiny_dataset, workdir, REFERENCE, data=1)
    return workdir


@pytest.fixture(scope="module")
def four_by_two(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a run of four processes with two devices each; the last was told to stop."""
    workdir = tmp_path_factory.mktemp("four_by_two")
    told = 13
    ended, _ = _processes(tiny_dataset, workdir, 4, 2, told, signal.SIGTERM, "--config.mesh.fsdp=2")
    assert ended == [EXIT_PREEMPTED] * 4, (workdir / "logs" / "0.log").read_text()
    steps = _checkpoints(workdir)
    assert steps[0] == SAVED and steps[-1] >= told
    assert len(tiny_run.read_metrics(workdir)) == steps[-1]  # where all have stopped
    return workdir


@pytest.fixture
def saved(four_by_two: Path, tmp_path: Path) -> Path:
    """A workdir with nothing but the first checkpoint of that run, and the lines up to it."""
    shutil.copytree(four_by_two / "checkpoints" / str(SAVED), tmp_path / "checkpoints" / str(SAVED))
    shutil.copy(four_by_two / "config.json", tmp_path)
    lines = (four_by_two / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:SAVED]))
    return tmp_path


def test_four_processes_are_one(
    one_device: Path, four_by_two: Path, tiny_dataset: Path, tmp_path: Path
):
    _in_process(tiny_dataset, tmp_path, 12, data=4, fsdp=2)
    assert _difference(four_by_two, one_device) < 1e-5
    assert _difference(tmp_path, one_device) < 1e-5


def test_resuming_on_one_process(one_device: Path, saved: Path, tiny_dataset: Path):
    _in_process(tiny_dataset, saved, SAVED + 5, data=4)
    assert _checkpoints(saved) == [SAVED, SAVED + 5]
    assert _difference(saved, one_device) < 1e-5


@pytest.mark.parametrize("lost", [0, 1])  # the first one coordinates
def test_resuming_on_two_processes_and_losing_one(
    one_device: Path, saved: Path, tiny_dataset: Path, lost: int
):
    ended, seconds = _processes(
        tiny_dataset, saved, 2, 1, 2 * SAVED + 8, signal.SIGKILL, process=lost
    )
    assert ended[lost] == -signal.SIGKILL and ended[1 - lost] not in (0, EXIT_PREEMPTED)
    assert seconds < 60
    lost, newest = tiny_run.read_metrics(saved), _checkpoints(saved)[-1]
    assert (
        newest in (SAVED, 2 * SAVED) and len(lost) > newest
    )  # killed while it was written, or not
    told = 2 * SAVED + 9
    ended, _ = _processes(tiny_dataset, saved, 2, 1, told, signal.SIGTERM)
    assert ended == [EXIT_PREEMPTED] * 2
    assert told <= _checkpoints(saved)[-1] <= told + 3
    assert tiny_run.read_metrics(saved)[: len(lost)] == lost  # the lost steps again, to the digit
    assert len(_losses(saved)) > len(lost)
    assert _difference(saved, one_device) < 1e-5


@pytest.mark.parametrize("after", [1, SAVED + 1])
def test_being_told_at_the_start_and_near_a_save(saved: Path, tiny_dataset: Path, after: int):
    """A resumed run stops soon: before its first step is done, and while a step is being saved."""
    told = SAVED + after
    ended, _ = _processes(tiny_dataset, saved, 2, 1, told, signal.SIGTERM)
    assert ended == [EXIT_PREEMPTED] * 2
    assert told <= _checkpoints(saved)[-1] <= told + 3


def test_being_told_in_a_validation(saved: Path, tiny_dataset: Path):
    """All leave it at the same batch; it is made up for by any number of processes."""
    flags = f"--config.eval.every_steps={SAVED + 2}", "--config.eval.batch=1"
    ended, _ = _processes(tiny_dataset, saved, 2, 1, -1, signal.SIGTERM, *flags, batch=1)
    assert ended == [EXIT_PREEMPTED] * 2, (saved / "logs" / "0.log").read_text()
    assert _checkpoints(saved) == [SAVED, SAVED + 2]
    assert not tiny_run.read_metrics(saved, "val/si_sdri")
    ended, _ = _processes(tiny_dataset, saved, 2, 1, SAVED + 4, signal.SIGTERM, *flags)
    assert ended == [EXIT_PREEMPTED] * 2, (saved / "logs" / "0.log").read_text()
    assert [step for step, _ in tiny_run.read_metrics(saved, "val/si_sdri")] == [SAVED + 2]
