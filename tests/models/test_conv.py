"""The 3x3 convolution whose gradient CPUs take by blocks of rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models import conv
from opensep_jax.models.conv import Conv3x3, conv3x3


def _draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


@pytest.mark.parametrize("positions", [1, 50, 2048])  # one row at a time, two, and all
@pytest.mark.parametrize("channels", [(64, 64), (64, 96), (8, 64)])
def test_gradients_are_those_of_xla(
    channels: tuple[int, int], positions: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conv, "_CPU_POSITIONS", positions)
    x, kernel, grad = (
        _draw(3, 6, 5, channels[0]),
        _draw(3, 3, *channels),
        _draw(3, 6, 5, channels[1]),
    )
    y, transposed = jax.vjp(lambda *args: conv3x3(*args), x, kernel)
    expected, expected_transposed = jax.vjp(_plain, x, kernel)
    np.testing.assert_array_equal(y, expected)
    for found, wanted in zip(transposed(grad), expected_transposed(grad), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_half_precision_is_summed_in_single():
    x, kernel = _draw(2, 16, 16, 64).astype(jnp.bfloat16), _draw(3, 3, 64, 64).astype(jnp.bfloat16)
    y, transposed = jax.vjp(conv3x3, x, kernel)
    found = transposed(y)[1]
    assert y.dtype == found.dtype == jnp.bfloat16
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    expected = jax.vjp(_plain, *wide)[1](y.astype(jnp.float32))[1]
    error = np.abs(found.astype(jnp.float32) - expected).max() / np.abs(expected).max()
    assert error < 2**-8


def test_only_cpus_go_by_blocks():
    def loops(platform: str) -> int:
        step = jax.jit(jax.grad(lambda kernel: jnp.sum(conv3x3(_draw(1, 4, 4, 64), kernel) ** 2)))
        lowered = step.trace(_draw(3, 3, 64, 64)).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.while")

    assert loops("cpu") == 1 and loops("tpu") == loops("cuda") == 0


def test_parameters_are_those_of_the_library():
    x, key = _draw(2, 5, 4, 3), jax.random.key(0)
    ours, theirs = Conv3x3(7), nn.Conv(7, (3, 3))
    variables = theirs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), variables)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-6)
