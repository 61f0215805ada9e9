"""Weight tables: every mismatch is an error, and all are named at once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from opensep_jax.models.convert import (
    Rule,
    WeightTable,
    WeightTableError,
    convert,
    layer_norm,
    linear,
)

TABLE = WeightTable(
    name="toy",
    rules=(*linear(r"(?:net\.)?blocks\.(\d+)\.fc", r"block_\1/fc"), *layer_norm("ln", "norm")),
    skipped=(r"head\.weight",),
)


def _leaf(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _abstract() -> dict:
    return {
        "block_0": {"fc": {"kernel": _leaf(2, 3), "bias": _leaf(3)}},
        "norm": {"scale": _leaf(3), "bias": _leaf(3, dtype=jnp.bfloat16)},
    }


def _tensors() -> dict[str, np.ndarray]:
    return {
        "net.blocks.0.fc.weight": np.arange(6, dtype=np.float16).reshape(3, 2),
        "net.blocks.0.fc.bias": np.array([1, 2, 3], np.float32),
        "ln.gamma": np.array([4, 5, 6], np.float32),
        "ln.bias": np.array([7, 8, 9], np.float32),
        "head.weight": np.zeros(1),
    }


def test_fills_every_leaf_in_shape_and_dtype():
    params = convert(_tensors(), TABLE, _abstract())
    kernel = params["block_0"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, [[0, 2, 4], [1, 3, 5]])
    assert kernel.dtype == np.float32 and kernel.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(params["norm"]["scale"], [4, 5, 6])
    assert params["norm"]["bias"].dtype == ml_dtypes.bfloat16
    assert jax.tree.structure(params) == jax.tree.structure(_abstract())


def test_all_mismatches_are_named_at_once():
    tensors = _tensors()
    del tensors["ln.bias"]
    tensors["ln.gamma"] = np.zeros(4, np.float32)
    tensors["blocks.0.fc.bias"] = np.zeros(3, np.float32)  # the same leaf without the prefix
    tensors["blocks.1.fc.bias"] = np.zeros(3, np.float32)
    tensors["surprise"] = np.zeros(3, np.float32)
    with pytest.raises(WeightTableError) as caught:
        convert(tensors, TABLE, _abstract())
    assert str(caught.value).splitlines() == [
        "toy: 5 mismatches between tensors and parameters:",
        "  unmapped: blocks.1.fc.bias goes to block_1/fc/bias, which the network does not have",
        "  filled twice: block_0/fc/bias by blocks.0.fc.bias and net.blocks.0.fc.bias",
        "  unmapped: surprise has no rule",
        "  unfilled: norm/bias",
        "  shape: ln.gamma for norm/scale: (4,) where (3,) is wanted",
    ]
    assert isinstance(caught.value, ValueError)


def test_the_name_must_match_as_a_whole():
    table = WeightTable("toy", (Rule("weight", "weight"),))
    tensors = {"weight": np.zeros(1), "other.weight": np.zeros(1), "weight.scale": np.zeros(1)}
    with pytest.raises(WeightTableError, match="2 mismatches"):
        convert(tensors, table, {"weight": _leaf(1)})


def test_tensors_are_read_once_and_skipped_ones_never():
    class Counting(Mapping):
        def __init__(self, tensors):
            self.tensors, self.read = tensors, []

        def __getitem__(self, name):
            self.read.append(name)
            return self.tensors[name]

        def __iter__(self):
            return iter(self.tensors)

        def __len__(self):
            return len(self.tensors)

    tensors = Counting(_tensors())
    convert(tensors, TABLE, _abstract())
    assert sorted(tensors.read) == sorted(set(_tensors()) - {"head.weight"})
