"""Products counted in jaxprs."""

import jax
import jax.numpy as jnp

from opensep_jax.models.conv import conv3x3
from opensep_jax.planning.work import products


def test_flops_of_products_are_counted_by_hand():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)
    dense = jax.ShapeDtypeStruct((5, 7), jnp.bfloat16)

    def strided(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def network(x, kernel, dense):
        return jnp.sum(jnp.tanh(strided(x, kernel).astype(jnp.bfloat16) @ dense))

    convolution, product = products(jax.make_jaxpr(network)(x, kernel, dense))
    positions = 2 * 4 * 4
    assert convolution.flops == 2 * positions * 2 * 2 * 3 * 5
    assert convolution.bytes == 4 * (2 * 8 * 8 * 3 + 2 * 2 * 3 * 5 + positions * 5)
    assert product.flops == 2 * positions * 5 * 7
    assert product.bytes == 2 * (positions * 5 + 5 * 7 + positions * 7)

    def loss(x, kernel, dense):
        return network(x, kernel, dense).astype(jnp.float32)

    backward = products(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, kernel, dense))
    assert sum(one.flops for one in backward) == 3 * (convolution.flops + product.flops)


def test_loops_and_checkpoints_are_looked_into():
    def chain(x):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(jnp.dot)(c, c), None), x, length=6)[0]

    found = products(jax.make_jaxpr(chain)(jax.ShapeDtypeStruct((4, 4), jnp.float32)))
    assert [one.flops for one in found] == 6 * [2 * 4**3]


def test_of_what_depends_on_the_platform_the_default_counts():
    def loss(x, kernel):
        return conv3x3(x, kernel).sum()

    x = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
    forward = sum(one.flops for one in products(jax.make_jaxpr(loss)(x, kernel)))
    both = sum(one.flops for one in products(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel)))
    assert both == 3 * forward > 0
