"""Trains what the config asks for, on whatever devices there are; resumes where a run stopped.

    python -m opensep_jax.train --config configs/demo.py --workdir runs/demo [--config.a.b=value]

Several processes: give `--coordinator_address host:port --num_processes N --process_id I` (found
by themselves on TPU pods and under SLURM with `--distributed`).
"""

import functools
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from opensep_jax import sharding
from opensep_jax.checkpoint.state import CheckpointError, Checkpoints, load_params, write_config
from opensep_jax.cli import EXIT_CANNOT_RUN, DoorError
from opensep_jax.separator import build_separator
from opensep_jax.training.board import Board
from opensep_jax.training.optim import make_optimizer, make_schedule
from opensep_jax.training.step import TrainState, init_state, train_step
from opensep_jax.training.tasks import SeparatorTask, build_separator_task

logger = logging.getLogger("opensep_jax")

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/*.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, events and metrics.jsonl.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Find the other processes automatically.")
DEBUG = flags.DEFINE_bool("debug", False, "Tracebacks with errors.")


def build_task(config: ml_collections.ConfigDict) -> SeparatorTask:
    """The task that the config names."""
    if config.task != "separator":
        raise DoorError(f"config.task={config.task!r} is not known; known is: separator")
    if not config.data.folder:
        raise DoorError("config.data.folder is empty: give --config.data.folder=PREPARED")
    net = build_separator(
        **config.model.to_dict(), **config.stft.to_dict(), sample_rate_hz=config.sample_rate_hz
    )
    data = {k: v for k, v in config.data.to_dict().items() if k not in ("workers", "threads")}
    validation = {k: v for k, v in config.eval.to_dict().items() if k != "every_steps"}
    return build_separator_task(
        net, **data, seed=config.seed, mix_settings=config.mix.to_dict(),
        loss_weights=config.loss.to_dict(), validation=validation,
    )  # fmt: skip


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """One run, from whatever it has reached to `config.train.steps`."""
    # Mesh, data, network
    mesh = sharding.make_mesh(**{axis: config.mesh[axis] for axis in sharding.AXES})
    sharding.check_batch(mesh, config.train.batch)
    task = build_task(config)
    optim = config.optim.to_dict()
    ema_decay = optim.pop("ema_decay")
    schedule = make_schedule(
        peak=optim.pop("learning_rate"), warmup_steps=optim.pop("warmup_steps"),
        total_steps=config.train.steps, final_fraction=optim.pop("final_fraction"),
    )  # fmt: skip
    tx = make_optimizer(schedule, **optim)

    # State: newest checkpoint of the workdir, else parameters of init_from, else random
    write_config(workdir, json.loads(config.to_json()))
    saved = Checkpoints(
        workdir, run_description(config, task), config.train.keep_checkpoints, "val/si_sdri"
    )
    state, layout = make_state(task, tx, mesh, config, saved)
    first_step = int(state.step)
    constants = jax.device_put(task.constants(), sharding.replicated(mesh))
    key = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))

    # Step
    step_fn = jax.jit(
        functools.partial(
            train_step, loss_fn=task.loss, tx=tx, ema_decay=ema_decay,
            accumulation=config.train.accumulation,
        ),
        in_shardings=(layout, sharding.batch_sharding(mesh), None, None),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )  # fmt: skip

    # Loop
    board = Board(workdir, active=jax.process_index() == 0)
    stream = Timed(
        task.batches(
            steps=config.train.steps, global_batch=config.train.batch, first_step=first_step,
            process=jax.process_index(), processes=jax.process_count(),
            workers=config.data.workers, threads=config.data.threads,
        )
    )  # fmt: skip
    logger.info("steps %d to %d, %s", first_step, config.train.steps, dict(mesh.shape))
    progress = tqdm(
        total=config.train.steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True
    )
    pending, since = None, time.monotonic()
    for step in range(first_step, config.train.steps):
        batch = sharding.shard_batch(next(stream), mesh)
        with jax.transfer_guard("disallow"):
            state, metrics = step_fn(state, batch, constants, key)
        done = step + 1
        progress.update()
        if done % config.train.log_every_steps == 0 or done == config.train.steps:
            # The numbers of the logging step before: they are ready, nothing waits for them.
            if pending:
                report(board, progress, *pending)
            now = time.monotonic()
            speed = {
                "learning_rate": float(schedule(step)),
                "steps_per_s": config.train.log_every_steps / (now - since),
                "data_wait_s": stream.pop_wait() / config.train.log_every_steps,
            }
            pending, since = (done, metrics, speed), now
        scores = None
        if done % config.eval.every_steps == 0 or done == config.train.steps:
            paused = time.monotonic()
            scores = task.validate(state.ema)
            board.scalars(done, scores)
            logger.info("step %d: %s", done, summary(scores))
            since += time.monotonic() - paused
        if scores or done % config.train.save_every_steps == 0 or done == config.train.steps:
            saved.save(done, state.replace(ema={}), state.ema, scores)
    if pending:
        report(board, progress, *pending)
    saved.close()
    board.close()
    progress.close()


def make_state(
    task: SeparatorTask,
    tx: object,
    mesh: jax.sharding.Mesh,
    config: ml_collections.ConfigDict,
    saved: Checkpoints,
) -> tuple[TrainState, TrainState]:
    """State on the mesh and its shardings."""

    def init(key: jax.Array) -> TrainState:
        return init_state(task.init(key), tx)

    abstract = jax.eval_shape(init, jax.random.key(config.seed))
    layout = sharding.param_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout
    )
    if saved.latest is not None:
        logger.info("resuming at step %d", saved.latest)
        state, ema = saved.restore(saved.latest, target.replace(ema={}), target.ema)
        return state.replace(ema=ema), layout
    if config.train.init_from:
        _, params = load_params(Path(config.train.init_from))
        params = jax.device_put(params, layout.params)
        start = jax.jit(functools.partial(init_state, tx=tx), out_shardings=layout)
        return start(params), layout
    return jax.jit(init, out_shardings=layout)(jax.random.key(config.seed)), layout


class Timed:
    """An iterator that knows how long its user has waited for it."""

    def __init__(self, source: Iterator):
        """Wraps an iterator."""
        self._source, self._waited = source, 0.0

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.monotonic()
        item = next(self._source)
        self._waited += time.monotonic() - start
        return item

    def pop_wait(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


def run_description(config: ml_collections.ConfigDict, task: SeparatorTask) -> dict:
    """What a checkpoint says of itself: all that is needed to use it, and the whole config."""
    return {
        "schema": 1,
        "task": config.task,
        "model": {"size": config.model.size, "dtype": config.model.dtype},
        "stft": config.stft.to_dict(),
        "sample_rate_hz": config.sample_rate_hz,
        "text_encoder": task.train.info["text_encoder"],
        "window_s": config.eval.seconds,
        "config": json.loads(config.to_json()),
    }


def report(board: Board, progress: tqdm, step: int, metrics: dict, speed: dict) -> None:
    """Fetches and writes the numbers of a step; stops the run if they are not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    board.scalars(step, values | speed)
    progress.set_postfix(loss=f"{values['loss']:.3f}")
    wrong = [name for name, value in values.items() if not np.isfinite(value)]
    if wrong:
        raise DoorError(f"step {step}: {', '.join(wrong)} not finite; the run stops")


def summary(values: dict[str, float]) -> str:
    """Numbers on one line."""
    return ", ".join(f"{name.removeprefix('val/')} {value:.2f}" for name, value in values.items())


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if DISTRIBUTED.value or COORDINATOR.value:
            jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        main(CONFIG.value, Path(WORKDIR.value))
    except (DoorError, CheckpointError, ValueError, OSError) as error:
        logger.error("%s", error, exc_info=DEBUG.value)
        sys.exit(EXIT_CANNOT_RUN)


def cli() -> None:
    """Entry point of `opensep-train`."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_main)


if __name__ == "__main__":
    cli()
