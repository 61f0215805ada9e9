"""Launch scripts: what they start, when they start it again, and that shellcheck likes them.

Programs of clusters and clouds are played by a small script that notes how it was called.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny_run
from tests.several_processes import environment

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.s*"))
# Of this environment, which need not be on the path (extra `test`), or any other.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent)
SHELLCHECK = SHELLCHECK or shutil.which("shellcheck")

# Notes its arguments, then ends as the next line of the file `answers` says: with an exit code, or
# with 75 once it gets SIGTERM (`wait`).
ACTOR = """#!/usr/bin/env bash
cd "$(dirname "$0")"
if [[ "$1" == -c ]]; then echo 12345; exit; fi
echo "$(basename "$0") $*${SHOWN:+ on ${CUDA_VISIBLE_DEVICES:-all}}" >>calls
exec 9>lock; flock 9
answer="$(head -n 1 answers)"; sed -i 1d answers
flock -u 9; exec 9>&-
if [[ "$answer" == *" "* ]]; then echo "${answer#* }"; answer="${answer%% *}"; fi
if [[ "$answer" == wait ]]; then
  trap 'exit 75' TERM; touch waiting-$$; while true; do sleep 0.02; done
fi
exit "${answer:-0}"
"""


@pytest.fixture
def actors(tmp_path: Path) -> Path:
    """A folder of programs that play python, and what clusters have."""
    for name in ("python", "srun", "scontrol", "gcloud", "nvidia-smi"):
        (tmp_path / name).write_text(ACTOR)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _start(actors: Path, script: str, *flags: str, **more: str) -> subprocess.Popen:
    variables = {
        **os.environ, "PATH": f"{actors}:{os.environ['PATH']}", "HOME": str(actors),
        "PYTHON": "python", **more
    }  # fmt: skip
    command = ["bash", str(ROOT / "launch" / script), *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _run(actors: Path, answers: str, script: str, *flags: str, **more: str) -> tuple[int, list]:
    """Exit code of a script, and the calls that it made."""
    (actors / "answers").write_text(answers)
    running = _start(actors, script, *flags, **more)
    running.communicate(timeout=60)
    return running.returncode, (actors / "calls").read_text().splitlines()


def test_scripts_are_there():
    names = {"children.sh", "gpu_node.sh", "infer_gpus.sh", "local_cpu.sh", "slurm_gpu.sbatch",
             "tpu_pod.sh"}  # fmt: skip
    assert names == {script.name for script in SCRIPTS}
    readme = (ROOT / "launch" / "README.md").read_text()
    for script in SCRIPTS:
        assert os.access(script, os.X_OK)
        assert f"launch/{script.name}" in readme


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script: Path):
    done = subprocess.run([SHELLCHECK, "-x", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "answers, code, calls", [("75\n75\n0\n", 0, 3), ("2\n", 2, 1), ("75\n134\n", 134, 2)]
)
def test_one_node_starts_again_when_it_was_told_to_stop(
    actors: Path, answers: str, code: int, calls: int
):
    ended, called = _run(actors, answers, "gpu_node.sh", "--config", "a b.py")
    assert ended == code and len(called) == calls
    assert set(called) == {"python -m opensep_jax.train --nodistributed --config a b.py"}


def test_restarts_have_an_end(actors: Path):
    ended, called = _run(actors, "75\n" * 5, "gpu_node.sh", RESTARTS="2")
    assert ended == 75 and len(called) == 3


@pytest.mark.parametrize(
    "script, flags, processes",
    [
        ("gpu_node.sh", (), 1),
        ("local_cpu.sh", ("2", "1", "--a"), 2),
        ("infer_gpus.sh", ("x.wav", "--out", "o"), 2),
    ],
)
def test_sigterm_is_passed_on_and_ends_the_script(
    actors: Path, script: str, flags: tuple[str, ...], processes: int
):
    (actors / "answers").write_text("wait\n" * processes)
    running = _start(actors, script, *flags, CUDA_VISIBLE_DEVICES="0,1")
    for _ in range(1000):
        if len(list(actors.glob("waiting-*"))) == processes:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 75
    assert len((actors / "calls").read_text().splitlines()) == processes


def test_local_processes(actors: Path):
    ended, called = _run(
        actors, "75\n75\n0\n0\n", "local_cpu.sh", "2", "4", "--config", "c.py", XLA_FLAGS="--a"
    )
    assert ended == 0 and len(called) == 4
    expected = "python -m opensep_jax.train --config c.py --coordinator_address=127.0.0.1:12345"
    assert sorted(set(called)) == [
        f"{expected} --num_processes=2 --process_id={number}" for number in range(2)
    ]


@pytest.mark.parametrize("code", [2, 134])
def test_an_error_of_one_process_is_that_of_all(actors: Path, code: int):
    ended, called = _run(actors, f"75\n{code}\n", "local_cpu.sh", "2", "1", "--config=c.py")
    assert ended == code and len(called) == 2


@pytest.mark.parametrize(
    "answers, code, merges", [("0\n0\n0\n", 0, 1), ("0\n1\n1\n", 1, 1), ("0\n2\n", 2, 0)]
)
@pytest.mark.parametrize("devices", ["3,5", ""])
def test_a_shard_for_each_gpu(actors: Path, answers: str, code: int, merges: int, devices: str):
    """Those that are named, or all."""
    found = "" if devices else "0 3 5\n"
    flags = ("a b.wav", "--out", "o p", "--query", "dog")
    ended, called = _run(
        actors, found + answers, "infer_gpus.sh", *flags, SHOWN="1", CUDA_VISIBLE_DEVICES=devices
    )
    assert ended == code
    called = [call for call in called if not call.startswith("nvidia-smi")]
    infer = "python -m opensep_jax.infer"
    assert sorted(called[:2]) == [
        f"{infer} a b.wav --out o p --query dog --num_shards=2 --shard={shard} on {gpu}"
        for shard, gpu in enumerate((3, 5))
    ]
    assert called[2:] == [f"{infer} --merge o p on {devices or 'all'}"] * merges


def test_shards_need_a_folder(actors: Path):
    (actors / "calls").touch()
    assert _run(actors, "", "infer_gpus.sh", "a.wav") == (2, [])


def test_slurm_queues_again(actors: Path):
    ended, called = _run(actors, "75\n0\n", "slurm_gpu.sbatch", "--config=c.py", SLURM_JOB_ID="7")
    assert called == [
        "srun python -m opensep_jax.train --distributed --config=c.py",
        "scontrol requeue 7",
    ]
    (actors / "calls").unlink()
    ended, called = _run(actors, "134\n", "slurm_gpu.sbatch", SLURM_JOB_ID="7")
    assert ended == 134 and len(called) == 1


def test_a_tpu_slice_is_asked_for_used_and_replaced(actors: Path):
    """The first one is taken away while the run is on it."""
    answers = (
        "1\n0\n0 ACTIVE\n"  # there is none, it is created, it is there
        "0\n0\n255\n"  # copied, installed, the run's connection breaks off
        "0 SUSPENDED\n0 SUSPENDED\n0\n1\n0\n0 ACTIVE\n"  # taken away: deleted, created, there
        "0\n0\n0\n"
    )
    (actors / "sleep").write_text("#!/bin/sh\n")
    (actors / "sleep").chmod(0o755)
    place = {
        "NAME": "n", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v", "WORKDIR": "/mnt/a b"
    }  # fmt: skip
    ended, called = _run(actors, answers, "tpu_pod.sh", "--config=c.py", **place)
    assert ended == 0
    verbs = [call.split()[3:5] for call in called if call.startswith("gcloud")]
    assert verbs.count(["queued-resources", "create"]) == 2
    assert verbs.count(["queued-resources", "delete"]) == 1
    assert verbs.count(["tpu-vm", "scp"]) == 2
    (command,) = {line for line in called if "opensep_jax.train" in line}
    assert r"--workdir=/mnt/a\ b --config=c.py" in command


@pytest.mark.parametrize("clean", [True, False])
def test_changes_that_a_tpu_does_not_get_are_mentioned(actors: Path, clean: bool):
    (actors / "git").write_text(f'#!/bin/sh\n[ "$1" != diff ] || exit {int(not clean)}\n')
    (actors / "git").chmod(0o755)
    (actors / "answers").write_text("0 ACTIVE\n0\n0\n0\n")
    place = dict.fromkeys(("NAME", "ZONE", "TYPE", "VERSION", "WORKDIR"), "x")
    running = _start(actors, "tpu_pod.sh", "--config=c.py", **place)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0 and ("not committed" in said) == (not clean)


def test_batches_of_the_examples_fit_their_gpus():
    readme = (ROOT / "launch" / "README.md").read_text()
    lines = [line for line in readme.splitlines() if "--config.train.batch=" in line]
    batches = [int(line.partition("--config.train.batch=")[2].rstrip("` |")) for line in lines]
    assert batches == [8 * 8, 4 * 8 * 8]


@pytest.mark.slow
def test_a_rehearsal(tiny_dataset: Path, tmp_path: Path):
    """Two real processes, to the end."""
    flags = {
        "data.folder": tiny_dataset, "data.threads": 1, "train.steps": 4, "eval.sources": "(2,)",
        "eval.mixtures": 2, "eval.seconds": 0.25,
    }  # fmt: skip
    command = [
        "launch/local_cpu.sh", "2", "1", "--config=configs/debug.py", f"--workdir={tmp_path}",
        *(f"--config.{name}={value}" for name, value in flags.items()),
    ]  # fmt: skip
    variables = environment(1, PYTHON=sys.executable)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in tiny_run.read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert len(tiny_run.read_metrics(tmp_path, "val/si_sdri")) == 1
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "separator"
    assert "steps 0 to 4" in done.stderr and "[1] steps" not in done.stderr
