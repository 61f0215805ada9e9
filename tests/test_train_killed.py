"""Six steps equal three, a SIGKILL, and three more, to the last digit: real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
STEPS, SAVED, KILLED = 6, 3, 5

# The command as it is, but for a kill while it takes the batch of a step: once a checkpoint is
# whole, or while it is being written.
COMMAND = f"""
import os, signal, time
from opensep_jax import sharding, train

when, shard_batch, calls = os.environ["KILL_WHEN"], sharding.shard_batch, []
saved = os.path.join(os.environ["KILL_WORKDIR"], "checkpoints", "{SAVED}")

def shard(*args):
    calls.append(1)
    if len(calls) == {{"whole": {KILLED}, "writing": {SAVED + 1}}}.get(when):
        while when == "whole" and not os.path.exists(saved):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return shard_batch(*args)

sharding.shard_batch = shard
train.cli()
"""


def _train(
    folder: Path, workdir: Path, devices: int, cache: Path, *flags: str, kill: str = "never"
) -> int:
    """Exit code of `python -m opensep_jax.train` on simulated devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "KILL_WHEN": kill,
        "KILL_WORKDIR": str(workdir),
    }
    command = [
        sys.executable, "-c", COMMAND, "--config=configs/debug.py", f"--workdir={workdir}",
        f"--config.data.folder={folder}", f"--config.train.steps={STEPS}",
        f"--config.train.save_every_steps={SAVED}", "--config.eval.every_steps=100",
        "--config.eval.mixtures=2", "--config.eval.sources=(2,)", "--config.eval.seconds=0.25",
        "--config.data.threads=1", *flags,
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode


@pytest.mark.parametrize("devices, mesh", [(1, ()), (8, ("--config.mesh.fsdp=2",))])
def test_six_steps_are_three_a_kill_and_three(
    tiny_dataset: Path, tmp_path: Path, compile_cache: Path, devices: int, mesh: tuple[str, ...]
):
    flags = (*mesh, "--config.mesh.fsdp_min_size=64")
    straight = tmp_path / "straight"
    assert _train(tiny_dataset, straight, devices, compile_cache, *flags) == 0
    expected = tiny_run.read_metrics(straight)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    for when, begins in (("whole", SAVED), ("writing", 0)):
        workdir = tmp_path / when
        code = _train(tiny_dataset, workdir, devices, compile_cache, *flags, kill=when)
        assert code == -signal.SIGKILL
        assert len(tiny_run.read_metrics(workdir)) >= begins
        assert _train(tiny_dataset, workdir, devices, compile_cache, *flags) == 0
        assert tiny_run.read_metrics(workdir) == expected
        tiny_run.assert_same_arrays(
            tiny_run.read_state(workdir, STEPS), tiny_run.read_state(straight, STEPS)
        )
        names = {p.name for p in (workdir / "checkpoints").iterdir()}
        assert names == {str(SAVED), str(STEPS)}  # nothing half-written is left
