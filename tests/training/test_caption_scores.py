"""Names that captions say, scored by hand."""

import pytest

from opensep_jax.training.caption_scores import name_scores, names_said

CLAUSES = {"dog": "a dog barks", "rain": "rain falls", "cello": "a cello plays a melody"}


def test_names_of_a_caption():
    said = names_said("Rain falls while a dog barks and a cello barks.", CLAUSES)
    assert said == {"rain", "dog", "a cello barks"}
    assert names_said("", CLAUSES) == set()


def test_scores_are_pooled_over_mixtures():
    scores = name_scores(
        [{"dog", "rain"}, {"cello"}, set()], [{"dog", "rain"}, {"dog", "rain", "cello"}, {"dog"}]
    )
    assert scores["precision"] == 1 and scores["recall"] == pytest.approx(3 / 6)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["count_error"] == pytest.approx((0 + 2 + 1) / 3)
    assert scores["exact"] == pytest.approx(1 / 3)
    assert name_scores([set()], [{"dog"}])["f1"] == 0
