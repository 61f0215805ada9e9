"""Says what is not finite where a run has halted."""

import functools

import jax
import jax.numpy as jnp

from opensep_jax.training.step import LossFn, TrainState, mean_gradient, step_key

_NAMED = 8  # arrays of a kind that a message names


def nonfinite_leaves(tree: object) -> list[str]:
    """Paths of the arrays that hold a NaN or an infinity, such as `stem/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    kept = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jax.device_get(_all_finite([x for _, x in kept]))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), good in zip(kept, finite, strict=True)
        if not good
    ]


def explain(
    state: TrainState,
    batch: dict[str, jax.Array],
    constants: dict[str, jax.Array],
    key: jax.Array,
    *,
    loss_fn: LossFn,
    accumulation: int,
) -> str:
    """Evaluates the batch that halted a run once more and names what is not finite in it.

    Args:
        state: halted, so its parameters are those from before the batch.
        batch: of step `state.step`.
        constants: of the run.
        key: of the run.
        loss_fn: of the task.
        accumulation: as in training.

    Returns:
        A message with the number of the step, counted from 1.
    """
    evaluate = functools.partial(mean_gradient, loss_fn, accumulation=accumulation)
    loss, sums, grads = jax.jit(evaluate)(state.params, batch, constants, step_key(key, state.step))
    found = {
        "parameters": state.params,
        "optimiser": state.opt_state,
        "batch": batch,
        "constants": constants,
        "metrics": {"loss": loss, **{name: total for name, (total, _) in sums.items()}},
        "gradients": grads,
    }
    wrong = {kind: nonfinite_leaves(tree) for kind, tree in found.items()}
    parts = [
        f"{kind}: {', '.join(paths[:_NAMED])}"
        + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
        for kind, paths in wrong.items()
        if paths
    ]
    what = "; ".join(parts) or "nothing when it is evaluated again"
    finite = ", ".join(kind for kind, paths in wrong.items() if not paths)
    return f"step {int(state.step) + 1} is not finite ({what}). Finite are {finite or 'none'}"


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in leaves]
