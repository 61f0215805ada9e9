"""From a waveform to a caption: gain makes no difference, the best expected F1 is chosen."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from opensep_jax.text.compose import compose
from opensep_jax.text.listener import (
    Listener,
    caption,
    choose,
    hear,
    name_sets,
    network_level,
)
from tests import tiny_captioner

pytestmark = pytest.mark.usefixtures("compile_once")
WAVES = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)


@pytest.fixture(scope="module")
def captioner(tiny_dataset: Path) -> tuple[Listener, dict]:
    run = tiny_captioner.start(tiny_dataset)
    return run.task.listener, tiny_captioner.first_state(run).params


def test_what_is_heard_does_not_depend_on_gain(captioner: tuple):
    listener, _ = captioner
    heard = jax.jit(lambda wave: hear(listener, wave))
    level_BNM = heard(WAVES)
    assert level_BNM.shape == (2, 16, 16) and 0 < np.mean(level_BNM) < 2
    np.testing.assert_allclose(heard(0.01 * WAVES), level_BNM, atol=1e-4)
    silence = heard(np.zeros((1, 4000), np.float32))
    np.testing.assert_allclose(silence, -1.5, atol=1e-5)
    noise = heard(np.random.default_rng(1).standard_normal((8, 4000)).astype(np.float32))
    white_BNM = np.broadcast_to(network_level(listener.white_M[None, None]), noise.shape)
    assert abs(float(np.mean(noise[:, 1:-1] - white_BNM[:, 1:-1]))) < 0.15


def test_a_set_is_chosen_that_most_likely_ones_share():
    members_QT = name_sets(3, 2)
    assert members_QT.shape == (6, 3) and members_QT.any(1).all() and members_QT.sum(1).max() == 2
    sets = {tuple(np.flatnonzero(row)): q for q, row in enumerate(members_QT)}
    log_Q = np.full(6, -50.0)
    log_Q[[sets[0, 1], sets[0, 2], sets[2,]]] = np.log([0.32, 0.33, 0.35])
    best = choose(log_Q[None], np.zeros((1, 3)), members_QT)
    assert best == [sets[0, 2]]  # not (2,), which is likeliest: it has less in common with others
    odds_BT = np.array([[0.0, 4.0, -4.0]])  # the tags hear the second name, not the third
    assert choose(log_Q[None], odds_BT, members_QT) == [sets[0, 1]]


@pytest.mark.slow
def test_the_caption_has_the_best_expected_f1(captioner: tuple):
    """Against a plain loop over every set of the six likeliest names."""
    listener, params = captioner
    said, tag_BK = caption(listener, params, WAVES)
    heard = jax.jit(lambda wave: hear(listener, wave))
    levels = [np.asarray(heard(wave)) for wave in (WAVES, np.roll(WAVES, 2000, axis=1))]
    apply = jax.jit(listener.model.apply)
    for row in range(2):
        top = np.argsort(-tag_BK[row])[:6]
        sets = [set(s) for n in range(1, 5) for s in itertools.combinations(top, n)]
        clauses = [[listener.clauses[k][1] for k in chosen] for chosen in sets]
        ids_QL = np.stack([listener.vocabulary.encode(c, listener.caption_words) for c in clauses])
        log_Q = np.zeros(len(sets))
        for level_BNM in levels:
            same = np.repeat(level_BNM[row : row + 1], len(sets), axis=0)
            tags, logits = apply({"params": params}, same, ids_QL[:, :-1])
            words = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids_QL[..., None], 2)
            log_Q += (words[..., 0] * (ids_QL > 0)).sum(1) / 2
            log_Q += [tags[0, list(chosen)].sum() / 2 for chosen in sets]
        posterior = np.exp(log_Q - log_Q.max())
        posterior /= posterior.sum()
        expected = [
            sum(
                p * 2 * len(a & b) / (len(a) + len(b)) for b, p in zip(sets, posterior, strict=True)
            )
            for a in sets
        ]
        assert 0.01 < np.std(expected)
        assert said[row] == compose(clauses[int(np.argmax(expected))])
