"""Optimiser and learning-rate schedule."""

import jax
import optax


def make_schedule(
    *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float
) -> optax.Schedule:
    """Linear warm-up from zero, then a cosine down to `final_fraction` of the peak."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"optim.warmup_steps={warmup_steps} must be below train.steps={total_steps}"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps, total_steps, peak * final_fraction
    )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW with clipping by global norm; only what `decays` decays."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays),
    )


def decays(params: dict) -> dict:
    """True for kernels of dense layers and convolutions.

    Not for biases (those of attention have two axes), norms and embeddings of positions.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
