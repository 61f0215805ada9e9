"""A captioner small enough for offline tests: its runs, and an export of random weights."""

import json
from pathlib import Path

import jax
import numpy as np

from opensep_jax import training_run
from opensep_jax.checkpoint import shipped
from opensep_jax.tasks import describe
from opensep_jax.training.step import TrainState, init_state
from tests import tiny_run

CHANGES = {
    "task": "captioner",
    "captioner__size": "debug",
    "captioner__mel__n_fft_samples": 512,
    "captioner__mel__hop_samples": 256,
    "captioner__augment__echo_s": 0.005,
    "data__crop_s": 0.25,
    "window_s": 0.25,
    "mix__speed": 0.1,
    "mix__eq_db": 2.0,
    "eval__sources": (1, 2),
    "eval__batch": 4,
}


def start(folder: Path, data: int = 1, fsdp: int = 1, **changes: object) -> training_run.Run:
    """A run on the first `data * fsdp` devices."""
    return tiny_run.start(folder, data, fsdp, **CHANGES, **changes)


def first_state(run: training_run.Run) -> TrainState:
    """State before the first step, on the devices of the run."""
    state = jax.device_get(init_state(_params(run), run.tx))
    return jax.device_put(state, run.layout)


def write_checkpoint(run: training_run.Run, folder: Path) -> Path:
    """Writes an export of random weights, as of step 7."""
    description = json.loads(json.dumps(describe(run.config, run.task)))
    shipped.export(folder, _params(run), description | {"steps": 7})
    return folder


def _params(run: training_run.Run) -> dict:
    """Random parameters, livelier than the initial ones; the same for all runs."""
    shapes = jax.eval_shape(run.task.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.2 * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
