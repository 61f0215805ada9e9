"""Acoustic properties that a language model has written."""

import re

from opensep_jax.text.bank import PROSE

# How a model is asked, and the keys of what it answers.
FIELDS = {
    "frequency range": "frequency_hz",
    "timbre": "timbre",
    "temporal pattern": "temporal",
    "envelope": "envelope",
    "spectral content": "spectrum",
    "amplitude": "amplitude",
}
_MAX_WORDS = 12  # of a property
_BAND = re.compile(r"([\d.]+)\s*(k?)hz\s*(?:to|-|–)\s*([\d.]+)\s*(k?)hz", re.IGNORECASE)
_HIGHEST_HZ = 24000


def read_properties(answer: str) -> dict | None:
    """Properties from an answer like "frequency range: 300 Hz to 3 kHz; timbre: rough; ...".

    Returns:
        The same keys as `bank.Bank.properties` but for the closed ones, `from` being "llm"; None
        unless each field of `FIELDS` is there once, short, and different from the others.
    """
    found: dict = {}
    for part in answer.strip().rstrip(".").split(";"):
        field, colon, value = (text.strip() for text in part.partition(":"))
        key = FIELDS.get(field.lower())
        if not colon or key is None or key in found or not value:
            return None
        found[key] = value
    words = [value.split() for value in found.values()]
    if len(found) < len(FIELDS) or len(set(map(tuple, words))) < len(FIELDS):
        return None
    band = _BAND.search(found["frequency_hz"])
    if not band or max(map(len, words)) > _MAX_WORDS:
        return None
    try:
        low_hz, high_hz = (
            round(float(number) * (1000 if kilo else 1))
            for number, kilo in (band.group(1, 2), band.group(3, 4))
        )
    except ValueError:  # "1.2.3"
        return None
    if not 0 < low_hz < high_hz <= _HIGHEST_HZ:
        return None
    return {"frequency_hz": [low_hz, high_hz], **{k: found[k] for k in PROSE}, "from": "llm"}
