"""Systems of equations of least-squares filters between several signals: block-Toeplitz."""

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

# Added to the diagonal for the recursion only: systems that are singular but for rounding (doubled,
# silent or band-limited signals) would break it down. The iterations take its effect out again.
_LOADING = 1e-10
_ITERATIONS = 8
_TOLERANCE = 1e-14  # of the residual, relative


def solve_block_toeplitz(blocks: jax.Array, right: jax.Array) -> jax.Array:
    """Solves sum_l R(k - l) x(l) = d(k) for k, l = 0 ... L - 1, where R(-m) = R(m)'.

    Levinson's recursion finds predictors that determine the inverse of a slightly loaded system;
    conjugate gradients on the true system, preconditioned by that inverse, end in a few steps of
    O(L log L). The matrix of L N rows is never made. Where it is singular, one of the solutions.

    Args:
        blocks: R(0) ... R(L - 1), float64 [N, N, L], positive (semi-)definite, the diagonal of
            R(0) at most 1.
        right: d, float64 [M, N, L]: M right-hand sides.

    Returns:
        x, float64 [M, N, L].

    Source: Wiggins and Robinson, "Recursive solution to the multichannel filtering problem",
    Journal of Geophysical Research 70(8), 1965; the inverse: Gohberg and Heinig, "Inversion of
    finite Toeplitz matrices", 1974; the combination is ours.
    """
    size, _, length = blocks.shape
    loading = _LOADING * jnp.eye(size, dtype=blocks.dtype)
    columns, weights = _inverse_factors(blocks.at[..., 0].add(loading))
    columns = _spectrum(columns)  # [2, k, j, F]
    past = blocks[..., :0:-1].swapaxes(0, 1)
    circulant = jnp.concatenate([blocks, jnp.zeros_like(blocks[..., :1]), past], axis=-1)
    circulant = jnp.fft.rfft(circulant)

    def multiply(x: jax.Array) -> jax.Array:
        return _start(jnp.sum(circulant * _spectrum(x)[None], axis=1))

    def precondition(x: jax.Array) -> jax.Array:
        inner = _start(jnp.sum(jnp.conj(columns) * _spectrum(x)[None, None], axis=2))
        return _start(jnp.sum(columns * _spectrum(weights @ inner)[:, :, None], axis=(0, 1)))

    options = {"tol": _TOLERANCE, "maxiter": _ITERATIONS, "M": precondition}
    return jax.vmap(lambda d: cg(multiply, d, **options)[0])(right)


def _spectrum(x: jax.Array) -> jax.Array:
    """Of [..., L] followed by L zeros, so that products of spectra do not wrap around."""
    return jnp.fft.rfft(x, 2 * x.shape[-1])


def _start(spectrum: jax.Array) -> jax.Array:
    """The first half, [..., L], of what has this spectrum."""
    length = spectrum.shape[-1] - 1
    return jnp.fft.irfft(spectrum, 2 * length)[..., :length]


def _inverse_factors(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse as sum_i T(columns[i]) weights[i] T(columns[i])', T lower triangular Toeplitz.

    Returns:
        The first block columns of both T, [2, k, j, L] (column k, row j of each block), and
        weights [2, N, N].
    """
    length = blocks.shape[-1]
    power = blocks[..., 0]
    unit = jnp.eye(len(power), dtype=blocks.dtype)[..., None]
    carry = (unit, unit, power, power)
    # Arrays grow once on the way: in the first half of the steps the second half would be zeros.
    half = max(length // 2, 1)
    for start, width in ((0, half), (half - 1, length)):
        carry = _recursion(blocks, carry, start, width)
    forward, backward, forward_power, backward_power = carry
    columns = jnp.stack([forward, _delayed(backward)])
    return columns, jnp.stack([_inverse(forward_power), -_inverse(backward_power)])


def _recursion(blocks: jax.Array, carry: tuple, start: int, width: int) -> tuple:
    """From the predictors of order `start` to those of order `width` - 1, with error powers."""
    length = blocks.shape[-1]
    # R(n + 1), R(n) ... R(0), 0, 0 ... are neighbours in it, from length - 2 - n on.
    reversed_blocks = jnp.concatenate([blocks[..., ::-1], jnp.zeros_like(blocks)], axis=-1)

    def step(n: jax.Array, carry: tuple) -> tuple:
        forward, backward, forward_power, backward_power = carry
        window = jax.lax.dynamic_slice_in_dim(reversed_blocks, length - 2 - n, width, axis=-1)
        error = jnp.einsum("kjl,ijl->ki", forward, window)
        forward_gain = error @ _inverse(backward_power)
        backward_gain = error.T @ _inverse(forward_power)
        delayed = _delayed(backward)
        backward = delayed - _mix(backward_gain, forward)
        forward = forward - _mix(forward_gain, delayed)
        forward_power = forward_power - forward_gain @ error.T
        backward_power = backward_power - backward_gain @ error
        return forward, backward, forward_power, backward_power

    predictors = [jnp.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])]) for x in carry[:2]]
    return jax.lax.fori_loop(start, width - 1, step, (*predictors, *carry[2:]))


def _delayed(predictor: jax.Array) -> jax.Array:
    """By one block, which keeps the length."""
    return jnp.pad(predictor[..., :-1], [(0, 0), (0, 0), (1, 0)])


def _mix(gain: jax.Array, predictor: jax.Array) -> jax.Array:
    """[k, m] times [m, j, l], as a sum that is fused into what follows."""
    return sum(gain[:, m, None, None] * predictor[None, m] for m in range(len(predictor)))


def _inverse(matrix: jax.Array) -> jax.Array:
    """Gauss-Jordan elimination of a small positive definite [N, N].

    No pivots are needed, and a call of LAPACK in each step would cost more than the step.
    """
    size = len(matrix)
    work = jnp.concatenate([matrix, jnp.eye(size, dtype=matrix.dtype)], axis=1)
    for pivot in range(size):
        row = work[pivot] / work[pivot, pivot]
        work = (work - work[:, pivot, None] * row[None, :]).at[pivot].set(row)
    return work[:, size:]
