"""Properties that a model has written: read strictly, and as prompts."""

import pytest

from opensep_jax.text.properties import read_properties
from opensep_jax.text.source import prompt_of

ANSWER = (
    "frequency range: 300 Hz to 2.5 kHz; timbre: rough bark; temporal pattern: short bursts; "
    "envelope: explosive attack; spectral content: harmonics and noise; amplitude: loud"
)


def test_a_full_answer_is_read():
    found = read_properties(f" {ANSWER}.\n")
    assert found == {
        "frequency_hz": [300, 2500],
        "timbre": "rough bark",
        "temporal": "short bursts",
        "envelope": "explosive attack",
        "spectrum": "harmonics and noise",
        "amplitude": "loud",
        "from": "llm",
    }
    assert prompt_of("dog", found) == (
        "dog: rough bark, about 300 Hz to 2.5 kHz, short bursts, explosive attack"
    )
    assert prompt_of("dog", {}) == "dog"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("; amplitude: loud", ""),
        ("amplitude: loud", "amplitude:"),
        ("amplitude", "loudness"),
        ("rough bark", "short bursts"),  # loops
        ("rough bark", "very " * 20),
        ("2.5 kHz", "high"),
        ("2.5 kHz", "200 Hz"),
        ("2.5 kHz", "250 kHz"),
        ("2.5 kHz", "2.5.1 kHz"),
        (ANSWER, ""),
    ],
)
def test_anything_less_is_none(old: str, new: str):
    assert read_properties(ANSWER.replace(old, new)) is None
