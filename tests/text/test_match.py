"""Which names mean the same source."""

import pytest

from opensep_jax.text.match import match_names


@pytest.mark.parametrize(
    "said, true, pairs",
    [
        (["dog barking"], [["dog", "a dog barks"]], [(0, 0)]),
        (["dog"], [["cat meowing"], ["dog barking loudly"]], [(0, 1)]),  # a subset
        (["man speaking"], [["woman speaking"]], []),
        (["rain", "rain falling"], [["rain falling"]], [(1, 0)]),  # the more similar one
        ([], [["rain"]], []),
        (["?"], [["rain"]], []),
    ],
)
def test_names_are_matched_one_to_one(said: list, true: list, pairs: list):
    assert match_names(said, true) == pairs
