"""A 3x3 convolution that CPUs train as fast as they run it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CPU_CHANNELS = 64  # below, XLA's own weight gradient is no slower
_CPU_POSITIONS = 2048  # whose channels fit into a core's cache


class Conv3x3(nn.Module):
    """As `nn.Conv(width, (3, 3))`, with the same parameters, by `conv3x3`."""

    width: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, rows, columns, C] -> [B, rows, columns, width]."""
        shape = (3, 3, x.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]).astype(self.dtype)
        return conv3x3(x.astype(self.dtype), kernel) + bias.reshape(1, 1, 1, -1)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves over rows and columns, filled up with zeros at the edges.

    On a CPU, XLA takes 2 to 8 times as long for the gradient of a wide kernel as for the
    convolution itself; there it is summed over blocks of rows, as nine matrix products each.
    Elsewhere nothing differs from `nn.Conv`. Source: ours.

    Args:
        x: [B, rows, columns, C], any float type.
        kernel: [3, 3, C, D], of the same type.

    Returns:
        [B, rows, columns, D] of that type.
    """
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv3x3(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    plain = functools.partial(_kernel_gradient, kernel=kernel)
    if min(kernel.shape[2:]) < _CPU_CHANNELS:
        return conv3x3(grad, turned), plain(x, grad)
    by_blocks = functools.partial(_kernel_gradient_by_blocks, kernel=kernel)
    return conv3x3(grad, turned), jax.lax.platform_dependent(x, grad, cpu=by_blocks, default=plain)


conv3x3.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, grad: jax.Array, kernel: jax.Array) -> jax.Array:
    """As XLA differentiates the convolution."""
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
        dimension_numbers=_LAYOUT,
    )  # fmt: skip
    return jax.linear_transpose(functools.partial(convolve, x), kernel)(grad)[0]


def _kernel_gradient_by_blocks(x: jax.Array, grad: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same, a matrix product for each place of the kernel over a few rows at a time."""
    batch, rows, columns, width = x.shape
    fitting = max(1, _CPU_POSITIONS // (batch * columns))
    step = max(n for n in range(1, min(rows, fitting) + 1) if rows % n == 0)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        here = jax.lax.dynamic_slice_in_dim(x, row, step + 2, axis=1)
        grad_ND = jax.lax.dynamic_slice_in_dim(grad, row, step, axis=1)
        grad_ND = grad_ND.reshape(-1, grad.shape[-1])
        parts = [
            jnp.matmul(
                here[:, i : i + step, j : j + columns].reshape(-1, width).T, grad_ND,
                preferred_element_type=jnp.float32,
            )
            for i in range(3)
            for j in range(3)
        ]  # fmt: skip
        return total + jnp.stack(parts), None

    zeros = jnp.zeros((9, *kernel.shape[2:]), jnp.float32)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(0, rows, step))
    return total.reshape(kernel.shape).astype(kernel.dtype)
