"""A sound source as text: its name, what it sounds like, and the separator's prompt."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
    """What to separate.

    Attributes:
        name: what it is, such as "dog barking".
        properties: how it sounds, JSON types; see `bank.Bank.properties`. Empty when not known.
        prompt: what the separator is conditioned on.
    """

    name: str
    properties: dict
    prompt: str


def prompt_of(name: str, properties: dict) -> str:
    """The separator's prompt: the name, then a sentence as in `assets/wordings.json`.

    Args:
        name: of the source.
        properties: of `Bank.properties` or `read_properties`; may be empty: then the name alone.
    """
    if not properties:
        return name
    low_hz, high_hz = properties["frequency_hz"]
    place = f"{properties['range']} frequency " if "range" in properties else ""
    band = f"{place}about {_hertz(low_hz)} to {_hertz(high_hz)}"
    told = (properties["timbre"], band, properties["temporal"], properties["envelope"])
    return f"{name}: {', '.join(told)}"


def _hertz(frequency_hz: int) -> str:
    return f"{frequency_hz / 1000:g} kHz" if frequency_hz >= 1000 else f"{frequency_hz} Hz"
