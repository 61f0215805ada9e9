"""Tests of permutations, silence rules and spectral overlap."""

import itertools

import jax
import numpy as np
import pytest

from opensep_jax.signal.stems import (
    best_permutation,
    counts_in_published_scores,
    is_silent,
    matched,
    reorder,
    spectral_overlap,
)
from opensep_jax.signal.stft import Stft

SPEC = Stft(512, 128)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_permutation_is_the_best_of_all(count):
    scores = np.random.default_rng(count).standard_normal((3, count, count)).astype(np.float32)
    permutation = jax.jit(best_permutation)(scores)
    reached = matched(scores, permutation).sum(-1)
    orders = np.array(list(itertools.permutations(range(count))))
    best = scores[:, orders, np.arange(count)].sum(-1).max(-1)
    assert permutation.dtype == np.int32
    np.testing.assert_allclose(reached, best, rtol=1e-5)


def test_permutation_restores_the_order_and_ignores_silent_references():
    stems = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    shuffled = stems[[2, 0, 3, 1]]
    scores = -np.abs(shuffled[:, None] - stems[None]).sum(-1)
    scores[:, 1] = np.nan
    np.testing.assert_array_equal(reorder(shuffled, best_permutation(scores)), stems)


def test_permutation_needs_a_square():
    with pytest.raises(ValueError, match="square"):
        best_permutation(np.ones((2, 3)))


def test_silence_is_told_by_level():
    tone = np.sin(np.arange(1000)).astype(np.float32)  # RMS of 0.707, -3 dB
    levels = tone * 10 ** (np.array([[-76.0], [-78.0], [-200.0]], np.float32) / 20)
    np.testing.assert_array_equal(is_silent(levels), [False, True, True])
    np.testing.assert_array_equal(is_silent(levels, floor_dbfs=-70), [True, True, True])


def test_published_rule_leaves_out_whole_mixtures():
    sound = np.full((3, 2, 100), 1e-6, np.float32)  # a sum of 1e-4
    quiet = sound.copy()
    quiet[1, 0] = 9e-8  # a sum of 9e-6
    quiet[2] = 0
    np.testing.assert_array_equal(counts_in_published_scores(quiet, sound), [True, False, False])
    np.testing.assert_array_equal(counts_in_published_scores(sound, quiet), [True, False, False])


def test_overlap_of_leaking_tones_is_the_share_that_leaks():
    time = np.arange(8000) / 16_000
    low, high = np.sin(2 * np.pi * 500 * time), np.sin(2 * np.pi * 4000 * time)
    leak = 0.2  # of the power: both stems hold 1 - leak of one tone and leak of the other
    stems = np.array([low, high]) * np.sqrt(1 - leak) + np.array([high, low]) * np.sqrt(leak)
    stems = np.stack([stems[0], 1e-3 * stems[1], low, high, np.zeros_like(low)])
    overlap = np.asarray(spectral_overlap(stems, SPEC))
    assert overlap.shape == (5, 5)
    np.testing.assert_allclose(np.diag(overlap)[:4], 1, atol=1e-5)
    np.testing.assert_allclose(overlap[0, 1], 2 * leak, atol=0.01)
    np.testing.assert_allclose(overlap[0, 2], 1 - leak, atol=0.01)
    assert overlap[2, 3] < 0.001
    assert np.isnan(overlap[4]).all() and np.isnan(overlap[:, 4]).all()
    np.testing.assert_allclose(overlap, overlap.T, atol=1e-6)
