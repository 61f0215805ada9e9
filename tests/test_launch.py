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
from collections.abc import Callable
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
if [[ "$answer" == *" "* ]]; then
  text="${answer#* }"; answer="${answer%% *}"
  if [[ "$answer" == 0 ]]; then echo "$text"; else echo "$text" >&2; fi
fi
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
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def _until(reached: Callable[[], bool]) -> None:
    """Waits for it, 20 s at most."""
    for _ in range(1000):
        if reached():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


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
    "answers, code, calls",
    [("75\n143\n0\n", 0, 3), ("2\n", 2, 1), ("75\n134\n", 134, 2)],  # 143: told very early
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
    _until(lambda: len(list(actors.glob("waiting-*"))) == processes)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 75
    assert len((actors / "calls").read_text().splitlines()) == processes


def test_local_processes(actors: Path):
    ended, called = _run(
        actors, "75\n143\n0\n0\n", "local_cpu.sh", "2", "4", "--config", "c.py", XLA_FLAGS="--a"
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


@pytest.mark.parametrize("told", [75, 143])
def test_slurm_queues_again(actors: Path, told: int):
    ended, called = _run(
        actors, f"{told}\n0\n", "slurm_gpu.sbatch", "--config=c.py", SLURM_JOB_ID="7"
    )
    assert called == [
        "srun python -m opensep_jax.train --distributed --config=c.py",
        "scontrol requeue 7",
    ]
    (actors / "calls").unlink()
    ended, called = _run(actors, "134\n", "slurm_gpu.sbatch", SLURM_JOB_ID="7")
    assert ended == 134 and len(called) == 1


SLICE = {"NAME": "n", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v", "WORKDIR": "/mnt/a b"}


def _on_slice(actors: Path, answers: str) -> tuple[int, list[list[str]], list[str]]:
    """Exit code of the script for slices, the verbs of its calls, and the calls."""
    (actors / "sleep").write_text("#!/bin/sh\n")
    (actors / "sleep").chmod(0o755)
    ended, called = _run(actors, answers, "tpu_pod.sh", "--config=c.py", **SLICE)
    return ended, [call.split()[3:5] for call in called if call.startswith("gcloud")], called


def test_a_tpu_slice_is_asked_for_used_and_replaced(actors: Path):
    """The first one is taken away while the run is on it, which shows late."""
    ended, verbs, called = _on_slice(
        actors,
        "1 NOT_FOUND: it\n0\n0 ACTIVE\n"  # there is none, it is created, it is there
        "0\n0\n255\n"  # copied, installed, the run's connection breaks off
        "0 ACTIVE\n0 SUSPENDED\n0 SUSPENDED\n0\n1 NOT_FOUND: it\n0\n0 ACTIVE\n"
        "0\n0\n0\n",
    )
    assert ended == 0
    assert verbs.count(["queued-resources", "create"]) == 2
    assert verbs.count(["queued-resources", "delete"]) == 1
    assert verbs.count(["tpu-vm", "scp"]) == 2
    (command,) = {line for line in called if "opensep_jax.train" in line}
    assert r"--workdir=/mnt/a\ b --config=c.py" in command


@pytest.mark.parametrize("code, connections", [(255, 2), (134, 2), (2, 1)])
def test_a_slice_that_stays_is_connected_again_unless_the_run_has_failed(
    actors: Path, code: int, connections: int
):
    answers = f"0 ACTIVE\n0\n0\n{code}\n" + "0 ACTIVE\n" * 11 + "0\n0\n0\n"
    ended, verbs, _ = _on_slice(actors, answers)
    assert ended == (0 if connections == 2 else code)
    assert verbs.count(["tpu-vm", "scp"]) == connections
    assert not [verb for _, verb in verbs if verb in ("create", "delete")]


def test_a_slice_that_cannot_be_asked_about_is_not_created_again(actors: Path):
    ended, verbs, _ = _on_slice(actors, "1 UNAVAILABLE: later\n" * 3 + "0 ACTIVE\n0\n0\n0\n")
    assert ended == 0 and ["queued-resources", "create"] not in verbs
    (actors / "calls").unlink()
    ended, verbs, _ = _on_slice(actors, "1 PERMISSION_DENIED: no\n" * 100)
    assert ended == 1 and verbs == [["queued-resources", "describe"]] * 20


# Plays one machine, whose home is a folder: what is to be run there is run.
MACHINE = """#!/usr/bin/env bash
last="${!#}"; home="$(dirname "$0")/home"
case "$*" in
  *describe*) echo ACTIVE ;;
  *" scp "*) cp "$5" "$home/opensep.tar.gz" ;;
  *) cd "$home" && exec bash -c "${last#--command=}" ;;
esac
"""
# `python3` there, which has no venv until uv makes one; it holds what `programs` has.
OLD_PYTHON = """#!/bin/sh
echo "python3 $*" >>calls
[ "$3" != venv ] || { mkdir -p .opensep; cp -r ../programs .opensep/bin; }
"""
# The run: told to stop while it starts, then goes on until there is a file `end`, or for a minute.
TRAINING = """#!/bin/sh
echo run >>../calls
if [ "$(grep -c run ../calls)" = 1 ]; then exit 143; fi
trap 'echo "the last step"; exit 75' TERM
echo "the first step"
left=1200
while [ ! -e ../end ] && [ $((left -= 1)) -gt 0 ]; do /bin/sleep 0.05; done
echo "the last step"
"""


@pytest.mark.parametrize("code", [0, 75])
def test_a_lost_connection_is_not_a_lost_run(actors: Path, code: int):
    """The same command finds the run that goes on, and starts no second one over it."""
    (actors / "home").mkdir()
    (actors / "programs").mkdir()
    for name, text in {
        "gcloud": MACHINE, "python": "#!/bin/sh\nexit 1\n", "python3": OLD_PYTHON,
        "programs/pip": "#!/bin/sh\n", "programs/python": TRAINING,
    }.items():  # fmt: skip
        (actors / name).write_text(text)
        (actors / name).chmod(0o755)
    calls = actors / "home" / "calls"
    first = _start(actors, "tpu_pod.sh", "--config=c.py", **SLICE)
    _until(lambda: calls.exists() and calls.read_text().count("run") == 2)
    os.killpg(first.pid, signal.SIGKILL)
    second = _start(actors, "tpu_pod.sh", "--config=c.py", **SLICE)
    assert second.stdout.readline() == "the first step\n"
    if code == 0:
        (actors / "home" / "end").touch()
    else:  # as launch/README.md says
        os.killpg(int((actors / "home" / "run.pid").read_text()), signal.SIGTERM)
    said, warned = second.communicate(timeout=60)
    assert second.returncode == code and "a run is on" in warned
    assert said.endswith("the last step\n")
    installed = ["python3 -m pip install --quiet --user uv"]
    installed.append("python3 -m uv venv --quiet --clear --seed --python 3.11 .opensep")
    assert calls.read_text().splitlines() == [*installed, "run", "run"]
    first.communicate(timeout=60)


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
