"""Trains what the config asks for, on whatever devices there are; resumes where a run stopped.

    python -m opensep_jax.train --config configs/demo.py --workdir runs/demo [--config.a.b=value]

Several processes find each other on TPU pods, under SLURM's srun and Open MPI's mpirun; elsewhere
give each `--coordinator_address host:port --num_processes N --process_id I`. `launch/` has scripts.

Exit codes: 0 done; 2 the run could not start or go on; 75 it was told to stop (SIGTERM, or a TPU's
maintenance notice) and has saved all: the same command goes on from there.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from opensep_jax import sharding
from opensep_jax.checkpoint.state import Checkpoints, write_config
from opensep_jax.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_PREEMPTED, VERSION, DoorError
from opensep_jax.processes import Preempted, Preemption, check_shared, in_cluster, join
from opensep_jax.run_config import flat, refuse_other_config
from opensep_jax.tasks import describe
from opensep_jax.training.board import Board
from opensep_jax.training.hardware import step_flops
from opensep_jax.training.profile import Profile, parse_steps
from opensep_jax.training.progress import Progress, Timed
from opensep_jax.training.step import TrainState
from opensep_jax.training_run import Run, first_state, halted, jit_step, start

logger = logging.getLogger("opensep_jax")

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/*.py.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Of checkpoints, events and metrics.jsonl: a folder that all processes share, "
    "or gs://, s3://, az:// (checkpoints there are untested)."
)  # fmt: skip
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Find the other processes; by default where the environment tells of some."
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "A:B records steps A to B for TensorBoard's profile tab."
)
DEBUG = flags.DEFINE_bool("debug", False, "Tracebacks with errors.")

OBJECT_STORES = ("gs", "s3", "az")  # what fsspec opens for `etils.epath`


def main(
    config: ml_collections.ConfigDict,
    workdir: Path | epath.Path,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> int:
    """One run, from whatever it has reached to `config.train.steps`.

    Args:
        config: all settings.
        workdir: of the run.
        devices: to run on; all by default.
        profile_steps: first and last step that are profiled, counted from 1.

    Returns:
        Exit code: `EXIT_PREEMPTED` if it was told to stop before it was through.
    """
    # First and last: SIGTERM breaks off neither the start nor what is being written at the end.
    with contextlib.closing(Preemption()) as preemption:
        stopped = go_on(config, workdir, devices, profile_steps, preemption)
    if stopped:
        logger.warning("told to stop; all is saved, run again to go on")
    return EXIT_PREEMPTED if stopped else EXIT_DONE


def go_on(
    config: ml_collections.ConfigDict,
    workdir: Path | epath.Path,
    devices: Sequence[jax.Device] | None,
    profile_steps: tuple[int, int] | None,
    preemption: Preemption,
) -> bool:
    """Starts a run or goes on with it; whether it was told to stop before it was through."""
    first_process = jax.process_index() == 0
    check_shared(workdir)
    run = start(config, devices)
    description = describe(config, run.task)
    saved = Checkpoints(workdir, description, config.train.keep_checkpoints, run.task.best)
    with contextlib.closing(saved):
        if saved.steps:  # else there is nothing to lose, as after a first start that failed
            refuse_other_config(workdir, description)
        state = first_state(run, saved)
        if first_process:
            write_config(workdir, description)
        with contextlib.closing(Board(workdir, int(state.step), first_process)) as board:
            board.text(int(state.step), "config", f"```json\n{config.to_json(indent=1)}\n```")
            board.hparams(int(state.step), flat(config.to_dict()))
            profile = Profile(board.folder, profile_steps if first_process else None)
            if preemption.told_alone and int(state.step) < config.train.steps:
                return True
            return loop(run, state, board, saved, profile, preemption)


def loop(
    run: Run,
    state: TrainState,
    board: Board,
    saved: Checkpoints,
    profile: Profile,
    preemption: Preemption,
) -> bool:
    """Steps, reports, validations and checkpoints from `state` to the last step.

    Returns:
        Whether it was told to stop before it was through; all is saved.
    """
    train, first_step = run.config.train, int(state.step)
    step_fn, step_compiled = jit_step(run), None
    if due(run, first_step) and saved.lacks_scores(first_step):  # it had not come to its end
        if not validate(run, state, board, saved, preemption):
            return True
    stream = Timed(sharding.shard_batch(rows, run.mesh) for rows in run.batches(first_step))
    progress = Progress(
        board, stream, first_step=first_step, steps=train.steps,
        log_every_steps=train.log_every_steps,
        clips_per_step=train.batch * run.task.clips_per_example,
        devices=run.mesh.size, visible=jax.process_index() == 0,
    )  # fmt: skip
    logger.info("steps %d to %d, %s", first_step, train.steps, dict(run.mesh.shape))
    with contextlib.closing(progress), contextlib.closing(profile):
        for done in range(first_step + 1, train.steps + 1):
            batch = next(stream)
            if step_compiled is None:
                with progress.paused():
                    lowered = step_fn.lower(state, batch, run.constants, run.key)
                    step_compiled = lowered.compile()
                progress.step_flops = step_flops(step_compiled, train.accumulation)
            profile.before(done)
            with jax.transfer_guard("disallow"):
                state, metrics = step_compiled(state, batch, run.constants, run.key)
            profile.after(done, metrics["loss"])
            progress.step(done, metrics)
            stops, evaluates = preemption.reached(), due(run, done)
            saves = stops or evaluates or done % train.save_every_steps == 0
            if saves:  # the numbers of all its steps are on disk before a checkpoint is
                progress.flush()
            if progress.halted or (saves and state.halted):
                raise DoorError(halted(run, state, saved))
            if saves:  # and before a validation, whatever becomes of that
                saved.save(done, state.replace(ema={}), state.ema)
                board.publish()
            if evaluates and not stops:
                with progress.paused():
                    stops = not validate(run, state, board, saved, preemption)
            if stops:
                return True
    return False


def due(run: Run, step: int) -> bool:
    """Whether there is a validation after a step."""
    return step == run.config.train.steps or step % run.config.eval.every_steps == 0


def validate(
    run: Run, state: TrainState, board: Board, saved: Checkpoints, preemption: Preemption
) -> bool:
    """Scores the EMA on the fixed mixtures, for the board and the checkpoint of that step.

    Returns:
        Whether it came to its end; if not, it was told to stop.
    """
    step, params = int(state.step), _whole(run.mesh)(state.ema)
    try:
        scores, exhibit = run.task.validate(params, run.mesh, preemption.check)
    except Preempted:
        return False
    board.scalars(step, scores)
    board.exhibit(step, "val", exhibit)
    board.publish()
    saved.add_scores(step, scores)
    logger.info("step %d: %s", step, summary(scores))
    return True


@functools.cache
def _whole(mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Parameters on every device, whole."""
    return jax.jit(lambda params: params, out_shardings=sharding.replicated(mesh))


def summary(values: dict[str, float]) -> str:
    """Numbers on one line."""
    return ", ".join(f"{name.removeprefix('val/')} {value:.2f}" for name, value in values.items())


def _main(argv: list[str]) -> None:
    _log()
    try:
        if len(argv) > 1:
            raise DoorError(f"unexpected arguments: {' '.join(argv[1:])}")
        profile_steps = _profile_steps()
        _join()
        code = main(CONFIG.value, _workdir(WORKDIR.value), profile_steps=profile_steps)
    except (DoorError, ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        logger.error("%s", error, exc_info=DEBUG.value)
        code = EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        logger.error("interrupted; run again to go on from the newest checkpoint")
        code = EXIT_CANNOT_RUN
    sys.exit(code)


def _join() -> None:
    """Finds the other processes, if any; the first one then speaks for all."""
    given = NUM_PROCESSES.value is not None or PROCESS_ID.value is not None
    if given and not (DISTRIBUTED.value or COORDINATOR.value):
        raise DoorError("--num_processes and --process_id need --coordinator_address")
    wanted = DISTRIBUTED.value
    if wanted is None:
        wanted = in_cluster(os.environ, jax.config.jax_platforms)
    if wanted or COORDINATOR.value:
        join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        _log()
        logger.info("process 0 of %d, %d devices", jax.process_count(), jax.device_count())


def _log() -> None:
    """Messages of process 0, warnings of the others."""
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    others = several and jax.process_index() > 0
    who = f"[{jax.process_index()}] " if several else ""
    logging.basicConfig(
        level=logging.WARNING if others else logging.INFO,
        format=f"%(levelname).1s {who}%(message)s", force=True,
    )  # fmt: skip
    for noisy in ("jax", "orbax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs a traceback of each error that it raises as well.
    logging.getLogger("absl").setLevel(logging.WARNING if DEBUG.value else logging.CRITICAL)


def _workdir(name: str) -> Path | epath.Path:
    """A folder, or a place in an object store."""
    scheme, found, _ = name.partition("://")
    if not found:
        return Path(name)
    if scheme not in OBJECT_STORES:
        raise DoorError(
            f"--workdir={name}: of {', '.join(OBJECT_STORES)} and local folders, none is {scheme}"
        )
    try:
        epath.Path(name).exists()
    except ImportError as error:
        raise DoorError(f"--workdir={name}: {error}") from error
    return epath.Path(name)


def _profile_steps() -> tuple[int, int] | None:
    try:
        return parse_steps(PROFILE_STEPS.value) if PROFILE_STEPS.value else None
    except ValueError as error:
        raise DoorError(f"--profile_steps: {error}") from error


def _parse(argv: list[str]) -> list[str]:
    """The flags, with config; what is wrong with them is a message."""
    if "--help" in argv:  # absl's own looks for the flags of a console script in that script
        print(__doc__, flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("workdir")))
        sys.exit(EXIT_DONE)
    if "--version" in argv:
        print(VERSION)
        sys.exit(EXIT_DONE)
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config is any Python
        print(f"{type(error).__name__}: {error}\nSee --help.", file=sys.stderr)
        sys.exit(EXIT_CANNOT_RUN)


def cli() -> None:
    """Entry point of `opensep-train`."""
    sys.path.insert(0, os.getcwd())  # config files import `configs`; a console script has no cwd
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
