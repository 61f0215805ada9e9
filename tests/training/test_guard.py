"""A halted run is explained by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opensep_jax.training.guard import explain, nonfinite_leaves
from opensep_jax.training.step import init_state


def test_nonfinite_leaves():
    tree = {
        "a": {"kernel": jnp.array([1.0, jnp.nan]), "bias": jnp.zeros(2)},
        "b": [jnp.array(jnp.inf), jnp.array([3], jnp.int32), jnp.ones(2, jnp.bfloat16)],
        "empty": {},
        "key": jax.random.key(0),
    }
    assert nonfinite_leaves(tree) == ["a/kernel", "b/0"]


def _loss(params: dict, batch: dict, constants: dict, key: jax.Array) -> tuple:
    used = batch["x"] * params["used"]["kernel"] + constants["offset"]
    error = jnp.mean(used**2)
    return error + jnp.sum(params["other"] ** 2), {"error": (error, jnp.ones(()))}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_explain_names_what_is_not_finite(accumulation: int):
    params = {"used": {"kernel": jnp.ones(())}, "other": jnp.ones(3)}
    state = init_state(params, optax.sgd(0.1)).replace(step=jnp.int32(6), halted=jnp.array(True))
    batch = {"x": np.array([1.0, 2.0, np.nan, 4.0], np.float32)}
    message = explain(
        state, batch, {"offset": jnp.zeros(())}, jax.random.key(0),
        loss_fn=_loss, accumulation=accumulation,
    )  # fmt: skip
    assert message.startswith("step 7 is not finite (batch: x; metrics: ")
    assert "error" in message and "loss" in message
    assert "gradients: used/kernel)" in message
    assert message.endswith("Finite are parameters, optimiser, constants")


def test_explain_shortens_long_lists():
    params = {f"p{i}": jnp.ones(()) for i in range(20)}

    def loss(params: dict, batch: dict, constants: dict, key: jax.Array) -> tuple:
        return jnp.nan * sum(params.values()), {}

    state = init_state(params, optax.sgd(0.1))
    message = explain(state, {}, {}, jax.random.key(0), loss_fn=loss, accumulation=1)
    assert "and 12 more" in message and "p0" in message
