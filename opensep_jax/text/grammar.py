"""What a constrained answer may be: the caption's sources, each once and in order.

The model chooses how words are spelled ("barks" or "barking"), nothing else: a mask that limits
the vocabulary alone does not keep a small model from stopping early. Source: ours, measured.
"""

from collections.abc import Callable, Sequence

import numpy as np

from opensep_jax.text.generate import Grammar
from opensep_jax.text.segments import Segment
from opensep_jax.text.words import participle, verb_base, words

_END = -1
_SEPARATOR = ";"  # between two sources


def spellings(segment: Segment) -> list[tuple[str, ...]]:
    """The forms that each word of a source may take, the rule's choice first.

    Only the last word has a choice, and only where it may be a verb or a plural: "engine squeals"
    may be "engine squealing", but what a being does is a verb, and beings stay as they are.
    """
    *before, last = segment.words
    offered = [last]
    if before and before[-1] != "and" and not words("animate") & {before[-1], last}:
        own = dict(segment.verbs).get(len(before), last)
        if own != last and own.endswith("s"):
            offered.append(own)
        elif own == last:
            offered += _participles(last)
    return [*((word,) for word in before), tuple(dict.fromkeys(offered))]


def _participles(word: str) -> list[str]:
    """The -ing forms of a word that may be a verb, known or not: "splays", "sprayed"."""
    if base := verb_base(word):
        return [] if word == base or word.endswith("ing") else [participle(base)]
    for ending in ("ed", "s"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and not stem.endswith("s"):
            return [f"{stem}ing", participle(stem)]
    return []


def grammar(sources: Sequence[Segment], encode: Callable[[str], list[int]], end: int) -> Grammar:
    """The automaton of all answers that name each source once, in order.

    Args:
        sources: what the caption names, at least one.
        encode: text to token ids; a word is encoded with the space before it.
        end: the token that ends an answer.

    Returns:
        tokens and next states, int32 [S, K]; K is the largest number of choices of a state.
    """
    states: list[dict[int, int]] = [{}]
    here = 0
    for number, source in enumerate(sources):
        if number:
            here = _add(states, here, [encode(_SEPARATOR)])
        for forms in spellings(source):
            here = _add(states, here, [encode(f" {form}") for form in forms])
    states[here][end] = _END
    width = max(len(edges) for edges in states)
    table = np.full((2, len(states), width), -1, np.int32)
    for state, edges in enumerate(states):
        table[0, state, : len(edges)] = list(edges)
        table[1, state, : len(edges)] = list(edges.values())
    return Grammar(tokens=table[0], next=table[1])


def _add(states: list[dict[int, int]], here: int, spelled: list[list[int]]) -> int:
    """Adds a word from state `here` as a trie of its spellings; returns where they meet.

    A spelling that begins another one would leave its end undecided: only the first is kept.
    """
    kept: list[list[int]] = []
    for ids in spelled:
        if ids and not any(ids[: len(k)] == k or k[: len(ids)] == ids for k in kept):
            kept.append(ids)
    states.append({})
    meet = len(states) - 1
    for ids in kept:
        state = here
        for token in ids[:-1]:
            if token not in states[state]:
                states.append({})
                states[state][token] = len(states) - 1
            state = states[state][token]
        states[state][ids[-1]] = meet
    return meet


def longest(automaton: Grammar) -> int:
    """Tokens of the longest answer, its end included."""
    rest = np.zeros(len(automaton.tokens), int)
    for _ in range(len(rest)):  # without cycles: settled after as many rounds as states
        reached = np.where(automaton.next >= 0, rest[automaton.next], 0)
        after = np.where(automaton.tokens >= 0, reached + 1, 0).max(1)
        if (after == rest).all():
            break
        rest = after
    return int(rest[0])
