"""Decoding on the device: pure functions of arrays, compiled once per shape.

A prefix that all rows share is run once. The rest of each row is run in small batches (`prefill`),
whose caches are gathered (`insert`) into one larger batch that writes new tokens (`decode`). Axis
letters as in `models/llama.py`; B rows, S states of a grammar, K tokens that a state allows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opensep_jax.models.llama import Cache, Llama, empty_cache, empty_prefix
from opensep_jax.sharding import batch_sharding, replicated

Params = dict


class Batch(NamedTuple):
    """Rows that are ready to write their first new token.

    Attributes:
        states_BC: State of each row's last token.
        lengths_B: int32, tokens of each row behind the prefix; 0 marks an empty row.
        numbers_B: int32, number of each row in the caller's list: its random draws depend on it.
        cache: Keys and values of the rows' tokens, with room for new ones.
    """

    states_BC: jax.Array
    lengths_B: jax.Array
    numbers_B: jax.Array
    cache: Cache


class Automata(NamedTuple):
    """One grammar per row: allowed tokens and the states they lead to, int32 [B, S, K]."""

    tokens_BSK: jax.Array
    next_BSK: jax.Array


class Draw(NamedTuple):
    """How tokens are drawn: scalars, read when sampling only."""

    seed: jax.Array
    temperature: jax.Array
    top_p: jax.Array


def batch_layout(mesh: Mesh) -> Batch:
    """Rows over the data axes, key-value heads over the tensor axis."""
    heads = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"), "tensor"))
    rows = batch_sharding(mesh)
    return Batch(rows, rows, rows, Cache(heads, heads))


def prefix_layout(mesh: Mesh) -> Cache:
    """Key-value heads over the tensor axis."""
    heads = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    return Cache(heads, heads)


@functools.partial(jax.jit, static_argnames=("network", "mesh"))
def run_prefix(network: Llama, mesh: Mesh, params: Params, ids_1P: jax.Array) -> Cache:
    """Keys and values of the shared prefix, without a batch axis."""
    P = ids_1P.shape[1]
    cache = empty_cache(network.config, 1, P, network.dtype)
    _, cache = network.apply(
        {"params": params},
        ids_1P,
        jnp.arange(P)[None],
        jnp.tril(jnp.ones((1, P, P), bool)),
        0,
        cache,
        empty_prefix(network.config, network.dtype),
    )
    prefix = jax.tree.map(lambda array: array[:, 0], cache)
    return jax.lax.with_sharding_constraint(prefix, prefix_layout(mesh))


@functools.partial(jax.jit, static_argnames=("network", "mesh"))
def prefill(
    network: Llama,
    mesh: Mesh,
    params: Params,
    prefix: Cache,
    prefix_length: jax.Array,
    ids_BL: jax.Array,
    lengths_B: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs rows behind the prefix, padded on the right.

    Returns:
        The state of each row's last token [B, C], and the rows' cache of L slots.
    """
    B, L = ids_BL.shape
    layout = batch_layout(mesh)
    cache = empty_cache(network.config, B, L, network.dtype)
    states_BLC, cache = network.apply(
        {"params": params},
        ids_BL,
        jnp.broadcast_to(prefix_length + jnp.arange(L)[None], (B, L)),
        # Tokens see no later ones, hence no padding either.
        jnp.broadcast_to(jnp.tril(jnp.ones((1, L, L), bool)), (B, L, L)),
        0,
        jax.lax.with_sharding_constraint(cache, layout.cache),
        prefix,
        prefix_length,
    )
    last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    states_BC = jnp.take_along_axis(states_BLC, last_B11, axis=1)[:, 0]
    return states_BC, jax.lax.with_sharding_constraint(cache, layout.cache)


@functools.partial(jax.jit, static_argnames=("network", "mesh", "rows", "slots"))
def empty_batch(network: Llama, mesh: Mesh, rows: int, slots: int) -> Batch:
    """A batch of empty rows."""
    integers = jnp.zeros(rows, jnp.int32)
    states_BC = jnp.zeros((rows, network.config.width), network.dtype)
    cache = empty_cache(network.config, rows, slots, network.dtype)
    batch = Batch(states_BC, integers, integers, cache)
    return jax.lax.with_sharding_constraint(batch, batch_layout(mesh))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="batch")
def insert(mesh: Mesh, batch: Batch, rows: Batch, at_B: jax.Array) -> Batch:
    """Takes prefilled rows into a batch, at the given rows; those beyond its end are dropped."""
    L = rows.cache.key.shape[3]
    batch = Batch(
        *(old.at[at_B].set(new, mode="drop") for old, new in zip(batch[:3], rows[:3], strict=True)),
        jax.tree.map(
            lambda old, new: old.at[:, at_B, :, :L].set(new, mode="drop"), batch.cache, rows.cache
        ),
    )
    return jax.lax.with_sharding_constraint(batch, batch_layout(mesh))


class _Loop(NamedTuple):
    """What the loop over new tokens carries."""

    step: jax.Array
    token_B: jax.Array  # to be run next
    grammar_B: jax.Array  # state of the grammar
    done_B: jax.Array
    out_BN: jax.Array
    cache: Cache


@functools.partial(
    jax.jit,
    static_argnames=("network", "mesh", "slots_before", "sample"),
    donate_argnames="batch",
)
def decode(
    network: Llama,
    mesh: Mesh,
    params: Params,
    prefix: Cache,
    prefix_length: jax.Array,
    batch: Batch,
    limit: jax.Array,
    stop_J: jax.Array,
    automata: Automata | None,
    draw: Draw,
    *,
    slots_before: int,
    sample: bool,
) -> jax.Array:
    """Writes new tokens of all rows until each has met a stop token, its grammar's end or `limit`.

    Args:
        network: The decoder.
        mesh: Its mesh.
        params: Its parameters.
        prefix: Keys and values of the shared prefix.
        prefix_length: Tokens of it.
        batch: The rows; its cache has `slots_before` slots for their tokens, then N for new ones.
        limit: Most new tokens of a row, at most N.
        stop_J: int32, tokens that end a row; -1 is none.
        automata: Grammars of the rows, or None.
        draw: See there.
        slots_before: Slots in front of the new tokens.
        sample: Draw tokens rather than take the likeliest.

    Returns:
        int32 [B, N], the new tokens of each row; -1 behind its end, and stop tokens are left out.
    """
    B, slots = batch.cache.key.shape[1], batch.cache.key.shape[3]
    slot_M = jnp.arange(slots)[None]
    given_BM = slot_M < batch.lengths_B[:, None]

    def take(loop: _Loop, states_BC: jax.Array) -> _Loop:
        """Chooses the tokens of this step and writes them down."""
        token_B, grammar_B = _choose(
            network, params, states_BC, automata, loop, batch.numbers_B, draw if sample else None
        )
        stopped_B = (token_B[:, None] == stop_J[None]).any(1)
        out_B = jnp.where(loop.done_B | stopped_B, -1, token_B)
        return loop._replace(
            step=loop.step + 1,
            token_B=token_B,
            grammar_B=jnp.maximum(grammar_B, 0),
            done_B=loop.done_B | stopped_B | (grammar_B < 0),
            out_BN=jax.lax.dynamic_update_index_in_dim(loop.out_BN, out_B, loop.step, axis=1),
        )

    def body(loop: _Loop) -> _Loop:
        slot = slots_before + loop.step - 1
        new_M = (slot_M >= slots_before) & (slot_M <= slot)
        states_BLC, cache = network.apply(
            {"params": params},
            loop.token_B[:, None],
            (prefix_length + batch.lengths_B + loop.step - 1)[:, None],
            (given_BM | new_M)[:, None],
            slot,
            loop.cache,
            prefix,
            prefix_length,
        )
        return take(loop._replace(cache=cache), states_BLC[:, 0])

    loop = _Loop(
        step=jnp.int32(0),
        token_B=jnp.zeros(B, jnp.int32),
        grammar_B=jnp.zeros(B, jnp.int32),
        done_B=batch.lengths_B == 0,
        out_BN=jnp.full((B, slots - slots_before), -1, jnp.int32),
        cache=batch.cache,
    )
    loop = jax.lax.while_loop(
        lambda loop: (loop.step < limit) & ~loop.done_B.all(), body, take(loop, batch.states_BC)
    )
    return jax.lax.with_sharding_constraint(loop.out_BN, replicated(mesh))


def _choose(
    network: Llama,
    params: Params,
    states_BC: jax.Array,
    automata: Automata | None,
    loop: _Loop,
    numbers_B: jax.Array,
    draw: Draw | None,
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row, and its grammar's next state (-1 at the end)."""
    variables = {"params": params}
    if automata is None:
        logits = network.apply(variables, states_BC, method="logits")
        pick_B = _pick(logits, loop.step, numbers_B, draw)
        return pick_B, jnp.zeros_like(pick_B)
    state_B11 = loop.grammar_B[:, None, None]
    ids_BK, next_BK = (
        jnp.take_along_axis(table_BSK, state_B11, axis=1)[:, 0] for table_BSK in automata
    )
    logits = network.apply(variables, states_BC, jnp.maximum(ids_BK, 0), method="logits")
    pick_B = _pick(jnp.where(ids_BK < 0, -jnp.inf, logits), loop.step, numbers_B, draw)
    token_B, grammar_B = (
        jnp.take_along_axis(row_BK, pick_B[:, None], axis=1)[:, 0] for row_BK in (ids_BK, next_BK)
    )
    return token_B, grammar_B


def _pick(
    logits_BV: jax.Array, step: jax.Array, numbers_B: jax.Array, draw: Draw | None
) -> jax.Array:
    """Index of the likeliest entry, or of one drawn from those that make up `top_p`."""
    if draw is None:
        return jnp.argmax(logits_BV, axis=1).astype(jnp.int32)
    logits_BV = logits_BV / draw.temperature
    falling_BV = jnp.sort(logits_BV, axis=1, descending=True)
    share_BV = jax.nn.softmax(falling_BV)
    kept_BV = jnp.cumsum(share_BV, axis=1) - share_BV < draw.top_p  # at least the likeliest
    least_B = jnp.min(jnp.where(kept_BV, falling_BV, jnp.inf), axis=1)
    logits_BV = jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)
    key = jax.random.fold_in(jax.random.key(draw.seed), step)
    keys_B = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
