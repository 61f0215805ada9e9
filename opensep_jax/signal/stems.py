"""Stems as a set: which estimate belongs to which reference, silence, and spectral overlap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from opensep_jax.signal.stft import Stft, stft

_EXHAUSTIVE = 6  # sources: 720 orders are compared faster than a host is asked


def best_permutation(scores_ES: jax.Array) -> jax.Array:
    """Finds the order of the estimates with the highest sum (so mean) of scores.

    Up to 6 sources all orders are compared on the device (the first of equals wins); beyond that
    the host solves the assignment. Both run under jit.

    Args:
        scores_ES: score of estimate e against reference s, float [..., S, S], higher is better;
            a NaN (of a silent reference) counts as 0.

    Returns:
        int32 [..., S]: reference s belongs to estimate number `result[s]`; see `matched` and
        `reorder`.

    Raises:
        ValueError: if the matrices are not square.

    Source: exhaustive as in `mir_eval.separation` (of the SIR there); Kuhn-Munkres of SciPy.
    """
    scores = jnp.nan_to_num(jnp.asarray(scores_ES, jnp.float32))
    count = scores.shape[-1]
    if scores.ndim < 2 or scores.shape[-2] != count or not count:
        raise ValueError(f"scores must be square matrices, got {scores.shape}")
    if count > _EXHAUSTIVE:
        result = jax.ShapeDtypeStruct(scores.shape[:-1], jnp.int32)
        return jax.pure_callback(_assignments, result, scores, vmap_method="expand_dims")
    orders = np.array(list(itertools.permutations(range(count))), np.int32)
    sums = jnp.sum(scores[..., orders, np.arange(count)], axis=-1)
    return jnp.asarray(orders)[jnp.argmax(sums, axis=-1)]


def matched(scores_ES: jax.Array, permutation_S: jax.Array) -> jax.Array:
    """Takes the scores of the estimates that belong to the references: [..., E, S] to [..., S].

    Args:
        scores_ES: of every estimate against every reference.
        permutation_S: int [..., S], as `best_permutation` returns it.
    """
    return jnp.take_along_axis(scores_ES, permutation_S[..., None, :], axis=-2)[..., 0, :]


def reorder(stems_ST: jax.Array, permutation_S: jax.Array) -> jax.Array:
    """Puts stems [..., S, T] into the order of the references.

    Args:
        stems_ST: of any dtype, T samples or anything else on the last axis.
        permutation_S: int [..., S], as `best_permutation` returns it.
    """
    return jnp.take_along_axis(stems_ST, permutation_S[..., None], axis=-2)


def is_silent(wave_T: jax.Array, floor_dbfs: float = -80.0) -> jax.Array:
    """Says where a waveform is too quiet to be scored: its RMS is at the floor or below.

    Args:
        wave_T: float [..., T], full scale +-1.
        floor_dbfs: of the RMS, dB relative to 1.

    Returns:
        bool [...]. Source: ours.
    """
    rms = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(wave_T, jnp.float32)), axis=-1))
    return rms <= 10 ** (floor_dbfs / 20)


def counts_in_published_scores(estimates_ST: jax.Array, references_ST: jax.Array) -> jax.Array:
    """Says which mixtures the evaluations of BiModalSep and CLIPSep count.

    They leave out a whole mixture when the sum of |x| of any of its references or estimates is
    1e-5 or less: a model that answers with silence is not charged for it. Where that matters,
    say how many were left out, or score silence by the rules of `metrics` and `bss_eval`.

    Args:
        estimates_ST: float [..., S, T], full scale +-1.
        references_ST: float [..., S, T].

    Returns:
        bool [...]. Source: the evaluation code of microsoft/BiModalAudioSeparation and
        sony/CLIPSep.
    """
    stems = jnp.concatenate([jnp.asarray(estimates_ST), jnp.asarray(references_ST)], axis=-2)
    return jnp.all(jnp.sum(jnp.abs(stems), axis=-1) > 1e-5, axis=-1)


def spectral_overlap(stems_ST: jax.Array, spec: Stft) -> jax.Array:
    """Measures how much of the same time and frequency two stems take up.

    Each stem's power spectrogram is scaled to sum to one; the overlap of a pair is the sum over
    bins and frames of the smaller of both: 1 for stems equal up to gain, 0 for disjoint ones. Stems
    into which a separator leaks the same sounds overlap more than the true sources do, so compare
    it with the references' own overlap. OpenSep (arXiv 2409.19270) reports less spectral overlap
    than its baselines, but its definition is not known to us; this one is ours.

    Args:
        stems_ST: float [..., S, T], any scale.
        spec: window and hop of the spectrograms; say them with the figure.

    Returns:
        float32 [..., S, S], symmetric with a diagonal of one; NaN for pairs with a silent stem.
    """
    stems = jnp.asarray(stems_ST, jnp.float32)
    peak = jnp.max(jnp.abs(stems), axis=-1, keepdims=True)
    stems = stems / jnp.where(peak > 0, peak, 1.0)  # powers of very quiet stems would underflow
    power_SFN = jnp.square(jnp.abs(stft(stems, spec)))
    share_SFN = power_SFN / jnp.sum(power_SFN, axis=(-2, -1), keepdims=True)
    rows = [
        jnp.sum(jnp.minimum(share_SFN, share_SFN[..., s : s + 1, :, :]), axis=(-2, -1))
        for s in range(stems.shape[-2])
    ]
    overlap_SS = jnp.stack(rows, axis=-2)
    silent_S = peak[..., 0] == 0
    return jnp.where(silent_S[..., :, None] | silent_S[..., None, :], jnp.nan, overlap_SS)


def _assignments(scores: np.ndarray) -> np.ndarray:
    """`linear_sum_assignment` of every matrix [..., E, S], as the estimates of the references."""
    scores = np.asarray(scores)
    flat = scores.reshape(-1, *scores.shape[-2:])
    rows = [linear_sum_assignment(matrix.T, maximize=True)[1] for matrix in flat]
    return np.array(rows, np.int32).reshape(scores.shape[:-1])
