"""Trains what the config asks for, on whatever devices there are; resumes where a run stopped.

    python -m opensep_jax.train --config configs/demo.py --workdir runs/demo [--config.a.b=value]

Several processes: give `--coordinator_address host:port --num_processes N --process_id I` (found
by themselves on TPU pods and under SLURM with `--distributed`).
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from opensep_jax import sharding
from opensep_jax.checkpoint import shipped
from opensep_jax.checkpoint.state import Checkpoints, read_config, write_config
from opensep_jax.cli import EXIT_CANNOT_RUN, EXIT_DONE, DoorError
from opensep_jax.tasks import UNREAD, build_task, describe
from opensep_jax.training.board import Board
from opensep_jax.training.guard import explain
from opensep_jax.training.optim import make_optimizer, make_schedule
from opensep_jax.training.progress import Progress, Timed
from opensep_jax.training.separator_task import SeparatorTask
from opensep_jax.training.step import TrainState, init_state, train_step

logger = logging.getLogger("opensep_jax")

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/*.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, events and metrics.jsonl.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Find the other processes automatically.")
DEBUG = flags.DEFINE_bool("debug", False, "Tracebacks with errors.")

# What a run may be resumed with another value of: it changes when things happen and on what, not
# what is learned. (More steps stretch the schedule.) The records are compared by their content.
FREE_KEYS = (
    "data.folder", "data.threads", "data.workers",
    "eval.batch", "eval.every_steps", "eval.level_db", "eval.mixtures", "eval.panels",
    "eval.seconds", "eval.seed", "eval.sources", "eval.wording",
    "mesh.data", "mesh.fsdp", "mesh.fsdp_min_size", "mesh.tensor", "model.remat",
    "train.accumulation", "train.keep_checkpoints", "train.log_every_steps",
    "train.save_every_steps", "train.steps",
)  # fmt: skip


POSITIVE_KEYS = (
    "window_s", "data.crop_s", "data.max_names", "data.text_tokens", "data.threads",
    "eval.batch", "eval.every_steps", "eval.mixtures", "eval.seconds",
    "train.accumulation", "train.batch", "train.keep_checkpoints",
    "train.log_every_steps", "train.save_every_steps", "train.steps",
)  # fmt: skip
# Sections of numbers that are not negative, and not all of them zero.
WEIGHT_KEYS = ("captioner.counts", "data.wordings", "loss", "mix.counts")


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a process to its last.

    Attributes:
        config: all settings.
        task: what is learned.
        mesh: devices.
        layout: sharding of every array of the state.
        tx: optimiser.
        schedule: its learning rate by step.
        constants: arrays on the devices that no step changes; their shapes before `start`.
        key: of all randomness on the devices; likewise.
    """

    config: ml_collections.ConfigDict
    task: SeparatorTask
    mesh: jax.sharding.Mesh
    layout: TrainState
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    constants: dict[str, jax.Array]
    key: jax.Array

    def batches(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches from `first_step` on."""
        return self.task.batches(
            steps=self.config.train.steps, global_batch=self.config.train.batch,
            first_step=first_step, process=jax.process_index(), processes=jax.process_count(),
            workers=self.config.data.workers, threads=self.config.data.threads,
        )  # fmt: skip

    def loss(self, params: dict, *rest: object) -> tuple:
        """Loss of the task with parameters as the mesh keeps them."""
        return self.task.loss(sharding.gather(params, self.layout.params), *rest)


def main(
    config: ml_collections.ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None
) -> None:
    """One run, from whatever it has reached to `config.train.steps`.

    Args:
        config: all settings.
        workdir: of the run.
        devices: to run on; all by default.
    """
    first_process = jax.process_index() == 0
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
            board.hparams(int(state.step), _flat(config.to_dict()))
            loop(run, state, board, saved)


def start(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None) -> Run:
    """Mesh, task, optimiser and layout of the state; what no step changes is on the devices."""
    run = design(config, build_task(config), devices)
    whole = sharding.replicated(run.mesh)
    return dataclasses.replace(
        run,
        constants=sharding.place(run.task.constants(), whole),
        key=jax.jit(jax.random.key, out_shardings=whole)(config.seed),
    )


def design(
    config: ml_collections.ConfigDict, task: SeparatorTask, devices: Sequence[jax.Device] | None
) -> Run:
    """A run of shapes: nothing is put on the devices, which may be described and not there."""
    check_numbers(config)
    mesh = sharding.make_mesh(
        **{axis: config.mesh[axis] for axis in sharding.AXES}, devices=devices
    )
    sharding.check_batch(mesh, config.train.batch, config.train.accumulation)
    optim = config.optim.to_dict()
    schedule = make_schedule(
        peak=optim.pop("learning_rate"), warmup_steps=optim.pop("warmup_steps"),
        total_steps=config.train.steps, final_fraction=optim.pop("final_fraction"),
    )  # fmt: skip
    del optim["ema_decay"]
    tx = make_optimizer(schedule, **optim)
    whole = sharding.replicated(mesh)
    key = jax.eval_shape(jax.random.key, config.seed)
    state = jax.eval_shape(lambda key: init_state(task.init(key), tx), key)
    return Run(
        config=config, task=task, mesh=mesh, tx=tx, schedule=schedule,
        layout=sharding.param_sharding(state, mesh, config.mesh.fsdp_min_size),
        constants=sharding.shapes(task.constants(), whole), key=sharding.shapes(key, whole),
    )  # fmt: skip


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises if a number lies where it means nothing."""
    values = _flat(config.to_dict())
    wrong = [f"config.{key}={values[key]}" for key in POSITIVE_KEYS if values[key] <= 0]
    if wrong:
        raise DoorError(f"{', '.join(wrong)} must be positive")
    for section in WEIGHT_KEYS:
        weights = {k: v for k, v in values.items() if k.startswith(f"{section}.")}
        if min(weights.values()) < 0 or not any(weights.values()):
            shown = ", ".join(f"config.{key}={value}" for key, value in weights.items())
            raise DoorError(f"{shown}: none may be negative, and one must be more than zero")
    if config.mesh.tensor > 1:
        raise DoorError(
            f"config.mesh.tensor={config.mesh.tensor}: no network that is trained has anything to "
            "split over this axis; use mesh.data or mesh.fsdp"
        )


def first_state(run: Run, saved: Checkpoints) -> TrainState:
    """State to go on with: newest checkpoint, else parameters of `init_from`, else random."""
    config = run.config

    def init(key: jax.Array) -> TrainState:
        return init_state(run.task.init(key), run.tx)

    target = sharding.shapes(jax.eval_shape(init, run.key), run.layout)
    restored = saved.restore_newest(target.replace(ema={}), target.ema)
    if restored is not None:
        step, state, ema = restored
        logger.info("resuming at step %d", step)
        return state.replace(ema=ema)
    if config.train.init_from:
        params = sharding.place(read_params(run, target.params), run.layout.params)
        begin = functools.partial(init_state, tx=run.tx)
        return jax.jit(begin, out_shardings=run.layout)(params)
    return jax.jit(init, out_shardings=run.layout)(run.key)


def read_params(run: Run, shapes: dict) -> dict:
    """Parameters of `config.train.init_from` on the host, strictly of these shapes."""
    name = run.config.train.init_from
    config, params = shipped.load(name, lambda config: shapes, run.config.task)
    before, now = (
        {"text encoder": of.get("text_encoder", {}).get("id"), "clauses": of.get("clauses")}
        for of in (config, describe(run.config, run.task))
    )
    for what, value in now.items():
        if before[what] != value:
            raise DoorError(
                f"config.train.init_from={name}: trained with the {what} {before[what]}, but the "
                f"records of config.data.folder have {value}"
            )
    return params


def jit_step(run: Run) -> jax.stages.Wrapped:
    """The step, to be compiled once: (state, batch, constants, key) -> (state, metrics)."""
    step = functools.partial(
        train_step, loss_fn=run.loss, tx=run.tx, schedule=run.schedule,
        ema_decay=run.config.optim.ema_decay, accumulation=run.config.train.accumulation,
    )  # fmt: skip
    whole = sharding.replicated(run.mesh)
    return jax.jit(
        step,
        in_shardings=(run.layout, sharding.batch_sharding(run.mesh), whole, whole),
        out_shardings=(run.layout, whole),
        donate_argnums=0,
    )


def loop(run: Run, state: TrainState, board: Board, saved: Checkpoints) -> None:
    """Steps, reports, validations and checkpoints from `state` to the last step."""
    train, evaluation, first_step = run.config.train, run.config.eval, int(state.step)
    step_fn = jit_step(run)
    whole = jax.jit(lambda params: params, out_shardings=sharding.replicated(run.mesh))
    stream = Timed(run.batches(first_step))
    progress = Progress(
        board, stream, first_step=first_step, steps=train.steps,
        log_every_steps=train.log_every_steps,
        clips_per_step=train.batch * run.task.clips_per_example,
        visible=jax.process_index() == 0,
    )  # fmt: skip
    logger.info("steps %d to %d, %s", first_step, train.steps, dict(run.mesh.shape))
    with contextlib.closing(progress):
        for done in range(first_step + 1, train.steps + 1):
            batch = sharding.shard_batch(next(stream), run.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch, run.constants, run.key)
            progress.step(done, metrics)
            evaluates = done % evaluation.every_steps == 0 or done == train.steps
            saves = evaluates or done % train.save_every_steps == 0
            if saves:  # the numbers of all its steps are on disk before a checkpoint is
                progress.flush()
            if progress.halted or (saves and state.halted):
                raise DoorError(halted(run, state, saved))
            scores = {}
            if evaluates:
                with progress.paused():
                    scores, exhibit = run.task.validate(whole(state.ema), run.mesh)
                    board.scalars(done, scores)
                    board.exhibit(done, "val", exhibit)
                logger.info("step %d: %s", done, summary(scores))
            if saves:
                saved.save(done, state.replace(ema={}), state.ema, scores)


def halted(run: Run, state: TrainState, saved: Checkpoints) -> str:
    """Why a run has stopped, with what is not finite in the batch that stopped it."""
    batch = sharding.shard_batch(next(run.batches(int(state.step))), run.mesh)
    why = explain(
        state, batch, run.constants, run.key,
        loss_fn=run.loss, accumulation=run.config.train.accumulation,
    )  # fmt: skip
    newest = f"its newest checkpoint is of step {saved.steps[-1]}" if saved.steps else "none saved"
    return f"{why}. The run stops; {newest}"


def refuse_other_config(workdir: Path, description: dict) -> None:
    """Raises if the workdir holds a run that learns something else."""
    stored = read_config(workdir)
    if stored is None:
        return
    before, now = (
        {
            **_flat(of.get("config", {})),
            "text_encoder.id": of.get("text_encoder", {}).get("id"),
            **_flat({k: of.get(k) for k in ("records", "clauses")}),
        }
        for of in (stored, description)
    )
    unread = tuple(f"{section}." for section in UNREAD[description["task"]])
    wrong = [
        f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
        for key in sorted(before.keys() | now.keys())
        if key not in FREE_KEYS and not key.startswith(unread) and before.get(key) != now.get(key)
    ]
    if wrong:
        raise DoorError(
            f"{workdir} holds a run of another config ({'; '.join(wrong)}); use another --workdir"
        )


def _flat(tree: object, prefix: str = "") -> dict:
    """Leaves of nested dicts by their dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    items = (_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in tree.items())
    return {name: leaf for item in items for name, leaf in item.items()}


def summary(values: dict[str, float]) -> str:
    """Numbers on one line."""
    return ", ".join(f"{name.removeprefix('val/')} {value:.2f}" for name, value in values.items())


def _main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", force=True)
    for noisy in ("jax", "orbax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs a traceback of each error that it raises as well.
    logging.getLogger("absl").setLevel(logging.WARNING if DEBUG.value else logging.CRITICAL)
    try:
        if len(argv) > 1:
            raise DoorError(f"unexpected arguments: {' '.join(argv[1:])}")
        given = NUM_PROCESSES.value is not None or PROCESS_ID.value is not None
        if given and not (DISTRIBUTED.value or COORDINATOR.value):
            raise DoorError("--num_processes and --process_id need --coordinator_address")
        if DISTRIBUTED.value or COORDINATOR.value:
            jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        main(CONFIG.value, Path(WORKDIR.value))
    except (DoorError, ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        logger.error("%s", error, exc_info=DEBUG.value)
        sys.exit(EXIT_CANNOT_RUN)
    except KeyboardInterrupt:
        logger.error("interrupted; run again to go on from the newest checkpoint")
        sys.exit(EXIT_CANNOT_RUN)


def _parse(argv: list[str]) -> list[str]:
    """The flags, with config; what is wrong with them is a message."""
    if "--help" in argv:  # absl's own looks for the flags of a console script in that script
        print(__doc__, flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("workdir")))
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
