"""The grammar of a caption: what it allows, and that it ends."""

import numpy as np

from opensep_jax.text.grammar import grammar, longest, spellings
from opensep_jax.text.segments import Segment, segments
from tests.scripted_model import END, ScriptedModel, follow

MODEL = ScriptedModel()


def _answers(found: list[Segment]) -> set[str]:
    """Everything that the grammar allows."""
    automaton = grammar(found, MODEL.encode, END)
    open_paths, answers = [([], 0)], set()
    while open_paths:
        ids, state = open_paths.pop()
        if state < 0:
            answers.add(MODEL.decode(ids))
            continue
        row = zip(automaton.tokens[state], automaton.next[state], strict=True)
        open_paths += [([*ids, int(t)], int(n)) for t, n in row if t >= 0]
    return answers


def test_allows_each_source_once_in_order_and_a_choice_of_spellings():
    assert _answers(segments("A dog barks and a bell rings")) == {
        " dog barking; bell rings\n",
        " dog barking; bell ringing\n",
    }


def test_offers_both_spellings_of_an_unknown_verb():
    (source,) = segments("A motor zobs")
    assert spellings(source) == [("motor",), ("zobs", "zobing", "zobbing")]
    assert _answers([source]) == {" motor zobs\n", " motor zobing\n", " motor zobbing\n"}


def test_beings_and_first_words_keep_their_form():
    assert spellings(Segment(("other", "dogs"))) == [("other",), ("dogs",)]
    assert spellings(Segment(("clicks",))) == [("clicks",)]


def test_tables_are_closed_and_end():
    automaton = grammar(segments("Cats meow as a motor zobs"), MODEL.encode, END)
    assert automaton.tokens.dtype == automaton.next.dtype == np.int32
    assert automaton.tokens.shape == automaton.next.shape
    used = automaton.tokens >= 0
    assert used.any(1).all() and not (automaton.next[~used] >= 0).any()
    assert automaton.next.max() < len(automaton.tokens)
    lengths = {len(follow(automaton, choice)) for choice in range(3)}
    assert max(lengths) == longest(automaton) == len(" cats meowing; motor zobbing\n")
