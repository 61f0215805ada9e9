"""Starts several processes of one run on loopback and collects how they end."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    """Variables of a process with simulated devices, compiling as quickly as this one."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        **more,
    }


@contextmanager
def started(
    command: Sequence[str], processes: int, devices: int, logs: Path, **more: str
) -> Iterator[list[subprocess.Popen]]:
    """Runs a command in several processes; whatever is left of them at the end is killed.

    Args:
        command: without interpreter and flags of processes.
        processes: how many; one alone gets no flags.
        devices: simulated ones of each.
        logs: folder of what they say, `<process>.log`.
        more: further environment variables.
    """
    logs.mkdir(parents=True, exist_ok=True)
    address, children = f"127.0.0.1:{free_port()}", []
    try:
        for process in range(processes):
            flags = [
                f"--coordinator_address={address}",
                f"--num_processes={processes}",
                f"--process_id={process}",
            ]
            with (logs / f"{process}.log").open("w") as log:
                children.append(
                    subprocess.Popen(
                        [sys.executable, *command, *(flags if processes > 1 else ())],
                        cwd=ROOT,
                        env=environment(devices, **more),
                        stdout=log,
                        stderr=log,
                    )  # fmt: skip
                )
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def codes(children: Sequence[subprocess.Popen], timeout_s: float = 600) -> list[int]:
    """Exit codes, once all have ended."""
    return [child.wait(timeout_s) for child in children]
