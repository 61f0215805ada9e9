"""Beam search by mean log-probability, as the ms-CLAP captioner does it, for a batch of files.

Source: microsoft/CLAP, `CLAPWrapper._generate_beam`. Beams that have said the stop word stay among
the candidates with the mean they have; there is no other length penalty.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# (words int32 [R], index of these words int32, cache) -> (logits float32 [R, V], cache)
Step = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Beams(NamedTuple):
    """Captions of each file, the best first.

    Attributes:
        tokens_BKL: int32 [B, K, L]; those behind a caption's length have no meaning.
        lengths_BK: int32 [B, K], tokens in each caption; the stop word is one of them.
        scores_BK: float32 [B, K], mean log-probability of a caption's tokens.
    """

    tokens_BKL: jax.Array
    lengths_BK: jax.Array
    scores_BK: jax.Array


class _Running(NamedTuple):
    tokens_BKL: jax.Array
    lengths_BK: jax.Array
    sums_BK: jax.Array  # of log-probabilities
    done_BK: jax.Array


def beam_search(
    logits_BV: jax.Array,
    cache: jax.Array,
    step: Step,
    *,
    beams: int,
    max_tokens: int,
    stop_id: int,
    temperature: float | jax.Array = 1.0,
) -> Beams:
    """Searches the captions with the highest mean log-probability; greedy with one beam.

    A file's result does not depend on the other files of the batch.

    Args:
        logits_BV: float32 [B, V], of the first word.
        cache: What the network remembers of each file: a tree of arrays [B, ...].
        step: Gives the logits of the words that follow; its rows are B * `beams`, a file's beams
            next to each other, and so are the cache's.
        beams: K, at most V.
        max_tokens: L, the longest caption, stop word included.
        stop_id: The word that ends a caption.
        temperature: Divides logits; more than 0.

    Returns:
        The beams of each file, in the order of their scores.
    """
    batch, vocab = logits_BV.shape
    sums_BK, first_BK = jax.lax.top_k(_log_probabilities(logits_BV, temperature), beams)
    running = _Running(
        tokens_BKL=jnp.zeros((batch, beams, max_tokens), jnp.int32).at[:, :, 0].set(first_BK),
        lengths_BK=jnp.ones((batch, beams), jnp.int32),
        sums_BK=sums_BK,
        done_BK=first_BK == stop_id,
    )
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)

    def go_on(state: tuple) -> jax.Array:
        index, running, _ = state
        return (index < max_tokens) & ~jnp.all(running.done_BK)

    def advance(state: tuple) -> tuple:
        index, running, cache = state
        words_R = running.tokens_BKL[:, :, index - 1].reshape(-1)
        logits_RV, cache = step(words_R, index - 1, cache)
        log_probs_BKV = _log_probabilities(logits_RV, temperature).reshape(batch, beams, vocab)
        running, rows_R = _choose(running, log_probs_BKV, index, stop_id)
        return index + 1, running, jax.tree.map(lambda x: jnp.take(x, rows_R, axis=0), cache)

    _, running, _ = jax.lax.while_loop(go_on, advance, (jnp.int32(1), running, cache))
    scores_BK = running.sums_BK / running.lengths_BK
    order_BK = jnp.argsort(-scores_BK, axis=1)
    return Beams(
        jnp.take_along_axis(running.tokens_BKL, order_BK[:, :, None], axis=1),
        jnp.take_along_axis(running.lengths_BK, order_BK, axis=1),
        jnp.take_along_axis(scores_BK, order_BK, axis=1),
    )


def _log_probabilities(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    # Not log_softmax, which is finite where this underflows: as published.
    return jnp.log(jax.nn.softmax(logits / temperature))


def _choose(
    old: _Running, log_probs_BKV: jax.Array, index: jax.Array, stop_id: int
) -> tuple[_Running, jax.Array]:
    """The next word of every beam, and the row (of files times beams) that each comes from."""
    batch, beams, vocab = log_probs_BKV.shape
    # A beam that is done goes on with word 0 at no cost, and with nothing else.
    only_zero_V = jnp.where(jnp.arange(vocab) == 0, 0.0, -jnp.inf)
    log_probs_BKV = jnp.where(old.done_BK[:, :, None], only_zero_V[None, None], log_probs_BKV)
    lengths_BK = old.lengths_BK + ~old.done_BK
    means_BKV = (old.sums_BK[:, :, None] + log_probs_BKV) / lengths_BK[:, :, None]
    means_BK, flat_BK = jax.lax.top_k(means_BKV.reshape(batch, -1), beams)
    source_BK, words_BK = flat_BK // vocab, flat_BK % vocab
    tokens_BKL = jnp.take_along_axis(old.tokens_BKL, source_BK[:, :, None], axis=1)
    lengths_BK = jnp.take_along_axis(lengths_BK, source_BK, axis=1)
    done_BK = jnp.take_along_axis(old.done_BK, source_BK, axis=1)
    new = _Running(
        tokens_BKL=tokens_BKL.at[:, :, index].set(words_BK),
        lengths_BK=lengths_BK,
        sums_BK=means_BK * lengths_BK,
        done_BK=done_BK | (words_BK == stop_id),
    )
    # A file whose beams are all done waits for the others as it is.
    ended_B = jnp.all(old.done_BK, axis=1)

    def keep(before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(ended_B, range(1, after.ndim)), before, after)

    rows_BK = jnp.arange(batch)[:, None] * beams + source_BK
    return jax.tree.map(keep, old, new), rows_BK.reshape(-1)
