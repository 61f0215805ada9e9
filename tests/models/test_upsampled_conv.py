"""Doubling, and the convolution of what is doubled, which CPUs take by products of what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.upsampled_conv import upsample, upsampled_conv3x3


def _draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    x = upsample(upsample(x, 1), 2)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def test_upsampling_keeps_the_corners():
    x = np.float32([3.0, 7.0, 4.0])[None, :, None]
    expected = np.interp(np.linspace(0, 2, 6), range(3), x[0, :, 0])
    np.testing.assert_allclose(upsample(jnp.asarray(x), 1)[0, :, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(upsample(jnp.ones((1, 1, 2)), 1), np.ones((1, 2, 2)))


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 1), (3, 8), (16, 5)])
def test_value_and_gradients_are_those_of_the_convolution(rows: int, columns: int):
    x, kernel, grad = (
        _draw(2, rows, columns, 3),
        _draw(3, 3, 3, 4),
        _draw(2, 2 * rows, 2 * columns, 4),
    )
    y, transposed = jax.vjp(upsampled_conv3x3, x, kernel)
    expected, expected_transposed = jax.vjp(_plain, x, kernel)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    for found, wanted in zip(transposed(grad), expected_transposed(grad), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_half_precision_is_summed_in_single():
    x, kernel = (a.astype(jnp.bfloat16) for a in (_draw(2, 8, 8, 64), _draw(3, 3, 64, 64)))
    y, transposed = jax.vjp(upsampled_conv3x3, x, kernel)
    expected, expected_transposed = jax.vjp(_plain, *(a.astype(jnp.float32) for a in (x, kernel)))
    pairs = [
        (y, expected),
        *zip(transposed(y), expected_transposed(y.astype(jnp.float32)), strict=True),
    ]
    for found, wanted in pairs:
        assert found.dtype == jnp.bfloat16
        error = np.abs(found.astype(jnp.float32) - wanted).max() / np.abs(wanted).max()
        assert error < 2**-8


def test_only_cpus_multiply_first():
    """On a CPU nine products of the small image and no convolution; elsewhere the convolution."""

    def counts(platform: str) -> tuple[int, int]:
        traced = jax.jit(upsampled_conv3x3).trace(_draw(1, 4, 4, 8), _draw(3, 3, 8, 8))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")

    assert counts("cpu") == (9, 0)
    assert counts("tpu") == counts("cuda") == (0, 1)
