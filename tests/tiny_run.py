"""Runs of `configs/debug.py` on a tiny data set, and what tests ask of them."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from configs import debug
from opensep_jax import sharding, training_run
from opensep_jax.training.step import TrainState, init_state

STEPS = 20


def tiny_config(folder: Path, **changes: object) -> ConfigDict:
    """The debug config on a folder of records, with a small validation at the last step only.

    Args:
        folder: made by `prepare`.
        changes: by dotted name, with `__` for the dot.
    """
    config = debug.get_config()
    settings = {
        "data.folder": str(folder),
        "data.threads": 1,
        "train.steps": STEPS,
        "train.save_every_steps": STEPS // 2,
        "eval.every_steps": 10 * STEPS,
        "eval.sources": (2,),
        "eval.mixtures": 3,
        "eval.seconds": 0.25,
    }
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(settings)
    return config


def start(folder: Path, data: int = 1, fsdp: int = 1, **changes: object) -> training_run.Run:
    """A run on the first `data * fsdp` devices; parameters of 64 elements or more are split."""
    config = tiny_config(
        folder, mesh__data=data, mesh__fsdp=fsdp, mesh__fsdp_min_size=64, **changes
    )
    return training_run.start(config, jax.devices()[: data * fsdp])


@functools.cache
def params_of(folder: Path) -> dict:
    """Initial parameters, numpy arrays."""
    task = start(folder).task
    return jax.device_get(jax.jit(task.init)(jax.random.key(0)))


def first_state(run: training_run.Run, folder: Path) -> TrainState:
    """State before the first step, on the devices of the run."""
    state = jax.device_get(init_state(params_of(folder), run.tx))
    return jax.device_put(state, run.layout)


@functools.cache
def stepper(folder: Path, data: int = 1, fsdp: int = 1, **changes: object) -> tuple:
    """A run and its jitted step, one for all tests."""
    run = start(folder, data, fsdp, **changes)
    return run, training_run.jit_step(run)


def steps(folder: Path, count: int, data: int = 1, fsdp: int = 1, **changes: object) -> tuple:
    """Losses of the first steps, and the state after them."""
    run, step_fn = stepper(folder, data, fsdp, **changes)
    state, losses = first_state(run, folder), []
    for _, batch in zip(range(count), run.batches(0), strict=False):
        batch = sharding.shard_batch(batch, run.mesh)
        state, metrics = step_fn(state, batch, run.constants, run.key)
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), state


@contextmanager
def count_compilations(name: str) -> Iterator[list[str]]:
    """Fills a list with `trace` and `compile` as functions of that name are traced and compiled."""
    events: list[str] = []

    def listen(event: str, seconds: float, **details: object) -> None:
        if details.get("fun_name") == name and event.endswith("jaxpr_trace_duration"):
            events.append("trace")
        if details.get("fun_name") == f"jit({name})" and "backend_compile_duration" in event:
            events.append("compile")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def read_metrics(workdir: Path, name: str = "loss") -> list[tuple[int, float]]:
    """Steps and values of a metric, in the order of the lines."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def read_state(workdir: Path, step: int) -> dict:
    """All arrays of a checkpoint by their path."""
    device, flat = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}

    def on_device(x: object) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    for item in ("state", "ema"):
        folder = epath.Path(workdir) / "checkpoints" / str(step) / item
        handler = ocp.StandardCheckpointHandler()
        target = jax.tree.map(on_device, handler.metadata(folder).tree)
        tree = handler.restore(folder, args=ocp.args.StandardRestore(target))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            flat[f"{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return flat


def assert_same_arrays(got: dict, expected: dict) -> None:
    """Equal to the last bit."""
    assert got.keys() == expected.keys() and len(got) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
