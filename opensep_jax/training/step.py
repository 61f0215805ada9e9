"""The training step: a pure function, jitted once by the door."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

# loss_fn(params, batch, constants, key) -> (loss, metrics): what a task defines.
LossFn = Callable[[dict, dict, dict, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step.

    Attributes:
        step: int32, steps done.
        params: parameters, float32.
        opt_state: of the optimiser.
        ema: moving average of `params`, what is evaluated and shipped.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict


def init_state(params: dict, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params),
    )


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    constants: dict[str, jax.Array],
    key: jax.Array,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    ema_decay: float,
    accumulation: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
        state: before.
        batch: arrays whose first axis is the batch.
        constants: arrays that no step changes (the text table).
        key: of the whole run; it is folded by the step here.
        loss_fn: loss and metrics of a batch.
        tx: optimiser.
        ema_decay: of the moving average, approached as (1 + step) / (10 + step).
        accumulation: parts of the batch whose gradients are averaged one after the other.

    Returns:
        State after, and metrics: those of the task, `loss` and `gradient_norm`.
    """
    key = jax.random.fold_in(key, state.step)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation == 1:
        (loss, metrics), grads = gradient(state.params, batch, constants, key)
    else:
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total: tuple, part: dict) -> tuple:
            return jax.tree.map(jnp.add, total, gradient(state.params, part, constants, key)), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradient, state.params, first, constants, key),
        )
        total, _ = jax.lax.scan(add, zeros, parts)
        (loss, metrics), grads = jax.tree.map(lambda x: x / accumulation, total)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda e, p: e * decay + p * (1 - decay), state.ema, params)
    metrics = {**metrics, "loss": loss, "gradient_norm": optax.global_norm(grads)}
    return TrainState(state.step + 1, params, opt_state, ema), metrics
