"""What the rule knows of English: the lists of `assets/words.json`, and the forms of verbs."""

import functools
import json
import re
from importlib import resources

_VOWELS = "aeiou"
_CONTENT_SUFFIXES = ("ings", "ing", "edly", "ed", "ers", "es", "s")


@functools.cache
def words(kind: str) -> frozenset[str]:
    """A list of `assets/words.json`, such as `breaks` or `animate`."""
    return frozenset(_lists()[kind].split())


@functools.cache
def _lists() -> dict[str, str]:
    file = resources.files("opensep_jax").joinpath("assets/words.json")
    return json.loads(file.read_text("utf-8"))


def lemma(word: str) -> str:
    """A stem that the inflected forms of a regular English word share; for comparing only."""
    for suffix in _CONTENT_SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl":
        word = word[:-1]
    if len(word) > 3 and word[-1] in "ey":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == "i" else word


def verb_base(word: str, kind: str = "verbs") -> str | None:
    """The verb of a list of which a word is a form, or None."""
    known = words(kind)
    if kind == "verbs":
        known = known | words("vocal") | words("ignorable_verbs")
    return next((base for base in _bases(word) if base in known), None)


def _bases(word: str) -> list[str]:
    """What a word may be a form of: as it is, third person, participle, past."""
    bases = [word]
    for suffix in ("ing", "ed", "es", "s"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 2:
            stem = word[: -len(suffix)]
            bases += [stem, stem + "e"]
            if len(stem) > 2 and stem[-1] == stem[-2]:
                bases.append(stem[:-1])
            if stem[-1] == "i":
                bases.append(stem[:-1] + "y")
    return bases


def is_participle(word: str) -> bool:
    """Whether a word ends as in "barking" and is no noun like "string"."""
    return len(word) > 4 and word.endswith("ing") and word not in words("not_participles")


def participle(base: str) -> str:
    """The -ing form of a verb."""
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        return base[:-1] + "ing"
    one_syllable = len(re.findall(f"[{_VOWELS}]+", base)) == 1
    closed = len(base) > 2 and base[-1] not in f"{_VOWELS}wxy" and base[-2] in _VOWELS
    if one_syllable and closed and base[-3] not in _VOWELS:
        return base + base[-1] + "ing"
    return base + "ing"
