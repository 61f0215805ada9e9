"""The decoder against transformers, its rotary rule, its size, and loading that needs no room."""

import gc
import tracemalloc
import weakref
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import sharding
from opensep_jax.models.convert import WeightTableError, convert, convert_onto_devices
from opensep_jax.models.llama import (
    LLAMA_CONFIGS,
    TENSOR_AXES,
    Llama,
    LlamaConfig,
    abstract_params,
    empty_cache,
    empty_prefix,
)
from opensep_jax.models.tables import LLAMA_TABLE
from tests.tiny_llama import tiny_config, tiny_tensors

PROMPTS = 20


def logits_of(network: Llama, params: dict, ids_BL: np.ndarray) -> np.ndarray:
    """Logits [B, L, V] of whole sequences."""
    B, L = ids_BL.shape

    def run(params: dict, ids_BL: jax.Array) -> jax.Array:
        states_BLC, _ = network.apply(
            {"params": params},
            ids_BL,
            jnp.broadcast_to(jnp.arange(L)[None], (B, L)),
            jnp.broadcast_to(jnp.tril(jnp.ones((1, L, L), bool)), (B, L, L)),
            0,
            empty_cache(network.config, B, L, network.dtype),
            empty_prefix(network.config, network.dtype),
        )
        flat_BC = states_BLC.reshape(B * L, -1)
        return network.apply({"params": params}, flat_BC, method="logits").reshape(B, L, -1)

    return np.asarray(jax.jit(run)(params, ids_BL))


@pytest.fixture(scope="module")
def tiny() -> tuple[Llama, dict]:
    config = LlamaConfig.from_hf(tiny_config())
    abstract = abstract_params(config, jnp.float32)
    return Llama(config), convert(tiny_tensors(), LLAMA_TABLE, abstract)


def test_equals_torch_with_scaled_rotation(tiny):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config())).eval()
    state = {name: torch.tensor(a.astype(np.float32)) for name, a in tiny_tensors().items()}
    model.load_state_dict(state)
    ids_BL = np.random.default_rng(1).integers(0, 256, (PROMPTS, 200))
    with torch.no_grad():
        theirs = model(torch.tensor(ids_BL)).logits.numpy()
    ours = logits_of(*tiny, ids_BL)
    assert np.abs(ours - theirs).max() <= 1e-3
    assert np.abs(theirs).max() > 5  # the bound above is a strict one


def test_bfloat16_stays_near_float32(tiny):
    network, params = tiny
    ids_BL = np.arange(40).reshape(2, 20)
    low = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    low_BLV = logits_of(Llama(network.config, jnp.bfloat16), low, ids_BL)
    error_BLV = low_BLV - logits_of(network, params, ids_BL)
    assert 0 < np.abs(error_BLV).mean() < 0.1  # logits spread over tens


def test_scaled_rotation_is_the_published_rule():
    config = LLAMA_CONFIGS["llama31_8b"]
    wavelength = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    divisors = np.array(config.rope_divisors)
    np.testing.assert_allclose(divisors[wavelength < 8192 / 4], 1)
    np.testing.assert_allclose(divisors[wavelength > 8192], 8)
    between = (wavelength > 8192 / 4) & (wavelength < 8192)
    assert between.sum() >= 3 and (np.diff(divisors[between]) > 0).all()
    kept = (8192 / wavelength[between] - 1) / 3
    np.testing.assert_allclose(1 / divisors[between], (1 - kept) / 8 + kept)


def test_both_spellings_of_the_rotary_keys():
    old = tiny_config()
    new = {k: v for k, v in old.items() if k not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert LlamaConfig.from_hf(new) == LlamaConfig.from_hf(old)
    assert LlamaConfig.from_hf(old | {"rope_scaling": None}).rope_divisors == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"rope_theta": None}, "lacks .*rope_theta"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type is 'yarn'"),
        ({"num_key_value_heads": 3}, "16 heads are not divisible by 3 kv heads"),
    ],
)
def test_unsupported_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_hf(tiny_config() | change)


def test_published_sizes():
    counts = {"llama3_8b": 8_030_261_248, "smollm2_135m": 134_515_008}
    for name, count in counts.items():
        leaves = jax.tree.leaves(abstract_params(LLAMA_CONFIGS[name], jnp.bfloat16))
        assert sum(leaf.size for leaf in leaves) == count
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


class _Counting(Mapping):
    """Tensors made on access, read-only; counts their bytes alive and what an access costs.

    What is traced includes numpy's arrays, and parameters where a device shares their memory; the
    peak between two accesses less what is left at the second is what was needed besides.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors, self.alive, self.most, self.besides = tensors, 0, 0, 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.note()
        array = self.tensors[name].copy()
        array.flags.writeable = False
        self._count(array.nbytes)
        weakref.finalize(array, self._count, -array.nbytes)
        return array

    def note(self) -> None:
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        self.besides = max(self.besides, peak - left)

    def _count(self, change: int) -> None:
        self.alive += change
        self.most = max(self.most, self.alive)

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_loading_holds_one_tensor_beside_the_parameters(tiny):
    network, want = tiny
    # A vocabulary as large beside a layer as in published models, so that it is the largest.
    config = LlamaConfig.from_hf(tiny_config() | {"vocab_size": 65536})
    abstract = abstract_params(config, jnp.float32)
    tensors = {name: array.astype(np.float32) for name, array in tiny_tensors().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.tile(tensors[name], (249, 1))[:65536]
    counting = _Counting(tensors)
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=8)
    layout = sharding.tensor_sharding(abstract, mesh, TENSOR_AXES)
    largest = max(array.nbytes for array in tensors.values())
    before = sum(array.nbytes for array in jax.live_arrays())
    tracemalloc.start()
    params = convert_onto_devices(counting, LLAMA_TABLE, abstract, layout)
    jax.block_until_ready(params)
    counting.note()
    tracemalloc.stop()
    gc.collect()
    assert counting.most <= 1.2 * largest and counting.alive == 0
    assert 0.9 * largest < counting.besides <= 1.2 * largest
    held = sum(array.nbytes for array in jax.live_arrays()) - before
    assert held == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params["blocks"], want["blocks"])
    kernel = params["blocks"]["mlp_down"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 96 // 8, 64)


def test_a_missing_layer_is_named(tiny):
    tensors = tiny_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.input_layernorm.weight"] = np.zeros(64)
    abstract = abstract_params(tiny[0].config, jnp.float32)
    layout = sharding.tensor_sharding(
        abstract, sharding.make_mesh(data=1, fsdp=1, tensor=8), TENSOR_AXES
    )
    with pytest.raises(WeightTableError) as caught:
        convert_onto_devices(tensors, LLAMA_TABLE, abstract, layout)
    assert "unfilled: blocks/mlp_up/kernel of layers [1]" in str(caught.value)
    assert "unmapped: model.layers.2.input_layernorm.weight" in str(caught.value)
