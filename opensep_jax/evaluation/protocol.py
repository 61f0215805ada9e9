"""How mixtures are made and scored, as data: a file for each published benchmark, and ours."""

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from opensep_jax.data.lists import CROPS, LEVELS, PARTNERS
from opensep_jax.signal.measures import MEASURES
from opensep_jax.text.wordings import WORDINGS
from opensep_jax.training.validation import RULES

DISCOVERED = "discovered"
_CHOICES = {
    "crops": CROPS,
    "levels": LEVELS,
    "partners": PARTNERS,
    "queries": (*WORDINGS, DISCOVERED),
    "masks": RULES,
    "measures": MEASURES,
    "scored": ("all", "first"),
    "aggregate": ("mean", "class_means", "class_medians"),
    "silence": ("scored", "energy", "published"),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What makes figures comparable; the keys of a file in `assets/protocols`.

    Attributes:
        about: what it is.
        source: where it is defined.
        published_list: where its mixtures are, if they are anywhere.
        differs: how what is done here is not what was published.
        split: of the data set, which its clips are of.
        sample_rate_hz: of the original; 0 for any.
        num_sources: clips of a mixture.
        mixtures: of each number.
        seconds: length of a mixture.
        crops: see `lists.render_by`, as are `levels` and `range_db`.
        partners: which clips may meet, see `lists.list_mixtures`.
        queries: kinds of prompts, or `discovered`.
        masks: rules of `training.validation.RULES`; `none` where one source is asked for alone.
        measures: names of `signal.measures`.
        headline: the figure that the publication reports.
        scored: `all` sources of a mixture, or the `first`.
        aggregate: of mixtures: their `mean`, or the mean of the `class_means` or `class_medians`
            by the first source's name.
        silence: `scored` by the rules of the measures; `energy`: sources are left out by
            `stems.is_silent`; `published`: mixtures are, by `stems.counts_in_published_scores`.
    """

    about: str
    source: str
    published_list: str
    differs: tuple[str, ...]
    split: str
    sample_rate_hz: int
    num_sources: tuple[int, ...]
    mixtures: int
    seconds: float
    crops: str
    levels: str
    range_db: tuple[float, float]
    partners: str
    queries: tuple[str, ...]
    masks: tuple[str, ...]
    measures: tuple[str, ...]
    headline: str
    scored: str
    aggregate: str
    silence: str

    def __post_init__(self):
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            values = value if isinstance(value, tuple) else (value,)
            wrong = [str(v) for v in values if v not in allowed]
            if wrong or not values:
                raise ValueError(
                    f"{key} {', '.join(wrong) or 'empty'} not known; known: {', '.join(allowed)}"
                )
        if not 0 < self.seconds < np.inf or self.mixtures < 1:
            raise ValueError(
                f"seconds {self.seconds} and mixtures {self.mixtures} must be positive"
            )
        if not self.num_sources or min(self.num_sources) < 2:
            raise ValueError(f"num_sources {self.num_sources}: a mixture has at least 2 sources")
        if not np.isfinite(self.range_db).all() or self.range_db[0] > self.range_db[1]:
            raise ValueError(f"range_db {self.range_db}: need the lowest and the highest level")

    @property
    def wordings(self) -> tuple[str, ...]:
        """The queries that are prompts of the records."""
        return tuple(query for query in self.queries if query != DISCOVERED)

    def changed(self, changes: Mapping[str, object]) -> "Protocol":
        """The same with other settings, which are named in `differs`."""
        changes = {k: v for k, v in changes.items() if v is not None and v != getattr(self, k)}
        told = [f"{k} {_said(v)} instead of {_said(getattr(self, k))}" for k, v in changes.items()]
        return dataclasses.replace(self, **changes, differs=(*self.differs, *told))


def protocol_names() -> list[str]:
    """Those that come with the package."""
    folder = resources.files("opensep_jax").joinpath("assets/protocols")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir())


def load_protocol(name_or_file: str) -> Protocol:
    """A protocol of the package by its name, or a file of that form.

    Raises:
        ValueError: there is none, or it lacks a key, has another, or a value that means nothing.
    """
    if name_or_file in protocol_names():
        text = resources.files("opensep_jax").joinpath(f"assets/protocols/{name_or_file}.json")
    else:
        text = Path(name_or_file)
        if not text.is_file():
            raise ValueError(
                f"protocol {name_or_file!r} is no file; known: {', '.join(protocol_names())}"
            )
    try:
        content = json.loads(text.read_text("utf-8"))
        keys = {field.name for field in dataclasses.fields(Protocol)}
        if set(content) != keys:
            raise ValueError(f"keys {', '.join(sorted(set(content) ^ keys))} missing or unknown")
        return Protocol(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"protocol {name_or_file}: {error}") from error


def _said(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
