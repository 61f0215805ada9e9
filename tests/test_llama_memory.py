"""Programs of generation compiled for a TPU slice that is not here."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.llama_memory import programs, tpu_mesh
from opensep_jax.models.llama import LLAMA_CONFIGS, Llama, abstract_params

pytestmark = pytest.mark.aot

SIZES = {"batch": 32, "prefix": 256, "suffix": 64, "new": 64}


@pytest.mark.parametrize("topology, data", [("v5e:2x4", 1), ("v5e:4x4", 2)])
def test_every_chip_holds_its_share_of_the_8b(topology: str, data: int):
    pytest.importorskip("libtpu")
    config = dataclasses.replace(LLAMA_CONFIGS["llama3_8b"], layers=2)  # of 32, all alike
    network = Llama(config, jnp.dtype(jnp.bfloat16))
    lowered = programs(network, tpu_mesh(topology, tensor=8), **SIZES)
    memory = lowered["decode"].compile().memory_analysis()
    params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config, jnp.bfloat16)))
    a_token = 2 * config.layers * config.kv_heads * config.head_width
    cached = a_token * (SIZES["prefix"] + SIZES["batch"] // data * (SIZES["suffix"] + SIZES["new"]))
    share = 2 * (params + cached) / 8  # bytes
    assert share <= memory.argument_size_in_bytes <= 1.02 * share
    assert memory.alias_size_in_bytes >= 2 * (cached - a_token * SIZES["prefix"]) / 8  # in place
    assert memory.temp_size_in_bytes < 0.2 * share
