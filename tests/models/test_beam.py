"""Beam search against recorded runs of the published algorithm, on a language of 13 words."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.beam import Beams, beam_search

START, STOP, STEPS = 3, 5, 12
RUNS = json.loads((Path(__file__).parents[1] / "golden/beam_table.json").read_text())


def _table(seed: int) -> np.ndarray:
    """Logits [t % 7, last word, word] of the language."""
    table = np.random.default_rng(seed).standard_normal((7, 13, 13)).astype(np.float32) * 2
    table[:, :, STOP] += 1
    return table


@functools.partial(jax.jit, static_argnames="beams")
def _search(tables: jax.Array, beams: int, temperature: float) -> Beams:
    """The tables [B, 7, 13, 13] stand in for a cache: each beam must read its own file's."""

    def step(words_R, index, tables_R):
        return tables_R[jnp.arange(len(words_R)), (index + 1) % 7, words_R], tables_R

    return beam_search(
        tables[:, 0, START],
        tables,
        step,
        beams=beams,
        max_tokens=STEPS,
        stop_id=STOP,
        temperature=temperature,
    )


def _lists(beams: Beams, row: int) -> list[list[int]]:
    tokens_KL, lengths_K = np.asarray(beams.tokens_BKL[row]), np.asarray(beams.lengths_BK[row])
    return [tokens[:length].tolist() for tokens, length in zip(tokens_KL, lengths_K, strict=True)]


@pytest.mark.parametrize("beams", [3, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equals_the_published_search(beams: int, temperature: float):
    runs = [run for run in RUNS if (run["beam"], run["temp"]) == (beams, temperature)]
    assert len(runs) == 6
    found = _search(np.stack([_table(run["seed"]) for run in runs]), beams, temperature)
    for row, run in enumerate(runs):
        assert _lists(found, row) == run["out"]
    assert (np.diff(found.scores_BK) <= 0).all()


def test_company_changes_nothing():
    """Seed 4 is done early and waits for the others."""
    together = _search(np.stack([_table(seed) for seed in range(6)]), 3, 1.0)
    alone = _search(_table(4)[None], 3, 1.0)
    assert _lists(alone, 0) == _lists(together, 4)
    np.testing.assert_array_equal(alone.scores_BK[0], together.scores_BK[4])


def test_one_beam_is_greedy():
    table, words = _table(1), [START]
    while len(words) <= STEPS and (words[-1] != STOP or len(words) == 1):
        words.append(int(table[(len(words) - 1) % 7, words[-1]].argmax()))
    assert _lists(_search(table[None], 1, 1.0), 0) == [words[1:]]


def test_score_is_the_mean_log_probability():
    table = _table(2)
    found = _search(table[None], 3, 0.5)
    words = _lists(found, 0)[0]
    total, last = 0.0, START
    for t, word in enumerate(words):
        logits = table[t % 7, last].astype(np.float64) / 0.5
        total += logits[word] - np.log(np.exp(logits).sum())
        last = word
    np.testing.assert_allclose(found.scores_BK[0, 0], total / len(words), rtol=1e-5)
