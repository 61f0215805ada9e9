"""Greedy texts of sounds in one compiled loop, for encoder-decoder networks with fixed caches."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

KeysValues = tuple[jax.Array, jax.Array]  # of one layer, [B, T, H, D] each


def empty_cache(
    layers: int, batch: int, positions: int, most: int, heads: int, width: int
) -> tuple[KeysValues, ...]:
    """Keys and values of each decoder layer before the first token, with room for `positions`.

    Raises:
        ValueError: `positions` exceeds `most`, what the position table holds.
    """
    if positions > most:
        raise ValueError(f"{positions} positions; the position table holds {most}")
    empty = jnp.zeros((batch, positions, heads, width // heads))
    return ((empty, empty),) * layers


def extend(cache: KeysValues, new: KeysValues, start: jax.Array | int) -> KeysValues:
    """A cache with the keys and values of the tokens from position `start` on."""
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(old, part, start, axis=1)
        for old, part in zip(cache, new, strict=True)
    )


def generate(
    network: nn.Module,
    variables: Mapping[str, Any],
    sound_BNF: jax.Array,
    prompt_L: jax.Array,
    *,
    max_new: int,
    end_id: int,
    banned_V: jax.Array,
    banned_first_V: jax.Array,
) -> jax.Array:
    """Continues a prompt with the most probable token, again and again; to be jitted.

    Args:
        network: Has the methods `encode`, `start`, `empty_cache` and `step` of `models.whisper`.
        variables: Its collections.
        sound_BNF: Spectrograms, as its `encode` takes them.
        prompt_L: int32 [L], L >= 1, beginning of every text; forced, so bans do not concern it.
        max_new: Longest continuation, tokens.
        end_id: The token that ends a text.
        banned_V: bool [V], tokens that are never chosen.
        banned_first_V: bool [V], tokens that are not chosen as the first, besides.

    Returns:
        int32 [B, max_new]: the continuations; `end_id` from the first one on.
    """
    batch, length = sound_BNF.shape[0], prompt_L.shape[0]
    states_BMC = network.apply(variables, sound_BNF, method="encode")
    cross = network.apply(variables, states_BMC, method="start")

    def step(ids_BL: jax.Array, position: jax.Array | int, cache: Any) -> tuple[jax.Array, Any]:
        return network.apply(variables, ids_BL, position, cache, cross, method="step")

    def choose(logits_BV: jax.Array, banned_V: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.where(banned_V[None], -jnp.inf, logits_BV), axis=-1).astype(jnp.int32)

    def running(state: tuple) -> jax.Array:
        count, _, ended_B, _, _ = state
        return (count < max_new) & ~ended_B.all()

    def advance(state: tuple) -> tuple:
        count, next_B, ended_B, ids_BL, cache = state
        ids_BL = ids_BL.at[:, count].set(next_B)
        logits_BV, cache = step(next_B[:, None], length + count, cache)
        next_B = jnp.where(ended_B, end_id, choose(logits_BV, banned_V))
        return count + 1, next_B, ended_B | (next_B == end_id), ids_BL, cache

    cache = network.empty_cache(batch, length + max_new)
    logits_BV, cache = step(jnp.broadcast_to(prompt_L, (batch, length)), 0, cache)
    next_B = choose(logits_BV, banned_V | banned_first_V)
    ids_BL = jnp.full((batch, max_new), end_id, jnp.int32)
    state = (jnp.int32(0), next_B, next_B == end_id, ids_BL, cache)
    return jax.lax.while_loop(running, advance, state)[3]
