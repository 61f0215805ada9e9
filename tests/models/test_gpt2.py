"""Our GPT-2 against transformers' torch class; the cache, what sees what, and dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.convert import WeightTable, convert
from opensep_jax.models.gpt2 import GPT2, GPT2_CONFIGS, GPT2Config
from opensep_jax.models.tables import gpt2_rules

GPT2_HF = {  # the published config.json of gpt2
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}
PREFIX, WORDS = 4, 6
TINY = GPT2_CONFIGS["tiny"]
TABLE = WeightTable("gpt2", gpt2_rules(r"transformer\.", ""), (r"lm_head\.weight",))


def _abstract(config: GPT2Config) -> dict:
    prefix = jax.ShapeDtypeStruct((1, 2, config.width), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(GPT2(config).init, jax.random.key(0), prefix, ids)["params"]


@functools.cache
def _params() -> dict:
    rng = np.random.default_rng(0)

    def draw(path, x):
        is_scale = "scale" in str(path[-1])
        return (is_scale + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, _abstract(TINY))


def _batch(config: GPT2Config = TINY) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    prefix_BPC = rng.standard_normal((2, PREFIX, config.width)).astype(np.float32)
    return prefix_BPC, rng.integers(0, config.vocab_size, (2, WORDS)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: GPT2, params, prefix_BPC, ids_BL) -> jax.Array:
    return network.apply({"params": params}, prefix_BPC, ids_BL)


@pytest.mark.parametrize("size", ["tiny", "gpt2"])
def test_equals_torch(size: str):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": 61}
    sizes = {**sizes, "n_inner": 32} if size == "tiny" else {}
    hf_config = GPT2_HF | sizes
    config = GPT2Config.from_hf(hf_config)
    assert config == GPT2_CONFIGS[size]
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config)).eval()
    # Fresh norms and biases are ones and zeros: move them, so that a swapped one shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = convert(tensors, TABLE, _abstract(config))
    prefix_BPC, ids_BL = _batch(config)
    with torch.no_grad():
        words = model.transformer.wte(torch.tensor(ids_BL).long())
        inputs = torch.cat([torch.tensor(prefix_BPC), words], dim=1)
        theirs_BLV = model(inputs_embeds=inputs).logits[:, PREFIX - 1 :].numpy()
    ours_BLV = _apply(GPT2(config), params, prefix_BPC, ids_BL)
    assert ours_BLV.shape == theirs_BLV.shape == (2, WORDS + 1, config.vocab_size)
    np.testing.assert_allclose(ours_BLV, theirs_BLV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_words_one_at_a_time_equal_all_at_once(bidirectional: bool):
    c = GPT2Config(**{**vars(TINY), "bidirectional_prefix": bidirectional})
    network, variables = GPT2(c), {"params": _params()}
    prefix_BPC, ids_BL = _batch()
    whole_BLV = _apply(network, _params(), prefix_BPC, ids_BL)
    positions = PREFIX + WORDS + 3  # a cache with room to spare
    logits_BV, cache = network.apply(variables, prefix_BPC, positions, method="prefill")
    step = jax.jit(functools.partial(network.apply, method="step"))
    for i in range(WORDS + 1):
        np.testing.assert_allclose(logits_BV, whole_BLV[:, i], rtol=0, atol=2e-5)
        if i < WORDS:
            logits_BV, cache = step(variables, ids_BL[:, i], PREFIX + i, cache)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_sees_what(bidirectional: bool):
    """A word depends on earlier words; with a bidirectional prefix, on all of that through each."""
    c = GPT2Config(**{**vars(TINY), "bidirectional_prefix": bidirectional})
    prefix_BPC, ids_BL = _batch()
    # New arrays, not changes in place: JAX reads the memory of a NumPy array when it comes to it.
    changed_BL = np.where(np.arange(WORDS) == 3, (ids_BL + 1) % c.vocab_size, ids_BL)
    before_BLV, after_BLV = (
        np.asarray(_apply(GPT2(c), _params(), prefix_BPC, ids)) for ids in (ids_BL, changed_BL)
    )
    moved_BL = np.abs(after_BLV - before_BLV).max(-1)
    assert not moved_BL[:, :4].any() and moved_BL[:, 4:].min() > 1e-3
    # The last prefix vector changes what the first one's keys and values are, or does not.
    network = GPT2(c)
    caches = []
    for scale in (1, 2):
        scaled_BPC = prefix_BPC * np.where(np.arange(PREFIX) == PREFIX - 1, scale, 1)[:, None]
        variables = {"params": _params()}
        caches.append(network.apply(variables, np.float32(scaled_BPC), PREFIX, method="prefill")[1])
    first_key = [np.asarray(cache[-1][0][:, 0]) for cache in caches]
    assert np.array_equal(*first_key) != bidirectional


def test_dropout_acts_in_training_only():
    c = GPT2Config(**{**vars(TINY), "dropout": 0.5})
    batch = _batch()
    quiet = _apply(GPT2(TINY), _params(), *batch)
    np.testing.assert_array_equal(_apply(GPT2(c), _params(), *batch), quiet)
    rngs = {"dropout": jax.random.key(0)}
    loud = GPT2(c).apply({"params": _params()}, *batch, deterministic=False, rngs=rngs)
    assert np.abs(loud - quiet).max() > 0.1


def test_bfloat16_stays_near_float32():
    batch = _batch()
    exact = _apply(GPT2(TINY), _params(), *batch)
    low = _apply(GPT2(TINY, jnp.bfloat16), _params(), *batch)
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - exact).max() < 0.15


def test_published_size():
    leaves = jax.tree.leaves(_abstract(GPT2_CONFIGS["gpt2"]))
    assert sum(leaf.size for leaf in leaves) == 124_439_808


def test_too_many_positions_are_an_error():
    network, variables = GPT2(TINY), {"params": _params()}
    prefix_BPC, _ = _batch()
    with pytest.raises(ValueError, match="25 positions; the position table holds 24"):
        network.apply(variables, prefix_BPC, np.zeros((2, 21), np.int32))
    with pytest.raises(ValueError, match="3 positions; the prefix takes 4 and .* holds 24"):
        network.apply(variables, prefix_BPC, 3, method="prefill")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_head": 7}, "768 is not divisible by n_head 7"),
        ({"n_positions": None}, "lacks .*n_positions"),
    ],
)
def test_unsupported_configs_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GPT2Config.from_hf(GPT2_HF | change)
