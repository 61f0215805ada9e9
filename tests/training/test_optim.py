"""Schedule and optimiser by their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opensep_jax.separator import abstract_params, build_separator
from opensep_jax.training.optim import decays, make_optimizer, make_schedule

SCHEDULE = {"peak": 2e-3, "warmup_steps": 10, "total_steps": 110, "final_fraction": 0.1}


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, 0.0),
        (5, 1e-3),
        (10, 2e-3),  # warm-up ends
        (60, 2e-3 * (0.1 + 0.9 * 0.5)),  # middle of the cosine
        (110, 2e-4),
        (1000, 2e-4),
    ],
)
def test_schedule(step: int, rate: float):
    np.testing.assert_allclose(make_schedule(**SCHEDULE)(step), rate, rtol=1e-5, atol=1e-12)


def test_schedule_without_warm_up_starts_at_its_peak():
    schedule = make_schedule(**(SCHEDULE | {"warmup_steps": 0}))
    np.testing.assert_allclose(schedule(0), 2e-3, rtol=1e-6)


def test_warm_up_must_end_before_the_run():
    with pytest.raises(ValueError, match="optim.warmup_steps=110 .* train.steps=110"):
        make_schedule(**(SCHEDULE | {"warmup_steps": 110}))


def _optimizer(**changes: float) -> optax.GradientTransformation:
    settings = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.1, "clip_norm": 1.0}
    return make_optimizer(optax.constant_schedule(0.01), **(settings | changes))


def test_only_kernels_decay():
    params = {
        "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "query": {"kernel": jnp.ones((2, 2, 3)), "bias": jnp.ones((2, 3))},
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "position": jnp.ones((4, 1, 3)),
    }
    tx = _optimizer()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    expected = jax.tree.map(jnp.zeros_like, params)
    for name in ("dense", "query"):  # rate times decay times the parameter
        expected[name]["kernel"] = jnp.full_like(params[name]["kernel"], -0.01 * 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_what_decays_in_the_network():
    net = build_separator(
        size="debug", dtype="float32", remat=False, n_fft_samples=128, hop_samples=64,
        sample_rate_hz=16000,
    )  # fmt: skip
    flat = jax.tree_util.tree_leaves_with_path(decays(abstract_params(net, text_width=16)))
    names = {(path[-1].key, decay) for path, decay in flat}
    others = ("bias", "scale", "position", "bottom_position")
    assert names == {("kernel", True), *((name, False) for name in others)}


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_gradients_are_clipped_by_their_global_norm(scale: float):
    """With plain AdamW a first step does not see the gradient's scale; its moments do."""
    params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
    grads = {"kernel": scale * jnp.array([[2.0], [0.0]]), "bias": scale * jnp.array([1.5])}
    tx = _optimizer(weight_decay=0.0)
    _, state = tx.update(grads, tx.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(first_moment["kernel"], [[0.1 * 2 / 2.5], [0.0]], rtol=1e-5)
    np.testing.assert_allclose(first_moment["bias"], [0.1 * 1.5 / 2.5], rtol=1e-5)
