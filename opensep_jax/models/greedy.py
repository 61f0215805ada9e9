"""Greedy decoding in one compiled loop, for decoders with a cache of keys and values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Cache = Any  # pytree of arrays whose shapes do not depend on the position
# Tokens int32 [B, L], the position of the first one, and a cache, to logits float32 [B, V] of what
# follows the last one, and the cache with these tokens.
Step = Callable[[jax.Array, jax.Array | int, Cache], tuple[jax.Array, Cache]]


def greedy(
    step: Step,
    cache: Cache,
    prompt_BL: jax.Array,
    *,
    max_new: int,
    end_id: int,
    banned_V: jax.Array,
    banned_first_V: jax.Array,
) -> jax.Array:
    """Continues prompts with the most probable token, again and again.

    Args:
        step: One step of the decoder.
        cache: Empty, with room for L + `max_new` positions.
        prompt_BL: int32 [B, L], L >= 1; it is forced, so bans do not concern it.
        max_new: Longest continuation, tokens.
        end_id: The token that ends a text.
        banned_V: bool [V], tokens that are never chosen.
        banned_first_V: bool [V], tokens that are not chosen as the first, besides.

    Returns:
        int32 [B, max_new]: the continuations; `end_id` from the first one on.
    """
    batch, length = prompt_BL.shape

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

    logits_BV, cache = step(prompt_BL, 0, cache)
    next_B = choose(logits_BV, banned_V | banned_first_V)
    ids_BL = jnp.full((batch, max_new), end_id, jnp.int32)
    state = (jnp.int32(0), next_B, next_B == end_id, ids_BL, cache)
    return jax.lax.while_loop(running, advance, state)[3]
