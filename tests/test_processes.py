"""Processes that find each other, share a folder, and stop at the same step."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from opensep_jax.processes import (
    Preempted,
    Preemption,
    ProcessError,
    check_shared,
    in_cluster,
    join,
)
from tests.several_processes import codes, free_port, started

# Two devices each; every process writes what it has found to a file of its own.
TWO = """
import json, os, pathlib, signal, sys
import jax, numpy as np
from opensep_jax import processes, sharding

address, count, process = (flag.split("=")[1] for flag in sys.argv[1:])
processes.join(address, int(count), int(process))
folder, me = pathlib.Path(os.environ["FOLDER"]), jax.process_index()
processes.check_shared(folder / "shared")
try:
    processes.check_shared(folder / f"own-{me}")
    refusal = ""
except processes.ProcessError as error:
    refusal = str(error)

mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
total = jax.jit(lambda x: (x ** 2).sum(), out_shardings=sharding.replicated(mesh))
rows = np.arange(8, dtype=np.float32)[me::2]
preemption, step, sums = processes.Preemption(), 0, set()
while True:
    step += 1
    sums.add(float(total(sharding.shard_batch({"x": rows}, mesh)["x"])))
    if step == 3 and me == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if preemption.reached():
        break
found = {"devices": jax.device_count(), "refusal": refusal, "sums": sorted(sums), "step": step}
(folder / f"{me}.json").write_text(json.dumps(found))
"""


# One process that has joined a cluster of itself: JAX listens to SIGTERM as well.
ONE = """
import os, signal, sys
from opensep_jax import processes

processes.join(sys.argv[1], 1, 0)
preemption = processes.Preemption()
assert not preemption.reached()
os.kill(os.getpid(), signal.SIGTERM)
assert preemption.reached()
preemption.close()
"""


def test_one_process_of_a_cluster_hears_the_signal_itself(tmp_path: Path):
    command = ["-c", ONE, f"127.0.0.1:{free_port()}"]
    with started(command, 1, 1, tmp_path) as children:
        assert codes(children) == [0], (tmp_path / "0.log").read_text()


def test_two_processes(tmp_path: Path):
    with started(["-c", TWO], 2, 2, tmp_path / "logs", FOLDER=str(tmp_path)) as children:
        assert codes(children) == [0, 0], (tmp_path / "logs" / "0.log").read_text()
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first["devices"] == second["devices"] == 4
    assert first["sums"] == second["sums"] == [float(np.sum(np.arange(8) ** 2))]
    assert first["step"] == second["step"] > 3  # told to one, at the same step for both
    for process, found in enumerate((first, second)):
        folder = tmp_path / f"own-{process}"
        assert f"{folder}: what process 0 writes here is not seen by process 1" in found["refusal"]
    assert not list(tmp_path.glob("*/.seen_by_all"))


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "3"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, False),  # the batch script itself
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),  # an interactive shell
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ],
)
def test_clusters_are_seen(environment: dict[str, str], several: bool):
    assert in_cluster(environment, None) == several
    assert in_cluster(environment, "cpu") == several
    assert in_cluster(environment, "tpu,cpu")  # where JAX has found the chips of a TPU machine


def test_without_a_cluster_nobody_is_found(monkeypatch: pytest.MonkeyPatch):
    def initialize(*_: object, **settings: object) -> None:
        assert settings["heartbeat_timeout_seconds"] <= 30
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ProcessError, match="coordinator_address should be defined.*--nodistr"):
        join(None, None, None)


def test_one_process_makes_its_folder(tmp_path: Path):
    check_shared(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_sigterm_is_a_note():
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption()
    assert not preemption.reached() and not preemption.told_alone
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.reached() and preemption.reached() and preemption.told_alone
    with pytest.raises(Preempted):
        preemption.check()
    preemption.close()
    assert signal.getsignal(signal.SIGTERM) is before
