"""Composed captions: every source is found again, and words survive their numbers."""

import csv
import itertools
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from opensep_jax.text.compose import Vocabulary, clause, compose, split_clauses

MANIFEST = Path(__file__).resolve().parents[3] / "shared/data/soundbank/manifest.csv"
CLAUSES = ["a cello plays a melody", "a dog barks", "a man speaks Italian", "rain falls"]


@pytest.mark.parametrize(
    "label, caption, said",
    [
        ("rain", "Rain falls steadily.", "rain falls"),  # of the table
        ("pig", "A pig grunts and squeals.", "a pig grunts"),
        ("zither", "A zither rings, then stops.", "a zither rings"),
        ("zither", "", "zither"),
        ("TV", "TV chatter with music.", "TV chatter"),
    ],
)
def test_what_is_said_of_a_source(label: str, caption: str, said: str):
    assert clause(label, caption) == said


def test_a_caption_has_an_order_and_no_repetition():
    said = compose([*reversed(CLAUSES), "rain falls"])
    assert said == (
        "A cello plays a melody while a dog barks and a man speaks Italian as rain falls."
    )
    assert compose(["insects buzz"]) == "Insects buzz."


@pytest.mark.parametrize("number", range(1, 5))
def test_the_sources_of_a_caption_are_found_again(number: int):
    for chosen in itertools.combinations(CLAUSES, number):
        found = split_clauses(compose(chosen))
        assert [part.casefold() for part in found] == [part.casefold() for part in chosen]


def test_captions_of_others_are_split_as_well():
    assert split_clauses("A man talks followed by birds; then, rain with wind") == [
        "A man talks", "birds", "rain", "wind",
    ]  # fmt: skip


def test_the_table_holds_clauses_that_a_parser_leaves_whole():
    table = json.loads(resources.files("opensep_jax").joinpath("assets/wordings.json").read_text())
    known = [entry["clause"] for entry in table.values() if "clause" in entry]
    assert len(known) > 5 and all(split_clauses(said) == [said] for said in known)


@pytest.mark.skipif(not MANIFEST.exists(), reason="needs ../shared/data/soundbank")
def test_the_clauses_of_the_sound_bank_are_distinct_and_whole():
    with MANIFEST.open() as file:
        rows = list(csv.DictReader(file))
    clauses = {row["label"]: clause(row["label"], row["caption"]) for row in rows}
    assert len(clauses) == len(set(clauses.values())) == 61
    assert all(split_clauses(said) == [said] for said in clauses.values())


def test_numbers_stand_for_the_words_of_the_caption():
    words = Vocabulary.of(CLAUSES)
    for chosen in itertools.combinations(CLAUSES, 2):
        ids_L = words.encode(chosen, 14)
        assert ids_L.dtype == np.int32 and ids_L.max() < len(words)
        end = list(ids_L).index(words.STOP)
        said = " ".join(words.words[i - 2] for i in ids_L[:end])
        assert f"{said[0].upper()}{said[1:]}." == compose(chosen)
        assert (ids_L[end + 1 :] == words.PAD).all()


def test_what_has_no_number_or_no_room_is_named():
    words = Vocabulary.of(CLAUSES)
    with pytest.raises(ValueError, match="not known: whistles"):
        words.encode(["a dog whistles"], 14)
    with pytest.raises(ValueError, match="9 words of at most 8"):
        words.encode(CLAUSES[:2], 9)
