"""The training step: a pure function, jitted once by the door."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

# loss_fn(params, batch, constants, key) -> (loss, metrics): what a task defines. The loss is a mean
# over the batch's rows; a metric is a sum and the weight it is divided by. One that is named
# `MEASURED` and the path of a parameter is that parameter's next value: a statistic of the data,
# which is not learned. As in all of `params`, what is evaluated is its moving average.
MEASURED = "measured/"
Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[dict, dict, dict, jax.Array], tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step.

    Attributes:
        step: int32, steps done.
        params: parameters, float32.
        opt_state: of the optimiser.
        ema: moving average of `params`, what is evaluated and shipped.
        halted: bool; a step was not finite, and since then nothing has changed.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict
    halted: jax.Array


def init_state(params: dict, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params),
        halted=jnp.zeros((), bool),
    )


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    constants: dict[str, jax.Array],
    key: jax.Array,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    accumulation: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, unless loss, gradients or new parameters are not finite.

    The first step that is not finite leaves the state as it was and sets `halted`; later steps
    then change nothing either, so the parameters before the bad batch are still there when the
    host notices.

    Args:
        state: before.
        batch: arrays whose first axis is the batch.
        constants: arrays that no step changes (the text table).
        key: of the whole run; it is folded by the step here.
        loss_fn: loss and metrics of a batch.
        tx: optimiser.
        schedule: learning rate by step, the one in `tx`; only reported here.
        ema_decay: of the moving average, approached as (1 + step) / (10 + step).
        accumulation: parts of the batch whose gradients are averaged one after the other.

    Returns:
        State after, and metrics: those of the task (NaN where nothing of the kind was in the
        batch), `loss`, `optim/gradient_norm`, `optim/parameter_norm`, `optim/learning_rate` and
        `halted`.
    """
    loss, sums, grads = mean_gradient(
        loss_fn, state.params, batch, constants, step_key(key, state.step), accumulation
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = put_measured(optax.apply_updates(state.params, updates), sums)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda e, p: e * decay + p * (1 - decay), state.ema, params)
    norms = {
        "optim/gradient_norm": optax.tree.norm(grads),
        "optim/parameter_norm": optax.tree.norm(params),
    }
    finite = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
    halted = state.halted | ~finite

    after = TrainState(state.step + 1, params, opt_state, ema, halted)
    kept = state.replace(halted=halted)
    metrics = {
        name: jnp.where(weight > 0, total / jnp.maximum(weight, 1e-9), jnp.nan)
        for name, (total, weight) in sums.items()
        if not name.startswith(MEASURED)
    }
    metrics |= {
        **norms, "loss": loss, "optim/learning_rate": schedule(state.step), "halted": halted
    }  # fmt: skip
    return jax.tree.map(lambda old, new: jnp.where(halted, old, new), kept, after), metrics


def put_measured(params: dict, sums: Metrics) -> dict:
    """Parameters with those replaced that a batch has measured."""
    measured = {
        name.removeprefix(MEASURED): total / weight
        for name, (total, weight) in sums.items()
        if name.startswith(MEASURED)
    }
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(flat | measured, sep="/")


def step_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """Key of a step out of the key of the run."""
    return jax.random.fold_in(key, step)


def mean_gradient(
    loss_fn: LossFn,
    params: dict,
    batch: dict[str, jax.Array],
    constants: dict[str, jax.Array],
    key: jax.Array,
    accumulation: int,
) -> tuple[jax.Array, Metrics, dict]:
    """Loss, metrics and gradient of a batch, in `accumulation` parts one after the other.

    Part i holds the rows i, i + accumulation, ...: some of every device's.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation == 1:
        (loss, sums), grads = gradient(params, batch, constants, key)
        return loss, sums, grads
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: tuple, part: dict) -> tuple:
        return jax.tree.map(jnp.add, total, gradient(params, part, constants, key)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, params, first, constants, key))
    ((loss, sums), grads), _ = jax.lax.scan(add, zeros, parts)
    return loss / accumulation, sums, jax.tree.map(lambda g: g / accumulation, grads)
