"""Captions of mixtures out of the captions of their sources, the words they use, and the way back.

A caption is a row of clauses, "A cello plays a melody while a dog barks and rain falls.": sorted,
so that none is repeated and there is one order to learn; and with connectives that follow from the
place, so that a captioner need not guess them. No clause holds a connective or a comma: whatever
splits a caption there finds the sources.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from opensep_jax.text.wordings import known_wordings

CONNECTIVES = ("while", "and", "as")  # after the first clause, the second, ..., and again
_SPLITS = re.compile(r"[,;.]|\b(?:and|then|while|as|with|followed by)\b")


def clause(label: str, caption: str) -> str:
    """What a caption of a mixture says of one source.

    Args:
        label: class name; may not be empty.
        caption: sentence about this source alone, or empty.

    Returns:
        The clause that `assets/wordings.json` has for the label, else the caption up to its first
        connective, else the label; it begins in lower case and has no full stop.
    """
    known = known_wordings(label).get("clause")
    if known:
        return known
    first = split_clauses(caption or label)[0]
    return first if first[1:2].isupper() else first[:1].lower() + first[1:]


def compose(clauses: Iterable[str]) -> str:
    """One sentence of all clauses; each is said once."""
    *before, last = sorted(set(clauses))
    parts = [f"{part} {CONNECTIVES[i % len(CONNECTIVES)]} " for i, part in enumerate(before)]
    sentence = "".join(parts) + last
    return f"{sentence[0].upper()}{sentence[1:]}."


def split_clauses(caption: str) -> list[str]:
    """Parts of a caption between connectives, commas, semicolons and full stops, as written."""
    return [part.strip() for part in _SPLITS.split(caption) if part.strip()]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words of captions and their numbers.

    Attributes:
        words: all words but the two special ones, sorted; number 0 pads, number 1 is the full stop
            that ends a caption, and the first word has number 2.
    """

    words: tuple[str, ...]

    PAD, STOP = 0, 1

    @classmethod
    def of(cls, clauses: Iterable[str]) -> "Vocabulary":
        """All that is needed to say these clauses."""
        return cls(tuple(sorted({w for c in clauses for w in c.split()} | {*CONNECTIVES})))

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, clauses: Sequence[str], length: int) -> np.ndarray:
        """Numbers of the words of `compose(clauses)`, int32 [length], padded at the end.

        Raises:
            ValueError: the caption is longer, or a word is not known.
        """
        number = {word: i for i, word in enumerate(self.words, 2)}
        sentence = compose(clauses).removesuffix(".")
        words = [w if w in number else w[0].lower() + w[1:] for w in sentence.split()]
        unknown = [word for word in words if word not in number]
        if unknown or len(words) >= length:
            raise ValueError(
                f"caption {sentence!r}: {len(words)} words of at most {length - 1}, not known: "
                f"{', '.join(unknown) or 'none'}"
            )
        ids = [number[word] for word in words] + [self.STOP]
        return np.array(ids + [self.PAD] * (length - len(ids)), np.int32)
