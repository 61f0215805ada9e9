"""Doubling an image, and its 3x3 convolution, which on CPUs takes a quarter of the products."""

import functools

import jax
import jax.numpy as jnp

from opensep_jax.models.conv import conv3x3


def upsample(x: jax.Array, axis: int) -> jax.Array:
    """Doubles an axis linearly so that the first and last values stay where they are.

    PyTorch's `align_corners=True`: step i of the result lies at i * (n - 1) / (2 n - 1) of the n
    values, so its neighbours are known and no gather is needed.
    """
    return _interleave(*_even_odd(x, axis), axis)


@jax.custom_vjp
def upsampled_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` of x doubled in rows and columns.

    Mixing channels commutes with doubling, so on a CPU each of the kernel's nine places is a matrix
    product of x as it is; what they give is doubled, shifted and added. That is more to read and
    write, so elsewhere, where memory and not products is short, it is what it says. Source: ours.

    Args:
        x: [B, rows, columns, C], any float type.
        kernel: [3, 3, C, D], of the same type.

    Returns:
        [B, 2 rows, 2 columns, D] of that type.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_products, default=_plain)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return upsampled_conv3x3(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    def plain(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(_plain, x, kernel)[1](grad)

    return jax.lax.platform_dependent(*saved, grad, cpu=_products_gradients, default=plain)


upsampled_conv3x3.defvjp(_forward, _backward)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv3x3(upsample(upsample(x, 1), 2), kernel)


def _products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    product = functools.partial(jnp.matmul, x, preferred_element_type=jnp.float32)
    places = [[product(kernel[i, j]) for i in range(3)] for j in range(3)]
    return _doubled_sum([_doubled_sum(column, 1) for column in places], 2).astype(x.dtype)


def _products_gradients(
    x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `_products`: of all nine places as one matrix product each."""
    dtype = grad.dtype
    x, kernel, grad = (a.astype(jnp.float32) for a in (x, kernel, grad))
    columns = [_doubled_sum_gradients(column, 1) for column in _doubled_sum_gradients(grad, 2)]
    places = [columns[j][i] for i in range(3) for j in range(3)]
    width, out_width = kernel.shape[2:]
    grad_NE = jnp.concatenate(places, axis=-1).reshape(-1, 9 * out_width)
    kernel_CE = kernel.transpose(2, 0, 1, 3).reshape(width, -1)
    to_x = (grad_NE @ kernel_CE.T).reshape(x.shape)
    to_kernel = (x.reshape(-1, width).T @ grad_NE).reshape(width, 3, 3, out_width)
    return to_x.astype(dtype), to_kernel.transpose(1, 2, 0, 3).astype(dtype)


def _doubled_sum(places: list[jax.Array], axis: int) -> jax.Array:
    """Doubles three arrays and adds them as a convolution does: one step late, in place, early."""
    (even0, odd0), (even1, odd1), (even2, odd2) = (_even_odd(x, axis) for x in places)
    even = _shift(odd0, 1, axis) + even1 + odd2
    odd = even0 + odd1 + _shift(even2, -1, axis)
    return _interleave(even, odd, axis)


def _doubled_sum_gradients(grad: jax.Array, axis: int) -> list[jax.Array]:
    """Of each of the three arrays; value i has had a part in four steps of its double."""
    n = grad.shape[axis] // 2
    step, i = 1 / (2 * n - 1), jnp.arange(n, dtype=jnp.float32)
    shares = (
        jnp.where(i > 0, (n - i) * step, 0),  # of steps 2i - 1 to 2i + 2
        1 - i * step,
        1 - (n - 1 - i) * step,
        jnp.where(i < n - 1, (i + 1) * step, 0),
    )
    padded = jnp.pad(grad, [(0, 0) if a != axis else (2, 2) for a in range(grad.ndim)])
    return [
        sum(
            _along(share, axis, grad)
            * jax.lax.slice_in_dim(padded, first, first + 2 * n - 1, 2, axis)
            for first, share in enumerate(shares, start=2 - place)
        )
        for place in range(3)
    ]


def _even_odd(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Steps 0, 2, ... and 1, 3, ... of x in double size."""
    n = x.shape[axis]
    weight = jnp.arange(n, dtype=jnp.float32) / (2 * n - 1)
    cut = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, n - 1)], axis)
    after = jnp.concatenate([cut(1, n), cut(n - 1, n)], axis)
    even = x + (before - x) * _along(weight, axis, x)
    return even, x + (after - x) * _along(jnp.flip(weight), axis, x)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    shape = even.shape
    return jnp.stack([even, odd], axis + 1).reshape(
        *shape[:axis], 2 * shape[axis], *shape[axis + 1 :]
    )


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves x along an axis and fills up with zeros."""
    padding = [(0, 0, 0) if a != axis else (by, -by, 0) for a in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


def _along(values: jax.Array, axis: int, like: jax.Array) -> jax.Array:
    """Values of an axis, to be multiplied with `like`."""
    shape = [-1 if a == axis else 1 for a in range(like.ndim)]
    return values.astype(like.dtype).reshape(shape)
