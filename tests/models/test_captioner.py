"""The captioner's network: captions are rated as in training, and every part learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.captioner import SIZES, Captioner

pytestmark = pytest.mark.usefixtures("compile_once")
NET = Captioner(SIZES["debug"], tags=5, vocab_size=11)
LEVEL = np.random.default_rng(0).standard_normal((3, 20, 16)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 11, (3, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def variables() -> dict:
    drawn = jax.jit(NET.init)(jax.random.key(0), LEVEL, IDS)
    keys = iter(jax.random.split(jax.random.key(1), 500))  # lively, unlike the initial ones
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), drawn)


def test_captions_are_rated_as_in_training(variables: dict):
    tags_BK, expected = jax.jit(NET.apply)(variables, LEVEL, IDS)
    assert tags_BK.shape == (3, 5) and expected.shape == (3, 7, 11)

    def rate(variables, level, ids):
        tags, prefix = NET.apply(variables, level, method=Captioner.listen)
        return tags, NET.apply(variables, prefix, ids, method=Captioner.rate)

    same, logits = jax.jit(rate)(variables, LEVEL, IDS)
    np.testing.assert_allclose(same, tags_BK, atol=1e-5)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    changed = jax.jit(NET.apply)(variables, LEVEL, IDS[:, ::-1])[1]  # a word sees those before it
    np.testing.assert_allclose(changed[:, 0], expected[:, 0], atol=1e-5)
    assert np.abs(changed[:, 1:] - expected[:, 1:]).max() > 0.1


@pytest.mark.slow
def test_every_part_learns_and_dropout_is_for_training_only(variables: dict):
    def loss(params, key):
        tags, words = NET.apply(
            {"params": params}, LEVEL, IDS, deterministic=False, rngs={"dropout": key}
        )
        return jnp.mean(tags**2) + jnp.mean(words**2)

    value = jax.jit(jax.value_and_grad(loss))
    first, grads = value(variables["params"], jax.random.key(2))
    silent = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(grad).max() > 0
    ]
    assert not silent
    assert value(variables["params"], jax.random.key(3))[0] != first
