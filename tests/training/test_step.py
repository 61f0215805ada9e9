"""The training step on a problem small enough to work out by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from opensep_jax import sharding
from opensep_jax.training.step import TrainState, init_state, train_step

RATE, DECAY = 0.1, 0.8


def _loss(params: dict, batch: dict, constants: dict, key: jax.Array) -> tuple:
    """Least squares; a metric over some of the rows only."""
    error_B = batch["x"] @ params["kernel"] + constants["offset"] - batch["y"]
    few_B = batch["few"].astype(jnp.float32)
    metrics = {
        "few": (jnp.sum(few_B * error_B), jnp.sum(few_B)),
        "none": (jnp.zeros(()), jnp.zeros(())),
    }
    return jnp.mean(error_B**2), metrics


def _batch(rows: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 4)).astype(np.float32),
        "y": rng.normal(size=rows).astype(np.float32),
        "few": np.arange(rows) < 3,
    }


CONSTANTS = {"offset": jnp.float32(0.5)}


def _step(accumulation: int = 1, tx: optax.GradientTransformation | None = None, loss=_loss):
    return functools.partial(
        train_step, loss_fn=loss, tx=tx or optax.sgd(RATE), ema_decay=DECAY,
        schedule=optax.linear_schedule(1.0, 0.0, 10), accumulation=accumulation,
    )  # fmt: skip


def _state(tx: optax.GradientTransformation | None = None) -> TrainState:
    return init_state({"kernel": jnp.arange(1.0, 5.0)}, tx or optax.sgd(RATE))


def test_an_update_by_hand():
    batch, kernel = _batch(), np.arange(1.0, 5.0)
    state, metrics = _step()(_state(), batch, CONSTANTS, jax.random.key(0))
    error = batch["x"] @ kernel + 0.5 - batch["y"]
    gradient = 2 * batch["x"].T @ error / len(error)
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["few"], error[:3].mean(), rtol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], kernel - RATE * gradient, rtol=1e-5)
    norm = np.linalg.norm(kernel - RATE * gradient)
    np.testing.assert_allclose(metrics["optim/parameter_norm"], norm, rtol=1e-5)
    assert math.isnan(metrics["none"])
    assert (metrics["optim/learning_rate"], state.step, bool(metrics["halted"])) == (1.0, 1, False)


def test_moving_average():
    state, batch, step_fn = _state(), _batch(), jax.jit(_step())
    expected = np.arange(1.0, 5.0)
    for step in range(60):
        state, _ = step_fn(state, batch, CONSTANTS, jax.random.key(0))
        decay = min(DECAY, (1 + step) / (10 + step))  # slow only after some steps
        expected = decay * expected + (1 - decay) * np.asarray(state.params["kernel"], float)
        np.testing.assert_allclose(state.ema["kernel"], expected, rtol=1e-5)
    assert decay == DECAY


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("mesh_sizes", [(1, 1), (8, 1), (2, 2)])
def test_accumulation_changes_nothing(accumulation: int, mesh_sizes: tuple[int, int]):
    data, fsdp = mesh_sizes
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=1, devices=jax.devices()[: data * fsdp])
    tx, batch = optax.adam(RATE), _batch(32)
    expected, expected_metrics = _step(tx=tx)(_state(tx), batch, CONSTANTS, jax.random.key(0))
    layout = sharding.param_sharding(_state(tx), mesh, min_size=2)
    if fsdp > 1:
        assert layout.params["kernel"].spec == PartitionSpec("fsdp")
    step = jax.jit(
        _step(accumulation, tx),
        in_shardings=(layout, sharding.batch_sharding(mesh), None, None),
        out_shardings=(layout, None),
    )
    state, metrics = step(
        jax.device_put(_state(tx), layout), sharding.shard_batch(batch, mesh), CONSTANTS,
        jax.random.key(0),
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_key_is_folded_by_the_step():
    def noise(params: dict, batch: dict, constants: dict, key: jax.Array) -> tuple:
        return jax.random.normal(key) + 0 * params["kernel"].sum(), {}

    state, key, losses = _state(), jax.random.key(3), []
    for _ in range(3):
        state, metrics = _step(loss=noise)(state, {}, {}, key)
        losses.append(metrics["loss"])
    expected = [jax.random.normal(jax.random.fold_in(key, step)) for step in range(3)]
    np.testing.assert_array_equal(losses, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # the last overflows in the gradient
def test_a_step_that_is_not_finite_changes_nothing(bad: float):
    tx = optax.adam(RATE)
    step = jax.jit(_step(tx=tx))
    before, _ = step(_state(tx), _batch(), CONSTANTS, jax.random.key(0))
    broken = _batch(seed=1)
    broken["x"][5, 2] = bad
    after, metrics = step(before, broken, CONSTANTS, jax.random.key(0))
    assert bool(metrics["halted"]) and bool(after.halted)
    assert int(after.step) == 1
    # A good batch does not move it either: the host has yet to notice.
    later, metrics = step(after, _batch(seed=2), CONSTANTS, jax.random.key(0))
    assert bool(metrics["halted"])
    for state in (after, later):
        kept = state.replace(halted=before.halted)
        jax.tree.map(np.testing.assert_array_equal, kept, before)


def test_an_update_that_overflows_changes_nothing():
    state, metrics = _step(tx=optax.sgd(1e38))(_state(), _batch(), CONSTANTS, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["optim/gradient_norm"])
    assert bool(metrics["halted"])
    np.testing.assert_array_equal(state.params["kernel"], np.arange(1.0, 5.0))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_measured_parameters_are_replaced_and_averaged(accumulation: int):
    """A statistic is the mean over a batch's parts; no update and no metric of it is left."""

    def loss(params: dict, batch: dict, constants: dict, key: jax.Array) -> tuple:
        total, metrics = _loss(params, batch, constants, key)
        return total, metrics | {"measured/norm/mean": (jnp.mean(batch["y"]), jnp.ones(()))}

    params = {"kernel": jnp.arange(1.0, 5.0), "norm": {"mean": jnp.zeros(())}}
    batch = _batch()
    state, metrics = _step(accumulation, loss=loss)(
        init_state(params, optax.sgd(RATE)), batch, CONSTANTS, jax.random.key(0)
    )
    expected, _ = _step()(_state(), batch, CONSTANTS, jax.random.key(0))
    np.testing.assert_allclose(state.params["kernel"], expected.params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(state.params["norm"]["mean"], batch["y"].mean(), rtol=1e-5)
    np.testing.assert_allclose(state.ema["norm"]["mean"], 0.9 * batch["y"].mean(), rtol=1e-5)
    assert not [name for name in metrics if "norm/mean" in name]
