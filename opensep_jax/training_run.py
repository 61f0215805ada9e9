"""What a training run is made of: mesh, task, optimiser, state, and the step that is compiled."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np
import optax

from opensep_jax import sharding
from opensep_jax.checkpoint import shipped
from opensep_jax.checkpoint.state import Checkpoints
from opensep_jax.cli import DoorError
from opensep_jax.run_config import check_numbers
from opensep_jax.tasks import build_task, describe
from opensep_jax.training.guard import explain
from opensep_jax.training.optim import make_optimizer, make_schedule
from opensep_jax.training.step import TrainState, init_state, train_step
from opensep_jax.training.task import Task

logger = logging.getLogger("opensep_jax")


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
    task: Task
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


def start(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None) -> Run:
    """Mesh, task, optimiser and layout of the state; what no step changes is on the devices."""
    run = design(config, devices)
    whole = sharding.replicated(run.mesh)
    return dataclasses.replace(
        run,
        constants=sharding.place(run.task.constants(), whole),
        key=jax.jit(jax.random.key, out_shardings=whole)(config.seed),
    )


def design(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None) -> Run:
    """A run of shapes: nothing is put on the devices, which may be described and not there."""
    check_numbers(config)
    task = build_task(config)
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


def halted(run: Run, state: TrainState, saved: Checkpoints) -> str:
    """Why a run has stopped, with what is not finite in the batch that stopped it."""
    batch = sharding.shard_batch(next(run.batches(int(state.step))), run.mesh)
    why = explain(
        state, batch, run.constants, run.key,
        loss_fn=run.loss, accumulation=run.config.train.accumulation,
    )  # fmt: skip
    newest = f"its newest checkpoint is of step {saved.steps[-1]}" if saved.steps else "none saved"
    return f"{why}. The run stops; {newest}"
