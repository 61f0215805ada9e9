"""Several processes that train one model: finding each other, what they share, when to stop."""

import signal
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

# Without a sign of life for so long a process counts as dead, and the others stop. JAX's default is
# 100 s. Threads of their own send the signs, so neither compiling nor reading delays them.
HEARTBEAT_TIMEOUT_S = 30
# A process that stops on an error waits so long for the others, which cannot go on without it.
SHUTDOWN_TIMEOUT_S = 20


class ProcessError(ValueError):
    """Processes that cannot work together; the message says why and what to change."""


def in_cluster(environment: Mapping[str, str], platforms: str | None) -> bool:
    """Whether there may be other processes that JAX finds by itself.

    Args:
        environment: variables of this process.
        platforms: as in `jax.config.jax_platforms`.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    # JAX puts "tpu" there itself where it finds the chips of a TPU machine.
    return int(tasks) > 1 or "tpu" in (platforms or "").split(",")


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several; must come before anything asks for devices.

    Args:
        coordinator: `host:port` of process 0; None finds all three (TPU, SLURM, Open MPI).
        processes: how many there are.
        process: number of this one, from 0.

    Raises:
        ProcessError: if they cannot find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise ProcessError(
            f"the processes cannot find each other ({error}); give --coordinator_address, "
            "--num_processes and --process_id to each, or --nodistributed for one process alone"
        ) from error


def check_shared(folder: Path | epath.Path) -> None:
    """Raises if not all processes see the same folder; makes it.

    Raises:
        ProcessError: names the processes that do not see what process 0 writes there.
    """
    first = jax.process_index() == 0
    file = folder / ".seen_by_all"
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    if jax.process_count() == 1:
        return
    if first:
        file.write_text("A run begins here.\n")
    multihost_utils.sync_global_devices("written")
    seen = multihost_utils.process_allgather(np.array(file.exists()))
    if first:
        file.unlink()
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise ProcessError(
            f"{folder}: what process 0 writes here is not seen by process {blind}; give all the "
            "same folder, on a file system that their machines share"
        )


class Preempted(Exception):
    """The run has been told to stop."""


class Preemption:
    """Whether the run has been told to stop: by SIGTERM, or by notice of a TPU's maintenance.

    Of several processes any may be told, and all learn of it when they ask for the same time,
    through JAX's preemption service. It compares numbers that it is asked with, so nobody else may
    ask: `checkpoint.state` keeps orbax from it.
    """

    def __init__(self):
        """Listens from now on; SIGTERM no longer ends this process by itself."""
        self._told, self._asked = False, 0
        self._several = jax.process_count() > 1  # then JAX's service listens to the signal
        if not self._several:
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self._told = True

    @property
    def told_alone(self) -> bool:
        """Whether the only process has been told; several must ask `reached`."""
        return self._told and not self._several

    def reached(self) -> bool:
        """Whether to stop now; all processes must ask equally often, and soon after one another.

        Asking costs nothing: they talk to each other only once one has been told.
        """
        if self._several and not self._told:
            # Counted from 1: one who is told before the first question counts as being at 0, and
            # all stop at 1.
            self._asked += 1
            self._told = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._told

    def check(self) -> None:
        """Raises `Preempted` if `reached`."""
        if self.reached():
            raise Preempted

    def close(self) -> None:
        """SIGTERM does again what it did before."""
        if not self._several:  # None: a handler that is not Python's
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
