"""Acoustic properties of sounds from a hand-written bank, by nearness of their names.

The bank is `assets/sounds.jsonl`, a sound per line. A name's vector is the mean of its token
states in a sentence encoder. Source: ours; small language models know almost no acoustics.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from importlib import resources

import numpy as np

from opensep_jax.text.embed import TextEncoder

# Closed questions and their answers. Range: where most energy is, low below about 300 Hz, high
# above 2 kHz; pattern: intermittent has irregular pauses, impulsive is single short events.
CLOSED = {
    "range": ("low", "mid", "high"),
    "pattern": ("continuous", "intermittent", "impulsive", "rhythmic"),
    "tonality": ("harmonic", "noisy"),
    "onset": ("sharp", "gradual"),
}
PROSE = ("timbre", "temporal", "envelope", "spectrum", "amplitude")
NEIGHBOURS = 3
_SHARPNESS = 10.0  # weight exp(10 cosine): a neighbour that is far nearer decides alone
_LEAST_COSINE = 0.35  # below, names have nothing in common


@dataclasses.dataclass(frozen=True)
class Sound:
    """A line of the bank.

    Attributes:
        name: what sounds and how, such as "dog barking".
        aliases: other names for it, such as "dog".
        frequency_hz: lowest and highest frequency with notable energy.
        prose: a few words each for the names in `PROSE`.
        closed: right answers of each question in `CLOSED`, the best first.
    """

    name: str
    aliases: tuple[str, ...]
    frequency_hz: tuple[int, int]
    prose: dict[str, str]
    closed: dict[str, tuple[str, ...]]


def load_sounds() -> list[Sound]:
    """The sounds of `assets/sounds.jsonl`.

    Raises:
        ValueError: a line is not as it should be; the message names line and key.
    """
    text = resources.files("opensep_jax").joinpath("assets/sounds.jsonl").read_text("utf-8")
    return [_read_sound(json.loads(line), n) for n, line in enumerate(text.splitlines(), 1)]


def _read_sound(row: dict, number: int) -> Sound:
    for question, answers in CLOSED.items():
        if not row[question] or not set(row[question]) <= set(answers):
            raise ValueError(f"sounds.jsonl:{number}: {question} {row[question]} not in {answers}")
    low_hz, high_hz = row["frequency_hz"]
    if not 0 < low_hz < high_hz:
        raise ValueError(f"sounds.jsonl:{number}: frequency_hz {low_hz} to {high_hz} is no band")
    return Sound(
        row["name"],
        tuple(row.get("aliases", ())),
        (low_hz, high_hz),
        {key: row[key] for key in PROSE},
        {key: tuple(row[key]) for key in CLOSED},
    )


class Bank:
    """Sounds that can be looked up by any name.

    Attributes:
        id: of the encoder.
        sounds: what it knows.
    """

    def __init__(self, encoder: TextEncoder, sounds: Sequence[Sound]):
        """Embeds all names once."""
        self.id, self.sounds = encoder.id, list(sounds)
        self._encoder = encoder
        pairs = [(n, i) for i, s in enumerate(self.sounds) for n in (s.name, *s.aliases)]
        self._owner = np.array([i for _, i in pairs])
        self._vectors_NC = self.vectors([name for name, _ in pairs])

    def properties(self, names: Sequence[str]) -> list[dict]:
        """What sources of the given names sound like.

        Args:
            names: any texts.

        Returns:
            For each name `frequency_hz`, the keys of `PROSE` and `CLOSED`, `from` ("bank"), the
            `nearest` sound and its `similarity`; empty where nothing of the bank is near. Closed
            answers are voted by the nearest three sounds; the rest is the prose of the nearest
            of them that agrees best with the vote.
        """
        return [self._vote(cosine_S) for cosine_S in self.similarities(names)]

    def similarities(self, names: Sequence[str]) -> np.ndarray:
        """Cosines of names and sounds (the best of its own names), float32 [len(names), S]."""
        if not len(names):
            return np.zeros((0, len(self.sounds)), np.float32)
        cosines = self.vectors(names) @ self._vectors_NC.T
        best = np.full((len(names), len(self.sounds)), -1.0, np.float32)
        np.maximum.at(best, (slice(None), self._owner), cosines)
        return best

    def vectors(self, names: Sequence[str]) -> np.ndarray:
        """Unit vectors of names, float32 [len(names), C]; their products are cosines."""
        states = self._encoder.encode([name.lower() for name in names])
        mean_NC = np.stack([state_LC.astype(np.float32).mean(0) for state_LC in states])
        return mean_NC / np.maximum(np.linalg.norm(mean_NC, axis=1, keepdims=True), 1e-12)

    def _vote(self, cosine_S: np.ndarray) -> dict:
        nearest = [int(i) for i in np.argsort(-cosine_S, kind="stable")[:NEIGHBOURS]]
        if cosine_S[nearest[0]] < _LEAST_COSINE:
            return {}
        closed = closed_answers(self.sounds, cosine_S)
        agreement = [sum(closed[q] == self.sounds[i].closed[q][0] for q in CLOSED) for i in nearest]
        told = nearest[int(np.argmax(agreement))]
        sound = self.sounds[told]
        return {
            "frequency_hz": list(sound.frequency_hz),
            **sound.prose,
            **closed,
            "from": "bank",
            "nearest": sound.name,
            "similarity": round(float(cosine_S[told]), 3),
        }


def closed_answers(sounds: Sequence[Sound], cosine_S: np.ndarray) -> dict[str, str]:
    """The answers to `CLOSED` that the nearest sounds vote for.

    Args:
        sounds: S sounds of the bank.
        cosine_S: how near they are.
    """
    nearest = np.argsort(-cosine_S, kind="stable")[:NEIGHBOURS]
    answers = {}
    for question in CLOSED:
        votes: dict[str, float] = collections.defaultdict(float)
        for i in nearest:
            votes[sounds[i].closed[question][0]] += math.exp(_SHARPNESS * float(cosine_S[i]))
        answers[question] = max(votes, key=votes.__getitem__)
    return answers
